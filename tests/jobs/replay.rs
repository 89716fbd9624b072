//! Replays, and retries by hand.

use std::collections::HashSet;
use std::time::Duration;

use posthaste::model::{DeliveryId, JobId, OrgId, Status};
use posthaste::store::deliveries::retry;
use posthaste::store::jobs::{self, Kind, Pace, Spec, State};
use sqlx::Row as _;
use uuid::Uuid;

use crate::common::{Db, Posthaste, Receiver, Reply, check_invariants, eventually};
use crate::{connection, count, finish, run, spec};

/// A batch of two rows, and the next one at once.
const SMALL: Pace = Pace { rows: 2, look: 5, pause: Duration::ZERO, patience: Duration::ZERO };

/// Makes all deliveries dead that are there, as a long outage would.
async fn bury(db: &Db) {
    let dead = "UPDATE webhook_deliveries SET status = 'dead', attempts = 4, error_message = 'it failed',
        next_retry_at = created_at - interval '1 minute', last_attempt_at = created_at - interval '2 minutes',
        created_at = created_at - interval '1 hour'";
    db.execute(dead).await;
}

#[tokio::test]
async fn a_replay_queues_what_it_was_asked_for_and_nothing_else() {
    let db = Db::new().await;
    let org = db.org().await;
    let [mine, other] =
        [db.destination(org, "http://x/").insert().await, db.destination(org, "http://y/").insert().await];
    db.events(org, 40).await;
    bury(&db).await;
    let mark = |status: &str, n: usize| {
        let delivered = if status == "delivered" { "created_at" } else { "NULL" };
        format!(
            "UPDATE webhook_deliveries SET status = '{status}', delivered_at = {delivered},
                error_message = CASE '{status}' WHEN 'delivered' THEN NULL ELSE 'it failed' END
             WHERE id IN (SELECT w.id FROM webhook_deliveries w JOIN activity_logs l ON l.id = w.log_id
                WHERE destination_id = '{mine}' AND (payload ->> 'n')::int % 8 = {n})"
        )
    };
    for (status, n) in [("delivered", 1), ("failed", 2), ("pending", 3)] {
        db.execute(&mark(status, n)).await;
    }
    db.execute("UPDATE activity_logs SET event_type = 'another' WHERE (payload ->> 'n')::int % 8 = 4").await;
    let mut conn = connection(&db).await;
    let untouched = format!("destination_id = '{other}' AND status = 'dead' AND attempts = 4");
    let queued = format!(
        "destination_id = '{mine}' AND status = 'pending' AND attempts = 0 AND delivered_at IS NULL
         AND created_at > timezone('UTC', now()) - interval '1 minute' AND next_retry_at >= created_at"
    );
    let of_type = |event_type: &str, statuses: &[Status]| Spec {
        event_type: Some(event_type.into()),
        ..spec(Kind::Replay, org, mine, statuses)
    };
    let steps: [(Spec, i64); 5] = [
        (of_type("another", &[Status::Dead]), 5),
        (of_type("none", &[Status::Dead]), 0),
        (spec(Kind::Replay, org, mine, &[Status::Dead]), 20),
        (spec(Kind::Replay, org, mine, &[Status::Delivered, Status::Failed]), 10),
        (spec(Kind::Replay, org, mine, &[Status::Dead, Status::Delivered, Status::Failed]), 0),
    ];
    let mut sum = 0;
    for (spec, expected) in steps {
        assert_eq!(count(&mut conn, &spec).await, Some(expected), "{spec:?}");
        assert_eq!(db.deliveries(&queued).await, sum, "counting changes nothing");
        let job = run(&mut conn, &spec).await;
        sum += expected;
        assert_eq!((job.state, job.queued), (State::Done, expected), "{job:?}");
        assert_eq!(job.total, Some(job.seen), "{job:?}");
        assert_eq!(db.deliveries(&queued).await, sum, "{spec:?}");
    }
    assert_eq!(db.deliveries(&untouched).await, 40);
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn a_replay_keeps_to_its_range_and_to_the_order() {
    let db = Db::new().await;
    let org = db.org().await;
    let destination = db.destination(org, "http://x/").insert().await;
    db.events(org, 30).await;
    bury(&db).await;
    let times = "SELECT created_at, log_id FROM webhook_deliveries ORDER BY created_at, id";
    let rows = sqlx::query(times).fetch_all(&db.pool).await.unwrap();
    let (from, to) = (rows[10].get(0), rows[20].get(0));
    let range =
        Spec { from: Some(from), to: Some(to), ..spec(Kind::Replay, org, destination, &[Status::Dead]) };
    let mut conn = connection(&db).await;
    assert_eq!(count(&mut conn, &range).await, Some(10));
    let job = jobs::create(&mut conn, &range).await.unwrap().unwrap();
    while jobs::work(&mut conn, job.id, Kind::Replay, &SMALL).await.unwrap() == Some(State::Running) {}
    let queued = "SELECT log_id FROM webhook_deliveries WHERE status = 'pending' ORDER BY created_at, id";
    let queued = sqlx::query(queued).fetch_all(&db.pool).await.unwrap();
    let ids = |rows: &[sqlx::postgres::PgRow], column: usize| -> Vec<Uuid> {
        rows.iter().map(|row| row.get(column)).collect()
    };
    assert_eq!(ids(&queued, 0), ids(&rows[10..20], 1));
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn a_batch_and_what_the_job_says_about_it_cannot_come_apart() {
    let db = Db::new().await;
    let org = db.org().await;
    let destination = db.destination(org, "http://x/").insert().await;
    db.events(org, 20).await;
    bury(&db).await;
    let (mut one, mut two) = (connection(&db).await, connection(&db).await);
    let spec = spec(Kind::Replay, org, destination, &[Status::Dead]);
    let job = jobs::create(&mut one, &spec).await.unwrap().unwrap();
    // Two processes, and one that is killed within a batch.
    for _ in 0..3 {
        let batches = tokio::join!(
            jobs::work(&mut one, job.id, Kind::Replay, &SMALL),
            jobs::work(&mut two, job.id, Kind::Replay, &SMALL),
        );
        batches.0.unwrap();
        batches.1.unwrap();
        let now = jobs::get(&mut one, job.spec.org, job.id).await.unwrap().unwrap();
        assert_eq!(now.queued, db.deliveries("status = 'pending'").await);
        assert_eq!(now.queued, now.seen);
    }
    let mut holder = db.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE webhook_deliveries IN SHARE MODE").execute(&mut *holder).await.unwrap();
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'
        AND datname = current_database()";
    let killed = async {
        eventually("the batch waits", async || db.number(waits).await == 1).await;
        db.execute(&format!(
            "SELECT pg_terminate_backend(pid) FROM ({}) p",
            waits.replace("count(*)", "pid")
        ))
        .await;
    };
    let (failed, ()) = tokio::join!(jobs::work(&mut two, job.id, Kind::Replay, &SMALL), killed);
    failed.unwrap_err();
    holder.rollback().await.unwrap();
    let done = finish(&mut one, &job).await;
    assert_eq!((done.state, done.queued, done.seen), (State::Done, 20, 20));
    assert_eq!(db.deliveries("status = 'pending'").await, 20);
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn what_is_being_sent_is_left_out() {
    let db = Db::new().await;
    let org = db.org().await;
    let destination = db.destination(org, "http://x/").insert().await;
    db.events(org, 4).await;
    // Two are leased, one of them as a retry.
    let lease = "UPDATE webhook_deliveries SET last_attempt_at = timezone('UTC', clock_timestamp()),
            status = CASE WHEN n % 2 = 0 THEN 'failed' ELSE 'pending' END
        FROM (SELECT id, row_number() OVER (ORDER BY created_at) AS n FROM webhook_deliveries) o
        WHERE o.id = webhook_deliveries.id AND n <= 2";
    db.execute(lease).await;
    let rows = sqlx::query("SELECT id FROM webhook_deliveries ORDER BY created_at").fetch_all(&db.pool).await;
    let ids: Vec<DeliveryId> = rows.unwrap().iter().map(|row| DeliveryId(row.get(0))).collect();
    let mut conn = connection(&db).await;
    let failed = spec(Kind::Replay, org, destination, &[Status::Failed]);
    assert_eq!(count(&mut conn, &failed).await, Some(0));
    let job = run(&mut conn, &failed).await;
    assert_eq!((job.seen, job.queued), (1, 0));

    let retried = retry(&mut conn, OrgId(org), &ids).await.unwrap();
    let set = |ids: &[DeliveryId]| ids.iter().copied().collect::<HashSet<_>>();
    assert_eq!(set(&retried.queued), set(&ids[2..]));
    assert_eq!(set(&retried.in_flight), set(&ids[..2]));
    // One that is not known, or somebody else's, and nothing happens to the others.
    let before = db.text("SELECT max(next_retry_at) FROM webhook_deliveries").await;
    let stranger = DeliveryId(Uuid::new_v4());
    let refused = retry(&mut conn, OrgId(org), &[ids[2], stranger]).await.unwrap();
    assert_eq!((refused.unknown, refused.queued.len()), (vec![stranger], 0));
    let other = db.org().await;
    assert_eq!(set(&retry(&mut conn, OrgId(other), &ids).await.unwrap().unknown), set(&ids));
    assert_eq!(db.text("SELECT max(next_retry_at) FROM webhook_deliveries").await, before);
    db.execute("UPDATE webhook_deliveries SET last_attempt_at = NULL").await;
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn a_job_that_is_cancelled_does_nothing_more_and_belongs_to_its_organization() {
    let db = Db::new().await;
    let (org, other) = (db.org().await, db.org().await);
    let destination = db.destination(org, "http://x/").insert().await;
    db.events(org, 10).await;
    bury(&db).await;
    let mut conn = connection(&db).await;
    let spec = spec(Kind::Replay, org, destination, &[Status::Dead]);
    let job = jobs::create(&mut conn, &spec).await.unwrap().unwrap();
    jobs::work(&mut conn, job.id, Kind::Replay, &SMALL).await.unwrap();
    assert_eq!(jobs::cancel(&mut conn, OrgId(other), job.id).await.unwrap(), None);
    assert_eq!(jobs::get(&mut conn, OrgId(other), job.id).await.unwrap(), None);
    assert_eq!(jobs::list(&mut conn, OrgId(other), None, 10).await.unwrap().items, []);
    let cancelled = jobs::cancel(&mut conn, OrgId(org), job.id).await.unwrap().unwrap();
    assert_eq!((cancelled.state, cancelled.queued), (State::Cancelled, 2));
    assert_eq!(jobs::work(&mut conn, job.id, Kind::Replay, &SMALL).await.unwrap(), None);
    assert_eq!(db.deliveries("status = 'pending'").await, 2);
    assert_eq!(jobs::list(&mut conn, OrgId(org), None, 10).await.unwrap().items, [cancelled]);
    // Of somebody else's destination there is no job.
    let stolen = Spec { org: OrgId(other), ..spec };
    assert_eq!(jobs::create(&mut conn, &stolen).await.unwrap(), None);
    check_invariants(&db, &[]).await;
}

/// How far a job is, whoever works on it.
async fn queued(db: &Db, job: JobId) -> i64 {
    db.number(&format!("SELECT queued FROM posthaste_jobs WHERE id = '{job}'")).await
}

#[tokio::test]
async fn a_replay_goes_on_after_a_kill_and_sends_nothing_twice_but_what_was_in_flight() {
    const DEAD: usize = 600;
    const IN_FLIGHT: usize = 8;
    let db = Db::new().await;
    let receiver = Receiver::with(Reply::Slow(Duration::from_millis(5)));
    let org = db.org().await;
    let destination = db.destination(org, receiver.url("/")).setting("max_in_flight", IN_FLIGHT);
    let destination = destination.insert().await;
    let dead = db.events(org, DEAD).await;
    bury(&db).await;
    let mut conn = connection(&db).await;
    let spec = spec(Kind::Replay, org, destination, &[Status::Dead]);
    let job = jobs::create(&mut conn, &spec).await.unwrap().unwrap();
    let mut posthaste = Posthaste::serve(&db.url).await;
    eventually("the replay is in its middle", async || queued(&db, job.id).await > DEAD as i64 / 3).await;
    // Live traffic flows beside it.
    let live = db.events(org, 20).await;
    posthaste.kill_9();
    let before = queued(&db, job.id).await;
    assert!(before < DEAD as i64, "the kill was not in the middle");
    let posthaste = Posthaste::serve(&db.url).await;
    let state = format!("SELECT state FROM posthaste_jobs WHERE id = '{}'", job.id);
    eventually("the job is done", async || db.text(&state).await.as_deref() == Some("done")).await;
    db.settled().await;
    assert_eq!(queued(&db, job.id).await, DEAD as i64);
    assert_eq!(db.deliveries("status = 'delivered' AND attempts = 1").await, (DEAD + live.len()) as i64);
    let sent: usize = receiver.received().iter().map(|request| request.event_ids().len()).sum();
    let times: HashSet<Uuid> = receiver.accepted().into_keys().collect();
    assert!(dead.iter().chain(&live).all(|event| times.contains(event)));
    // What was in flight, and what was on its way to the database.
    assert!(sent <= DEAD + live.len() + 3 * IN_FLIGHT, "{sent} were sent");
    drop(posthaste);
    check_invariants(&db, &[&receiver]).await;
}
