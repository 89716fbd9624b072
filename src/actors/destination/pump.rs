//! The heart of a [`DestinationActor`]: send what may be sent, then ask for more.

use std::time::{Duration, Instant};

use actix::prelude::*;

use super::ready::{Batch, Next};
use super::{DestinationActor, Finished, InFlight, MAX_ORDERED_READY, MAX_READY};
use crate::actors::db::{Claim, DbActor, Leased};
use crate::actors::limit::Held;
use crate::actors::{outbox, turns};
use crate::clock;
use crate::model::{Answer, Attempt, DbTime, Delivery, Outcome};
use crate::outbound::Request;
use crate::policy::health::Permit;
use crate::store::deliveries::Ask;

/// Requests that a destination has in flight before it knows how fast its receiver is. A few keep a fast one
/// busy; each may cost a connection, which costs several times what a request does.
const FIRST_WIDTH: usize = 4;
/// The number doubles when a request takes longer than this ...
const PATIENCE: Duration = Duration::from_millis(10);
/// ... and this for each request that the whole process has in flight: at most so long it may have been slow
/// because of us.
const PATIENCE_PER_REQUEST: Duration = Duration::from_micros(100);

/// Deliveries that a destination asks for before its pace is known, unless it may have few requests in
/// flight: a claim for less costs more per delivery, and thousands of destinations that ask for more fill the
/// memory with what has to wait.
const MIN_READY: f64 = 32.0;

/// A backlog is claimed from its beginning again after this time, and then each time after twice as long:
/// what was committed late lies there, or leased by a process that is gone, but where vacuum can remove
/// nothing, so do the dead entries of all that was delivered.
const MIN_BEGIN_AGAIN: Duration = Duration::from_secs(4);
/// The longest such time.
const MAX_BEGIN_AGAIN: Duration = Duration::from_secs(32);

impl DestinationActor {
    /// Sends what may be sent, then asks for more.
    pub(super) fn pump(&mut self, ctx: &mut Context<Self>) {
        let now = clock::now();
        let stale = self.ready.take_stale(self.cut(), now);
        self.return_unsent(stale);
        if self.halted {
            let all = self.ready.take_all();
            self.return_unsent(all);
        } else {
            while self.send_next(now, ctx) {}
            self.claim_more(ctx);
        }
        // After its end was ordered, a newer life may have other things to remember.
        if !self.retiring {
            self.remember();
        }
        self.counting.show(self.in_flight.len(), self.health.standing());
        if self.retiring && self.in_flight.is_empty() && !self.claiming {
            self.obituary.stopped.clean = true;
            ctx.stop();
        }
    }

    /// Starts the next request if everything allows it.
    fn send_next(&mut self, now: Instant, ctx: &mut Context<Self>) -> bool {
        if self.waits_for_turn {
            return false;
        }
        if let Some(until) = self.rest_until.filter(|until| *until > now) {
            self.look_at(until, ctx);
            return false;
        }
        let in_flight = self.in_flight.len() as u32;
        let probe = match self.health.permit(self.clock.now(), in_flight, self.most_in_flight()) {
            Permit::Go if !self.may_widen(now, ctx) => return false,
            Permit::Go => false,
            Permit::Probe => true,
            Permit::Full => return false,
            Permit::Until(time) => {
                let all = self.ready.take_all();
                self.return_unsent(all);
                self.look_at(now + time.since(self.clock.now()), ctx);
                return false;
            }
        };
        let batch = match self.ready.next(self.cut(), now) {
            Next::Batch(batch) => batch,
            Next::Wait(until) => {
                self.look_at(until, ctx);
                return false;
            }
            Next::Nothing => return false,
        };
        if self.waits_for_slot || (self.slot.is_none() && !self.is_its_turn(ctx)) {
            self.ready.put_back(batch, now);
            return false;
        }
        let slots = &self.links.shared.slots;
        let take = || slots.take_one_or_wait(self.destination.org, || ctx.address().recipient());
        let Some(slot) = self.slot.take().or_else(take) else {
            self.waits_for_slot = true;
            self.ready.put_back(batch, now);
            return false;
        };
        if let Err(wait) = self.limiter.take() {
            self.ready.put_back(batch, now);
            self.look_at(now + wait, ctx);
            return false;
        }
        if probe {
            self.health.probe_started();
        }
        self.start(batch, probe, slot, ctx);
        true
    }

    /// Whether this turn of the arbiter has room for one more request. A slot that was waited for comes when
    /// another request has ended, and needs no turn.
    fn is_its_turn(&mut self, ctx: &mut Context<Self>) -> bool {
        let org = self.destination.org;
        let is = std::mem::take(&mut self.has_turn) || turns::may_start(org, || ctx.address().recipient());
        self.waits_for_turn = !is;
        is
    }

    /// Whether one more request in flight is worth a connection: a receiver that answers fast needs few, one
    /// that is slow soon gets all that it may have.
    fn may_widen(&mut self, now: Instant, ctx: &mut Context<Self>) -> bool {
        let Some((_, oldest)) = self.in_flight.first_key_value() else {
            self.width = FIRST_WIDTH;
            return true;
        };
        if self.in_flight.len() < self.width || self.ready.len() == 0 {
            return true;
        }
        let in_all = self.links.shared.slots.held() as u32;
        let slow = oldest.began.max(self.widened) + PATIENCE + PATIENCE_PER_REQUEST * in_all;
        if now < slow {
            if !std::mem::replace(&mut self.waits_to_widen, true) {
                ctx.run_later(slow - now, |this, ctx| {
                    this.waits_to_widen = false;
                    this.pump(ctx);
                });
            }
            return false;
        }
        self.width *= 2;
        self.widened = now;
        true
    }

