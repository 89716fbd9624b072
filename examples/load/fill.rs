//! What is in the database before a measurement: organizations, destinations, backlogs.

use sqlx::postgres::PgConnection;
use uuid::Uuid;

use crate::LoadError;
use crate::place::execute;

/// Every destination signs, so that every figure includes the signature.
pub const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
/// Deliveries that one INSERT of a backlog makes.
const DELIVERIES_PER_STATEMENT: u64 = 1_000;

/// A destination that is to be made.
pub struct NewDestination {
    pub org: Uuid,
    pub url: String,
    pub batch_size: i32,
}

impl NewDestination {
    /// One event per request.
    pub fn single(org: Uuid, url: String) -> NewDestination {
        NewDestination { org, url, batch_size: 1 }
    }
}

/// New organizations.
pub async fn organizations(conn: &mut PgConnection, count: usize) -> Result<Vec<Uuid>, LoadError> {
    let ids: Vec<Uuid> = (0..count).map(|_| Uuid::new_v4()).collect();
    let sql = "INSERT INTO organizations (id, name) SELECT id, 'load' FROM unnest($1::uuid[]) AS new(id)";
    sqlx::query(sql).bind(&ids).execute(conn).await?;
    Ok(ids)
}

/// Makes destinations with the defaults of the table; their ids, in order.
pub async fn destinations(conn: &mut PgConnection, new: &[NewDestination]) -> Result<Vec<Uuid>, LoadError> {
    let ids: Vec<Uuid> = new.iter().map(|_| Uuid::new_v4()).collect();
    let sql = "
        INSERT INTO webhook_destinations (id, org_id, name, url, batch_size, signing_secret)
        SELECT id, org_id, id::text, url, batch_size, $5
        FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::int[]) AS new(id, org_id, url, batch_size)";
    sqlx::query(sql)
        .bind(&ids)
        .bind(new.iter().map(|d| d.org).collect::<Vec<_>>())
        .bind(new.iter().map(|d| d.url.as_str()).collect::<Vec<_>>())
        .bind(new.iter().map(|d| d.batch_size).collect::<Vec<_>>())
        .bind(SECRET)
        .execute(conn)
        .await?;
    Ok(ids)
}

/// An organization for each of `urls`, and its only destination.
pub async fn one_each(
    conn: &mut PgConnection,
    urls: Vec<String>,
    batch_size: i32,
) -> Result<Vec<Uuid>, LoadError> {
    let orgs = organizations(conn, urls.len()).await?;
    let pairs = orgs.iter().zip(urls);
    let new: Vec<_> = pairs.map(|(org, url)| NewDestination { org: *org, url, batch_size }).collect();
    destinations(conn, &new).await?;
    Ok(orgs)
}

/// Writes `events` events, in turn for each of `orgs`, as an application would: the trigger makes the
/// deliveries, `fan_out` for each event.
pub async fn backlog(
    conn: &mut PgConnection,
    orgs: &[Uuid],
    events: u64,
    fan_out: u64,
) -> Result<(), LoadError> {
    let sql = "
        INSERT INTO activity_logs (org_id, event_type, event_category, content, payload)
        SELECT ($1::uuid[])[1 + n % cardinality($1::uuid[])], 'load.test', 'load', 'event ' || n,
            jsonb_build_object('n', n, 'tool', 'Bash')
        FROM generate_series($2::bigint, $3::bigint) AS n";
    let step = (DELIVERIES_PER_STATEMENT / fan_out.max(1)).max(1);
    for first in (0..events).step_by(step as usize) {
        let last = (first + step).min(events) - 1;
        let insert = sqlx::query(sql).bind(orgs).bind(first as i64).bind(last as i64);
        insert.execute(&mut *conn).await?;
    }
    Ok(())
}

/// Leaves nothing to be done by the server during the measurement that belongs to the filling.
pub async fn settle(conn: &mut PgConnection) -> Result<(), LoadError> {
    for sql in ["VACUUM ANALYZE", "CHECKPOINT"] {
        execute(conn, sql).await?;
    }
    Ok(())
}

/// Whether a delivery is neither delivered nor dead.
pub async fn is_anything_left(conn: &mut PgConnection) -> Result<bool, LoadError> {
    let sql = "SELECT EXISTS (SELECT FROM webhook_deliveries WHERE status IN ('pending', 'failed'))";
    Ok(sqlx::query_scalar(sql).fetch_one(conn).await?)
}

/// How many deliveries have this status.
pub async fn count(conn: &mut PgConnection, status: &str) -> Result<u64, LoadError> {
    let sql = "SELECT count(*) FROM webhook_deliveries WHERE status = $1";
    let count: i64 = sqlx::query_scalar(sql).bind(status).fetch_one(conn).await?;
    Ok(count as u64)
}
