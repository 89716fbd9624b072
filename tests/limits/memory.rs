//! Memory: whatever waits, hangs or fails, the process stays below what docs/operations.md says.

use sqlx::AssertSqlSafe;
use sqlx::postgres::PgListener;
use uuid::Uuid;

use crate::common::{Db, Posthaste, Receiver, Reply, check_invariants, eventually};
use crate::destinations;

const MIB: u64 = 1 << 20;
/// `--max-bytes-in-flight` of these tests, and the default of `--max-event-bytes`.
const BUDGET: (&str, &str) = ("POSTHASTE_MAX_BYTES_IN_FLIGHT", "16MiB");
const BUDGET_BYTES: u64 = 16 * MIB;
const MAX_EVENT_BYTES: u64 = 5 * MIB;
/// Hanging requests are given back after this.
const SHORT_GRACE: (&str, &str) = ("POSTHASTE_SHUTDOWN_GRACE", "100ms");

/// The bound of docs/operations.md.
fn bound(budget: u64, destinations: usize) -> u64 {
    100 * MIB + 2 * (budget + MAX_EVENT_BYTES) + destinations as u64 * (MIB / 32)
}

/// The most memory that the program ever had.
fn peak(program: &Posthaste) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", program.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    kib * 1024
}

fn assert_within(program: &Posthaste, bound: u64) {
    let peak = peak(program);
    eprintln!("peak {} MiB of {} MiB", peak / MIB, bound / MIB);
    assert!(peak < bound, "{} MiB is more than {} MiB", peak / MIB, bound / MIB);
}

/// `count` events of five million bytes each; `text` is SQL for what fills them.
async fn large_events(db: &Db, org: Uuid, count: usize, text: &str) {
    let sql = format!(
        "INSERT INTO activity_logs (org_id, event_type, event_category, payload)
         SELECT '{org}', 'large', 'test', jsonb_build_object('text', t.text)
         FROM (SELECT {text} AS text OFFSET 0) t, generate_series(1, {count})"
    );
    db.execute(&sql).await;
}

/// Cannot be compressed.
const NOISE: &str = "(SELECT string_agg(md5(n::text), '') FROM generate_series(1, 156250) n)";
/// Can be, to a hundredth.
const MONOTONY: &str = "repeat('x', 5000000)";

#[tokio::test]
async fn large_events_for_a_hundred_destinations_stay_within_the_bound() {
    for text in [NOISE, MONOTONY] {
        let (db, healthy, hanging) = (Db::new().await, Receiver::sink(), Receiver::with(Reply::Hang));
        let [theirs, ours] = [db.org().await, db.org().await];
        destinations(&db, theirs, &hanging, 50, 1_000).await;
        destinations(&db, ours, &healthy, 50, 30_000).await;
        large_events(&db, theirs, 2, text).await;
        large_events(&db, ours, 2, text).await;
        let mut program = Posthaste::serve_with(&db.url, &[BUDGET, SHORT_GRACE]).await;
        eventually("the healthy ones have all", async || {
            db.deliveries("status = 'delivered' AND attempts = 1").await == 100
        })
        .await;
        eventually("the hanging ones hang", async || hanging.count() >= 5).await;
        assert_within(&program, bound(BUDGET_BYTES, 100));
        assert_eq!(healthy.count(), 100);
        assert!(program.terminate().await.success());
        assert!(!program.log().contains("claiming deliveries failed"), "a claim was too much");
        check_invariants(&db, &[]).await;
    }
}

/// Deliveries that wait; POSTHASTE_TEST_BACKLOG asks for more.
const BACKLOG: usize = 300_000;

