//! The [`RetentionActor`]: deletes what is settled and old, slowly.
//!
//! ```text
//!   pass: connect (unless another process prunes) ─▶ batch, rest, batch, rest, … ─▶ disconnect
//!   then nothing until the next pass
//! ```
//!
//! After each batch it rests for a multiple of the time that the batch took: on a busy database it slows down
//! by itself. It has a connection of its own, and only during a pass.

use std::time::{Duration, Instant};

use actix::prelude::*;
use tokio::sync::oneshot;

use super::tally::Histogram;
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

/// From the dispatcher at shutdown: end. The reply comes when nothing is under way any more.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Stop;

/// Asks for the actor's state.
#[derive(Message)]
#[rtype(result = "RetentionSnapshot")]
pub struct Snapshot;

/// The state of the [`RetentionActor`].
#[derive(Clone, Debug, Default, serde::Serialize, MessageResponse)]
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

/// See the module.
pub struct RetentionActor {
    options: ConnectOptions,
    ages: Retention,
    rows: u32,
    stats: RetentionSnapshot,
    /// A step is under way.
    busy: bool,
    stopping: Option<oneshot::Sender<()>>,
}

impl RetentionActor {
    /// An actor for the database behind `options`.
    pub fn new(options: ConnectOptions, ages: Retention) -> RetentionActor {
        let stats = RetentionSnapshot::default();
        RetentionActor { options, ages, rows: MAX_ROWS, stats, busy: false, stopping: None }
    }

    /// Takes the next step of `pass`, or the first one of the next pass.
    fn step(&mut self, pass: Option<Pass>, ctx: &mut Context<Self>) {
        self.busy = true;
        let began = clock::now();
        let step = step(self.options.clone(), self.ages, pass, self.rows);
        ctx.spawn(step.into_actor(self).map(move |done, this, ctx| {
            this.busy = false;
            match this.stopping.take() {
                // Nobody waits any more if the process is being killed.
                Some(stopped) => stopped.send(()).unwrap_or(()),
                None => this.stepped(began, done, ctx),
            }
        }));
    }

    fn stepped(&mut self, began: Instant, done: Result<Step, StoreError>, ctx: &mut Context<Self>) {
        let (pass, rest) = match done {
            Ok(Step::Batch(pass, kind, deleted)) => {
                let took = clock::now().saturating_duration_since(began);
                self.stats.deleted[kind as usize] += deleted;
                self.stats.batches.note(took);
                self.rows = (self.rows * 2).min(MAX_ROWS);
                (Some(pass), took * REST)
            }
            Ok(Step::Over) => {
                self.stats.trouble = None;
                let now = clock::wall().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
                self.stats.last_pass = Some(now.as_secs());
                (None, self.pause())
            }
            Ok(Step::Elsewhere) => {
                log::debug!("another process is deleting old rows at this moment");
                (None, self.pause())
            }
            Err(error) => {
                if self.stats.trouble.is_none() {
                    log::warn!("deleting old rows failed, trying again until it works: {error}");
                }
                self.stats.failures += 1;
                self.stats.trouble = Some(error.to_string());
                self.rows = (self.rows / 2).max(MIN_ROWS);
                (None, self.pause())
            }
        };
        ctx.run_later(rest, |this, ctx| {
            if this.stopping.is_none() {
                this.step(pass, ctx);
            }
        });
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
    }
}

async fn step(
    options: ConnectOptions,
    ages: Retention,
    pass: Option<Pass>,
    rows: u32,
) -> Result<Step, StoreError> {
    let mut pass = match pass {
        Some(pass) => pass,
        None => {
            let Some(pruner) = Pruner::connect(&options).await? else { return Ok(Step::Elsewhere) };
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

impl Actor for RetentionActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.step(None, ctx);
    }
}

impl Handler<Stop> for RetentionActor {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) -> Self::Result {
        let (done, stopped) = oneshot::channel();
        if self.busy {
            self.stopping = Some(done);
        } else {
            // A pass that rests is dropped with the timer that holds it.
            ctx.stop();
            done.send(()).unwrap_or(());
        }
        Box::pin(async { stopped.await.unwrap_or(()) })
    }
}

impl Handler<Snapshot> for RetentionActor {
    type Result = RetentionSnapshot;

    fn handle(&mut self, _: Snapshot, _: &mut Self::Context) -> RetentionSnapshot {
        self.stats.clone()
    }
}
