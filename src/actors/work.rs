//! What is to be written: gathered while a statement is under way, and put back where that failed.

use std::collections::{BTreeMap, VecDeque};

use super::messages::Renew;
use crate::model::{Change, DestinationId, Outcome};
use crate::policy::health::Saved;
use crate::store::destinations::OperationalEvent;
use crate::store::faults::{Fault, Kind, Subject};

/// Operational events are dropped rather than hoarded when they cannot be written.
const MAX_EVENTS_WAITING: usize = 1_000;

/// See the module.
#[derive(Default)]
pub(super) struct Work {
    pub(super) outcomes: VecDeque<Outcome>,
    /// Outcomes set aside because somebody has locked their rows.
    pub(super) locked: VecDeque<Outcome>,
    pub(super) states: BTreeMap<DestinationId, Saved>,
    pub(super) disabled: Vec<(DestinationId, String)>,
    pub(super) events: Vec<OperationalEvent>,
    pub(super) renewals: Vec<Renew>,
    /// Faults to be shown, and those that are over.
    pub(super) faults: Vec<Fault>,
    pub(super) healed: Vec<Subject>,
    /// What was tried and cannot be written for a lasting reason.
    pub(super) refused: Vec<(Item, String)>,
}

/// A single thing to be written.
#[derive(Debug)]
pub(super) enum Item {
    Outcome(Outcome),
    State(DestinationId, Saved),
    Disable(DestinationId, String),
}

impl Item {
    /// Whether it says that a delivery was accepted.
    pub(super) fn is_success(&self) -> bool {
        matches!(self, Item::Outcome(outcome) if outcome.change == Change::Delivered)
    }

    /// What it is about.
    pub(super) fn subject(&self) -> Subject {
        let (kind, destination, delivery) = match self {
            Item::Outcome(outcome) => (Kind::Result, outcome.destination, Some(outcome.delivery)),
            Item::State(destination, _) => (Kind::State, *destination, None),
            Item::Disable(destination, _) => (Kind::Disable, *destination, None),
        };
        Subject { kind, destination, delivery }
    }
}

impl Work {
    pub(super) fn is_empty(&self) -> bool {
        self.outcomes.is_empty()
            && self.locked.is_empty()
            && self.states.is_empty()
            && self.disabled.is_empty()
            && self.events.is_empty()
            && self.renewals.is_empty()
            && self.faults.is_empty()
            && self.healed.is_empty()
    }

    pub(super) fn add(&mut self, item: Item) {
        match item {
            Item::Outcome(outcome) => self.outcomes.push_back(outcome),
            // What came meanwhile is newer.
            Item::State(destination, saved) => {
                self.states.entry(destination).or_insert(saved);
            }
            Item::Disable(destination, reason) => self.disabled.push((destination, reason)),
        }
    }

    /// Takes at most `rows` outcomes, up to half of them such as were set aside, and everything else.
    pub(super) fn take(&mut self, rows: usize) -> Work {
        let mut outcomes = take_front(&mut self.locked, rows / 2);
        outcomes.extend(take_front(&mut self.outcomes, rows - outcomes.len()));
        Work {
            outcomes: outcomes.into(),
            locked: VecDeque::new(),
            states: std::mem::take(&mut self.states),
            disabled: std::mem::take(&mut self.disabled),
            events: std::mem::take(&mut self.events),
            renewals: std::mem::take(&mut self.renewals),
            faults: std::mem::take(&mut self.faults),
            healed: std::mem::take(&mut self.healed),
            refused: Vec::new(),
        }
    }

    /// Puts what was not written back in front.
    pub(super) fn put_back(&mut self, mut left: Work) {
        left.outcomes.append(&mut self.outcomes);
        // These take turns: there may be more of them than one statement tries.
        self.locked.append(&mut left.locked);
        left.locked = std::mem::take(&mut self.locked);
        // What came meanwhile is newer.
        left.states.append(&mut self.states);
        left.disabled.append(&mut self.disabled);
        left.events.append(&mut self.events);
        left.events.truncate(MAX_EVENTS_WAITING);
        left.renewals.append(&mut self.renewals);
        left.faults.append(&mut self.faults);
        left.healed.append(&mut self.healed);
        *self = left;
    }
}

/// Work in the order in which it came, with a way to take some of it.
fn take_front<T>(queue: &mut VecDeque<T>, most: usize) -> Vec<T> {
    queue.drain(..most.min(queue.len())).collect()
}
