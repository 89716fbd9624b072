//! The claims that wait for a statement, and how much the next statement may take.
//!
//! They wait in two queues, by [`Urgency`], each with a connection of its own, so that something new does not
//! wait until a large part of somebody's backlog is claimed.
//!
//! Three things bound a statement: rows, bytes, and the time that the last one took. Its bytes are a part of
//! what is free, so that events are never read before there is room for them, and whoever comes next finds
//! some room left.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::limit::Limit;
use super::messages::Claim;
use crate::dispatch::Urgency;
use crate::model::{EVENT_OVERHEAD_BYTES, OrgId};
use crate::policy::fairness::FairQueue;
use crate::store::deliveries::{MAX_CLAIM_ROWS, Room};

/// A statement that takes longer is followed by one that asks for half as many rows. Far below the limit of
/// statements: one that runs into it has done its work for nothing.
const SLOW: Duration = Duration::from_secs(1);

/// How many connections claim.
const CONNECTIONS: u64 = 2;

/// See the module.
pub(super) struct Claims {
    queues: [Queue; 2],
    /// There are two connections; otherwise all wait in one queue.
    is_split: bool,
    /// Claims that wait for results, each with the number of results that must be written before it.
    after_results: VecDeque<(u64, Claim)>,
}

/// Claims of one urgency.
struct Queue {
    waiting: FairQueue<Claim>,
    count: usize,
    /// Rows that the next statement may ask for.
    rows: usize,
}

impl Queue {
    fn take_all(&mut self) -> Vec<Claim> {
        self.count = 0;
        std::iter::from_fn(|| self.waiting.pop(|_| true)).map(|(_, claim)| claim).collect()
    }
}

/// What one statement claims.
pub(super) struct Group {
    pub(super) claims: Vec<Claim>,
    pub(super) room: Room,
}

impl Claims {
    pub(super) fn new() -> Claims {
        let queue = || Queue { waiting: FairQueue::default(), count: 0, rows: MAX_CLAIM_ROWS };
        Claims { queues: [queue(), queue()], is_split: false, after_results: VecDeque::new() }
    }

    /// From now on there are two queues.
    pub(super) fn split(&mut self) {
        self.is_split = true;
    }

    /// From now on there is one, [`Urgency::Backlog`].
    pub(super) fn merge(&mut self) {
        self.is_split = false;
        self.queues[Urgency::New as usize].take_all().into_iter().for_each(|claim| self.push(claim));
    }

    pub(super) fn push(&mut self, claim: Claim) {
        let urgency = if self.is_split { claim.urgency } else { Urgency::Backlog };
        let queue = &mut self.queues[urgency as usize];
        queue.count += 1;
        queue.waiting.push(claim.org, claim);
    }

    /// Keeps `claim` back until `results` of them are written.
    pub(super) fn push_after(&mut self, results: u64, claim: Claim) {
        self.after_results.push_back((results, claim));
    }

    /// So many results are written now: the claims that waited for them.
    pub(super) fn written(&mut self, results: u64) -> Vec<Claim> {
        let ready = self.after_results.iter().take_while(|(after, _)| *after <= results).count();
        self.after_results.drain(..ready).map(|(_, claim)| claim).collect()
    }

    /// Takes out everything.
    pub(super) fn take_all(&mut self) -> Vec<Claim> {
        let after = self.after_results.drain(..).map(|(_, claim)| claim);
        after.chain(self.queues.iter_mut().flat_map(Queue::take_all)).collect()
    }

    /// How many could be claimed for now, if there were room.
    pub(super) fn len(&self) -> usize {
        self.queues.iter().map(|queue| queue.count).sum()
    }

    /// The claims of the next statement of this urgency, for at most `most_rows`, in fair order, with their
    /// shares of the bytes that are free; none if nobody waits who may have any. A statement of the other
    /// urgency may be under way: each gets half of what is free.
    pub(super) fn next(
        &mut self,
        urgency: Urgency,
        most_rows: usize,
        bytes: &Limit,
        max_event_bytes: usize,
    ) -> Group {
        let queue = &mut self.queues[urgency as usize];
        let most_rows = most_rows.min(queue.rows);
        let mut claims: Vec<Claim> = Vec::new();
        let (mut rows, mut most) = (0, usize::MAX);
        while rows < most_rows
            && claims.len() < most
            && let Some((org, mut claim)) = queue.waiting.pop(|org| bytes.allowance(org) > 0)
        {
            if claim.max_group_size <= claims.len() {
                // The next statement begins with it.
                queue.waiting.put_back(org, claim);
                break;
            }
            most = most.min(claim.max_group_size);
            claim.ask.want = claim.ask.want.min((most_rows - rows) as u32);
            rows += claim.ask.want as usize;
            claims.push(claim);
        }
        queue.count -= claims.len();
        let mut asking: HashMap<OrgId, u64> = HashMap::new();
        for claim in &claims {
            *asking.entry(claim.org).or_default() += 1;
        }
        let [planned, most] =
            [bytes.allowance_of_anybody(), bytes.free()].map(|free| (free / CONNECTIONS).max(1));
        // What one organization's events come to must leave room for those of the others, even if each of its
        // destinations takes one event more than it should.
        let most_each = planned / 2 / asking.len().max(1) as u64;
        for claim in &mut claims {
            let of_org = (bytes.allowance(claim.org) / CONNECTIONS).min(most_each);
            let share = (of_org / asking[&claim.org]).max(1);
            claim.ask.max_bytes = share;
            // Rows that cannot be taken anyway need not be looked at.
            let fitting = 1 + share / EVENT_OVERHEAD_BYTES;
            claim.ask.want = claim.ask.want.min(u32::try_from(fitting).unwrap_or(u32::MAX));
        }
        Group { claims, room: Room { planned, most, max_event_bytes } }
    }

    /// A statement of this urgency took this long: the next one asks for less, or for more again.
    pub(super) fn took(&mut self, urgency: Urgency, time: Duration) {
        let rows = &mut self.queues[urgency as usize].rows;
        if time > SLOW {
            *rows = (*rows / 2).max(1);
        } else if time < SLOW / 4 {
            *rows = (*rows * 2).min(MAX_CLAIM_ROWS);
        }
    }

    /// A statement of this urgency was too much for the database: the next one asks for much less.
    pub(super) fn was_too_much(&mut self, urgency: Urgency) {
        let rows = &mut self.queues[urgency as usize].rows;
        *rows = (*rows / 8).max(1);
    }
}
