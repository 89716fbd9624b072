//! Claims: one statement leases deliveries for many destinations and reads their events.

use std::sync::Arc;

use futures_util::TryStreamExt;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Connection, Row};
use uuid::Uuid;

use super::LEASE;
use crate::model::{
    DbTime, Delivery, DeliveryId, DestinationId, EVENT_OVERHEAD_BYTES, Event, EventId, OrgId, Outcome,
};
use crate::store::{StoreError, in_time};

/// Deliveries that one claim statement takes at most. Larger ones cost no less per row, and whatever is new
/// meanwhile shares the cores, the log and this process' main thread with them.
pub const MAX_CLAIM_ROWS: usize = 500;
/// Events whose stored size is below this are read without measuring their text first. Compression can make
/// 48 KiB of at most a few MiB.
const SURELY_SMALL_BYTES: i32 = 48 << 10;
/// How far an ordered claim looks for leases of other processes when it has no reason to look further.
const ORDERED_LOOKAHEAD: i64 = 1_000;
/// How far it looks when the destination may have been unordered a moment ago. Bounded: a queue of millions
/// must not hold up the claims of all.
const ORDERED_LOOKAHEAD_AT_START: i64 = 50_000;

/// What one destination asks of a claim.
#[derive(Clone, Debug)]
pub struct Ask {
    /// For whom.
    pub destination: DestinationId,
    /// How many deliveries at most; and as many again that have no `next_retry_at`, unless `ordered`.
    pub want: u32,
    /// Where to start looking in the order of `next_retry_at`: a hint that spares the index what is claimed
    /// already.
    pub since: Option<DbTime>,
    /// Stop after the event with which their sizes, as estimated, reach this many bytes.
    pub max_bytes: u64,
    /// Claim in insertion order, nothing while a lease is live.
    pub ordered: Option<Ordered>,
}

/// How much one claim may read for all who ask.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// It ends with the event with which the sizes, as estimated by what is stored, reach this many bytes.
    pub planned: u64,
    /// Estimates can be wrong: what comes after this many bytes is given back unread.
    pub most: u64,
    /// Larger payloads and contents stay where they are.
    pub max_event_bytes: usize,
}

impl Room {
    /// The room for `part` of `all` asks.
    pub fn part(self, part: usize, all: usize) -> Room {
        let of = |bytes: u64| (bytes / all.max(1) as u64 * part as u64).max(1);
        Room { planned: of(self.planned), most: of(self.most), ..self }
    }
}

/// How thoroughly an ordered claim looks for live leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ordered {
    /// Among the next rows, where an ordered claim would have put them.
    Near,
    /// Much further: the destination may have been unordered a moment ago.
    Everywhere,
}

/// What one destination got from a claim.
#[derive(Clone, Debug)]
pub struct Grant {
    /// Who asked.
    pub destination: DestinationId,
    /// What is leased now, in the order in which it should be sent.
    pub deliveries: Vec<Claimed>,
    /// Whether more is due than was given.
    pub more: bool,
    /// When the next delivery falls due that was not due yet.
    pub next_due: Option<DbTime>,
    /// The clock of the claim.
    pub now: DbTime,
    /// The latest `next_retry_at` among `deliveries`: the next [`Ask::since`]. None when something lies
    /// before it.
    pub reached: Option<DbTime>,
    /// What was leased and not read, as there was no room for it: to be written.
    pub returned: Vec<Outcome>,
}

/// A claimed delivery and whether its event may be sent at all.
#[derive(Clone, Debug)]
pub struct Claimed {
    /// The delivery.
    pub delivery: Delivery,
    /// Its payload or content is beyond the limit, and was left in the database.
    pub too_large: bool,
}

/// The claim statements, made for the columns that this database's `activity_logs` has.
#[derive(Clone, Debug)]
pub struct ClaimSql {
    claim: Arc<str>,
    claim_ordered: Arc<str>,
}

