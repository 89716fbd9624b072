//! Destinations as people manage them: the rows as they are written, with their secrets as they are stored.
//!
//! Each function is one statement, so nothing is ever half done.

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Row};
use uuid::Uuid;

use super::{read_destination, read_saved};
use crate::model::{DbTime, Destination, DestinationId, OrgId, Secret};
use crate::policy::health::Saved;
use crate::store::page::{Page, Position};
use crate::store::schema;
use crate::store::statement::Query;
use crate::store::{StoreError, in_time};

/// A row of `webhook_destinations` with its settings, as it is written.
#[derive(Clone, Debug)]
pub struct Written {
    /// What the dispatcher needs of it.
    pub destination: Destination,
    /// Its name, of which its organization has one.
    pub name: String,
    /// Types of events that it wants; empty: all.
    pub event_types: Vec<String>,
    /// JSON text of the filter; `{}` wants everything. `None`: it is larger than a filter can be, and is not
    /// read.
    pub event_filter: Option<String>,
    /// Whether events are queued and sent.
    pub enabled: bool,
    /// When it was created.
    pub created_at: DbTime,
    /// When it was last written.
    pub updated_at: DbTime,
    /// Changes whenever the row or its settings change.
    pub version: i64,
    /// When it was disabled, if that is known.
    pub disabled_at: Option<DbTime>,
    /// And why.
    pub disabled_reason: Option<String>,
    /// What is remembered of its health.
    pub saved: Saved,
    /// The database's clock.
    pub now: DbTime,
}

/// Filters have at most 8 KiB; larger ones are older than that limit, and some of them print as megabytes.
macro_rules! filter {
    () => {
        "public.posthaste_printed(coalesce(w.event_filter, '{}')::jsonb, 65536)"
    };
}

/// Where a list has a destination that nobody knows the age of.
macro_rules! created_at {
    () => {
        "coalesce(w.created_at, 'epoch')"
    };
}

macro_rules! select {
    ($more:literal, $condition:literal) => {
        concat!(
            "SELECT ",
            columns!(),
            ", coalesce(w.name, '')::text AS name, w.event_types::text[] AS event_types, ",
            filter!(),
            " AS event_filter, w.enabled IS NOT FALSE AS enabled, ",
            created_at!(),
            " AS created_at, coalesce(w.updated_at, 'epoch') AS updated_at, t.disabled_at,
            t.disabled_reason, t.paused_until, t.tripped_at, t.next_probe_at, t.failing_since,
            t.last_success_at, timezone('UTC', clock_timestamp()) AS now, ",
            version!(),
            " AS version",
            $more,
            "
            FROM public.webhook_destinations w
            LEFT JOIN public.posthaste_destination_settings s ON s.destination_id = w.id
            LEFT JOIN public.posthaste_destination_state t ON t.destination_id = w.id
            WHERE w.org_id = $1 AND ",
            $condition
        )
    };
}

const GET: &str = select!("", "w.id = $2");

/// A destination of `org`; `None`: it has no such destination.
///
/// # Errors
/// Whatever the database says.
pub async fn get(
    db: &mut PgConnection,
    org: OrgId,
    id: DestinationId,
) -> Result<Option<Written>, StoreError> {
    let row = in_time(schema::query(AssertSqlSafe(GET)).bind(org.0).bind(id.0).fetch_optional(db)).await?;
    Ok(row.as_ref().map(read).transpose()?)
}

/// Bytes of what a page holds; it ends with the row with which it reaches them. Certificates alone may have a
/// megabyte a row.
const PAGE_BYTES: i64 = 4 << 20;

