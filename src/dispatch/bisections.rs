//! Batches that were refused, in halves, until the bad events stand alone.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::lease::Leased;

/// After so many events that were refused alone, with none accepted, the receiver is taken to refuse the rest
/// of the batch as well.
pub const MAX_LONE_REFUSALS: u32 = 32;
/// While nothing may be sent, halves are kept for so long, and then given back: a day's pause must not keep
/// their events in memory.
pub(super) const LONGEST_INTERRUPTION: Duration = Duration::from_secs(60);

/// Which refused batch a part comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct BisectionId(u64);

/// Deliveries for one request: a batch, or a part of a batch that was refused.
#[derive(Debug)]
pub(super) struct Batch<H> {
    /// At least one.
    pub leased: Vec<Leased<H>>,
    /// Of which batch it is a part.
    pub part_of: Option<BisectionId>,
}

/// What is known of a refused batch.
#[derive(Debug, Default)]
struct Bisection {
    /// Its parts, waiting or in flight.
    parts: usize,
    refused_alone: u32,
    accepted: bool,
}

/// See the module.
pub(super) struct Bisections<H> {
    /// Parts that wait, in the order in which they go.
    parts: VecDeque<Batch<H>>,
    open: BTreeMap<BisectionId, Bisection>,
    begun: u64,
    /// Batches have no more events than this: what was refused in larger ones comes among them.
    cap: Option<usize>,
    /// Deliveries of refused batches that were given back and have not had their turn.
    given_up: usize,
    /// Since when parts wait because nothing may be sent.
    interrupted: Option<Instant>,
}

impl<H> Default for Bisections<H> {
    fn default() -> Self {
        Bisections {
            parts: VecDeque::new(),
            open: BTreeMap::new(),
            begun: 0,
            cap: None,
            given_up: 0,
            interrupted: None,
        }
    }
}

impl<H> Bisections<H> {
    /// Halves a batch of several, of which the first half goes first, before everything else; `last`: after
    /// everything else.
    pub(super) fn split(&mut self, mut batch: Batch<H>, last: bool) {
        let id = batch.part_of.unwrap_or_else(|| {
            self.begun += 1;
            self.open.insert(BisectionId(self.begun), Bisection { parts: 1, ..Bisection::default() });
            BisectionId(self.begun)
        });
        if let Some(bisection) = self.open.get_mut(&id) {
            bisection.parts += 1;
        }
        let leased = batch.leased.split_off(batch.leased.len() / 2);
        let halves = [batch.leased, leased].map(|leased| Batch { leased, part_of: Some(id) });
        match last {
            true => self.parts.extend(halves),
            false => halves.into_iter().rev().for_each(|half| self.parts.push_front(half)),
        }
    }

    /// Puts a part back that was not answered.
    pub(super) fn put_back(&mut self, part: Batch<H>) {
        self.parts.push_front(part);
    }

    /// A request has ended for good, and something was accepted.
    pub(super) fn accepted(&mut self, batch: &Batch<H>, most: usize) {
        if let Some(bisection) = batch.part_of.and_then(|id| self.open.get_mut(&id)) {
            bisection.accepted = true;
        } else if let Some(cap) = self.cap
            && batch.leased.len() >= cap
            && self.given_up == 0
        {
            self.cap = Some(cap * 2).filter(|cap| *cap < most);
        }
        self.ended(batch);
    }

    /// An event alone was refused. Returns what is charged with the same answer.
    pub(super) fn refused_alone(&mut self, batch: &Batch<H>) -> Vec<Leased<H>> {
        let Some(id) = batch.part_of else { return Vec::new() };
        let Some(bisection) = self.open.get_mut(&id) else { return Vec::new() };
        bisection.refused_alone += 1;
        let hopeless = bisection.refused_alone >= MAX_LONE_REFUSALS && !bisection.accepted;
        self.ended(batch);
        if hopeless { self.take(|part| part.part_of == Some(id)) } else { Vec::new() }
    }

    /// A request has ended for good.
    pub(super) fn ended(&mut self, batch: &Batch<H>) {
        self.given_up = self.given_up.saturating_sub(batch.leased.len());
        if let Some(id) = batch.part_of {
            self.forget(id);
        }
    }

    fn forget(&mut self, id: BisectionId) {
        if let Some(bisection) = self.open.get_mut(&id) {
            bisection.parts -= 1;
            if bisection.parts == 0 {
                self.open.remove(&id);
            }
        }
    }

    /// Takes out the waiting parts that `which` says and whose leases nobody renews at this moment.
    fn take(&mut self, which: impl Fn(&Batch<H>) -> bool) -> Vec<Leased<H>> {
        let mut taken = Vec::new();
        let mut kept = VecDeque::new();
        for part in self.parts.drain(..) {
            match which(&part) && !part.leased.iter().any(|leased| leased.renewing) {
                true => taken.push(part),
                false => kept.push_back(part),
            }
        }
        self.parts = kept;
        taken.iter().filter_map(|part| part.part_of).for_each(|id| self.forget(id));
        taken.into_iter().flat_map(|part| part.leased).collect()
    }

    /// Takes out everything that waits, to be given back. It will not come again in larger batches.
    pub(super) fn give_up(&mut self) -> Vec<Leased<H>> {
        let largest = self.parts.iter().map(|part| part.leased.len()).max();
        let taken = self.take(|_| true);
        if let Some(largest) = largest {
            self.lower_cap(largest, taken.len());
        }
        taken
    }

