//! How a destination is doing: its breaker, its pauses, and since when nothing has got through.
//!
//! ```text
//!            5 failures in a row, or an outage that would kill a delivery
//!   Closed ──────────────────────────────────────────────────────────────▶ Tripped ──┐ probe failed:
//!     ▲                                                                    ▲  │   ▲──┘ wait longer
//!     │ as many in flight as allowed                   5 failures in a row │  │ an answer that is no
//!     └──────────────────────────── Recovering ────────────────────────────┘  │ destination failure
//!                                   1, 2, 4, … ◀──────────────────────────────┘
//! ```

use std::time::Duration;

use crate::model::DbTime;

/// Shortest time between two probes.
pub const MIN_PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// Longest time between two probes.
pub const MAX_PROBE_INTERVAL: Duration = Duration::from_secs(60);
/// The next probe waits for this part of the time since the breaker tripped: an outage is overstayed by a
/// quarter.
const PROBE_PART: u32 = 4;
/// Failed requests that auto-disable asks for besides the time: a tenant with one event a week is not
/// disabled by it.
pub const MIN_FAILED_REQUESTS: u32 = 10;
/// A failing streak shorter than this is not written down, unless the breaker tripped: most last a second.
const WORTH_SAVING: Duration = Duration::from_secs(60);

/// The limits of one destination's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Consecutive destination failures that trip the breaker.
    pub threshold: u32,
    /// Time without success that disables; zero: never.
    pub auto_disable_after: Duration,
}

/// What survives a restart: the columns of `posthaste_destination_state` that the dispatcher writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// Nothing is sent before.
    pub paused_until: Option<DbTime>,
    /// The breaker is tripped since.
    pub tripped_at: Option<DbTime>,
    /// When it is probed next.
    pub next_probe_at: Option<DbTime>,
    /// The first failure after the last success.
    pub failing_since: Option<DbTime>,
    /// The last success before `failing_since`.
    pub last_success_at: Option<DbTime>,
}

/// May a request start?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permit {
    /// Yes.
    Go,
    /// Yes, as the one probe of a tripped breaker.
    Probe,
    /// Not until another one has ended.
    Full,
    /// Not before then.
    Until(DbTime),
}

/// How a breaker stands, for those who look on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Everything is sent.
    Closed,
    /// The number in flight grows again.
    Recovering,
    /// Only probes are sent.
    Tripped,
}

impl Standing {
    /// All of them, with their names in labels.
    pub const NAMES: [(Standing, &str); 3] =
        [(Standing::Closed, "closed"), (Standing::Recovering, "recovering"), (Standing::Tripped, "tripped")];
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Breaker {
    Closed,
    Recovering { allowed: u32, successes: u32 },
    Tripped { since: DbTime, next_probe: DbTime, probing: bool },
}

/// The health of one destination.
#[derive(Clone, Debug)]
pub struct Health {
    limits: Limits,
    breaker: Breaker,
    consecutive: u32,
    failed_requests: u32,
    paused_until: Option<DbTime>,
    pauses: u32,
    failing_since: Option<DbTime>,
    last_success: Option<DbTime>,
}

impl Health {
    /// The health that `saved` describes.
    pub fn new(limits: Limits, saved: Saved) -> Health {
        let breaker = match saved.tripped_at {
            Some(since) => {
                let next_probe = saved.next_probe_at.unwrap_or(since);
                Breaker::Tripped { since, next_probe, probing: false }
            }
            None => Breaker::Closed,
        };
        Health {
            limits,
            breaker,
            consecutive: 0,
            failed_requests: 0,
            paused_until: saved.paused_until,
            pauses: 0,
            failing_since: saved.failing_since,
            last_success: saved.last_success_at,
        }
    }

