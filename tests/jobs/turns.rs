//! Jobs of one organization do not keep those of others waiting, whatever goes wrong with them.

use posthaste::actors::jobs::{FAST, Worker};
use posthaste::model::Status;
use posthaste::store::jobs::{self, Kind, State};

use crate::common::{Db, check_invariants};
use crate::{connection, finish, spec};

#[tokio::test]
async fn organizations_take_turns_with_their_jobs() {
    let db = Db::new().await;
    let mut conn = connection(&db).await;
    let (many, few) = (db.org().await, db.org().await);
    for (org, count) in [(many, 20), (few, 1)] {
        let destination = db.destination(org, "http://x/").insert().await;
        for _ in 0..count {
            jobs::create(&mut conn, &spec(Kind::Replay, org, destination, &[Status::Dead])).await.unwrap();
        }
    }
    let mut worker = Worker::new(FAST);
    let mut ended = 0;
    for round in 1.. {
        let waiting = jobs::waiting(&mut conn).await.unwrap();
        if waiting.is_empty() {
            assert_eq!(round, 21, "one of the many in each round");
            break;
        }
        assert!(waiting.len() <= 2, "one of each organization");
        for (id, kind, _) in waiting {
            let done = worker.batch(&mut conn, id, kind).await.unwrap();
            ended += u32::from(done.0 == Some(State::Done));
        }
        if round == 1 {
            let running =
                format!("SELECT count(*) FROM posthaste_jobs WHERE org_id = '{few}' AND state = 'running'");
            assert_eq!(db.number(&running).await, 0, "the one of the few is done in the first round");
        }
    }
    assert_eq!(ended, 21);
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn a_job_whose_batches_always_fail_ends_as_failed_with_the_reason() {
    let db = Db::new().await;
    let mut conn = connection(&db).await;
    let org = db.org().await;
    let destination = db.destination(org, "http://x/").with("enabled", false).insert().await;
    db.events(org, 3).await;
    db.execute("UPDATE webhook_destinations SET enabled = true").await;
    sqlx::raw_sql(
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            RAISE EXCEPTION 'not today'; END $$;
         CREATE TRIGGER no BEFORE INSERT ON webhook_deliveries FOR EACH ROW EXECUTE FUNCTION no()",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    let job = jobs::create(&mut conn, &spec(Kind::Backfill, org, destination, &[])).await.unwrap().unwrap();
    let mut worker = Worker::new(FAST);
    for failure in 1..=20 {
        let (state, _) = worker.batch(&mut conn, job.id, Kind::Backfill).await.unwrap();
        assert_eq!(state, Some(if failure < 20 { State::Running } else { State::Failed }), "{failure}");
        // It need not wait here for as long as it does.
        db.execute("UPDATE posthaste_jobs SET resume_at = timezone('UTC', now())").await;
    }
    let ended = jobs::get(&mut conn, job.spec.org, job.id).await.unwrap().unwrap();
    assert!(
        ended.state == State::Failed && ended.error.as_deref().unwrap().contains("not today"),
        "{ended:?}"
    );
    // And one that fails now and then goes on.
    let again = jobs::create(&mut conn, &spec(Kind::Backfill, org, destination, &[])).await.unwrap().unwrap();
    worker.batch(&mut conn, again.id, Kind::Backfill).await.unwrap();
    db.execute("DROP TRIGGER no ON webhook_deliveries").await;
    db.execute("UPDATE posthaste_jobs SET resume_at = timezone('UTC', now())").await;
    let done = finish(&mut conn, &again).await;
    assert_eq!((done.state, done.queued), (State::Done, 3));
    assert_eq!(db.number("SELECT failures FROM posthaste_jobs WHERE state = 'done'").await, 0);
    check_invariants(&db, &[]).await;
}
