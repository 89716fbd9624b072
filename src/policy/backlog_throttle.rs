//! How far backlogs hold back for what is new, of which there is little and which nobody should wait for.
//!
//! Both have connections of their own; what they share are the cores and the log of PostgreSQL. Where there
//! is enough of these, a statement that claims something new takes as long beside a backlog as without one,
//! and the backlog need not hold back.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use crate::model::{DestinationId, OrgId};

/// Rows that a statement claims from backlogs while they hold back, and the least that one records: so few
/// that the cores are free again soon.
pub const FEW_ROWS: usize = 8;
/// Statements that claim more rows than this are not compared: what they take depends on their rows.
pub const SMALL: usize = 4;
/// How long backlogs hold back after something new was held up.
const LASTS: Duration = Duration::from_secs(10);
/// A statement that takes more than this many times as long as the fastest one was held up.
const HELD_UP: u32 = 3;
/// With each statement the fastest time is raised by one part in so many: if it is never reached again, the
/// backlogs are not the cause.
const FORGETTING: u32 = 64;

/// Whether backlogs hold back.
#[derive(Debug, Default)]
pub struct BacklogThrottle {
    /// Of which more was due than their last claim gave them.
    backlogs: HashMap<OrgId, HashSet<DestinationId>>,
    least: Option<Duration>,
    until: Option<Instant>,
}

impl BacklogThrottle {
    /// A claim of `destination` was answered; `more` is due than it was given.
    pub fn granted(&mut self, org: OrgId, destination: DestinationId, more: bool) {
        if more {
            self.backlogs.entry(org).or_default().insert(destination);
        } else if let Some(of_org) = self.backlogs.get_mut(&org) {
            of_org.remove(&destination);
            if of_org.is_empty() {
                self.backlogs.remove(&org);
            }
        }
    }

    /// Whether some destination of `org` has a backlog. What is new to such an organization is held up by its
    /// own.
    pub fn has_backlog(&self, org: OrgId) -> bool {
        self.backlogs.contains_key(&org)
    }

    /// A statement that claimed at most [`SMALL`] new deliveries took this long, and ended `now`; `beside`
    /// a statement of a backlog. Whether backlogs begin to hold back.
    pub fn note(&mut self, took: Duration, beside: bool, now: Instant) -> bool {
        let least = self.least.map_or(took, |least| took.min(least + least / FORGETTING));
        self.least = Some(least);
        if !beside || self.backlogs.is_empty() || took <= least * HELD_UP {
            return false;
        }
        let begins = !self.is_asked(now);
        self.until = Some(now + LASTS);
        begins
    }

    /// Whether backlogs hold back `now`.
    pub fn is_asked(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const ORG: OrgId = OrgId(Uuid::from_u128(1));
    const DESTINATION: DestinationId = DestinationId(Uuid::from_u128(2));

    fn beside_a_backlog() -> (BacklogThrottle, Instant) {
        let mut backlog_throttle = BacklogThrottle::default();
        backlog_throttle.granted(ORG, DESTINATION, true);
        (backlog_throttle, Instant::now())
    }

    #[test]
    fn backlogs_hold_back_for_a_while_after_something_new_was_held_up() {
        let (mut backlog_throttle, now) = beside_a_backlog();
        backlog_throttle.note(2 * MS, true, now);
        assert!(!backlog_throttle.note(5 * MS, true, now), "somewhat slower is not held up");
        assert!(!backlog_throttle.note(20 * MS, false, now), "nobody was in the way");
        assert!(!backlog_throttle.is_asked(now));
        assert!(backlog_throttle.note(20 * MS, true, now), "it begins");
        assert!(!backlog_throttle.note(20 * MS, true, now), "it goes on");
        assert!(backlog_throttle.is_asked(now + LASTS - MS) && !backlog_throttle.is_asked(now + LASTS));
    }

    #[test]
    fn a_backlog_ends_with_the_claim_that_leaves_nothing() {
        let (mut backlog_throttle, now) = beside_a_backlog();
        backlog_throttle.note(MS, true, now);
        assert!(backlog_throttle.has_backlog(ORG));
        backlog_throttle.granted(ORG, DESTINATION, false);
        assert!(!backlog_throttle.has_backlog(ORG));
        backlog_throttle.note(20 * MS, true, now);
        assert!(!backlog_throttle.is_asked(now), "there is none");
    }

    #[test]
    fn what_is_always_slow_is_not_held_up() {
        let (mut backlog_throttle, now) = beside_a_backlog();
        backlog_throttle.note(MS, false, now);
        for _ in 0..200 {
            backlog_throttle.note(10 * MS, true, now);
        }
        let later = now + LASTS;
        backlog_throttle.note(20 * MS, true, later);
        assert!(!backlog_throttle.is_asked(later));
        // Once it is fast again, it is known again how fast it can be.
        backlog_throttle.note(MS, true, later);
        backlog_throttle.note(20 * MS, true, later);
        assert!(backlog_throttle.is_asked(later));
    }
}
