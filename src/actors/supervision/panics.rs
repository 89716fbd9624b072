//! Panics that tests ask for.

use super::{Part, Supervision};

impl Supervision {
    /// From a test: let this part panic; while it is down, when it has started again.
    pub(crate) fn ask_to_panic(&self, part: Part) {
        self.state(part).let_panic.notify_one();
    }

    pub(super) async fn let_panic(&self, part: Part, life: impl Future<Output = ()>) {
        tokio::select! {
            () = life => {}
            () = self.state(part).let_panic.notified() => panic!("a test asked for this"),
        }
    }
}
