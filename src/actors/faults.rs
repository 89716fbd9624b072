//! What cannot be done for a lasting reason: each thing waits by itself, at growing intervals, while
//! everything else goes on.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::work::Item;
use crate::model::{DeliveryId, DestinationId};
use crate::policy::health::Saved;
use crate::store::faults::{Fault, Kind, Subject};

/// Wait after the first failure; doubles up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// Longest wait: what was mended is done again within this.
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// A destination with so many deliveries that cannot be read rests as a whole.
const MOST_UNREADABLE: usize = 16;
/// A destination with more results that cannot be written gets nothing more to send.
const MOST_UNWRITTEN: usize = 16;
/// What cannot be read was deleted, or is somebody else's by now, when it was not tried for so long.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(2 * 3600);

/// A fault, what waits because of it, and until when.
struct Waiting {
    fault: Fault,
    item: Option<Item>,
    until: Instant,
}

/// See the module.
#[derive(Default)]
pub(super) struct Faults(BTreeMap<Subject, Waiting>);

impl Faults {
    /// Notes that `subject` has failed once more, and keeps `item` until it is tried again. Returns the
    /// fault, to be shown.
    pub(super) fn failed(&mut self, subject: Subject, item: Option<Item>, why: &str, now: Instant) -> Fault {
        self.0.retain(|_, waiting| waiting.item.is_some() || now < waiting.until + FORGOTTEN_AFTER);
        let (before, kept) = self.0.remove(&subject).map_or((None, None), |w| (Some(w.fault), w.item));
        // That it was accepted is a fact, whatever is said of it later.
        let item = kept.filter(Item::is_success).or(item);
        if before.as_ref().is_none_or(|before| before.message != why) {
            log::error!("{}: {why}; tried again at growing intervals, the others go on", named(&subject));
        }
        let tries = before.map_or(0, |before| before.tries) + 1;
        let wait = FIRST_WAIT.saturating_mul(1 << tries.min(20).saturating_sub(1)).min(LONGEST_WAIT);
        let fault = Fault { subject, message: why.to_owned(), tries };
        self.0.insert(subject, Waiting { fault: fault.clone(), item, until: now + wait });
        fault
    }

    /// It works again. Whether there was a fault.
    pub(super) fn healed(&mut self, subject: &Subject) -> bool {
        let was = self.0.remove(subject).is_some();
        if was {
            log::info!("{}: it works again", named(subject));
        }
        was
    }

    /// Until when a subject rests.
    pub(super) fn rests_until(&self, subject: &Subject, now: Instant) -> Option<Instant> {
        self.0.get(subject).map(|waiting| waiting.until).filter(|until| *until > now)
    }

    /// Whether a destination gets nothing for now: nothing can be claimed for it, or too many of its results
    /// cannot be written.
    pub(super) fn holds_back(&self, destination: DestinationId, now: Instant) -> bool {
        let claims = Subject { kind: Kind::Claim, destination, delivery: None };
        !self.0.is_empty()
            && (self.rests_until(&claims, now).is_some()
                || self.count(Kind::Result, destination, MOST_UNWRITTEN + 1) > MOST_UNWRITTEN)
    }

    /// What a delivery that cannot be read is told as: by itself, or, where there are many, as its
    /// destination.
    pub(super) fn unreadable(&self, destination: DestinationId, delivery: DeliveryId) -> Subject {
        let subject = Subject { kind: Kind::Claim, destination, delivery: Some(delivery) };
        let many = self.count(Kind::Claim, destination, MOST_UNREADABLE) >= MOST_UNREADABLE;
        Subject { delivery: if many && !self.is_known(&subject) { None } else { Some(delivery) }, ..subject }
    }

    /// How many faults of a kind a destination has, counted up to `most`.
    fn count(&self, kind: Kind, destination: DestinationId, most: usize) -> usize {
        let first = Subject { kind, destination, delivery: None };
        let same = |subject: &Subject| subject.kind == kind && subject.destination == destination;
        self.0.range(first..).take_while(|(subject, _)| same(subject)).take(most).count()
    }

