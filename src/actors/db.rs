//! The [`DbActor`]: all claims and all results pass through here and become statements for many rows.
//!
//! Three connections, each with one statement under way: what arrives meanwhile is
//! merged into the next (group commit). One writes results, one claims from backlogs, one claims what is new;
//! where they are in each other's way, the backlogs hold back ([`crate::policy::backlog_throttle`]).
//! Claims wait in fair queues, so that an organization with a thousand destinations takes turns with one that
//! has a single one. Results are kept until they are written, however long the database is away; their number
//! is bounded by what was claimed.

mod claiming;
mod refused;

use std::time::{Duration, Instant};

use actix::prelude::*;
use tokio::sync::oneshot;

pub use self::claiming::Refresh;
pub use self::refused::{CannotLoad, Withdraw};
use super::claim_connection::ClaimConnection;
use super::claims::Claims;
use super::faults::Faults;
use super::limit::{Freed, Limit};
use super::messages::{Announce, Claim, Disable, Flush, Record, Remember, Renew, StopClaims};
use super::metrics::{self, Histogram, RESULTS};
use super::outage::Outage;
use super::record_connection::RecordConnection;
use super::supervision::{ExitGuard, Ping};
use super::work::Work;
use crate::clock;
use crate::config::Config;
use crate::model::Outcome;
use crate::policy::backlog_throttle::{BacklogThrottle, FEW_ROWS};
use crate::store::deliveries::MAX_RECORD_ROWS;
use crate::store::faults::Kind;
use crate::store::{ConnectOptions, StoreError};

/// Under load, how long results are gathered before they are written: larger statements cost less per row.
const GATHER: Duration = Duration::from_millis(5);
/// From how many results in the last statement on it counts as load.
const LOAD_ROWS: usize = 64;
/// Results that may wait to be written; beyond, nothing is claimed, and what the receivers said is not kept.
const MAX_RESULTS_WAITING: usize = 10_000;

/// Faults that `/readyz` names at most.
const MOST_FAULTS_TOLD: usize = 10;

/// Asks for the actor's state.
#[derive(Message)]
#[rtype(result = "DbSnapshot")]
pub struct Snapshot;

/// The state of the [`DbActor`].
#[derive(Clone, Debug, Default, serde::Serialize, MessageResponse)]
pub struct DbSnapshot {
    /// Destinations that wait for a claim.
    pub claims_waiting: usize,
    /// Results that are not written yet.
    pub results_waiting: usize,
    /// Results whose rows somebody has locked: they are written when that ends.
    pub results_locked: usize,
    /// Bytes of events in memory.
    pub bytes_held: u64,
    /// What is wrong with the database, if anything is.
    pub trouble: Option<String>,
    /// What cannot be done for a lasting reason, as in [`Kind::ALL`] ...
    pub faults: [usize; Kind::ALL.len()],
    /// ... and some of it in words.
    pub some_faults: Vec<String>,
    /// How long statements that claimed took, since the start.
    pub claims: Histogram,
    /// Deliveries claimed, since the start.
    pub claimed: u64,
    /// How long statements that recorded took, since the start.
    pub records: Histogram,
    /// Results written, since the start.
    pub recorded: u64,
    /// Results decided since the start, by what becomes of the row: named by [`RESULTS`].
    pub results: [u64; RESULTS.len()],
}

/// See the module.
pub struct DbActor {
    config: Config,
    bytes: Limit,
    /// By [`Urgency`]; none while its statement is under way, and while there is no second one.
    claiming_connections: [Option<ClaimConnection>; 2],
    /// Statements that claim under way.
    claiming: usize,
    /// It was opened, though it may be resting.
    has_second: bool,
    recording: Option<RecordConnection>,
    claims: Claims,
    results_received: u64,
    /// Written, or set aside because somebody has locked the row.
    results_done: u64,
    claims_stopped: bool,
    waits_for_bytes: bool,
    /// A timer runs after which claiming connections show again that this process lives.
    shows_soon: bool,
    backlog_throttle: BacklogThrottle,
    work: Work,
    last_recorded: usize,
    /// What cannot be done, each by itself.
    faults: Faults,
    /// When some of it is tried again.
    retries_faults_at: Option<Instant>,
    gathering: bool,
    flushes: Vec<oneshot::Sender<()>>,
    stats: DbSnapshot,
    claim_outage: Outage,
    record_outage: Outage,
    _exit_guard: ExitGuard,
}

