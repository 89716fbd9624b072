//! What `posthaste demo` writes into its own database: the part of the application.

use sqlx::postgres::PgConnection;
use uuid::Uuid;

use super::{StoreError, in_time};
use crate::model::{DestinationId, EventId, OrgId, Secret};
use crate::store::schema;

const INSERT_ORGANIZATION: &str = "INSERT INTO public.organizations (name) VALUES ($1) RETURNING id";

/// A new organization.
///
/// # Errors
/// What the database says.
pub async fn insert_organization(conn: &mut PgConnection, name: &str) -> Result<OrgId, StoreError> {
    let insert = schema::query_scalar::<Uuid>(INSERT_ORGANIZATION).bind(name);
    Ok(OrgId(in_time(insert.fetch_one(conn)).await?))
}

/// A destination of the demo, in the terms of `webhook_destinations`.
#[derive(Clone, Debug)]
pub struct NewDestination {
    /// Whose it is.
    pub org: OrgId,
    /// Unique within the organization.
    pub name: String,
    /// Where its receiver listens.
    pub url: String,
    /// Event types to subscribe to; empty: all.
    pub event_types: Vec<String>,
    /// JSON that the payload must contain.
    pub event_filter: String,
    /// Events per request.
    pub batch_size: i32,
    /// Limit of one request.
    pub timeout_ms: i32,
    /// Retries of a delivery.
    pub retry_max: i32,
    /// Delay before the first retry.
    pub retry_backoff_ms: i32,
    /// Signs the requests.
    pub signing_secret: Secret,
}

const INSERT_DESTINATION: &str = "
    INSERT INTO public.webhook_destinations
        (org_id, name, url, event_types, event_filter, batch_size, timeout_ms,
        retry_max, retry_backoff_ms, signing_secret)
    VALUES ($1, $2, $3, $4, $5::jsonb, $6, $7, $8, $9, $10) RETURNING id";

/// A new destination.
///
/// # Errors
/// What the database says.
pub async fn insert_destination(
    conn: &mut PgConnection,
    new: &NewDestination,
) -> Result<DestinationId, StoreError> {
    let insert = schema::query_scalar::<Uuid>(INSERT_DESTINATION)
        .bind(new.org.0)
        .bind(&new.name)
        .bind(&new.url)
        .bind(&new.event_types)
        .bind(&new.event_filter)
        .bind(new.batch_size)
        .bind(new.timeout_ms)
        .bind(new.retry_max)
        .bind(new.retry_backoff_ms)
        .bind(new.signing_secret.reveal());
    Ok(DestinationId(in_time(insert.fetch_one(conn)).await?))
}

/// An event of the demo, in the terms of `activity_logs`.
#[derive(Clone, Debug)]
pub struct NewEvent {
    /// Primary key.
    pub id: EventId,
    /// Whose it is.
    pub org: OrgId,
    /// What happened.
    pub event_type: &'static str,
    /// A sentence about it.
    pub content: String,
    /// JSON.
    pub payload: String,
}

const INSERT_EVENTS: &str = "
    INSERT INTO public.activity_logs (id, org_id, event_type, event_category, content, payload)
    SELECT id, org_id, event_type, 'agent_activity', content, payload::jsonb
    FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[])
        AS new (id, org_id, event_type, content, payload)";

/// Writes events as an application does: one INSERT, committed when this returns.
///
/// # Errors
/// What the database says.
pub async fn insert_events(conn: &mut PgConnection, events: &[NewEvent]) -> Result<(), StoreError> {
    let insert = schema::query(INSERT_EVENTS)
        .bind(events.iter().map(|event| event.id.0).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.org.0).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.event_type).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.content.as_str()).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.payload.as_str()).collect::<Vec<_>>());
    in_time(insert.execute(conn)).await?;
    Ok(())
}

const NOT_DELIVERED: &str = "SELECT count(*) FROM public.webhook_deliveries WHERE status <> 'delivered'";

/// How many deliveries are anything but delivered.
///
/// # Errors
/// What the database says.
pub async fn not_delivered(conn: &mut PgConnection) -> Result<i64, StoreError> {
    in_time(schema::query_scalar(NOT_DELIVERED).fetch_one(conn)).await
}
