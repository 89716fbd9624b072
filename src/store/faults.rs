//! What cannot be done for a lasting reason, as `check` shows it.

use std::time::Duration;

use sqlx::postgres::PgConnection;
use uuid::Uuid;

use super::{StoreError, in_time};
use crate::model::{DeliveryId, DestinationId};
use crate::store::schema;

/// What was tried in vain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A delivery cannot be read.
    Claim,
    /// The result of a delivery cannot be written.
    Result,
    /// What is remembered of a destination cannot be written.
    State,
    /// A destination cannot be disabled.
    Disable,
    /// A destination cannot be read.
    Load,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 5] = [Kind::Claim, Kind::Result, Kind::State, Kind::Disable, Kind::Load];

    /// As in the column, and in labels.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Claim => "claim",
            Kind::Result => "result",
            Kind::State => "state",
            Kind::Disable => "disable",
            Kind::Load => "load",
        }
    }
}

/// What a fault is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subject {
    /// What was tried.
    pub kind: Kind,
    /// Of which destination.
    pub destination: DestinationId,
    /// Of which delivery, if it is about one.
    pub delivery: Option<DeliveryId>,
}

/// Something that cannot be done.
#[derive(Clone, Debug)]
pub struct Fault {
    /// What.
    pub subject: Subject,
    /// Why not.
    pub message: String,
    /// How often it was tried.
    pub tries: u32,
}

/// Faults that nobody has seen for so long are those of a process that is gone.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(2 * 3600);

const NOTE: &str = "
INSERT INTO public.posthaste_faults (kind, destination_id, delivery_id, message, since, last_seen_at, tries)
SELECT o.kind, o.destination_id, o.delivery_id, o.message, c.now, c.now, o.tries
FROM unnest($1::text[], $2::uuid[], $3::uuid[], $4::text[], $5::int[])
    AS o(kind, destination_id, delivery_id, message, tries)
CROSS JOIN (SELECT timezone('UTC', clock_timestamp()) AS now) c
ON CONFLICT (kind, destination_id, delivery_id) DO UPDATE SET message = excluded.message,
    last_seen_at = excluded.last_seen_at, tries = excluded.tries";

/// Writes faults that are there.
///
/// # Errors
/// Whatever the database says; writing again is harmless.
pub async fn note(connection: &mut PgConnection, faults: &[Fault]) -> Result<(), StoreError> {
    let column = |of: fn(&Fault) -> Uuid| faults.iter().map(of).collect::<Vec<_>>();
    let query = schema::query(NOTE)
        .bind(faults.iter().map(|fault| fault.subject.kind.name()).collect::<Vec<_>>())
        .bind(column(|fault| fault.subject.destination.0))
        .bind(column(|fault| delivery(&fault.subject)))
        .bind(faults.iter().map(|fault| fault.message.replace('\0', "\u{fffd}")).collect::<Vec<_>>())
        .bind(faults.iter().map(|fault| fault.tries.cast_signed()).collect::<Vec<_>>());
    in_time(query.execute(connection)).await.map(drop)
}

const FORGET: &str = "
DELETE FROM public.posthaste_faults f
WHERE (f.kind, f.destination_id, f.delivery_id) IN
        (SELECT * FROM unnest($1::text[], $2::uuid[], $3::uuid[]))
   OR f.last_seen_at < timezone('UTC', clock_timestamp()) - $4::interval";

/// Removes those that are over, and those of processes that are gone.
///
/// # Errors
/// Whatever the database says; removing again is harmless.
pub async fn forget(connection: &mut PgConnection, over: &[Subject]) -> Result<(), StoreError> {
    let query = schema::query(FORGET)
        .bind(over.iter().map(|subject| subject.kind.name()).collect::<Vec<_>>())
        .bind(over.iter().map(|subject| subject.destination.0).collect::<Vec<_>>())
        .bind(over.iter().map(delivery).collect::<Vec<_>>())
        .bind(FORGOTTEN_AFTER);
    in_time(query.execute(connection)).await.map(drop)
}

fn delivery(subject: &Subject) -> Uuid {
    subject.delivery.map_or(subject.destination.0, |delivery| delivery.0)
}
