//! Producers: an application that inserts events at a given rate, over several connections, and knows when
//! each was committed.

use std::cell::Cell;
use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use sqlx::postgres::PgConnection;
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use crate::place::Database;
use crate::responder::Arrival;
use crate::{LoadError, clock};

/// Events as an application inserts them, committed when this returns.
const INSERT: &str = "
    INSERT INTO activity_logs (id, org_id, event_type, event_category, content, payload)
    SELECT id, org_id, 'load.test', 'load', 'an event', '{\"n\": 12345, \"tool\": \"Bash\"}'
    FROM unnest($1::uuid[], $2::uuid[]) AS new(id, org_id)";

/// How events are produced.
#[derive(Clone)]
pub struct Plan {
    /// In turn, an event for each.
    pub orgs: Vec<Uuid>,
    pub events_per_second: f64,
    /// Events of one INSERT, which is one transaction.
    pub per_transaction: usize,
    pub connections: usize,
    pub duration: Duration,
}

/// What came of a plan.
#[derive(Default)]
pub struct Produced {
    pub commits: HashMap<u128, Commit>,
    /// First commit to last, in seconds.
    pub seconds: f64,
}

/// The commit of one event.
#[derive(Clone, Copy)]
pub struct Commit {
    /// When it was acknowledged, microseconds since 1970.
    pub at: u64,
    /// Whose event it is: the place in [`Plan::orgs`].
    pub org: usize,
}

impl Produced {
    /// Events of these organizations.
    pub fn events_of(&self, orgs: Range<usize>) -> u64 {
        self.commits.values().filter(|commit| orgs.contains(&commit.org)).count() as u64
    }

    /// The moment at which a warm-up of this length ended, microseconds since 1970.
    pub fn warm(&self, warm_up: Duration) -> u64 {
        let first = self.commits.values().map(|commit| commit.at).min();
        first.unwrap_or(0) + warm_up.as_micros() as u64
    }
}

/// Connections of an application, and the number of events that they have committed.
pub struct Producer {
    connections: Vec<PgConnection>,
    committed: Rc<Cell<u64>>,
}

impl Producer {
    pub async fn connect(database: &Database, connections: usize) -> Result<Producer, LoadError> {
        let mut opened = Vec::new();
        for _ in 0..connections {
            opened.push(database.connect().await?);
        }
        Ok(Producer { connections: opened, committed: Rc::default() })
    }

    /// Events committed so far, to be read while [`Producer::run`] runs.
    pub fn committed(&self) -> Rc<Cell<u64>> {
        self.committed.clone()
    }

    /// Follows the plan. Transactions have fixed times; one that is late is not left out, and does not make
    /// the next ones late on purpose.
    pub async fn run(&mut self, plan: &Plan) -> Result<Produced, LoadError> {
        let start = Instant::now();
        let count = self.connections.len();
        let committed = &self.committed;
        let each = self.connections.iter_mut().enumerate();
        let all = each.map(|(own, conn)| produce(conn, plan, start, own, count, committed));
        let mut produced = Produced::default();
        for commits in futures_util::future::try_join_all(all).await? {
            produced.commits.extend(commits);
        }
        let times = || produced.commits.values().map(|commit| commit.at);
        produced.seconds = clock::seconds(times().min().unwrap_or(0), times().max().unwrap_or(0));
        Ok(produced)
    }
}

/// Every `count`th transaction of the plan, from `own` on.
async fn produce(
    conn: &mut PgConnection,
    plan: &Plan,
    start: Instant,
    own: usize,
    count: usize,
    committed: &Cell<u64>,
) -> Result<Vec<(u128, Commit)>, LoadError> {
    let interval = plan.per_transaction as f64 / plan.events_per_second;
    let mut commits = Vec::new();
    for transaction in (own..).step_by(count) {
        let at = Duration::from_secs_f64(transaction as f64 * interval);
        if at >= plan.duration || start.elapsed() >= plan.duration {
            break;
        }
        sleep_until(start + at).await;
        let first = transaction * plan.per_transaction;
        let orgs = (first..first + plan.per_transaction).map(|event| event % plan.orgs.len());
        let ids: Vec<Uuid> = (0..plan.per_transaction).map(|_| Uuid::new_v4()).collect();
        let insert = sqlx::query(INSERT).bind(&ids);
        let insert = insert.bind(orgs.clone().map(|org| plan.orgs[org]).collect::<Vec<_>>());
        insert.execute(&mut *conn).await?;
        let at = clock::micros();
        commits.extend(ids.iter().map(Uuid::as_u128).zip(orgs.map(|org| Commit { at, org })));
        committed.set(committed.get() + ids.len() as u64);
    }
    Ok(commits)
}

/// From commit to arrival, sorted, in microseconds.
pub struct Latencies {
    sorted: Vec<u64>,
    /// How many had arrived before the producer heard that they were committed; they count as 0.
    early: usize,
}

impl Latencies {
    /// Of the first arrivals of the events that were committed `after` a moment.
    pub fn join(produced: &Produced, arrivals: &[Arrival], after: u64) -> Latencies {
        let mut first: HashMap<u128, u64> = HashMap::with_capacity(arrivals.len());
        for arrival in arrivals {
            let at = first.entry(arrival.event).or_insert(arrival.at);
            *at = arrival.at.min(*at);
        }
        let mut latencies = Latencies { sorted: Vec::new(), early: 0 };
        for (event, commit) in produced.commits.iter().filter(|(_, commit)| commit.at >= after) {
            if let Some(arrived) = first.get(event) {
                latencies.early += usize::from(*arrived < commit.at);
                latencies.sorted.push(arrived.saturating_sub(commit.at));
            }
        }
        latencies.sorted.sort_unstable();
        latencies
    }

    pub fn len(&self) -> usize {
        self.sorted.len()
    }

    /// The latency in milliseconds that this share of the events did not exceed.
    pub fn quantile_ms(&self, share: f64) -> f64 {
        let rank = (share * self.sorted.len() as f64).ceil() as usize;
        self.sorted.get(rank.max(1) - 1).map_or(f64::NAN, |micros| *micros as f64 / 1e3)
    }

    /// The share of [`Latencies::early`], in percent.
    pub fn early_percent(&self) -> f64 {
        100.0 * self.early as f64 / self.sorted.len().max(1) as f64
    }
}
