//! Claims for a batch that waits to fill: what they take, and when they are to come back.

use std::time::Duration;

use posthaste::model::{DbTime, DestinationId, Fill, Ordered};
use posthaste::store::deliveries::{Ask, ClaimSql, Grant, Room};
use posthaste::store::{self, Connection};

use crate::common::Db;

const WAIT: Duration = Duration::from_secs(60);

struct Claims {
    db: Db,
    sql: ClaimSql,
    connection: Connection,
}

impl Claims {
    async fn new() -> Claims {
        let db = Db::new().await;
        let options = store::planned(store::options(&db.url).unwrap());
        let mut connection = store::connect(&options).await.unwrap();
        let sql = ClaimSql::read(&mut connection).await.unwrap();
        Claims { db, sql, connection }
    }

    /// What a claim of a new destination takes of `rows`, each due for so many seconds; None: without a time.
    async fn claim(&mut self, rows: &[Option<i32>], want: u32, events: u32, ordered: bool) -> Grant {
        let org = self.db.org().await;
        let destination = self.db.destination(org, "http://127.0.0.1/").insert().await;
        let events_of = self.db.events(org, rows.len()).await;
        for (event, seconds) in events_of.iter().zip(rows) {
            let due = match seconds {
                Some(seconds) => format!("timezone('UTC', now()) - {seconds} * interval '1 s'"),
                None => "NULL".into(),
            };
            let set = format!("UPDATE webhook_deliveries SET next_retry_at = {due} WHERE log_id = '{event}'");
            self.db.execute(&set).await;
        }
        let ask = Ask {
            destination: DestinationId(destination),
            want,
            since: None,
            max_bytes: 1 << 30,
            ordered: ordered.then_some(Ordered::Near),
            fill: Some(Fill { events, wait: WAIT }),
        };
        let room = Room { planned: 1 << 30, most: 1 << 30, max_event_bytes: 1 << 20 };
        let (connection, asks) = (&mut self.connection, std::slice::from_ref(&ask));
        let mut grants = match ordered {
            true => self.sql.claim_ordered(connection, asks, DbTime(i64::MIN), room).await.unwrap(),
            false => self.sql.claim(connection, asks, DbTime(i64::MIN), room).await.unwrap(),
        };
        grants.remove(0)
    }
}

#[tokio::test]
async fn a_batch_is_taken_when_it_is_full_or_has_waited() {
    let mut claims = Claims::new().await;
    let young = |rows: usize| vec![Some(1); rows];
    // Rows, wanted, events of a batch: taken, and in how many seconds to come back.
    type Line = (Vec<Option<i32>>, u32, u32, usize, Option<u64>);
    let table: [Line; 8] = [
        (young(4), 10, 5, 0, Some(59)),
        (young(5), 10, 5, 5, None),
        (young(9), 10, 5, 5, None),
        (young(12), 10, 5, 10, None),
        (young(12), 3, 5, 3, None),
        (vec![Some(61), Some(1), Some(1)], 10, 5, 3, None),
        (vec![Some(31), Some(1), Some(-20)], 10, 5, 0, Some(20)),
        (vec![Some(31), Some(1), Some(-90)], 10, 5, 0, Some(29)),
    ];
    for ordered in [false, true] {
        for (n, (rows, want, events, taken, back)) in table.iter().enumerate() {
            let grant = claims.claim(rows, *want, *events, ordered).await;
            assert_eq!(grant.deliveries.len(), *taken, "line {n}, ordered: {ordered}");
            assert_eq!(grant.more, *taken == *want as usize, "line {n}, ordered: {ordered}");
            // An ordered claim does not look at what is behind the batch.
            let back = if ordered && n == 6 { Some(29) } else { *back };
            let seconds =
                grant.next_due.filter(|_| *taken == 0).map(|due| due.since(grant.now).as_secs() + 1);
            let close =
                seconds.zip(back).map_or(seconds == back, |(is, expected)| is.abs_diff(expected) <= 5);
            assert!(close, "line {n}, ordered: {ordered}: {seconds:?}");
        }
    }
    // What an application inserted itself waits from when it was queued.
    let grant = claims.claim(&[None, None], 10, 5, false).await;
    assert_eq!((grant.deliveries.len(), grant.next_due.is_some()), (0, true));
}
