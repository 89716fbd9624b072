//! `/metrics`.

use std::collections::BTreeSet;
use std::time::Duration;

use posthaste::admin::metrics::FAMILIES;
use tokio::sync::watch;
use uuid::Uuid;

use crate::common::{Db, Posthaste, Receiver, Reply, Server, check_invariants, eventually};
use crate::page::{Page, promtool};

const QUEUE_DEPTH: &str = "posthaste_destination_queue_depth";
const OLDEST: &str = "posthaste_destination_oldest_pending_age_seconds";
const BREAKER: &str = "posthaste_destination_breaker_state";
const ATTEMPTS: &str = "posthaste_destination_attempts_total";

/// A page on which something is to be seen that is only measured every few seconds.
async fn page_with(posthaste: &Posthaste, what: &str, holds: impl Fn(&Page) -> bool) -> Page {
    let mut page = Page::of(posthaste).await;
    eventually(what, async || {
        page = Page::of(posthaste).await;
        holds(&page)
    })
    .await;
    page
}

/// Fails for the first time with 500, is asked for a pause at the path `/pauses`, refuses at `/refuses`.
fn moody(request: &crate::common::Received) -> Reply {
    match (request.path.as_str(), request.header("posthaste-attempt")) {
        ("/pauses", _) => Reply::header(429, "retry-after", "3600"),
        ("/refuses", _) => Reply::Status(422),
        (_, Some("1")) => Reply::Status(500),
        _ => Reply::Status(200),
    }
}

