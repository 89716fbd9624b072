//! How long to wait before the next try.

use std::time::Duration;

/// Pause after the first error; doubles up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(100);
/// Longest pause between two tries: a database that comes back is noticed within this.
const MAX_BACKOFF: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Default)]
pub(super) struct Backoff(Duration);

impl Backoff {
    pub(super) async fn wait(&self) {
        if !self.0.is_zero() {
            tokio::time::sleep(self.0).await;
        }
    }

    /// Whether the last try worked.
    pub(super) fn is_zero(&self) -> bool {
        self.0.is_zero()
    }

    pub(super) fn worked(&mut self) {
        self.0 = Duration::ZERO;
    }

    pub(super) fn failed(&mut self) {
        self.0 = (self.0 * 2).clamp(MIN_BACKOFF, MAX_BACKOFF);
    }
}
