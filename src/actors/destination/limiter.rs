//! The rate limit of one destination, in requests, by governor's GCRA.

use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

use crate::model::Settings;

/// Without a burst of its own, a rate may catch up on this part of a second: timers are late by milliseconds.
const DEFAULT_BURST_SECONDS: f64 = 0.1;

/// Longest pause between two requests, seconds: ten years, which is never.
const LONGEST_PERIOD: f64 = 10.0 * YEAR;
/// Longest time that a burst may stand for, seconds: governor counts nanoseconds in 64 bits, 584 years.
const LONGEST_WINDOW: f64 = 100.0 * YEAR;
const YEAR: f64 = 365.0 * 86_400.0;

/// A rate limit, or none.
pub struct Limiter {
    limiter: Option<DefaultDirectRateLimiter>,
    clock: DefaultClock,
    per_second: f64,
}

impl Limiter {
    /// The limit that `settings` asks for.
    pub fn new(settings: &Settings) -> Limiter {
        let rate = settings.rate_limit_per_second.filter(|rate| rate.is_finite() && *rate > 0.0);
        let quota = rate.and_then(|rate| {
            let period = (1.0 / rate).min(LONGEST_PERIOD);
            let burst = settings.rate_limit_burst.unwrap_or((rate * DEFAULT_BURST_SECONDS) as u32);
            let burst = burst.min((LONGEST_WINDOW / period) as u32);
            let burst = NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN);
            Some(Quota::with_period(Duration::from_secs_f64(period))?.allow_burst(burst))
        });
        Limiter {
            limiter: quota.map(RateLimiter::direct),
            clock: DefaultClock::default(),
            per_second: rate.unwrap_or(f64::INFINITY),
        }
    }

    /// Takes a token, or says how long it will take to get one.
    pub fn take(&self) -> Result<(), Duration> {
        let Some(limiter) = &self.limiter else { return Ok(()) };
        limiter.check().map_err(|not_until| not_until.wait_time_from(self.clock.now()))
    }

    /// Requests per second at most; infinite without a limit.
    pub fn per_second(&self) -> f64 {
        self.per_second
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_written_is_a_limit() {
        for (rate, burst, at_once) in [
            (1e-300, None, 1),
            (1e-19, None, 1),
            (1e-6, Some(u32::MAX), 3_153),
            (0.001, Some(5), 5),
            (100.0, None, 10),
            (1e9, Some(1), 1),
            (f64::MIN_POSITIVE, Some(u32::MAX), 10),
        ] {
            let settings = Settings {
                rate_limit_per_second: Some(rate),
                rate_limit_burst: burst,
                ..Settings::default()
            };
            let limiter = Limiter::new(&settings);
            let taken = (0..at_once + 1).filter(|_| limiter.take().is_ok()).count();
            // What comes in while this counts may be one more, at high rates.
            assert!(taken >= at_once, "{rate}, {burst:?}: {taken}");
            assert!(taken == at_once || rate >= 100.0, "{rate}, {burst:?}: {taken}");
        }
    }
}
