//! Destinations with their settings and state: reading them, noticing changes, and the few things that the
//! dispatcher writes about them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sqlx::postgres::{PgConnection, PgPool, PgRow};
use sqlx::{AssertSqlSafe, Row};
use uuid::Uuid;

use super::events::EventColumns;
use super::{Db, StoreError, in_time};
use crate::model::{
    DbTime, Destination, DestinationId, OPERATIONAL_CATEGORY, OrgId, RetryPolicy, Secret, Settings,
};
use crate::policy::health::Saved;
use crate::policy::keyring::{KeyRing, Locked};
use crate::store::schema;

/// A destination as the dispatcher needs it.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Which.
    pub id: DestinationId,
    /// The destination with its secrets in plain text, or why it cannot be used.
    pub destination: Result<Destination, Unusable>,
    /// What is remembered of its health.
    pub saved: Saved,
    /// Changes whenever the row or its settings change.
    pub version: i64,
    /// The database's clock when it was read.
    pub now: DbTime,
}

/// Why a destination cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// A secret of it cannot be decrypted.
    #[error(transparent)]
    Locked(#[from] Locked),
    /// Its row cannot be read.
    #[error("it cannot be read: {0}")]
    Unreadable(String),
}

/// What a poll finds out about one enabled destination.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Which.
    pub destination: DestinationId,
    /// As [`Loaded::version`].
    pub version: i64,
    /// Whether anything may be due: a hint, leases are not looked at.
    pub due: bool,
}

/// The versions of a row and its settings: the transactions that wrote them last.
macro_rules! version {
    () => {
        "(w.xmin::text::bigint << 31 # coalesce(s.xmin::text::bigint, 0))"
    };
}

/// The columns of [`Destination`], from `w` and `s`. An application's own table may hold NULL where the given
/// one may not: then the default counts; and numbers beyond what the given one lets through: then the limit
/// does. A request that takes longer than a lease would never start.
macro_rules! columns {
    () => {
        "w.id, w.org_id, coalesce(left(w.url, 9000), '') AS url,
        coalesce(w.auth_type, 'none')::text AS auth_type,
        -- a number of a few bytes prints as 128 KiB: what is too large is no object, and so a fault
        coalesce(public.posthaste_printed(coalesce(w.auth_config, '{}')::jsonb, 262144), '\"too large\"')
            AS auth_config,
        least(coalesce(w.batch_size, 1), 100) AS batch_size,
        least(coalesce(w.timeout_ms, 5000), 30000) AS timeout_ms,
        coalesce(w.retry_max, 3) AS retry_max, coalesce(w.retry_backoff_ms, 1000) AS retry_backoff_ms,
        w.signing_secret,
        s.destination_id IS NOT NULL AS has_settings, s.payload_format,
        coalesce(public.posthaste_printed(s.format_options, 262144), '{}') AS format_options,
        s.rate_limit_per_second, s.rate_limit_burst,
        s.max_in_flight, s.ordered, s.batch_wait_ms, s.batch_max_events, s.batch_max_bytes, s.max_age_seconds,
        coalesce(public.posthaste_printed(s.extra_headers, 262144), '\"too large\"') AS extra_headers,
        s.signature_scheme, s.signature_header,
        s.previous_signing_secret, s.previous_secret_expires_at, s.gzip, s.tls_client_cert, s.tls_client_key,
        s.tls_ca"
    };
}

pub mod deletion;
pub mod managed;
pub mod stats;

macro_rules! load {
    ($which:literal) => {
        concat!(
            "SELECT ",
            columns!(),
            ",
        t.paused_until, t.tripped_at, t.next_probe_at, t.failing_since, t.last_success_at, ",
            version!(),
            " AS version, timezone('UTC', clock_timestamp()) AS now
    FROM public.webhook_destinations w
    LEFT JOIN public.posthaste_destination_settings s ON s.destination_id = w.id
    LEFT JOIN public.posthaste_destination_state t ON t.destination_id = w.id
    WHERE w.enabled IS NOT FALSE AND w.org_id IS NOT NULL",
            $which
        )
    };
}

const LOAD_ALL: &str = load!("");

const LOAD: &str = load!(" AND w.id = ANY($1)");

