//! Events: written for those who do not write SQL themselves, and read.

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Row};
use uuid::Uuid;

use super::deliveries::{OPTIONAL_COLUMNS, event_columns};
use super::page::{Looks, Page, Position, rare_events};
use super::{StoreError, in_time};
use crate::model::{DbTime, EventId, OrgId};

/// Rows that a page looks at for those of one type: they lie beside each other.
const LOOKED_AT: i64 = 10_000;
/// How often an INSERT is repeated that met another one with the same id.
const TRIES: usize = 3;

/// An event that somebody wants to be written.
#[derive(Clone, Debug)]
pub struct NewEvent {
    /// Its primary key: who repeats it repeats the event.
    pub id: EventId,
    /// What happened.
    pub event_type: String,
    /// The kind of thing that happened.
    pub event_category: String,
    /// A sentence for people.
    pub content: Option<String>,
    /// JSON text.
    pub payload: String,
    /// Who did it.
    pub employee_id: Option<Uuid>,
    /// In which session.
    pub session_id: Option<Uuid>,
    /// With which client.
    pub client_name: Option<String>,
    /// And which version of it.
    pub client_version: Option<String>,
}

/// What became of events that were to be written.
#[derive(Clone, Debug, PartialEq)]
pub enum Posted {
    /// All are there, written now or by the same request before: when each was, in the order of the request.
    Stored(Vec<(EventId, DbTime)>),
    /// These ids belong to other events; nothing was written.
    Conflict(Vec<EventId>),
    /// This database's events have no such column; nothing was written.
    NoColumn(&'static str),
}

/// Parameters: one array for each of id, type, category, content, payload, employee, session, client name and
/// version; the organization. One statement, so that all are written or none, and the trigger fires once.
/// `{COLUMNS}` are the optional columns that the table has, `{SAME}` compares them.
const INSERT: &str = "
WITH given AS MATERIALIZED (
    SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::jsonb[], $6::uuid[], $7::uuid[],
            $8::text[], $9::text[]) WITH ORDINALITY
        AS g (id, event_type, event_category, content, payload, employee_id, session_id, client_name,
            client_version, n)
),
known AS MATERIALIZED (
    SELECT g.n, l.created_at, l.org_id = $10 AND l.event_type = g.event_type
        AND l.event_category = g.event_category AND l.payload = g.payload{SAME} AS same
    FROM given g JOIN public.activity_logs l ON l.id = g.id
),
written AS (
    INSERT INTO public.activity_logs (id, org_id, event_type, event_category, payload, created_at{COLUMNS})
    SELECT g.id, $10, g.event_type, g.event_category, g.payload, timezone('UTC', clock_timestamp()){VALUES}
    FROM given g
    WHERE NOT EXISTS (SELECT FROM known k WHERE k.n = g.n OR k.same IS NOT TRUE)
    ORDER BY g.n
    RETURNING id, created_at
)
SELECT g.id, coalesce(w.created_at, k.created_at, 'infinity'), k.n IS NULL OR coalesce(k.same, false)
FROM given g LEFT JOIN written w ON w.id = g.id LEFT JOIN known k ON k.n = g.n
ORDER BY g.n";

/// Writes `events` of `org`, all of them or none. Their ids differ.
///
/// # Errors
/// Whatever the database says; nothing was written then, or the answer was lost: repeating is harmless.
pub async fn insert(db: &mut PgConnection, org: OrgId, events: &[NewEvent]) -> Result<Posted, StoreError> {
    let columns = event_columns(db).await?;
    let has = |name: &str| columns.iter().any(|column| column == name);
    for (column, _) in OPTIONAL_COLUMNS {
        if !has(column) && events.iter().any(|event| event.gives(column)) {
            return Ok(Posted::NoColumn(column));
        }
    }
    let there: Vec<&str> =
        OPTIONAL_COLUMNS.into_iter().map(|(name, _)| name).filter(|name| has(name)).collect();
    let each = |write: &dyn Fn(&str) -> String| there.iter().map(|name| write(name)).collect::<String>();
    let sql = INSERT
        .replace("{COLUMNS}", &each(&|name| format!(", {name}")))
        .replace("{VALUES}", &each(&|name| format!(", g.{name}")))
        .replace("{SAME}", &each(&|name| format!(" AND l.{name} IS NOT DISTINCT FROM g.{name}")));
    let mut tries = 1;
    let rows = loop {
        match in_time(insert_query(&sql, org, events).fetch_all(&mut *db)).await {
            // Somebody else was writing the same id: now it is known.
            Err(error) if error.is_about_uniqueness() && tries < TRIES => tries += 1,
            done => break done?,
        }
    };
    let conflicts: Vec<EventId> =
        rows.iter().filter(|(.., right)| !right).map(|(id, ..)| EventId(*id)).collect();
    Ok(match conflicts.is_empty() {
        true => Posted::Stored(rows.into_iter().map(|(id, at, _)| (EventId(id), at)).collect()),
        false => Posted::Conflict(conflicts),
    })
}

