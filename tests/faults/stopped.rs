//! The process itself is stopped (SIGSTOP), as by a debugger, a machine that is suspended, or one that has no
//! processor for it, for longer than its requests and its leases may last.

use std::collections::HashMap;

use rustix::process::Signal;
use uuid::Uuid;

use crate::common::{Db, Posthaste, Receiver, Reply, check_invariants, eventually, leased};

/// Requests in flight at the one destination.
const IN_FLIGHT: usize = 4;
/// Events: more than are claimed ahead.
const EVENTS: usize = 100;

/// How often each event came.
fn times(receiver: &Receiver) -> HashMap<Uuid, usize> {
    let mut times = HashMap::new();
    receiver.received().iter().flat_map(|r| r.event_ids()).for_each(|id| *times.entry(id).or_insert(0) += 1);
    times
}

async fn destination(db: &Db, url: String, timeout_ms: u32) -> Uuid {
    let org = db.org().await;
    let destination = db.destination(org, url).setting("max_in_flight", IN_FLIGHT).retry(1, 100);
    destination.timeout_ms(timeout_ms).insert().await;
    org
}

#[tokio::test]
async fn a_process_that_was_stopped_for_longer_than_its_leases_charges_nobody_and_loses_nothing() {
    let db = Db::new().await;
    // One answers while nobody listens, the other one only afterwards: it never had a chance in time.
    let (prompt, late) = (Receiver::with(Reply::Hang), Receiver::with(Reply::Hang));
    let (release, released) = tokio::sync::watch::channel(false);
    prompt.reply(Reply::Held(200, released));
    let orgs =
        [destination(&db, prompt.url("/"), 30_000).await, destination(&db, late.url("/"), 30_000).await];
    let mut posthaste = Posthaste::serve(&db.url).await;
    for org in orgs {
        db.events(org, EVENTS).await;
    }
    eventually("both hold what they may", async || {
        prompt.in_flight() == IN_FLIGHT && late.in_flight() == IN_FLIGHT
    })
    .await;
    posthaste.signal(Signal::STOP);
    prompt.reply(Reply::Status(200));
    late.reply(Reply::Status(200));
    release.send_replace(true);
    eventually("its leases have ended", async || leased(&db).await == 0).await;
    posthaste.signal(Signal::CONT);
    db.settled().await;

    assert_eq!(db.deliveries("status = 'delivered' AND attempts = 1").await, 2 * EVENTS as i64);
    assert_eq!(db.number("SELECT count(*) FROM posthaste_attempts WHERE charged").await, 0);
    for receiver in [&prompt, &late] {
        let twice = times(receiver).into_values().filter(|times| *times > 1).count();
        assert_eq!(receiver.count() - EVENTS, twice, "nothing came three times");
        assert!(twice <= IN_FLIGHT, "only what was in flight came again, and not {twice}");
    }
    // Their answers were there; those of the others were not, and whose fault that is cannot be known.
    assert_eq!(late.count(), EVENTS + IN_FLIGHT);
    assert!(posthaste.log().contains("this process was stopped, or had no processor"));
    assert!(posthaste.terminate().await.success());
    check_invariants(&db, &[&prompt, &late]).await;
}

#[tokio::test]
async fn a_process_that_wakes_after_another_has_taken_over_records_and_sends_nothing_twice() {
    let db = Db::new().await;
    let (release, released) = tokio::sync::watch::channel(false);
    let receiver = Receiver::with(Reply::Held(200, released));
    let org = destination(&db, receiver.url("/"), 30_000).await;
    let (mut stopped, mut other) = (Posthaste::serve(&db.url).await, Posthaste::serve(&db.url).await);
    other.signal(Signal::STOP);
    let events = db.events(org, EVENTS).await;
    eventually("one holds what it may", async || receiver.in_flight() == IN_FLIGHT).await;
    stopped.signal(Signal::STOP);
    receiver.reply(Reply::Status(200));
    other.signal(Signal::CONT);
    // What the stopped one had claimed waits for the end of the leases.
    db.settled().await;
    assert_eq!(receiver.accepted().len(), EVENTS);
    let rows = "SELECT md5(string_agg(d::text, '' ORDER BY id)) FROM webhook_deliveries d";
    let recorded = db.text(rows).await;
    release.send_replace(true);
    stopped.signal(Signal::CONT);
    stopped.ready().await;
    let more = db.events(org, EVENTS).await;
    db.settled().await;
    assert!(stopped.terminate().await.success());
    assert!(other.terminate().await.success());

    let rows = format!("{rows} WHERE log_id = ANY (ARRAY{:?}::uuid[])", ids(&events)).replace('"', "'");
    assert_eq!(db.text(&rows).await, recorded, "what was recorded stays as it was");
    let times = times(&receiver);
    assert!(more.iter().all(|event| times[event] == 1));
    let twice = times.values().filter(|times| **times == 2).count();
    assert_eq!((receiver.count(), twice), (2 * EVENTS + IN_FLIGHT, IN_FLIGHT), "only what was in flight");
    assert_eq!(db.deliveries("status = 'delivered' AND attempts = 1").await, 2 * EVENTS as i64);
    assert_eq!(db.number("SELECT count(*) FROM posthaste_attempts").await, 0);
    check_invariants(&db, &[&receiver]).await;
}

fn ids(events: &[Uuid]) -> Vec<String> {
    events.iter().map(Uuid::to_string).collect()
}