/// Reads all enabled destinations and decrypts their secrets.
///
/// # Errors
/// Whatever the database says.
pub async fn load_all(db: impl Into<Db<'_>>, keys: &KeyRing) -> Result<Vec<Loaded>, StoreError> {
    let rows = in_time(schema::query(LOAD_ALL).fetch_all(db)).await?;
    Ok(rows.iter().map(|row| read_loaded(row, keys)).collect::<Result<_, _>>()?)
}

/// Reads those of `ids` that are enabled, and decrypts their secrets. One that cannot be read hurts no other.
///
/// # Errors
/// Whatever the database says that is not about single rows.
pub async fn load(pool: &PgPool, ids: &[DestinationId], keys: &KeyRing) -> Result<Vec<Loaded>, StoreError> {
    let mut loaded = Vec::with_capacity(ids.len());
    let mut parts = vec![ids];
    let mut is_local = false;
    while let Some(part) = parts.pop() {
        let query = schema::query(LOAD).bind(part.iter().map(|id| id.0).collect::<Vec<Uuid>>());
        match in_time(query.fetch_all(pool)).await {
            Ok(rows) => {
                for row in &rows {
                    loaded.push(read_loaded(row, keys)?);
                }
            }
            // What it is about can only be told where the statement itself works.
            Err(error) if error.is_lasting() && !is_local => {
                let nothing = schema::query(LOAD).bind(Vec::<Uuid>::new());
                if in_time(nothing.fetch_all(pool)).await.is_err() {
                    return Err(error);
                }
                is_local = true;
                parts.push(part);
            }
            Err(error) if error.is_lasting() => match part {
                [id] => loaded.push(Loaded {
                    id: *id,
                    destination: Err(Unusable::Unreadable(error.to_string())),
                    saved: Saved::default(),
                    version: 0,
                    now: DbTime(0),
                }),
                many => {
                    let (first, second) = many.split_at(many.len() / 2);
                    parts.extend([second, first]);
                }
            },
            Err(error) => return Err(error),
        }
    }
    Ok(loaded)
}

/// A destination with its secrets as they are stored.
fn read_destination(row: &PgRow) -> Result<Destination, sqlx::Error> {
    let secret = |column: &str| row.try_get::<Option<String>, _>(column).map(|s| s.map(Secret::new));
    Ok(Destination {
        id: DestinationId(row.try_get("id")?),
        org: OrgId(row.try_get("org_id")?),
        url: row.try_get("url")?,
        auth_type: row.try_get("auth_type")?,
        auth_config: Secret::new(row.try_get::<String, _>("auth_config")?),
        batch_size: row.try_get::<i32, _>("batch_size")?.max(1) as u32,
        timeout: Duration::from_millis(row.try_get::<i32, _>("timeout_ms")?.max(1) as u64),
        retry: RetryPolicy {
            max: row.try_get::<i32, _>("retry_max")?.max(0) as u32,
            backoff: Duration::from_millis(row.try_get::<i32, _>("retry_backoff_ms")?.max(0) as u64),
        },
        signing_secret: secret("signing_secret")?,
        settings: if row.try_get("has_settings")? { read_settings(row)? } else { Settings::default() },
    })
}

fn read_loaded(row: &PgRow, keys: &KeyRing) -> Result<Loaded, sqlx::Error> {
    let unreadable = |error: sqlx::Error| Unusable::Unreadable(StoreError::from(error).to_string());
    let destination =
        read_destination(row).map_err(unreadable).and_then(|destination| Ok(keys.open_all(destination)?));
    Ok(Loaded {
        id: DestinationId(row.try_get("id")?),
        destination,
        saved: Saved {
            paused_until: row.try_get("paused_until")?,
            tripped_at: row.try_get("tripped_at")?,
            next_probe_at: row.try_get("next_probe_at")?,
            failing_since: row.try_get("failing_since")?,
            last_success_at: row.try_get("last_success_at")?,
        },
        version: row.try_get("version")?,
        now: row.try_get("now")?,
    })
}