#[tokio::test]
async fn what_is_exported_is_what_is_declared_and_promtool_finds_no_fault() {
    let db = Db::new().await;
    let receiver = Receiver::scripted(moody);
    let org = db.org().await;
    db.destination(org, receiver.url("/")).name("a-name-of-ours").retry(3, 100).insert().await;
    db.event(org, "test.event", r#"{"a": "content-of-ours"}"#).await;
    let mut posthaste = Posthaste::serve(&db.url).await;
    db.settled().await;
    let page = page_with(&posthaste, "a pass of retention and a measurement", |page| {
        page.series("posthaste_retention_last_pass_timestamp_seconds").count() > 0
            && page.series(QUEUE_DEPTH).count() > 0
    })
    .await;

    let declared: BTreeSet<&str> = FAMILIES.iter().map(|family| family.name).collect();
    assert_eq!(page.types.keys().map(String::as_str).collect::<BTreeSet<_>>(), declared);
    let (names, labels) = page.names();
    for family in FAMILIES {
        assert_eq!(page.types[family.name], family.kind);
        assert!(family.name.starts_with("posthaste_") || family.name.starts_with("process_"));
        assert_eq!(family.name.ends_with("_total"), family.kind == "counter", "{}", family.name);
        let sample = if family.kind == "histogram" { "_count" } else { "" };
        assert!(names.contains(&*format!("{}{sample}", family.name)), "no sample of {}", family.name);
    }
    let known = FAMILIES.iter().flat_map(|family| family.labels.split(", ")).chain(["le"]);
    assert!(labels.is_subset(&known.collect()), "{labels:?}");
    for secret in ["a-name-of-ours", "content-of-ours", &receiver.address().to_string(), "test.event"] {
        assert!(!page.text.contains(secret), "{secret} is on the page");
    }
    promtool(&["check", "metrics"], &page.text);
    assert!(posthaste.terminate().await.success());
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn the_figures_of_a_destination_are_what_its_receiver_saw() {
    let db = Db::new().await;
    let receiver = Receiver::scripted(moody);
    let org = db.org().await;
    let flaky = db.destination(org, receiver.url("/")).retry(3, 100).insert().await;
    let pausing = db.destination(org, receiver.url("/pauses")).insert().await;
    let refusing = db.destination(org, receiver.url("/refuses")).retry(0, 100).insert().await;
    let posthaste = Posthaste::serve_with(&db.url, &[("POSTHASTE_BREAKER_THRESHOLD", "1000")]).await;
    db.events(org, 10).await;
    let rest = format!("destination_id <> '{pausing}' AND status IN ('pending', 'failed')");
    eventually("everything but the paused is settled", async || db.deliveries(&rest).await == 0).await;
    let page = page_with(&posthaste, "nothing is in flight and the queue has been measured", |page| {
        page.value("posthaste_requests_in_flight", &[]) == 0.0
            && page.find(QUEUE_DEPTH, &[("destination", &pausing.to_string())]) == Some(10.0)
    })
    .await;

    let org = org.to_string();
    let attempts = |destination: Uuid, outcome: &str| {
        let labels =
            [("destination", &*destination.to_string()), ("organization", &org), ("outcome", outcome)];
        page.value(ATTEMPTS, &labels)
    };
    assert_eq!((attempts(flaky, "failed"), attempts(flaky, "delivered")), (10.0, 10.0));
    assert_eq!((attempts(refusing, "refused"), attempts(refusing, "delivered")), (10.0, 0.0));
    let pauses = receiver.received().iter().filter(|request| request.path == "/pauses").count() as f64;
    assert_eq!(attempts(pausing, "paused"), pauses);
    assert_eq!(page.value("posthaste_attempts_total", &[("outcome", "paused")]), pauses);
    assert_eq!(page.value("posthaste_retries_total", &[]), 10.0);
    for (result, count) in [("delivered", 10.0), ("failed", 10.0), ("dead", 10.0), ("postponed", pauses)] {
        assert_eq!(page.value("posthaste_deliveries_total", &[("result", result)]), count, "{result}");
    }
    let all = receiver.received().len() as f64;
    assert_eq!(page.value("posthaste_attempt_duration_seconds_count", &[]), all);
    assert_eq!(page.value("posthaste_attempt_duration_seconds_bucket", &[("le", "+Inf")]), all);
    let labels = [("destination", &*flaky.to_string())];
    assert_eq!(page.value("posthaste_destination_attempt_duration_seconds_count", &labels), 20.0);
    assert!(page.value("posthaste_destination_attempt_duration_seconds_sum", &labels) > 0.0);
    assert_eq!(page.value(OLDEST, &labels), 0.0, "nothing waits");
    assert!(page.value(OLDEST, &[("destination", &pausing.to_string())]) > 0.0);
    assert_eq!(page.value("posthaste_destinations", &[]), 3.0);
    assert!(page.value("posthaste_claimed_deliveries_total", &[]) >= 30.0);
    assert!(page.value("posthaste_record_duration_seconds_count", &[]) >= 1.0);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn what_is_in_flight_and_a_breaker_that_trips_are_seen_at_once() {
    let db = Db::new().await;
    let (answer, held) = watch::channel(false);
    let receiver = Receiver::with(Reply::Held(500, held));
    let org = db.org().await;
    let id = db.destination(org, receiver.url("/")).retry(3, 100).timeout_ms(30_000).insert().await;
    let posthaste = Posthaste::serve_with(&db.url, &[("POSTHASTE_BREAKER_THRESHOLD", "2")]).await;
    db.events(org, 2).await;
    let id = id.to_string();
    let labels = [("destination", &*id)];
    eventually("both are in flight", async || receiver.in_flight() == 2).await;
    let page = Page::of(&posthaste).await;
    assert_eq!(page.value("posthaste_destination_requests_in_flight", &labels), 2.0);
    assert_eq!(page.value("posthaste_requests_in_flight", &[]), 2.0);
    assert_eq!(page.value("posthaste_connections_open", &[]), 2.0);
    assert_eq!(page.value(BREAKER, &labels), 0.0);
    assert_eq!(page.value("posthaste_breakers", &[("state", "closed")]), 1.0);
    answer.send(true).unwrap();
    let tripped = |page: &Page| page.value(BREAKER, &labels) == 2.0;
    let page = page_with(&posthaste, "the breaker has tripped", tripped).await;
    assert_eq!(page.value("posthaste_breakers", &[("state", "tripped")]), 1.0);
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn beyond_the_limit_destinations_are_added_up_as_other() {
    let db = Db::new().await;
    let receiver = Receiver::scripted(moody);
    let org = db.org().await;
    for _ in 0..3 {
        db.destination(org, receiver.url("/pauses")).insert().await;
    }
    let limit = [("POSTHASTE_METRICS_MAX_DESTINATIONS", "1")];
    let posthaste = Posthaste::serve_with(&db.url, &limit).await;
    db.events(org, 4).await;
    let paused = "SELECT count(DISTINCT destination_id) FROM webhook_deliveries WHERE response_status = 429";
    eventually("all three pause", async || db.number(paused).await == 3).await;
    let other = [("destination", "other"), ("organization", "other")];
    let page = page_with(&posthaste, "nothing is in flight and the queues have been measured", |page| {
        page.value("posthaste_requests_in_flight", &[]) == 0.0
            && page.find(QUEUE_DEPTH, &other) == Some(8.0)
            && page.series(QUEUE_DEPTH).any(|(_, depth)| depth == 4.0)
    })
    .await;
    assert_eq!(page.value("posthaste_destinations_left_out", &[]), 2.0);
    assert_eq!(page.series(QUEUE_DEPTH).count(), 2);
    assert_eq!(page.series(BREAKER).count(), 1, "a sum has no breaker");
    assert!(page.value(OLDEST, &other) > 0.0);
    let sum: f64 = page.series(ATTEMPTS).map(|(_, count)| count).sum();
    assert_eq!(sum, receiver.received().len() as f64);
    assert!(page.value(ATTEMPTS, &[other[0], ("outcome", "paused")]) >= 2.0);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn a_queue_is_counted_up_to_ten_thousand() {
    let db = Db::new().await;
    let receiver = Receiver::with(Reply::header(429, "retry-after", "3600"));
    let org = db.org().await;
    db.destination(org, receiver.url("/")).insert().await;
    db.events(org, 10_050).await;
    let posthaste = Posthaste::serve(&db.url).await;
    let full = |page: &Page| page.series(QUEUE_DEPTH).any(|(_, depth)| depth == 10_000.0);
    page_with(&posthaste, "the queue has been counted", full).await;
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn a_scrape_answers_with_what_the_process_knows_while_the_database_is_down() {
    let mut server = Server::start();
    let db = server.db().await;
    let receiver = Receiver::start();
    let org = db.org().await;
    let id = db.destination(org, receiver.url("/")).insert().await.to_string();
    let posthaste = Posthaste::serve(&db.url).await;
    db.events(org, 3).await;
    db.settled().await;
    let is_up = |page: &Page| page.value("posthaste_database_up", &[]);
    page_with(&posthaste, "all is well", |page| {
        is_up(page) == 1.0 && page.value("posthaste_ready", &[]) == 1.0
    })
    .await;
    server.crash();
    let page = page_with(&posthaste, "the page says so", |page| is_up(page) == 0.0).await;
    assert_eq!(page.value("posthaste_ready", &[]), 0.0);
    assert!(page.value("posthaste_problems", &[]) >= 1.0);
    assert_eq!(page.value(ATTEMPTS, &[("destination", &id), ("outcome", "delivered")]), 3.0);
    assert!(page.value("process_resident_memory_bytes", &[]) > 1e6);
    server.restart();
    let page = page_with(&posthaste, "all is well again", |page| is_up(page) == 1.0).await;
    assert_eq!(page.value(ATTEMPTS, &[("destination", &id), ("outcome", "delivered")]), 3.0);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn the_process_is_described_as_the_system_sees_it() {
    let db = Db::new().await;
    let posthaste = Posthaste::serve(&db.url).await;
    let page = Page::of(&posthaste).await;
    let open = std::fs::read_dir(format!("/proc/{}/fd", posthaste.pid())).unwrap().count() as f64;
    // A connection or two may have come or gone in between.
    assert!((page.value("process_open_fds", &[]) - open).abs() <= 8.0);
    assert!(page.value("process_max_fds", &[]) >= open);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let age = now.as_secs_f64() - page.value("process_start_time_seconds", &[]);
    assert!((-2.0..Duration::from_secs(600).as_secs_f64()).contains(&age), "{age} s old");
    assert!(page.value("process_cpu_seconds_total", &[]) > 0.0);
    assert_eq!(page.value("posthaste_build_info", &[("version", posthaste::VERSION)]), 1.0);
}
