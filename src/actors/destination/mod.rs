//! The [`DestinationActor`]: everything about one destination, and nothing about any other.
//!
//! What it does next is decided by its [`Machine`]; the actor translates messages into events, and effects
//! into messages, timers, tasks and log lines. Requests run in tasks of their own and report back with
//! `Finished`, so a slow one never keeps the actor from its mailbox. It pulls; nobody pushes deliveries at
//! it.

mod rules;
mod tell;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use actix::prelude::*;
use actix_rt::task::JoinHandle;

use self::rules::rules;
use super::Shared;
use super::db::DbActor;
use super::limit::{Freed, Held};
use super::messages::{Claim, ClaimDone, Disable, Remember, Renew, Renewed};
use super::metrics::Counting;
use super::start_pacer::Turn;
use super::{result_buffer, start_pacer};
use crate::clock::{self, DbClock};
use crate::dispatch::{self, Effect, Event, Machine, Moment};
use crate::model::{Answer, Attempt, DbTime, Destination, DestinationId};
use crate::outbound::{Request, Sender, Target};
use crate::policy::health::{Saved, Standing};
use crate::store::deliveries::Ask;

/// From the supervisor: look again. It may say nothing more.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Wake;

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

/// Tells the supervisor when the actor is dropped, however that came about.
struct StopGuard {
    stopped: Stopped,
    to: Recipient<Stopped>,
}

impl Drop for StopGuard {
    fn drop(&mut self) {
        result_buffer::flush();
        self.to.do_send(self.stopped);
    }
}

/// Whom an actor of this kind sends to, and what all of them share.
#[derive(Clone)]
pub struct Handles {
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
    handles: Handles,
    guard: StopGuard,
    sender: Result<Rc<Sender>, String>,
    counting: Counting,
    clock: DbClock,
    machine: Machine<Held>,
    /// Requests in flight, each with its slot.
    tasks: BTreeMap<u64, (JoinHandle<()>, Held)>,
    /// The slot that the machine has asked for.
    slot: Option<Held>,
    alarm: Option<SpawnHandle>,
}

impl DestinationActor {
    /// An actor for `destination`, with the health that was saved, in its `generation`-th life.
    pub fn new(
        destination: Box<Destination>,
        saved: Saved,
        db_clock: DbClock,
        generation: u64,
        handles: Handles,
    ) -> Self {
        // Before anything else: what panics below is told as well.
        let stopped = Stopped { destination: destination.id, generation, clean: false };
        let guard = StopGuard { stopped, to: handles.stopped.clone() };
        DestinationActor {
            sender: compile(&destination, &handles.shared),
            counting: handles.shared.metrics.register(destination.id, destination.org),
            clock: db_clock,
            machine: Machine::new(rules(&destination, &handles.shared), saved, clock::now()),
            tasks: BTreeMap::new(),
            slot: None,
            alarm: None,
            guard,
            destination,
            handles,
        }
    }

    /// Has the machine decide, and does what it decided.
    fn handle_event(&mut self, event: Event<Held>, ctx: &mut Context<Self>) {
        self.decide(event);
        self.perform_all(ctx);
    }

    fn perform_all(&mut self, ctx: &mut Context<Self>) {
        while let Some(effect) = self.machine.next_effect() {
            self.perform(effect, ctx);
        }
        self.counting.show(self.machine.in_flight(), self.machine.standing());
    }

    fn decide(&mut self, event: Event<Held>) {
        let now = clock::now();
        let busy = self.handles.shared.slots.held() as u32;
        self.machine.handle(event, Moment { now, db_now: self.clock.at(now), chance: fastrand::f64(), busy });
    }

