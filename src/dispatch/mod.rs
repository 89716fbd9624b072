//! What a destination does next, decided in pure code.
//!
//! ```text
//!   hints, timers, claim replies,        ┌──────────────────────────────┐   send, claim, renew, record,
//!   results of requests            ────▶ │ Machine::handle(event, when) │ ──▶ wake me at, remember, tell
//!                                        └──────────────────────────────┘
//!      ClaimCursor   what to claim next          Batcher      what is leased, as requests
//!      Concurrency   how many at once            Bisections   refused batches, in halves
//!      RateLimit     how soon                    Health       breaker and pauses (policy)
//! ```
//!
//! Events go in, effects come out; the time and a random number are arguments. Nothing here waits, sends or
//! logs: the [`crate::actors::destination`] does that. So a simulator can run years of it
//! (`tests/simulator`).
//!
//! - **No request starts that could outlast the lease of what it carries.** What has to wait for longer than
//!   that has its lease renewed, and goes on where it was.
//! - **A refused batch is never made again.** Its parts only ever become smaller, and what had to be given
//!   back meanwhile comes back in batches no larger than its parts were.
//! - **A delivery under renewal is not touched** until the answer says under which lease it is ours.

mod apply_result;
mod batcher;
mod bisections;
mod claim_cursor;
mod concurrency;
#[cfg(test)]
mod fixtures;
mod lease;
mod machine;
mod pace;
mod rate_limit;
mod rules;
mod timers;

use std::time::{Duration, Instant};

pub use self::bisections::MAX_LONE_REFUSALS;
pub use self::claim_cursor::{Claim, Urgency};
pub use self::lease::{Leased, RECORDING_MARGIN};
pub use self::machine::Machine;
pub use self::rules::{BatchRules, Rules};
use crate::model::{Attempt, DbTime, Delivery, DeliveryId, EventId, Outcome};
use crate::policy::classify::Verdict;
use crate::policy::health::Saved;

/// When something is decided, and what chance and the rest of the process contribute.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// By the monotonic clock: leases, limits, waits.
    pub now: Instant,
    /// By the database's clock: due times, health.
    pub db_now: DbTime,
    /// A random number in 0..1.
    pub chance: f64,
    /// Requests that the whole process has in flight: they slow each other down.
    pub busy: u32,
}

impl Moment {
    /// The moment on the monotonic clock at which the database's clock says `time`; now, if that is over.
    pub fn instant(&self, time: DbTime) -> Instant {
        self.now + time.since(self.db_now)
    }
}

/// What happens to a destination. `H` is held with each lease, as its part of a limit.
#[derive(Debug)]
pub enum Event<H> {
    /// There may be work: look.
    Woken,
    /// The time of the last [`Effect::WakeAt`] has come.
    TimeCame,
    /// A slot of the process is there, as [`Effect::AcquireSlot`] asked.
    SlotAcquired,
    /// The answer to [`Effect::Claim`].
    Claimed(ClaimReply<H>),
    /// The answer to [`Effect::Renew`].
    Renewed(RenewReply),
    /// A request has ended.
    Finished {
        /// As in [`Effect::Send`].
        request: u64,
        /// How.
        attempt: Attempt,
    },
    /// The row or its settings have changed. The state comes along, as enabling clears it.
    Reconfigured(Box<Rules>, Saved),
    /// End what is in flight and stop.
    Retired,
    /// Stop without what is still in flight.
    GraceOver,
}

/// What is to be done, in this order.
#[derive(Debug)]
pub enum Effect {
    /// Get a slot of the process, at once or later: then comes [`Event::SlotAcquired`].
    AcquireSlot,
    /// It is not needed any more.
    ReleaseSlot,
    /// Start a request with the slot.
    Send(Send),
    /// Abort the request of this number.
    Abort(u64),
    /// Claim. There is never more than one under way.
    Claim(Claim),
    /// Renew these leases, given by their claim times. There is never more than one such effect under way.
    Renew(Vec<(DeliveryId, DbTime)>),
    /// Write these results.
    Record(Vec<Outcome>),
    /// Bring [`Event::TimeCame`] then, and not at the time that was named before.
    WakeAt(Instant),
    /// Keep this.
    Remember(Saved),
    /// Whether it has a backlog has changed.
    Backlog(bool),
    /// Disable the destination, for this reason.
    Disable(String),
    /// For logs, metrics and operational events.
    Tell(Notice),
    /// It is over: nothing is in flight, claimed or under renewal.
    Stop,
}

/// A request to be sent.
#[derive(Debug)]
pub struct Send {
    /// Its number, which grows.
    pub request: u64,
    /// At least one.
    pub deliveries: Vec<Delivery>,
    /// Whether the body is a batch, even of one.
    pub as_batch: bool,
    /// When it starts, by the database's clock.
    pub started_at: DbTime,
}

/// What was claimed.
#[derive(Debug)]
pub struct ClaimReply<H> {
    /// Leased deliveries, in the order of the queue.
    pub leased: Vec<Leased<H>>,
    /// More is due than was given.
    pub more: bool,
    /// When to look again: something falls due, or a batch has waited long enough.
    pub next_due: Option<DbTime>,
    /// Where the claim stopped looking, in the order of due times.
    pub reached: Option<DbTime>,
    /// Some of it had to be given back: the next claim must come after that.
    pub behind: bool,
}

impl<H> ClaimReply<H> {
    /// Nothing is there.
    pub fn nothing() -> ClaimReply<H> {
        ClaimReply { leased: Vec::new(), more: false, next_due: None, reached: None, behind: false }
    }
}

/// What became of leases that were to be renewed. What is named nowhere is not ours any more.
#[derive(Debug, Default)]
pub struct RenewReply {
    /// Renewed, with the new claim time.
    pub renewed: Vec<(DeliveryId, DbTime)>,
    /// Locked by somebody else: still as they were.
    pub locked: Vec<DeliveryId>,
    /// When the renewed leases end: counted from before the statement was sent.
    pub expires: Option<Instant>,
}

/// What people and metrics are told.
#[derive(Debug)]
pub enum Notice {
    /// A request has ended.
    Ended {
        /// What it means.
        verdict: Verdict,
        /// How long it took.
        duration: Duration,
        /// Whether its first delivery was charged before.
        is_retry: bool,
    },
    /// A request has failed, or was told to wait.
    Failed(Failed),
    /// A delivery was given up.
    Dead {
        /// Which.
        delivery: Box<Delivery>,
        /// Why.
        reason: String,
        /// Without an attempt.
        unsent: bool,
    },
    /// The breaker has tripped. `of_operational`: by a delivery of an operational event.
    Tripped {
        /// See above.
        of_operational: bool,
    },
    /// The destination answers again.
    Recovered,
    /// The destination is disabled. `of_operational`: by a delivery of an operational event.
    Disabled {
        /// Why.
        reason: String,
        /// See above.
        of_operational: bool,
    },
}

/// A request that has failed.
#[derive(Debug)]
pub struct Failed {
    /// Its first delivery.
    pub delivery: DeliveryId,
    /// The event of that.
    pub event: EventId,
    /// The number of that attempt, from 1.
    pub attempt: u32,
    /// How many deliveries it had.
    pub deliveries: usize,
    /// What the failure means.
    pub verdict: Verdict,
    /// How long the request took.
    pub duration: Duration,
    /// What went wrong.
    pub what: String,
}
