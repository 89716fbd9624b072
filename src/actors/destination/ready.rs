//! Deliveries that are leased and not yet sent, and the batches made of them.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::actors::db::Leased;
use crate::model::Delivery;

/// Time that must be left of a lease, besides the timeout of the request, to record the result.
const RECORDING_MARGIN: Duration = Duration::from_secs(5);

/// Deliveries for one request.
#[derive(Debug)]
pub struct Batch {
    /// At least one.
    pub leased: Vec<Leased>,
    /// Whether it is a part of a batch that was refused: only answers to single events charge.
    pub part: bool,
}

impl Batch {
    /// The halves, the first one first.
    pub fn halves(mut self) -> [Batch; 2] {
        let second = self.leased.split_off(self.leased.len() / 2);
        [Batch { leased: self.leased, part: true }, Batch { leased: second, part: true }]
    }

    /// Whether a request that takes `timeout` can end, and be recorded, within the leases.
    pub fn fits(&self, now: Instant, timeout: Duration) -> bool {
        self.leased.iter().all(|leased| fits(leased, now, timeout))
    }

    /// What it delivers.
    pub fn deliveries(&self) -> impl Iterator<Item = &Delivery> {
        self.leased.iter().map(|leased| &leased.delivery)
    }
}

fn fits(leased: &Leased, now: Instant, timeout: Duration) -> bool {
    now + timeout + RECORDING_MARGIN <= leased.expires
}

/// How batches are cut.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// Events at most.
    pub events: usize,
    /// Bytes of JSON at most, unless a single event has more.
    pub bytes: usize,
    /// How long an incomplete batch waits for more.
    pub wait: Duration,
    /// The destination's timeout.
    pub timeout: Duration,
}

/// What [`Ready::next`] found.
#[derive(Debug)]
pub enum Next {
    /// Send this.
    Batch(Batch),
    /// An incomplete batch waits until then.
    Wait(Instant),
    /// There is nothing to send.
    Nothing,
}

struct Waiting {
    leased: Leased,
    bytes: usize,
    since: Instant,
}

/// The queue in front of the requests, in the order of the claim; parts of refused batches go first.
#[derive(Default)]
pub struct Ready {
    parts: VecDeque<Batch>,
    queue: VecDeque<Waiting>,
}

impl Ready {
    /// Appends a delivery whose event has `bytes` of JSON.
    pub fn push(&mut self, leased: Leased, bytes: usize, now: Instant) {
        self.queue.push_back(Waiting { leased, bytes, since: now });
    }

    /// The parts of a refused batch, to be sent before anything else, in their order.
    pub fn push_parts(&mut self, parts: [Batch; 2]) {
        parts.into_iter().rev().for_each(|part| self.parts.push_front(part));
    }

    /// Deliveries waiting.
    pub fn len(&self) -> usize {
        self.queue.len() + self.parts.iter().map(|part| part.leased.len()).sum::<usize>()
    }

    /// The next batch, if one is complete or has waited long enough.
    pub fn next(&mut self, cut: Cut, now: Instant) -> Next {
        if let Some(part) = self.parts.pop_front() {
            return Next::Batch(part);
        }
        let Some(first) = self.queue.front() else { return Next::Nothing };
        // As in the body: a comma or bracket with each event, and one more bracket.
        let mut bytes = 1;
        let fitting = |waiting: &&Waiting| {
            bytes += waiting.bytes + 1;
            bytes <= cut.bytes
        };
        let events = self.queue.iter().take(cut.events).take_while(fitting).count().max(1);
        let is_full = events == cut.events || events < self.queue.len();
        let end = first.since + cut.wait;
        if !is_full && end > now {
            return Next::Wait(end);
        }
        let leased = self.queue.drain(..events).map(|waiting| waiting.leased).collect();
        Next::Batch(Batch { leased, part: false })
    }

    /// Puts back a batch that was taken but not sent.
    pub fn put_back(&mut self, batch: Batch, now: Instant) {
        self.parts.push_front(batch);
        debug_assert!(self.parts.front().is_some_and(|part| part.leased.iter().all(|l| l.expires > now)));
    }

    /// Takes out what can no longer be sent within its lease.
    pub fn take_stale(&mut self, cut: Cut, now: Instant) -> Vec<Leased> {
        let stale = |part: &Batch| !part.fits(now, cut.timeout);
        let mut taken = Vec::new();
        while let Some(i) = self.parts.iter().position(stale) {
            taken.extend(self.parts.remove(i).into_iter().flat_map(|part| part.leased));
        }
        // In the order of the claim, the oldest leases are in front.
        while self.queue.front().is_some_and(|waiting| !fits(&waiting.leased, now, cut.timeout)) {
            taken.extend(self.queue.pop_front().map(|waiting| waiting.leased));
        }
        taken
    }

    /// Takes out everything.
    pub fn take_all(&mut self) -> Vec<Leased> {
        let parts = self.parts.drain(..).flat_map(|part| part.leased);
        let mut all: Vec<Leased> = parts.collect();
        all.extend(self.queue.drain(..).map(|waiting| waiting.leased));
        all
    }
}
