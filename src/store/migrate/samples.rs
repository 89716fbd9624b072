//! The rows that our statements leave behind, for the preflight to try.

use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use super::trial::Sample;
use crate::model::DbTime;

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// The time of so many seconds ago: what a CHECK says may depend on it.
fn ago(seconds: u64) -> String {
    let now = crate::clock::wall().duration_since(UNIX_EPOCH).unwrap_or_default();
    let then = now.saturating_sub(Duration::from_secs(seconds));
    DbTime(i64::try_from(then.as_micros()).unwrap_or(i64::MAX)).iso()
}

/// Deliveries as the trigger, claims, results and replays leave them. Longer answers and messages are not
/// kept; what the encoding of the database lacks is replaced.
pub fn deliveries(encoding: &str) -> Vec<Sample> {
    let character = if encoding == "UTF8" { "\u{fffd}" } else { "?" };
    let (earlier, later) = (ago(2), ago(1));
    let queued = object(json!({
        "id": "00000000-0000-4000-8000-000000000001",
        "destination_id": "00000000-0000-4000-8000-000000000002",
        "log_id": "00000000-0000-4000-8000-000000000003", "status": "pending", "attempts": 0,
        "next_retry_at": earlier, "created_at": earlier,
    }));
    let sample = |what, changes: &[Value]| {
        let mut row = queued.clone();
        changes.iter().for_each(|change| row.extend(object(change.clone())));
        Sample { what, row }
    };
    let claimed = json!({"last_attempt_at": later});
    let answered = |status: u16| {
        json!({"response_status": status, "response_body": character.repeat(4096),
            "error_message": "x".repeat(1000), "next_retry_at": later})
    };
    let unanswered = json!({"response_status": null, "response_body": null, "next_retry_at": later,
        "error_message": "timed out"});
    let delivered = json!({"status": "delivered", "delivered_at": later, "response_status": 200,
        "error_message": null});
    let failed = json!({"status": "failed", "attempts": 1});
    let dead = json!({"status": "dead", "attempts": 1});
    vec![
        sample("a new delivery (status pending)", &[]),
        sample("a claimed delivery (last_attempt_at)", std::slice::from_ref(&claimed)),
        sample("a paused delivery (status pending)", &[claimed.clone(), answered(429)]),
        sample("a failed delivery (status failed)", &[claimed.clone(), answered(503), failed.clone()]),
        sample("a failed delivery (status failed)", &[claimed.clone(), unanswered.clone(), failed.clone()]),
        sample(
            "a failed delivery after ten retries (attempts)",
            &[claimed.clone(), answered(500), failed, json!({"attempts": 11})],
        ),
        sample(
            "a delivered one (status delivered)",
            &[claimed.clone(), delivered.clone(), json!({"attempts": 1})],
        ),
        sample(
            "a delivered one (status delivered)",
            &[claimed.clone(), delivered.clone(), json!({"attempts": 1, "response_body": ""})],
        ),
        sample(
            "a delivered one after ten retries (attempts)",
            &[claimed.clone(), delivered, json!({"attempts": 11})],
        ),
        sample("a dead one (status dead)", &[claimed.clone(), answered(410), dead.clone()]),
        sample("a dead one (status dead)", &[claimed.clone(), unanswered, dead, json!({"attempts": 0})]),
        sample(
            "a replayed one (status pending)",
            &[
                claimed,
                json!({"response_status": 200, "delivered_at": null, "error_message": "x",
                    "next_retry_at": later}),
            ],
        ),
    ]
}

/// A plain destination, enabled and disabled.
pub fn destinations() -> Vec<Sample> {
    let plain = object(json!({
        "id": "00000000-0000-4000-8000-000000000002", "org_id": "00000000-0000-4000-8000-000000000004",
        "name": "a destination", "url": "https://example.com/hook", "auth_type": "none", "auth_config": {},
        "event_types": [], "event_filter": {}, "enabled": true, "batch_size": 1, "timeout_ms": 5000,
        "retry_max": 3, "retry_backoff_ms": 1000, "signing_secret": null,
        "created_at": ago(2), "updated_at": ago(1),
    }));
    let mut disabled = plain.clone();
    disabled.insert("enabled".into(), json!(false));
    vec![
        Sample { what: "an ordinary destination", row: plain },
        Sample { what: "a disabled destination", row: disabled },
    ]
}
