//! A limit of the whole process, shared fairly between organizations: requests in flight, bytes in memory.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use actix::prelude::*;

use crate::model::OrgId;
use crate::policy::fairness::{FairQueue, NOBODY, Shares};

/// Sent by a [`Limit`] to one that waited for it: here is the unit that was waited for, or, to one that
/// waited for anything, something was put back. Whoever has no use for the unit drops it, and so passes it
/// on.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct Freed(pub Option<Held>);

/// A shared limit. Clones are the same limit.
#[derive(Clone)]
pub struct Limit(Arc<Mutex<Inner>>);

struct Inner {
    shares: Shares,
    waiting: FairQueue<Waiter>,
}

enum Waiter {
    /// Gets a unit: nobody can take it before.
    Unit(Recipient<Freed>),
    /// Is told.
    Anything(Recipient<Freed>),
}

/// Units taken from a [`Limit`]; dropping it puts them back and serves the next one who waits.
pub struct Held {
    limit: Limit,
    org: OrgId,
    units: u64,
}

impl Limit {
    /// A limit of `total` units.
    pub fn new(total: u64) -> Limit {
        Limit(Arc::new(Mutex::new(Inner { shares: Shares::new(total), waiting: FairQueue::default() })))
    }

    /// How many units `org` may take now.
    pub fn allowance(&self, org: OrgId) -> u64 {
        self.inner().shares.allowance(org)
    }

    /// Takes `units`, even beyond the allowance.
    pub fn take(&self, org: OrgId, units: u64) -> Held {
        self.inner().shares.take(org, units);
        Held { limit: self.clone(), org, units }
    }

    /// Takes one unit if `org` may; otherwise `waiter` will get one in its turn.
    pub fn take_one_or_wait(&self, org: OrgId, waiter: impl FnOnce() -> Recipient<Freed>) -> Option<Held> {
        let mut inner = self.inner();
        if inner.shares.allowance(org) == 0 {
            inner.waiting.push(org, Waiter::Unit(waiter()));
            return None;
        }
        inner.shares.take(org, 1);
        drop(inner);
        Some(Held { limit: self.clone(), org, units: 1 })
    }

    /// Tells `waiter` when anything is put back, whoever may take it.
    pub fn wait_for_any(&self, waiter: Recipient<Freed>) {
        // Nobody's own: holds nothing, and so may take whatever is free.
        self.inner().waiting.push(NOBODY, Waiter::Anything(waiter));
    }

    /// Serves those who wait, organizations in turn, as far as there is something for them. A unit is theirs
    /// before they know: were they only told, whoever is busy would take it again before they could.
    fn serve_waiters(&self) {
        loop {
            let mut inner = self.inner();
            let Inner { shares, waiting } = &mut *inner;
            let Some((org, waiter)) = waiting.pop(|org| shares.allowance(org) > 0) else { return };
            match waiter {
                Waiter::Unit(waiter) if waiter.connected() => {
                    shares.take(org, 1);
                    drop(inner);
                    // Lost with its receiver, it comes back here.
                    waiter.do_send(Freed(Some(Held { limit: self.clone(), org, units: 1 })));
                }
                Waiter::Unit(_) => {}
                Waiter::Anything(waiter) => {
                    drop(inner);
                    waiter.do_send(Freed(None));
                }
            }
        }
    }

    /// Units that nobody holds.
    pub fn free(&self) -> u64 {
        self.inner().shares.free()
    }

    /// How many units an organization may take now that holds none.
    pub fn allowance_of_anybody(&self) -> u64 {
        self.inner().shares.allowance(NOBODY)
    }

    /// Units held by all.
    pub fn held(&self) -> u64 {
        self.inner().shares.held()
    }

    /// Nothing between lock and unlock can panic; if it did, the counts would still be counts.
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.limit.inner().shares.put_back(self.org, self.units);
        self.limit.serve_waiters();
    }
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Held({})", self.units)
    }
}
