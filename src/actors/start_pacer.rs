//! How many requests an arbiter starts in one turn of its event loop.
//!
//! Each request in flight makes a turn longer, and an answer is looked at once a turn: beyond what a turn can
//! do, more in flight is not more done, but everything that this arbiter does waits longer, and memory and
//! caches suffer. Where receivers are slow, turns are short, and thousands of requests soon are in flight.

use std::cell::RefCell;

use actix::prelude::*;

use crate::model::OrgId;
use crate::policy::fairness::FairQueue;

/// Requests that one arbiter starts in a turn. With 16, a few destinations wait for turns without need; with
/// 64, many destinations are slower.
const STARTS: usize = 32;

/// To a destination: now it may start one request.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Turn;

#[derive(Default)]
struct StartPacer {
    started: usize,
    waiting: FairQueue<Recipient<Turn>>,
    is_turning: bool,
}

thread_local! {
    /// An arbiter is a thread.
    static PACER: RefCell<StartPacer> = RefCell::default();
}

/// Whether a request may start in this turn; otherwise `waiter` gets a [`Turn`] when it may, organizations
/// one after the other.
pub(super) fn may_start(org: OrgId, waiter: impl FnOnce() -> Recipient<Turn>) -> bool {
    PACER.with_borrow_mut(|pacer| {
        if !std::mem::replace(&mut pacer.is_turning, true) {
            actix_rt::spawn(turn());
        }
        if pacer.started >= STARTS {
            pacer.waiting.push(org, waiter());
            return false;
        }
        pacer.started += 1;
        true
    })
}

/// Runs once in each turn for as long as requests start.
async fn turn() {
    loop {
        // Comes back when everything that was ready to run has run, and the sockets have been looked at.
        tokio::task::yield_now().await;
        let is_quiet = PACER.with_borrow_mut(|pacer| {
            pacer.started = 0;
            while pacer.started < STARTS
                && let Some((_, waiter)) = pacer.waiting.pop(|_| true)
            {
                pacer.started += 1;
                waiter.do_send(Turn);
            }
            pacer.is_turning = pacer.started > 0;
            !pacer.is_turning
        });
        if is_quiet {
            return;
        }
    }
}
