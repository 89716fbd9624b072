//! Name lookups of one destination: one at a time, shared by all connections that wait for it.
//!
//! `getaddrinfo` blocks a thread and cannot be cancelled. A resolver that hangs therefore costs a destination
//! one thread, however many attempts give up waiting for it, and other destinations nothing.

use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::future::LocalBoxFuture;

use super::connector::Unconnected;
use super::explain;
use super::flight::Flight;
use crate::clock;

/// How long an answer may be used again. Short, as nobody tells us the record's lifetime; long enough that a
/// receiver without keep-alive does not cost a lookup for each request, and that an answer which came too
/// late for one attempt serves the next.
const ANSWER_LIFETIME: Duration = Duration::from_secs(5);

/// What a resolver says, and when it said so.
#[derive(Clone)]
pub(super) struct Answer {
    pub(super) found: Result<Rc<[IpAddr]>, Unconnected>,
    pub(super) at: Instant,
}

/// Looks a name up.
pub(super) type Resolver = Box<dyn Fn(String) -> LocalBoxFuture<'static, Answer>>;

/// The lookup that is under way, or the last one.
pub(super) struct Lookup {
    flight: Flight<Answer>,
    resolver: Resolver,
}

impl Lookup {
    /// Lookups by `resolver`.
    pub(super) fn new(resolver: Resolver) -> Lookup {
        Lookup { flight: Flight::default(), resolver }
    }

    /// Lookups by this machine's resolver.
    pub(super) fn by_system() -> Lookup {
        Lookup::new(Box::new(|name| Box::pin(look_up(name))))
    }

    /// The addresses of `name`.
    pub(super) async fn addresses(&self, name: &str) -> Result<Rc<[IpAddr]>, Unconnected> {
        self.flight.join(is_fresh, || (self.resolver)(name.to_owned()), stopped).await.found
    }
}

/// A success of a moment ago. Failures are asked again.
fn is_fresh(answer: &Answer) -> bool {
    answer.found.is_ok() && clock::now().saturating_duration_since(answer.at) < ANSWER_LIFETIME
}

async fn look_up(name: String) -> Answer {
    let found = match tokio::net::lookup_host((name.as_str(), 0)).await {
        Ok(addresses) => Ok(addresses.map(|a| a.ip()).collect()),
        Err(error) => Err(explain::lookup(&error, &name)),
    };
    Answer { found, at: clock::now() }
}

fn stopped() -> Answer {
    let stopped = Unconnected::Ours("the lookup was stopped: this process is shutting down".into());
    Answer { found: Err(stopped), at: clock::now() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_success_is_used_for_a_moment_and_a_failure_never() {
        let answer = |found, at| Answer { found, at };
        let found = || Ok(Rc::from([[192, 0, 2, 1].into()]));
        assert!(is_fresh(&answer(found(), clock::now())));
        assert!(!is_fresh(&answer(found(), clock::now().checked_sub(ANSWER_LIFETIME).unwrap())));
        assert!(!is_fresh(&answer(Err(Unconnected::Theirs("no such host".into())), clock::now())));
    }
}
