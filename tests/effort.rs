//! What a delivery costs, in units that do not depend on the machine: statements, rows read, rows written.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Db, Posthaste, Receiver, Reply, check_invariants, eventually};

const DESTINATIONS: i64 = 10;
const EACH: i64 = 1_000;

/// The value of a sample without labels on the page of metrics.
async fn metric(posthaste: &Posthaste, name: &str) -> i64 {
    let (status, page) = posthaste.get("/metrics").await.unwrap();
    assert_eq!(status, 200);
    let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {name} in\n{page}")).parse().unwrap()
}

/// Statements that claimed, and statements that recorded.
async fn statements(posthaste: &Posthaste) -> [i64; 2] {
    [
        metric(posthaste, "posthaste_claim_duration_seconds_count").await,
        metric(posthaste, "posthaste_record_duration_seconds_count").await,
    ]
}

/// How many entries of an index were read; sessions that have ended have told all of theirs.
async fn read_of(db: &Db, index: &str) -> i64 {
    let read = "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname";
    db.number(&format!("{read} = '{index}'")).await
}

/// One of PostgreSQL's counters of `webhook_deliveries`; sessions that have ended have told all of theirs.
async fn counter(db: &Db, column: &str) -> i64 {
    let of = "relid = 'public.webhook_deliveries'::regclass";
    db.number(&format!("SELECT {column} FROM pg_stat_user_tables WHERE {of}")).await
}

