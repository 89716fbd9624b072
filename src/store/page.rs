//! Pages of lists: stable while rows arrive, as a page starts at a row's place and not at a number.

use sqlx::postgres::PgConnection;
use uuid::Uuid;

use super::{StoreError, in_time};
use crate::model::{DbTime, OrgId};
use crate::store::schema;

/// The first statement of a page looks at this many rows for each that is wanted, where a filter has no
/// index, and each further one at as many times more: a common type needs one small one.
const GROWTH: i64 = 4;
/// Event types with no more events than this, of all organizations, are looked up by their type.
const RARE: i64 = 2_000;

/// The place of a row in a list that is ordered by time and id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Its time.
    pub at: DbTime,
    /// Its id.
    pub id: Uuid,
}

impl Position {
    /// Where a list, newest first, starts that goes on before `cursor` and shows what is older than `to`.
    pub fn before(cursor: Option<Position>, to: Option<DbTime>) -> Position {
        let end = Position { at: to.unwrap_or(DbTime(i64::MAX)), id: Uuid::nil() };
        cursor.filter(|cursor| (cursor.at, cursor.id) < (end.at, end.id)).unwrap_or(end)
    }
}

/// A part of a list.
#[derive(Clone, Debug, PartialEq)]
pub struct Page<T> {
    /// The rows.
    pub items: Vec<T>,
    /// Where the next page starts; `None`: this is the last one.
    pub next: Option<Position>,
}

impl<T> Page<T> {
    /// The first `limit` of `items`, which are one more if there are more.
    pub fn cut(mut items: Vec<T>, limit: u32, position: impl Fn(&T) -> Position) -> Page<T> {
        let more = items.len() > limit as usize;
        items.truncate(limit as usize);
        let next = items.last().filter(|_| more).map(position);
        Page { items, next }
    }
}

/// How many rows the statements of a page look at where a filter has no index: a few, then more, and so many
/// in all at most that the page is there in an instant, whatever it holds.
pub(super) struct Looks {
    next: i64,
    left: i64,
}

impl Looks {
    /// For a page of `wanted` rows, out of `most`.
    pub(super) fn new(wanted: i64, most: i64) -> Looks {
        Looks { next: wanted * GROWTH, left: most }
    }
}

impl Iterator for Looks {
    type Item = i64;

    fn next(&mut self) -> Option<i64> {
        let look = self.next.min(self.left);
        self.next = look * GROWTH;
        self.left -= look;
        (look > 0).then_some(look)
    }
}

const RARE_EVENTS: &str = "
    SELECT count(*), coalesce(array_agg(e.id) FILTER (WHERE e.org_id = $1), '{}')
    FROM (SELECT l.id, l.org_id FROM public.activity_logs l WHERE l.event_type = $2 LIMIT $3) e";

/// The events of a type that is rare; `None`: it is not.
///
/// # Errors
/// Whatever the database says.
pub(super) async fn rare_events(
    db: &mut PgConnection,
    org: OrgId,
    event_type: &str,
) -> Result<Option<Vec<Uuid>>, StoreError> {
    let query = schema::query_as(RARE_EVENTS).bind(org.0).bind(event_type).bind(RARE + 1).persistent(false);
    let (count, events): (i64, Vec<Uuid>) = in_time(query.fetch_one(db)).await?;
    Ok((count <= RARE).then_some(events))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_looks_at_a_few_rows_first_and_never_at_more_than_it_may() {
        assert_eq!(Looks::new(51, 2_000).collect::<Vec<_>>(), [204, 816, 980]);
        assert_eq!(Looks::new(201, 2_000).collect::<Vec<_>>(), [804, 1_196]);
        assert_eq!(Looks::new(2, 5).collect::<Vec<_>>(), [5]);
    }
}
