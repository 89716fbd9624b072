//! The [`DestinationActor`]: everything about one destination, and nothing about any other.
//!
//! After whatever happens (a claim granted, a request ended, a hint, a timer) it runs
//! `pump`: send what may be sent, then ask for more. It pulls; nobody pushes deliveries
//! at it. Requests run in tasks of their own and report back with `Finished`, so a slow one never keeps the
//! actor from its mailbox.

mod limiter;
mod pump;
mod ready;
mod settle;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use actix::prelude::*;
use actix_rt::task::JoinHandle;

use self::limiter::Limiter;
use self::pump::Pace;
use self::ready::{Batch, Cut, Ready};
use super::Shared;
use super::db::{DbActor, Granted, Line, Remember};
use super::limit::{Freed, Held};
use super::outbox;
use super::tally::Counting;
use super::turns::Turn;
use crate::clock::{self, DbClock};
use crate::model::{Attempt, DbTime, Destination, DestinationId};
use crate::outbound::{Sender, Target};
use crate::policy::health::{Health, Limits, Saved};
use crate::store::deliveries::Ordered;

/// Deliveries that one destination holds ready at most: about a second's work of a fast one.
const MAX_READY: f64 = 1_000.0;
/// The same for an ordered destination, which gives all of it back when one fails.
const MAX_ORDERED_READY: f64 = 200.0;
/// A due time computed here and one computed by the database differ by the way between them.
const DUE_SLACK: Duration = Duration::from_millis(5);
/// After trouble of our own (no descriptors left, a task that panicked) the destination rests for this long.
const OWN_TROUBLE_REST: Duration = Duration::from_secs(1);

/// From the supervisor: look again. It may say nothing more.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Wake;

/// From the supervisor, at each poll, which does not look for work of a destination with a backlog: go on, if
/// only to give back what has been ready for too long.
#[derive(Message)]
#[rtype(result = "()")]
pub struct GoOn;

/// From the supervisor: the row or its settings have changed. The state comes along, as enabling clears it.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Reconfigure(pub Box<Destination>, pub Saved);

/// From the supervisor: give back what has not started, end what has, and stop. What is still running after
/// the grace is aborted and given back uncharged; `None` waits for as long as it takes.
#[derive(Message, Clone, Copy)]
#[rtype(result = "()")]
pub struct Retire(pub Option<Duration>);

/// To the supervisor: this actor is gone.
#[derive(Message, Clone, Copy, Debug)]
#[rtype(result = "()")]
pub struct Stopped {
    /// Which destination.
    pub destination: DestinationId,
    /// Which life of it.
    pub generation: u64,
    /// Whether it ended as it should; otherwise something panicked.
    pub clean: bool,
}

/// From the task of a request: how it ended.
#[derive(Message)]
#[rtype(result = "()")]
struct Finished {
    request: u64,
    attempt: Attempt,
}

/// Asks for the actor's state.
#[derive(Message)]
#[rtype(result = "DestinationSnapshot")]
pub struct Snapshot;

/// The state of a [`DestinationActor`].
#[derive(Clone, Debug, serde::Serialize, MessageResponse)]
pub struct DestinationSnapshot {
    /// Which destination.
    pub destination: DestinationId,
    /// Leased and not yet sent.
    pub ready: usize,
    /// Requests in flight.
    pub in_flight: usize,
    /// Whether the breaker has tripped.
    pub tripped: bool,
    /// Nothing is sent before.
    pub paused_until: Option<DbTime>,
    /// What is wrong with its configuration.
    pub fault: Option<String>,
}

struct InFlight {
    batch: Batch,
    began: Instant,
    started_at: DbTime,
    probe: bool,
    task: JoinHandle<()>,
    _slot: Held,
}

/// Tells the supervisor when the actor is dropped, however that came about.
struct Obituary {
    stopped: Stopped,
    to: Recipient<Stopped>,
}

impl Drop for Obituary {
    fn drop(&mut self) {
        outbox::flush();
        self.to.do_send(self.stopped);
    }
}

/// Whom an actor of this kind sends to, and what all of them share.
#[derive(Clone)]
pub struct Links {
    /// Claims and results.
    pub db: Addr<DbActor>,
    /// Reports.
    pub stopped: Recipient<Stopped>,
    /// Configuration and limits.
    pub shared: Arc<Shared>,
    /// Set by the supervisor with a [`Wake`] under way, so that a flood of hints is one message.
    pub woken: Arc<AtomicBool>,
}

