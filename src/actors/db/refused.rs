//! The part of the [`DbActor`] that keeps what the database refuses for a lasting reason.

use actix::prelude::*;

use super::DbActor;
use crate::actors::work::{Item, Work};
use crate::clock;
use crate::model::DestinationId;
use crate::store::faults::{Kind, Subject};

/// From the supervisor: this destination cannot be read, for this reason; or it can again.
#[derive(Message)]
#[rtype(result = "()")]
pub struct CannotLoad(pub DestinationId, pub Option<String>);

impl Handler<CannotLoad> for DbActor {
    type Result = ();

    fn handle(&mut self, CannotLoad(destination, why): CannotLoad, ctx: &mut Self::Context) {
        let subject = Subject { kind: Kind::Load, destination, delivery: None };
        match why {
            Some(why) => {
                let fault = self.faults.failed(subject, None, &why, clock::now());
                self.work.faults.push(fault);
            }
            None => self.heal(&subject),
        }
        self.stats.faults = self.faults.counts();
        self.record(ctx);
    }
}

/// From the supervisor: a new life of this destination begins, or its last one has ended. What was to be done
/// about its row as it was is not done any more.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Withdraw(pub DestinationId);

impl Handler<Withdraw> for DbActor {
    type Result = ();

    fn handle(&mut self, Withdraw(destination): Withdraw, ctx: &mut Self::Context) {
        self.work.disabled.retain(|(id, _)| *id != destination);
        if !self.faults.is_empty() {
            self.work.healed.extend(self.faults.withdraw(destination));
            self.stats.faults = self.faults.counts();
            self.record(ctx);
        }
    }
}

impl DbActor {
    /// What of `work` was refused before.
    pub(super) fn tried_again(&self, work: &Work) -> Vec<Subject> {
        if self.faults.is_empty() {
            return Vec::new();
        }
        let results = work.outcomes.iter().map(|outcome| Subject {
            kind: Kind::Result,
            destination: outcome.destination,
            delivery: Some(outcome.delivery),
        });
        let of = |kind, destination| Subject { kind, destination, delivery: None };
        let states = work.states.keys().map(|id| of(Kind::State, *id));
        let disabled = work.disabled.iter().map(|(id, _)| of(Kind::Disable, *id));
        results.chain(states).chain(disabled).filter(|subject| self.faults.is_known(subject)).collect()
    }

    /// Sets aside what was refused, and notes what of `tried_again` was not. Returns how many results were.
    pub(super) fn refused(
        &mut self,
        tried_again: Vec<Subject>,
        work: &mut Work,
        done: bool,
        ctx: &mut Context<Self>,
    ) -> usize {
        let now = clock::now();
        let refused: Vec<(Item, String)> = std::mem::take(&mut work.refused);
        for subject in tried_again.into_iter().filter(|_| done) {
            let is_refused = refused.iter().any(|(item, _)| item.subject() == subject);
            let is_left = work.locked.iter().any(|outcome| Some(outcome.delivery) == subject.delivery)
                || work.states.contains_key(&subject.destination)
                || work.disabled.iter().any(|(id, _)| *id == subject.destination);
            if !is_refused && !is_left {
                self.heal(&subject);
            }
        }
        let results = refused.iter().filter(|(item, _)| matches!(item, Item::Outcome(_))).count();
        for (item, why) in refused {
            let fault = self.faults.failed(item.subject(), Some(item), &why, now);
            self.work.faults.push(fault);
        }
        self.stats.faults = self.faults.counts();
        self.retry_faults(ctx);
        results
    }

    /// It works again.
    pub(super) fn heal(&mut self, subject: &Subject) {
        if self.faults.healed(subject) {
            self.work.healed.push(*subject);
            self.stats.faults = self.faults.counts();
        }
    }

    /// Tries what was refused again when its time comes.
    fn retry_faults(&mut self, ctx: &mut Context<Self>) {
        let Some(next) = self.faults.next() else { return };
        if self.retries_faults_at.is_some_and(|at| at <= next) {
            return;
        }
        self.retries_faults_at = Some(next);
        ctx.run_later(next.saturating_duration_since(clock::now()), move |this, ctx| {
            if this.retries_faults_at == Some(next) {
                this.retries_faults_at = None;
            }
            this.faults.due(clock::now()).into_iter().for_each(|item| this.work.add(item));
            this.record(ctx);
            this.retry_faults(ctx);
        });
    }
}
