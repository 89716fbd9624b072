//! When a delivery is tried again, and when it is given up.

use std::time::Duration;

use crate::model::{DbTime, RetryPolicy};

/// Share of the delay by which jitter moves it, either way: spreads the retries of a burst.
pub const JITTER: f64 = 0.2;

/// Delay before retry `n` (1-based): `backoff * 2^(n-1)`, moved by up to [`JITTER`], at most `longest`.
///
/// `chance` is a random number in 0..1.
pub fn delay(policy: RetryPolicy, n: u32, chance: f64, longest: Duration) -> Duration {
    let doubled = policy.backoff.as_secs_f64() * 2f64.powi(n.saturating_sub(1).min(64) as i32);
    let jittered = doubled * (1.0 - JITTER + 2.0 * JITTER * chance);
    Duration::from_secs_f64(jittered.min(longest.as_secs_f64()))
}

/// What becomes of a delivery after a charged failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Another attempt, before which retry number `n` (1-based) waits.
    Retry {
        /// Which retry it is.
        n: u32,
    },
    /// The retries are used up.
    Dead,
    /// The retries are used up, but by an outage: the attempt is not charged, and the breaker trips.
    Spared,
}

/// What sparing needs to know about an outage.
#[derive(Clone, Copy, Debug)]
pub struct Outage {
    /// When the destination last accepted anything, as far as known.
    pub last_success: Option<DbTime>,
    /// When this delivery was first attempted.
    pub first_attempt: DbTime,
    /// Now.
    pub now: DbTime,
    /// For how long deliveries are spared; zero switches sparing off.
    pub grace: Duration,
}

/// The fate of a delivery with `attempts` charged attempts when another one fails.
///
/// `outage` is `None` when the failure is the event's own: such an event is never spared.
pub fn fate(policy: RetryPolicy, attempts: u32, outage: Option<Outage>) -> Fate {
    if attempts < policy.max {
        return Fate::Retry { n: attempts + 1 };
    }
    match outage {
        Some(outage) if policy.max > 0 && spares(outage) => Fate::Spared,
        _ => Fate::Dead,
    }
}

/// An outage spares what it alone has prevented: nothing got through since the first attempt.
fn spares(outage: Outage) -> bool {
    let none_got_through = outage.last_success.is_none_or(|success| success <= outage.first_attempt);
    none_got_through && outage.now.since(outage.first_attempt) < outage.grace
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);
    const POLICY: RetryPolicy = RetryPolicy { max: 3, backoff: Duration::from_secs(1) };

    #[test]
    fn the_delay_doubles() {
        let delays = [1, 2, 3, 4, 10].map(|n| delay(POLICY, n, 0.5, DAY).as_millis());
        assert_eq!(delays, [1000, 2000, 4000, 8000, 512_000]);
        assert_eq!(delay(POLICY, 60, 0.5, DAY), DAY);
    }

    #[test]
    fn fates() {
        let second = |s| DbTime(s * 1_000_000);
        let outage = |last_success: Option<i64>, now| {
            Some(Outage {
                last_success: last_success.map(second),
                first_attempt: second(100),
                now: second(now),
                grace: DAY,
            })
        };
        let never = RetryPolicy { max: 0, ..POLICY };
        let table = [
            ("retries are left", POLICY, 0, outage(None, 101), Fate::Retry { n: 1 }),
            ("the last retry", POLICY, 2, outage(None, 101), Fate::Retry { n: 3 }),
            ("nothing ever got through", POLICY, 3, outage(None, 101), Fate::Spared),
            ("nothing got through since", POLICY, 3, outage(Some(99), 101), Fate::Spared),
            ("others got through", POLICY, 3, outage(Some(101), 102), Fate::Dead),
            ("the grace is over", POLICY, 3, outage(None, 100 + 86_400), Fate::Dead),
            ("the event's own fault", POLICY, 3, None, Fate::Dead),
            ("no retries wanted", never, 0, outage(None, 101), Fate::Dead),
            ("reset by the application", POLICY, 17, outage(Some(101), 102), Fate::Dead),
        ];
        for (case, policy, attempts, outage, expected) in table {
            assert_eq!(fate(policy, attempts, outage), expected, "{case}");
        }
        let off = Outage { grace: Duration::ZERO, ..outage(None, 100).expect("made above") };
        assert_eq!(fate(POLICY, 3, Some(off)), Fate::Dead);
    }

    proptest! {
        #[test]
        fn the_delay_stays_within_its_bounds(
            n in 0u32..1000, chance in 0f64..1.0, backoff in 100u64..10_000_000
        ) {
            let policy = RetryPolicy { max: 10, backoff: Duration::from_millis(backoff) };
            let d = delay(policy, n, chance, DAY);
            prop_assert!(d <= DAY);
            prop_assert!(d >= Duration::from_millis(backoff).mul_f64(0.79).min(DAY));
        }
    }
}
