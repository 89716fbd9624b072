//! The time. Commits and arrivals happen in different processes of one machine, so they are compared by its
//! wall clock: a run during which that is set is worth nothing.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Microseconds since 1970.
pub fn micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    since.as_micros() as u64
}

/// Seconds from one moment of [`micros`] to a later one; never zero, so that it can be divided by.
pub fn seconds(from: u64, to: u64) -> f64 {
    to.saturating_sub(from).max(1) as f64 / 1e6
}
