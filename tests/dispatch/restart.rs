//! PostgreSQL goes away under load and comes back.

use std::time::Duration;

use sqlx::Row;
use uuid::Uuid;

use crate::common::{Db, Posthaste, Receiver, Reply, Server, check_invariants, eventually};

/// Inserts events one by one for as long as the database takes them; what it has confirmed.
async fn produce(db: &Db, org: Uuid) -> Vec<Uuid> {
    let sql =
        "INSERT INTO activity_logs (org_id, event_type, event_category) VALUES ($1, 'test.event', 'test')
               RETURNING id";
    let mut confirmed = Vec::new();
    while let Ok(row) = sqlx::query(sql).bind(org).fetch_one(&db.pool).await {
        confirmed.push(row.get(0));
    }
    confirmed
}

async fn status(posthaste: &Posthaste, path: &str) -> Option<u16> {
    posthaste.get(path).await.map(|(status, _)| status)
}

#[tokio::test]
async fn a_crash_of_postgresql_under_load_loses_nothing() {
    let mut server = Server::start();
    let db = server.db().await;
    let receiver = Receiver::with(Reply::Slow(Duration::from_millis(20)));
    let org = db.org().await;
    db.destination(org, receiver.url("/")).insert().await;
    let mut events = db.events(org, 1_000).await;
    let mut posthaste = Posthaste::serve(&db.url).await;
    let pid = posthaste.pid();

    for crash in 1..=2 {
        let crashing = async {
            eventually("the stream flows", async || receiver.accepted().len() >= crash * 300).await;
            server.crash();
        };
        let (confirmed, ()) = tokio::join!(produce(&db, org), crashing);
        events.extend(confirmed);
        eventually("the process says that it is not ready", async || {
            status(&posthaste, "/readyz").await == Some(503)
        })
        .await;
        assert_eq!(status(&posthaste, "/healthz").await, Some(200), "but it lives");
        server.restart();
        posthaste.ready().await;
    }
    events.extend(db.events(org, 10).await);
    crate::accepted(&receiver, &events).await;
    db.settled().await;

    assert_eq!(posthaste.pid(), pid);
    assert_eq!(db.deliveries("status = 'dead'").await, 0);
    assert_eq!(db.deliveries("attempts <> 1").await, 0, "the trouble is our own: nobody is charged");
    assert_eq!(db.number("SELECT count(*) FROM activity_logs").await, db.deliveries("true").await);
    assert!(!posthaste.log().contains("panicked"));
    assert!(posthaste.terminate().await.success());
    check_invariants(&db, &[&receiver]).await;
}