/// Columns of the event that an application's own table may lack, with their types.
pub(in crate::store) const OPTIONAL_COLUMNS: [(&str, &str); 5] = [
    ("employee_id", "uuid"),
    ("session_id", "uuid"),
    ("client_name", "text"),
    ("client_version", "text"),
    ("content", "text"),
];

const EVENT_COLUMNS: &str = "
    SELECT attname::text FROM pg_catalog.pg_attribute
    WHERE attrelid = 'public.activity_logs'::regclass AND attnum > 0 AND NOT attisdropped";

/// Parameters: destinations, wanted rows, lower bounds, byte limits, lease, floor, largest event, byte limit
/// of all. Each search is in the order of the index that it should use, as sessions sort nothing that they
/// can have in order (see [`crate::store::planned`]). The rows come with `kind` 0; then one row of kind 1 for
/// each destination with what falls due next, one of kind 2 for each destination of which a byte limit cut
/// something off, and, if anything was changed at that moment and left, one of kind 3 for each destination.
const CLAIM: &str = "
WITH clock AS MATERIALIZED (SELECT timezone('UTC', clock_timestamp()) AS now),
ask AS MATERIALIZED (
    SELECT * FROM unnest($1::uuid[], $2::int[], $3::timestamp[], $4::bigint[])
        WITH ORDINALITY AS a(destination_id, want, since, max_bytes, turn)
),
picked AS MATERIALIZED (
    SELECT a.max_bytes, a.turn, p.*
    FROM ask a CROSS JOIN clock c CROSS JOIN LATERAL (
        SELECT d.ctid AS version, d.id, d.destination_id, d.log_id, d.last_attempt_at, d.next_retry_at
        FROM public.webhook_deliveries d
        WHERE d.destination_id = a.destination_id
          AND d.status IN ('pending', 'failed')
          AND d.next_retry_at >= a.since AND d.next_retry_at <= c.now
          -- not leased; d.next_retry_at is not null here
          AND (d.last_attempt_at > greatest(c.now - $5::interval, $6::timestamp)
               AND d.last_attempt_at >= d.next_retry_at) IS NOT TRUE
        ORDER BY d.next_retry_at
        LIMIT a.want
        FOR NO KEY UPDATE SKIP LOCKED
    ) p
    UNION ALL
    SELECT a.max_bytes, a.turn, p.*
    FROM ask a CROSS JOIN clock c CROSS JOIN LATERAL (
        SELECT d.ctid AS version, d.id, d.destination_id, d.log_id, d.last_attempt_at, d.next_retry_at
        FROM public.webhook_deliveries d
        WHERE d.destination_id = a.destination_id
          AND d.status IN ('pending', 'failed')
          -- rows that an application inserted itself: due now
          AND d.next_retry_at IS NULL
          AND (d.last_attempt_at > greatest(c.now - $5::interval, $6::timestamp)) IS NOT TRUE
        -- all are alike; it says by which index, as above
        ORDER BY d.next_retry_at
        LIMIT a.want
        FOR NO KEY UPDATE SKIP LOCKED
    ) p
),
{TAKE}
SELECT 0::int2 AS kind, t.* FROM taken t
UNION ALL
SELECT 1::int2, a.destination_id, c.now, {NULLS}, (
    SELECT d.next_retry_at FROM public.webhook_deliveries d
    WHERE d.destination_id = a.destination_id AND d.status IN ('pending', 'failed')
      AND d.next_retry_at > c.now
    ORDER BY d.next_retry_at LIMIT 1)
FROM ask a CROSS JOIN clock c
UNION ALL
SELECT 2::int2, s.destination_id, c.now, {NULLS}, NULL
FROM (SELECT DISTINCT destination_id FROM shared WHERE NOT fits) s CROSS JOIN clock c
UNION ALL
SELECT 3::int2, a.destination_id, c.now, {NULLS}, NULL
FROM ask a CROSS JOIN clock c
WHERE (SELECT count(*) FROM shared WHERE fits) > (SELECT count(*) FROM taken)";

