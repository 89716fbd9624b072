//! Reading deliveries: lists, newest first, and one of them with all that happened to it.
//!
//! Deliveries know their destination, not their organization, so a list is merged from streams: for each
//! destination one of what is open, one of what is delivered, one of what is dead, each in the order of an
//! index. Where a filter has no index (an event type), one statement looks at a limited number of rows and
//! says how far it came.

use sqlx::Row;
use sqlx::postgres::{PgConnection, PgRow};
use uuid::Uuid;

use crate::model::{DbTime, DeliveryId, DestinationId, EventId, OrgId, Status};
use crate::store::page::{Looks, Page, Position, rare_events};
use crate::store::schema;
use crate::store::{StoreError, in_time};

/// Rows that a page looks at where the filter has no index: each costs a look at two large tables, up to
/// 20 µs where they are not in PostgreSQL's own memory.
const LOOKED_AT: i64 = 2_000;
/// Streams that such a statement reads from; those whose newest row is older wait for the next one.
const STREAMS: i64 = 500;
/// Rows that it reads of each at least: the page is complete only as far as the shortest of them reaches.
const OF_STREAM: i64 = 3;
/// Attempts shown of one delivery: the latest.
const MAX_ATTEMPTS: i64 = 200;
/// Deliveries shown of one event.
const MAX_OF_EVENT: i64 = 1_000;

/// Which deliveries.
#[derive(Clone, Debug)]
pub struct Filter {
    /// Whose.
    pub org: OrgId,
    /// To which destination.
    pub destination: Option<DestinationId>,
    /// In which status; empty: in any.
    pub statuses: Vec<Status>,
    /// Of which type of event.
    pub event_type: Option<String>,
    /// Queued at this time or later.
    pub from: Option<DbTime>,
    /// Queued before this time.
    pub to: Option<DbTime>,
}

/// A delivery as lists show it.
#[derive(Clone, Debug, PartialEq)]
pub struct Listed {
    /// Primary key.
    pub id: DeliveryId,
    /// Where it goes.
    pub destination: DestinationId,
    /// What is sent.
    pub event: EventId,
    /// The event's type.
    pub event_type: String,
    /// How far it is.
    pub status: Status,
    /// Charged attempts.
    pub attempts: i32,
    /// The last attempt, or the claim for the next one.
    pub last_attempt_at: Option<DbTime>,
    /// When it is due.
    pub next_retry_at: Option<DbTime>,
    /// HTTP status of the last attempt.
    pub response_status: Option<i32>,
    /// What went wrong with the last attempt.
    pub error_message: Option<String>,
    /// When it was queued.
    pub created_at: DbTime,
    /// When it was delivered.
    pub delivered_at: Option<DbTime>,
}

/// A delivery with its event's text and its failed attempts.
#[derive(Clone, Debug)]
pub struct Detail {
    /// The row.
    pub delivery: Listed,
    /// The kept part of the last response.
    pub response_body: Option<String>,
    /// Failed attempts, the oldest first. A successful one is the row itself.
    pub attempts: Vec<PastAttempt>,
}

/// A row of `posthaste_attempts`.
#[derive(Clone, Debug)]
pub struct PastAttempt {
    /// 1-based, of the charged ones.
    pub attempt: i32,
    /// When it started.
    pub started_at: DbTime,
    /// How long it took.
    pub duration_ms: i32,
    /// HTTP status, if one came.
    pub response_status: Option<i32>,
    /// The kept part of the response.
    pub response_body: Option<String>,
    /// What went wrong.
    pub error_message: Option<String>,
    /// Whether it counts against the retries.
    pub charged: bool,
}