fn read_settings(row: &PgRow) -> Result<Settings, sqlx::Error> {
    let count = |column: &str| row.try_get::<Option<i32>, _>(column).map(|n| n.map(|n| n.max(0) as u32));
    let secret = |column: &str| row.try_get::<Option<String>, _>(column).map(|s| s.map(Secret::new));
    let default = Settings::default();
    Ok(Settings {
        payload_format: row.try_get("payload_format")?,
        format_options: row.try_get::<Option<_>, _>("format_options")?.unwrap_or(default.format_options),
        rate_limit_per_second: row.try_get("rate_limit_per_second")?,
        rate_limit_burst: count("rate_limit_burst")?,
        max_in_flight: count("max_in_flight")?,
        ordered: row.try_get::<Option<_>, _>("ordered")?.unwrap_or(false),
        batch_wait: Duration::from_millis(u64::from(count("batch_wait_ms")?.unwrap_or(0))),
        batch_max_events: count("batch_max_events")?,
        batch_max_bytes: count("batch_max_bytes")?.map(|bytes| bytes as usize),
        max_age: count("max_age_seconds")?.map(|s| Duration::from_secs(u64::from(s))),
        extra_headers: secret("extra_headers")?.unwrap_or(default.extra_headers),
        signature_scheme: row.try_get("signature_scheme")?,
        signature_header: row.try_get("signature_header")?,
        previous_signing_secret: secret("previous_signing_secret")?,
        previous_secret_expires_at: row.try_get("previous_secret_expires_at")?,
        gzip: row.try_get::<Option<_>, _>("gzip")?.unwrap_or(false),
        tls_client_cert: row.try_get("tls_client_cert")?,
        tls_client_key: secret("tls_client_key")?,
        tls_ca: row.try_get("tls_ca")?,
    })
}

/// What is remembered of a destination's health, from the columns of its state.
pub(super) fn read_saved(row: &PgRow) -> Result<Saved, sqlx::Error> {
    Ok(Saved {
        paused_until: row.try_get("paused_until")?,
        tripped_at: row.try_get("tripped_at")?,
        next_probe_at: row.try_get("next_probe_at")?,
        failing_since: row.try_get("failing_since")?,
        last_success_at: row.try_get("last_success_at")?,
    })
}

/// Each search is bounded, and in the order of the index that it should use: it reads one entry that is
/// alive, however many deliveries of other destinations are due, or of this one are not due yet. Where vacuum
/// can remove nothing it reads all that was delivered, so it is left out where it is not needed. NOT IN, as a
/// join would be a loop in these sessions.
const POLL: &str = concat!(
    "WITH clock AS MATERIALIZED (SELECT timezone('UTC', clock_timestamp()) AS now)
    SELECT w.id, ",
    version!(),
    ",
        w.id NOT IN (SELECT unnest($1::uuid[])) AND (
            (SELECT true FROM public.webhook_deliveries d WHERE d.destination_id = w.id
                AND d.status IN ('pending', 'failed') AND d.next_retry_at <= c.now
                ORDER BY d.next_retry_at LIMIT 1) IS NOT NULL
            OR (SELECT true FROM public.webhook_deliveries d WHERE d.destination_id = w.id
                AND d.status IN ('pending', 'failed') AND d.next_retry_at IS NULL
                ORDER BY d.next_retry_at LIMIT 1) IS NOT NULL)
    FROM clock c CROSS JOIN public.webhook_destinations w
    LEFT JOIN public.posthaste_destination_settings s ON s.destination_id = w.id
    WHERE w.enabled IS NOT FALSE AND w.org_id IS NOT NULL"
);

/// Looks at every enabled destination: has it changed, and, unless it is `busy`, is anything due?
///
/// # Errors
/// Whatever the database says.
pub async fn poll(db: impl Into<Db<'_>>, busy: &[DestinationId]) -> Result<Vec<Seen>, StoreError> {
    let busy: Vec<Uuid> = busy.iter().map(|id| id.0).collect();
    let query = schema::query_as(AssertSqlSafe(POLL)).bind(busy);
    let rows: Vec<(Uuid, i64, bool)> = in_time(query.fetch_all(db)).await?;
    let seen = |(id, version, due)| Seen { destination: DestinationId(id), version, due };
    Ok(rows.into_iter().map(seen).collect())
}