impl DbActor {
    /// An actor for the database behind `options`, which keeps at most `bytes` of events in memory.
    pub fn new(config: Config, options: ConnectOptions, bytes: Limit, exit_guard: ExitGuard) -> DbActor {
        DbActor {
            config,
            bytes,
            claiming_connections: [None, Some(ClaimConnection::new(options.clone()))],
            claiming: 0,
            has_second: false,
            recording: Some(RecordConnection::new(options)),
            claims: Claims::new(),
            results_received: 0,
            results_done: 0,
            claims_stopped: false,
            waits_for_bytes: false,
            shows_soon: false,
            backlog_throttle: BacklogThrottle::default(),
            work: Work::default(),
            last_recorded: 0,
            faults: Faults::default(),
            retries_faults_at: None,
            gathering: false,
            flushes: Vec::new(),
            stats: DbSnapshot::default(),
            claim_outage: Outage::default(),
            record_outage: Outage::default(),
            _exit_guard: exit_guard,
        }
    }

    fn add_results(&mut self, outcomes: Vec<Outcome>) {
        self.results_received += outcomes.len() as u64;
        for mut outcome in outcomes {
            self.stats.results[metrics::result(outcome.change)] += 1;
            if self.work.outcomes.len() >= MAX_RESULTS_WAITING {
                outcome.response_body = None;
            }
            self.work.outcomes.push_back(outcome);
        }
    }

    /// Starts to write what is to be written, if nothing is being written.
    pub(super) fn record(&mut self, ctx: &mut Context<Self>) {
        if self.work.is_empty() {
            // What a claim that is still under way brings may have to be given back.
            if self.recording.is_some() && self.claiming == 0 {
                self.flushes.drain(..).for_each(|done| done.send(()).unwrap_or(()));
            }
            return;
        }
        let under_load = self.last_recorded >= LOAD_ROWS && self.work.outcomes.len() < MAX_RECORD_ROWS;
        if self.gathering || self.recording.is_none() {
            return;
        }
        if under_load && self.flushes.is_empty() {
            self.gathering = true;
            self.last_recorded = 0;
            ctx.run_later(GATHER, |this, ctx| {
                this.gathering = false;
                this.record(ctx);
            });
            return;
        }
        let holds_back = self.holds_back();
        // It comes back here when that statement ends.
        if holds_back && self.is_claiming_backlogs() {
            return;
        }
        let Some(mut connection) = self.recording.take() else { return };
        let rows = match holds_back {
            // Enough that their number does not keep growing.
            true => (self.work.outcomes.len() / 4).clamp(FEW_ROWS, MAX_RECORD_ROWS),
            false => MAX_RECORD_ROWS,
        };
        let mut work = self.work.take(rows);
        let sent = work.outcomes.len();
        let tried_again = self.tried_again(&work);
        let write = async move {
            connection.rest().await;
            let began = clock::now();
            let done = connection.write(&mut work).await;
            (connection, work, began, done)
        };
        ctx.spawn(write.into_actor(self).map(move |(connection, mut work, began, done), this, ctx| {
            this.recording = Some(connection);
            if done.is_ok() && sent > 0 {
                this.stats.records.note(clock::now().saturating_duration_since(began));
            }
            let refused = this.refused(tried_again, &mut work, done.is_ok(), ctx);
            this.recorded(sent - refused, work, done);
            this.claim(ctx);
            this.record(ctx);
        }));
    }

    /// `left` is what was not written of `sent` outcomes and the rest.
    fn recorded(&mut self, sent: usize, left: Work, done: Result<(), StoreError>) {
        // Whatever failed afterwards: these are written.
        let written = sent - left.outcomes.len() - left.locked.len();
        self.stats.recorded += written as u64;
        match done {
            Ok(()) => {
                if self.record_outage.ends() {
                    log::info!("results are written again");
                }
                self.last_recorded = written;
            }
            Err(error) => {
                if self.record_outage.is_news(&error, clock::now()) {
                    log::error!("writing results failed, trying again until it works: {error}");
                }
            }
        }
        self.work.put_back(left);
        self.stats.results_locked = self.work.locked.len();
        self.results_done = self.results_received - self.work.outcomes.len() as u64;
        self.claims.written(self.results_done).into_iter().for_each(|claim| self.enqueue(claim));
    }
}