type InsertQuery<'q> =
    sqlx::query::QueryAs<'q, sqlx::Postgres, (Uuid, DbTime, bool), sqlx::postgres::PgArguments>;

fn insert_query<'q>(sql: &str, org: OrgId, events: &'q [NewEvent]) -> InsertQuery<'q> {
    fn column<'e, T>(events: &'e [NewEvent], of: impl Fn(&'e NewEvent) -> T) -> Vec<T> {
        events.iter().map(of).collect()
    }
    sqlx::query_as(AssertSqlSafe(sql.to_owned()))
        .bind(column(events, |event| event.id.0))
        .bind(column(events, |event| event.event_type.as_str()))
        .bind(column(events, |event| event.event_category.as_str()))
        .bind(column(events, |event| event.content.as_deref()))
        .bind(column(events, |event| event.payload.as_str()))
        .bind(column(events, |event| event.employee_id))
        .bind(column(events, |event| event.session_id))
        .bind(column(events, |event| event.client_name.as_deref()))
        .bind(column(events, |event| event.client_version.as_deref()))
        .bind(org.0)
        .persistent(false)
}

impl NewEvent {
    fn gives(&self, column: &str) -> bool {
        match column {
            "content" => self.content.is_some(),
            "employee_id" => self.employee_id.is_some(),
            "session_id" => self.session_id.is_some(),
            "client_name" => self.client_name.is_some(),
            "client_version" => self.client_version.is_some(),
            _ => false,
        }
    }
}

/// Which events.
#[derive(Clone, Debug)]
pub struct Filter {
    /// Whose.
    pub org: OrgId,
    /// Of which type.
    pub event_type: Option<String>,
    /// Created at this time or later.
    pub from: Option<DbTime>,
    /// Created before this time.
    pub to: Option<DbTime>,
}

/// An event as lists show it.
#[derive(Clone, Debug, PartialEq)]
pub struct Listed {
    /// Primary key.
    pub id: EventId,
    /// What happened.
    pub event_type: String,
    /// The kind of thing that happened.
    pub event_category: String,
    /// When.
    pub created_at: DbTime,
}

/// Parameters: organization, from, position, rows to look at, rows wanted, type.
const LIST: &str = "
WITH looked AS MATERIALIZED (
    SELECT l.id, l.event_type::text AS event_type, l.event_category::text AS event_category, l.created_at
    FROM public.activity_logs l
    WHERE l.org_id = $1 AND l.created_at >= $2 AND (l.created_at, l.id) < ($3::timestamp, $4::uuid)
    ORDER BY l.created_at DESC, l.id DESC LIMIT $5
),
page AS (
    SELECT * FROM looked WHERE $7::text IS NULL OR event_type = $7
    ORDER BY created_at DESC, id DESC LIMIT $6
)
SELECT e.created_at AS end_at, e.id AS end_id, (SELECT count(*) FROM looked) = $5 AS more, page.*
FROM (SELECT) one
LEFT JOIN (SELECT * FROM looked ORDER BY created_at, id LIMIT 1) e ON true
LEFT JOIN page ON true
ORDER BY page.created_at DESC, page.id DESC";

const LIST_OF_EVENTS: &str = "
    SELECT l.id, l.event_type::text AS event_type, l.event_category::text AS event_category, l.created_at
    FROM public.activity_logs l
    WHERE l.id = ANY ($1) AND l.created_at >= $2 AND (l.created_at, l.id) < ($3::timestamp, $4::uuid)
    ORDER BY l.created_at DESC, l.id DESC LIMIT $5";

