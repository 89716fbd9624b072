//! When a delivery is tried again, and when it is given up.

use std::time::Duration;

use crate::model::{Change, DbTime, RetryPolicy};

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

/// What happens to a delivery with `attempts` charged attempts when another one fails: it waits for its next
/// retry, is dead, or, where an outage has used its retries up, is spared: due again at once, for when the
/// breaker lets it through.
///
/// `outage` is `None` when the failure is the event's own: such an event is never spared. `chance` is a
/// random number in 0..1, `longest` the longest delay.
pub fn after_failure(
    policy: RetryPolicy,
    attempts: u32,
    outage: Option<Outage>,
    chance: f64,
    longest: Duration,
) -> Change {
    if attempts < policy.max {
        return Change::Failed { delay: delay(policy, attempts + 1, chance, longest) };
    }
    match outage {
        Some(outage) if policy.max > 0 && spares(outage) => Change::Postponed { delay: Duration::ZERO },
        _ => Change::Dead { charged: true },
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
    fn a_failed_delivery_is_retried_spared_or_dead() {
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
        let retry = |seconds| Change::Failed { delay: Duration::from_secs(seconds) };
        let spared = Change::Postponed { delay: Duration::ZERO };
        let dead = Change::Dead { charged: true };
        let table = [
            ("retries are left", POLICY, 0, outage(None, 101), retry(1)),
            ("the last retry", POLICY, 2, outage(None, 101), retry(4)),
            ("nothing ever got through", POLICY, 3, outage(None, 101), spared),
            ("nothing got through since", POLICY, 3, outage(Some(99), 101), spared),
            ("others got through", POLICY, 3, outage(Some(101), 102), dead),
            ("the grace is over", POLICY, 3, outage(None, 100 + 86_400), dead),
            ("the event's own fault", POLICY, 3, None, dead),
            ("no retries wanted", never, 0, outage(None, 101), dead),
            ("reset by the application", POLICY, 17, outage(Some(101), 102), dead),
        ];
        for (case, policy, attempts, outage, expected) in table {
            assert_eq!(after_failure(policy, attempts, outage, 0.5, DAY), expected, "{case}");
        }
        let off = Outage { grace: Duration::ZERO, ..outage(None, 100).expect("made above") };
        assert_eq!(after_failure(POLICY, 3, Some(off), 0.5, DAY), dead);
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