/// The newest rows of one stream, in the order of its index. `status IN …` are the predicates of the partial
/// indexes, which must stand here literally.
macro_rules! newest {
    ($limit:literal) => {
        concat!(
            "(SELECT w.created_at, w.id FROM public.webhook_deliveries w
              WHERE q.stream = 'open' AND w.destination_id = q.destination_id
                AND w.status IN ('pending', 'failed')
                AND w.created_at >= $5::timestamp AND (w.created_at, w.id) < ($6::timestamp, $7::uuid)
              ORDER BY w.created_at DESC, w.id DESC LIMIT ",
            $limit,
            ")
             UNION ALL
             (SELECT w.created_at, w.id FROM public.webhook_deliveries w
              WHERE q.stream <> 'open' AND w.destination_id = q.destination_id AND w.status = q.stream
                AND w.status IN ('delivered', 'failed', 'dead')
                AND w.created_at >= $5::timestamp AND (w.created_at, w.id) < ($6::timestamp, $7::uuid)
              ORDER BY w.created_at DESC, w.id DESC LIMIT ",
            $limit,
            ")"
        )
    };
}

/// The columns of [`Listed`], from `w` and `l`.
macro_rules! columns {
    () => {
        "w.id, w.destination_id, w.log_id, coalesce(l.event_type::text, '') AS event_type,
         w.status::text AS status, coalesce(w.attempts, 0) AS attempts, w.last_attempt_at, w.next_retry_at,
         w.response_status, w.error_message, coalesce(w.created_at, 'epoch') AS created_at, w.delivered_at"
    };
}

/// Parameters: organization, destination, streams, statuses, from, position, streams at most, rows to look
/// at, rows of each stream at least, rows wanted, event type. The first columns say how far it looked, and
/// whether there is more; there is always one row.
///
/// Only streams with one of the newest heads can hold one of the newest rows. What is older than the last
/// row read of some stream may be incomplete, so the page ends there.
const LIST: &str = concat!(
    "
WITH heads AS MATERIALIZED (
    SELECT q.destination_id, q.stream, h.created_at, h.id,
        row_number() OVER (ORDER BY h.created_at DESC, h.id DESC) AS place
    FROM (SELECT d.id AS destination_id, s.stream
          FROM public.webhook_destinations d CROSS JOIN unnest($3::text[]) AS s (stream)
          WHERE d.org_id = $1 AND ($2::uuid IS NULL OR d.id = $2)) q
    CROSS JOIN LATERAL (",
    newest!("1"),
    ") h
),
share AS MATERIALIZED (
    SELECT greatest($9::bigint / greatest(count(*), 1), $10::bigint) AS rows FROM heads WHERE place <= $8
),
looked AS MATERIALIZED (
    SELECT p.created_at, p.id,
        row_number() OVER (PARTITION BY q.place ORDER BY p.created_at DESC, p.id DESC) AS nth
    FROM heads q CROSS JOIN LATERAL (",
    newest!("(SELECT rows FROM share)"),
    ") p
    WHERE q.place <= $8
),
cut AS MATERIALIZED (
    SELECT c.created_at, c.id FROM (
        SELECT h.created_at, h.id FROM heads h WHERE h.place = $8 + 1
        UNION ALL
        SELECT l.created_at, l.id FROM looked l WHERE l.nth = (SELECT rows FROM share)
    ) c ORDER BY c.created_at DESC, c.id DESC LIMIT 1
),
complete AS MATERIALIZED (
    SELECT k.created_at, k.id FROM looked k
    WHERE NOT EXISTS (SELECT FROM cut c WHERE (k.created_at, k.id) < (c.created_at, c.id))
),
page AS (
    SELECT p.* FROM complete k CROSS JOIN LATERAL (
        SELECT ",
    columns!(),
    "
        FROM public.webhook_deliveries w JOIN public.activity_logs l ON l.id = w.log_id
        WHERE w.id = k.id AND w.status = ANY ($4::text[]) AND ($12::text IS NULL OR l.event_type = $12)
        -- one by one: whatever the planner takes the number of rows for, this is no join of whole tables
        OFFSET 0
    ) p
    ORDER BY p.created_at DESC, p.id DESC LIMIT $11
)
SELECT e.created_at AS end_at, e.id AS end_id, EXISTS (SELECT FROM cut) AS more, page.*
FROM (SELECT) one
LEFT JOIN (SELECT * FROM complete ORDER BY created_at, id LIMIT 1) e ON true
LEFT JOIN page ON true
ORDER BY page.created_at DESC, page.id DESC"
);

/// As [`LIST`], of a few known events (`$13`).
const LIST_OF_EVENTS: &str = concat!(
    "SELECT ",
    columns!(),
    "
    FROM unnest($1::uuid[]) AS e (id)
    JOIN public.webhook_deliveries w ON w.log_id = e.id
    JOIN public.webhook_destinations d ON d.id = w.destination_id AND d.org_id = $2
    JOIN public.activity_logs l ON l.id = w.log_id
    WHERE ($3::uuid IS NULL OR w.destination_id = $3) AND w.status = ANY ($4::text[])
      AND w.created_at >= $5 AND (w.created_at, w.id) < ($6::timestamp, $7::uuid)
    ORDER BY w.created_at DESC, w.id DESC LIMIT $8"
);

/// One page of the deliveries that `filter` lets through, the newest first, of at most `limit`, from before a
/// position on. A page may hold fewer, even none, and still say that there is more: an event type that is
/// rare among many deliveries takes several.
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
    if let Some(event_type) = &filter.event_type
        && let Some(events) = rare_events(db, filter.org, event_type).await?
    {
        let rows = list_of_events(db, filter, before, wanted, &events).await?;
        return Ok(Page::cut(rows, limit, position));
    }
    let mut items: Vec<Listed> = Vec::new();
    for look in Looks::new(wanted, LOOKED_AT) {
        let (mut rows, end) = list_once(db, filter, before, wanted - items.len() as i64, look).await?;
        items.append(&mut rows);
        match end {
            _ if items.len() as i64 >= wanted => return Ok(Page::cut(items, limit, position)),
            Some(end) => before = end,
            None => return Ok(Page { items, next: None }),
        }
    }
    Ok(Page { items, next: Some(before) })
}

fn position(listed: &Listed) -> Position {
    Position { at: listed.created_at, id: listed.id.0 }
}

/// What one statement finds, and where the next one has to go on if there may be more.
async fn list_once(
    db: &mut PgConnection,
    filter: &Filter,
    before: Position,
    wanted: i64,
    look: i64,
) -> Result<(Vec<Listed>, Option<Position>), StoreError> {
    let has = |status| filter.statuses.is_empty() || filter.statuses.contains(&status);
    // What is open stands in one index, in which the one status is not told from the other.
    let streams: Vec<&str> = match (has(Status::Pending), has(Status::Failed)) {
        (true, _) => vec!["open"],
        (false, true) => vec!["failed"],
        (false, false) => Vec::new(),
    };
    let settled = [Status::Delivered, Status::Dead].into_iter().filter(|status| has(*status));
    let streams: Vec<&str> = streams.into_iter().chain(settled.map(Status::name)).collect();
    let indexed = filter.event_type.is_none() && (has(Status::Failed) || !has(Status::Pending));
    let (most_streams, look, least) = if indexed { (wanted, 0, wanted) } else { (STREAMS, look, OF_STREAM) };
    let query = schema::query(LIST)
        .bind(filter.org.0)
        .bind(filter.destination.map(|id| id.0))
        .bind(streams)
        .bind(statuses(filter))
        .bind(filter.from.unwrap_or(DbTime(i64::MIN)))
        .bind(before.at)
        .bind(before.id)
        .bind(most_streams)
        .bind(look)
        .bind(least)
        .bind(wanted)
        .bind(&filter.event_type)
        // Planned for these values: how much lies between them decides which index is the right one.
        .persistent(false);
    let rows = in_time(query.fetch_all(db)).await?;
    let first = rows.first().ok_or(StoreError::Database(sqlx::Error::RowNotFound))?;
    let end = match first.try_get("more")? {
        true => Some(Position { at: first.try_get("end_at")?, id: first.try_get("end_id")? }),
        false => None,
    };
    let is_row = |row: &&PgRow| row.try_get::<Option<Uuid>, _>("id").is_ok_and(|id| id.is_some());
    let items = rows.iter().filter(is_row).map(read_listed).collect::<Result<_, _>>()?;
    Ok((items, end))
}

async fn list_of_events(
    db: &mut PgConnection,
    filter: &Filter,
    before: Position,
    wanted: i64,
    events: &[Uuid],
) -> Result<Vec<Listed>, StoreError> {
    let query = schema::query(LIST_OF_EVENTS)
        .bind(events)
        .bind(filter.org.0)
        .bind(filter.destination.map(|id| id.0))
        .bind(statuses(filter))
        .bind(filter.from.unwrap_or(DbTime(i64::MIN)))
        .bind(before.at)
        .bind(before.id)
        .bind(wanted)
        .persistent(false);
    let rows = in_time(query.fetch_all(db)).await?;
    Ok(rows.iter().map(read_listed).collect::<Result<_, _>>()?)
}

fn statuses(filter: &Filter) -> Vec<&'static str> {
    let wanted = if filter.statuses.is_empty() { &Status::ALL[..] } else { &filter.statuses };
    wanted.iter().map(|status| status.name()).collect()
}

fn read_listed(row: &PgRow) -> Result<Listed, sqlx::Error> {
    let status: String = row.try_get("status")?;
    let unknown = || sqlx::Error::Decode(format!("the status {status} is unknown").into());
    Ok(Listed {
        id: DeliveryId(row.try_get("id")?),
        destination: DestinationId(row.try_get("destination_id")?),
        event: EventId(row.try_get("log_id")?),
        event_type: row.try_get("event_type")?,
        status: Status::named(&status).ok_or_else(unknown)?,
        attempts: row.try_get("attempts")?,
        last_attempt_at: row.try_get("last_attempt_at")?,
        next_retry_at: row.try_get("next_retry_at")?,
        response_status: row.try_get("response_status")?,
        error_message: row.try_get("error_message")?,
        created_at: row.try_get("created_at")?,
        delivered_at: row.try_get("delivered_at")?,
    })
}

const ONE: &str = concat!(
    "SELECT ",
    columns!(),
    ", w.response_body
    FROM public.webhook_deliveries w JOIN public.webhook_destinations d ON d.id = w.destination_id
    JOIN public.activity_logs l ON l.id = w.log_id
    WHERE w.id = $2 AND d.org_id = $1
      -- an application may have more of them
      AND w.status IN ('pending', 'failed', 'delivered', 'dead')"
);

const ATTEMPTS: &str = "
    SELECT * FROM (
        SELECT attempt, started_at, duration_ms, response_status, response_body, error_message, charged
        FROM public.posthaste_attempts WHERE delivery_id = $1 ORDER BY started_at DESC LIMIT $2
    ) latest ORDER BY started_at";

/// One delivery of `org` with its failed attempts; `None`: it has no such delivery.
///
/// # Errors
/// Whatever the database says.
pub async fn one(db: &mut PgConnection, org: OrgId, id: DeliveryId) -> Result<Option<Detail>, StoreError> {
    let found = in_time(schema::query(ONE).bind(org.0).bind(id.0).fetch_optional(&mut *db)).await?;
    let Some(row) = found else { return Ok(None) };
    let attempts = schema::query(ATTEMPTS).bind(id.0).bind(MAX_ATTEMPTS);
    let attempts = in_time(attempts.fetch_all(db)).await?;
    Ok(Some(Detail {
        delivery: read_listed(&row)?,
        response_body: row.try_get("response_body").map_err(StoreError::from)?,
        attempts: attempts.iter().map(read_attempt).collect::<Result<_, _>>()?,
    }))
}

fn read_attempt(row: &PgRow) -> Result<PastAttempt, sqlx::Error> {
    Ok(PastAttempt {
        attempt: row.try_get("attempt")?,
        started_at: row.try_get("started_at")?,
        duration_ms: row.try_get("duration_ms")?,
        response_status: row.try_get("response_status")?,
        response_body: row.try_get("response_body")?,
        error_message: row.try_get("error_message")?,
        charged: row.try_get("charged")?,
    })
}

const OF_EVENT: &str = concat!(
    "SELECT ",
    columns!(),
    "
    FROM public.webhook_deliveries w JOIN public.webhook_destinations d ON d.id = w.destination_id
    JOIN public.activity_logs l ON l.id = w.log_id
    WHERE w.log_id = $2 AND d.org_id = $1 AND w.status IN ('pending', 'failed', 'delivered', 'dead')
    ORDER BY w.created_at, w.id LIMIT $3"
);

/// The deliveries of one event, the oldest first.
///
/// # Errors
/// Whatever the database says.
pub async fn of_event(db: &mut PgConnection, org: OrgId, event: EventId) -> Result<Vec<Listed>, StoreError> {
    let query = schema::query(OF_EVENT).bind(org.0).bind(event.0).bind(MAX_OF_EVENT);
    let rows = in_time(query.fetch_all(db)).await?;
    Ok(rows.iter().map(read_listed).collect::<Result<_, _>>()?)
}
