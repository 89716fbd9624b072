//! From what was claimed, and from the end of a request, to what is written about each delivery.

use std::sync::Arc;
use std::time::Duration;

use super::bisections::Batch;
use super::lease::Leased;
use super::machine::{DUE_SLACK, InFlight, Machine, OWN_TROUBLE_REST};
use super::{Effect, Failed, Moment, Notice};
use crate::model::{Answer, Attempt, Change, DbTime, Delivery, FailedAttempt, OPERATIONAL_CATEGORY, Outcome};
use crate::policy::classify::{Verdict, classify, message};
use crate::policy::retry::{self, Outage};

impl<H> Machine<H> {
    /// Takes in what a claim gave: what must not be sent is dead at once, the rest is ready.
    pub(super) fn accept(&mut self, leased: Vec<Leased<H>>, at: Moment) {
        let mut refused = Vec::new();
        for leased in leased {
            match self.refusal(&leased, at.db_now) {
                Some(reason) => refused.push((leased, reason)),
                None => self.batcher.push(leased, &self.rules, at.now),
            }
        }
        self.refuse(refused);
    }

    /// Takes out of `batch` what has become too old since it was claimed.
    pub(super) fn without_expired(&mut self, mut batch: Batch<H>, at: Moment) -> Batch<H> {
        if self.rules.max_age.is_some() {
            let (kept, expired) = batch
                .leased
                .into_iter()
                .partition(|leased| self.expired(&leased.delivery, at.db_now).is_none());
            let expired: Vec<Leased<H>> = expired;
            let reason = |leased: Leased<H>| {
                let reason = self.expired(&leased.delivery, at.db_now).unwrap_or_default();
                (leased, reason)
            };
            let expired = expired.into_iter().map(reason).collect();
            batch.leased = kept;
            self.refuse(expired);
        }
        batch
    }

    /// These are dead without an attempt.
    fn refuse(&mut self, refused: Vec<(Leased<H>, String)>) {
        let mut dead = Vec::with_capacity(refused.len());
        for (leased, reason) in refused {
            let delivery = leased.delivery;
            dead.push(Outcome {
                change: Change::Dead { charged: false },
                error_message: Some(reason.as_str().into()),
                last_attempt_at: delivery.previous_attempt_at,
                ..Outcome::given_back(&delivery)
            });
            self.tell(Notice::Dead { delivery: Box::new(delivery), reason, unsent: true });
        }
        self.record(dead);
    }

    /// Why a delivery must not be sent at all.
    fn refusal(&self, leased: &Leased<H>, now: DbTime) -> Option<String> {
        let delivery = &leased.delivery;
        if delivery.event.org != self.rules.org {
            return Some("the event belongs to another organization than the destination".into());
        }
        let most = self.rules.max_event_bytes;
        if leased.too_large || leased.bytes > most {
            return Some(format!(
                "the event is larger than {most} bytes of JSON (POSTHASTE_MAX_EVENT_BYTES sets the limit), \
                 or nested too deeply"
            ));
        }
        self.expired(delivery, now)
    }

    fn expired(&self, delivery: &Delivery, now: DbTime) -> Option<String> {
        let limit = self.rules.max_age?;
        let is_older = now.since(delivery.created_at) > limit;
        is_older.then(|| format!("expired: older than max_age_seconds = {}", limit.as_secs()))
    }

