//! What must hold whatever happened: every integration test ends by checking it.

use std::collections::{HashMap, HashSet};

use sqlx::Row;
use uuid::Uuid;

use super::{Db, Receiver};

/// Matching pairs of destination and event without a delivery. Filters by jsonpath have tests of their own;
/// events from before a destination do not count.
const LOST: &str = r"
    SELECT count(*) FROM webhook_destinations d
    JOIN activity_logs e ON e.org_id = d.org_id AND e.created_at >= d.created_at
    WHERE d.enabled
      AND (coalesce(cardinality(d.event_types), 0) = 0 OR EXISTS (
          SELECT FROM unnest(d.event_types) AS wanted WHERE wanted = e.event_type
          OR (right(wanted, 1) = '*' AND starts_with(e.event_type, left(wanted, -1)))))
      AND NOT coalesce(d.event_filter, '{}') ? '$jsonpath'
      AND e.payload @> coalesce(d.event_filter, '{}')
      AND NOT EXISTS (SELECT FROM webhook_deliveries w WHERE w.destination_id = d.id AND w.log_id = e.id)";

/// Claimed and neither recorded nor given back: 45 s is the length of a lease.
const LEASED: &str = "
    SELECT count(*) FROM webhook_deliveries WHERE status IN ('pending', 'failed')
      AND last_attempt_at > timezone('UTC', clock_timestamp()) - interval '45 s'
      AND (next_retry_at IS NULL OR last_attempt_at >= next_retry_at)";

const OVERCHARGED: &str = "
    SELECT count(*) FROM webhook_deliveries w JOIN webhook_destinations d ON d.id = w.destination_id
    WHERE w.attempts > d.retry_max + 1 OR w.attempts < 0";

const INCONSISTENT: &str = "
    SELECT count(*) FROM webhook_deliveries
    WHERE (status = 'delivered') <> (delivered_at IS NOT NULL)
       OR (status = 'delivered' AND error_message IS NOT NULL)
       OR (status = 'dead' AND error_message IS NULL)
       OR octet_length(response_body) > 16384";

const DELIVERED: &str = "
    SELECT d.url, w.log_id FROM webhook_deliveries w JOIN webhook_destinations d ON d.id = w.destination_id
    WHERE w.status = 'delivered'";

/// How many deliveries are leased at this moment.
pub async fn leased(db: &Db) -> i64 {
    db.number(LEASED).await
}

/// The part of [`check_invariants`] that holds as well where destinations were disabled for a while.
pub async fn check_rows(db: &Db) {
    // Results may still be on their way to the database when the receiver has answered.
    super::eventually("no delivery is leased", async || leased(db).await == 0).await;
    assert_eq!(db.number(OVERCHARGED).await, 0, "deliveries charged more often than allowed");
    assert_eq!(db.number(INCONSISTENT).await, 0, "deliveries whose columns contradict each other");
}

/// Call it when nothing is in flight any more: after the last delivery, or after the program has ended.
/// `receivers` are those whose records tell the truth; destinations elsewhere are not looked at there.
pub async fn check_invariants(db: &Db, receivers: &[&Receiver]) {
    check_rows(db).await;
    assert_eq!(db.number(LOST).await, 0, "matching events without a delivery");
    let accepted: HashMap<String, HashSet<Uuid>> = receivers
        .iter()
        .map(|receiver| (receiver.url(""), receiver.accepted().into_keys().collect()))
        .collect();
    for row in sqlx::query(DELIVERED).fetch_all(&db.pool).await.unwrap() {
        let (url, event): (String, Uuid) = (row.get(0), row.get(1));
        let receiver = accepted.iter().find(|(base, _)| url.starts_with(base.as_str()));
        if let Some((base, events)) = receiver {
            assert!(events.contains(&event), "{event} is delivered, but {base} never accepted it");
        }
    }
}
