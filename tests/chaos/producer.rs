//! The application in a chaos run: it writes events, whatever happens, and knows what must become of them.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::postgres::PgPool;
use tokio::sync::mpsc::UnboundedReceiver;
use uuid::Uuid;

use crate::cast::Member;

/// Pause before something is tried again that PostgreSQL did not do.
const AGAIN: Duration = Duration::from_millis(50);
/// Longest pause between two transactions, in milliseconds.
const PACE: u64 = 120;

/// With ids of its own, so that a commit whose answer was lost can be repeated.
const INSERT: &str = "INSERT INTO activity_logs (id, org_id, event_type, event_category, payload)
    SELECT id, $1, CASE WHEN ($3 + n) % 2 = 0 THEN 'chaos.even' ELSE 'chaos.odd' END, 'chaos',
        jsonb_build_object('n', $3 + n)
    FROM unnest($2::uuid[]) WITH ORDINALITY AS given (id, n) ORDER BY n
    ON CONFLICT (id) DO NOTHING";

/// What was written.
#[derive(Default)]
pub struct Written {
    /// Events whose transactions have committed.
    pub events: usize,
    /// Events whose transactions were rolled back: nobody may ever hear of them.
    pub never: HashSet<Uuid>,
    /// What must have a delivery: destination and event, in the order of insertion.
    pub owed: Vec<(Uuid, Uuid)>,
    /// Numbers of the events that nobody picky takes.
    pub bad: HashSet<Uuid>,
}

/// Writes events until `stop`, and meanwhile enables and disables destinations as it is told: between two
/// transactions, so that it is known which events are for whom.
pub async fn produce(
    pool: PgPool,
    orgs: Vec<Uuid>,
    members: Arc<Vec<Member>>,
    mut switches: UnboundedReceiver<(usize, bool)>,
    stop: Arc<AtomicBool>,
    seed: u64,
) -> Written {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut written = Written::default();
    let mut enabled = vec![true; members.len()];
    let mut number = 0;
    while !stop.load(Ordering::SeqCst) {
        while let Ok((member, enable)) = switches.try_recv() {
            switch(&pool, members[member].id, enable).await;
            enabled[member] = enable;
        }
        let org = rng.usize(0..orgs.len());
        let ids: Vec<Uuid> = (0..rng.usize(1..6)).map(|_| Uuid::from_u128(rng.u128(..))).collect();
        if rng.u8(0..10) == 0 {
            roll_back(&pool, orgs[org], &ids, number).await;
            written.never.extend(ids);
        } else {
            insert(&pool, orgs[org], &ids, number).await;
            written.events += ids.len();
            for (id, number) in ids.iter().zip(number + 1..) {
                if crate::cast::is_bad(number) {
                    written.bad.insert(*id);
                }
                for (member, enabled) in members.iter().zip(&enabled) {
                    if *enabled && member.wants(org, number) {
                        written.owed.push((member.id, *id));
                    }
                }
            }
            number += ids.len() as u64;
        }
        tokio::time::sleep(Duration::from_millis(rng.u64(0..PACE))).await;
    }
    while let Ok((member, enable)) = switches.try_recv() {
        switch(&pool, members[member].id, enable).await;
    }
    written
}

async fn insert(pool: &PgPool, org: Uuid, ids: &[Uuid], number: u64) {
    let insert = || sqlx::query(INSERT).bind(org).bind(ids).bind(number as i64).execute(pool);
    while insert().await.is_err() {
        tokio::time::sleep(AGAIN).await;
    }
}

async fn roll_back(pool: &PgPool, org: Uuid, ids: &[Uuid], number: u64) {
    let Ok(mut transaction) = pool.begin().await else { return };
    let insert = sqlx::query(INSERT).bind(org).bind(ids).bind(number as i64);
    // A transaction that fails is rolled back as well.
    insert.execute(&mut *transaction).await.ok();
    transaction.rollback().await.ok();
}

/// Also after the receiver has answered 410: then it is enabled again.
async fn switch(pool: &PgPool, destination: Uuid, enable: bool) {
    let sql = "UPDATE webhook_destinations SET enabled = $2 WHERE id = $1";
    while sqlx::query(sql).bind(destination).bind(enable).execute(pool).await.is_err() {
        tokio::time::sleep(AGAIN).await;
    }
}
