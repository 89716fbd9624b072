//! Events: written for those who do not write SQL themselves, and read.

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Row};
use uuid::Uuid;

use super::page::{Looks, Page, Position, rare_events};
use super::{StoreError, in_time};
use crate::model::{DbTime, EventId, OrgId};
use crate::store::schema;
use crate::store::statement::Query;

/// Rows that a page looks at for those of one type: they lie beside each other.
const LOOKED_AT: i64 = 10_000;
/// How often an INSERT is repeated that met another one with the same id.
const TRIES: usize = 3;

/// The category of an event that is posted without one.
pub const DEFAULT_CATEGORY: &str = "api";

/// Columns of the event that an application's own table may lack, with their types.
pub(super) const OPTIONAL_COLUMNS: [(&str, &str); 8] = [
    ("employee_id", "uuid"),
    ("session_id", "uuid"),
    ("client_name", "text"),
    ("client_version", "text"),
    ("event_category", "text"),
    ("content", "text"),
    ("payload", "jsonb"),
    ("created_at", "timestamp"),
];

/// For texts that are made before anybody knows the table: its events as `l`, and their time as
/// `o.created_at`, NULL where the table has no such column: then the name is found in `lacking`.
macro_rules! timed_events {
    () => {
        "(SELECT NULL::timestamp AS created_at) lacking CROSS JOIN public.activity_logs l
            CROSS JOIN LATERAL (SELECT created_at FROM (SELECT l.*) own) o"
    };
}
pub(super) use timed_events;

const EVENT_COLUMNS: &str = "
    SELECT attname::text, attgenerated = '' AND attidentity <> 'a' FROM pg_catalog.pg_attribute
    WHERE attrelid = 'public.activity_logs'::regclass AND attnum > 0 AND NOT attisdropped";

/// The columns that this database's events have, and whether they can be written.
pub(super) struct EventColumns(Vec<(String, bool)>);

impl EventColumns {
    /// Asks the catalog.
    pub async fn read(db: &mut PgConnection) -> Result<EventColumns, StoreError> {
        Ok(EventColumns(in_time(schema::query_as(EVENT_COLUMNS).fetch_all(db)).await?))
    }

    /// Whether there is such a column.
    pub fn has(&self, column: &str) -> bool {
        self.0.iter().any(|(name, _)| name == column)
    }

    /// Whether there is one that can be written: none that PostgreSQL works out itself.
    pub fn writes(&self, column: &str) -> bool {
        self.0.iter().any(|(name, writes)| name == column && *writes)
    }

    /// The events as `l`, with all their columns: null where the table has none. The table itself where it
    /// has all of them.
    pub fn table(&self) -> String {
        self.table_with("NULL")
    }

    /// As [`EventColumns::table`], with a time to order by in any case: of 1970, as nobody knows it.
    pub fn listed(&self) -> String {
        self.table_with("'epoch'")
    }

    fn table_with(&self, time: &str) -> String {
        let lacks = OPTIONAL_COLUMNS.iter().filter(|(column, _)| !self.has(column));
        let value = |column: &str| if column == "created_at" { time } else { "NULL" };
        let values: String = lacks
            .map(|(column, type_name)| format!(", {}::{type_name} AS {column}", value(column)))
            .collect();
        match values.is_empty() {
            true => "public.activity_logs l".to_owned(),
            false => format!("(SELECT t.*{values} FROM public.activity_logs t) l"),
        }
    }
}

/// Whether this database's events say when they happened.
///
/// # Errors
/// Whatever the database says.
pub async fn have_times(db: &mut PgConnection) -> Result<bool, StoreError> {
    Ok(EventColumns::read(db).await?.has("created_at"))
}

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
    let query = schema::query_as(EMPLOYEES).persistent(false);
    let (tells_organizations, is_referred_to): (bool, Option<bool>) = in_time(query.fetch_one(db)).await?;
    Ok(match (tells_organizations, is_referred_to) {
        (true, Some(true)) => IS_STRANGER,
        (true, None) => IS_STRANGER_IF_ANY,
        (false, _) | (true, Some(false)) => "false",
    })
}

