//! Name lookups of one destination: one at a time, shared by all connections that wait for it.
//!
//! `getaddrinfo` blocks a thread and cannot be cancelled. A resolver that hangs therefore costs a destination one
//! thread, however many attempts give up waiting for it, and other destinations nothing.

use std::cell::RefCell;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::{LocalBoxFuture, Shared};

use super::connector::Unconnected;
use super::explain;
use crate::clock;

/// How long an answer may be used again. Short, as nobody tells us the record's lifetime; long enough that a
/// receiver without keep-alive does not cost a lookup for each request, and that an answer which came too late for
/// one attempt serves the next.
const ANSWER_LIFETIME: Duration = Duration::from_secs(5);

#[derive(Clone)]
struct Answer {
    found: Result<Rc<[IpAddr]>, Unconnected>,
    at: Instant,
}

/// The lookup that is under way, or the last one.
#[derive(Default)]
pub(super) struct Lookup(RefCell<Option<Shared<LocalBoxFuture<'static, Answer>>>>);

impl Lookup {
    /// The addresses of `name`.
    pub(super) async fn addresses(&self, name: &str) -> Result<Rc<[IpAddr]>, Unconnected> {
        let pending = {
            let mut slot = self.0.borrow_mut();
            match slot.as_ref().filter(|pending| is_usable(pending)) {
                Some(pending) => pending.clone(),
                None => slot.insert(start(name.to_owned())).clone(),
            }
        };
        pending.await.found
    }
}

/// Under way, or a success that is still fresh. Failures are asked again.
fn is_usable(pending: &Shared<LocalBoxFuture<'static, Answer>>) -> bool {
    pending.peek().is_none_or(|answer| {
        answer.found.is_ok() && clock::now().saturating_duration_since(answer.at) < ANSWER_LIFETIME
    })
}

fn start(name: String) -> Shared<LocalBoxFuture<'static, Answer>> {
    // A task of its own: it must go on, and note when it ended, even if everybody stops waiting.
    let task = actix_rt::spawn(async move {
        let found = match tokio::net::lookup_host((name.as_str(), 0)).await {
            Ok(addresses) => Ok(addresses.map(|a| a.ip()).collect::<Vec<_>>()),
            Err(error) => Err(explain::lookup(&error, &name)),
        };
        (found, clock::now())
    });
    let answer = async move {
        match task.await {
            Ok((found, at)) => Answer { found: found.map(Rc::from), at },
            Err(_) => {
                let stopped =
                    Unconnected::Ours("the lookup was stopped: this process is shutting down".into());
                Answer { found: Err(stopped), at: clock::now() }
            }
        }
    };
    answer.boxed_local().shared()
}