    /// Whether a request may start now, with `in_flight` running and at most `most` allowed.
    pub fn permit(&self, now: DbTime, in_flight: u32, most: u32) -> Permit {
        if let Some(until) = self.paused_until.filter(|until| *until > now) {
            return Permit::Until(until);
        }
        match self.breaker {
            Breaker::Tripped { probing: true, .. } => Permit::Full,
            Breaker::Tripped { next_probe, .. } if next_probe > now => Permit::Until(next_probe),
            Breaker::Tripped { .. } => Permit::Probe,
            Breaker::Recovering { allowed, .. } if in_flight >= allowed.min(most) => Permit::Full,
            Breaker::Closed if in_flight >= most => Permit::Full,
            Breaker::Closed | Breaker::Recovering { .. } => Permit::Go,
        }
    }

    /// How many requests may be in flight, of at most `most`.
    pub fn allowed(&self, most: u32) -> u32 {
        match self.breaker {
            Breaker::Closed => most,
            Breaker::Recovering { allowed, .. } => allowed.min(most),
            Breaker::Tripped { .. } => 1,
        }
    }

    /// A request that was permitted as [`Permit::Probe`] has started.
    pub fn probe_started(&mut self) {
        if let Breaker::Tripped { probing, .. } = &mut self.breaker {
            *probing = true;
        }
    }

    /// A probe has ended, however it did.
    pub fn probe_ended(&mut self) {
        if let Breaker::Tripped { probing, .. } = &mut self.breaker {
            *probing = false;
        }
    }

    /// The receiver accepted something.
    pub fn succeeded(&mut self, now: DbTime, most: u32) {
        self.last_success = Some(now);
        self.failing_since = None;
        self.failed_requests = 0;
        // What was in flight when a pause began says nothing about the pause.
        if self.paused_until.is_none_or(|until| until <= now) {
            self.paused_until = None;
            self.pauses = 0;
        }
        self.alive(most);
    }

    /// The receiver refused an event: it lives, but that is no success.
    pub fn refused_event(&mut self, now: DbTime, most: u32) {
        self.failing(now);
        self.alive(most);
    }

    /// The destination failed. Returns whether the breaker had tripped before: such failures are not charged.
    pub fn failed(&mut self, now: DbTime, chance: f64) -> bool {
        self.failing(now);
        if let Breaker::Tripped { since, next_probe, .. } = &mut self.breaker {
            if *next_probe <= now {
                *next_probe = now.after(probe_interval(now.since(*since), chance));
            }
            return true;
        }
        self.consecutive += 1;
        if let Breaker::Recovering { .. } = self.breaker {
            self.breaker = Breaker::Recovering { allowed: 1, successes: 0 };
        }
        if self.consecutive >= self.limits.threshold {
            self.trip(now, chance);
        }
        false
    }

    /// Trips the breaker, if it has not tripped.
    pub fn trip(&mut self, now: DbTime, chance: f64) {
        if !self.is_tripped() {
            let next_probe = now.after(probe_interval(Duration::ZERO, chance));
            self.breaker = Breaker::Tripped { since: now, next_probe, probing: false };
        }
    }

    /// The receiver asked for a pause of `length`, or of whatever `backoff` says for the n-th pause in a row.
    pub fn pause(&mut self, now: DbTime, length: Option<Duration>, backoff: impl Fn(u32) -> Duration) {
        // Answers to requests that were in flight together are one pause.
        if self.paused_until.is_none_or(|until| until <= now) {
            self.pauses += 1;
        }
        if self.failing_since.is_none() {
            self.failing_since = Some(now);
        }
        let end = now.after(length.unwrap_or_else(|| backoff(self.pauses)));
        self.paused_until = Some(self.paused_until.map_or(end, |until| until.max(end)));
    }

    /// Its row has changed: perhaps that was the cure, so a tripped breaker is probed at once.
    pub fn reconfigured(&mut self, now: DbTime, limits: Limits) {
        self.limits = limits;
        if let Breaker::Tripped { next_probe, .. } = &mut self.breaker {
            *next_probe = now;
        }
    }

    /// Whether it has failed for so long that it is to be disabled.
    pub fn is_hopeless(&self, now: DbTime) -> bool {
        let limit = self.limits.auto_disable_after;
        !limit.is_zero()
            && self.failed_requests >= MIN_FAILED_REQUESTS
            && self.failing_since.is_some_and(|since| now.since(since) >= limit)
    }