/// Ordered destinations are locked by a statement of their own first: the claim's snapshot must be younger
/// than the lock, or it would not see what another process has claimed meanwhile.
const LOCK_ORDERED: &str = "
    SELECT id FROM public.webhook_destinations WHERE id = ANY($1::uuid[])
    FOR NO KEY UPDATE SKIP LOCKED";

/// As [`CLAIM`], with `$3` the number of rows among which to look for live leases. Takes the head of the
/// queue up to the first delivery that is not due, or was changed: so there is no kind 3.
const CLAIM_ORDERED: &str = "
WITH clock AS MATERIALIZED (SELECT timezone('UTC', clock_timestamp()) AS now),
ask AS MATERIALIZED (
    SELECT * FROM unnest($1::uuid[], $2::int[], $3::bigint[], $4::bigint[])
        WITH ORDINALITY AS a(destination_id, want, lookahead, max_bytes, turn)
),
free AS MATERIALIZED (
    SELECT a.* FROM ask a CROSS JOIN clock c WHERE NOT EXISTS (
        SELECT FROM (
            SELECT d.last_attempt_at, d.next_retry_at FROM public.webhook_deliveries d
            WHERE d.destination_id = a.destination_id AND d.status IN ('pending', 'failed')
            ORDER BY d.created_at, d.id LIMIT a.lookahead
        ) d
        WHERE d.last_attempt_at > greatest(c.now - $5::interval, $6::timestamp)
          AND (d.next_retry_at IS NULL OR d.last_attempt_at >= d.next_retry_at))
),
queue AS MATERIALIZED (
    SELECT a.max_bytes, a.turn, p.* FROM free a CROSS JOIN LATERAL (
        SELECT d.ctid AS version, d.id, d.destination_id, d.log_id, d.last_attempt_at, d.created_at,
            d.next_retry_at
        FROM public.webhook_deliveries d
        WHERE d.destination_id = a.destination_id AND d.status IN ('pending', 'failed')
        ORDER BY d.created_at, d.id
        LIMIT a.want
    ) p
),
locked AS MATERIALIZED (
    SELECT d.id, d.ctid AS version FROM public.webhook_deliveries d
    WHERE d.ctid = ANY (ARRAY(SELECT q.version FROM queue q))
    -- a row that somebody is changing at this moment is not waited for, and ends the queue for now
    FOR NO KEY UPDATE SKIP LOCKED
),
head AS MATERIALIZED (
    SELECT q.*,
        -- a row that was changed since it was looked at is locked in another version
        bool_and((q.id, q.version) IN (SELECT l.id, l.version FROM locked l)
                AND (q.next_retry_at IS NULL OR q.next_retry_at <= c.now))
            OVER (PARTITION BY q.destination_id ORDER BY q.created_at, q.id) AS due
    FROM queue q CROSS JOIN clock c
),
picked AS MATERIALIZED (SELECT * FROM head WHERE due),
{TAKE}
SELECT 0::int2 AS kind, t.* FROM taken t
UNION ALL
SELECT 1::int2, a.destination_id, c.now, {NULLS},
    -- when the head falls due; a head that is due and held back is being changed by somebody at this moment
    (SELECT CASE WHEN h.next_retry_at > c.now THEN h.next_retry_at ELSE c.now + interval '1 second' END
     FROM head h WHERE h.destination_id = a.destination_id AND NOT h.due
     ORDER BY h.created_at, h.id LIMIT 1)
FROM ask a CROSS JOIN clock c
UNION ALL
SELECT 2::int2, s.destination_id, c.now, {NULLS}, NULL
FROM (SELECT DISTINCT destination_id FROM shared WHERE NOT fits) s CROSS JOIN clock c";

