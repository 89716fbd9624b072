//! From the end of a request to what is written about its deliveries.

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;

use super::{DUE_SLACK, DestinationActor, InFlight, OWN_TROUBLE_REST};
use crate::actors::db::{Announce, Disable, Leased};
use crate::clock;
use crate::model::{Answer, Attempt, Change, Delivery, FailedAttempt, Outcome};
use crate::policy::classify::{Verdict, classify, message};
use crate::policy::retry::{self, Fate, Outage};
use crate::store::destinations::{OPERATIONAL_CATEGORY, OperationalEvent};

impl DestinationActor {
    /// Takes in what a claim gave: what must not be sent is dead at once, the rest is ready.
    pub(super) fn accept(&mut self, leased: Vec<Leased>) {
        let now = clock::now();
        let most = self.links.shared.config.max_event_bytes;
        let mut dead = Vec::new();
        for leased in leased {
            let bytes = match &self.sender {
                Ok(sender) => sender.target().format().event_bytes(&leased.delivery.event),
                Err(_) => leased.delivery.event.payload.len(),
            };
            match self.refusal(&leased, bytes, most) {
                Some(reason) => {
                    log::warn!(
                        "destination={} delivery={} dead: {reason}",
                        self.destination.id,
                        leased.delivery.id
                    );
                    self.announce_dead(&leased.delivery, &reason);
                    let previous = leased.delivery.previous_attempt_at;
                    let change = Change::Dead { charged: false };
                    dead.push(Outcome {
                        error_message: Some(reason.into()),
                        last_attempt_at: previous,
                        ..bare(&leased.delivery, change)
                    });
                }
                None => self.ready.push(leased, bytes, now),
            }
        }
        self.record(dead);
    }

    /// Why a delivery must not be sent at all.
    fn refusal(&self, leased: &Leased, bytes: usize, most: usize) -> Option<String> {
        let delivery = &leased.delivery;
        if delivery.event.org != self.destination.org {
            return Some("the event belongs to another organization than the destination".into());
        }
        if leased.too_large || bytes > most {
            return Some(format!(
                "the event is larger than {most} bytes of JSON (POSTHASTE_MAX_EVENT_BYTES sets the limit), \
                 or nested too deeply"
            ));
        }
        let age = self.clock.now().since(delivery.created_at);
        let limit = self.destination.settings.max_age?;
        (age > limit).then(|| format!("expired: older than max_age_seconds = {}", limit.as_secs()))
    }