    /// Forgets what was to be done about a destination whose row has changed or is gone: what is over.
    pub(super) fn withdraw(&mut self, destination: DestinationId) -> Vec<Subject> {
        let of = |kind| move |s: &&Subject| s.kind == kind && s.destination == destination;
        let claims = self.0.keys().filter(of(Kind::Claim));
        let over: Vec<Subject> = claims.chain(self.0.keys().filter(of(Kind::Disable))).copied().collect();
        over.iter().for_each(|subject| {
            self.0.remove(subject);
        });
        over
    }

    /// Takes out everything that is to be tried again, whenever that would be.
    pub(super) fn all(&mut self) -> Vec<Item> {
        self.0.values_mut().filter_map(|waiting| waiting.item.take()).collect()
    }

    /// When the next item is to be tried again.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.values().filter(|waiting| waiting.item.is_some()).map(|waiting| waiting.until).min()
    }

    /// Takes out what is to be tried again. What it is about stays known until it has worked.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Item> {
        let due = self.0.values_mut().filter(|waiting| waiting.until <= now);
        due.filter_map(|waiting| waiting.item.take()).collect()
    }

    /// Whether nothing is known of any.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it has failed, and was not seen to work since.
    pub(super) fn is_known(&self, subject: &Subject) -> bool {
        self.0.contains_key(subject)
    }

    /// Takes a newer state in the place of one that waits. Whether one does.
    pub(super) fn replace_state(&mut self, destination: DestinationId, saved: Saved) -> bool {
        let item = Item::State(destination, saved);
        let waiting = self.0.get_mut(&item.subject()).filter(|waiting| waiting.item.is_some());
        waiting.map(|waiting| waiting.item = Some(item)).is_some()
    }

    /// Whether the result of a delivery waits to be written: it must not be sent once more.
    pub(super) fn holds_result(&self, destination: DestinationId, delivery: DeliveryId) -> bool {
        !self.0.is_empty()
            && self.0.contains_key(&Subject { kind: Kind::Result, destination, delivery: Some(delivery) })
    }

    /// How many there are of each kind.
    pub(super) fn counts(&self) -> [usize; Kind::ALL.len()] {
        Kind::ALL.map(|kind| self.0.keys().filter(|subject| subject.kind == kind).count())
    }

    /// Some of them, in words.
    pub(super) fn some(&self, most: usize) -> Vec<String> {
        let told =
            |waiting: &Waiting| format!("{}: {}", named(&waiting.fault.subject), waiting.fault.message);
        self.0.values().take(most).map(told).collect()
    }
}

/// A subject with its ids, and what cannot be done.
pub(super) fn named(subject: &Subject) -> String {
    let what = match subject.kind {
        Kind::Claim if subject.delivery.is_some() => "cannot be read",
        Kind::Claim => "its deliveries cannot be claimed",
        Kind::Result => "its result cannot be written",
        Kind::State => "its state cannot be written",
        Kind::Disable => "it cannot be disabled",
        Kind::Load => "it cannot be read, and is not contacted",
    };
    match subject.delivery {
        Some(delivery) => format!("destination={} delivery={delivery} {what}", subject.destination),
        None => format!("destination={} {what}", subject.destination),
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn each_waits_by_itself_and_longer_each_time() {
        let (mut faults, now) = (Faults::default(), crate::clock::now());
        let at = |seconds| now + Duration::from_secs(seconds);
        let id = |n| DestinationId(Uuid::from_u128(n));
        let item = |n| Item::Disable(id(n), "gone".into());
        let subject = item(1).subject();
        faults.failed(subject, Some(item(1)), "a trigger", now);
        faults.failed(item(2).subject(), Some(item(2)), "a trigger", at(10));
        assert_eq!(faults.next(), Some(at(1)));
        assert_eq!(faults.due(at(1)).len(), 1);
        assert_eq!(faults.next(), Some(at(11)));
        for (tries, wait) in [(2, 2), (3, 4), (4, 8), (10, 300)] {
            let mut fault = faults.failed(subject, Some(item(1)), "a trigger", now);
            while fault.tries < tries {
                fault = faults.failed(subject, Some(item(1)), "a trigger", now);
            }
            assert_eq!(faults.rests_until(&subject, now), Some(at(wait)), "{tries} tries");
        }
        assert!(faults.healed(&subject));
        assert!(!faults.healed(&subject));
    }
}
