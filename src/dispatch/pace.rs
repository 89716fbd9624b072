//! How many deliveries end per second, to know how many to hold ready.

use std::time::{Duration, Instant};

pub(super) struct Pace {
    since: Instant,
    ended: u32,
    per_second: f64,
}

impl Pace {
    /// Long enough to be steady, short enough to follow.
    const WINDOW: Duration = Duration::from_millis(250);

    pub(super) fn new(now: Instant) -> Pace {
        Pace { since: now, ended: 0, per_second: 0.0 }
    }

    pub(super) fn note(&mut self, ended: usize, now: Instant) {
        self.ended += ended as u32;
        let passed = now.saturating_duration_since(self.since);
        if passed >= Pace::WINDOW {
            let measured = f64::from(self.ended) / passed.as_secs_f64();
            self.per_second = measured.max(self.per_second / 2.0);
            (self.since, self.ended) = (now, 0);
        }
    }

    pub(super) fn per_second(&self) -> f64 {
        self.per_second
    }
}
