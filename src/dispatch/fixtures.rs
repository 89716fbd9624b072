//! What the unit tests of these modules share.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::{BatchRules, Leased, Rules};
use crate::model::{DbTime, Delivery, DeliveryId, DestinationId, Event, EventId, OrgId, RetryPolicy};
use crate::policy::health::Limits;

/// The lease of a delivery that was claimed now.
pub const LEASE: Duration = Duration::from_secs(45);

/// Those of a destination without settings.
pub fn rules() -> Rules {
    Rules {
        destination: DestinationId(Uuid::nil()),
        org: OrgId(Uuid::nil()),
        batch: BatchRules { events: 1, bytes: 1 << 20, wait: Duration::ZERO, always: false },
        timeout: Duration::from_secs(5),
        retry: RetryPolicy { max: 3, backoff: Duration::from_secs(1) },
        max_retry_delay: Duration::from_secs(3600),
        outage_grace: Duration::from_secs(86_400),
        limits: Limits { threshold: 5, auto_disable_after: Duration::ZERO },
        max_in_flight: 32,
        ordered: false,
        rate_per_second: None,
        rate_burst: None,
        max_age: None,
        max_event_bytes: 1 << 20,
    }
}

/// The `n`-th delivery, leased now.
pub fn leased(n: u128) -> Leased<()> {
    let event = Event {
        id: EventId(Uuid::from_u128(n)),
        org: OrgId(Uuid::nil()),
        employee_id: None,
        session_id: None,
        client_name: None,
        client_version: None,
        event_type: "test".into(),
        event_category: "test".into(),
        content: None,
        payload: "{}".into(),
        created_at: String::new(),
    };
    let delivery = Delivery {
        id: DeliveryId(Uuid::from_u128(n)),
        destination: DestinationId(Uuid::nil()),
        attempts: 0,
        claimed_at: DbTime(1_000),
        previous_attempt_at: None,
        created_at: DbTime(n as i64),
        first_attempt_at: None,
        event: Arc::new(event),
    };
    Leased::new(delivery, false, 10, crate::clock::now() + LEASE, ())
}