/// One page of events, the newest first, as [`super::deliveries::list::list`].
///
/// # Errors
/// Whatever the database says.
pub async fn list(
    db: &mut PgConnection,
    filter: &Filter,
    before: Option<Position>,
    limit: u32,
) -> Result<Page<Listed>, StoreError> {
    let wanted = i64::from(limit) + 1;
    let mut before = Position::before(before, filter.to);
    let from = filter.from.unwrap_or(DbTime(i64::MIN));
    if let Some(event_type) = &filter.event_type
        && let Some(events) = rare_events(db, filter.org, event_type).await?
    {
        let query = sqlx::query(LIST_OF_EVENTS).bind(events).bind(from);
        let query = query.bind(before.at).bind(before.id).bind(wanted).persistent(false);
        let rows = in_time(query.fetch_all(db)).await?;
        let items = rows.iter().map(read_listed).collect::<Result<Vec<_>, _>>()?;
        return Ok(Page::cut(items, limit, position));
    }
    let most = if filter.event_type.is_some() { LOOKED_AT } else { wanted };
    let mut items: Vec<Listed> = Vec::new();
    for look in Looks::new(wanted, most) {
        let query = sqlx::query(LIST).bind(filter.org.0).bind(from).bind(before.at).bind(before.id);
        let query = query.bind(look).bind(wanted - items.len() as i64).bind(&filter.event_type);
        let rows = in_time(query.persistent(false).fetch_all(&mut *db)).await?;
        let first = rows.first().ok_or(StoreError::Database(sqlx::Error::RowNotFound))?;
        let is_row = |row: &&PgRow| row.try_get::<Option<Uuid>, _>("id").is_ok_and(|id| id.is_some());
        items.append(&mut rows.iter().filter(is_row).map(read_listed).collect::<Result<_, _>>()?);
        if items.len() as i64 >= wanted || !first.try_get::<bool, _>("more")? {
            return Ok(Page::cut(items, limit, position));
        }
        before = Position { at: first.try_get("end_at")?, id: first.try_get("end_id")? };
    }
    Ok(Page { items, next: Some(before) })
}

fn position(listed: &Listed) -> Position {
    Position { at: listed.created_at, id: listed.id.0 }
}

fn read_listed(row: &PgRow) -> Result<Listed, sqlx::Error> {
    Ok(Listed {
        id: EventId(row.try_get("id")?),
        event_type: row.try_get("event_type")?,
        event_category: row.try_get("event_category")?,
        created_at: row.try_get("created_at")?,
    })
}

/// An event with all its columns, null where this database's events have none.
#[derive(Clone, Debug)]
pub struct Full {
    /// What lists show.
    pub event: Listed,
    /// A sentence for people.
    pub content: Option<String>,
    /// JSON text.
    pub payload: String,
    /// Who did it.
    pub employee_id: Option<Uuid>,
    /// In which session.
    pub session_id: Option<Uuid>,
    /// With which client.
    pub client_name: Option<String>,
    /// And which version of it.
    pub client_version: Option<String>,
}

/// By name, so that columns may be missing.
const ONE: &str = "
    SELECT l.id, l.event_type::text AS event_type, l.event_category::text AS event_category, l.created_at,
        l.payload::text AS payload, j.value ->> 'content' AS content,
        (j.value ->> 'employee_id')::uuid AS employee_id, (j.value ->> 'session_id')::uuid AS session_id,
        j.value ->> 'client_name' AS client_name, j.value ->> 'client_version' AS client_version
    FROM public.activity_logs l CROSS JOIN LATERAL to_jsonb(l) AS j (value)
    WHERE l.id = $2 AND l.org_id = $1";

/// An event of `org`.
///
/// # Errors
/// Whatever the database says.
pub async fn one(db: &mut PgConnection, org: OrgId, id: EventId) -> Result<Option<Full>, StoreError> {
    let row = in_time(sqlx::query(ONE).bind(org.0).bind(id.0).fetch_optional(db)).await?;
    let read = |row: PgRow| {
        Ok::<_, sqlx::Error>(Full {
            event: read_listed(&row)?,
            content: row.try_get("content")?,
            payload: row.try_get("payload")?,
            employee_id: row.try_get("employee_id")?,
            session_id: row.try_get("session_id")?,
            client_name: row.try_get("client_name")?,
            client_version: row.try_get("client_version")?,
        })
    };
    Ok(row.map(read).transpose()?)
}