    /// Decides what the end of a request means, for the destination and for each delivery, and has it
    /// written.
    pub(super) fn settle(&mut self, ended: InFlight, attempt: Attempt, ctx: &mut Context<Self>) {
        let InFlight { batch, probe, started_at, .. } = ended;
        if probe {
            self.health.probe_ended();
        }
        self.pace.note(batch.leased.len(), clock::now());
        let now = self.clock.now();
        let verdict = classify(&attempt.answer, batch.leased.len(), now.system());
        let is_retry = batch.leased[0].delivery.attempts > 0;
        self.counting.attempted(verdict.into(), attempt.duration, is_retry);
        let most = self.most_in_flight();
        if verdict != Verdict::Delivered {
            self.log_failure(&batch, &attempt, verdict);
        }
        let was_tripped = self.health.is_tripped();
        let mut plan = match verdict {
            Verdict::Delivered => {
                self.health.succeeded(now, most);
                Plan::All(Change::Delivered)
            }
            Verdict::Split => {
                self.health.refused_event(now, most);
                self.ready.push_parts(batch.halves());
                return;
            }
            Verdict::EventFailed => {
                self.health.refused_event(now, most);
                Plan::Charge { outage: false }
            }
            Verdict::DestinationFailed => match self.health.failed(now, fastrand::f64()) {
                true => Plan::All(Change::Postponed { delay: Duration::ZERO }),
                false => Plan::Charge { outage: true },
            },
            Verdict::Gone => Plan::All(Change::Dead { charged: true }),
            Verdict::Paused(length) => {
                let longest = self.links.shared.config.max_retry_delay;
                let policy = self.destination.retry;
                let backoff = |n| retry::delay(policy, n, fastrand::f64(), longest);
                self.health.pause(now, length, backoff);
                // The pause holds everything back; whoever ends it early ends it for this delivery, too.
                Plan::All(Change::Postponed { delay: Duration::ZERO })
            }
            Verdict::OurFault => {
                self.rest_until = Some(clock::now() + OWN_TROUBLE_REST);
                Plan::All(Change::Postponed { delay: OWN_TROUBLE_REST })
            }
        };
        if let Plan::Charge { .. } = plan
            && batch.part
            && batch.leased.len() > 1
        {
            plan = Plan::All(Change::Postponed { delay: self.destination.retry.backoff });
        }
        let said = Said::by(&attempt.answer, verdict);
        let mut outcomes = Vec::with_capacity(batch.leased.len());
        for leased in &batch.leased {
            let change = match plan {
                Plan::All(change) => change,
                Plan::Charge { outage } => self.charge(&leased.delivery, outage, started_at),
            };
            if let Change::Failed { delay } | Change::Postponed { delay } = change {
                self.behind = true;
                self.look_at(clock::now() + delay + DUE_SLACK, ctx);
            }
            if let Change::Dead { .. } = change {
                self.announce_dead(&leased.delivery, said.error.as_deref().unwrap_or_default());
            }
            outcomes.push(outcome(&leased.delivery, change, &attempt, &said));
        }
        let holds_back = |o: &Outcome| !matches!(o.change, Change::Delivered | Change::Dead { .. });
        if self.destination.settings.ordered && outcomes.iter().any(holds_back) {
            let later = self.ready.take_all();
            self.return_unsent(later);
        }
        self.record(outcomes);
        if verdict == Verdict::Gone {
            self.disable("the receiver answered 410 Gone".into(), batch.deliveries().next());
        }
        self.after_failures(was_tripped, batch.deliveries().next());
    }

    /// What a charged failure makes of a delivery.
    fn charge(&mut self, delivery: &Delivery, outage: bool, started_at: crate::model::DbTime) -> Change {
        let config = &self.links.shared.config;
        let now = self.clock.now();
        let outage = outage.then(|| Outage {
            last_success: self.health.last_success(),
            // Attempts whose records are gone: it cannot have been attempted before it was queued.
            first_attempt: match (delivery.first_attempt_at, delivery.attempts) {
                (Some(first), _) => first,
                (None, 0) => started_at,
                (None, _) => delivery.created_at,
            },
            now,
            grace: config.outage_grace,
        });
        match retry::fate(self.destination.retry, delivery.attempts, outage) {
            Fate::Retry { n } => {
                let delay = retry::delay(self.destination.retry, n, fastrand::f64(), config.max_retry_delay);
                Change::Failed { delay }
            }
            Fate::Dead => Change::Dead { charged: true },
            Fate::Spared => {
                self.health.trip(now, fastrand::f64());
                Change::Postponed { delay: Duration::ZERO }
            }
        }
    }

    /// Says that the breaker has tripped, and gives a hopeless destination up.
    fn after_failures(&mut self, was_tripped: bool, delivery: Option<&Delivery>) {
        let id = self.destination.id;
        if self.health.is_tripped() && !was_tripped {
            log::warn!("destination={id} its breaker has tripped: only probes are sent until it answers");
            let content = "The destination fails; deliveries wait until it answers again.".to_owned();
            self.announce("webhook.destination.tripped", content, serde_json::json!({}), delivery);
        } else if was_tripped && !self.health.is_tripped() {
            log::info!("destination={id} answers again");
        }
        if self.health.is_hopeless(self.clock.now()) {
            let limit = humantime::format_duration(self.links.shared.config.auto_disable_after);
            self.disable(format!("nothing but failures for {limit}"), delivery);
        }
    }

