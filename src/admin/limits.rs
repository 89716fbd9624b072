//! What organizations share when they use the API: statements at once, tests at once, bytes in memory. None
//! of them can use up any of it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::model::OrgId;
pub use crate::policy::fairness::NOBODY;
use crate::policy::fairness::{FairQueue, Shares};

/// Longest wait for a permit.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);

/// A semaphore whose permits organizations get in turn. Clones are the same semaphore.
#[derive(Clone)]
pub struct FairSemaphore(Arc<Mutex<Slots>>);

struct Slots {
    shares: Shares,
    /// Slots that one organization may hold.
    each: u64,
    waiting: FairQueue<oneshot::Sender<FairPermit>>,
}

impl Slots {
    fn may(&self, org: OrgId) -> bool {
        self.shares.allowance(org) > 0 && self.shares.held_by(org) < self.each
    }
}

/// A permit; dropping it passes it on.
pub struct FairPermit {
    semaphore: FairSemaphore,
    org: OrgId,
}

impl FairSemaphore {
    /// `total` slots, of which one organization holds at most `each`.
    pub fn new(total: u64, each: u64) -> FairSemaphore {
        let shares = Shares::new(total);
        FairSemaphore(Arc::new(Mutex::new(Slots { shares, each, waiting: FairQueue::default() })))
    }

    /// Waits for a permit; `None`: it took too long.
    pub async fn acquire(&self, org: OrgId) -> Option<FairPermit> {
        let waiting = {
            let mut slots = self.slots();
            if slots.may(org) {
                slots.shares.take(org, 1);
                return Some(FairPermit { semaphore: self.clone(), org });
            }
            let (sender, receiver) = oneshot::channel();
            slots.waiting.push(org, sender);
            receiver
        };
        tokio::time::timeout(ACQUIRE_TIMEOUT, waiting).await.ok()?.ok()
    }

    /// Gives what is free to those who wait, organizations in turn.
    fn serve(&self) {
        loop {
            let mut slots = self.slots();
            let mut waiting = std::mem::take(&mut slots.waiting);
            let next = waiting.pop(|org| slots.may(org));
            slots.waiting = waiting;
            let Some((org, waiter)) = next else { return };
            // Given to one who has left it would come back from within: a stack as deep as they are many.
            if waiter.is_closed() {
                continue;
            }
            slots.shares.take(org, 1);
            drop(slots);
            // Who leaves at this very moment gives it back, and it goes to the next one.
            drop(waiter.send(FairPermit { semaphore: self.clone(), org }));
        }
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for FairPermit {
    fn drop(&mut self) {
        self.semaphore.slots().shares.put_back(self.org, 1);
        self.semaphore.serve();
    }
}

/// Bytes of bodies that are read and of answers that are not taken yet. Clones are the same budget.
#[derive(Clone)]
pub struct Budget(Arc<Mutex<Shares>>);

/// Bytes taken from a [`Budget`]; dropping it puts them back.
pub struct Reserved {
    budget: Budget,
    org: OrgId,
    bytes: u64,
}

impl Budget {
    /// One of `total` bytes.
    pub fn new(total: u64) -> Budget {
        Budget(Arc::new(Mutex::new(Shares::new(total))))
    }

    /// Nothing yet, for `org`.
    pub fn open(&self, org: OrgId) -> Reserved {
        Reserved { budget: self.clone(), org, bytes: 0 }
    }

    fn shares(&self) -> MutexGuard<'_, Shares> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reserved {
    /// Takes so many more bytes; `false`: there is no room for them, and nothing has changed.
    #[must_use]
    pub fn grow(&mut self, bytes: u64) -> bool {
        let mut shares = self.budget.shares();
        let fits = bytes <= shares.allowance(self.org);
        if fits {
            shares.take(self.org, bytes);
            self.bytes += bytes;
        }
        fits
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.budget.shares().put_back(self.org, self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn org(n: u128) -> OrgId {
        OrgId(Uuid::from_u128(n))
    }

    #[actix_rt::test]
    async fn one_organization_never_has_all_permits_and_those_who_wait_are_served_in_turn() {
        let semaphore = FairSemaphore::new(8, 4);
        let mut held = Vec::new();
        for _ in 0..4 {
            held.push(semaphore.acquire(org(1)).await.expect("a permit"));
        }
        let waits = actix_rt::spawn({
            let semaphore = semaphore.clone();
            async move { semaphore.acquire(org(1)).await }
        });
        tokio::task::yield_now().await;
        held.push(semaphore.acquire(org(2)).await.expect("the permit of another one"));
        assert!(!waits.is_finished());
        held.remove(0);
        assert!(waits.await.expect("no panic").is_some());
    }

    #[actix_rt::test]
    async fn a_permit_whose_waiter_has_left_goes_to_the_next() {
        let semaphore = FairSemaphore::new(1, 1);
        let held = semaphore.acquire(org(1)).await;
        let left = actix_rt::spawn({
            let semaphore = semaphore.clone();
            async move { drop(semaphore.acquire(org(2)).await) }
        });
        tokio::task::yield_now().await;
        left.abort();
        let stays = actix_rt::spawn({
            let semaphore = semaphore.clone();
            async move { semaphore.acquire(org(3)).await.is_some() }
        });
        tokio::task::yield_now().await;
        drop(held);
        assert!(stays.await.expect("no panic"));
        assert!(semaphore.acquire(org(1)).await.is_some());
    }

    #[actix_rt::test]
    async fn any_number_of_waiters_may_have_left() {
        let semaphore = FairSemaphore::new(1, 1);
        let held = semaphore.acquire(org(1)).await;
        for _ in 0..100_000 {
            let (sender, _) = oneshot::channel();
            semaphore.slots().waiting.push(org(2), sender);
        }
        drop(held);
        assert!(semaphore.acquire(org(3)).await.is_some());
    }

    #[test]
    fn a_budget_has_room_for_others_and_gets_everything_back() {
        let budget = Budget::new(100);
        let (mut one, mut other) = (budget.open(org(1)), budget.open(org(2)));
        assert!(one.grow(77) && !one.grow(1) && other.grow(16));
        drop((one, other));
        assert!(budget.open(org(3)).grow(77));
    }
}