/// Everything is measured as it is printed: what is stored may be compressed.
const LIST: &str = concat!(
    "WITH page AS MATERIALIZED (
        SELECT p.id, sum(p.bytes) OVER (ORDER BY p.created_at DESC, p.id DESC) - p.bytes AS before
        FROM (
            SELECT w.id, ",
    created_at!(),
    " AS created_at, coalesce(octet_length(w.url), 0)
                + coalesce(octet_length(w.auth_config::text), 0)
                + coalesce(octet_length(w.event_types::text), 0)
                + coalesce(octet_length(",
    filter!(),
    "), 0)
                + coalesce(octet_length(s.format_options::text), 0)
                + coalesce(octet_length(s.extra_headers::text), 0)
                + coalesce(octet_length(s.tls_client_cert), 0)
                + coalesce(octet_length(s.tls_ca), 0) AS bytes
            FROM public.webhook_destinations w
            LEFT JOIN public.posthaste_destination_settings s ON s.destination_id = w.id
            WHERE w.org_id = $1 AND (",
    created_at!(),
    ", w.id) < ($2::timestamp, $3::uuid)
            ORDER BY ",
    created_at!(),
    " DESC, w.id DESC LIMIT $4
        ) p
    ) ",
    select!(
        ", (SELECT count(*) FROM page) AS found",
        "w.id IN (SELECT id FROM page WHERE before < $5) ORDER BY created_at DESC, w.id DESC"
    )
);

/// The destinations of `org`, the newest first. A page may be shorter than `limit` although there are more.
///
/// # Errors
/// Whatever the database says.
pub async fn list(
    db: &mut PgConnection,
    org: OrgId,
    before: Option<Position>,
    limit: u32,
) -> Result<Page<Written>, StoreError> {
    let before = Position::before(before, None);
    let query = schema::query(AssertSqlSafe(LIST)).bind(org.0).bind(before.at).bind(before.id);
    let query = query.bind(i64::from(limit) + 1).bind(PAGE_BYTES);
    let rows = in_time(query.fetch_all(db)).await?;
    let found = rows.first().map(|row| row.try_get::<i64, _>("found")).transpose()?.unwrap_or(0);
    let items = rows.iter().map(read).collect::<Result<Vec<Written>, _>>()?;
    let is_cut = (items.len() as i64) < found;
    let position = |one: &Written| Position { at: one.created_at, id: one.destination.id.0 };
    let mut page = Page::cut(items, limit, position);
    if is_cut {
        page.next = page.items.last().map(position);
    }
    Ok(page)
}

fn read(row: &PgRow) -> Result<Written, sqlx::Error> {
    let event_types: Option<Vec<Option<String>>> = row.try_get("event_types")?;
    Ok(Written {
        destination: read_destination(row)?,
        name: row.try_get("name")?,
        event_types: event_types.unwrap_or_default().into_iter().flatten().collect(),
        event_filter: row.try_get("event_filter")?,
        enabled: row.try_get("enabled")?,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
        version: row.try_get("version")?,
        disabled_at: row.try_get("disabled_at")?,
        disabled_reason: row.try_get("disabled_reason")?,
        saved: read_saved(row)?,
        now: row.try_get("now")?,
    })
}

/// The columns of the settings that people set, $16 to $32 in both statements.
macro_rules! settings {
    () => {
        "destination_id, payload_format, format_options, rate_limit_per_second, rate_limit_burst,
         max_in_flight, ordered, batch_wait_ms, max_age_seconds, extra_headers, signature_scheme,
         signature_header, gzip, tls_client_cert, tls_client_key, tls_ca, batch_max_events, batch_max_bytes"
    };
}

macro_rules! set_settings {
    ($table:literal) => {
        concat!(
            "INSERT INTO public.posthaste_destination_settings (",
            settings!(),
            ")
             SELECT id, $16, $17::jsonb, $18, $19, $20, $21, $22, $23, $24::jsonb, $25, $26, $27, $28, $29,
                $30, $31, $32
             FROM ",
            $table,
            " WHERE $15::boolean"
        )
    };
}

/// With a limit ($33), only while the organization has fewer destinations. Nothing is locked for it, as
/// whatever could be locked is what deliveries need as well: requests at the same moment, of which there are
/// as many as connections, may each find the last place free.
const INSERT: &str = concat!(
    "WITH room AS MATERIALIZED (
        SELECT $33::bigint IS NULL OR $33 > (
            SELECT count(*)
            FROM (SELECT FROM public.webhook_destinations w WHERE w.org_id = $1 LIMIT $33) w) AS is_left
    ),
    created AS (
        INSERT INTO public.webhook_destinations (org_id, id, name, url, auth_type, auth_config, event_types,
            event_filter, enabled, batch_size, timeout_ms, retry_max, retry_backoff_ms, signing_secret,
            created_at, updated_at)
        SELECT $1, $2, $3, $4, $5, $6::jsonb, $7, $8::jsonb, $9, $10, $11, $12, $13, $14,
            timezone('UTC', clock_timestamp()), timezone('UTC', clock_timestamp())
        FROM room r WHERE r.is_left
        RETURNING id
    ),
    settings AS (",
    set_settings!("created"),
    ")
    SELECT id FROM created"
);

/// Writes a new destination; its settings only if `with_settings`. False: its organization has `most` or
/// more already.
///
/// # Errors
/// Whatever the database says.
pub async fn insert(
    db: &mut PgConnection,
    new: &Written,
    with_settings: bool,
    most: Option<u32>,
) -> Result<bool, StoreError> {
    let query = bind(INSERT, new, with_settings).bind(most.map(i64::from));
    Ok(in_time(query.fetch_optional(db)).await?.is_some())
}

/// The row is locked and looked at again before anything is written. What is written is written to both
/// tables under that lock, so its version tells about both.
const UPDATE: &str = concat!(
    "WITH held AS MATERIALIZED (
        SELECT w.id FROM public.webhook_destinations w
        LEFT JOIN public.posthaste_destination_settings s ON s.destination_id = w.id
        WHERE w.org_id = $1 AND w.id = $2 AND ",
    version!(),
    " = $33
        FOR NO KEY UPDATE OF w
    ),
    updated AS (
        UPDATE public.webhook_destinations w SET name = $3, url = $4,
            auth_config = $6::jsonb, event_types = $7,
            -- what counts as something else stays what it is, unless that is changed
            auth_type = CASE WHEN coalesce(w.auth_type, 'none') = $5 THEN w.auth_type ELSE $5 END,
            enabled = CASE WHEN (w.enabled IS NOT FALSE) = $9 THEN w.enabled ELSE $9 END,
            batch_size = CASE WHEN least(coalesce(w.batch_size, 1), 100) = $10 THEN w.batch_size
                ELSE $10 END,
            timeout_ms = CASE WHEN least(coalesce(w.timeout_ms, 5000), 30000) = $11 THEN w.timeout_ms
                ELSE $11 END,
            retry_max = CASE WHEN coalesce(w.retry_max, 3) = $12 THEN w.retry_max ELSE $12 END,
            retry_backoff_ms = CASE WHEN coalesce(w.retry_backoff_ms, 1000) = $13 THEN w.retry_backoff_ms
                ELSE $13 END,
            -- one that is too large to be read stays as it is
            event_filter = CASE WHEN $34::boolean THEN $8::jsonb ELSE w.event_filter END,
            signing_secret = $14, updated_at = timezone('UTC', clock_timestamp())
        FROM held WHERE w.id = held.id RETURNING w.id
    ),
    settings AS (",
    set_settings!("updated"),
    "
        ON CONFLICT (destination_id) DO UPDATE SET payload_format = excluded.payload_format,
            format_options = excluded.format_options,
            rate_limit_per_second = excluded.rate_limit_per_second,
            rate_limit_burst = excluded.rate_limit_burst, max_in_flight = excluded.max_in_flight,
            ordered = excluded.ordered, batch_wait_ms = excluded.batch_wait_ms,
            max_age_seconds = excluded.max_age_seconds, extra_headers = excluded.extra_headers,
            signature_scheme = excluded.signature_scheme, signature_header = excluded.signature_header,
            gzip = excluded.gzip, tls_client_cert = excluded.tls_client_cert,
            tls_client_key = excluded.tls_client_key, tls_ca = excluded.tls_ca,
            batch_max_events = excluded.batch_max_events, batch_max_bytes = excluded.batch_max_bytes
    )
    SELECT id FROM updated"
);

/// Writes a destination that is still of this version; its filter and its settings only if `with_filter` and
/// `with_settings`. False: it is gone, or was changed by somebody else.
///
/// # Errors
/// Whatever the database says.
pub async fn update(
    db: &mut PgConnection,
    written: &Written,
    with_filter: bool,
    with_settings: bool,
) -> Result<bool, StoreError> {
    let query = bind(UPDATE, written, with_settings).bind(written.version).bind(with_filter);
    Ok(in_time(query.fetch_optional(db)).await?.is_some())
}

/// Binds $1 to $32.
fn bind(sql: &'static str, written: &Written, with_settings: bool) -> Query {
    let Written { destination, name, event_types, event_filter, enabled, .. } = written;
    let settings = &destination.settings;
    let number = |number: Option<u32>| number.map(u32::cast_signed);
    let millis = |duration: std::time::Duration| i32::try_from(duration.as_millis()).unwrap_or(i32::MAX);
    let seconds = |duration: std::time::Duration| i32::try_from(duration.as_secs()).unwrap_or(i32::MAX);
    schema::query(AssertSqlSafe(sql))
        .bind(destination.org.0)
        .bind(destination.id.0)
        .bind(name)
        .bind(&destination.url)
        .bind(&destination.auth_type)
        .bind(destination.auth_config.reveal())
        .bind(event_types)
        .bind(event_filter)
        .bind(enabled)
        .bind(destination.batch_size.cast_signed())
        .bind(millis(destination.timeout))
        .bind(destination.retry.max.cast_signed())
        .bind(millis(destination.retry.backoff))
        .bind(destination.signing_secret.as_ref().map(Secret::reveal))
        .bind(with_settings)
        .bind(&settings.payload_format)
        .bind(&settings.format_options)
        .bind(settings.rate_limit_per_second)
        .bind(number(settings.rate_limit_burst))
        .bind(number(settings.max_in_flight))
        .bind(settings.ordered)
        .bind(millis(settings.batch_wait))
        .bind(settings.max_age.map(seconds))
        .bind(settings.extra_headers.reveal())
        .bind(&settings.signature_scheme)
        .bind(&settings.signature_header)
        .bind(settings.gzip)
        .bind(&settings.tls_client_cert)
        .bind(settings.tls_client_key.as_ref().map(Secret::reveal))
        .bind(&settings.tls_ca)
        .bind(number(settings.batch_max_events))
        .bind(settings.batch_max_bytes.map(|bytes| i32::try_from(bytes).unwrap_or(i32::MAX)))
}

const FILTER_FAULT: &str = "SELECT public.posthaste_filter_fault($1::jsonb)";

/// What is wrong with a filter, JSON text, if anything is.
///
/// # Errors
/// Whatever the database says; where it cannot read the text as `jsonb`, that is about data.
pub async fn filter_fault(db: &mut PgConnection, filter: &str) -> Result<Option<String>, StoreError> {
    in_time(schema::query_scalar(FILTER_FAULT).bind(filter).fetch_one(db)).await
}

/// What is known about a destination when it is enabled.
#[derive(Clone, Copy, Debug)]
pub struct Enabled {
    /// Whether it was enabled already.
    pub before: bool,
    /// Events from then on were not queued for it.
    pub since: DbTime,
    /// The moment.
    pub now: DbTime,
}

/// Who disabled it by SQL left no time: then nothing was missed before its newest delivery. An event may be
/// committed a while after its own time, so the missed ones begin a minute earlier; but not before the
/// destination itself, nor before what retention has deleted, which would be sent again.
const ENABLE: &str = "
    WITH found AS MATERIALIZED (
        SELECT w.id, w.enabled, w.created_at FROM public.webhook_destinations w
        WHERE w.org_id = $1 AND w.id = $2 FOR NO KEY UPDATE
    ),
    known AS MATERIALIZED (
        SELECT f.id, f.enabled, greatest(f.created_at, r.pruned_until, coalesce(t.disabled_at, (
            SELECT max(n.created_at) FROM unnest(ARRAY['open', 'delivered', 'failed', 'dead']) q (stream)
            CROSS JOIN LATERAL (
                (SELECT d.created_at FROM public.webhook_deliveries d
                 WHERE q.stream = 'open' AND d.destination_id = f.id AND d.status IN ('pending', 'failed')
                 ORDER BY d.created_at DESC, d.id DESC LIMIT 1)
                UNION ALL
                (SELECT d.created_at FROM public.webhook_deliveries d
                 WHERE q.stream <> 'open' AND d.destination_id = f.id AND d.status = q.stream
                   AND d.status IN ('delivered', 'failed', 'dead')
                 ORDER BY d.created_at DESC, d.id DESC LIMIT 1)
            ) n)) - interval '1 minute') AS since
        FROM found f LEFT JOIN public.posthaste_destination_state t ON t.destination_id = f.id
        LEFT JOIN public.posthaste_retention r ON r.destination_id = f.id
    ),
    enabled AS (
        UPDATE public.webhook_destinations w
        SET enabled = true, updated_at = timezone('UTC', clock_timestamp())
        FROM known k WHERE w.id = k.id AND k.enabled IS FALSE
    )
    SELECT k.enabled IS NOT FALSE, coalesce(k.since, 'epoch'), timezone('UTC', clock_timestamp())
    FROM known k";

/// Enables a destination; a trigger forgets why it was disabled. `None`: `org` has no such destination.
///
/// # Errors
/// Whatever the database says; enabling again changes nothing.
pub async fn enable(
    db: &mut PgConnection,
    org: OrgId,
    id: DestinationId,
) -> Result<Option<Enabled>, StoreError> {
    let query = schema::query_as(ENABLE).bind(org.0).bind(id.0);
    let row: Option<(bool, DbTime, DbTime)> = in_time(query.fetch_optional(db)).await?;
    Ok(row.map(|(before, since, now)| Enabled { before, since, now }))
}

const ROTATE: &str = "
    WITH old AS MATERIALIZED (
        SELECT w.id, nullif(w.signing_secret, '') AS secret FROM public.webhook_destinations w
        WHERE w.org_id = $1 AND w.id = $2 FOR NO KEY UPDATE
    ),
    rotated AS (
        UPDATE public.webhook_destinations w
        SET signing_secret = $3, updated_at = timezone('UTC', clock_timestamp())
        FROM old o WHERE w.id = o.id RETURNING o.id, o.secret
    ),
    previous AS (
        INSERT INTO public.posthaste_destination_settings AS s
            (destination_id, previous_signing_secret, previous_secret_expires_at)
        SELECT r.id, CASE WHEN $4 > 0 THEN r.secret END, CASE WHEN $4 > 0 AND r.secret IS NOT NULL
            THEN timezone('UTC', clock_timestamp()) + $4 * interval '1 s' END
        FROM rotated r
        ON CONFLICT (destination_id) DO UPDATE SET previous_signing_secret = excluded.previous_signing_secret,
            previous_secret_expires_at = excluded.previous_secret_expires_at
    )
    SELECT id FROM rotated";

/// Puts `secret` in the place of the signing secret, which signs for `overlap_seconds` more beside it. False:
/// `org` has no such destination.
///
/// # Errors
/// Whatever the database says.
pub async fn rotate(
    db: &mut PgConnection,
    org: OrgId,
    id: DestinationId,
    secret: &Secret,
    overlap_seconds: i64,
) -> Result<bool, StoreError> {
    let query = schema::query_scalar::<Uuid>(ROTATE)
        .bind(org.0)
        .bind(id.0)
        .bind(secret.reveal())
        .bind(overlap_seconds as f64);
    Ok(in_time(query.fetch_optional(db)).await?.is_some())
}

const CLOCK: &str = "SELECT timezone('UTC', clock_timestamp())";

/// The database's clock.
///
/// # Errors
/// Whatever the database says.
pub async fn clock(db: &mut PgConnection) -> Result<DbTime, StoreError> {
    in_time(schema::query_scalar(CLOCK).fetch_one(db)).await
}