/// The common end of both claims: cut what was picked at the byte limits, read the events, write the lease.
/// Where the limit of all cuts, everybody's first event comes before anybody's second one.
const TAKE: &str = "
sized AS MATERIALIZED (
    SELECT p.*, {EVENT}, {SIZE} AS bytes FROM picked p JOIN public.activity_logs l ON l.id = p.log_id
),
-- nearly always everything fits, and needs no order then
total AS MATERIALIZED (
    SELECT sum(s.bytes) < $8 AND sum(s.bytes) < min(s.max_bytes) AS fits FROM sized s
),
shared AS MATERIALIZED (
    SELECT s.*, true AS is_mine, 0::bigint AS place, true AS fits
    FROM sized s WHERE (SELECT fits FROM total)
    UNION ALL
    SELECT s.*, s.is_mine AND coalesce(sum(s.bytes) FILTER (WHERE s.is_mine) OVER earlier, 0) < $8 AS fits
    FROM (
        SELECT s.*,
            coalesce(sum(s.bytes) OVER (mine ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0)
                < s.max_bytes AS is_mine,
            row_number() OVER mine AS place
        FROM sized s WHERE NOT (SELECT fits FROM total)
        WINDOW mine AS (PARTITION BY s.destination_id ORDER BY s.{ORDER}, s.id)
    ) s
    WINDOW earlier AS (ORDER BY s.place, s.turn ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
),
taken AS (
    UPDATE public.webhook_deliveries d SET last_attempt_at = c.now
    FROM shared s CROSS JOIN clock c
    -- what was changed after this statement began is locked in a version that it does not see, and left; the
    -- id is compared, not searched for: versions of tables that inherit are numbered like ours
    WHERE d.ctid = s.version AND d.id IS NOT DISTINCT FROM s.id AND s.fits
    RETURNING d.destination_id, d.last_attempt_at AS now, d.id, d.attempts, s.last_attempt_at, d.created_at,
        -- only a delivery that was attempted before can have a first attempt
        CASE WHEN s.last_attempt_at IS NOT NULL THEN
            -- since it was queued: a replay, which sets created_at, begins anew; no condition, as in RECORD
            (SELECT min(h.started_at) FILTER (WHERE h.started_at >= d.created_at)
             FROM public.posthaste_attempts h WHERE h.delivery_id = d.id) END,
        s.log_id, s.org_id, s.employee_id, s.session_id, s.client_name, s.client_version, s.event_type,
        s.event_category,
        CASE WHEN octet_length(s.content) <= $7 THEN s.content END,
        CASE WHEN pg_column_size(s.payload) < {SMALL} THEN s.payload::text
             ELSE (SELECT CASE WHEN octet_length(printed) <= $7 THEN printed END
                   FROM (SELECT s.payload::text AS printed OFFSET 0) once) END,
        coalesce(to_char(s.event_created_at, 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), s.event_created_at::text),
        coalesce(octet_length(s.content) > $7, false),
        d.next_retry_at
)";

/// The columns of `taken` between `now` and `next_retry_at`, as nulls.
const NULLS: &str = "NULL::uuid, NULL::int, NULL::timestamp, NULL::timestamp, NULL::timestamp, \
    NULL::uuid, NULL::uuid, NULL::uuid, NULL::uuid, NULL::text, NULL::text, NULL::text, NULL::text, \
    NULL::text, NULL::text, NULL::text, NULL::boolean";

/// The columns that this database's events have.
pub(in crate::store) async fn event_columns(
    connection: &mut PgConnection,
) -> Result<Vec<String>, StoreError> {
    in_time(sqlx::query_scalar(EVENT_COLUMNS).fetch_all(connection)).await
}

impl ClaimSql {
    /// Reads which columns this database's events have.
    ///
    /// # Errors
    /// Whatever the database says.
    pub async fn read(connection: &mut PgConnection) -> Result<ClaimSql, StoreError> {
        let columns = event_columns(connection).await?;
        Ok(ClaimSql::new(|column| columns.iter().any(|c| c == column)))
    }

    fn new(has: impl Fn(&str) -> bool) -> ClaimSql {
        let optional = OPTIONAL_COLUMNS.map(|(column, type_name)| {
            let value = if has(column) { format!("l.{column}") } else { "NULL".to_owned() };
            format!("{value}::{type_name} AS {column}")
        });
        let event = format!(
            "l.org_id, {}, l.event_type::text AS event_type, l.event_category::text AS event_category, \
             l.payload, l.created_at AS event_created_at",
            optional.join(", ")
        );
        // Nothing is read to learn how large it is. What is compressed is taken for as large as it can be,
        // or, where that would cut too much off, for larger than it usually is.
        let content = if has("content") { "l.content" } else { "NULL::text" };
        let stored = "pg_column_size(l.payload)::bigint";
        let payload = format!(
            "least($7, {stored} * CASE WHEN pg_column_compression(l.payload) IS NULL THEN 1 \
             WHEN {stored} < 8192 THEN 8 ELSE 90 END)"
        );
        // LEAST overlooks nulls, and would take an event without content for the largest one.
        let content = format!("least($7, coalesce(octet_length({content}), 0))");
        let size = format!("({content} + {payload} + {EVENT_OVERHEAD_BYTES})::int");
        let take = TAKE
            .replace("{EVENT}", &event)
            .replace("{SIZE}", &size)
            .replace("{SMALL}", &SURELY_SMALL_BYTES.to_string());
        let fill = |template: &str, order: &str| {
            let take = take.replace("{ORDER}", order);
            Arc::from(template.replace("{TAKE}", &take).replace("{NULLS}", NULLS))
        };
        ClaimSql { claim: fill(CLAIM, "next_retry_at"), claim_ordered: fill(CLAIM_ORDERED, "created_at") }
    }

    /// Leases what `asks` (all unordered) ask for, in one statement.
    ///
    /// `floor`: leases before it are void. `room`: for all of it.
    ///
    /// # Errors
    /// After any error the connection must be dropped: whether the claim has happened is not known.
    pub async fn claim(
        &self,
        connection: &mut PgConnection,
        asks: &[Ask],
        floor: DbTime,
        room: Room,
    ) -> Result<Vec<Grant>, StoreError> {
        let since: Vec<DbTime> = asks.iter().map(|a| a.since.unwrap_or(DbTime(i64::MIN))).collect();
        let query = sqlx::query(AssertSqlSafe(Arc::clone(&self.claim)))
            .bind(asks.iter().map(|a| a.destination.0).collect::<Vec<_>>())
            .bind(asks.iter().map(|a| a.want as i32).collect::<Vec<_>>())
            .bind(since);
        in_time(run_claim(query, connection, asks, floor, room)).await
    }

    /// Leases what `asks` (all ordered) ask for: the head of each queue, or nothing where a lease is live or
    /// another process is claiming at this moment.
    ///
    /// # Errors
    /// As [`ClaimSql::claim`].
    pub async fn claim_ordered(
        &self,
        connection: &mut PgConnection,
        asks: &[Ask],
        floor: DbTime,
        room: Room,
    ) -> Result<Vec<Grant>, StoreError> {
        in_time(async {
            let mut transaction = connection.begin().await?;
            let ids: Vec<Uuid> = asks.iter().map(|a| a.destination.0).collect();
            let locked: Vec<Uuid> =
                sqlx::query_scalar(LOCK_ORDERED).bind(ids).fetch_all(&mut *transaction).await?;
            let asks: Vec<Ask> = asks.iter().filter(|a| locked.contains(&a.destination.0)).cloned().collect();
            let lookahead = |ask: &Ask| match ask.ordered {
                Some(Ordered::Everywhere) => ORDERED_LOOKAHEAD_AT_START,
                _ => ORDERED_LOOKAHEAD,
            };
            let query = sqlx::query(AssertSqlSafe(Arc::clone(&self.claim_ordered)))
                .bind(asks.iter().map(|a| a.destination.0).collect::<Vec<_>>())
                .bind(asks.iter().map(|a| a.want as i32).collect::<Vec<_>>())
                .bind(asks.iter().map(lookahead).collect::<Vec<_>>());
            let grants = run_claim(query, &mut transaction, &asks, floor, room).await?;
            transaction.commit().await?;
            Ok(grants)
        })
        .await
    }
}

type PgQuery<'q> = sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>;

async fn run_claim(
    query: PgQuery<'_>,
    connection: &mut PgConnection,
    asks: &[Ask],
    floor: DbTime,
    room: Room,
) -> Result<Vec<Grant>, sqlx::Error> {
    let bigint = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    let query = query
        .bind(asks.iter().map(|ask| bigint(ask.max_bytes)).collect::<Vec<_>>())
        .bind(LEASE)
        .bind(floor)
        .bind(i32::try_from(room.max_event_bytes).unwrap_or(i32::MAX))
        .bind(bigint(room.planned));
    let mut grants: Vec<Grant> = asks.iter().map(|ask| Grant::none(ask.destination)).collect();
    let mut place = std::collections::HashMap::with_capacity(asks.len());
    place.extend(asks.iter().enumerate().map(|(i, ask)| (ask.destination.0, i)));
    let (mut held, mut left_some) = (0, false);
    let mut rows = query.fetch(connection);
    while let Some(row) = rows.try_next().await? {
        let Some(&i) = place.get(&row.try_get::<Uuid, _>(1)?) else { continue };
        let grant = &mut grants[i];
        grant.now = row.try_get(2)?;
        match row.try_get::<i16, _>(0)? {
            0 => {
                grant.reached = grant.reached.max(row.try_get(20)?);
                let claimed = read_claimed(&row, held < room.most)?;
                if held < room.most {
                    held += claimed.delivery.event.bytes_held();
                    grant.deliveries.push(claimed);
                } else {
                    grant.returned.push(Outcome::given_back(&claimed.delivery));
                }
            }
            1 => grant.next_due = row.try_get(20)?,
            2 => grant.more = true,
            _ => left_some = true,
        }
    }
    for (grant, ask) in grants.iter_mut().zip(asks) {
        // Where nothing can be taken at all, asking again at once would never end.
        let is_whole = grant.returned.is_empty() && (!left_some || grant.deliveries.is_empty());
        grant.more |= grant.deliveries.len() >= ask.want as usize || !is_whole;
        grant.reached = grant.reached.filter(|_| is_whole);
        if ask.ordered.is_some() {
            grant.deliveries.sort_by_key(|c| (c.delivery.created_at, c.delivery.id));
        }
    }
    Ok(grants)
}

/// Reads a row of kind 0; its event without content and payload where there is no `room` for them.
fn read_claimed(row: &PgRow, room: bool) -> Result<Claimed, sqlx::Error> {
    let text = |column| if room { row.try_get(column) } else { Ok(None) };
    let payload: Option<String> = text(17)?;
    let too_large = payload.is_none() || row.try_get(19)?;
    let event = Event {
        id: EventId(row.try_get(8)?),
        org: OrgId(row.try_get(9)?),
        employee_id: row.try_get(10)?,
        session_id: row.try_get(11)?,
        client_name: row.try_get(12)?,
        client_version: row.try_get(13)?,
        event_type: row.try_get(14)?,
        event_category: row.try_get(15)?,
        content: text(16)?,
        payload: payload.unwrap_or_default(),
        created_at: row.try_get(18)?,
    };
    let delivery = Delivery {
        destination: DestinationId(row.try_get(1)?),
        claimed_at: row.try_get(2)?,
        id: DeliveryId(row.try_get(3)?),
        attempts: u32::try_from(row.try_get::<i32, _>(4)?).unwrap_or(0),
        previous_attempt_at: row.try_get(5)?,
        created_at: row.try_get(6)?,
        first_attempt_at: row.try_get(7)?,
        event: Arc::new(event),
    };
    Ok(Claimed { delivery, too_large })
}

impl Grant {
    /// Nothing, for `destination`.
    pub fn none(destination: DestinationId) -> Grant {
        Grant {
            destination,
            deliveries: Vec::new(),
            more: false,
            next_due: None,
            now: DbTime(0),
            reached: None,
            returned: Vec::new(),
        }
    }
}
