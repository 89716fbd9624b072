//! A limit of the whole process, shared fairly between organizations: requests in flight, bytes in memory.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use actix::prelude::*;
use uuid::Uuid;

use crate::model::OrgId;
use crate::policy::fairness::{FairQueue, Shares};

/// Sent by a [`Limit`] to one that waited for it: something was put back, try again.
#[derive(Message, Clone, Copy, Debug)]
#[rtype(result = "()")]
pub struct Freed;

/// A shared limit. Clones are the same limit.
#[derive(Clone)]
pub struct Limit(Arc<Mutex<Inner>>);

struct Inner {
    shares: Shares,
    waiting: FairQueue<Recipient<Freed>>,
}

/// Units taken from a [`Limit`]; dropping it puts them back and tells the next one who waits.
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

    /// Takes one unit if `org` may; otherwise `waiter` will be told when it may.
    pub fn take_one_or_wait(&self, org: OrgId, waiter: impl FnOnce() -> Recipient<Freed>) -> Option<Held> {
        let mut inner = self.inner();
        if inner.shares.allowance(org) == 0 {
            inner.waiting.push(org, waiter());
            return None;
        }
        inner.shares.take(org, 1);
        drop(inner);
        Some(Held { limit: self.clone(), org, units: 1 })
    }

    /// Tells `waiter` when anything is put back, whoever may take it.
    pub fn wait_for_any(&self, waiter: Recipient<Freed>) {
        // Nobody's own: holds nothing, and so may take whatever is free.
        self.inner().waiting.push(OrgId(Uuid::nil()), waiter);
    }

    /// Tells the next one who waits and may take something. Whoever was told and had no use for it passes it
    /// on.
    pub fn tell_next(&self) {
        loop {
            let mut inner = self.inner();
            let Inner { shares, waiting } = &mut *inner;
            let next = waiting.pop(|org| shares.allowance(org) > 0);
            drop(inner);
            match next {
                // Gone meanwhile: it cannot pass anything on.
                Some(waiter) if !waiter.connected() => {}
                Some(waiter) => return waiter.do_send(Freed),
                None => return,
            }
        }
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
        self.limit.tell_next();
    }
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Held({})", self.units)
    }
}
