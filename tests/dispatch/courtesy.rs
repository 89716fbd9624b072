//! Backlogs hold back where something new of another organization is held up.

use crate::common::{Db, Posthaste, Receiver, check_invariants, eventually};

/// What backlogs claim in one statement while they hold back.
const FEW_ROWS: i64 = 32;
const DESTINATIONS: usize = 10;
const EACH: usize = 1_000;

/// Makes each write of a row for which `condition` holds take this long.
async fn slow(db: &Db, name: &str, seconds: f64, condition: &str) {
    db.execute(&format!(
        "CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN PERFORM pg_sleep({seconds}); RETURN NEW; END'"
    ))
    .await;
    db.execute(&format!(
        "CREATE TRIGGER {name} BEFORE UPDATE ON webhook_deliveries
            FOR EACH ROW WHEN (NEW.{condition}) EXECUTE FUNCTION {name}()"
    ))
    .await;
}

/// Keeps the number of rows of each statement that claims something for others than `destination`.
async fn count_claims(db: &Db, destination: uuid::Uuid) {
    db.execute("CREATE TABLE claims (id int GENERATED ALWAYS AS IDENTITY, rows bigint NOT NULL)").await;
    db.execute(&format!(
        "CREATE FUNCTION count_claims() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO claims (rows) SELECT count(*) FROM changed
            WHERE status = 'pending' AND destination_id <> '{destination}' HAVING count(*) > 0;
            RETURN NULL;
        END $$"
    ))
    .await;
    db.execute(
        "CREATE TRIGGER count_claims AFTER UPDATE ON webhook_deliveries REFERENCING NEW TABLE AS changed
            FOR EACH STATEMENT EXECUTE FUNCTION count_claims()",
    )
    .await;
}

#[tokio::test]
async fn backlogs_claim_little_while_they_hold_up_what_is_new_to_another_organization() {
    let db = Db::new().await;
    let receiver = Receiver::start();
    let [big, small] = [db.org().await, db.org().await];
    for _ in 0..DESTINATIONS {
        db.destination(big, receiver.url("/")).insert().await;
    }
    let trickle = db.destination(small, receiver.url("/")).insert().await;
    count_claims(&db, trickle).await;
    let settings = [("RUST_LOG", "posthaste=debug"), ("POSTHASTE_POLL_INTERVAL", "1h")];
    let posthaste = Posthaste::serve_with(&db.url, &settings).await;

    // How fast something new can be claimed is known once it has a connection of its own.
    let claiming = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()
            AND query LIKE '%ask AS MATERIALIZED%'";
    let mut events = 0;
    eventually("two connections claim", async || {
        db.events(small, 1).await;
        events += 1;
        db.settled().await;
        db.number(claiming).await == 2
    })
    .await;

    // From now on a statement of the backlog is nearly always under way.
    slow(&db, "slow_backlog", 0.001, &format!("destination_id <> '{trickle}'")).await;
    db.events(big, EACH).await;
    let largest = "SELECT coalesce(max(rows), 0) FROM claims";
    eventually("the backlog is claimed in large pieces", async || db.number(largest).await > FEW_ROWS).await;
    slow(&db, "slow_trickle", 0.3, &format!("destination_id = '{trickle}'")).await;
    let waits = format!("destination_id = '{trickle}' AND status = 'pending'");
    eventually("backlogs hold back", async || {
        if db.deliveries(&waits).await == 0 {
            db.events(small, 1).await;
            events += 1;
        }
        posthaste.log().contains("backlogs hold back")
    })
    .await;

    // One that began before may still be under way.
    let last = db.number("SELECT max(id) FROM claims").await + 1;
    let since = format!("FROM claims WHERE id > {last}");
    eventually("more is claimed", async || db.number(&format!("SELECT count(*) {since}")).await >= 3).await;
    let most = db.number(&format!("SELECT max(rows) {since}")).await;
    assert!(most <= FEW_ROWS, "{most} rows were claimed at once while backlogs hold back");

    for name in ["slow_backlog", "slow_trickle"] {
        db.execute(&format!("DROP TRIGGER {name} ON webhook_deliveries")).await;
    }
    db.settled().await;
    assert_eq!(receiver.count(), DESTINATIONS * EACH + events);
    check_invariants(&db, &[&receiver]).await;
}
