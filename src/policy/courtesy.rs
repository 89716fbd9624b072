//! How far backlogs hold back for what is new, of which there is little and which nobody should wait for.
//!
//! Both have connections of their own; what they share are the cores and the log of PostgreSQL. Where there
//! is enough of these, a statement that claims something new takes as long beside a backlog as without one,
//! and the backlog need not hold back.

use std::time::{Duration, Instant};

/// Rows that a statement claims from backlogs while they hold back.
pub const FEW_ROWS: usize = 32;
/// Statements that claim more rows than this are not compared: what they take depends on their rows.
pub const SMALL: usize = 4;
/// How long they do so after something new was held up.
const LASTS: Duration = Duration::from_secs(10);
/// A statement that takes more than this many times as long as the fastest one was held up.
const HELD_UP: u32 = 3;
/// With each statement the fastest time is raised by one part in so many: if it is never reached again, the
/// backlogs are not the cause.
const FORGETTING: u32 = 64;

/// Whether backlogs hold back.
#[derive(Debug, Default)]
pub struct Courtesy {
    least: Option<Duration>,
    until: Option<Instant>,
}

impl Courtesy {
    /// A statement that claimed at most [`SMALL`] new deliveries took this long, and ended `now`; `beside`
    /// statements of a backlog.
    pub fn note(&mut self, took: Duration, beside: bool, now: Instant) {
        let least = self.least.map_or(took, |least| took.min(least + least / FORGETTING));
        self.least = Some(least);
        if beside && took > least * HELD_UP {
            self.until = Some(now + LASTS);
        }
    }

    /// Whether backlogs hold back `now`.
    pub fn is_asked(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn backlogs_hold_back_for_a_while_after_something_new_was_held_up() {
        let (mut courtesy, now) = (Courtesy::default(), Instant::now());
        courtesy.note(2 * MS, true, now);
        courtesy.note(5 * MS, true, now);
        assert!(!courtesy.is_asked(now), "somewhat slower is not held up");
        courtesy.note(20 * MS, false, now);
        assert!(!courtesy.is_asked(now), "nobody was in the way");
        courtesy.note(20 * MS, true, now);
        assert!(courtesy.is_asked(now));
        assert!(courtesy.is_asked(now + LASTS - MS) && !courtesy.is_asked(now + LASTS));
    }

    #[test]
    fn what_is_always_slow_is_not_held_up() {
        let (mut courtesy, now) = (Courtesy::default(), Instant::now());
        courtesy.note(MS, false, now);
        (0..200).for_each(|_| courtesy.note(10 * MS, true, now));
        let later = now + LASTS;
        courtesy.note(20 * MS, true, later);
        assert!(!courtesy.is_asked(later));
        // Once it is fast again, it is known again how fast it can be.
        courtesy.note(MS, true, later);
        courtesy.note(20 * MS, true, later);
        assert!(courtesy.is_asked(later));
    }
}
