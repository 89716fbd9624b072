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
    /// Bytes that the payload may have as PostgreSQL prints it.
    pub payload_room: usize,
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
    /// These events cannot be written, by their places in the request; nothing was.
    Refused(Vec<(usize, Refusal)>),
    /// This database's events have no such column; nothing was written.
    NoColumn(&'static str),
}

/// Why an event cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The payload as PostgreSQL prints it has no room.
    TooLarge,
    /// The organization has no such employee.
    UnknownEmployee,
    /// The id belongs to another event, of whatever organization.
    IdTaken,
}

/// Whether `public.employees` has the columns that tell whose an employee is, and whether a foreign key says
/// that it is the table of those who do what is logged: NULL where there is no key. An application's table
/// may look otherwise, and its key may lead elsewhere.
const EMPLOYEES: &str = "
    SELECT (SELECT count(*) = 2 FROM pg_catalog.pg_attribute a
            WHERE a.attrelid = to_regclass('public.employees') AND a.attname IN ('id', 'org_id')
              AND a.atttypid = 'pg_catalog.uuid'::regtype AND NOT a.attisdropped),
        (SELECT bool_and(k.confrelid = to_regclass('public.employees'))
         FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_attribute a
           ON a.attrelid = k.conrelid AND a.attnum = ANY (k.conkey) AND a.attname = 'employee_id'
         WHERE k.conrelid = 'public.activity_logs'::regclass AND k.contype = 'f')";

/// Whether the employee of `g` is not one of the organization.
const IS_STRANGER: &str = "g.employee_id IS NOT NULL AND NOT EXISTS (
        SELECT FROM public.employees e WHERE e.id = g.employee_id AND e.org_id = $11)";

/// As [`IS_STRANGER`], where no foreign key says whose ids these are: a table without rows is the one that
/// `migrate` has made, as the application has none of this name.
const IS_STRANGER_IF_ANY: &str = "g.employee_id IS NOT NULL AND NOT EXISTS (
        SELECT FROM public.employees e WHERE e.id = g.employee_id AND e.org_id = $11)
        AND EXISTS (SELECT FROM public.employees)";

/// How to tell whether an employee is the organization's, as a condition on `g`. Nothing is refused where
/// nobody can know.
async fn stranger(db: &mut PgConnection, events: &[NewEvent]) -> Result<&'static str, StoreError> {
    if events.iter().all(|event| event.employee_id.is_none()) {
        return Ok("false");
    }
    let query = sqlx::query_as(EMPLOYEES).persistent(false);
    let (tells_organizations, is_referred_to): (bool, Option<bool>) = in_time(query.fetch_one(db)).await?;
    Ok(match (tells_organizations, is_referred_to) {
        (true, Some(true)) => IS_STRANGER,
        (true, None) => IS_STRANGER_IF_ANY,
        (false, _) | (true, Some(false)) => "false",
    })
}

/// Parameters: one array for each of id, type, category, content, payload, employee, session, client name and
/// version, and of the room for the payload; the organization. One statement, so that all are written or
/// none, and the trigger fires once. `{COLUMNS}` are the optional columns that the table has, `{SAME}`
/// compares them; `{STRANGER}` is a condition on the employee.
const INSERT: &str = "
WITH given AS MATERIALIZED (
    SELECT g.*, public.posthaste_printed(g.payload, g.room) IS NULL AS too_large, {STRANGER} AS stranger
    FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::jsonb[], $6::uuid[], $7::uuid[],
            $8::text[], $9::text[], $10::int[]) WITH ORDINALITY
        AS g (id, event_type, event_category, content, payload, employee_id, session_id, client_name,
            client_version, room, n)
),
known AS MATERIALIZED (
    SELECT g.n, l.created_at,
        -- another organization's event is not even compared: how long that takes would tell of its contents
        CASE WHEN l.org_id = $11 THEN l.event_type = g.event_type AND l.event_category = g.event_category
            AND l.payload = g.payload{SAME} END AS same
    FROM given g JOIN public.activity_logs l ON l.id = g.id
),
written AS (
    INSERT INTO public.activity_logs (id, org_id, event_type, event_category, payload, created_at{COLUMNS})
    SELECT g.id, $11, g.event_type, g.event_category, g.payload, timezone('UTC', clock_timestamp()){VALUES}
    FROM given g
    WHERE NOT EXISTS (SELECT FROM given bad WHERE bad.too_large OR bad.stranger)
      AND NOT EXISTS (SELECT FROM known k WHERE k.n = g.n OR k.same IS NOT TRUE)
    ORDER BY g.n
    RETURNING id, created_at
)
SELECT g.id, coalesce(w.created_at, k.created_at, 'infinity'), g.too_large, g.stranger,
    k.n IS NOT NULL AND k.same IS NOT TRUE
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
        .replace("{SAME}", &each(&|name| format!(" AND l.{name} IS NOT DISTINCT FROM g.{name}")))
        .replace("{STRANGER}", stranger(db, events).await?);
    let mut tries = 1;
    let rows = loop {
        match in_time(insert_query(&sql, org, events).fetch_all(&mut *db)).await {
            // Somebody else was writing the same id: now it is known.
            Err(error) if error.is_about_uniqueness() && tries < TRIES => tries += 1,
            done => break done?,
        }
    };
    let refusals = |(place, row): (usize, &InsertRow)| {
        let (.., too_large, stranger, taken) = *row;
        let all =
            [(too_large, Refusal::TooLarge), (stranger, Refusal::UnknownEmployee), (taken, Refusal::IdTaken)];
        all.into_iter().filter(|(is, _)| *is).map(move |(_, refusal)| (place, refusal))
    };
    let refused: Vec<(usize, Refusal)> = rows.iter().enumerate().flat_map(refusals).collect();
    Ok(match refused.is_empty() {
        true => Posted::Stored(rows.into_iter().map(|(id, at, ..)| (EventId(id), at)).collect()),
        false => Posted::Refused(refused),
    })
}