    fn start(&mut self, batch: Batch, probe: bool, slot: Held, ctx: &mut Context<Self>) {
        self.next_request += 1;
        let request = self.next_request;
        let started_at = self.clock.now();
        let deliveries: Vec<Delivery> = batch.deliveries().cloned().collect();
        let sender = self.sender.clone();
        // A batch that was made before batch_size became 1 is still one.
        let as_batch = self.batch_size() > 1 || deliveries.len() > 1;
        let report =
            Report { to: ctx.address(), finished: Some(Finished { request, attempt: panicked(started_at) }) };
        let task = actix_rt::spawn(async move {
            // Moved as a whole: it must be dropped when the task is.
            let mut report = report;
            #[cfg(test)]
            assert_ne!(deliveries[0].event.event_type, "panic", "a test asked for it");
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
        let began = clock::now();
        self.in_flight.insert(request, InFlight { batch, began, started_at, probe, task, _slot: slot });
    }

    /// Asks for more work if there may be any and little is ready.
    fn claim_more(&mut self, ctx: &mut Context<Self>) {
        let want = self.wanted();
        if self.claiming || !self.hungry || want == 0 {
            return;
        }
        let is_ordered = self.destination.settings.ordered;
        self.claiming = true;
        let now = clock::now();
        let since = self.reached.filter(|_| !is_ordered && now < self.began + self.begin_again);
        if since.is_none() {
            let last = self.reached.take().map_or(Duration::ZERO, |_| self.begin_again);
            self.begin_again = (last * 2).clamp(MIN_BEGIN_AGAIN, MAX_BEGIN_AGAIN);
            (self.hinted, self.began) = (false, now);
        }
        let ask = Ask {
            destination: self.destination.id,
            want,
            since,
            max_bytes: 0,
            ordered: is_ordered.then_some(self.ordered),
        };
        let after_results = is_ordered || std::mem::take(&mut self.behind);
        self.db().do_send(Claim {
            org: self.destination.org,
            ask,
            after_results,
            line: self.line,
            reply: ctx.address().recipient(),
        });
    }

    /// How many deliveries to claim now: enough for about a second at the present pace, at least two rounds
    /// of what may be in flight, nothing while nothing may be sent.
    fn wanted(&self) -> u32 {
        let now = self.clock.now();
        let in_flight = self.in_flight.len() as u32;
        let batch = self.batch_size() as f64;
        if self.rest_until.is_some_and(|until| until > clock::now()) {
            return 0;
        }
        match self.health.permit(now, in_flight, self.most_in_flight()) {
            Permit::Until(_) => return 0,
            Permit::Full if self.health.is_tripped() => return 0,
            Permit::Probe if self.ready.len() > 0 => return 0,
            Permit::Probe => return self.destination.batch_size,
            Permit::Go | Permit::Full => {}
        }
        // An ordered claim must not be repeated while any of its leases lives: that would be refused.
        if self.destination.settings.ordered && (self.ready.len() > 0 || in_flight > 0) {
            return 0;
        }
        let allowed = self.health.allowed(self.most_in_flight()) as usize;
        let two_rounds = |requests: usize| 2.0 * requests as f64 * batch;
        let at_least = two_rounds(allowed).min(MIN_READY);
        let rounds =
            two_rounds(self.width.max(FIRST_WIDTH).min(allowed)).max(at_least).max(self.pace.per_second);
        let by_rate = self.limiter.per_second().max(1.0).ceil() * batch;
        let most = if self.destination.settings.ordered { MAX_ORDERED_READY } else { MAX_READY };
        let target = rounds.min(by_rate).min(most).max(batch);
        let ready = self.ready.len() as f64;
        let filling = !self.destination.settings.batch_wait.is_zero() && ready < batch;
        if ready > target / 2.0 && !filling { 0 } else { (target - ready).max(1.0) as u32 }
    }

    /// Gives deliveries back that were never sent.
    pub(super) fn return_unsent(&mut self, leased: Vec<Leased>) {
        if !leased.is_empty() {
            // They lie before the point that the last claim reached, or one under way will reach.
            self.begin_again = Duration::ZERO;
            self.hungry = true;
            self.behind = true;
            self.record(leased.iter().map(|leased| Outcome::given_back(&leased.delivery)).collect());
        }
    }

    /// Whatever it is sent comes after the results from before.
    pub(super) fn db(&self) -> &Addr<DbActor> {
        outbox::flush();
        &self.links.db
    }

    pub(super) fn record(&self, outcomes: Vec<Outcome>) {
        if !outcomes.is_empty() {
            outbox::record(&self.links.db, outcomes);
        }
    }
}

/// How many deliveries end per second, to know how many to hold ready.
pub(super) struct Pace {
    since: Instant,
    ended: u32,
    per_second: f64,
}

impl Pace {
    /// Long enough to be steady, short enough to follow.
    const WINDOW: Duration = Duration::from_millis(250);

    pub(super) fn new(now: Instant) -> Pace {
        Pace { since: now, ended: 0, per_second: 0.0 }
    }

    pub(super) fn note(&mut self, ended: usize, now: Instant) {
        self.ended += ended as u32;
        let passed = now.saturating_duration_since(self.since);
        if passed >= Pace::WINDOW {
            let measured = f64::from(self.ended) / passed.as_secs_f64();
            self.per_second = measured.max(self.per_second / 2.0);
            (self.since, self.ended) = (now, 0);
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
