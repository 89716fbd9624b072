//! The rate limit of one destination, in requests, by governor's GCRA.

use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

use crate::model::Settings;

/// Without a burst of its own, a rate may catch up on this part of a second: timers are late by milliseconds.
const DEFAULT_BURST_SECONDS: f64 = 0.1;

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
            let burst = settings.rate_limit_burst.unwrap_or((rate * DEFAULT_BURST_SECONDS) as u32);
            let burst = NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN);
            let period = Duration::try_from_secs_f64(1.0 / rate).ok()?;
            Some(Quota::with_period(period)?.allow_burst(burst))
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
