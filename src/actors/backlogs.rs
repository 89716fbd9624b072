//! The destinations that have a backlog.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use crate::model::DestinationId;

/// Destinations whose last claim left something. They go on by themselves: no poll need look for them. One
/// that panicked is among them until the first claim of its next life is answered.
#[derive(Debug, Default)]
pub struct Backlogs(Mutex<HashSet<DestinationId>>);

impl Backlogs {
    /// Whether this destination is one of them from now on.
    pub(super) fn note(&self, destination: DestinationId, has_backlog: bool) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if has_backlog {
            all.insert(destination);
        } else {
            all.remove(&destination);
        }
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<DestinationId> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }
}
