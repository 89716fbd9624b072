//! Reading input: text becomes values, and every fault is noted.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use uuid::Uuid;

use super::{Fault, FieldFault, List};
use crate::model::{DbTime, DestinationId, Status};
use crate::store::page::{Page, Position};

/// Rows of a page when nobody says how many.
pub const DEFAULT_LIMIT: u32 = 50;
/// Rows of a page at most.
pub const MAX_LIMIT: u32 = 200;
/// Characters of an event type, as its column has them.
pub const MAX_EVENT_TYPE: usize = 100;

/// The faults of an input, gathered while it is read.
#[derive(Debug, Default)]
pub struct Faults(Vec<FieldFault>);

impl Faults {
    /// Notes one.
    pub fn add(&mut self, field: &str, detail: impl Into<String>) {
        self.0.push(FieldFault { field: field.to_owned(), detail: detail.into() });
    }

    /// `value`, unless there was a fault.
    ///
    /// # Errors
    /// [`Fault::Invalid`] with all of them.
    pub fn check<T>(self, value: T) -> Result<T, Fault> {
        if self.0.is_empty() { Ok(value) } else { Err(Fault::Invalid(self.0)) }
    }

    /// Whether something is wrong with `field`, or with what it is a part of.
    pub fn has(&self, field: &str) -> bool {
        let is_inside = |rest: &str| rest.is_empty() || rest.starts_with(['.', '[']);
        self.0.iter().any(|fault| {
            fault.field.strip_prefix(field).is_some_and(is_inside)
                || field.strip_prefix(&*fault.field).is_some_and(is_inside)
        })
    }

    /// A text that a column of the database is to hold.
    pub fn text(&mut self, field: &str, text: &str, least: usize, most: usize) {
        if !(least..=most).contains(&text.chars().count()) {
            self.add(field, format!("must have {least} to {most} characters"));
        }
        if text.contains('\0') {
            self.add(field, "must not contain the character NUL");
        }
    }

    /// What `read` makes of a text that may be missing.
    pub fn read<T>(
        &mut self,
        field: &str,
        text: Option<&str>,
        form: &str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let value = read(text?);
        if value.is_none() {
            self.add(field, format!("must be {form}"));
        }
        value
    }

    /// A point in time.
    pub fn time(&mut self, field: &str, text: Option<&str>) -> Option<DbTime> {
        let form = "a time in UTC, such as 2026-01-31T12:00:00Z, or a date";
        self.read(field, text, form, DbTime::from_iso)
    }

    /// A range of time: `from` and `to`.
    pub fn range(&mut self, from: Option<&str>, to: Option<&str>) -> (Option<DbTime>, Option<DbTime>) {
        let (from, to) = (self.time("from", from), self.time("to", to));
        if from.zip(to).is_some_and(|(from, to)| from >= to) {
            self.add("to", "must be later than from");
        }
        (from, to)
    }

    /// The id of a destination.
    pub fn destination(&mut self, field: &str, text: Option<&str>) -> Option<DestinationId> {
        self.read(field, text, "a UUID", |text| text.parse().ok().map(DestinationId))
    }

    /// An event type.
    pub fn event_type(&mut self, text: Option<&str>) -> Option<String> {
        let form = format!("1 to {MAX_EVENT_TYPE} characters");
        let fits = |text: &str| (1..=MAX_EVENT_TYPE).contains(&text.chars().count()) && !text.contains('\0');
        self.read("event_type", text, &form, |text| fits(text).then(|| text.to_owned()))
    }

    /// Statuses out of those that are `allowed`.
    pub fn statuses<'t>(&mut self, texts: impl Iterator<Item = &'t str>, allowed: &[Status]) -> Vec<Status> {
        let mut statuses = Vec::new();
        for text in texts {
            match Status::named(text).filter(|status| allowed.contains(status)) {
                Some(status) if !statuses.contains(&status) => statuses.push(status),
                Some(_) => {}
                None => {
                    let names: Vec<&str> = allowed.iter().map(|status| status.name()).collect();
                    self.add("status", format!("\"{text}\" is none of {}", names.join(", ")));
                }
            }
        }
        statuses
    }

    /// How many rows a page may have.
    pub fn limit(&mut self, text: Option<&str>) -> u32 {
        let form = format!("a number from 1 to {MAX_LIMIT}");
        let fits = |limit: &u32| (1..=MAX_LIMIT).contains(limit);
        self.read("limit", text, &form, |text| text.parse().ok().filter(fits)).unwrap_or(DEFAULT_LIMIT)
    }

    /// Where a page starts.
    pub fn cursor(&mut self, text: Option<&str>) -> Option<Position> {
        self.read("cursor", text, "the next_cursor of a page, unchanged", position)
    }
}

/// Whether JSON text contains NUL, which can only stand there escaped, and which jsonb cannot hold.
pub(super) fn has_nul(json: &str) -> bool {
    json.match_indices("\\u0000").any(|(at, _)| {
        // An even number of backslashes before it are as many halves as characters.
        json[..at].bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 0
    })
}

/// A position as a cursor: opaque, so that nobody counts on its form.
fn cursor(position: Position) -> String {
    let mut bytes = position.at.0.to_be_bytes().to_vec();
    bytes.extend_from_slice(position.id.as_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

fn position(cursor: &str) -> Option<Position> {
    let bytes: [u8; 24] = URL_SAFE_NO_PAD.decode(cursor).ok()?.try_into().ok()?;
    let (at, id) = bytes.split_at(8);
    let at = DbTime(i64::from_be_bytes(at.try_into().ok()?));
    Some(Position { at, id: Uuid::from_slice(id).ok()? })
}

/// A page as it is shown.
pub fn shown<T, V>(page: Page<T>, view: impl Fn(T) -> V) -> List<V> {
    List { items: page.items.into_iter().map(view).collect(), next_cursor: page.next.map(cursor) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_as_it_was_written_and_nothing_else_is_one() {
        let place = Position { at: DbTime(-5), id: Uuid::from_u128(7) };
        assert_eq!(position(&cursor(place)), Some(place));
        for text in ["", "x", "AAAA", &cursor(place)[1..], &format!("{}A", cursor(place)), "ä"] {
            assert_eq!(position(text), None, "{text}");
        }
    }

    #[test]
    fn all_faults_are_told_at_once() {
        let mut faults = Faults::default();
        faults.range(Some("yesterday"), Some("2026-01-01"));
        faults.limit(Some("0"));
        faults.limit(Some("201"));
        faults.cursor(Some("?"));
        faults.destination("destination", Some("1"));
        faults.event_type(Some(""));
        faults.statuses(["dead", "alive"].into_iter(), &Status::ALL);
        let Err(Fault::Invalid(told)) = faults.check(()) else { panic!("no fault") };
        let fields: Vec<&str> = told.iter().map(|fault| fault.field.as_str()).collect();
        assert_eq!(fields, ["from", "limit", "limit", "cursor", "destination", "event_type", "status"]);
    }
}
