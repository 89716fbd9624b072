//! Plans that were made before somebody changed a table.

use serde_json::{Value, json};

use crate::Api;
use crate::common::{Db, Receiver, check_invariants};

/// What an application does to its tables while everything runs; each changes the type of something that
/// statements return.
const CHANGES: [&str; 7] = [
    "ALTER TABLE webhook_destinations ALTER name TYPE varchar(300)",
    "ALTER TABLE webhook_destinations ALTER url TYPE varchar(9000)",
    "ALTER TABLE webhook_destinations ALTER signing_secret TYPE text",
    "ALTER TABLE webhook_destinations ALTER auth_type TYPE text",
    "ALTER TABLE webhook_deliveries ALTER response_body TYPE varchar(9000)",
    "ALTER TABLE webhook_deliveries ALTER error_message TYPE varchar(9000)",
    "ALTER TABLE webhook_deliveries ALTER delivered_at TYPE timestamp(6)",
];

#[tokio::test]
async fn a_column_that_changes_its_type_is_noticed_by_nobody() {
    let (db, receiver) = (Db::new().await, Receiver::start());
    let org = db.org().await;
    let destination = db.destination(org, receiver.url("/")).name("plain").insert().await;
    db.destination(org, receiver.url("/")).name("ordered").setting("ordered", true).insert().await;
    let api = Api::on(&db).await;
    let paths =
        ["/destinations".to_owned(), format!("/destinations/{destination}"), "/deliveries".to_owned()];
    let mut events = 0;
    for change in ["SELECT 1"].into_iter().chain(CHANGES).chain([EVENTS, TIMES, REPLANNED]) {
        db.execute(change).await;
        events += 3;
        db.events(org, 3).await;
        db.settled().await;
        assert_eq!(receiver.accepted().len(), events, "{change}");
        let delivery = db.text("SELECT id FROM webhook_deliveries LIMIT 1").await.unwrap();
        // Each of the pool's connections keeps plans of its own.
        for path in paths.iter().chain([&format!("/deliveries/{delivery}")]) {
            for _ in 0..6 {
                let (status, body) = api.get(org, path).await;
                assert_eq!(status, 200, "{change}: {path}: {body}");
            }
        }
        let changed = json!({"timeout_ms": 2_000 + events});
        let (status, body) = api.ask("PATCH", org, &format!("/destinations/{destination}"), changed).await;
        assert_eq!(status, 200, "{change}: {body}");
        let (status, body) =
            api.ask("POST", org, &format!("/deliveries/{delivery}/retry"), Value::Null).await;
        assert_eq!(status, 200, "{change}: {body}");
        db.settled().await;
    }
    let log = api.0.log();
    assert!(!log.contains("cached plan"), "{log}");
    assert!(!log.lines().any(|line| line.contains(" ERROR ") || line.contains(" WARN ")), "{log}");
    check_invariants(&db, &[&receiver]).await;
}

const EVENTS: &str = "ALTER TABLE activity_logs ALTER event_type TYPE text, ALTER client_name TYPE text";
/// What claims return themselves.
const TIMES: &str = "ALTER TABLE webhook_deliveries ALTER last_attempt_at TYPE timestamp(6),
    ALTER created_at TYPE timestamp(6), ALTER next_retry_at TYPE timestamp(6)";
const REPLANNED: &str = "ALTER TABLE webhook_destinations ALTER id SET DEFAULT gen_random_uuid()";
