//! The claims that wait for a statement, and how much the next statement may take.
//!
//! Three things bound a statement: rows, bytes, and the time that the last one took. Its bytes are a part of
//! what is free, so that events are never read before there is room for them, and whoever comes next finds
//! some room left.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::db::Claim;
use super::limit::Limit;
use crate::model::{EVENT_OVERHEAD_BYTES, OrgId};
use crate::policy::fairness::FairQueue;
use crate::store::deliveries::{MAX_CLAIM_ROWS, Room};

/// A statement that takes longer is followed by one that asks for half as many rows. Far below the limit of
/// statements: one that runs into it has done its work for nothing.
const SLOW: Duration = Duration::from_secs(1);

/// See the module.
pub(super) struct Claims {
    waiting: FairQueue<Claim>,
    count: usize,
    /// Claims that wait for results, each with the number of results that must be written before it.
    after_results: VecDeque<(u64, Claim)>,
    /// Rows that the next statement may ask for.
    rows: usize,
}

/// What one statement claims.
pub(super) struct Group {
    pub(super) claims: Vec<Claim>,
    pub(super) room: Room,
}

impl Claims {
    pub(super) fn new() -> Claims {
        Claims {
            waiting: FairQueue::default(),
            count: 0,
            after_results: VecDeque::new(),
            rows: MAX_CLAIM_ROWS,
        }
    }

    pub(super) fn push(&mut self, claim: Claim) {
        self.count += 1;
        self.waiting.push(claim.org, claim);
    }

    /// Keeps `claim` back until `results` of them are written.
    pub(super) fn push_after(&mut self, results: u64, claim: Claim) {
        self.after_results.push_back((results, claim));
    }

    /// So many results are written now.
    pub(super) fn written(&mut self, results: u64) {
        while self.after_results.front().is_some_and(|(after, _)| *after <= results)
            && let Some((_, claim)) = self.after_results.pop_front()
        {
            self.push(claim);
        }
    }

    /// Takes out everything.
    pub(super) fn take_all(&mut self) -> Vec<Claim> {
        self.count = 0;
        let after = self.after_results.drain(..).map(|(_, claim)| claim);
        let waiting = std::iter::from_fn(|| self.waiting.pop(|_| true)).map(|(_, claim)| claim);
        after.chain(waiting).collect()
    }

    /// How many could be claimed for now, if there were room.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// The claims of the next statement, in fair order, with their shares of the bytes that are free; none if
    /// nobody waits who may have any.
    pub(super) fn next(&mut self, bytes: &Limit, max_event_bytes: usize) -> Group {
        let mut claims: Vec<Claim> = Vec::new();
        let mut rows = 0;
        while rows < self.rows
            && let Some((_, mut claim)) = self.waiting.pop(|org| bytes.allowance(org) > 0)
        {
            claim.ask.want = claim.ask.want.min((self.rows - rows) as u32);
            rows += claim.ask.want as usize;
            claims.push(claim);
        }
        self.count -= claims.len();
        let mut asking: HashMap<OrgId, u64> = HashMap::new();
        for claim in &claims {
            *asking.entry(claim.org).or_default() += 1;
        }
        for claim in &mut claims {
            let share = (bytes.allowance(claim.org) / asking[&claim.org]).max(1);
            claim.ask.max_bytes = share;
            // Rows that cannot be taken anyway need not be looked at.
            let fitting = 1 + share / EVENT_OVERHEAD_BYTES;
            claim.ask.want = claim.ask.want.min(u32::try_from(fitting).unwrap_or(u32::MAX));
        }
        let room = Room { planned: bytes.allowance_of_anybody(), most: bytes.free(), max_event_bytes };
        Group { claims, room }
    }

    /// A statement took this long: the next one asks for less, or for more again.
    pub(super) fn took(&mut self, time: Duration) {
        if time > SLOW {
            self.rows = (self.rows / 2).max(1);
        } else if time < SLOW / 4 {
            self.rows = (self.rows * 2).min(MAX_CLAIM_ROWS);
        }
    }

    /// A statement was too much for the database: the next one asks for much less.
    pub(super) fn was_too_much(&mut self) {
        self.rows = (self.rows / 8).max(1);
    }
}
