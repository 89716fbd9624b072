//! Deliveries that are leased and not yet sent, and the batches made of them.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use super::RenewReply;
use super::bisections::{Batch, Bisections};
use super::lease::Leased;
use super::rules::{BatchRules, Rules};
use crate::model::{DbTime, DeliveryId};

/// A lease is renewed so long before no request could start under it any more.
const RENEW_BEFORE: Duration = Duration::from_secs(5);
/// Whoever renews a lease renews those as well that would be next within this time: one statement for many.
const RENEW_TOGETHER: Duration = Duration::from_secs(2);
/// A lease that could not be renewed is tried again after this time.
const RENEW_AGAIN: Duration = Duration::from_secs(1);
/// A batch is sent before it is full when the claim that brings the rest takes longer than this.
const LONGEST_FILLING: Duration = Duration::from_secs(1);

/// Whether there is something to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A part of a refused batch, or so many from the front of the queue.
    Part,
    /// As above.
    Events(usize),
    /// Not before then.
    Wait(Instant),
    /// Not until a lease is renewed, or more is claimed.
    Nothing,
}

/// See the module.
pub(super) struct Batcher<H> {
    queue: VecDeque<Leased<H>>,
    pub(super) bisections: Bisections<H>,
    /// When the first delivery of the queue became that.
    front_since: Instant,
    /// No lease needs to be renewed before.
    quiet_until: Option<Instant>,
    renewing: bool,
    /// What is under renewal is to be given back when that is answered.
    give_up: bool,
    /// Of an event, in bytes of JSON, as they came lately; zero before the first one.
    usual_bytes: f64,
}

impl<H> Batcher<H> {
    pub(super) fn new(now: Instant) -> Self {
        Batcher {
            queue: VecDeque::new(),
            bisections: Bisections::default(),
            front_since: now,
            quiet_until: None,
            renewing: false,
            give_up: false,
            usual_bytes: 0.0,
        }
    }

    /// How many events of the usual size make a full batch.
    pub(super) fn fitting(&self, rules: &Rules) -> usize {
        let most = self.bisections.batch_limit(rules.batch.events);
        let by_bytes = rules.batch.bytes as f64 / (self.usual_bytes + 1.0);
        most.min(by_bytes as usize).max(1)
    }

    /// Appends a delivery.
    pub(super) fn push(&mut self, leased: Leased<H>, rules: &Rules, now: Instant) {
        if self.queue.is_empty() {
            self.front_since = now;
        }
        let news = if self.usual_bytes > 0.0 { 0.1 } else { 1.0 };
        self.usual_bytes += news * (leased.bytes as f64 - self.usual_bytes);
        self.note_lease(renew_at(&leased, rules.timeout).unwrap_or(now));
        self.queue.push_back(leased);
    }

    /// A part of a refused batch has come back: its leases are ours to look after again.
    pub(super) fn note_part(&mut self, now: Instant) {
        self.note_lease(now);
    }

    fn note_lease(&mut self, moment: Instant) {
        self.quiet_until = Some(self.quiet_until.map_or(moment, |until| until.min(moment)));
    }

    /// Deliveries waiting.
    pub(super) fn len(&self) -> usize {
        self.queue.len() + self.bisections.len()
    }

    pub(super) fn is_renewing(&self) -> bool {
        self.renewing
    }

    /// What could be sent. `filling`: a claim is under way that brings more.
    pub(super) fn next(&self, rules: &Rules, filling: bool, now: Instant) -> Next {
        let may_start = |leased: &Leased<H>| leased.may_start(now, rules.timeout);
        if let Some(part) = self.bisections.front() {
            return if part.leased.iter().all(may_start) { Next::Part } else { Next::Nothing };
        }
        if self.queue.is_empty() {
            return Next::Nothing;
        }
        let BatchRules { events: most, bytes: most_bytes, .. } = rules.batch;
        let most = self.bisections.batch_limit(most);
        // As in the body: a comma or bracket with each event, and one more bracket.
        let mut bytes = 1;
        let fitting = |leased: &&Leased<H>| {
            bytes += leased.bytes + 1;
            bytes <= most_bytes
        };
        let events = self.queue.iter().take(most).take_while(fitting).count().max(1);
        if !self.queue.iter().take(events).all(may_start) {
            return Next::Nothing;
        }
        let is_full = events == most || events < self.queue.len();
        let end = self.front_since + LONGEST_FILLING;
        match !is_full && filling && now < end {
            true => Next::Wait(end),
            false => Next::Events(events),
        }
    }

