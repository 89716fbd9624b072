//! A [`Child`]: a destination as the supervisor sees it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use actix::prelude::*;

use super::destination::{DestinationActor, Signs, Wake};

/// A destination that runs.
pub(super) struct Child {
    pub(super) addr: Addr<DestinationActor>,
    /// Which life of it.
    pub(super) generation: u64,
    /// Of its row and settings, as it was told last.
    pub(super) version: i64,
    pub(super) signs: Arc<Signs>,
}

impl Child {
    /// Wakes the destination, unless a wake is under way to it.
    pub(super) fn wake(&self) {
        if !self.signs.woken.swap(true, Ordering::AcqRel) {
            self.addr.do_send(Wake);
        }
    }

    /// Whether it claims by itself, as more was due than its last claim gave it.
    pub(super) fn has_backlog(&self) -> bool {
        self.signs.has_backlog.load(Ordering::Relaxed)
    }
}
