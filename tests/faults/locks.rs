//! Locks that others hold: a person in a transaction, an application, a migration.

use sqlx::AssertSqlSafe;
use sqlx::postgres::PgConnection;
use tokio::sync::watch;

use crate::common::{Db, Posthaste, Receiver, Reply, check_invariants, eventually};
use crate::scene::Scene;

async fn execute(connection: &mut PgConnection, sql: &str) {
    sqlx::query(AssertSqlSafe(sql.to_owned())).execute(connection).await.unwrap();
}

fn times(posthaste: &Posthaste, said: &str) -> usize {
    posthaste.log().matches(said).count()
}

async fn is_ready(posthaste: &Posthaste) -> bool {
    posthaste.get("/readyz").await.is_some_and(|(status, _)| status == 200)
}

#[tokio::test]
async fn locked_deliveries_hold_up_only_their_own_results() {
    const LOCKED: usize = 10;
    let db = Db::new().await;
    let (release, released) = watch::channel(false);
    let (locked, other) = (Receiver::with(Reply::Held(200, released)), Receiver::start());
    let (org, other_org) = (db.org().await, db.org().await);
    db.destination(org, locked.url("/")).insert().await;
    db.destination(other_org, other.url("/")).insert().await;
    let mut posthaste = Posthaste::serve(&db.url).await;
    db.events(org, 2 * LOCKED).await;
    eventually("they are in flight", async || locked.in_flight() == 2 * LOCKED).await;
    let mut transaction = db.pool.begin().await.unwrap();
    let lock =
        format!("SELECT FROM webhook_deliveries WHERE last_attempt_at IS NOT NULL LIMIT {LOCKED} FOR UPDATE");
    execute(&mut transaction, &lock).await;
    release.send_replace(true);

    eventually("the results of the others are written", async || {
        db.deliveries("status = 'delivered'").await == LOCKED as i64
    })
    .await;
    // Those that come later are not held up, either.
    db.events(org, LOCKED).await;
    db.events(other_org, 300).await;
    eventually("everything but the locked rows is written", async || {
        db.deliveries("status <> 'delivered'").await == LOCKED as i64
    })
    .await;
    let (status, body) = posthaste.get("/readyz").await.unwrap();
    assert_eq!(status, 200, "{body}");
    assert!(body.contains(&format!("{LOCKED} results wait for rows that somebody has locked")), "{body}");
    let told = "somebody has locked rows";
    eventually("the log says so too", async || times(&posthaste, told) == 1).await;
    transaction.rollback().await.unwrap();
    db.settled().await;

    assert_eq!(db.deliveries("status = 'delivered' AND attempts = 1").await, 3 * LOCKED as i64 + 300);
    assert_eq!((locked.count(), other.count()), (3 * LOCKED, 300), "nothing was sent twice");
    eventually("it says that the rows are written", async || {
        times(&posthaste, "the rows that somebody had locked are written") == 1
    })
    .await;
    assert_eq!(times(&posthaste, " WARN "), 1, "it says once that rows are locked");
    assert_eq!(times(&posthaste, " ERROR "), 0);
    assert!(posthaste.terminate().await.success());
    check_invariants(&db, &[&locked, &other]).await;
}

#[tokio::test]
async fn an_ordered_queue_waits_for_a_result_that_cannot_be_written() {
    let db = Db::new().await;
    let (release, released) = watch::channel(false);
    let (ordered, other) = (Receiver::with(Reply::Held(200, released)), Receiver::start());
    let org = db.org().await;
    db.destination(org, ordered.url("/")).setting("ordered", true).timeout_ms(30_000).insert().await;
    let mut posthaste = Posthaste::serve(&db.url).await;
    let mut events = db.events(org, 1).await;
    eventually("the first is in flight", async || ordered.in_flight() == 1).await;
    let mut transaction = db.pool.begin().await.unwrap();
    execute(&mut transaction, "SELECT FROM webhook_deliveries FOR UPDATE").await;
    release.send_replace(true);
    events.extend(db.events(org, 50).await);
    let other_org = db.org().await;
    db.destination(other_org, other.url("/")).insert().await;
    db.events(other_org, 100).await;
    eventually("the others go on", async || db.deliveries("status = 'delivered'").await == 100).await;
    eventually("the log says it", async || times(&posthaste, "somebody has locked rows") == 1).await;
    assert_eq!(ordered.count(), 1, "nothing overtakes the first");
    transaction.rollback().await.unwrap();
    db.settled().await;

    let sent: Vec<_> = ordered.received().iter().flat_map(|request| request.event_ids()).collect();
    assert_eq!(sent, events, "in order, each once");
    assert!(posthaste.terminate().await.success());
    check_invariants(&db, &[&ordered, &other]).await;
}

