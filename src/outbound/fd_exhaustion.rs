//! Descriptors belong to the whole process. While there are too few of them, nobody keeps connections that
//! are at rest: somebody else could use their descriptors.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::clock;

/// For how long a shortage is believed to last after it was last noticed.
const LASTS: Duration = Duration::from_secs(10);

static NOTICED: Mutex<Option<Instant>> = Mutex::new(None);

/// There was no descriptor, or no memory, for a connection.
pub(super) fn noticed() {
    *NOTICED.lock().unwrap_or_else(PoisonError::into_inner) = Some(clock::now());
}

/// Whether there is a shortage.
pub(super) fn lasts() -> bool {
    let noticed = *NOTICED.lock().unwrap_or_else(PoisonError::into_inner);
    noticed.is_some_and(|at| clock::now() < at + LASTS)
}