    /// Decides what the end of a request means, for the destination and for each delivery.
    pub(super) fn finished(&mut self, request: u64, attempt: Attempt, at: Moment) {
        let Some(ended) = self.in_flight.remove(&request) else { return };
        let InFlight { batch, probe, started_at, .. } = ended;
        if probe {
            self.health.probe_ended();
        }
        self.pace.note(batch.leased.len(), at.now);
        let verdict = classify(&attempt.answer, batch.leased.len(), at.db_now.system());
        self.tell_end(&batch, &attempt, verdict);
        let was_tripped = self.health.is_tripped();
        let of_operational = is_operational(&batch.leased[0].delivery);
        let most = self.rules.max_in_flight;
        let now = at.db_now;
        match verdict {
            Verdict::Delivered => {
                self.health.succeeded(now, most);
                self.batcher.bisections.accepted(&batch, self.rules.batch.events);
                self.write(&batch.leased, Disposition::All(Change::Delivered), &attempt, verdict, at);
            }
            Verdict::Split => {
                self.health.refused_event(now, most);
                self.split(batch, false, at);
            }
            Verdict::EventFailed => {
                self.health.refused_event(now, most);
                self.charge(batch, None, &attempt, verdict, at);
            }
            Verdict::DestinationFailed => match self.health.failed(now, at.chance) {
                true => self.postpone(batch, Duration::ZERO, true, &attempt, verdict, at),
                false => self.charge(batch, Some(started_at), &attempt, verdict, at),
            },
            Verdict::Gone => {
                let dead = Disposition::All(Change::Dead { charged: true });
                self.batcher.bisections.ended(&batch);
                self.write(&batch.leased, dead, &attempt, verdict, at);
                self.disable("the receiver answered 410 Gone".into(), of_operational);
            }
            Verdict::Paused(length) => {
                let (policy, longest) = (self.rules.retry, self.rules.max_retry_delay);
                self.health.pause(now, length, |n| retry::delay(policy, n, at.chance, longest));
                // The pause holds everything back; whoever ends it early ends it for this delivery, too.
                self.postpone(batch, Duration::ZERO, false, &attempt, verdict, at);
            }
            Verdict::OurFault => {
                self.rest_until = Some(at.now + OWN_TROUBLE_REST);
                self.postpone(batch, OWN_TROUBLE_REST, false, &attempt, verdict, at);
            }
        }
        self.after_result(was_tripped, of_operational, at);
    }

    /// Sends the halves of a batch instead of it.
    fn split(&mut self, batch: Batch<H>, last: bool, at: Moment) {
        self.batcher.bisections.split(batch, last);
        self.batcher.note_part(at.now);
    }

    /// A failure that is charged: to each delivery, or, in a bisection, only to an event that stands alone.
    /// `outage`: when the request started, if it is the destination that has failed.
    fn charge(
        &mut self,
        batch: Batch<H>,
        outage: Option<DbTime>,
        attempt: &Attempt,
        verdict: Verdict,
        at: Moment,
    ) {
        if batch.part_of.is_some() && batch.leased.len() > 1 {
            return self.split(batch, false, at);
        }
        let how = Disposition::Charged { outage };
        let rest = match outage {
            None => self.batcher.bisections.refused_alone(&batch),
            Some(_) => {
                self.batcher.bisections.ended(&batch);
                Vec::new()
            }
        };
        self.write(&batch.leased, how, attempt, verdict, at);
        if !rest.is_empty() {
            self.write(&rest, how, attempt, verdict, at);
        }
    }

    /// A request that is charged to nobody. `failed`: the destination has failed once more while only probes
    /// are sent: other deliveries take their turn.
    fn postpone(
        &mut self,
        batch: Batch<H>,
        delay: Duration,
        failed: bool,
        attempt: &Attempt,
        verdict: Verdict,
        at: Moment,
    ) {
        if batch.part_of.is_some() && batch.leased.len() > 1 {
            match failed {
                true => self.split(batch, !self.rules.ordered, at),
                false => {
                    self.batcher.bisections.put_back(batch);
                    self.batcher.note_part(at.now);
                }
            }
            return;
        }
        self.batcher.bisections.ended(&batch);
        self.write(&batch.leased, Disposition::All(Change::Postponed { delay }), attempt, verdict, at);
    }

    /// Has the result of a request written for these deliveries.
    fn write(
        &mut self,
        leased: &[Leased<H>],
        how: Disposition,
        attempt: &Attempt,
        verdict: Verdict,
        at: Moment,
    ) {
        let said = AnswerText::by(&attempt.answer, verdict);
        let mut outcomes = Vec::with_capacity(leased.len());
        for Leased { delivery, .. } in leased {
            let change = match how {
                Disposition::All(change) => change,
                Disposition::Charged { outage } => self.charged(delivery, outage, at),
            };
            if let Change::Failed { delay } | Change::Postponed { delay } = change {
                self.cursor.results_sent();
                self.timers.look_at(at.now + delay + DUE_SLACK);
            }
            if let Change::Dead { .. } = change {
                let reason = said.error.as_deref().unwrap_or_default().to_owned();
                self.tell(Notice::Dead { delivery: Box::new(delivery.clone()), reason, unsent: false });
            }
            outcomes.push(outcome(delivery, change, attempt, &said));
        }
        let holds_back = |o: &Outcome| !matches!(o.change, Change::Delivered | Change::Dead { .. });
        if self.rules.ordered && outcomes.iter().any(holds_back) {
            let later = self.batcher.take_all();
            self.give_back(later);
        }
        self.record(outcomes);
    }

