//! Destinations that cannot be used: their secrets cannot be decrypted, or their rows cannot be read. They
//! have no actor: nothing is claimed for them, nothing is sent, nothing is charged.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::model::DestinationId;
use crate::store::destinations::Unusable;

/// A row that cannot be read is tried again after this time, changed or not: the fault may lie elsewhere.
const TRY_AGAIN: Duration = Duration::from_secs(60);

struct Found {
    version: i64,
    why: Unusable,
    at: Instant,
}

/// Why each of them cannot be used, and the version of which that was found out.
#[derive(Default)]
pub(super) struct UnusableDestinations(HashMap<DestinationId, Found>);

impl UnusableDestinations {
    /// How many cannot be decrypted.
    pub(super) fn locked(&self) -> usize {
        self.0.values().filter(|found| matches!(found.why, Unusable::Locked(_))).count()
    }

    /// Whether this version is known: reading it again would tell nothing new.
    pub(super) fn knows(&self, id: DestinationId, version: i64, now: Instant) -> bool {
        self.0.get(&id).is_some_and(|found| match found.why {
            Unusable::Locked(_) => found.version == version,
            Unusable::Unreadable(_) => now < found.at + TRY_AGAIN,
        })
    }

    /// Takes in that a destination cannot be used, and says so unless it has been said.
    pub(super) fn add(&mut self, id: DestinationId, version: i64, why: Unusable, at: Instant) {
        if let Unusable::Locked(locked) = &why
            && self.0.get(&id).is_none_or(|before| before.why != why)
        {
            log::error!("destination={id} is not contacted: {locked}");
        }
        self.0.insert(id, Found { version, why, at });
    }

    /// Takes in that a destination can be used, and says so if it could not. Returns whether its row could
    /// not be read.
    pub(super) fn release(&mut self, id: DestinationId) -> bool {
        match self.0.remove(&id).map(|found| found.why) {
            Some(Unusable::Locked(_)) => {
                log::info!("destination={id} its secrets can be decrypted again");
                false
            }
            unreadable => unreadable.is_some(),
        }
    }

    /// Forgets those that are not enabled any more. Returns those whose rows could not be read.
    pub(super) fn retain(&mut self, is_enabled: impl Fn(DestinationId) -> bool) -> Vec<DestinationId> {
        let gone = self.0.extract_if(|id, _| !is_enabled(*id));
        let unreadable = gone.filter(|(_, found)| matches!(found.why, Unusable::Unreadable(_)));
        unreadable.map(|(id, _)| id).collect()
    }
}
