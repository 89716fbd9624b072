//! With more work than requests that may be in flight: whose turn it is.

use std::time::Duration;

use crate::common::{Db, Posthaste, Receiver, Reply, check_invariants, eventually};

const ONE_SLOT: (&str, &str) = ("POSTHASTE_MAX_IN_FLIGHT", "1");

/// How many requests to other paths came at most between two to `path`.
fn longest_wait(receiver: &Receiver, path: &str) -> usize {
    let paths: Vec<String> = receiver.received().into_iter().map(|request| request.path).collect();
    let turns: Vec<usize> = (0..paths.len()).filter(|at| paths[*at] == path).collect();
    turns.windows(2).map(|pair| pair[1] - pair[0] - 1).max().unwrap()
}

#[tokio::test]
async fn the_last_free_slot_goes_to_organizations_in_turn_and_within_them_to_destinations_in_turn() {
    // Destinations of the busy organization, whether the quiet one is in another, others between its turns.
    for (busy, is_another, others) in [(1, false, 1), (3, false, 3), (3, true, 1)] {
        // A busy one that may have one request only asks for the slot again at the moment it lets it go.
        let (db, receiver) = (Db::new().await, Receiver::with(Reply::Slow(Duration::from_millis(10))));
        let org = db.org().await;
        for number in 0..busy {
            let destination = db.destination(org, receiver.url(&format!("/busy/{number}")));
            destination.event_types("{test.*}").setting("max_in_flight", 1).insert().await;
        }
        let other = if is_another { db.org().await } else { org };
        db.destination(other, receiver.url("/quiet")).event_types("{quiet}").insert().await;
        let _program = Posthaste::serve_with(&db.url, &[ONE_SLOT]).await;
        db.events(org, 60).await;
        eventually("the slot is taken", async || receiver.count() > 0).await;
        let quiet = "INSERT INTO activity_logs (org_id, event_type, event_category)
            SELECT '{other}', 'quiet', 'test' FROM generate_series(1, 15)";
        db.execute(&quiet.replace("{other}", &other.to_string())).await;
        db.settled().await;
        let waited = longest_wait(&receiver, "/quiet");
        assert!(waited <= others, "{waited} others came before it, {busy} busy, another: {is_another}");
        let last = receiver.received().pop().unwrap();
        assert!(last.path.starts_with("/busy"), "the busy ones were done first: this shows nothing");
        check_invariants(&db, &[&receiver]).await;
    }
}

#[tokio::test]
async fn slots_that_a_hanging_receiver_lets_go_are_its_neighbours_next() {
    let (db, hanging, healthy) = (Db::new().await, Receiver::with(Reply::Hang), Receiver::start());
    let org = db.org().await;
    let to = |receiver: &Receiver| db.destination(org, receiver.url("/")).timeout_ms(1_000);
    to(&hanging).event_types("{test.*}").setting("max_in_flight", 3).insert().await;
    to(&healthy).event_types("{healthy}").insert().await;
    // No breaker comes to the help of the neighbour.
    let environment = [
        ("POSTHASTE_MAX_IN_FLIGHT", "4"),
        ("POSTHASTE_BREAKER_THRESHOLD", "1000"),
        ("POSTHASTE_SHUTDOWN_GRACE", "100ms"),
    ];
    let mut program = Posthaste::serve_with(&db.url, &environment).await;
    db.events(org, 200).await;
    eventually("the organization has all that it may", async || hanging.in_flight() == 3).await;
    db.event(org, "healthy", "{}").await;
    let before = hanging.count();
    eventually("the neighbour has its turn", async || healthy.count() == 1).await;
    // The hanging one lets go of three a second. Room for a machine that takes its time to claim.
    let since = hanging.count() - before;
    assert!(since <= 9, "{since} requests to the hanging one came first");
    assert!(program.terminate().await.success());
    check_invariants(&db, &[&healthy]).await;
}