    /// Whether the breaker has tripped.
    pub fn is_tripped(&self) -> bool {
        matches!(self.breaker, Breaker::Tripped { .. })
    }

    /// How the breaker stands.
    pub fn standing(&self) -> Standing {
        match self.breaker {
            Breaker::Closed => Standing::Closed,
            Breaker::Recovering { .. } => Standing::Recovering,
            Breaker::Tripped { .. } => Standing::Tripped,
        }
    }

    /// The last success, as far as known.
    pub fn last_success(&self) -> Option<DbTime> {
        self.last_success
    }

    /// What should stand in `posthaste_destination_state`; all `None` when there is nothing to remember.
    pub fn saved(&self, now: DbTime) -> Saved {
        let (tripped_at, next_probe_at) = match self.breaker {
            Breaker::Tripped { since, next_probe, .. } => (Some(since), Some(next_probe)),
            _ => (None, None),
        };
        let paused_until = self.paused_until.filter(|until| *until > now);
        let failing_since = self.failing_since.filter(|since| {
            tripped_at.is_some() || self.paused_until.is_some() || now.since(*since) >= WORTH_SAVING
        });
        let last_success_at = failing_since.and(self.last_success);
        Saved { paused_until, tripped_at, next_probe_at, failing_since, last_success_at }
    }

    fn failing(&mut self, now: DbTime) {
        self.failed_requests = self.failed_requests.saturating_add(1);
        if self.failing_since.is_none() {
            self.failing_since = Some(now);
        }
    }