    /// Has the destination disabled, once, and sends nothing more until it is enabled again.
    fn disable(&mut self, reason: String, because_of: Option<&Delivery>) {
        if std::mem::replace(&mut self.halted, true) {
            return;
        }
        self.db().do_send(Disable(self.destination.id, reason.clone()));
        let content = format!("The destination was disabled: {reason}.");
        let payload = serde_json::json!({ "reason": reason });
        self.announce("webhook.destination.disabled", content, payload, because_of);
    }

    fn announce_dead(&self, delivery: &Delivery, reason: &str) {
        let content = format!("A delivery was given up: {reason}.");
        let payload = serde_json::json!({
            "delivery_id": delivery.id, "event_id": delivery.event.id,
            "event_type": delivery.event.event_type, "reason": reason,
        });
        self.announce("webhook.delivery.dead", content, payload, Some(delivery));
    }

    /// Writes an operational event, unless nobody wants them or what it tells of came from one itself.
    fn announce(
        &self,
        event_type: &'static str,
        content: String,
        mut payload: serde_json::Value,
        because_of: Option<&Delivery>,
    ) {
        let from_one = because_of.is_some_and(|d| d.event.event_category == OPERATIONAL_CATEGORY);
        if from_one || !self.links.shared.config.operational_events {
            return;
        }
        payload["destination_id"] = self.destination.id.to_string().into();
        let payload = payload.to_string();
        let org = self.destination.org;
        self.db().do_send(Announce(OperationalEvent { org, event_type, content, payload }));
    }

    /// The one line per failure. Bodies and URLs stay out of it: they may hold secrets.
    fn log_failure(&self, batch: &super::Batch, attempt: &Attempt, verdict: Verdict) {
        let id = self.destination.id;
        let millis = attempt.duration.as_millis();
        let what = message(&attempt.answer);
        let ours = verdict == Verdict::OurFault;
        if ours && self.links.shared.trouble.is_news(&what, clock::now()) {
            log::error!("requests wait, and nothing is charged: {what}");
        }
        let level = if ours { log::Level::Debug } else { log::Level::Warn };
        match &batch.leased[..] {
            [one] => log::log!(
                level,
                "destination={id} delivery={} event={} attempt={} {verdict:?} after {millis} ms: {what}",
                one.delivery.id,
                one.delivery.event.id,
                one.delivery.attempts + 1,
            ),
            many => log::log!(
                level,
                "destination={id} delivery={} first of a batch of {}, {verdict:?} after {millis} ms: {what}",
                many[0].delivery.id,
                many.len(),
            ),
        }
    }
}

/// What happens to the deliveries of one request.
#[derive(Clone, Copy)]
enum Plan {
    /// The same to all.
    All(Change),
    /// A failure is charged to each. `outage`: it is the destination's, so that it may spare.
    Charge { outage: bool },
}

fn bare(delivery: &Delivery, change: Change) -> Outcome {
    Outcome { change, ..Outcome::given_back(delivery) }
}

/// What an answer says to each delivery of its request: one copy for all.
struct Said {
    status: Option<u16>,
    body: Option<Arc<str>>,
    error: Option<Arc<str>>,
}

impl Said {
    fn by(answer: &Answer, verdict: Verdict) -> Said {
        let (status, body) = match answer {
            Answer::Response { status, body, .. } => (Some(*status), Some(body.as_str().into())),
            Answer::Failed(_) | Answer::OurFault(_) => (None, None),
        };
        let error = (verdict != Verdict::Delivered).then(|| message(answer).into());
        Said { status, body, error }
    }
}

fn outcome(delivery: &Delivery, change: Change, attempt: &Attempt, said: &Said) -> Outcome {
    let failed = (change != Change::Delivered).then(|| FailedAttempt {
        number: delivery.attempts + 1,
        duration: attempt.duration,
        charged: matches!(change, Change::Failed { .. } | Change::Dead { charged: true }),
    });
    Outcome {
        last_attempt_at: Some(attempt.started_at),
        response_status: said.status,
        response_body: said.body.clone(),
        error_message: said.error.clone(),
        failed,
        ..bare(delivery, change)
    }
}
