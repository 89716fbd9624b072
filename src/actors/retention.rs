//! Retention: a task that deletes what is settled and old, slowly.
//!
//! ```text
//!   pass: connect (unless another process prunes) ─▶ batch, rest, batch, rest, … ─▶ disconnect
//!   then nothing until the next pass
//! ```
//!
//! After each batch it rests for a multiple of the time that the batch took: on a busy database it slows down
//! by itself. It has a connection of its own, and only during a pass.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::metrics::Histogram;
use super::supervision::{Part, Stop, StopHandle, Supervision};
use crate::clock;
use crate::config::Retention;
use crate::model::DbTime;
use crate::store::retention::{Kind, Pruner};
use crate::store::{ConnectOptions, StoreError};

/// Rows of a batch at most: some 20 ms of work.
const MAX_ROWS: u32 = 1_000;
/// And at least: after a failure a batch asks for half.
const MIN_ROWS: u32 = 50;
/// The rest after a batch, as a multiple of what it took: a fifth of one connection's time at most.
const REST: u32 = 4;
/// Shortest and longest time between the ends and the beginnings of passes; in between, a part of the
/// shortest age.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];
/// That part: what should be kept for an hour is gone after an hour and a quarter at the latest.
const PAUSE_PART: u32 = 4;

/// The state of retention.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct RetentionSnapshot {
    /// Rows deleted since the start, in the order of [`Kind::ALL`].
    pub deleted: [u64; Kind::ALL.len()],
    /// How long batches took, since the start.
    pub batches: Histogram,
    /// Passes that failed, since the start.
    pub failures: u64,
    /// When this process last came to the end of a pass, in seconds since 1970.
    pub last_pass: Option<u64>,
    /// Why the last pass failed, if it did.
    pub trouble: Option<String>,
}

/// A pass under way.
struct Pass {
    pruner: Pruner,
    /// What is left to do, the next kind last.
    kinds: Vec<Kind>,
    /// Where the next batch starts.
    since: DbTime,
}

/// What a step has done.
enum Step {
    /// A batch.
    Batch(Pass, Kind, u64),
    /// The pass is over.
    Over,
    /// Another process prunes.
    Elsewhere,
}

/// The task that deletes what is old.
#[derive(Clone)]
pub struct Runner {
    stats: Arc<Mutex<RetentionSnapshot>>,
    stop: StopHandle,
}

impl Runner {
    /// Starts it, on the database of `options`.
    pub fn start(supervision: Supervision, options: ConnectOptions, ages: Retention) -> Runner {
        let (handle, stop) = StopHandle::new();
        let runner = Runner { stats: Arc::default(), stop: handle };
        let stats = runner.stats.clone();
        actix_rt::spawn(async move {
            let run = async |stop: Stop| {
                Task { options: &options, ages, rows: MAX_ROWS, stats: &stats }.run(stop).await
            };
            supervision.keep_running(Part::Retention, stop, run).await;
        });
        runner
    }

    /// Its state.
    pub fn snapshot(&self) -> RetentionSnapshot {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets the batch that is under way end, and stops.
    pub async fn stop(&self) {
        self.stop.stop().await;
    }
}

struct Task<'a> {
    options: &'a ConnectOptions,
    ages: Retention,
    /// Rows of the next batch.
    rows: u32,
    stats: &'a Mutex<RetentionSnapshot>,
}

impl Task<'_> {
    async fn run(mut self, mut stop: Stop) {
        let mut pass = None;
        while !stop.is_asked() {
            let began = clock::now();
            let done = step(self.options, self.ages, pass, self.rows).await;
            let rest;
            (pass, rest) = self.stepped(began, done);
            tokio::select! {
                () = stop.asked() => {}
                () = tokio::time::sleep(rest) => {}
            }
        }
    }

    /// The pass, if it goes on, and how long to rest before.
    fn stepped(&mut self, began: Instant, done: Result<Step, StoreError>) -> (Option<Pass>, Duration) {
        let mut stats = self.stats.lock().unwrap_or_else(PoisonError::into_inner);
        match done {
            Ok(Step::Batch(pass, kind, deleted)) => {
                let took = clock::now().saturating_duration_since(began);
                stats.deleted[kind as usize] += deleted;
                stats.batches.note(took);
                self.rows = (self.rows * 2).min(MAX_ROWS);
                (Some(pass), took * REST)
            }
            Ok(Step::Over) => {
                stats.trouble = None;
                let now = clock::wall().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
                stats.last_pass = Some(now.as_secs());
                (None, self.pause())
            }
            Ok(Step::Elsewhere) => {
                log::debug!("another process is deleting old rows at this moment");
                (None, self.pause())
            }
            Err(error) => {
                if stats.trouble.is_none() {
                    log::warn!("deleting old rows failed, trying again until it works: {error}");
                }
                stats.failures += 1;
                stats.trouble = Some(error.to_string());
                self.rows = (self.rows / 2).max(MIN_ROWS);
                (None, self.pause())
            }
        }
    }

    fn pause(&self) -> Duration {
        let shortest = Kind::ALL.iter().filter_map(|kind| age(self.ages, *kind)).min();
        (shortest.unwrap_or(PAUSES[1]) / PAUSE_PART).clamp(PAUSES[0], PAUSES[1])
    }
}

fn age(ages: Retention, kind: Kind) -> Option<Duration> {
    match kind {
        Kind::Delivered => ages.delivered,
        Kind::Dead => ages.dead,
        Kind::Attempts => ages.attempts,
        Kind::Jobs => ages.jobs,
    }
}

async fn step(
    options: &ConnectOptions,
    ages: Retention,
    pass: Option<Pass>,
    rows: u32,
) -> Result<Step, StoreError> {
    let mut pass = match pass {
        Some(pass) => pass,
        None => {
            let Some(pruner) = Pruner::connect(options).await? else { return Ok(Step::Elsewhere) };
            let kinds = Kind::ALL.into_iter().rev().filter(|kind| age(ages, *kind).is_some()).collect();
            Pass { pruner, kinds, since: DbTime(i64::MIN) }
        }
    };
    let next = pass.kinds.last().and_then(|kind| Some((*kind, age(ages, *kind)?)));
    let Some((kind, age)) = next else {
        pass.pruner.close().await;
        return Ok(Step::Over);
    };
    let pruned = pass.pruner.prune(kind, age, pass.since, rows).await?;
    if pruned.next.is_none() {
        pass.kinds.pop();
    }
    pass.since = pruned.next.unwrap_or(DbTime(i64::MIN));
    Ok(Step::Batch(pass, kind, pruned.deleted))
}