/// Parameters: one array for each of id, type, category, content, payload, employee, session, client name and
/// version, and of the room for the payload; the organization. One statement, so that all are written or
/// none, and the trigger fires once. `{COLUMNS}` are the optional columns that can be written, `{SAME}`
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
    SELECT g.n, coalesce(l.created_at, timezone('UTC', clock_timestamp())) AS created_at,
        -- another organization's event is not even compared: how long that takes would tell of its contents
        CASE WHEN l.org_id = $11 THEN l.event_type = g.event_type{SAME} END AS same
    FROM given g JOIN {EVENTS} ON l.id = g.id
),
written AS (
    INSERT INTO public.activity_logs AS l (id, org_id, event_type{COLUMNS})
    SELECT g.id, $11, g.event_type{VALUES}
    FROM given g
    WHERE NOT EXISTS (SELECT FROM given bad WHERE bad.too_large OR bad.stranger)
      AND NOT EXISTS (SELECT FROM known k WHERE k.n = g.n OR k.same IS NOT TRUE)
    ORDER BY g.n
    RETURNING l.id, {CREATED_AT} AS created_at
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
    let columns = EventColumns::read(db).await?;
    for (column, _) in OPTIONAL_COLUMNS {
        if !columns.writes(column) && events.iter().any(|event| event.gives(column)) {
            return Ok(Posted::NoColumn(column));
        }
    }
    let sql = insert_sql(&columns).replace("{STRANGER}", stranger(db, events).await?);
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

/// [`INSERT`] but for the condition on the employee.
fn insert_sql(columns: &EventColumns) -> String {
    let names = OPTIONAL_COLUMNS.into_iter().map(|(name, _)| name);
    let there: Vec<&str> = names.filter(|name| columns.writes(name)).collect();
    let each = |write: &dyn Fn(&str) -> String| there.iter().map(|name| write(name)).collect::<String>();
    let now = "timezone('UTC', clock_timestamp())";
    let value = |name: &str| if name == "created_at" { format!(", {now}") } else { format!(", g.{name}") };
    let same = |name: &str| match name {
        "created_at" => String::new(),
        _ => format!(" AND l.{name} IS NOT DISTINCT FROM g.{name}"),
    };
    let created_at =
        if columns.has("created_at") { format!("coalesce(l.created_at, {now})") } else { now.into() };
    INSERT
        .replace("{COLUMNS}", &each(&|name| format!(", {name}")))
        .replace("{VALUES}", &each(&value))
        .replace("{SAME}", &each(&same))
        .replace("{CREATED_AT}", &created_at)
        .replace("{EVENTS}", &columns.table())
}

/// Id, time, whether it is too large, whether its employee is unknown, whether its id is taken.
type InsertRow = (Uuid, DbTime, bool, bool, bool);

fn insert_query(sql: &str, org: OrgId, events: &[NewEvent]) -> Query<InsertRow> {
    fn column<'e, T>(events: &'e [NewEvent], of: impl Fn(&'e NewEvent) -> T) -> Vec<T> {
        events.iter().map(of).collect()
    }
    schema::query_as(AssertSqlSafe(sql.to_owned()))
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
            "event_category" => self.event_category != DEFAULT_CATEGORY,
            "payload" => self.payload.trim() != "{}",
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
    pub event_category: Option<String>,
    /// When; 1970 where nobody knows.
    pub created_at: DbTime,
}

/// What lists show.
macro_rules! listed {
    () => {
        "l.id, coalesce(l.event_type::text, '') AS event_type, l.event_category::text AS event_category,
            coalesce(l.created_at, 'epoch') AS created_at"
    };
}

/// Parameters: organization, from, position, rows to look at, rows wanted, type.
const LIST: &str = concat!(
    "
WITH looked AS MATERIALIZED (
    SELECT ",
    listed!(),
    "
    FROM {EVENTS}
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
ORDER BY page.created_at DESC, page.id DESC"
);

const LIST_OF_EVENTS: &str = concat!(
    "
    SELECT ",
    listed!(),
    "
    FROM {EVENTS}
    WHERE l.id = ANY ($1) AND l.created_at >= $2 AND (l.created_at, l.id) < ($3::timestamp, $4::uuid)
    ORDER BY l.created_at DESC, l.id DESC LIMIT $5"
);

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
    let from_events = EventColumns::read(db).await?.listed();
    let wanted = i64::from(limit) + 1;
    let mut before = Position::before(before, filter.to);
    let from = filter.from.unwrap_or(DbTime(i64::MIN));
    if let Some(event_type) = &filter.event_type
        && let Some(events) = rare_events(db, filter.org, event_type).await?
    {
        let sql = LIST_OF_EVENTS.replace("{EVENTS}", &from_events);
        let query = schema::query(AssertSqlSafe(sql)).bind(events).bind(from);
        let query = query.bind(before.at).bind(before.id).bind(wanted).persistent(false);
        let rows = in_time(query.fetch_all(db)).await?;
        let items = rows.iter().map(read_listed).collect::<Result<Vec<_>, _>>()?;
        return Ok(Page::cut(items, limit, position));
    }
    let most = if filter.event_type.is_some() { LOOKED_AT } else { wanted };
    let sql = LIST.replace("{EVENTS}", &from_events);
    let mut items: Vec<Listed> = Vec::new();
    for look in Looks::new(wanted, most) {
        let query = schema::query(AssertSqlSafe(sql.clone()))
            .bind(filter.org.0)
            .bind(from)
            .bind(before.at)
            .bind(before.id);
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

/// None of the application's own columns is read: nobody knows how large they are.
const ONE: &str = concat!(
    "
    SELECT ",
    listed!(),
    ",
        public.posthaste_printed(coalesce(l.payload, 'null')::jsonb, $3) AS payload,
        CASE WHEN octet_length(l.content) <= $3 THEN l.content::text END AS content,
        coalesce(octet_length(l.content) > $3, false) AS content_too_large,
        l.employee_id::uuid AS employee_id, l.session_id::uuid AS session_id,
        l.client_name::text AS client_name, l.client_version::text AS client_version
    FROM {EVENTS} WHERE l.id = $2 AND l.org_id = $1"
);

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
    let sql = ONE.replace("{EVENTS}", &EventColumns::read(db).await?.listed());
    let query = schema::query(AssertSqlSafe(sql)).bind(org.0).bind(id.0);
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
