//! Sharing what is scarce between tenants: whose turn it is ([`FairQueue`]) and how much one may hold
//! ([`Shares`]).

use std::collections::{HashMap, VecDeque};

use uuid::Uuid;

use crate::model::OrgId;

/// Whoever is no organization: the operator, and whoever has not said who they are.
pub const NOBODY: OrgId = OrgId(Uuid::nil());

/// How many times what is free one organization may hold.
///
/// The dynamic threshold of shared-memory switches (Choudhury and Hahne, 1998): with 4, one organization
/// alone uses 80 % of what is not in reserve, and whoever comes next always finds some of it free, however
/// long the first one hangs.
pub const HELD_PER_FREE: u64 = 4;
/// This part of a limit is in reserve for organizations that hold nothing: however many others hold all that
/// they may, ...
const RESERVED_PART: u64 = 32;
/// ... each of them finds this part of the limit.
const FIRST_PART: u64 = 256;

/// A limit shared between organizations.
#[derive(Debug)]
pub struct Shares {
    total: u64,
    held: u64,
    by_org: HashMap<OrgId, u64>,
}

impl Shares {
    /// A limit of `total` units, all free.
    pub fn new(total: u64) -> Shares {
        Shares { total, held: 0, by_org: HashMap::new() }
    }

    /// How many more units `org` may take now. An organization that holds nothing may take at least one
    /// whenever any is free.
    pub fn allowance(&self, org: OrgId) -> u64 {
        let free = self.free();
        let common = free.saturating_sub(self.total / RESERVED_PART);
        let held = self.held_by(org);
        // After taking x, held + x must not exceed HELD_PER_FREE * (common - x).
        let most = (HELD_PER_FREE * common).saturating_sub(held) / (HELD_PER_FREE + 1);
        let first = (self.total / FIRST_PART).max(1).saturating_sub(held);
        most.max(first).min(free)
    }

    /// Units that `org` holds.
    pub fn held_by(&self, org: OrgId) -> u64 {
        self.by_org.get(&org).copied().unwrap_or(0)
    }

    /// Units that nobody holds.
    pub fn free(&self) -> u64 {
        self.total.saturating_sub(self.held)
    }

    /// Takes `units` for `org`, even beyond its allowance: what has happened is counted.
    pub fn take(&mut self, org: OrgId, units: u64) {
        self.held += units;
        *self.by_org.entry(org).or_default() += units;
    }

    /// Puts back `units` that `org` had taken.
    pub fn put_back(&mut self, org: OrgId, units: u64) {
        self.held = self.held.saturating_sub(units);
        if let Some(held) = self.by_org.get_mut(&org) {
            *held = held.saturating_sub(units);
            if *held == 0 {
                self.by_org.remove(&org);
            }
        }
    }

    /// Units held by all.
    pub fn held(&self) -> u64 {
        self.held
    }
}

/// A queue that serves organizations in turn, and within each first come, first served.
#[derive(Debug)]
pub struct FairQueue<T> {
    turns: VecDeque<OrgId>,
    waiting: HashMap<OrgId, VecDeque<T>>,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        FairQueue { turns: VecDeque::new(), waiting: HashMap::new() }
    }
}

impl<T> FairQueue<T> {
    /// Appends `item` for `org`.
    pub fn push(&mut self, org: OrgId, item: T) {
        let queue = self.waiting.entry(org).or_default();
        if queue.is_empty() {
            self.turns.push_back(org);
        }
        queue.push_back(item);
    }

    /// Puts an item back that was taken last: it comes first again.
    pub fn put_back(&mut self, org: OrgId, item: T) {
        if let Some(turn) = self.turns.iter().position(|other| *other == org) {
            self.turns.remove(turn);
        }
        self.turns.push_front(org);
        self.waiting.entry(org).or_default().push_front(item);
    }

    /// Takes the next item of the next organization for which `may` holds, and says which that is;
    /// organizations passed over keep their turn.
    pub fn pop(&mut self, may: impl Fn(OrgId) -> bool) -> Option<(OrgId, T)> {
        let turn = self.turns.iter().position(|org| may(*org))?;
        let org = self.turns.remove(turn)?;
        let queue = self.waiting.get_mut(&org)?;
        let item = queue.pop_front()?;
        if queue.is_empty() {
            self.waiting.remove(&org);
        } else {
            self.turns.push_back(org);
        }
        Some((org, item))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn org(n: u128) -> OrgId {
        OrgId(Uuid::from_u128(n))
    }

    #[test]
    fn one_organization_never_holds_everything() {
        let mut shares = Shares::new(100);
        let first = shares.allowance(org(1));
        shares.take(org(1), first);
        assert_eq!(first, 77);
        assert_eq!(shares.allowance(org(1)), 0);
        assert_eq!(shares.allowance(org(2)), 16);
    }

    #[test]
    fn however_many_hold_what_they_may_the_next_one_finds_something() {
        let mut shares = Shares::new(64 << 20);
        for n in 0..8 {
            while shares.allowance(org(n)) > 0 {
                shares.take(org(n), shares.allowance(org(n)));
            }
        }
        for _ in 0..64 {
            assert!(shares.allowance(org(9)) >= 4 << 10);
            shares.take(org(9), 4 << 10);
        }
    }

    #[test]
    fn a_limit_of_one_can_be_used() {
        let mut shares = Shares::new(1);
        assert_eq!(shares.allowance(org(1)), 1);
        shares.take(org(1), 1);
        assert_eq!(shares.allowance(org(2)), 0);
        shares.put_back(org(1), 1);
        assert_eq!(shares.allowance(org(2)), 1);
    }

    #[test]
    fn organizations_take_turns() {
        let mut queue = FairQueue::default();
        for item in 0..3 {
            queue.push(org(1), (1, item));
        }
        queue.push(org(2), (2, 0));
        queue.push(org(3), (3, 0));
        let not_3 = |o| o != org(3);
        let order: Vec<_> = std::iter::from_fn(|| queue.pop(not_3)).collect();
        assert_eq!(order, [(1, 0), (2, 0), (1, 1), (1, 2)].map(|item: (u128, i32)| (org(item.0), item)));
        queue.push(org(1), (1, 3));
        let (of, item) = queue.pop(not_3).unwrap();
        queue.put_back(of, item);
        assert_eq!(queue.pop(|_| true), Some((org(1), (1, 3))), "what was put back comes first");
        assert_eq!(queue.pop(|_| true), Some((org(3), (3, 0))));
        assert_eq!(queue.pop(|_| true), None);
    }

    proptest! {
        #[test]
        fn what_is_allowed_is_free(
            total in 1u64..1000, takes in proptest::collection::vec(0u128..5, 0..200)
        ) {
            let mut shares = Shares::new(total);
            for n in takes {
                let allowed = shares.allowance(org(n));
                prop_assert!(shares.held() + allowed <= total);
                shares.take(org(n), allowed.min(3));
            }
        }
    }
}
