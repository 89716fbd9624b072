//! Results leave an arbiter once in each turn of its event loop: a message to another thread wakes it, and
//! one for each result was a tenth of all that an arbiter did.

use std::cell::RefCell;

use actix::prelude::*;

use super::db::{DbActor, Record};
use crate::model::Outcome;

struct Outbox {
    to: Addr<DbActor>,
    results: Vec<Outcome>,
}

thread_local! {
    /// An arbiter is a thread. None while there is nothing to send.
    static OUTBOX: RefCell<Option<Outbox>> = const { RefCell::new(None) };
}

/// Sends `results` at the end of this turn, or with the next [`flush`].
pub(super) fn record(to: &Addr<DbActor>, results: Vec<Outcome>) {
    let is_first = OUTBOX.with_borrow_mut(|outbox| match outbox {
        Some(outbox) => {
            debug_assert!(outbox.to == *to, "a process has one DbActor");
            outbox.results.extend(results);
            false
        }
        None => {
            *outbox = Some(Outbox { to: to.clone(), results });
            true
        }
    });
    if is_first {
        actix_rt::spawn(async {
            // Comes back when everything that was ready to run has run.
            tokio::task::yield_now().await;
            flush();
        });
    }
}

/// Sends what waits: before anything else that is sent to the [`DbActor`], and before word of an actor's end,
/// as nobody waits for results after that.
pub(super) fn flush() {
    if let Some(Outbox { to, results }) = OUTBOX.take() {
        to.do_send(Record(results));
    }
}