    /// An answer that is no destination failure: closes the breaker step by step, doubling what may be in
    /// flight.
    fn alive(&mut self, most: u32) {
        self.consecutive = 0;
        self.breaker = match self.breaker {
            Breaker::Closed => Breaker::Closed,
            Breaker::Tripped { .. } => Breaker::Recovering { allowed: 1, successes: 0 },
            Breaker::Recovering { allowed, successes } if successes + 1 < allowed => {
                Breaker::Recovering { allowed, successes: successes + 1 }
            }
            Breaker::Recovering { allowed, .. } if allowed.saturating_mul(2) >= most => Breaker::Closed,
            Breaker::Recovering { allowed, .. } => Breaker::Recovering { allowed: allowed * 2, successes: 0 },
        };
    }
}

/// Time to the next probe when the breaker tripped `tripped_for` ago; `chance` in 0..1 spreads it by 20 %.
fn probe_interval(tripped_for: Duration, chance: f64) -> Duration {
    let part = (tripped_for / PROBE_PART).clamp(MIN_PROBE_INTERVAL, MAX_PROBE_INTERVAL);
    part.mul_f64(0.8 + 0.4 * chance).min(MAX_PROBE_INTERVAL)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { threshold: 5, auto_disable_after: Duration::from_secs(5 * 86_400) };

    fn at(seconds: i64) -> DbTime {
        DbTime(seconds * 1_000_000)
    }

    fn healthy() -> Health {
        Health::new(LIMITS, Saved::default())
    }

    fn tripped() -> Health {
        let mut health = healthy();
        for _ in 0..LIMITS.threshold {
            assert!(!health.failed(at(0), 0.5));
        }
        assert!(health.is_tripped());
        health
    }

    #[test]
    fn five_failures_in_a_row_trip_and_a_refused_event_interrupts_the_row() {
        let mut health = healthy();
        for _ in 0..4 {
            health.failed(at(0), 0.5);
        }
        health.refused_event(at(1), 32);
        for _ in 0..4 {
            health.failed(at(2), 0.5);
        }
        assert!(!health.is_tripped());
        health.failed(at(2), 0.5);
        assert!(health.is_tripped());
    }

    #[test]
    fn a_tripped_breaker_sends_one_probe_at_a_time_at_growing_intervals() {
        let mut health = tripped();
        assert_eq!(health.permit(at(0), 0, 32), Permit::Until(at(1)));
        assert_eq!(health.permit(at(1), 7, 32), Permit::Probe);
        health.probe_started();
        assert_eq!(health.permit(at(1), 1, 32), Permit::Full);
        health.probe_ended();
        assert!(health.failed(at(40), 0.5));
        assert_eq!(health.permit(at(40), 0, 32), Permit::Until(at(50)));
        assert!(health.failed(at(86_400), 0.5));
        assert_eq!(health.permit(at(86_400), 0, 32), Permit::Until(at(86_460)));
    }

    #[test]
    fn after_recovery_the_number_in_flight_doubles_from_one() {
        let mut health = tripped();
        let mut allowed = Vec::new();
        while allowed.last() != Some(&10) {
            health.succeeded(at(100), 10);
            allowed.push(health.allowed(10));
        }
        assert_eq!(allowed, [1, 2, 2, 4, 4, 4, 4, 8, 8, 8, 8, 8, 8, 8, 8, 10]);
    }

    #[test]
    fn a_failure_during_recovery_starts_the_doubling_again() {
        let mut health = tripped();
        for _ in 0..5 {
            health.succeeded(at(10), 32);
        }
        assert_eq!(health.allowed(32), 4);
        assert!(!health.failed(at(11), 0.5));
        assert_eq!(health.allowed(32), 1);
        assert!(!health.is_tripped());
    }

    #[test]
    fn a_pause_stops_everything_and_never_shrinks() {
        let mut health = healthy();
        let backoff = |n| Duration::from_secs(u64::from(n) * 10);
        health.pause(at(0), Some(Duration::from_secs(60)), backoff);
        health.pause(at(1), None, backoff);
        assert_eq!(health.permit(at(59), 0, 32), Permit::Until(at(60)));
        assert_eq!(health.permit(at(60), 0, 32), Permit::Go);
        health.pause(at(60), None, backoff);
        assert_eq!(health.permit(at(60), 0, 32), Permit::Until(at(80)), "the second pause in a row");
        health.succeeded(at(70), 32);
        assert_eq!(health.permit(at(79), 0, 32), Permit::Until(at(80)), "an older request succeeded");
        health.succeeded(at(90), 32);
        health.pause(at(91), None, backoff);
        assert_eq!(health.permit(at(91), 0, 32), Permit::Until(at(101)), "the first one again");
    }

    #[test]
    fn hopeless_is_five_days_and_ten_requests_without_a_success() {
        let mut health = healthy();
        for day in 0..10 {
            assert!(!health.is_hopeless(at(day * 86_400)), "on day {day}");
            health.failed(at(day * 86_400), 0.5);
        }
        assert!(health.is_hopeless(at(9 * 86_400)));
        health.succeeded(at(9 * 86_400), 32);
        assert!(!health.is_hopeless(at(90 * 86_400)));
    }

    #[test]
    fn what_is_saved_comes_back() {
        let mut health = healthy();
        health.succeeded(at(1), 32);
        assert_eq!(health.saved(at(2)), Saved::default());
        health.failed(at(3), 0.5);
        assert_eq!(health.saved(at(4)), Saved::default(), "a short streak is not worth writing");
        health.trip(at(5), 0.5);
        let saved = health.saved(at(5));
        assert_eq!(saved.failing_since, Some(at(3)));
        assert_eq!(saved.last_success_at, Some(at(1)));
        let restored = Health::new(LIMITS, saved);
        assert!(restored.is_tripped());
        assert_eq!(restored.saved(at(5)), saved);
        health.succeeded(at(9), 32);
        assert_eq!(health.saved(at(9)), Saved::default());
    }

    proptest! {
        #[test]
        fn probes_are_never_more_than_a_minute_apart(seconds in 0u64..1_000_000, chance in 0f64..1.0) {
            let interval = probe_interval(Duration::from_secs(seconds), chance);
            prop_assert!(interval <= MAX_PROBE_INTERVAL);
            prop_assert!(interval >= MIN_PROBE_INTERVAL.mul_f64(0.79));
        }
    }
}
