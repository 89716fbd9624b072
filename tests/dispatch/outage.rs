//! An outage of a receiver kills nothing; an event that nobody wants dies as configured.

use std::time::{Duration, Instant};

use crate::common::{Db, Posthaste, Receiver, Reply, check_invariants, eventually};

/// How long the receiver is away: many times what the retries take.
const OUTAGE: Duration = Duration::from_secs(10);

/// Two tenants whose receivers `fall` and `rise` together: one with `MANY` events, one with a single one. The
/// retries are used up within a second of the outage.
async fn outage_kills_nothing(fall: impl AsyncFn(&Receiver), rise: impl AsyncFn(&Receiver)) {
    const MANY: usize = 300;
    let db = Db::new().await;
    let (busy, quiet) = (Receiver::start(), Receiver::start());
    let (busy_org, quiet_org) = (db.org().await, db.org().await);
    db.destination(busy_org, busy.url("/")).retry(3, 100).insert().await;
    db.destination(quiet_org, quiet.url("/")).retry(3, 100).insert().await;
    let mut posthaste = Posthaste::serve(&db.url).await;
    // The quiet one has never had any success, the busy one has.
    db.events(busy_org, 1).await;
    db.settled().await;

    let start = Instant::now();
    fall(&busy).await;
    fall(&quiet).await;
    db.events(busy_org, MANY).await;
    db.events(quiet_org, 1).await;
    eventually("the outage is over", async || {
        assert_eq!(db.deliveries("status = 'dead'").await, 0, "killed by an outage");
        start.elapsed() >= OUTAGE
    })
    .await;
    assert_eq!(db.deliveries("status = 'delivered'").await, 1, "nothing can have been delivered meanwhile");
    let tried =
        db.number("SELECT count(DISTINCT destination_id) FROM webhook_deliveries WHERE error_message <> ''");
    assert_eq!(tried.await, 2, "both have noticed the outage");
    rise(&busy).await;
    rise(&quiet).await;
    db.settled().await;

    assert_eq!(db.deliveries("status = 'delivered'").await, MANY as i64 + 2);
    assert_eq!(busy.accepted().len(), MANY + 1);
    assert_eq!(quiet.accepted().len(), 1);
    let state = "SELECT count(*) FROM posthaste_destination_state WHERE tripped_at IS NOT NULL";
    eventually("both breakers are closed again", async || db.number(state).await == 0).await;
    assert!(posthaste.terminate().await.success());
    check_invariants(&db, &[&busy, &quiet]).await;
}

#[tokio::test]
async fn an_outage_that_refuses_connections_kills_nothing() {
    outage_kills_nothing(async |receiver| receiver.outage().await, async |receiver| receiver.restore().await)
        .await;
}

#[tokio::test]
async fn an_outage_that_answers_503_kills_nothing() {
    outage_kills_nothing(
        async |receiver| receiver.reply(Reply::Status(503)),
        async |receiver| receiver.reply(Reply::Status(200)),
    )
    .await;
}

#[tokio::test]
async fn an_event_that_always_gets_500_while_its_neighbours_succeed_is_dead_after_four_attempts() {
    let db = Db::new().await;
    let receiver = Receiver::scripted(|request| match request.json()["type"].as_str() {
        Some("poison") => Reply::body(500, "I choke on this"),
        _ => Reply::Status(200),
    });
    let org = db.org().await;
    db.destination(org, receiver.url("/")).retry(3, 200).insert().await;
    let mut posthaste = Posthaste::serve(&db.url).await;
    let poison = db.event(org, "poison", "{}").await;
    // Neighbours come and succeed for as long as the poison is tried.
    eventually("the poison is dead", async || {
        db.events(org, 2).await;
        db.deliveries("status = 'dead'").await == 1
    })
    .await;
    db.settled().await;

    let dead = format!(
        "log_id = '{poison}' AND status = 'dead' AND attempts = 4 AND response_status = 500
         AND response_body = 'I choke on this' AND error_message = 'the receiver answered 500'
         AND delivered_at IS NULL"
    );
    assert_eq!(db.deliveries(&dead).await, 1);
    let attempts = "SELECT string_agg(concat_ws(',', attempt, response_status, response_body, charged), ' '
        ORDER BY attempt) FROM posthaste_attempts";
    let expected: Vec<String> = (1..=4).map(|attempt| format!("{attempt},500,I choke on this,t")).collect();
    assert_eq!(db.text(attempts).await, Some(expected.join(" ")));
    let sent: Vec<_> =
        receiver.received().into_iter().filter(|request| request.event_ids() == [poison]).collect();
    assert_eq!(sent.len(), 4);
    // 200, 400 and 800 ms, each with a jitter of a fifth.
    for (retry, pair) in sent.windows(2).enumerate() {
        let (waited, least) = (pair[1].at - pair[0].at, Duration::from_millis(160 << retry));
        assert!(waited >= least, "retry {} came after {waited:?}", retry + 1);
    }
    assert_eq!(db.deliveries("status <> 'delivered'").await, 1, "its neighbours are delivered");
    assert!(posthaste.terminate().await.success());
    check_invariants(&db, &[&receiver]).await;
}
