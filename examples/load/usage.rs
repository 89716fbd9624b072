//! CPU time of the three parties between two moments.

use std::time::Duration;

use crate::place::Place;
use crate::process;
use crate::program::Program;
use crate::receiver::Receiver;
use crate::report::Row;

/// CPU time so far; what cannot be known is left out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    pub posthaste: Option<Duration>,
    pub postgres: Option<Duration>,
    pub receiver: Option<Duration>,
}

impl Usage {
    /// Up to now. Without a program, it is about to start from zero.
    pub fn now(place: &Place, program: Option<&Program>, receiver: &Receiver) -> Usage {
        Usage {
            posthaste: program.map_or(Some(Duration::ZERO), Program::cpu),
            postgres: place.postmaster.and_then(process::cpu_of_family),
            receiver: receiver.cpu(),
        }
    }

    /// What was used since `earlier`.
    pub fn since(self, earlier: Usage) -> Usage {
        let less = |now: Option<Duration>, then| Some(now?.saturating_sub(then?));
        Usage {
            posthaste: less(self.posthaste, earlier.posthaste),
            postgres: less(self.postgres, earlier.postgres),
            receiver: less(self.receiver, earlier.receiver),
        }
    }

    /// Adds microseconds per delivery to a row.
    pub fn per_delivery(&self, row: Row, deliveries: u64) -> Row {
        let each = |used: Option<Duration>| used.map(|used| micros_each(used, deliveries));
        row.maybe("posthaste_cpu_us", each(self.posthaste))
            .maybe("postgres_cpu_us", each(self.postgres))
            .maybe("receiver_cpu_us", each(self.receiver))
    }
}

/// Microseconds for each of `count` things.
pub fn micros_each(used: Duration, count: u64) -> f64 {
    used.as_secs_f64() * 1e6 / count.max(1) as f64
}