impl Actor for DbActor {
    type Context = Context<Self>;
}

impl Handler<Claim> for DbActor {
    type Result = ();

    fn handle(&mut self, claim: Claim, ctx: &mut Self::Context) {
        if claim.after_results && !self.claims_stopped && self.results_done < self.results_received {
            self.claims.push_after(self.results_received, claim);
        } else {
            self.enqueue(claim);
            self.claim(ctx);
        }
    }
}

impl Handler<Freed> for DbActor {
    type Result = ();

    fn handle(&mut self, _: Freed, ctx: &mut Self::Context) {
        self.waits_for_bytes = false;
        self.claim(ctx);
    }
}

impl Handler<Record> for DbActor {
    type Result = ();

    fn handle(&mut self, Record(outcomes): Record, ctx: &mut Self::Context) {
        self.add_results(outcomes);
        self.record(ctx);
    }
}

impl Handler<Renew> for DbActor {
    type Result = ();

    fn handle(&mut self, renew: Renew, ctx: &mut Self::Context) {
        self.work.renewals.push(renew);
        self.record(ctx);
    }
}

impl Handler<StopClaims> for DbActor {
    type Result = ();

    fn handle(&mut self, _: StopClaims, _: &mut Self::Context) {
        self.claims_stopped = true;
        self.claims.take_all().into_iter().for_each(|claim| self.enqueue(claim));
    }
}

impl Handler<Remember> for DbActor {
    type Result = ();

    fn handle(&mut self, Remember(destination, saved): Remember, ctx: &mut Self::Context) {
        // While one cannot be written, the next one waits in its place.
        if !self.faults.replace_state(destination, saved) {
            self.work.states.insert(destination, saved);
        }
        self.record(ctx);
    }
}

impl Handler<Disable> for DbActor {
    type Result = ();

    fn handle(&mut self, Disable(destination, reason): Disable, ctx: &mut Self::Context) {
        self.work.disabled.push((destination, reason));
        self.record(ctx);
    }
}

impl Handler<Announce> for DbActor {
    type Result = ();

    fn handle(&mut self, Announce(event): Announce, ctx: &mut Self::Context) {
        self.work.events.push(event);
        self.record(ctx);
    }
}

impl Handler<Flush> for DbActor {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: Flush, ctx: &mut Self::Context) -> Self::Result {
        let (done, flushed) = oneshot::channel();
        self.flushes.push(done);
        // A last try for what was refused.
        self.faults.all().into_iter().for_each(|item| self.work.add(item));
        self.record(ctx);
        // An error means that the actor is gone, and with it whatever could be waited for.
        Box::pin(async { flushed.await.unwrap_or(()) })
    }
}

#[cfg(test)]
impl Handler<super::Panic> for DbActor {
    type Result = ();

    fn handle(&mut self, _: super::Panic, _: &mut Self::Context) {
        panic!("a test asked for it");
    }
}

#[cfg(test)]
impl Handler<super::Freeze> for DbActor {
    type Result = ();

    fn handle(&mut self, _: super::Freeze, ctx: &mut Self::Context) {
        // Nothing of its mailbox is looked at any more.
        ctx.wait(std::future::pending().into_actor(self));
    }
}

impl Handler<Ping> for DbActor {
    type Result = ();

    fn handle(&mut self, _: Ping, _: &mut Self::Context) {}
}

impl Handler<Snapshot> for DbActor {
    type Result = DbSnapshot;

    fn handle(&mut self, _: Snapshot, _: &mut Self::Context) -> DbSnapshot {
        DbSnapshot {
            claims_waiting: self.claims.len(),
            results_waiting: self.work.outcomes.len(),
            bytes_held: self.bytes.held(),
            // In this order: nothing is claimed while results cannot be written.
            some_faults: self.faults.some(MOST_FAULTS_TOLD),
            trouble: self.record_outage.cause().or(self.claim_outage.cause()).map(str::to_owned),
            ..self.stats.clone()
        }
    }
}
