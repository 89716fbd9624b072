//! When the machine wants to be called again.

use std::time::Instant;

/// Two wishes and one alarm.
#[derive(Default)]
pub(super) struct Timers {
    /// When something may be due that is not claimed.
    look: Option<Instant>,
    /// When something that is held may be sent, or needs its lease renewed.
    go_on: Option<Instant>,
    /// What [`super::Effect::WakeAt`] said last.
    alarm: Option<Instant>,
}

/// What a time that came was for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Due {
    Look,
    GoOn,
}

impl Timers {
    pub(super) fn look_at(&mut self, moment: Instant) {
        self.look = Some(self.look.map_or(moment, |at| at.min(moment)));
    }

    pub(super) fn go_on_at(&mut self, moment: Instant) {
        self.go_on = Some(self.go_on.map_or(moment, |at| at.min(moment)));
    }

    /// The alarm has rung.
    pub(super) fn came(&mut self, now: Instant) -> Due {
        self.alarm = None;
        self.go_on = self.go_on.filter(|at| *at > now);
        if self.look.is_some_and(|at| at <= now) {
            self.look = None;
            return Due::Look;
        }
        Due::GoOn
    }

    /// The next alarm, if it must be set anew.
    pub(super) fn alarm(&mut self) -> Option<Instant> {
        let wanted = [self.look, self.go_on].into_iter().flatten().min()?;
        if self.alarm.is_some_and(|alarm| alarm <= wanted) {
            return None;
        }
        self.alarm = Some(wanted);
        self.alarm
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_alarm_is_set_for_the_earlier_wish_and_set_again_for_the_later_one() {
        let now = crate::clock::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let mut timers = Timers::default();
        assert_eq!(timers.alarm(), None);
        timers.look_at(at(5));
        timers.look_at(at(9));
        assert_eq!(timers.alarm(), Some(at(5)));
        assert_eq!(timers.alarm(), None, "it is set");
        timers.go_on_at(at(2));
        assert_eq!(timers.alarm(), Some(at(2)));
        assert_eq!(timers.came(at(2)), Due::GoOn);
        assert_eq!(timers.alarm(), Some(at(5)));
        assert_eq!(timers.came(at(5)), Due::Look);
        assert_eq!(timers.alarm(), None);
    }
}