const SAVE: &str = "
WITH o AS MATERIALIZED (
    SELECT * FROM unnest($1::uuid[], $2::timestamp[], $3::timestamp[], $4::timestamp[], $5::timestamp[],
            $6::timestamp[])
        AS o(destination_id, paused_until, tripped_at, next_probe_at, failing_since, last_success_at)
),
-- nobody is waited for: whose row, or whose state, somebody else has locked comes later
destination AS MATERIALIZED (
    SELECT w.id FROM public.webhook_destinations w JOIN o ON o.destination_id = w.id
    FOR KEY SHARE OF w SKIP LOCKED
),
state AS MATERIALIZED (
    SELECT t.destination_id AS id FROM public.posthaste_destination_state t JOIN o USING (destination_id)
    FOR UPDATE OF t SKIP LOCKED
),
free AS MATERIALIZED (
    SELECT o.* FROM o JOIN destination d ON d.id = o.destination_id
    WHERE EXISTS (SELECT FROM state s WHERE s.id = d.id)
       OR NOT EXISTS (SELECT FROM public.posthaste_destination_state t WHERE t.destination_id = d.id)
),
cleared AS (
    -- why a destination was disabled is not ours to forget: enabling it does that
    DELETE FROM public.posthaste_destination_state t USING free o
    WHERE t.destination_id = o.destination_id AND t.disabled_at IS NULL
      AND o.paused_until IS NULL AND o.tripped_at IS NULL AND o.failing_since IS NULL
),
written AS (
    INSERT INTO public.posthaste_destination_state
        (destination_id, paused_until, tripped_at, next_probe_at, failing_since, last_success_at)
    SELECT o.* FROM free o
    WHERE o.paused_until IS NOT NULL OR o.tripped_at IS NOT NULL OR o.failing_since IS NOT NULL
    ON CONFLICT (destination_id) DO UPDATE SET
        paused_until = excluded.paused_until, tripped_at = excluded.tripped_at,
        next_probe_at = excluded.next_probe_at,
        failing_since = excluded.failing_since, last_success_at = excluded.last_success_at
)
SELECT o.destination_id FROM o
-- a destination deleted meanwhile has no state
JOIN public.webhook_destinations w ON w.id = o.destination_id
WHERE NOT EXISTS (SELECT FROM free f WHERE f.destination_id = o.destination_id)";

/// Writes what is to be remembered of each destination. Returns those that somebody else has locked: nothing
/// was written of them.
///
/// # Errors
/// Whatever the database says; writing again is harmless.
pub async fn save(
    db: impl Into<Db<'_>>,
    states: &BTreeMap<DestinationId, Saved>,
) -> Result<BTreeSet<DestinationId>, StoreError> {
    let column = |of: fn(&Saved) -> Option<DbTime>| states.values().map(of).collect::<Vec<_>>();
    let query = schema::query_scalar(SAVE)
        .bind(states.keys().map(|id| id.0).collect::<Vec<_>>())
        .bind(column(|s| s.paused_until))
        .bind(column(|s| s.tripped_at))
        .bind(column(|s| s.next_probe_at))
        .bind(column(|s| s.failing_since))
        .bind(column(|s| s.last_success_at));
    let locked: Vec<Uuid> = in_time(query.fetch_all(db)).await?;
    Ok(locked.into_iter().map(DestinationId).collect())
}

/// What became of disabling a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disabled {
    /// It was enabled, and is not any more.
    Now,
    /// It was disabled, or deleted, before.
    Before,
    /// Somebody else has locked its row: nothing was written.
    Locked,
    /// The database has left it as it was, without an error: a trigger of the application does that.
    Kept,
}

/// The statement with a hole: what to do where somebody else has locked the row.
macro_rules! disable {
    ($locked:literal) => {
        concat!(
            "
WITH free AS MATERIALIZED (
    SELECT w.id FROM public.webhook_destinations w WHERE w.id = $1 AND w.enabled IS NOT FALSE
    FOR NO KEY UPDATE",
            $locked,
            "
),
disabled AS (
    UPDATE public.webhook_destinations w
    SET enabled = false, updated_at = timezone('UTC', clock_timestamp())
    FROM free f WHERE w.id = f.id RETURNING w.id
),
noted AS (
    INSERT INTO public.posthaste_destination_state (destination_id, disabled_at, disabled_reason)
    SELECT d.id, timezone('UTC', clock_timestamp()), $2 FROM disabled d
    ON CONFLICT (destination_id) DO UPDATE
        SET disabled_at = excluded.disabled_at, disabled_reason = excluded.disabled_reason
)
SELECT EXISTS (SELECT FROM disabled), EXISTS (SELECT FROM free),
    -- as it was before this statement
    EXISTS (SELECT FROM public.webhook_destinations w WHERE w.id = $1 AND w.enabled IS NOT FALSE)"
        )
    };
}

