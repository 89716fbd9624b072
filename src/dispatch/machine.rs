//! The state of one destination, and what each event makes of it.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::batcher::{Batcher, Next};
use super::bisections::Batch;
use super::claim_cursor::{ClaimCursor, ClaimSummary};
use super::concurrency::Concurrency;
use super::lease::Leased;
use super::pace::Pace;
use super::rate_limit::RateLimit;
use super::timers::{Due, Timers};
use super::{ClaimReply, Effect, Event, Moment, RenewReply, Rules, Send};
use crate::model::{DbTime, Delivery, Fill, Outcome};
use crate::policy::health::{Health, Permit, Saved, Standing};

/// Deliveries that one destination holds ready at most: about a second's work of a fast one. A batch may be
/// larger.
const MAX_READY: f64 = 1_000.0;
/// The same for an ordered destination, which gives all of it back when one fails.
const MAX_ORDERED_READY: f64 = 200.0;
/// Deliveries that a destination asks for before its pace is known, unless it may have few requests in
/// flight: a claim for less costs more per delivery, and thousands of destinations that ask for more fill the
/// memory with what has to wait.
const MIN_READY: f64 = 32.0;
/// A due time computed here and one computed by the database differ by the way between them.
pub(super) const DUE_SLACK: Duration = Duration::from_millis(5);
/// After trouble of our own (no descriptors left, a task that panicked) the destination rests for this long.
pub(super) const OWN_TROUBLE_REST: Duration = Duration::from_secs(1);

/// Where the rate limit lets nothing through for longer than this, nothing is held ready meanwhile.
const LONG_REST: Duration = Duration::from_secs(10);

/// A request in flight.
pub(super) struct InFlight<H> {
    pub(super) batch: Batch<H>,
    pub(super) began: Instant,
    pub(super) started_at: DbTime,
    pub(super) probe: bool,
}

/// What may still be done.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    /// Nothing is sent any more: it was disabled.
    Halted,
    /// Nor will it be: it stops when nothing is in flight.
    Retiring,
}

/// See the module of all.
pub struct Machine<H> {
    pub(super) rules: Rules,
    pub(super) health: Health,
    saved: Saved,
    phase: Phase,
    rate: RateLimit,
    concurrency: Concurrency,
    pub(super) cursor: ClaimCursor,
    pub(super) batcher: Batcher<H>,
    /// By number, and so by age.
    pub(super) in_flight: BTreeMap<u64, InFlight<H>>,
    next_request: u64,
    pub(super) pace: Pace,
    pub(super) timers: Timers,
    waits_for_slot: bool,
    pub(super) rest_until: Option<Instant>,
    had_backlog: bool,
    effects: VecDeque<Effect>,
}

impl<H> Machine<H> {
    /// A destination with `rules` and the health that was `saved`, which does nothing until it is woken.
    pub fn new(rules: Rules, saved: Saved, now: Instant) -> Machine<H> {
        Machine {
            health: Health::new(rules.limits, saved),
            saved,
            phase: Phase::Running,
            rate: RateLimit::new(&rules, now),
            concurrency: Concurrency::new(now),
            cursor: ClaimCursor::new(now),
            batcher: Batcher::new(now),
            in_flight: BTreeMap::new(),
            next_request: 0,
            pace: Pace::new(now),
            timers: Timers::default(),
            waits_for_slot: false,
            rest_until: None,
            had_backlog: false,
            effects: VecDeque::new(),
            rules,
        }
    }

    /// Takes in what has happened. What is to be done about it comes from [`Machine::next_effect`].
    pub fn handle(&mut self, event: Event<H>, at: Moment) {
        match event {
            Event::Woken => self.cursor.hint(),
            Event::TimeCame => {
                if self.timers.came(at.now) == Due::Look {
                    self.cursor.hint();
                }
            }
            Event::SlotAcquired => self.use_slot(at),
            Event::Claimed(reply) => self.claimed(reply, at),
            Event::Renewed(reply) => self.renewed(&reply, at),
            Event::Finished { request, attempt } => self.finished(request, attempt, at),
            Event::Reconfigured(rules, saved) => self.reconfigured(*rules, saved, at),
            Event::Retired => self.phase = Phase::Retiring,
            Event::GraceOver => self.abort_all(at),
        }
        self.pump(at);
    }