#[tokio::test]
async fn locked_destinations_delay_only_what_is_written_about_them() {
    let db = Db::new().await;
    let (gone, broken) = (Receiver::with(Reply::Status(410)), Receiver::with(Reply::Status(500)));
    let healthy = Receiver::start();
    let (org, healthy_org) = (db.org().await, db.org().await);
    db.destination(org, gone.url("/")).name("gone").insert().await;
    db.destination(org, broken.url("/")).name("broken").retry(3, 60_000).insert().await;
    db.destination(healthy_org, healthy.url("/")).insert().await;
    db.events(org, 10).await;
    let mut transaction = db.pool.begin().await.unwrap();
    let lock = format!("SELECT FROM webhook_destinations WHERE org_id = '{org}' FOR UPDATE");
    execute(&mut transaction, &lock).await;
    let environment = [("POSTHASTE_DESTINATION_IN_FLIGHT", "1")];
    let mut posthaste = Posthaste::serve_with(&db.url, &environment).await;
    eventually("it finds them locked", async || times(&posthaste, "somebody has locked rows") == 1).await;
    eventually("both have failed", async || gone.count() > 0 && broken.count() >= 5).await;
    db.events(healthy_org, 300).await;
    let healthy_left = format!(
        "status <> 'delivered' AND destination_id IN (SELECT id FROM webhook_destinations
         WHERE org_id = '{healthy_org}')"
    );
    eventually("the others do not notice", async || db.deliveries(&healthy_left).await == 0).await;
    assert!(is_ready(&posthaste).await);
    let known = "SELECT coalesce(string_agg(name, ' ' ORDER BY name), '') FROM webhook_destinations d
        LEFT JOIN posthaste_destination_state s ON s.destination_id = d.id
        WHERE NOT d.enabled AND disabled_reason LIKE '%410%' OR tripped_at IS NOT NULL";
    assert_eq!(db.text(known).await.as_deref(), Some(""), "nobody can write about the locked ones");
    transaction.rollback().await.unwrap();
    eventually("what is known of them is written", async || {
        db.text(known).await.as_deref() == Some("broken gone")
    })
    .await;

    assert_eq!(gone.count(), 1, "one that is gone is left alone, although that could not be written");
    assert_eq!(times(&posthaste, "somebody has locked rows"), 1);
    assert_eq!(times(&posthaste, "trying again until it works"), 0);
    assert!(posthaste.terminate().await.success());
    check_invariants(&db, &[&gone, &broken, &healthy]).await;
}

#[tokio::test]
async fn the_tables_locked_by_somebody_s_migration() {
    let mut scene = Scene::start().await;
    for table in ["webhook_deliveries", "webhook_destinations"] {
        let release = scene.hold(200).await;
        let mut transaction = scene.db.pool.begin().await.unwrap();
        execute(&mut transaction, &format!("LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")).await;
        release.send_replace(true);
        scene.suffers(&["lock timeout"]).await;
        transaction.rollback().await.unwrap();
        scene.recovers(&format!("{table} locked")).await;
    }
    scene.ends(1).await;
}

#[tokio::test]
async fn a_deadlock_with_somebody_s_transaction() {
    let db = Db::new().await;
    // The dispatcher looks for deadlocks soon, the test late: it is the dispatcher's statement that ends.
    let name = db.text("SELECT current_database()").await.unwrap();
    db.execute(&format!("ALTER DATABASE {name} SET deadlock_timeout = '500 ms'")).await;
    let receiver = Receiver::start();
    let org = db.org().await;
    // Two deliveries whose results are written by one statement.
    db.destination(org, receiver.url("/")).batch_size(2).insert().await;
    let mut posthaste = Posthaste::serve(&db.url).await;
    let mut events = 0;
    let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    let before = db.number(deadlocks).await;
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
        AND application_name = 'posthaste' AND wait_event_type = 'Lock'";
    // On a busy machine the test may come too late: then the wait for the lock has ended before.
    eventually("a deadlock", async || {
        let (release, released) = watch::channel(false);
        receiver.reply(Reply::Held(200, released));
        db.events(org, 2).await;
        events += 2;
        eventually("they are in flight", async || receiver.in_flight() == 1).await;
        let ends = "SELECT string_agg(id::text, ',' ORDER BY id) FROM webhook_deliveries
            WHERE status = 'pending'";
        let ids = db.text(ends).await.unwrap();
        let (first, last) = ids.split_once(',').unwrap();
        let mut transaction = db.pool.begin().await.unwrap();
        execute(&mut transaction, "SET LOCAL deadlock_timeout = '60 s'").await;
        let lock = |id: &str| format!("SELECT FROM webhook_deliveries WHERE id = '{id}' FOR UPDATE");
        execute(&mut transaction, &lock(last)).await;
        release.send_replace(true);
        eventually("the results wait for the lock", async || db.number(waiting).await > 0).await;
        execute(&mut transaction, &lock(first)).await;
        transaction.commit().await.unwrap();
        db.settled().await;
        db.number(deadlocks).await > before
    })
    .await;
    assert_eq!(db.deliveries("status = 'delivered' AND attempts = 1").await, events);
    assert_eq!(times(&posthaste, " ERROR "), 0);
    assert!(posthaste.terminate().await.success());
    check_invariants(&db, &[&receiver]).await;
}