    /// What a charged failure makes of a delivery. All deliveries of a request wait for the same time: they
    /// make a batch again.
    fn charged(&mut self, delivery: &Delivery, outage: Option<DbTime>, at: Moment) -> Change {
        let outage = outage.map(|started_at| Outage {
            last_success: self.health.last_success(),
            // Attempts whose records are gone: it cannot have been attempted before it was queued.
            first_attempt: match (delivery.first_attempt_at, delivery.attempts) {
                (Some(first), _) => first,
                (None, 0) => started_at,
                (None, _) => delivery.created_at,
            },
            now: at.db_now,
            grace: self.rules.outage_grace,
        });
        let change = retry::after_failure(
            self.rules.retry,
            delivery.attempts,
            outage,
            at.chance,
            self.rules.max_retry_delay,
        );
        if let Change::Postponed { .. } = change {
            self.health.trip(at.db_now, at.chance);
        }
        change
    }

    /// Says that the breaker has tripped, and gives a hopeless destination up.
    fn after_result(&mut self, was_tripped: bool, of_operational: bool, at: Moment) {
        if self.health.is_tripped() && !was_tripped {
            self.tell(Notice::Tripped { of_operational });
        } else if was_tripped && !self.health.is_tripped() {
            self.tell(Notice::Recovered);
        }
        if self.health.is_hopeless(at.db_now) {
            let limit = humantime::format_duration(self.rules.limits.auto_disable_after);
            self.disable(format!("nothing but failures for {limit}"), of_operational);
        }
    }

    /// Has the destination disabled, once.
    fn disable(&mut self, reason: String, of_operational: bool) {
        if !self.is_halted() {
            self.halt();
            self.emit(Effect::Disable(reason.clone()));
            self.tell(Notice::Disabled { reason, of_operational });
        }
    }

    fn tell_end(&mut self, batch: &Batch<H>, attempt: &Attempt, verdict: Verdict) {
        let first = &batch.leased[0].delivery;
        let duration = attempt.duration;
        self.tell(Notice::Ended { verdict, duration, is_retry: first.attempts > 0 });
        if verdict != Verdict::Delivered {
            self.tell(Notice::Failed(Failed {
                delivery: first.id,
                event: first.event.id,
                attempt: first.attempts + 1,
                deliveries: batch.leased.len(),
                verdict,
                duration,
                what: message(&attempt.answer),
            }));
        }
    }

    fn tell(&mut self, notice: Notice) {
        self.emit(Effect::Tell(notice));
    }
}

/// What happens to the deliveries of one request.
#[derive(Clone, Copy)]
enum Disposition {
    /// The same to all.
    All(Change),
    /// A failure is charged to each. `outage`: it is the destination's, so that it may spare, and its request
    /// started then.
    Charged { outage: Option<DbTime> },
}

/// Whether a delivery tells of what happened to others: nothing is told of it in turn.
fn is_operational(delivery: &Delivery) -> bool {
    delivery.event.event_category == OPERATIONAL_CATEGORY
}

/// What an answer says to each delivery of its request: one copy for all.
struct AnswerText {
    status: Option<u16>,
    body: Option<Arc<str>>,
    error: Option<Arc<str>>,
}

impl AnswerText {
    fn by(answer: &Answer, verdict: Verdict) -> AnswerText {
        let (status, body) = match answer {
            Answer::Response { status, body, .. } => (Some(*status), Some(body.as_str().into())),
            Answer::Failed(_) | Answer::OurFault(_) => (None, None),
        };
        let error = (verdict != Verdict::Delivered).then(|| message(answer).into());
        AnswerText { status, body, error }
    }
}

fn outcome(delivery: &Delivery, change: Change, attempt: &Attempt, said: &AnswerText) -> Outcome {
    let failed = (change != Change::Delivered).then(|| FailedAttempt {
        number: delivery.attempts + 1,
        duration: attempt.duration,
        charged: matches!(change, Change::Failed { .. } | Change::Dead { charged: true }),
    });
    Outcome {
        change,
        last_attempt_at: Some(attempt.started_at),
        response_status: said.status,
        response_body: said.body.clone(),
        error_message: said.error.clone(),
        failed,
        ..Outcome::given_back(delivery)
    }
}
