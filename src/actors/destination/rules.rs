//! What the row and the configuration say about sending.

use crate::actors::Shared;
use crate::dispatch::{BatchRules, Rules};
use crate::model::Destination;
use crate::policy::health::Limits;

/// The rules of `destination`.
pub(super) fn rules(destination: &Destination, shared: &Shared) -> Rules {
    let (settings, config) = (&destination.settings, &shared.config);
    let in_flight = settings.max_in_flight.unwrap_or(config.destination_in_flight);
    let events = settings.batch_max_events.unwrap_or(destination.batch_size);
    Rules {
        destination: destination.id,
        org: destination.org,
        batch: BatchRules {
            events: events.max(1) as usize,
            bytes: settings.batch_max_bytes.unwrap_or(config.max_event_bytes),
            wait: settings.batch_wait,
            always: events > 1 || destination.batch_size > 1,
        },
        timeout: destination.timeout,
        retry: destination.retry,
        max_retry_delay: config.max_retry_delay,
        outage_grace: config.outage_grace,
        limits: Limits { threshold: config.breaker_threshold, auto_disable_after: config.auto_disable_after },
        max_in_flight: if settings.ordered { 1 } else { in_flight.max(1) },
        ordered: settings.ordered,
        rate_per_second: settings.rate_limit_per_second,
        rate_burst: settings.rate_limit_burst,
        max_age: settings.max_age,
        max_event_bytes: config.max_event_bytes,
    }
}
