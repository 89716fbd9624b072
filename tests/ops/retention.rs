//! Retention: what is deleted, what is kept, and that nobody notices.

use std::time::Duration;

use posthaste::model::{DbTime, DestinationId};
use posthaste::store;
use posthaste::store::retention::{Kind, Pruner, pruned_until};
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use crate::common::{Db, Posthaste, Receiver, check_invariants, eventually};
use crate::page::Page;

/// Old rows are deleted after a day, all kinds of them.
const A_DAY: [(&str, &str); 4] = [
    ("POSTHASTE_RETENTION_DELIVERED", "1d"),
    ("POSTHASTE_RETENTION_DEAD", "1d"),
    ("POSTHASTE_RETENTION_ATTEMPTS", "1d"),
    ("POSTHASTE_RETENTION_JOBS", "1d"),
];
const MANY: usize = 2_500;

/// A destination that is disabled, with `count` deliveries that are settled as `status` and `days` old.
async fn settled(db: &Db, org: Uuid, status: &str, days: u32, count: usize) -> Uuid {
    let id = db.destination(org, "http://127.0.0.1:9/").event_types("{never.event}").insert().await;
    db.execute(&format!("UPDATE webhook_destinations SET enabled = false WHERE id = '{id}'")).await;
    db.execute(&format!(
        "WITH e AS (INSERT INTO activity_logs (org_id, event_type, event_category, created_at)
            SELECT '{org}', 'an.old.event', 'test', timezone('UTC', now()) - interval '{days} d'
            FROM generate_series(1, {count}) RETURNING id, created_at)
        INSERT INTO webhook_deliveries (destination_id, log_id, status, attempts, created_at, last_attempt_at,
            next_retry_at, delivered_at, error_message)
        SELECT '{id}', e.id, '{status}', 1, e.created_at, e.created_at, e.created_at,
            CASE WHEN '{status}' = 'delivered' THEN e.created_at END,
            CASE WHEN '{status}' = 'dead' THEN 'the receiver answered 500' END FROM e"
    ))
    .await;
    db.execute(&format!(
        "INSERT INTO posthaste_attempts
        SELECT id, 1, created_at, 1, 500, NULL, 'the receiver answered 500', true
        FROM webhook_deliveries WHERE destination_id = '{id}'"
    ))
    .await;
    id
}

/// Jobs of `destination` in each state, last changed `days` ago; as many that are done as told.
async fn jobs(db: &Db, destination: Uuid, days: u32, done: usize) {
    db.execute(&format!(
        "INSERT INTO posthaste_jobs (org_id, destination_id, kind, state, range_to, after_at, after_id,
            resume_at, created_at, updated_at)
        SELECT org_id, id, 'backfill', state, t, t, id, t + interval '100 y', t, t
        FROM webhook_destinations, (SELECT timezone('UTC', now()) - interval '{days} d' AS t) AS at,
            unnest(array_fill('done'::text, ARRAY[{done}]) || '{{running, cancelled, failed}}') AS state
        WHERE id = '{destination}'"
    ))
    .await;
}

async fn deliveries_of(db: &Db, destination: Uuid) -> i64 {
    db.deliveries(&format!("destination_id = '{destination}'")).await
}

async fn attempts_of(db: &Db, destination: Uuid) -> i64 {
    let attempts =
        "SELECT count(*) FROM posthaste_attempts a JOIN webhook_deliveries d ON d.id = a.delivery_id";
    db.number(&format!("{attempts} WHERE d.destination_id = '{destination}'")).await
}

async fn a_first_pass_is_over(posthaste: &Posthaste) {
    eventually("the first pass is over", async || {
        let page = Page::of(posthaste).await;
        page.series("posthaste_retention_last_pass_timestamp_seconds").count() > 0
    })
    .await;
}