    /// What is to be done next, in the order in which it was decided.
    pub fn next_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Deliveries that are leased and not yet sent.
    pub fn ready(&self) -> usize {
        self.batcher.len()
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// How the breaker stands.
    pub fn standing(&self) -> Standing {
        self.health.standing()
    }

    /// What should be remembered of its health.
    pub fn saved(&self, now: DbTime) -> Saved {
        self.health.saved(now)
    }

    /// Whether it was disabled, or is about to stop.
    pub fn is_halted(&self) -> bool {
        self.phase != Phase::Running
    }

    /// Sends what may be sent, renews the leases of the rest, then asks for more.
    fn pump(&mut self, at: Moment) {
        if self.is_halted() {
            let all = self.batcher.take_all();
            self.give_back(all);
        } else {
            // What may be sent at once needs no renewal: where that takes long, it would never be free.
            if !self.want_slot(at) {
                self.renew(at);
            }
            self.claim_more(at);
        }
        self.show_backlog();
        // After its end was ordered, a newer life may have other things to remember.
        let saved = self.health.saved(at.db_now);
        if self.phase != Phase::Retiring && saved != self.saved {
            self.saved = saved;
            self.effects.push_back(Effect::Remember(saved));
        }
        let busy = !self.in_flight.is_empty() || self.cursor.is_claiming() || self.batcher.is_renewing();
        if self.phase == Phase::Retiring && !busy {
            self.effects.push_back(Effect::Stop);
            return;
        }
        if let Some(moment) = self.batcher.renew_at().filter(|_| !self.is_halted()) {
            self.timers.go_on_at(moment);
        }
        if let Some(moment) = self.timers.alarm() {
            self.effects.push_back(Effect::WakeAt(moment));
        }
    }

    /// Asks for a slot if there is something to send and everything else allows it. Whether it did.
    fn want_slot(&mut self, at: Moment) -> bool {
        let wants = !self.waits_for_slot && self.sendable(at).is_some();
        if wants {
            self.waits_for_slot = true;
            self.effects.push_back(Effect::AcquireSlot);
        }
        wants
    }

    /// Renews the leases of what has to wait for longer than they last.
    fn renew(&mut self, at: Moment) {
        let leases = self.batcher.renew(&self.rules, at.now);
        if !leases.is_empty() {
            self.effects.push_back(Effect::Renew(leases));
        }
    }

    /// Sends with the slot that was asked for, unless something has changed meanwhile.
    fn use_slot(&mut self, at: Moment) {
        self.waits_for_slot = false;
        let sent = !self.is_halted() && self.send(at);
        if !sent {
            self.effects.push_back(Effect::ReleaseSlot);
        }
    }

    fn send(&mut self, at: Moment) -> bool {
        let Some((next, probe)) = self.sendable(at) else { return false };
        if let Err(moment) = self.rate.take(at.now) {
            self.timers.go_on_at(moment);
            return false;
        }
        let Some(batch) = self.batcher.take(next, at.now) else { return false };
        let batch = self.without_expired(batch, at);
        if batch.leased.is_empty() {
            self.batcher.bisections.ended(&batch);
            return false;
        }
        if probe {
            self.health.probe_started();
        }
        self.next_request += 1;
        let started_at = at.db_now;
        let deliveries: Vec<Delivery> = batch.leased.iter().map(|leased| leased.delivery.clone()).collect();
        // A batch that was made before batch_size became 1 is still one.
        let as_batch = self.rules.batch.always || deliveries.len() > 1;
        let request = self.next_request;
        self.effects.push_back(Effect::Send(Send { request, deliveries, as_batch, started_at }));
        self.in_flight.insert(request, InFlight { batch, began: at.now, started_at, probe });
        true
    }

    /// What can be sent at this moment, and whether as a probe. Sees to it that it is looked at again when
    /// that may change by itself.
    fn sendable(&mut self, at: Moment) -> Option<(Next, bool)> {
        if let Some(until) = self.rest_until.filter(|until| *until > at.now) {
            self.timers.look_at(until);
            return None;
        }
        let in_flight = self.in_flight.len();
        let probe = match self.health.permit(at.db_now, in_flight as u32, self.rules.max_in_flight) {
            Permit::Go => false,
            Permit::Probe => true,
            Permit::Full => return None,
            Permit::Until(time) => {
                self.interrupt(at.instant(time), at);
                return None;
            }
        };
        self.batcher.bisections.resume();
        if let Some(moment) = self.rate.refused_until(at.now) {
            self.timers.go_on_at(moment);
            if self.rests_long(at) {
                // What waits for that long need not be renewed again and again, nor stay in memory.
                let unsent = self.batcher.take_queue();
                self.give_back(unsent);
                self.timers.look_at(moment);
            }
            return None;
        }
        let next = self.batcher.next(&self.rules, self.is_filling(at), at.now);
        match next {
            Next::Nothing => return None,
            Next::Wait(moment) => {
                self.timers.go_on_at(moment);
                return None;
            }
            Next::Part | Next::Events(_) => {}
        }
        if !probe {
            let oldest = self.in_flight.first_key_value().map(|(_, oldest)| oldest.began);
            if let Err(moment) = self.concurrency.admit(in_flight, oldest, at.busy, at.now) {
                self.timers.go_on_at(moment);
                return None;
            }
        }
        Some((next, probe))
    }

    /// Whether the rate limit lets nothing through for a while.
    fn rests_long(&self, at: Moment) -> bool {
        self.rate.refused_until(at.now).is_some_and(|until| until > at.now + LONG_REST)
    }

    /// Nothing may be sent before `until`: others should not wait for what is leased here.
    fn interrupt(&mut self, until: Instant, at: Moment) {
        let unsent = match self.batcher.bisections.interrupt(until, at.now) {
            true => self.batcher.take_all(),
            false => self.batcher.take_queue(),
        };
        self.give_back(unsent);
        self.timers.look_at(until);
    }

    /// Whether an incomplete batch may expect more at once.
    fn is_filling(&self, at: Moment) -> bool {
        self.rules.batch.events > 1
            && self.cursor.knows_more()
            && (self.cursor.is_claiming() || self.wanted(at) > 0)
    }

    /// Claims if there may be work and little is ready.
    fn claim_more(&mut self, at: Moment) {
        let (wait, events) = (self.rules.batch.wait, self.batcher.fitting(&self.rules));
        // A batch that was begun is completed, if there is enough for it; others wait to fill.
        let begun = self.batcher.len() % events;
        let completes = begun > 0 && self.cursor.knows_more();
        let fills = !wait.is_zero() && events > 1;
        match self.cursor.is_wanted(fills && !completes, at.now) {
            Ok(false) => return,
            Ok(true) => {}
            Err(moment) => return self.timers.look_at(moment),
        }
        let want = match self.wanted(at) {
            0 => return,
            _ if fills && completes => (events - begun) as u32,
            want => want,
        };
        let fill = (fills && !completes).then_some(Fill { events: events as u32, wait });
        let claim = self.cursor.claim(want, self.rules.ordered, fill, at.now);
        self.effects.push_back(Effect::Claim(claim));
    }

    /// Events that a new batch may have.
    fn batch_limit(&self) -> usize {
        self.batcher.bisections.batch_limit(self.rules.batch.events).max(1)
    }

    /// How many deliveries to claim now: enough for about a second at the present pace, at least two rounds
    /// of what may be in flight, nothing while nothing may be sent.
    fn wanted(&self, at: Moment) -> u32 {
        let in_flight = self.in_flight.len() as u32;
        let batch = self.batch_limit() as f64;
        let ready = self.batcher.len();
        if self.rest_until.is_some_and(|until| until > at.now) || self.rests_long(at) {
            return 0;
        }
        let most_in_flight = self.rules.max_in_flight;
        match self.health.permit(at.db_now, in_flight, most_in_flight) {
            Permit::Until(_) => return 0,
            Permit::Full if self.health.is_tripped() => return 0,
            Permit::Probe if ready > 0 => return 0,
            Permit::Probe => return batch as u32,
            Permit::Go | Permit::Full => {}
        }
        // An ordered claim must not be repeated while any of its leases lives: that would be refused.
        if self.rules.ordered && (ready > 0 || in_flight > 0) {
            return 0;
        }
        let allowed = self.health.allowed(most_in_flight) as usize;
        let two_rounds = |requests: usize| 2.0 * requests as f64 * batch;
        let at_least = two_rounds(allowed).min(MIN_READY);
        let rounds =
            two_rounds(self.concurrency.width().min(allowed)).max(at_least).max(self.pace.per_second());
        let by_rate = self.rate.per_second().max(1.0).ceil() * batch;
        let most = if self.rules.ordered { MAX_ORDERED_READY } else { MAX_READY };
        let target = rounds.min(by_rate).min(most).max(batch);
        let ready = ready as f64;
        // Half of a batch is not to be sent because the other half was not asked for.
        if ready > target / 2.0 && ready >= batch { 0 } else { (target - ready).max(1.0) as u32 }
    }

    fn claimed(&mut self, reply: ClaimReply<H>, at: Moment) {
        let ClaimReply { leased, more, next_due, reached, behind } = reply;
        let next_due = next_due.map(|due| at.instant(due) + DUE_SLACK);
        let look = ClaimSummary {
            more,
            brought: !leased.is_empty(),
            reached: reached.filter(|_| !self.rules.ordered),
            behind,
            next_due,
            fill_wait: self.rules.batch.wait,
        };
        self.cursor.answered(look, at.now);
        if let Some(due) = next_due {
            self.timers.look_at(due);
        }
        match self.cursor.was_outdated() {
            true => self.give_back(leased),
            false => self.accept(leased, at),
        }
    }

    fn renewed(&mut self, reply: &RenewReply, at: Moment) {
        let (lost, unwanted) = self.batcher.renewed(reply, at.now);
        self.give_back(unwanted);
        if lost > 0 {
            // Whoever has them may be gone as well.
            self.cursor.hint();
        }
        if lost > 0 && self.rules.ordered {
            let later = self.batcher.take_all();
            self.give_back(later);
        }
    }

    fn reconfigured(&mut self, rules: Rules, saved: Saved, at: Moment) {
        if self.is_halted() {
            // It asked to be disabled and is loaded as enabled: that life is over, another one begins.
            self.phase = Phase::Retiring;
            return;
        }
        let rate = |rules: &Rules| (rules.rate_per_second, rules.rate_burst);
        if rate(&rules) != rate(&self.rules) {
            self.rate = RateLimit::new(&rules, at.now);
        }
        if rules.ordered != self.rules.ordered {
            self.cursor.reordered();
            let all = self.batcher.take_all();
            self.give_back(all);
        }
        self.rules = rules;
        // Another timeout leaves other times to renew leases.
        self.batcher.note_part(at.now);
        if saved == Saved::default() && self.saved != saved {
            self.health = Health::new(self.rules.limits, saved);
            self.saved = saved;
        }
        self.health.reconfigured(at.db_now, self.rules.limits);
        self.cursor.hint();
    }

    fn abort_all(&mut self, at: Moment) {
        for (request, in_flight) in std::mem::take(&mut self.in_flight) {
            self.effects.push_back(Effect::Abort(request));
            self.give_back(in_flight.batch.leased);
        }
        // A claim that is still under way gives itself back when nobody is there to take it.
        self.cursor.abandon();
        self.batcher.abandon(at.now);
    }

    fn show_backlog(&mut self) {
        let has_backlog = self.cursor.has_backlog() && !self.is_halted();
        if has_backlog != self.had_backlog {
            self.had_backlog = has_backlog;
            self.effects.push_back(Effect::Backlog(has_backlog));
        }
    }

    /// Nothing is sent from now on, until another life begins.
    pub(super) fn halt(&mut self) {
        if self.phase == Phase::Running {
            self.phase = Phase::Halted;
        }
    }

    pub(super) fn emit(&mut self, effect: Effect) {
        self.effects.push_back(effect);
    }

    /// Gives deliveries back that were never sent.
    pub(super) fn give_back(&mut self, leased: Vec<Leased<H>>) {
        if !leased.is_empty() {
            self.cursor.given_back();
            self.record(leased.iter().map(|leased| Outcome::given_back(&leased.delivery)).collect());
        }
    }

    pub(super) fn record(&mut self, outcomes: Vec<Outcome>) {
        if !outcomes.is_empty() {
            self.effects.push_back(Effect::Record(outcomes));
        }
    }
}
