//! A row that somebody changes between the moment at which a claim looks at it and that at which it locks it.
//! The claim stands still in between, as the policy of its role waits for a lock of ours.

use posthaste::model::{DbTime, DestinationId, Ordered};
use posthaste::store::deliveries::{Ask, ClaimSql, Grant, Room};
use posthaste::store::{self, Connection};
use uuid::Uuid;

use crate::common::{Db, eventually};

const GRANTS: &str = include_str!("../../examples/deploy/grants.sql");
const POLICY: [&str; 3] = [
    "CREATE FUNCTION waits() RETURNS boolean LANGUAGE plpgsql AS
        'BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN true; END'",
    "CREATE POLICY waits ON webhook_deliveries USING (waits())",
    "ALTER TABLE webhook_deliveries ENABLE ROW LEVEL SECURITY",
];

struct Claims {
    sql: ClaimSql,
    connection: Connection,
    ask: Ask,
}

impl Claims {
    async fn claim(&mut self) -> Grant {
        let room = Room { planned: 1 << 30, most: 1 << 30, max_event_bytes: 1 << 20 };
        let (connection, asks) = (&mut self.connection, std::slice::from_ref(&self.ask));
        let mut grants: Vec<Grant> = match self.ask.ordered {
            Some(_) => self.sql.claim_ordered(connection, asks, DbTime(0), room).await.unwrap(),
            None => self.sql.claim(connection, asks, DbTime(0), room).await.unwrap(),
        };
        grants.remove(0)
    }
}

/// What the claim that a change came into granted, and what the next one does.
struct Around {
    events: Vec<Uuid>,
    grants: [Grant; 2],
}

impl Around {
    /// Of three deliveries, the first one is changed.
    async fn a_change(ordered: Option<Ordered>) -> Around {
        let db = Db::new().await;
        let org = db.org().await;
        let destination = DestinationId(db.destination(org, "http://127.0.0.1/").insert().await);
        let events = db.events(org, 3).await;
        let (role, url) = db.role(GRANTS).await;
        for sql in POLICY {
            db.execute(sql).await;
        }
        let options = store::seeing_policies(store::planned(store::options(&url).unwrap()));
        let mut connection = store::connect(&options.options([("lock_timeout", "0")])).await.unwrap();
        let sql = ClaimSql::read(&mut connection).await.unwrap();
        let ask = Ask { destination, want: 3, since: None, max_bytes: 1 << 30, ordered, fill: None };
        let mut claims = Claims { sql, connection, ask };

        let mut gate = db.pool.begin().await.unwrap();
        sqlx::query("SELECT pg_advisory_xact_lock(1)").execute(&mut *gate).await.unwrap();
        let change = async {
            let waiting = "SELECT count(*) FROM pg_stat_activity
                WHERE datname = current_database() AND wait_event = 'advisory'";
            eventually("the claim looks at the rows", async || db.number(waiting).await == 1).await;
            let sql = "UPDATE webhook_deliveries SET error_message = 'changed' WHERE log_id = ";
            db.execute(&format!("{sql}'{}'", events[0])).await;
            gate.rollback().await.unwrap();
        };
        let (first, ()) = tokio::join!(claims.claim(), change);
        let grants = [first, claims.claim().await];
        drop(claims);
        db.drop_role(&role).await;
        Around { events, grants }
    }

    /// What was granted, as places in the order of insertion.
    fn places(&self) -> [Vec<usize>; 2] {
        let place = |id: Uuid| self.events.iter().position(|event| *event == id).unwrap();
        let places = |grant: &Grant| grant.deliveries.iter().map(|c| place(c.delivery.event.id.0)).collect();
        self.grants.each_ref().map(places)
    }
}

#[tokio::test]
async fn it_is_left_for_the_next_claim() {
    let around = Around::a_change(None).await;
    assert_eq!(around.places(), [vec![1, 2], vec![0]]);
    // Which is made at once, and does not begin behind it.
    let [first, second] = &around.grants;
    assert!(first.more && first.reached.is_none(), "{first:?}");
    assert!(!second.more && second.reached.is_some(), "{second:?}");
}

#[tokio::test]
async fn it_holds_back_what_is_behind_it_in_an_ordered_queue() {
    let around = Around::a_change(Some(Ordered::Near)).await;
    assert_eq!(around.places(), [vec![], vec![0, 1, 2]]);
    let [first, _] = &around.grants;
    assert!(first.next_due > Some(first.now), "{first:?}");
}