    /// Takes what [`Batcher::next`] found.
    pub(super) fn take(&mut self, next: Next, now: Instant) -> Option<Batch<H>> {
        match next {
            Next::Part => self.bisections.pop(),
            Next::Events(events) => {
                self.front_since = now;
                let mut leased: Vec<Leased<H>> = self.queue.drain(..events.min(self.queue.len())).collect();
                // A claim goes by due times, which retries have moved.
                leased.sort_by_key(|leased| (leased.delivery.created_at, leased.delivery.id));
                Some(Batch { leased, part_of: None }).filter(|batch| !batch.leased.is_empty())
            }
            Next::Wait(_) | Next::Nothing => None,
        }
    }

    /// Takes out everything that was not refused, to be given back. What is under renewal stays.
    pub(super) fn take_queue(&mut self) -> Vec<Leased<H>> {
        let (kept, taken) = self.queue.drain(..).partition(|leased| leased.renewing);
        self.queue = kept;
        Vec::from(taken)
    }

    /// Takes out everything, to be given back; what is under renewal follows with its answer.
    pub(super) fn take_all(&mut self) -> Vec<Leased<H>> {
        self.give_up = self.renewing;
        let mut all = self.bisections.give_up();
        all.extend(self.take_queue());
        all
    }

    /// The leases that should be renewed now.
    pub(super) fn renew(&mut self, rules: &Rules, now: Instant) -> Vec<(DeliveryId, DbTime)> {
        if self.renewing || self.quiet_until.is_none_or(|until| now < until) {
            return Vec::new();
        }
        let mut due = Vec::new();
        let mut next: Option<Instant> = None;
        for leased in self.bisections.leases().chain(&mut self.queue) {
            match renew_at(leased, rules.timeout).filter(|at| *at > now + RENEW_TOGETHER) {
                Some(at) => next = Some(next.map_or(at, |next| next.min(at))),
                None => {
                    leased.renewing = true;
                    due.push((leased.delivery.id, leased.delivery.claimed_at));
                }
            }
        }
        self.quiet_until = next;
        self.renewing = !due.is_empty();
        due
    }

    /// When [`Batcher::renew`] has something to do.
    pub(super) fn renew_at(&self) -> Option<Instant> {
        self.quiet_until.filter(|_| !self.renewing)
    }

    /// Nothing under renewal will be answered any more: those leases end by themselves.
    pub(super) fn abandon(&mut self, now: Instant) {
        self.renewed(&RenewReply::default(), now);
    }

    /// Takes in what became of them. Returns how many are not ours any more, and what is to be given back.
    pub(super) fn renewed(&mut self, reply: &RenewReply, now: Instant) -> (usize, Vec<Leased<H>>) {
        let renewed: HashMap<DeliveryId, DbTime> = reply.renewed.iter().copied().collect();
        let locked: HashSet<DeliveryId> = reply.locked.iter().copied().collect();
        let before = self.len();
        self.renewing = false;
        for leased in self.bisections.leases().chain(&mut self.queue).filter(|leased| leased.renewing) {
            if let Some(claimed_at) = renewed.get(&leased.delivery.id) {
                leased.delivery.claimed_at = *claimed_at;
                leased.expires = reply.expires.unwrap_or(leased.expires);
                leased.renewing = false;
            } else if locked.contains(&leased.delivery.id) && now < leased.expires {
                leased.renewing = false;
            }
        }
        self.bisections.retain(|leased| !leased.renewing);
        self.queue.retain(|leased| !leased.renewing);
        let lost = before - self.len();
        // When all are looked at, it is known when they are to be renewed next.
        self.note_lease(now + RENEW_AGAIN);
        let unwanted = if std::mem::take(&mut self.give_up) { self.take_all() } else { Vec::new() };
        (lost, unwanted)
    }
}