    fn perform(&mut self, effect: Effect, ctx: &mut Context<Self>) {
        let id = self.destination.id;
        match effect {
            Effect::AcquireSlot => {
                // A slot that was waited for comes when another request has ended, and needs no turn.
                if start_pacer::may_start(self.destination.org, || ctx.address().recipient()) {
                    self.acquire_slot(ctx);
                }
            }
            Effect::ReleaseSlot => self.slot = None,
            Effect::Send(request) => self.send(request, ctx),
            Effect::Abort(request) => {
                if let Some((task, _)) = self.tasks.remove(&request) {
                    task.abort();
                }
            }
            Effect::Claim(claim) => self.claim(claim, ctx),
            Effect::Renew(leases) => {
                let reply = ctx.address().recipient();
                self.db().do_send(Renew { leases, is_uncertain: false, reply });
            }
            Effect::Record(outcomes) => result_buffer::record(&self.handles.db, outcomes),
            Effect::WakeAt(moment) => self.wake_at(moment, ctx),
            Effect::Remember(saved) => self.db().do_send(Remember(id, saved)),
            Effect::Backlog(has_backlog) => self.handles.shared.backlogs.note(id, has_backlog),
            Effect::Disable(reason) => self.db().do_send(Disable(id, reason)),
            Effect::Tell(notice) => self.tell(notice),
            Effect::Stop => {
                self.guard.stopped.clean = true;
                ctx.stop();
            }
        }
    }

    /// Gets a slot of the process, now or when it is its organization's turn.
    fn acquire_slot(&mut self, ctx: &mut Context<Self>) {
        let slots = &self.handles.shared.slots;
        self.slot = slots.take_one_or_wait(self.destination.org, || ctx.address().recipient());
        if self.slot.is_some() {
            self.decide(Event::SlotAcquired);
        }
    }

    fn send(&mut self, send: dispatch::Send, ctx: &mut Context<Self>) {
        let dispatch::Send { request, deliveries, as_batch, started_at } = send;
        let Some(slot) = self.slot.take() else { return };
        let sender = self.sender.clone();
        let report =
            Report { to: ctx.address(), finished: Some(Finished { request, attempt: panicked(started_at) }) };
        let task = actix_rt::spawn(async move {
            // Moved as a whole: it must be dropped when the task is.
            let mut report = report;
            #[cfg(test)]
            match deliveries[0].event.event_type.as_str() {
                "panic" => panic!("a test asked for it"),
                "freeze" => super::freeze(),
                _ => {}
            }
            let attempt = match &sender {
                Ok(sender) => {
                    let attempt_number = deliveries[0].attempts + 1;
                    let request =
                        Request { deliveries: &deliveries, batch: as_batch, attempt_number, started_at };
                    sender.attempt(request).await
                }
                Err(fault) => {
                    Attempt { started_at, duration: Duration::ZERO, answer: Answer::Failed(fault.clone()) }
                }
            };
            report.finished = Some(Finished { request, attempt });
        });
        self.tasks.insert(request, (task, slot));
    }

    fn claim(&mut self, claim: dispatch::Claim, ctx: &mut Context<Self>) {
        let dispatch::Claim { want, since, ordered, fill, after_results, urgency } = claim;
        let ask = Ask { destination: self.destination.id, want, since, max_bytes: 0, ordered, fill };
        let (org, reply) = (self.destination.org, ctx.address().recipient());
        self.db().do_send(Claim { org, ask, after_results, urgency, max_group_size: usize::MAX, reply });
    }

    fn wake_at(&mut self, moment: Instant, ctx: &mut Context<Self>) {
        if let Some(alarm) = self.alarm.take() {
            ctx.cancel_future(alarm);
        }
        let wait = moment.saturating_duration_since(clock::now());
        self.alarm = Some(ctx.run_later(wait, |this, ctx| {
            this.alarm = None;
            this.handle_event(Event::TimeCame, ctx);
        }));
    }

    /// Whatever it is sent comes after the results from before.
    fn db(&self) -> &Addr<DbActor> {
        result_buffer::flush();
        &self.handles.db
    }
}

fn compile(destination: &Destination, shared: &Shared) -> Result<Rc<Sender>, String> {
    match Target::compile(destination, &shared.network) {
        Ok(target) => Ok(Rc::new(Sender::new(target, &shared.network))),
        Err(fault) => {
            log::warn!("destination={} cannot be used: {fault}", destination.id);
            Err(fault.to_string())
        }
    }
}

