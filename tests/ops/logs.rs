//! Log lines for machines.

use serde_json::Value;

use crate::common::{Db, Posthaste, Receiver, Reply, check_invariants};

#[tokio::test]
async fn every_line_is_json_and_a_failure_carries_its_ids() {
    let db = Db::new().await;
    let receiver = Receiver::scripted(|request| match request.path.as_str() {
        "/single" => Reply::body(422, "no\n\"good\""),
        _ => Reply::Status(500),
    });
    let org = db.org().await;
    let single = db.destination(org, receiver.url("/single")).retry(1, 100).insert().await;
    let batch = db.destination(org, receiver.url("/batch")).batch_size(5).retry(1, 100).insert().await;
    let broken = db.destination(org, "ftp://nowhere").retry(0, 100).insert().await;
    let events = db.events(org, 1).await;
    let environment =
        [("POSTHASTE_LOG_FORMAT", "json"), ("RUST_LOG", "debug"), ("POSTHASTE_OUTAGE_GRACE", "0")];
    let mut posthaste = Posthaste::serve_with(&db.url, &environment).await;
    db.settled().await;
    assert!(posthaste.terminate().await.success());

    let log = posthaste.log();
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    for line in &lines {
        for member in ["timestamp", "level", "target", "message"] {
            assert!(line[member].is_string(), "no {member}: {line}");
        }
        // Whatever names a destination, a delivery or an event says so in members as well.
        let message = line["message"].as_str().unwrap();
        for id in ["destination", "delivery", "event"] {
            let named = message.split(' ').filter(|word| word.starts_with(&format!("{id}="))).count();
            assert_eq!(named == 1, line[id].is_string(), "{line}");
        }
    }
    let of = |destination: uuid::Uuid, word: &str| {
        let is_one = |line: &&Value| {
            line["destination"] == destination.to_string() && line["message"].as_str().unwrap().contains(word)
        };
        lines.iter().find(is_one).unwrap_or_else(|| panic!("no {word} of {destination} in\n{log}"))
    };
    let failed = of(single, "EventFailed");
    let delivery = format!("SELECT id FROM webhook_deliveries WHERE destination_id = '{single}'");
    assert_eq!(failed["delivery"], db.text(&delivery).await.unwrap());
    assert_eq!((&failed["event"], &failed["attempt"]), (&events[0].to_string().into(), &1.into()));
    assert_eq!(failed["level"], "WARN");
    assert!(of(batch, "DestinationFailed")["delivery"].is_string());
    of(broken, "cannot be used");
    check_invariants(&db, &[&receiver]).await;
}