    /// No batch is larger than `to` until so many deliveries have had their turn, and some were accepted.
    fn lower_cap(&mut self, to: usize, deliveries: usize) {
        self.cap = Some(self.cap.map_or(to, |cap| cap.min(to)));
        self.given_up += deliveries;
    }

    /// Nothing may be sent before `until`: whether the parts are to be given back.
    pub(super) fn interrupt(&mut self, until: Instant, now: Instant) -> bool {
        let since = *self.interrupted.get_or_insert(now);
        until > since + LONGEST_INTERRUPTION
    }

    /// Something may be sent.
    pub(super) fn resume(&mut self) {
        self.interrupted = None;
    }

    /// How many events a new batch may have, of `most`.
    pub(super) fn batch_limit(&self, most: usize) -> usize {
        self.cap.map_or(most, |cap| cap.min(most))
    }

    /// The part that goes next.
    pub(super) fn front(&self) -> Option<&Batch<H>> {
        self.parts.front()
    }

    /// Takes it.
    pub(super) fn pop(&mut self) -> Option<Batch<H>> {
        self.parts.pop_front()
    }

    /// Deliveries that wait.
    pub(super) fn len(&self) -> usize {
        self.parts.iter().map(|part| part.leased.len()).sum()
    }

    /// Parts, to be looked at.
    pub(super) fn leases(&mut self) -> impl Iterator<Item = &mut Leased<H>> {
        self.parts.iter_mut().flat_map(|part| &mut part.leased)
    }

    /// Removes what is not ours any more. As with [`Bisections::give_up`], it will not come again in larger
    /// batches.
    pub(super) fn retain(&mut self, is_ours: impl Fn(&Leased<H>) -> bool) {
        let (mut empty, mut largest, mut lost) = (Vec::new(), None, 0);
        self.parts.retain_mut(|part| {
            let before = part.leased.len();
            part.leased.retain(&is_ours);
            if part.leased.len() < before {
                largest = largest.max(Some(before));
                lost += before - part.leased.len();
            }
            if part.leased.is_empty() {
                empty.extend(part.part_of);
            }
            !part.leased.is_empty()
        });
        empty.into_iter().for_each(|id| self.forget(id));
        if let Some(largest) = largest {
            self.lower_cap(largest, lost);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::fixtures::leased;

    fn batch(events: usize) -> Batch<()> {
        Batch { leased: (0..events).map(|n| leased(n as u128)).collect(), part_of: None }
    }

    fn sizes(bisections: &Bisections<()>) -> Vec<usize> {
        bisections.parts.iter().map(|part| part.leased.len()).collect()
    }

    #[test]
    fn halves_go_first_and_in_order() {
        let mut bisections = Bisections::default();
        bisections.split(batch(8), false);
        assert_eq!(sizes(&bisections), [4, 4]);
        let first = bisections.pop().unwrap();
        bisections.split(first, false);
        assert_eq!(sizes(&bisections), [2, 2, 4]);
        let order: Vec<u128> = bisections.leases().map(|l| l.delivery.id.0.as_u128()).collect();
        assert_eq!(order, [0, 1, 2, 3, 4, 5, 6, 7]);
        let first = bisections.pop().unwrap();
        bisections.split(first, true);
        assert_eq!(sizes(&bisections), [2, 4, 1, 1]);
    }

    #[test]
    fn thirty_two_lone_refusals_without_an_acceptance_decide_about_the_rest() {
        for accepts in [false, true] {
            let mut bisections = Bisections::default();
            bisections.split(batch(100), false);
            let (mut asked, mut rest) = (0, 0);
            while let Some(part) = bisections.pop() {
                match part.leased.len() {
                    1 if accepts && asked == 20 => bisections.accepted(&part, 100),
                    1 => rest += bisections.refused_alone(&part).len(),
                    _ => {
                        bisections.split(part, false);
                        continue;
                    }
                }
                asked += 1;
            }
            let expected = if accepts { (100, 0) } else { (32, 68) };
            assert_eq!((asked, rest), expected);
            assert!(bisections.open.is_empty());
        }
    }

    #[test]
    fn what_was_given_back_comes_in_batches_that_are_no_larger_than_its_parts() {
        let mut bisections = Bisections::default();
        assert_eq!(bisections.batch_limit(8), 8);
        bisections.split(batch(8), false);
        assert_eq!(bisections.give_up().len(), 8);
        assert_eq!(bisections.batch_limit(8), 4);
        bisections.split(batch(4), false);
        let first = bisections.pop().unwrap();
        bisections.split(first, false);
        let (one, two) = (bisections.pop().unwrap(), bisections.pop().unwrap());
        bisections.ended(&one);
        bisections.ended(&two);
        assert_eq!(bisections.give_up().len(), 2);
        assert_eq!(bisections.batch_limit(8), 2);
        // When they have had their turn, acceptance of full batches lets them grow again.
        for (accepted, limit) in [(2, 2), (2, 2), (2, 2), (2, 2), (1, 2), (2, 4), (4, 8)] {
            bisections.accepted(&batch(accepted), 8);
            assert_eq!(bisections.batch_limit(8), limit);
        }
        assert!(bisections.open.is_empty());
    }

    #[test]
    fn an_interruption_of_a_minute_is_waited_out() {
        let mut bisections = Bisections::<()>::default();
        let now = crate::clock::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        assert!(!bisections.interrupt(at(60), now));
        assert!(bisections.interrupt(at(61), at(30)));
        bisections.resume();
        assert!(!bisections.interrupt(at(90), at(40)));
        assert!(bisections.interrupt(at(200), at(40)));
    }
}
