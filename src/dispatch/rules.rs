//! What the configuration and a destination's row say about sending.

use std::time::Duration;

use crate::model::{DestinationId, OrgId, RetryPolicy};
use crate::policy::health::Limits;

/// See the module.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// Which destination.
    pub destination: DestinationId,
    /// Whose.
    pub org: OrgId,
    /// How batches are made.
    pub batch: BatchRules,
    /// Limit on a request, at most 30 s, so that it fits into a lease.
    pub timeout: Duration,
    /// When to try again, and how often.
    pub retry: RetryPolicy,
    /// Longest delay before a retry.
    pub max_retry_delay: Duration,
    /// For how long an outage spares deliveries.
    pub outage_grace: Duration,
    /// Breaker and automatic disabling.
    pub limits: Limits,
    /// Requests in flight at most.
    pub max_in_flight: u32,
    /// One attempt at a time, in insertion order.
    pub ordered: bool,
    /// Requests per second at most.
    pub rate_per_second: Option<f64>,
    /// Requests that may follow each other at once under that rate.
    pub rate_burst: Option<u32>,
    /// Deliveries older than this are dead.
    pub max_age: Option<Duration>,
    /// Events with more bytes of JSON are dead.
    pub max_event_bytes: usize,
}

/// How batches are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchRules {
    /// Events at most, from 1.
    pub events: usize,
    /// Bytes of JSON at most, unless a single event has more.
    pub bytes: usize,
    /// How long an incomplete batch waits for more.
    pub wait: Duration,
    /// The body is a batch even when it holds one event.
    pub always: bool,
}
