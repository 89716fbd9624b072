//! A delivery under its lease, and until when something may be started under it.

use std::time::{Duration, Instant};

use crate::model::Delivery;

/// Time that must be left of a lease, besides the timeout of the request, to record the result.
pub const RECORDING_MARGIN: Duration = Duration::from_secs(5);

/// A delivery that is ours until `expires`. `H` is its part of a limit.
#[derive(Debug)]
pub struct Leased<H> {
    /// The delivery and its event.
    pub delivery: Delivery,
    /// The event is beyond the limit and was not read.
    pub too_large: bool,
    /// Bytes of JSON in a body.
    pub bytes: usize,
    /// When the lease ends, by our clock, counted from before the claim was sent.
    pub expires: Instant,
    /// Held as long as the delivery is.
    pub held: H,
    /// Its lease is being renewed.
    pub(super) renewing: bool,
}

impl<H> Leased<H> {
    /// A delivery that was claimed.
    pub fn new(delivery: Delivery, too_large: bool, bytes: usize, expires: Instant, held: H) -> Leased<H> {
        Leased { delivery, too_large, bytes, expires, held, renewing: false }
    }

    /// The last moment at which a request may start that takes `timeout`.
    pub(super) fn starts_by(&self, timeout: Duration) -> Option<Instant> {
        self.expires.checked_sub(timeout + RECORDING_MARGIN)
    }

    /// Whether a request that takes `timeout` may start now.
    pub(super) fn may_start(&self, now: Instant, timeout: Duration) -> bool {
        !self.renewing && self.starts_by(timeout).is_some_and(|by| now <= by)
    }
}