/// When a lease is to be renewed; `None` where it cannot last for a request at all.
fn renew_at<H>(leased: &Leased<H>, timeout: Duration) -> Option<Instant> {
    leased.starts_by(timeout)?.checked_sub(RENEW_BEFORE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::fixtures::{LEASE, leased, rules};

    fn filled(rules: &Rules, events: usize, now: Instant) -> Batcher<()> {
        let mut batcher = Batcher::new(now);
        for n in 0..events {
            batcher.push(Leased { expires: now + LEASE, ..leased(n as u128) }, rules, now);
        }
        batcher
    }

    #[test]
    fn a_batch_has_as_many_as_it_may_and_goes_at_once_unless_more_is_on_its_way() {
        let now = crate::clock::now();
        let full = now + LONGEST_FILLING;
        // Events waiting, most in a batch, most bytes, more is on its way, waited for seconds: what goes.
        let table = [
            (0, 5, 1_000, false, 0, Next::Nothing),
            (3, 5, 1_000, false, 0, Next::Events(3)),
            (7, 5, 1_000, false, 0, Next::Events(5)),
            (7, 5, 23, true, 0, Next::Events(2)),
            (7, 5, 5, true, 0, Next::Events(1)),
            (3, 5, 1_000, true, 0, Next::Wait(full)),
            (3, 5, 1_000, true, 1, Next::Events(3)),
            (3, 1, 1_000, true, 0, Next::Events(1)),
        ];
        for (n, (waiting, events, bytes, filling, seconds, expected)) in table.into_iter().enumerate() {
            let batch = BatchRules { events, bytes, ..rules().batch };
            let rules = Rules { batch, ..rules() };
            let batcher = filled(&rules, waiting, now);
            let at = now + Duration::from_secs(seconds);
            assert_eq!(batcher.next(&rules, filling, at), expected, "line {n}");
        }
    }

    #[test]
    fn a_batch_is_in_the_order_of_the_queue_however_it_was_claimed() {
        let now = crate::clock::now();
        let mut batcher = Batcher::new(now);
        for n in [3, 1, 2] {
            batcher.push(leased(n), &rules(), now);
        }
        let batch = batcher.take(Next::Events(3), now).unwrap();
        let order: Vec<u128> = batch.leased.iter().map(|l| l.delivery.id.0.as_u128()).collect();
        assert_eq!(order, [1, 2, 3]);
    }

    #[test]
    fn leases_are_renewed_in_time_and_what_is_being_renewed_is_not_touched() {
        let now = crate::clock::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let rules = Rules { timeout: Duration::from_secs(30), ..rules() };
        let mut batcher = filled(&rules, 2, now);
        assert!(batcher.renew(&rules, at(4)).is_empty());
        assert_eq!(batcher.renew_at(), Some(at(5)));
        assert_eq!(batcher.renew(&rules, at(5)).len(), 2);
        assert_eq!(batcher.next(&rules, false, at(5)), Next::Nothing);
        assert!(batcher.take_queue().is_empty());
        assert!(batcher.renew(&rules, at(20)).is_empty(), "one at a time");
        let first = batcher.queue[0].delivery.id;
        let reply =
            RenewReply { renewed: vec![(first, DbTime(2_000))], locked: Vec::new(), expires: Some(at(65)) };
        let (lost, unwanted) = batcher.renewed(&reply, at(20));
        assert_eq!((lost, unwanted.len(), batcher.len()), (1, 0, 1));
        assert_eq!(batcher.next(&rules, false, at(20)), Next::Events(1));
        assert_eq!(batcher.queue[0].delivery.claimed_at, DbTime(2_000));
        assert_eq!(batcher.renew(&rules, at(25)).len(), 1);
    }

    #[test]
    fn what_is_given_up_while_it_is_renewed_is_given_back_under_its_new_lease() {
        let now = crate::clock::now();
        let rules = rules();
        let mut batcher = filled(&rules, 1, now);
        let later = now + LEASE;
        let (id, _) = batcher.renew(&rules, later)[0];
        assert!(batcher.take_all().is_empty());
        let reply = RenewReply { renewed: vec![(id, DbTime(9))], locked: Vec::new(), expires: Some(later) };
        let (lost, unwanted) = batcher.renewed(&reply, later);
        assert_eq!((lost, unwanted.len()), (0, 1));
        assert_eq!(unwanted[0].delivery.claimed_at, DbTime(9));
    }

    #[test]
    fn a_locked_row_keeps_its_lease_and_is_tried_again() {
        let now = crate::clock::now();
        let rules = rules();
        let mut batcher = filled(&rules, 1, now);
        let soon = now + Duration::from_secs(31);
        let (id, _) = batcher.renew(&rules, soon)[0];
        let reply = RenewReply { locked: vec![id], ..RenewReply::default() };
        assert_eq!(batcher.renewed(&reply, soon).0, 0);
        assert_eq!(batcher.next(&rules, false, soon), Next::Events(1));
        assert_eq!(batcher.renew(&rules, soon + RENEW_AGAIN).len(), 1);
    }
}