/// See the module.
pub struct DestinationActor {
    destination: Box<Destination>,
    links: Links,
    obituary: Obituary,
    sender: Result<Rc<Sender>, String>,
    limiter: Limiter,
    counting: Counting,
    health: Health,
    saved: Saved,
    clock: DbClock,
    ready: Ready,
    /// By number, and so by age.
    in_flight: BTreeMap<u64, InFlight>,
    next_request: u64,
    /// Requests in flight that the receiver has been found worth of.
    width: usize,
    /// When `width` last grew.
    widened: Instant,
    waits_to_widen: bool,
    /// Something may be due that was not claimed yet.
    hungry: bool,
    claiming: bool,
    /// A hint came since the last claim from the beginning, which may not have seen what it is about.
    hinted: bool,
    /// When that claim was asked for.
    began: Instant,
    /// How long after `began` the next one comes, while there is a backlog.
    begin_again: Duration,
    /// Results were sent that make deliveries due again: the next claim must see them.
    behind: bool,
    /// Whether the last claim left something.
    line: Line,
    /// Where the last claim stopped looking, and the next one goes on.
    reached: Option<DbTime>,
    /// How far an ordered claim has to look for leases of others.
    ordered: Ordered,
    waits_for_slot: bool,
    waits_for_turn: bool,
    /// The turn that was waited for, until it is used.
    has_turn: bool,
    /// The slot that was waited for, until it is used.
    slot: Option<Held>,
    timer: Option<(SpawnHandle, Instant)>,
    pace: Pace,
    rest_until: Option<Instant>,
    /// Nothing is sent any more: it was disabled, or is about to stop.
    halted: bool,
    retiring: bool,
}

impl DestinationActor {
    /// An actor for `destination`, with the health that was saved, in its `generation`-th life.
    pub fn new(
        destination: Box<Destination>,
        saved: Saved,
        db_clock: DbClock,
        generation: u64,
        links: Links,
    ) -> Self {
        // Before anything else: what panics below is told as well.
        let stopped = Stopped { destination: destination.id, generation, clean: false };
        let obituary = Obituary { stopped, to: links.stopped.clone() };
        let mut actor = DestinationActor {
            sender: Err(String::new()),
            limiter: Limiter::new(&destination.settings),
            counting: links.shared.tallies.register(destination.id, destination.org),
            health: Health::new(limits(&links.shared), saved),
            saved,
            clock: db_clock,
            ready: Ready::default(),
            in_flight: BTreeMap::new(),
            next_request: 0,
            width: 0,
            widened: clock::now(),
            waits_to_widen: false,
            hungry: false,
            claiming: false,
            hinted: false,
            began: clock::now(),
            begin_again: Duration::ZERO,
            behind: false,
            line: Line::New,
            reached: None,
            ordered: Ordered::Everywhere,
            waits_for_slot: false,
            waits_for_turn: false,
            has_turn: false,
            slot: None,
            timer: None,
            pace: Pace::new(clock::now()),
            rest_until: None,
            halted: false,
            retiring: false,
            obituary,
            destination,
            links,
        };
        actor.sender = actor.compile();
        actor
    }

    fn compile(&self) -> Result<Rc<Sender>, String> {
        match Target::compile(&self.destination, &self.links.shared.network) {
            Ok(target) => Ok(Rc::new(Sender::new(target, &self.links.shared.network))),
            Err(fault) => {
                log::warn!("destination={} cannot be used: {fault}", self.destination.id);
                Err(fault.to_string())
            }
        }
    }

    fn most_in_flight(&self) -> u32 {
        let settings = &self.destination.settings;
        if settings.ordered {
            return 1;
        }
        settings.max_in_flight.unwrap_or(self.links.shared.config.destination_in_flight)
    }

    fn batch_size(&self) -> usize {
        self.destination.batch_size as usize
    }

    fn cut(&self) -> Cut {
        Cut {
            events: self.batch_size(),
            bytes: self.links.shared.config.max_event_bytes,
            wait: self.destination.settings.batch_wait,
            timeout: self.destination.timeout,
        }
    }

    /// Has the state written when it has changed.
    fn remember(&mut self) {
        let saved = self.health.saved(self.clock.now());
        if saved != self.saved {
            self.saved = saved;
            self.db().do_send(Remember(self.destination.id, saved));
        }
    }

    /// Looks for work again at `moment`, unless it will do so earlier.
    fn look_at(&mut self, moment: Instant, ctx: &mut Context<Self>) {
        if let Some((handle, at)) = self.timer {
            if at <= moment {
                return;
            }
            ctx.cancel_future(handle);
        }
        let wait = moment.saturating_duration_since(clock::now());
        let handle = ctx.run_later(wait, |this, ctx| {
            this.timer = None;
            this.look(ctx);
        });
        self.timer = Some((handle, moment));
    }

    /// Looks for work again, and from the beginning before it rests.
    fn look(&mut self, ctx: &mut Context<Self>) {
        self.hungry = true;
        self.hinted = true;
        self.pump(ctx);
    }
}

fn limits(shared: &Shared) -> Limits {
    Limits {
        threshold: shared.config.breaker_threshold,
        auto_disable_after: shared.config.auto_disable_after,
    }
}

impl Actor for DestinationActor {
    type Context = Context<Self>;
}

impl Handler<Wake> for DestinationActor {
    type Result = ();

    fn handle(&mut self, _: Wake, ctx: &mut Self::Context) {
        self.links.woken.store(false, Ordering::Release);
        self.look(ctx);
    }
}

