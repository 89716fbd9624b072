//! How many requests a receiver is worth at once: one that answers fast needs few, one that is slow soon gets
//! all that it may have.

use std::time::{Duration, Instant};

/// Requests that a destination has in flight before it knows how fast its receiver is. A few keep a fast one
/// busy; each may cost a connection, which costs several times what a request does.
pub(super) const FIRST_WIDTH: usize = 4;
/// The number doubles when a request takes longer than this ...
const PATIENCE: Duration = Duration::from_millis(10);
/// ... and this for each request that the whole process has in flight: at most so long it may have been slow
/// because of us.
const PATIENCE_PER_REQUEST: Duration = Duration::from_micros(100);

/// See the module.
pub(super) struct Concurrency {
    width: usize,
    widened: Instant,
}

impl Concurrency {
    pub(super) fn new(now: Instant) -> Concurrency {
        Concurrency { width: FIRST_WIDTH, widened: now }
    }

    /// Whether one more request may start beside `in_flight` others, of which the oldest began at `oldest`;
    /// otherwise, when it may. `busy`: requests that the whole process has in flight.
    pub(super) fn admit(
        &mut self,
        in_flight: usize,
        oldest: Option<Instant>,
        busy: u32,
        now: Instant,
    ) -> Result<(), Instant> {
        let Some(oldest) = oldest else {
            self.width = FIRST_WIDTH;
            return Ok(());
        };
        if in_flight < self.width {
            return Ok(());
        }
        let slow = oldest.max(self.widened) + PATIENCE + PATIENCE_PER_REQUEST * busy;
        if now < slow {
            return Err(slow);
        }
        self.width *= 2;
        self.widened = now;
        Ok(())
    }

    /// Requests that the receiver has been found worth of.
    pub(super) fn width(&self) -> usize {
        self.width.max(FIRST_WIDTH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_receiver_gets_twice_as_many_each_time_it_was_slow() {
        let start = crate::clock::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut limit = Concurrency::new(start);
        // In flight, the oldest began at, the process has in flight, now: when one more may start.
        let table = [
            (0, None, 0, 0, Ok(())),
            (3, Some(0), 3, 1, Ok(())),
            (4, Some(0), 0, 1, Err(10)),
            (4, Some(0), 100, 1, Err(20)),
            (4, Some(0), 0, 10, Ok(())),
            (7, Some(0), 0, 10, Ok(())),
            (8, Some(0), 0, 11, Err(20)),
            (8, Some(0), 0, 20, Ok(())),
            (15, Some(5), 0, 20, Ok(())),
            // It was idle: it begins anew.
            (0, None, 0, 30, Ok(())),
            (4, Some(30), 0, 31, Err(40)),
        ];
        for (n, (in_flight, oldest, busy, now, expected)) in table.into_iter().enumerate() {
            let admitted = limit.admit(in_flight, oldest.map(at), busy, at(now));
            assert_eq!(admitted, expected.map_err(at), "line {n}");
        }
    }
}
