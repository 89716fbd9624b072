//! Trying a destination out: one signed event through the very path of deliveries, neither stored nor tried
//! again.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{Setup, written};
use crate::clock::{self, DbClock};
use crate::manage::Fault;
use crate::model::{
    Answer, DbTime, Delivery, DeliveryId, Destination, DestinationId, Event, EventId, OPERATIONAL_CATEGORY,
    OrgId,
};
use crate::outbound::{Network, Request, Sender, Target};
use crate::policy::classify::{Verdict, classify, message};
use crate::store::Connection;
use crate::store::destinations::managed;

/// The type of the event that is sent.
const TEST_TYPE: &str = "webhook.test";

/// What came of it.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = TestResult)]
pub struct TestView {
    /// Whether a delivery would count as delivered.
    pub delivered: bool,
    /// HTTP status of the answer, if one came.
    pub response_status: Option<u16>,
    /// How long it took.
    pub latency_ms: u64,
    /// The first 4 KiB of the answer.
    pub response_body: Option<String>,
    /// What went wrong; null: nothing.
    pub error_message: Option<String>,
    /// The id of the event that was sent, which the receiver saw as `webhook-id`.
    pub event_id: Uuid,
}

/// A test that is ready to be run, without the database: no connection is held during a request.
pub struct Probe {
    destination: Destination,
    network: Arc<Network>,
    clock: DbClock,
}

/// Prepares a test of a destination of `org`, enabled or not.
///
/// # Errors
/// [`Fault::NotFound`]; [`Fault::Conflict`] where a secret cannot be decrypted; [`Fault::Store`].
pub async fn prepare(
    db: &mut Connection,
    org: OrgId,
    id: DestinationId,
    setup: Setup<'_>,
) -> Result<Probe, Fault> {
    let destination = written(db, org, id).await?.destination;
    let opened = setup.keys.open_all(destination);
    let destination = opened.map_err(|locked| Fault::Conflict(locked.to_string()))?;
    let clock = DbClock::new(managed::clock(db).await?, clock::now());
    Ok(Probe { destination, network: setup.network.clone(), clock })
}

impl Probe {
    /// Sends the event. It takes no longer than the destination's timeout. Not `Send`, as connections are
    /// not: it runs on an actix runtime.
    pub async fn run(self) -> TestView {
        let Probe { destination, network, clock } = self;
        let started_at = clock.now();
        let delivery = delivery(&destination, started_at);
        let event_id = delivery.event.id.0;
        let sent = match Target::compile(&destination, &network) {
            Ok(target) => {
                let batch = destination.batch_size > 1;
                let request = Request { deliveries: &[delivery], batch, attempt_number: 1, started_at };
                let attempt = Sender::new(target, &network).attempt(request).await;
                (attempt.answer, attempt.duration)
            }
            Err(fault) => (Answer::Failed(fault.to_string()), Duration::ZERO),
        };
        view(event_id, sent)
    }
}

fn view(event_id: Uuid, (answer, duration): (Answer, Duration)) -> TestView {
    let delivered = classify(&answer, 1, clock::wall()) == Verdict::Delivered;
    let error_message = (!delivered).then(|| message(&answer));
    let (response_status, response_body) = match answer {
        Answer::Response { status, body, .. } => (Some(status), Some(body)),
        Answer::Failed(_) | Answer::OurFault(_) => (None, None),
    };
    let latency_ms = duration.as_millis() as u64;
    TestView { delivered, response_status, latency_ms, response_body, error_message, event_id }
}

/// The event, as if it had been claimed.
fn delivery(destination: &Destination, now: DbTime) -> Delivery {
    let event = Event {
        id: EventId(Uuid::new_v4()),
        org: destination.org,
        employee_id: None,
        session_id: None,
        client_name: None,
        client_version: None,
        event_type: TEST_TYPE.into(),
        event_category: OPERATIONAL_CATEGORY.into(),
        content: Some("A test of this destination, sent by hand".into()),
        payload: format!(r#"{{"destination_id": "{}", "test": true}}"#, destination.id),
        created_at: now.iso(),
    };
    Delivery {
        id: DeliveryId(Uuid::new_v4()),
        destination: destination.id,
        attempts: 0,
        claimed_at: now,
        previous_attempt_at: None,
        created_at: now,
        first_attempt_at: None,
        event: Arc::new(event),
    }
}
