//! Destinations whose secrets cannot be decrypted. They have no actor: nothing is claimed for them, nothing
//! is sent, nothing is charged.

use std::collections::HashMap;

use crate::model::DestinationId;
use crate::policy::keyring::Locked;

/// Why each of them is locked, and the version of which that was found out.
#[derive(Default)]
pub(super) struct LockedOut(HashMap<DestinationId, (i64, Locked)>);

impl LockedOut {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether this version is known to be locked: reading it again would tell nothing new.
    pub(super) fn knows(&self, id: DestinationId, version: i64) -> bool {
        self.0.get(&id).is_some_and(|(known, _)| *known == version)
    }

    /// Takes in that a destination is locked, and says so unless it has been said.
    pub(super) fn add(&mut self, id: DestinationId, version: i64, locked: Locked) {
        if self.0.get(&id).is_none_or(|(_, before)| *before != locked) {
            log::error!("destination={id} is not contacted: {locked}");
        }
        self.0.insert(id, (version, locked));
    }

    /// Takes in that a destination can be read, and says so if it could not.
    pub(super) fn release(&mut self, id: DestinationId) {
        if self.0.remove(&id).is_some() {
            log::info!("destination={id} its secrets can be decrypted again");
        }
    }

    /// Forgets those that are not enabled any more.
    pub(super) fn retain(&mut self, is_enabled: impl Fn(DestinationId) -> bool) {
        self.0.retain(|id, _| is_enabled(*id));
    }
}
