//! Millions of rows in minutes: without indexes and constraints while they are written, and with exactly the
//! same ones afterwards.

use std::ops::Range;

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Row};
use uuid::Uuid;

use crate::LoadError;
use crate::fill::{self, NewDestination};
use crate::place::execute;

/// Destinations of an organization whose deliveries are written in bulk, and deliveries of each event.
pub const FAN_OUT: u64 = 10;
/// Deliveries of [`past`].
const PAST: u64 = 100_000;
/// Rows of one INSERT; rows that fall due at the same moment come from one statement of this many.
const ROWS_AT_ONCE: u64 = 1_000_000;

/// What the rows are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// For an hour, in order.
    Due,
    Delivered,
}

/// An organization with some history and no enabled destination. Producers need it: on an empty table
/// PostgreSQL checks foreign keys by scanning, and keeps to that while the table grows.
pub async fn past(conn: &mut PgConnection) -> Result<(), LoadError> {
    let (org, destinations) = organization(conn).await?;
    execute(conn, "UPDATE webhook_destinations SET enabled = false").await?;
    deliveries(conn, org, &destinations, 0..PAST, Status::Delivered).await
}

/// An organization whose destinations lead nowhere.
pub async fn organization(conn: &mut PgConnection) -> Result<(Uuid, Vec<Uuid>), LoadError> {
    let org = fill::organizations(conn, 1).await?[0];
    let nowhere = (0..FAN_OUT).map(|_| NewDestination::single(org, "http://127.0.0.1:9/".into()));
    let destinations = fill::destinations(conn, &nowhere.collect::<Vec<_>>()).await?;
    Ok((org, destinations))
}

/// Writes the deliveries with these numbers, in turn for the `destinations` of `org`, and their events. Ids
/// are spread as random ones are.
pub async fn deliveries(
    conn: &mut PgConnection,
    org: Uuid,
    destinations: &[Uuid],
    numbers: Range<u64>,
    status: Status,
) -> Result<(), LoadError> {
    events(conn, org, numbers.start / FAN_OUT..numbers.end.div_ceil(FAN_OUT)).await?;
    let definitions = take_off(conn).await?;
    // As the fan-out writes them: rows of one statement, a thousand here, fall due together.
    let columns = match status {
        Status::Due => "'pending', 0, NULL, due, NULL",
        Status::Delivered => "'delivered', 1, due, due, due",
    };
    let sql = format!(
        "INSERT INTO webhook_deliveries (id, destination_id, log_id, created_at, status, attempts,
            last_attempt_at, next_retry_at, delivered_at)
         SELECT gen_random_uuid(), ($1::uuid[])[1 + n % cardinality($1::uuid[])],
            md5('event ' || n / {FAN_OUT})::uuid, due + n % 1000 * interval '1 microsecond', {columns}
         FROM (SELECT n, timezone('UTC', now()) - interval '1 hour'
                + n / 1000 * interval '1 millisecond' AS due
               FROM generate_series($2::bigint, $3::bigint) AS n) AS numbered"
    );
    for first in numbers.clone().step_by(ROWS_AT_ONCE as usize) {
        let last = (first + ROWS_AT_ONCE).min(numbers.end) - 1;
        let insert = sqlx::query(AssertSqlSafe(sql.clone())).bind(destinations).bind(first as i64);
        insert.bind(last as i64).execute(&mut *conn).await?;
    }
    for definition in definitions {
        execute(conn, &definition).await?;
    }
    fill::settle(conn).await
}

/// Forgets all deliveries.
pub async fn clear(conn: &mut PgConnection) -> Result<(), LoadError> {
    execute(conn, "TRUNCATE webhook_deliveries CASCADE").await
}

/// The events with these numbers, as far as they are missing; without deliveries.
async fn events(conn: &mut PgConnection, org: Uuid, numbers: Range<u64>) -> Result<(), LoadError> {
    execute(conn, "ALTER TABLE activity_logs DISABLE TRIGGER USER").await?;
    let sql = "
        INSERT INTO activity_logs (id, org_id, event_type, event_category, content, payload)
        SELECT md5('event ' || n)::uuid, $1, 'load.test', 'load', 'event ' || n,
            jsonb_build_object('n', n, 'tool', 'Bash')
        FROM generate_series($2::bigint, $3::bigint) AS n
        ON CONFLICT DO NOTHING";
    let insert = sqlx::query(sql).bind(org).bind(numbers.start as i64).bind(numbers.end as i64 - 1);
    insert.execute(&mut *conn).await?;
    execute(conn, "ALTER TABLE activity_logs ENABLE TRIGGER USER").await
}

/// Drops what makes writing to `webhook_deliveries` slow; the statements that bring it back.
async fn take_off(conn: &mut PgConnection) -> Result<Vec<String>, LoadError> {
    execute(conn, "SET maintenance_work_mem = '512MB'").await?;
    // Foreign keys hold, since the rows are made so: checking ten million of them again proves nothing.
    let constraints = sqlx::query(
        "SELECT format('ALTER TABLE %s DROP CONSTRAINT %I', conrelid::regclass, conname),
            format('ALTER TABLE %s ADD CONSTRAINT %I %s%s', conrelid::regclass, conname,
                pg_get_constraintdef(oid), CASE contype WHEN 'f' THEN ' NOT VALID' ELSE '' END)
         FROM pg_constraint
         WHERE 'webhook_deliveries'::regclass IN (conrelid, confrelid) AND contype IN ('f', 'p', 'u')
         ORDER BY contype = 'f' DESC",
    );
    let constraints = constraints.fetch_all(&mut *conn).await?;
    let indexes = sqlx::query(
        "SELECT format('DROP INDEX %s', indexrelid::regclass), pg_get_indexdef(indexrelid)
         FROM pg_index
         WHERE indrelid = 'webhook_deliveries'::regclass
            AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid AND contype IN ('p', 'u'))",
    );
    let indexes = indexes.fetch_all(&mut *conn).await?;
    let mut definitions = Vec::new();
    for row in indexes.iter().chain(&constraints) {
        execute(conn, row.get(0)).await?;
        definitions.push(row.get(1));
    }
    // Keys before those that refer to them.
    definitions.reverse();
    Ok(definitions)
}