fn panicked(started_at: DbTime) -> Attempt {
    let answer = Answer::OurFault("posthaste: the request ended in a panic, please report this".into());
    Attempt { started_at, duration: Duration::ZERO, answer }
}

/// Reports the end of a request when the task is dropped: by then it has its attempt, or has panicked.
struct Report {
    to: Addr<DestinationActor>,
    finished: Option<Finished>,
}

impl Drop for Report {
    fn drop(&mut self) {
        if let Some(finished) = self.finished.take() {
            self.to.do_send(finished);
        }
    }
}

impl Actor for DestinationActor {
    type Context = Context<Self>;
}

impl Handler<Wake> for DestinationActor {
    type Result = ();

    fn handle(&mut self, _: Wake, ctx: &mut Self::Context) {
        self.handles.woken.store(false, Ordering::Release);
        self.handle_event(Event::Woken, ctx);
    }
}

impl Handler<Freed> for DestinationActor {
    type Result = ();

    fn handle(&mut self, Freed(slot): Freed, ctx: &mut Self::Context) {
        self.slot = slot;
        self.handle_event(Event::SlotAcquired, ctx);
    }
}

impl Handler<Turn> for DestinationActor {
    type Result = ();

    fn handle(&mut self, _: Turn, ctx: &mut Self::Context) {
        self.acquire_slot(ctx);
        self.perform_all(ctx);
    }
}

impl Handler<ClaimDone> for DestinationActor {
    type Result = ();

    fn handle(&mut self, ClaimDone { mut reply, clock }: ClaimDone, ctx: &mut Self::Context) {
        if let Some(clock) = clock {
            self.clock = clock;
        }
        if let Ok(sender) = &self.sender {
            let format = sender.target().format();
            reply
                .leased
                .iter_mut()
                .for_each(|leased| leased.bytes = format.event_bytes(&leased.delivery.event));
        }
        self.handle_event(Event::Claimed(reply), ctx);
    }
}

impl Handler<Renewed> for DestinationActor {
    type Result = ();

    fn handle(&mut self, Renewed(reply): Renewed, ctx: &mut Self::Context) {
        self.handle_event(Event::Renewed(reply), ctx);
    }
}

impl Handler<Finished> for DestinationActor {
    type Result = ();

    fn handle(&mut self, Finished { request, attempt }: Finished, ctx: &mut Self::Context) {
        // Its slot is free for somebody else from now on.
        self.tasks.remove(&request);
        self.handle_event(Event::Finished { request, attempt }, ctx);
    }
}

impl Handler<Reconfigure> for DestinationActor {
    type Result = ();

    fn handle(&mut self, Reconfigure(destination, saved): Reconfigure, ctx: &mut Self::Context) {
        log::info!("destination={} has changed", destination.id);
        // Encrypting a secret, for one, changes the row and not the destination: connections are kept.
        if destination != self.destination && !self.machine.is_halted() {
            self.sender = compile(&destination, &self.handles.shared);
            self.destination = destination;
        }
        let rules = rules(&self.destination, &self.handles.shared);
        self.handle_event(Event::Reconfigured(Box::new(rules), saved), ctx);
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
        if let Some(grace) = grace {
            ctx.run_later(grace, |this, ctx| this.handle_event(Event::GraceOver, ctx));
        }
        self.handle_event(Event::Retired, ctx);
    }
}

impl Handler<Snapshot> for DestinationActor {
    type Result = DestinationSnapshot;

    fn handle(&mut self, _: Snapshot, _: &mut Self::Context) -> DestinationSnapshot {
        DestinationSnapshot {
            destination: self.destination.id,
            ready: self.machine.ready(),
            in_flight: self.machine.in_flight(),
            tripped: self.machine.standing() == Standing::Tripped,
            paused_until: self.machine.saved(self.clock.now()).paused_until,
            fault: self.sender.as_ref().err().cloned(),
        }
    }
}