/// Id, time, whether it is too large, whether its employee is unknown, whether its id is taken.
type InsertRow = (Uuid, DbTime, bool, bool, bool);
type InsertQuery<'q> = sqlx::query::QueryAs<'q, sqlx::Postgres, InsertRow, sqlx::postgres::PgArguments>;

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
        .bind(column(events, |event| i32::try_from(event.payload_room).unwrap_or(i32::MAX)))
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
    /// Whether there is one, and it was left where it is.
    pub content_too_large: bool,
    /// JSON text; `None`: it was left where it is.
    pub payload: Option<String>,
    /// Who did it.
    pub employee_id: Option<Uuid>,
    /// In which session.
    pub session_id: Option<Uuid>,
    /// With which client.
    pub client_name: Option<String>,
    /// And which version of it.
    pub client_version: Option<String>,
}

/// `{COLUMNS}` are the optional columns that the table has, and nulls for the others. None of the
/// application's own columns is read: nobody knows how large they are.
const ONE: &str = "
    SELECT l.id, l.event_type::text AS event_type, l.event_category::text AS event_category, l.created_at,
        public.posthaste_printed(coalesce(l.payload, '{}'), $3) AS payload{COLUMNS}
    FROM public.activity_logs l WHERE l.id = $2 AND l.org_id = $1";

const CONTENT: &str = ", CASE WHEN octet_length(l.content) <= $3 THEN l.content::text END AS content,
    coalesce(octet_length(l.content) > $3, false) AS content_too_large";
const NO_CONTENT: &str = ", NULL::text AS content, false AS content_too_large";

/// An event of `org`; its payload and its content only if they have at most `most` bytes each.
///
/// # Errors
/// Whatever the database says.
pub async fn one(
    db: &mut PgConnection,
    org: OrgId,
    id: EventId,
    most: usize,
) -> Result<Option<Full>, StoreError> {
    let columns = event_columns(db).await?;
    let optional = OPTIONAL_COLUMNS.map(|(name, type_name)| {
        let has = columns.iter().any(|column| column == name);
        match name {
            "content" if has => CONTENT.to_owned(),
            "content" => NO_CONTENT.to_owned(),
            _ if has => format!(", l.{name}::{type_name} AS {name}"),
            _ => format!(", NULL::{type_name} AS {name}"),
        }
    });
    let sql = ONE.replace("{COLUMNS}", &optional.concat());
    let query = sqlx::query(AssertSqlSafe(sql)).bind(org.0).bind(id.0);
    let query = query.bind(i32::try_from(most).unwrap_or(i32::MAX)).persistent(false);
    let row = in_time(query.fetch_optional(db)).await?;
    let read = |row: PgRow| {
        Ok::<_, sqlx::Error>(Full {
            event: read_listed(&row)?,
            content: row.try_get("content")?,
            content_too_large: row.try_get("content_too_large")?,
            payload: row.try_get("payload")?,
            employee_id: row.try_get("employee_id")?,
            session_id: row.try_get("session_id")?,
            client_name: row.try_get("client_name")?,
            client_version: row.try_get("client_version")?,
        })
    };
    Ok(row.map(read).transpose()?)
}
