//! Name lookups of one destination: one at a time, shared by all connections that wait for it.
//!
//! `getaddrinfo` blocks a thread and cannot be cancelled. A resolver that hangs therefore costs a destination
//! one thread, however many attempts give up waiting for it, and other destinations nothing.

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
/// receiver without keep-alive does not cost a lookup for each request, and that an answer which came too
/// late for one attempt serves the next.
const ANSWER_LIFETIME: Duration = Duration::from_secs(5);

#[derive(Clone)]
struct Answer {
    found: Result<Rc<[IpAddr]>, Unconnected>,
    at: Instant,
}

type Pending = Shared<LocalBoxFuture<'static, Answer>>;

/// The lookup that is under way, or the last one.
#[derive(Default)]
pub(super) struct Lookup(RefCell<Option<Pending>>);

impl Lookup {
    /// The addresses of `name`.
    pub(super) async fn addresses(&self, name: &str) -> Result<Rc<[IpAddr]>, Unconnected> {
        self.join(|| start(name.to_owned())).await.found
    }

    /// The lookup under way, or the last one if its answer is still good, or else the one that `start`
    /// begins.
    fn join(&self, start: impl FnOnce() -> Pending) -> Pending {
        let mut slot = self.0.borrow_mut();
        match slot.as_ref().filter(|pending| is_usable(pending)) {
            Some(pending) => pending.clone(),
            None => slot.insert(start()).clone(),
        }
    }
}

/// Under way, or a success that is still fresh. Failures are asked again.
fn is_usable(pending: &Pending) -> bool {
    pending.peek().is_none_or(|answer| {
        answer.found.is_ok() && clock::now().saturating_duration_since(answer.at) < ANSWER_LIFETIME
    })
}

fn start(name: String) -> Pending {
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::sync::oneshot;

    use super::*;

    type Found = Result<Rc<[IpAddr]>, Unconnected>;

    /// Counts the lookups that begin; each ends when its sender is used.
    #[derive(Default)]
    struct Resolver {
        begun: Cell<usize>,
        end: RefCell<Option<oneshot::Sender<Found>>>,
    }

    impl Resolver {
        fn begin(&self) -> Pending {
            self.begun.set(self.begun.get() + 1);
            let (sender, receiver) = oneshot::channel();
            self.end.replace(Some(sender));
            async { Answer { found: receiver.await.unwrap(), at: clock::now() } }.boxed_local().shared()
        }

        fn end(&self, found: Found) {
            assert!(self.end.take().unwrap().send(found).is_ok());
        }
    }

    #[actix_rt::test]
    async fn a_hanging_lookup_is_shared_and_never_started_twice() {
        let (resolver, lookup) = (Resolver::default(), Lookup::default());
        for _ in 0..5 {
            let waiting = lookup.join(|| resolver.begin());
            assert!(tokio::time::timeout(Duration::from_millis(5), waiting).await.is_err());
        }
        assert_eq!(resolver.begun.get(), 1);
        resolver.end(Ok(Rc::new([[192, 0, 2, 1].into()])));
        assert!(lookup.join(|| resolver.begin()).await.found.is_ok());
        assert!(lookup.join(|| resolver.begin()).await.found.is_ok(), "a fresh answer is used again");
        assert_eq!(resolver.begun.get(), 1);
    }

    #[actix_rt::test]
    async fn a_failed_lookup_is_asked_again() {
        let (resolver, lookup) = (Resolver::default(), Lookup::default());
        for begun in 1..4 {
            let waiting = lookup.join(|| resolver.begin());
            resolver.end(Err(Unconnected::Theirs("no such host".into())));
            assert!(waiting.await.found.is_err());
            assert_eq!(resolver.begun.get(), begun);
        }
    }
}