#[tokio::test]
async fn a_backlog_of_hundreds_of_thousands_of_rows_stays_within_the_bound() {
    const DESTINATIONS: usize = 300;
    let backlog = std::env::var("POSTHASTE_TEST_BACKLOG").map_or(BACKLOG, |rows| rows.parse().unwrap());
    let (db, receiver) = (Db::new().await, Receiver::with(Reply::Hang));
    let org = db.org().await;
    destinations(&db, org, &receiver, DESTINATIONS, 30_000).await;
    // Without the trigger and the checks of foreign keys, which would take most of the time.
    let mut transaction = db.pool.begin().await.unwrap();
    for sql in [
        "SET LOCAL session_replication_role = replica".to_owned(),
        format!(
            "INSERT INTO activity_logs (org_id, event_type, event_category, payload)
             SELECT '{org}', 'small', 'test', jsonb_build_object('n', n)
             FROM generate_series(1, {}) n",
            backlog / DESTINATIONS
        ),
        "INSERT INTO webhook_deliveries (destination_id, log_id, next_retry_at)
         SELECT d.id, e.id, timezone('UTC', now()) FROM webhook_destinations d, activity_logs e"
            .to_owned(),
    ] {
        sqlx::query(AssertSqlSafe(sql)).execute(&mut *transaction).await.unwrap();
    }
    transaction.commit().await.unwrap();
    let mut program = Posthaste::serve_with(&db.url, &[BUDGET, SHORT_GRACE]).await;
    // What it takes and cannot send, it gives back; whatever it looks at, the number of rows does not matter.
    eventually("all slots are taken", async || receiver.in_flight() >= 750).await;
    let leased = crate::common::leased(&db).await;
    assert!(leased < 100_000, "{leased} leases");
    assert_within(&program, bound(BUDGET_BYTES, DESTINATIONS));
    assert!(program.terminate().await.success());
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn ten_thousand_events_in_one_transaction_are_a_few_notifications_and_no_spike() {
    const EVENTS: usize = 10_000;
    let (db, receiver) = (Db::new().await, Receiver::sink());
    let org = db.org().await;
    for number in 0..10 {
        let destination = db.destination(org, receiver.url(&format!("/{number}")));
        destination.batch_size(100).insert().await;
    }
    let mut program = Posthaste::serve_with(&db.url, &[BUDGET]).await;
    let mut listener = PgListener::connect(db.url.reveal()).await.unwrap();
    listener.listen("posthaste_wake").await.unwrap();
    let mut transaction = db.pool.begin().await.unwrap();
    let half = EVENTS / 2;
    for sql in [
        format!(
            "INSERT INTO activity_logs (org_id, event_type, event_category)
             SELECT '{org}', 'one of many', 'test' FROM generate_series(1, {half})"
        ),
        format!(
            "DO $$ BEGIN FOR n IN 1..{half} LOOP
             INSERT INTO activity_logs (org_id, event_type, event_category) VALUES ('{org}', 'one', 'test');
             END LOOP; END $$"
        ),
    ] {
        sqlx::query(AssertSqlSafe(sql)).execute(&mut *transaction).await.unwrap();
    }
    transaction.commit().await.unwrap();
    db.settled().await;
    assert_eq!(db.deliveries("status = 'delivered' AND attempts = 1").await, 10 * EVENTS as i64);
    db.execute("NOTIFY posthaste_wake, 'the end'").await;
    let mut notifications = 0;
    while listener.recv().await.unwrap().payload() != "the end" {
        notifications += 1;
    }
    // One for each order in which a statement finds the destinations.
    assert!((1..=10).contains(&notifications), "{notifications} notifications");
    assert_within(&program, bound(BUDGET_BYTES, 10));
    assert!(program.terminate().await.success());
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn results_that_cannot_be_written_stay_within_the_bound() {
    const DESTINATIONS: usize = 40;
    let (release, released) = tokio::sync::watch::channel(false);
    let (db, receiver) = (Db::new().await, Receiver::sink());
    let answer = move |_: &_| Reply::HeldFull(200, vec![b'x'; 4096], released.clone());
    receiver.script(answer);
    let org = db.org().await;
    for number in 0..DESTINATIONS {
        let destination = db.destination(org, receiver.url(&format!("/{number}"))).batch_size(100);
        destination.timeout_ms(30_000).setting("max_in_flight", 20).insert().await;
    }
    db.events(org, 1_000).await;
    let budget = [("POSTHASTE_MAX_BYTES_IN_FLIGHT", "32MiB")];
    let mut program = Posthaste::serve_with(&db.url, &budget).await;
    eventually("everything is claimed", async || {
        crate::common::leased(&db).await == 1_000 * DESTINATIONS as i64
    })
    .await;
    let mut lock = db.pool.begin().await.unwrap();
    let sql = "LOCK TABLE webhook_deliveries IN EXCLUSIVE MODE";
    sqlx::query(sql).execute(&mut *lock).await.unwrap();
    release.send(true).unwrap();
    eventually("everything is sent", async || receiver.count() >= 10 * DESTINATIONS).await;
    eventually("results wait", async || program.log().contains("writing results failed")).await;
    lock.rollback().await.unwrap();
    db.settled().await;
    assert_within(&program, bound(2 * BUDGET_BYTES, DESTINATIONS));
    assert_eq!(db.deliveries("status = 'delivered' AND attempts = 1").await, 1_000 * DESTINATIONS as i64);
    assert!(program.terminate().await.success());
    check_invariants(&db, &[]).await;
}
