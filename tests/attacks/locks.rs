//! Any login of a database may take any advisory lock.

use crate::common::{Db, Receiver, check_invariants};

#[actix_rt::test]
async fn a_stranger_that_holds_every_advisory_lock_of_ours_keeps_nothing_from_being_delivered() {
    let (db, receiver) = (Db::new().await, Receiver::start());
    let org = db.org().await;
    db.destination(org, receiver.url("/hook")).insert().await;
    let ordered = db.destination(org, receiver.url("/ordered")).setting("ordered", true);
    ordered.insert().await;
    let (role, url) = db.role("SELECT 1").await;
    let mut stranger = <sqlx::PgConnection as sqlx::Connection>::connect(url.reveal()).await.unwrap();
    // "posthast" and "posthret" in ASCII.
    for key in [0x706f_7374_6861_7374_i64, 0x706f_7374_6872_6574] {
        sqlx::query("SELECT pg_advisory_lock($1)").bind(key).execute(&mut stranger).await.unwrap();
    }
    let mut posthaste = crate::serve(&db).await;
    db.events(org, 20).await;
    db.settled().await;
    assert_eq!(db.deliveries("status = 'delivered'").await, 40);
    assert!(posthaste.terminate().await.success());
    check_invariants(&db, &[&receiver]).await;
    drop(stranger);
    db.drop_role(&role).await;
}
