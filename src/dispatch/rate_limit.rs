//! The rate limit of one destination, in requests, by governor's GCRA.

use std::cell::Cell;
use std::num::NonZeroU32;
use std::rc::Rc;
use std::time::{Duration, Instant};

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

use super::Rules;

/// Without a burst of its own, a rate may catch up on this part of a second: timers are late by milliseconds.
const DEFAULT_BURST_SECONDS: f64 = 0.1;

/// Longest pause between two requests, seconds: ten years, which is never.
const LONGEST_PERIOD: f64 = 10.0 * YEAR;
/// Longest time that a burst may stand for, seconds: governor counts nanoseconds in 64 bits, 584 years.
const LONGEST_WINDOW: f64 = 100.0 * YEAR;
const YEAR: f64 = 365.0 * 86_400.0;

/// The time that was handed in last.
#[derive(Clone, Debug)]
struct HandedIn(Rc<Cell<Instant>>);

impl Clock for HandedIn {
    type Instant = Instant;

    fn now(&self) -> Instant {
        self.0.get()
    }
}

/// A rate limit, or none.
pub(super) struct RateLimit {
    limiter: Option<RateLimiter<NotKeyed, InMemoryState, HandedIn, NoOpMiddleware<Instant>>>,
    clock: HandedIn,
    per_second: f64,
    /// When there will be a token, as far as known.
    refused_until: Option<Instant>,
}

impl RateLimit {
    /// The limit that `rules` ask for, with a full bucket.
    pub(super) fn new(rules: &Rules, now: Instant) -> RateLimit {
        let rate = rules.rate_per_second.filter(|rate| rate.is_finite() && *rate > 0.0);
        let quota = rate.and_then(|rate| {
            let period = (1.0 / rate).min(LONGEST_PERIOD);
            let burst = rules.rate_burst.unwrap_or((rate * DEFAULT_BURST_SECONDS) as u32);
            let burst = burst.min((LONGEST_WINDOW / period) as u32);
            let burst = NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN);
            Some(Quota::with_period(Duration::from_secs_f64(period))?.allow_burst(burst))
        });
        let clock = HandedIn(Rc::new(Cell::new(now)));
        let limiter = quota.map(|quota| RateLimiter::direct_with_clock(quota, clock.clone()));
        RateLimit { limiter, clock, per_second: rate.unwrap_or(f64::INFINITY), refused_until: None }
    }

    /// Takes a token, or says when there will be one.
    pub(super) fn take(&mut self, now: Instant) -> Result<(), Instant> {
        let Some(limiter) = &self.limiter else { return Ok(()) };
        self.clock.0.set(now);
        let taken = limiter.check().map_err(|not_until| now + not_until.wait_time_from(now));
        self.refused_until = taken.err();
        taken
    }

    /// When there will be a token, if it is known that there is none.
    pub(super) fn refused_until(&self, now: Instant) -> Option<Instant> {
        self.refused_until.filter(|until| *until > now)
    }

    /// Requests per second at most; infinite without a limit.
    pub(super) fn per_second(&self) -> f64 {
        self.per_second
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::fixtures::rules;

    #[test]
    fn whatever_is_written_is_a_limit() {
        let now = crate::clock::now();
        for (rate, burst, at_once) in [
            (1e-300, None, 1),
            (1e-19, None, 1),
            (1e-6, Some(u32::MAX), 3_153),
            (0.001, Some(5), 5),
            (100.0, None, 10),
            (1e9, Some(1), 1),
            (f64::MIN_POSITIVE, Some(u32::MAX), 10),
        ] {
            let rules = Rules { rate_per_second: Some(rate), rate_burst: burst, ..rules() };
            let mut limit = RateLimit::new(&rules, now);
            let taken = (0..at_once + 1).filter(|_| limit.take(now).is_ok()).count();
            assert_eq!(taken, at_once, "{rate}, {burst:?}");
        }
    }

    #[test]
    fn a_token_comes_when_it_was_said_to() {
        let now = crate::clock::now();
        let mut limit = RateLimit::new(&Rules { rate_per_second: Some(0.1), ..rules() }, now);
        assert!(limit.take(now).is_ok());
        let next = limit.take(now).unwrap_err();
        assert_eq!(next, now + Duration::from_secs(10));
        assert!(limit.take(next - Duration::from_nanos(1)).is_err());
        assert!(limit.take(next).is_ok());
    }
}