/// Disables a destination and records why, unless somebody else has locked it. Its deliveries stay.
///
/// # Errors
/// Whatever the database says; disabling again changes nothing.
pub async fn disable(
    db: impl Into<Db<'_>>,
    destination: DestinationId,
    reason: &str,
) -> Result<Disabled, StoreError> {
    let query = schema::query_as(disable!(" SKIP LOCKED")).bind(destination.0).bind(reason);
    Ok(disabled(in_time(query.fetch_one(db)).await?))
}

/// As [`disable`], but waits for whoever has locked it, as each claim of an ordered destination does for a
/// moment.
///
/// # Errors
/// Whatever the database says: [`StoreError::is_about_locks`] where it took too long.
pub async fn disable_in_turn(
    db: impl Into<Db<'_>>,
    destination: DestinationId,
    reason: &str,
) -> Result<Disabled, StoreError> {
    let query = schema::query_as(disable!("")).bind(destination.0).bind(reason);
    Ok(disabled(in_time(query.fetch_one(db)).await?))
}

fn disabled((now, was_free, was_enabled): (bool, bool, bool)) -> Disabled {
    match (now, was_free, was_enabled) {
        (true, ..) => Disabled::Now,
        (false, true, _) => Disabled::Kept,
        (false, false, true) => Disabled::Locked,
        (false, false, false) => Disabled::Before,
    }
}

const IS_ENABLED: &str =
    "SELECT enabled IS NOT FALSE FROM public.webhook_destinations WHERE id = $2 AND org_id = $1";

/// Whether a destination of `org` is enabled; `None`: it has no such destination.
///
/// # Errors
/// Whatever the database says.
pub async fn is_enabled(
    db: impl Into<Db<'_>>,
    org: OrgId,
    destination: DestinationId,
) -> Result<Option<bool>, StoreError> {
    let query = schema::query_scalar(IS_ENABLED).bind(org.0).bind(destination.0);
    in_time(query.fetch_optional(db)).await
}

/// An operational event: something that an organization may want to know about its own deliveries.
#[derive(Clone, Debug)]
pub struct OperationalEvent {
    /// Whose.
    pub org: OrgId,
    /// `webhook.destination.disabled`, `webhook.destination.tripped` or `webhook.delivery.dead`.
    pub event_type: &'static str,
    /// A sentence for people.
    pub content: String,
    /// JSON text of the payload.
    pub payload: String,
}

/// `{COLUMNS}` and `{VALUES}`: those that the table has, of what need not be there.
const ANNOUNCE: &str = "
INSERT INTO public.activity_logs (id, org_id, event_type{COLUMNS})
SELECT gen_random_uuid(), o.org_id, o.event_type{VALUES}
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[]) AS o(org_id, event_type, content, payload)
-- the parameter is there in any case
WHERE $5::text IS NOT NULL";

/// Writes operational events. An application's table may refuse them: best effort.
///
/// # Errors
/// Whatever the database says.
pub async fn announce(db: &mut PgConnection, events: &[OperationalEvent]) -> Result<(), StoreError> {
    let columns = EventColumns::read(db).await?;
    let values = [
        ("event_category", "$5"),
        ("content", "o.content"),
        ("payload", "o.payload::jsonb"),
        ("created_at", "timezone('UTC', clock_timestamp())"),
    ];
    let there = values.iter().filter(|(column, _)| columns.writes(column));
    let (names, values): (Vec<&str>, Vec<&str>) = there.copied().unzip();
    let listed = |words: Vec<&str>| words.iter().map(|word| format!(", {word}")).collect::<String>();
    let sql = ANNOUNCE.replace("{COLUMNS}", &listed(names)).replace("{VALUES}", &listed(values));
    let query = schema::query(AssertSqlSafe(sql))
        .bind(events.iter().map(|e| e.org.0).collect::<Vec<_>>())
        .bind(events.iter().map(|e| e.event_type).collect::<Vec<_>>())
        .bind(events.iter().map(|e| e.content.as_str()).collect::<Vec<_>>())
        .bind(events.iter().map(|e| e.payload.as_str()).collect::<Vec<_>>())
        .bind(OPERATIONAL_CATEGORY)
        .persistent(false);
    in_time(query.execute(db)).await?;
    Ok(())
}
