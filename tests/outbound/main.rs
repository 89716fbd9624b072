//! The HTTP client against receivers on real sockets: what it sends, what it makes of every kind of answer,
//! and where it refuses to go.

#[path = "../common/authority.rs"]
mod authority;

mod anything;
mod early;
mod echoes;
mod faults;
mod oauth;
mod receiver;
mod refused;
mod requests;
mod timeouts;
mod tls;
mod trouble;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use posthaste::model::{
    Answer, DbTime, Delivery, DeliveryId, Destination, DestinationId, Event, EventId, OrgId, RetryPolicy,
    Secret, Settings,
};
use posthaste::outbound::{Network, Request, Sender, Target};
use posthaste::policy::egress::Rules;
use uuid::Uuid;

/// Long enough that it ends no test by accident.
const PATIENT: Duration = Duration::from_secs(20);
/// For attempts that are meant to run out of time.
const HASTY: Duration = Duration::from_millis(300);

fn destination(url: String) -> Destination {
    Destination {
        id: DestinationId(Uuid::from_u128(1)),
        org: OrgId(Uuid::from_u128(2)),
        url,
        auth_type: "none".into(),
        auth_config: Secret::new("{}"),
        batch_size: 1,
        timeout: PATIENT,
        retry: RetryPolicy { max: 3, backoff: Duration::from_secs(1) },
        signing_secret: None,
        settings: Settings::default(),
    }
}

fn delivery(number: u128) -> Delivery {
    let event = Event {
        id: EventId(Uuid::from_u128(0x1000 + number)),
        org: OrgId(Uuid::from_u128(2)),
        employee_id: None,
        session_id: None,
        client_name: None,
        client_version: None,
        event_type: "tool_call".into(),
        event_category: "agent_activity".into(),
        content: Some("Called Bash tool".into()),
        payload: r#"{"n": 12345678901234567890.10}"#.into(),
        created_at: "2025-12-23T16:02:19.890000Z".into(),
    };
    Delivery {
        id: DeliveryId(Uuid::from_u128(0x2000 + number)),
        destination: DestinationId(Uuid::from_u128(1)),
        attempts: 0,
        claimed_at: DbTime(0),
        previous_attempt_at: None,
        created_at: DbTime(0),
        first_attempt_at: None,
        event: Arc::new(event),
    }
}

/// A network on which loopback is open.
fn open_network() -> Arc<Network> {
    let allow = ["127.0.0.0/8", "::1/128"].map(|net| net.parse().expect("a network"));
    let rules = Rules { allow: allow.to_vec(), ..Rules::default() };
    Arc::new(Network::new(rules, None).expect("a network without a file of roots"))
}

fn sender(destination: &Destination) -> Sender {
    let network = open_network();
    Sender::new(Target::compile(destination, &network).expect("a destination without fault"), &network)
}

fn now() -> DbTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
    DbTime(since.as_micros() as i64)
}

/// One attempt to deliver a single event.
async fn attempt(sender: &Sender) -> Answer {
    let deliveries = [delivery(1)];
    let request = Request { deliveries: &deliveries, batch: false, attempt_number: 1, started_at: now() };
    sender.attempt(request).await.answer
}

fn failed(answer: Answer) -> String {
    match answer {
        Answer::Failed(message) => message,
        other => panic!("expected a failure, got {other:?}"),
    }
}

fn response(status: u16, body: &str) -> Answer {
    Answer::Response { status, body: body.into(), retry_after: None, broken: None }
}