#[tokio::test]
async fn a_backlog_costs_few_statements_and_each_row_is_written_twice() {
    let db = Db::new().await;
    let receiver = Receiver::start();
    for _ in 0..DESTINATIONS {
        let org = db.org().await;
        db.destination(org, receiver.url("/")).insert().await;
        db.events(org, EACH as usize).await;
    }
    let all = DESTINATIONS * EACH;
    assert_eq!(db.deliveries("status = 'pending'").await, all);
    db.execute("VACUUM (ANALYZE)").await;
    eventually("the counters know of the deliveries", async || counter(&db, "n_tup_ins").await == all).await;
    let (updated, hot) = (counter(&db, "n_tup_upd").await, counter(&db, "n_tup_hot_upd").await);

    // Polls would look as well, and so would a test that asks the database how far it is.
    let mut posthaste = Posthaste::serve_with(&db.url, &[("POSTHASTE_POLL_INTERVAL", "1h")]).await;
    eventually("all have arrived", async || receiver.count() as i64 == all).await;
    db.settled().await;
    let [claims, records] = statements(&posthaste).await;
    assert!(posthaste.terminate().await.success());
    assert_eq!(receiver.count() as i64, all);

    // A claim brings at least half of what a destination holds ready, and often serves several of them.
    assert!(claims <= all / 16, "{claims} statements claimed {all} deliveries");
    // What ends while a statement is under way is written by the next one.
    assert!(records <= all / 8, "{records} statements wrote {all} results");
    // One update leases and one records, and the first touches no index.
    let updated = counter(&db, "n_tup_upd").await - updated;
    assert!(updated <= all * 21 / 10, "{updated} updates of {all} deliveries");
    let hot = counter(&db, "n_tup_hot_upd").await - hot;
    assert!(hot >= all * 9 / 10, "{hot} HOT updates of {all} deliveries");
    // Each claim goes on where the last one ended.
    let found = read_of(&db, "posthaste_deliveries_due").await;
    assert!(found <= all * 6, "{found} entries of the index were read for {all} deliveries");
    // Beside millions of others, ids lie everywhere: only a result is found by it.
    let by_id = read_of(&db, "webhook_deliveries_pkey").await;
    assert!(by_id <= all * 11 / 10, "{by_id} of {all} deliveries were looked up by id");
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn a_plan_that_was_made_while_nothing_was_due_serves_a_backlog() {
    const EACH: i64 = 100;
    let db = Db::new().await;
    let receiver = Receiver::start();
    let mut orgs = Vec::new();
    for _ in 0..DESTINATIONS {
        let org = db.org().await;
        db.destination(org, receiver.url("/")).insert().await;
        db.destination(org, receiver.url("/")).setting("ordered", "true").insert().await;
        db.events(org, 1).await;
        orgs.push(org);
    }
    // The table has rows, all of them delivered, and PostgreSQL knows it.
    let often = [("POSTHASTE_POLL_INTERVAL", "100ms")];
    let mut posthaste = Posthaste::serve_with(&db.url, &often).await;
    let arrived = async |count: i64| {
        eventually("all have arrived", async || receiver.count() as i64 == count).await;
    };
    arrived(2 * DESTINATIONS).await;
    assert!(posthaste.terminate().await.success());
    db.execute("VACUUM (ANALYZE)").await;

    // Nobody asks the database how far it is: that could use the index that is looked at.
    let mut posthaste = Posthaste::serve_with(&db.url, &often).await;
    db.events(orgs[0], 1).await;
    arrived(2 * DESTINATIONS + 2).await;
    for org in orgs {
        db.events(org, EACH as usize).await;
    }
    arrived(2 * DESTINATIONS + 2 + 2 * DESTINATIONS * EACH).await;
    // Its sessions end, and tell what they have read.
    assert!(posthaste.terminate().await.success());
    let read = read_of(&db, "idx_webhook_deliveries_pending").await;
    // It is in the order of nobody's queue: each claim would look at what is due for all destinations.
    assert_eq!(read, 0, "entries of an index of all destinations were read");
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn a_retry_reads_the_attempts_of_its_own_delivery() {
    const EVENTS: usize = 200;
    let db = Db::new().await;
    let receiver = Receiver::start();
    let org = db.org().await;
    db.destination(org, receiver.url("/")).retry(5, 100).insert().await;
    // PostgreSQL knows that there are no attempts, and the statements are planned by that.
    db.execute("VACUUM (ANALYZE)").await;
    // No breaker opens.
    let settings = [("POSTHASTE_POLL_INTERVAL", "1h"), ("POSTHASTE_BREAKER_THRESHOLD", "1000")];
    let mut posthaste = Posthaste::serve_with(&db.url, &settings).await;
    receiver.script(|request| match request.header("posthaste-attempt") {
        Some("1" | "2") => Reply::Status(500),
        _ => Reply::Status(200),
    });
    db.events(org, EVENTS).await;
    eventually("each has arrived three times", async || receiver.count() == 3 * EVENTS).await;
    assert!(posthaste.terminate().await.success());
    // The order of all attempts is of use to retention only.
    let read = read_of(&db, "posthaste_attempts_started").await;
    assert_eq!(read, 0, "entries of an index of all attempts were read");
    assert_eq!(db.number("SELECT count(*) FROM posthaste_attempts").await, 2 * EVENTS as i64);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn a_poll_does_not_read_what_is_not_due() {
    const WAITING: i64 = 2_000;
    const FOUND: usize = 10;
    let db = Db::new().await;
    let receiver = Receiver::start();
    let mut found = Vec::new();
    for events in [WAITING as usize, FOUND] {
        let org = db.org().await;
        db.destination(org, receiver.url("/")).insert().await;
        found = db.events(org, events).await;
    }
    db.execute("UPDATE webhook_deliveries SET next_retry_at = next_retry_at + interval '1 hour'").await;
    db.execute("VACUUM (ANALYZE)").await;
    let mut posthaste = Posthaste::serve_with(&db.url, &[("POSTHASTE_POLL_INTERVAL", "100ms")]).await;
    for (before, event) in found.into_iter().enumerate() {
        // Nobody is notified: a poll has to find it.
        db.execute(&format!(
            "UPDATE webhook_deliveries SET next_retry_at = next_retry_at - interval '2 hours'
            WHERE log_id = '{event}'"
        ))
        .await;
        eventually("it has arrived", async || receiver.count() > before).await;
    }
    assert!(posthaste.terminate().await.success());
    // The test itself reads all of it once.
    let read = "SELECT (SELECT sum(idx_tup_read)::bigint FROM pg_stat_user_indexes
            WHERE relname = 'webhook_deliveries')
        + (SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'webhook_deliveries')";
    let read = db.number(read).await;
    assert!(read < 5 * WAITING, "{read} rows and entries were read, of {WAITING} that are not due");
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn a_backlog_is_not_looked_through_again_where_vacuum_can_remove_nothing() {
    const EVENTS: usize = 2_000;
    let db = Db::new().await;
    let receiver = Receiver::start();
    let org = db.org().await;
    let destination = db.destination(org, receiver.url("/"));
    let destination = destination.setting("rate_limit_per_second", EVENTS / 8).insert().await;
    db.events(org, EVENTS).await;
    let mut observer = db.pool.begin().await.unwrap();
    for statement in ["SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", "SELECT FROM organizations"] {
        sqlx::query(statement).execute(&mut *observer).await.unwrap();
    }
    let mut posthaste = Posthaste::serve_with(&db.url, &[("POSTHASTE_POLL_INTERVAL", "100ms")]).await;
    eventually("most have arrived", async || receiver.count() >= EVENTS * 3 / 4).await;
    // Its sessions end, and tell what they have read.
    assert!(posthaste.terminate().await.success());
    let found = read_of(&db, "posthaste_deliveries_due").await;
    assert!(found <= 3 * EVENTS as i64, "{found} entries of the index were read for {EVENTS} deliveries");

    observer.rollback().await.unwrap();
    db.execute(&format!(
        "UPDATE posthaste_destination_settings SET rate_limit_per_second = NULL
        WHERE destination_id = '{destination}'"
    ))
    .await;
    let posthaste = Posthaste::serve(&db.url).await;
    db.settled().await;
    drop(posthaste);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn a_single_event_costs_one_statement_that_claims_and_one_that_records() {
    const EVENTS: i64 = 50;
    let db = Db::new().await;
    let receiver = Receiver::start();
    let org = db.org().await;
    db.destination(org, receiver.url("/")).insert().await;
    // Polls would look as well.
    let posthaste = Posthaste::serve_with(&db.url, &[("POSTHASTE_POLL_INTERVAL", "1h")]).await;
    db.events(org, 1).await;
    db.settled().await;
    let before = statements(&posthaste).await;
    for _ in 0..EVENTS {
        db.events(org, 1).await;
        db.settled().await;
    }
    let after = statements(&posthaste).await;
    for (what, before, after) in [("claimed", before[0], after[0]), ("recorded", before[1], after[1])] {
        // One more for what was under way when they were counted first.
        let statements = after - before;
        assert!(statements <= EVENTS + 1, "{statements} statements {what} {EVENTS} events");
    }
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn only_payloads_that_may_print_large_are_measured() {
    let db = Db::new().await;
    let receiver = Receiver::start();
    let org = db.org().await;
    db.destination(org, receiver.url("/")).insert().await;
    let name = db.text("SELECT current_database()").await.unwrap();
    db.execute(&format!("ALTER DATABASE {name} SET track_functions = 'all'")).await;
    let posthaste = Posthaste::serve(&db.url).await;
    let item = r#"{"id": 17, "price": 12.50, "name": "a thing", "tags": ["a", "b"]}"#;
    for payload in ["{}".to_owned(), "null".into(), item.into(), format!("[{}]", vec![item; 30].join(","))] {
        db.event(org, "usual", &payload).await;
        db.settled().await;
    }
    db.event(org, "large", &format!(r#"{{"text": "{}"}}"#, "a".repeat(5_000))).await;
    db.settled().await;
    let calls = "SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_user_functions
        WHERE funcname = 'posthaste_print'";
    eventually("it is measured", async || db.number(calls).await > 0).await;
    assert_eq!(db.number(calls).await, 1);
    drop(posthaste);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn what_cannot_be_claimed_is_not_asked_for_in_a_loop() {
    const EVENTS: i64 = 20;
    let db = Db::new().await;
    let receiver = Receiver::start();
    let org = db.org().await;
    db.destination(org, receiver.url("/")).insert().await;
    // Somebody's trigger keeps all rows as they are.
    db.execute("CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'").await;
    db.execute(
        "CREATE TRIGGER keep BEFORE UPDATE ON webhook_deliveries FOR EACH ROW EXECUTE FUNCTION keep()",
    )
    .await;
    let posthaste = Posthaste::serve_with(&db.url, &[("POSTHASTE_POLL_INTERVAL", "1h")]).await;
    let mut claims = 0;
    for _ in 0..EVENTS {
        db.events(org, 1).await;
        eventually("it is looked for", async || statements(&posthaste).await[0] > claims).await;
        claims = statements(&posthaste).await[0];
    }
    // Each is announced once, and one statement may still be under way when they are counted.
    assert!(claims <= 3 * EVENTS, "{claims} statements claimed nothing of {EVENTS} events");
    db.execute("DROP TRIGGER keep ON webhook_deliveries").await;
    db.events(org, 1).await;
    db.settled().await;
    check_invariants(&db, &[&receiver]).await;
}
