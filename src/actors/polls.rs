//! How often the supervisor looks at all destinations.
//!
//! A poll reads the head of each queue, and wakes whoever has one, who then looks from its beginning. While
//! another session keeps a transaction open, what was delivered since cannot be removed from there, and both
//! read past all of it: a million entries took a second, every five seconds.

use std::time::{Duration, Instant};

use crate::clock;

/// Polls rest this many times as long as they take.
const REST: u32 = 20;
/// But no longer than this many intervals.
const MOST_INTERVALS: u32 = 6;

/// One at a time.
#[derive(Debug, Default)]
pub(super) struct Polls {
    began: Option<Instant>,
    /// One more is wanted as soon as the present one is done.
    again: bool,
    rest_until: Option<Instant>,
}

impl Polls {
    /// Whether one begins now; otherwise one more is to begin when the present one ends.
    pub(super) fn begin(&mut self) -> bool {
        self.again = self.began.is_some();
        if !self.again {
            self.began = Some(clock::now());
        }
        !self.again
    }

    /// The present one is done. Whether another one has to begin.
    pub(super) fn end(&mut self, interval: Duration) -> bool {
        let now = clock::now();
        let took = self.began.take().map(|began| now.saturating_duration_since(began));
        self.rest_until = Some(now + rest(took.unwrap_or_default(), interval));
        self.again
    }

    /// Whether none is due when an interval ends now.
    pub(super) fn are_resting(&self) -> bool {
        self.began.is_some() || self.rest_until.is_some_and(|until| clock::now() < until)
    }
}

/// How long the next poll has to wait after one that took so long.
fn rest(took: Duration, interval: Duration) -> Duration {
    (took * REST).min(interval * MOST_INTERVALS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polls_that_take_long_rest_long_but_not_for_ever() {
        let interval = Duration::from_secs(5);
        let rest_of = |millis| rest(Duration::from_millis(millis), interval);
        assert!(rest_of(2) < interval, "a usual one does not wait");
        assert_eq!(rest_of(1_000), Duration::from_secs(20));
        assert_eq!(rest_of(60_000), Duration::from_secs(30));
    }
}
