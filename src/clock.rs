//! The only file that asks for the time.
//!
//! Decisions take the time as an argument; leases go by the database's clock. What is left, measuring how
//! long something took and knowing what the database's clock says now, is here.

use std::time::{Duration, Instant, SystemTime};

use crate::model::DbTime;

/// The monotonic clock.
pub fn now() -> Instant {
    Instant::now()
}

/// This machine's wall clock. Only for what is shown, and for comparing clocks: it may be wrong.
pub fn wall() -> SystemTime {
    SystemTime::now()
}

/// How long the machine has been up, suspended or not.
pub fn since_boot() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::try_from(time).unwrap_or_default()
}

/// What the database's clock showed at a known moment; from it, the database's time at any moment.
#[derive(Clone, Copy, Debug)]
pub struct DbClock {
    shown: DbTime,
    at: Instant,
}

impl DbClock {
    /// The database said `shown` at `at`.
    pub fn new(shown: DbTime, at: Instant) -> DbClock {
        DbClock { shown, at }
    }

    /// The database's time at `moment`.
    pub fn at(&self, moment: Instant) -> DbTime {
        match moment.checked_duration_since(self.at) {
            Some(passed) => self.shown.after(passed),
            None => DbTime(self.shown.0 - micros(self.at - moment)),
        }
    }

    /// The database's time now.
    pub fn now(&self) -> DbTime {
        self.at(now())
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}