impl Handler<GoOn> for DestinationActor {
    type Result = ();

    fn handle(&mut self, _: GoOn, ctx: &mut Self::Context) {
        self.pump(ctx);
    }
}

impl Handler<Freed> for DestinationActor {
    type Result = ();

    fn handle(&mut self, Freed(slot): Freed, ctx: &mut Self::Context) {
        self.waits_for_slot = false;
        self.slot = slot;
        self.pump(ctx);
        // Not needed any more: somebody else may have it.
        self.slot = None;
    }
}

impl Handler<Turn> for DestinationActor {
    type Result = ();

    fn handle(&mut self, _: Turn, ctx: &mut Self::Context) {
        self.waits_for_turn = false;
        self.has_turn = true;
        self.pump(ctx);
        self.has_turn = false;
    }
}

impl Handler<Granted> for DestinationActor {
    type Result = ();

    fn handle(&mut self, granted: Granted, ctx: &mut Self::Context) {
        self.claiming = false;
        self.hungry = granted.more || self.hinted;
        self.line = if granted.more { Line::Backlog } else { Line::New };
        self.links.shared.backlogs.note(self.destination.id, granted.more && !self.halted);
        self.behind |= granted.behind;
        let goes_on = granted.more && !granted.behind && !self.destination.settings.ordered;
        self.reached = granted.reached.or(self.reached).filter(|_| goes_on);
        if let Some(clock) = granted.clock {
            self.clock = clock;
        }
        if !granted.leased.is_empty() {
            // Not refused: there is no lease of anybody else.
            self.ordered = Ordered::Near;
        }
        if let Some(due) = granted.next_due {
            self.look_at(clock::now() + due.since(self.clock.now()) + DUE_SLACK, ctx);
        }
        self.accept(granted.leased);
        self.pump(ctx);
    }
}

impl Handler<Finished> for DestinationActor {
    type Result = ();

    fn handle(&mut self, finished: Finished, ctx: &mut Self::Context) {
        if let Some(ended) = self.in_flight.remove(&finished.request) {
            self.settle(ended, finished.attempt, ctx);
            self.pump(ctx);
        }
    }
}

impl Handler<Reconfigure> for DestinationActor {
    type Result = ();

    fn handle(&mut self, Reconfigure(destination, saved): Reconfigure, ctx: &mut Self::Context) {
        log::info!("destination={} has changed", destination.id);
        if self.halted {
            // It asked to be disabled and is loaded as enabled: that life is over, the supervisor starts
            // another one.
            self.retiring = true;
            self.pump(ctx);
            return;
        }
        let rate = |d: &Destination| (d.settings.rate_limit_per_second, d.settings.rate_limit_burst);
        if rate(&destination) != rate(&self.destination) {
            self.limiter = Limiter::new(&destination.settings);
        }
        if destination.settings.ordered != self.destination.settings.ordered {
            self.ordered = Ordered::Everywhere;
            // A claim under way goes by the other order.
            self.begin_again = Duration::ZERO;
            let all = self.ready.take_all();
            self.return_unsent(all);
        }
        // Encrypting a secret, for one, changes the row and not the destination: connections are kept.
        if destination != self.destination {
            self.destination = destination;
            self.sender = self.compile();
        }
        if saved == Saved::default() && self.saved != saved {
            self.health = Health::new(limits(&self.links.shared), saved);
            self.saved = saved;
        }
        self.health.reconfigured(self.clock.now(), limits(&self.links.shared));
        self.look(ctx);
    }
}

#[cfg(test)]
impl Handler<super::Panic> for DestinationActor {
    type Result = ();

    fn handle(&mut self, _: super::Panic, _: &mut Self::Context) {
        panic!("a test asked for this");
    }
}

impl Handler<Retire> for DestinationActor {
    type Result = ();

    fn handle(&mut self, Retire(grace): Retire, ctx: &mut Self::Context) {
        self.halted = true;
        self.retiring = true;
        self.links.shared.backlogs.note(self.destination.id, false);
        if let Some(grace) = grace {
            ctx.run_later(grace, |this, ctx| {
                let aborted: Vec<InFlight> = std::mem::take(&mut this.in_flight).into_values().collect();
                for in_flight in aborted {
                    in_flight.task.abort();
                    this.return_unsent(in_flight.batch.leased);
                }
                // A claim that is still under way gives itself back when nobody is there to take it.
                this.claiming = false;
                this.pump(ctx);
            });
        }
        self.pump(ctx);
    }
}

impl Handler<Snapshot> for DestinationActor {
    type Result = DestinationSnapshot;

    fn handle(&mut self, _: Snapshot, _: &mut Self::Context) -> DestinationSnapshot {
        DestinationSnapshot {
            destination: self.destination.id,
            ready: self.ready.len(),
            in_flight: self.in_flight.len(),
            tripped: self.health.is_tripped(),
            paused_until: self.health.saved(self.clock.now()).paused_until,
            fault: self.sender.as_ref().err().cloned(),
        }
    }
}