#[tokio::test]
async fn what_is_settled_and_old_is_deleted_and_the_rest_and_every_event_stay() {
    let db = Db::new().await;
    let receiver = Receiver::start();
    let org = db.org().await;
    let delivered = settled(&db, org, "delivered", 3, MANY).await;
    let dead = settled(&db, org, "dead", 3, 7).await;
    let young = settled(&db, org, "delivered", 0, 5).await;
    let waiting = settled(&db, org, "failed", 3, 5).await;
    db.destination(org, receiver.url("/")).event_types("{test.event}").insert().await;
    let events = db.number("SELECT count(*) FROM activity_logs").await;
    let mut posthaste = Posthaste::serve_with(&db.url, &A_DAY).await;
    eventually("the old ones are gone", async || {
        deliveries_of(&db, delivered).await + deliveries_of(&db, dead).await == 0
    })
    .await;
    let sent = db.events(org, 10).await;
    eventually("events are delivered meanwhile", async || receiver.accepted().len() == sent.len()).await;
    a_first_pass_is_over(&posthaste).await;
    assert_eq!((deliveries_of(&db, young).await, attempts_of(&db, young).await), (5, 5));
    assert_eq!((deliveries_of(&db, waiting).await, attempts_of(&db, waiting).await), (5, 5), "they go on");
    assert_eq!(db.number("SELECT count(*) FROM activity_logs").await, events + 10);
    let page = Page::of(&posthaste).await;
    let deleted = |kind| page.value("posthaste_retention_deleted_rows_total", &[("kind", kind)]);
    assert_eq!((deleted("delivered"), deleted("dead"), deleted("attempts")), (MANY as f64, 7.0, 0.0));
    assert!(posthaste.terminate().await.success());
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn jobs_that_ended_long_ago_are_deleted_and_those_that_run_stay() {
    let db = Db::new().await;
    let org = db.org().await;
    let destination = db.destination(org, "http://127.0.0.1:9/").insert().await;
    jobs(&db, destination, 2, MANY).await;
    jobs(&db, destination, 0, 1).await;
    let mut holder = db.pool.begin().await.unwrap();
    sqlx::query(
        "SELECT FROM posthaste_jobs WHERE state = 'cancelled' ORDER BY updated_at LIMIT 1 FOR UPDATE",
    )
    .execute(&mut *holder)
    .await
    .unwrap();
    let soon = [A_DAY[3], ("POSTHASTE_RETENTION_DEAD", "1s")];
    let mut posthaste = Posthaste::serve_with(&db.url, &soon).await;
    eventually("the old ones are gone but for the locked one", async || {
        db.number("SELECT count(*) FROM posthaste_jobs").await == 6
    })
    .await;
    holder.rollback().await.unwrap();
    eventually("that one, too", async || db.number("SELECT count(*) FROM posthaste_jobs").await == 5).await;
    let states = "SELECT string_agg(state, ' ' ORDER BY updated_at, state) FROM posthaste_jobs";
    assert_eq!(db.text(states).await.as_deref(), Some("running cancelled done failed running"));
    eventually("it is counted", async || {
        let deleted = [("kind", "jobs")];
        let page = Page::of(&posthaste).await;
        page.value("posthaste_retention_deleted_rows_total", &deleted) == MANY as f64 + 2.0
    })
    .await;
    assert!(posthaste.terminate().await.success());
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn by_default_the_dead_are_kept_and_their_attempts_are_not() {
    let db = Db::new().await;
    let org = db.org().await;
    let dead = settled(&db, org, "dead", 400, 5).await;
    let delivered = settled(&db, org, "delivered", 31, 5).await;
    let month = settled(&db, org, "delivered", 29, 5).await;
    jobs(&db, dead, 31, 1).await;
    jobs(&db, dead, 29, 1).await;
    let posthaste = Posthaste::serve(&db.url).await;
    a_first_pass_is_over(&posthaste).await;
    assert_eq!(db.number("SELECT count(*) FROM posthaste_jobs").await, 5);
    assert_eq!((deliveries_of(&db, dead).await, attempts_of(&db, dead).await), (5, 0));
    assert_eq!((deliveries_of(&db, delivered).await, deliveries_of(&db, month).await), (0, 5));
    assert_eq!(attempts_of(&db, month).await, 5);
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn switched_off_everything_is_kept_and_nothing_is_said_about_it() {
    let db = Db::new().await;
    let org = db.org().await;
    let delivered = settled(&db, org, "delivered", 4000, 5).await;
    jobs(&db, delivered, 4000, 1).await;
    let off = A_DAY.map(|(name, _)| (name, "0"));
    let posthaste = Posthaste::serve_with(&db.url, &off).await;
    let page = Page::of(&posthaste).await;
    assert!(!page.text.contains("posthaste_retention"));
    assert_eq!(db.number("SELECT count(*) FROM posthaste_jobs").await, 4);
    assert_eq!((deliveries_of(&db, delivered).await, attempts_of(&db, delivered).await), (5, 5));
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn what_was_deleted_of_each_destination_is_remembered() {
    let db = Db::new().await;
    let org = db.org().await;
    let pruned = settled(&db, org, "delivered", 3, 5).await;
    let whole = settled(&db, org, "delivered", 0, 5).await;
    let newest = format!("SELECT max(created_at) FROM webhook_deliveries WHERE destination_id = '{pruned}'");
    let newest = db.text(&newest).await;
    let posthaste = Posthaste::serve_with(&db.url, &A_DAY).await;
    a_first_pass_is_over(&posthaste).await;
    let remembered =
        format!("SELECT pruned_until FROM posthaste_retention WHERE destination_id = '{pruned}'");
    assert_eq!(db.text(&remembered).await, newest);
    let options = store::options(&db.url).unwrap();
    let mut connection = store::connect(&options).await.unwrap();
    let until = pruned_until(&mut connection, DestinationId(pruned)).await.unwrap();
    assert!(until.is_some_and(|until| until > DbTime(0)));
    assert_eq!(pruned_until(&mut connection, DestinationId(whole)).await.unwrap(), None);
    db.execute(&format!("DELETE FROM webhook_destinations WHERE id = '{pruned}'")).await;
    assert_eq!(db.number("SELECT count(*) FROM posthaste_retention").await, 0);
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn a_row_that_somebody_locks_is_passed_over_and_goes_in_a_later_pass() {
    let db = Db::new().await;
    let org = db.org().await;
    let delivered = settled(&db, org, "delivered", 3, 20).await;
    let mut holder = db.pool.begin().await.unwrap();
    sqlx::query("SELECT FROM webhook_deliveries ORDER BY id LIMIT 1 FOR UPDATE")
        .execute(&mut *holder)
        .await
        .unwrap();
    let soon = [A_DAY[0], ("POSTHASTE_RETENTION_DEAD", "1s"), A_DAY[2]];
    let posthaste = Posthaste::serve_with(&db.url, &soon).await;
    eventually("all others are gone", async || deliveries_of(&db, delivered).await == 1).await;
    a_first_pass_is_over(&posthaste).await;
    assert_eq!(Page::of(&posthaste).await.value("posthaste_retention_failures_total", &[]), 0.0);
    holder.rollback().await.unwrap();
    eventually("now that one is, too", async || deliveries_of(&db, delivered).await == 0).await;
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn one_process_at_a_time_deletes() {
    let db = Db::new().await;
    let org = db.org().await;
    let delivered = settled(&db, org, "delivered", 3, 5).await;
    let options = store::options(&db.url).unwrap();
    let other = Pruner::connect(&options).await.unwrap().expect("nobody prunes yet");
    assert!(Pruner::connect(&options).await.unwrap().is_none());
    let soon = [A_DAY[0], ("POSTHASTE_RETENTION_DEAD", "1s"), A_DAY[2]];
    let mut posthaste = Posthaste::serve_with(&db.url, &soon).await;
    eventually("it has tried", async || posthaste.log().contains("another process is deleting")).await;
    assert_eq!(deliveries_of(&db, delivered).await, 5);
    other.close().await;
    eventually("it prunes", async || deliveries_of(&db, delivered).await == 0).await;
    assert!(posthaste.terminate().await.success());
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn old_rows_are_found_by_their_indexes_and_not_by_reading_the_tables() {
    let db = Db::new().await;
    let setup = Db::at(db.url.clone());
    let org = setup.org().await;
    settled(&setup, org, "delivered", 3, MANY).await;
    settled(&setup, org, "dead", 3, 5).await;
    settled(&setup, org, "failed", 3, 5).await;
    settled(&setup, org, "delivered", 0, 4 * MANY).await;
    let destination = setup.destination(org, "http://127.0.0.1:9/").insert().await;
    jobs(&setup, destination, 3, MANY).await;
    jobs(&setup, destination, 0, 4 * MANY).await;
    setup.pool.close().await;
    let options = store::options(&db.url).unwrap().options([("search_path", "public")]);
    let mut observer = store::connect(&options).await.unwrap();
    let mut number = async |sql: &str| -> i64 {
        sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(&mut observer).await.unwrap()
    };
    // Sessions report what they did at their end.
    let others = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'";
    eventually("the others have ended", async || number(others).await == 0).await;
    let scans = "SELECT sum(seq_scan)::bigint FROM pg_stat_user_tables
        WHERE relname IN ('webhook_deliveries', 'posthaste_attempts', 'posthaste_jobs')";
    let before = number(scans).await;

    let mut pruner = Pruner::connect(&options).await.unwrap().expect("nobody else prunes");
    let day = Duration::from_secs(86_400);
    let many = MANY as u64;
    for (kind, expected) in
        [(Kind::Delivered, many), (Kind::Dead, 5), (Kind::Attempts, 0), (Kind::Jobs, many + 2)]
    {
        let (mut deleted, mut since) = (0, Some(DbTime(i64::MIN)));
        while let Some(from) = since {
            let pruned = pruner.prune(kind, day, from, 1_000).await.unwrap();
            deleted += pruned.deleted;
            since = pruned.next;
        }
        assert_eq!(deleted, expected, "{kind:?}");
    }
    pruner.close().await;
    eventually("that session has ended", async || number(others).await == 0).await;
    for index in [
        "posthaste_deliveries_delivered",
        "posthaste_deliveries_dead",
        "posthaste_attempts_started",
        "posthaste_jobs_ended",
    ] {
        let used = format!("SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = '{index}'");
        assert!(number(&used).await > 0, "{index}");
    }
    assert_eq!(number(scans).await, before);
    // Each stops where the young ones begin.
    for index in ["posthaste_deliveries_delivered", "posthaste_attempts_started", "posthaste_jobs_ended"] {
        let read = format!("SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = '{index}'");
        let read = number(&read).await;
        // All are of the same moment: each statement begins with what the ones before it have deleted.
        assert!(read < 3 * MANY as i64, "{index}: {read} entries were read to find at most {}", MANY + 10);
    }
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn a_claim_still_writes_no_index_entries() {
    let db = Db::new().await;
    let org = db.org().await;
    db.destination(org, "http://127.0.0.1:9/").insert().await;
    // Room on the page is what such an update needs besides.
    db.execute("ALTER TABLE webhook_deliveries SET (fillfactor = 30)").await;
    db.events(org, 50).await;
    db.execute("UPDATE webhook_deliveries SET last_attempt_at = timezone('UTC', clock_timestamp())").await;
    let of =
        |what: &str| format!("SELECT {what} FROM pg_stat_user_tables WHERE relname = 'webhook_deliveries'");
    eventually("it is counted", async || db.number(&of("n_tup_upd")).await == 50).await;
    assert_eq!(db.number(&of("n_tup_hot_upd")).await, 50);
    db.execute("UPDATE webhook_deliveries SET last_attempt_at = NULL").await;
    check_invariants(&db, &[]).await;
}
