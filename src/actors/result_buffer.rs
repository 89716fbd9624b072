//! Results leave an arbiter once in each turn of its event loop: a message to another thread wakes it, and
//! one for each result was a tenth of all that an arbiter did.

use std::cell::RefCell;

use actix::prelude::*;

use super::db::DbActor;
use super::messages::Record;
use crate::model::Outcome;

struct ResultBuffer {
    to: Addr<DbActor>,
    results: Vec<Outcome>,
}

thread_local! {
    /// An arbiter is a thread. None while there is nothing to send.
    static RESULT_BUFFER: RefCell<Option<ResultBuffer>> = const { RefCell::new(None) };
}

/// Sends `results` at the end of this turn, or with the next [`flush`].
pub(super) fn record(to: &Addr<DbActor>, results: Vec<Outcome>) {
    let is_first = RESULT_BUFFER.with_borrow_mut(|result_buffer| match result_buffer {
        Some(result_buffer) => {
            debug_assert!(result_buffer.to == *to, "a process has one DbActor");
            result_buffer.results.extend(results);
            false
        }
        None => {
            *result_buffer = Some(ResultBuffer { to: to.clone(), results });
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
    if let Some(ResultBuffer { to, results }) = RESULT_BUFFER.take() {
        to.do_send(Record(results));
    }
}
