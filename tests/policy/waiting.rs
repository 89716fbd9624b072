//! Nothing that is due waits for a poll, whatever overtakes what.

use crate::NO_POLLS;
use crate::common::{Db, Posthaste, Receiver, Reply, check_invariants, eventually};

#[tokio::test]
async fn a_retry_that_falls_due_before_its_failure_is_written_does_not_wait_for_a_poll() {
    let (db, receiver) = (Db::new().await, Receiver::with(Reply::Status(400)));
    let org = db.org().await;
    db.destination(org, receiver.url("/")).retry(3, 100).insert().await;
    let _program = Posthaste::serve_with(&db.url, &[NO_POLLS]).await;
    // Results cannot be written for now; claims read this table and go on.
    let mut slow = db.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE posthaste_attempts IN EXCLUSIVE MODE").execute(&mut *slow).await.unwrap();
    db.events(org, 1).await;
    eventually("the result waits", async || {
        let sql = "SELECT count(*) FROM pg_locks
            WHERE NOT granted AND relation = 'posthaste_attempts'::regclass";
        db.number(sql).await == 1
    })
    .await;
    receiver.reply(Reply::Status(200));
    // Longer than the backoff: by now the destination has looked for the retry.
    sqlx::query("SELECT pg_sleep(0.5)").execute(&mut *slow).await.unwrap();
    slow.commit().await.unwrap();
    crate::soon("it is delivered", async || db.deliveries("status = 'delivered'").await == 1).await;
    check_invariants(&db, &[&receiver]).await;
}
