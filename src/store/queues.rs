//! How much waits, and for how long: what metrics show of the tables.

use sqlx::postgres::PgConnection;
use uuid::Uuid;

use super::{ConnectOptions, StoreError, connect, in_time, planned};
use crate::model::{DbTime, DestinationId};
use crate::store::schema;

/// Deliveries are counted up to this many: beyond, it does not matter how many there are.
pub const MAX_DEPTH: i64 = 10_000;

/// A connection that measures queues. Its statements give up after 2 s.
pub struct Gauge(PgConnection);

const OLDEST: &str = "
SELECT a.id, timezone('UTC', clock_timestamp()), coalesce(o.created_at, timezone('UTC', clock_timestamp()))
FROM unnest($1::uuid[]) AS a(id) CROSS JOIN LATERAL (
    SELECT d.created_at FROM public.webhook_deliveries d
    WHERE d.destination_id = a.id AND d.status IN ('pending', 'failed')
    ORDER BY d.created_at, d.id LIMIT 1) o";

/// The order says by which index each is counted, see [`super::planned`].
const DEPTHS: &str = "
SELECT a.id, (SELECT count(*) FROM (
    SELECT FROM public.webhook_deliveries d
    WHERE d.destination_id = a.id AND d.status IN ('pending', 'failed')
    ORDER BY d.next_retry_at LIMIT $2) part)
FROM unnest($1::uuid[]) AS a(id)";

const DEPTH_OF_ALL: &str = "
SELECT count(*) FROM (
    SELECT FROM public.webhook_deliveries d
    WHERE d.destination_id = ANY ($1::uuid[]) AND d.status IN ('pending', 'failed') LIMIT $2) part";

impl Gauge {
    /// Connects.
    ///
    /// # Errors
    /// Whatever the database says.
    pub async fn connect(options: &ConnectOptions) -> Result<Gauge, StoreError> {
        let options = planned(options.clone()).options([("statement_timeout", "2s")]);
        Ok(Gauge(connect(&options).await?))
    }

    /// The clock of the database and when the oldest delivery that waits was created, for each of
    /// `destinations` for which one waits. One look at an index for each.
    ///
    /// # Errors
    /// After any error the connection must be dropped.
    pub async fn oldest(
        &mut self,
        destinations: &[DestinationId],
    ) -> Result<Vec<(DestinationId, DbTime, DbTime)>, StoreError> {
        let query = schema::query_as(OLDEST).bind(ids(destinations));
        let rows: Vec<(Uuid, DbTime, DbTime)> = in_time(query.fetch_all(&mut self.0)).await?;
        Ok(rows.into_iter().map(|(id, now, created)| (DestinationId(id), now, created)).collect())
    }

    /// How many deliveries wait for each of `destinations`, counted up to [`MAX_DEPTH`]. Where a thousand
    /// destinations have as many, this can take longer than a statement may.
    ///
    /// # Errors
    /// After any error the connection must be dropped.
    pub async fn depths(
        &mut self,
        destinations: &[DestinationId],
    ) -> Result<Vec<(DestinationId, i64)>, StoreError> {
        let query = schema::query_as(DEPTHS).bind(ids(destinations)).bind(MAX_DEPTH);
        let rows: Vec<(Uuid, i64)> = in_time(query.fetch_all(&mut self.0)).await?;
        Ok(rows.into_iter().map(|(id, depth)| (DestinationId(id), depth)).collect())
    }

    /// How many deliveries wait for all of `destinations` together, counted up to [`MAX_DEPTH`].
    ///
    /// # Errors
    /// After any error the connection must be dropped.
    pub async fn depth_of_all(&mut self, destinations: &[DestinationId]) -> Result<i64, StoreError> {
        let query = schema::query_scalar(DEPTH_OF_ALL).bind(ids(destinations)).bind(MAX_DEPTH);
        in_time(query.fetch_one(&mut self.0)).await
    }
}

fn ids(destinations: &[DestinationId]) -> Vec<Uuid> {
    destinations.iter().map(|id| id.0).collect()
}
