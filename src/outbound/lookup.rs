//! Name lookups of one destination: one at a time, shared by all connections that wait for it.
//!
//! `getaddrinfo` blocks a thread and cannot be cancelled. A resolver that hangs therefore costs a destination
//! one thread, however many attempts give up waiting for it. What an organization's destinations hang in is
//! limited, whatever becomes of them meanwhile, so it costs other organizations nothing.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::LocalBoxFuture;

use super::connector::Unconnected;
use super::explain;
use super::flight::Flight;
use crate::clock;
use crate::model::OrgId;
use crate::policy::fairness::Shares;

/// Lookups at once in the whole process. An arbiter of actix has 512 threads for them.
const MAX_LOOKUPS: u64 = 384;
/// An organization with so many under way is told that its resolver does not answer.
const HANGING_LOOKUPS: u64 = 8;
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

    /// Lookups by this machine's resolver, for a destination of `org`.
    pub(super) fn by_system(lookups: Lookups, org: OrgId) -> Lookup {
        Lookup::new(Box::new(move |name| {
            let begun = lookups.begin(org);
            Box::pin(async move {
                match begun {
                    Ok(_under_way) => look_up(name).await,
                    Err(why) => Answer { found: Err(why), at: clock::now() },
                }
            })
        }))
    }

    /// The addresses of `name`.
    pub(super) async fn addresses(&self, name: &str) -> Result<Rc<[IpAddr]>, Unconnected> {
        self.flight.join(is_fresh, || (self.resolver)(name.to_owned()), stopped).await.found
    }
}

/// The lookups of the whole process, shared by organizations.
#[derive(Clone, Debug)]
pub(super) struct Lookups(Arc<Mutex<Shares>>);

impl Default for Lookups {
    fn default() -> Lookups {
        Lookups(Arc::new(Mutex::new(Shares::new(MAX_LOOKUPS))))
    }
}

/// A lookup that is under way as long as this lives.
struct UnderWay(Lookups, OrgId);

impl Lookups {
    fn begin(&self, org: OrgId) -> Result<UnderWay, Unconnected> {
        let mut shares = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if shares.allowance(org) > 0 {
            shares.take(org, 1);
            return Ok(UnderWay(self.clone(), org));
        }
        // One that has few under way is not what is wrong.
        Err(match shares.held_by(org) >= HANGING_LOOKUPS {
            true => Unconnected::Theirs("too many name lookups hang: the resolver does not answer".into()),
            false => Unconnected::Ours("too many name lookups are under way".into()),
        })
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).put_back(self.1, 1);
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
    use uuid::Uuid;

    use super::*;

    #[test]
    fn organizations_whose_lookups_hang_leave_room_for_others() {
        let lookups = Lookups::default();
        let org = |n| OrgId(Uuid::from_u128(n));
        let mut hanging = Vec::new();
        for n in 0..6 {
            hanging.extend(std::iter::from_fn(|| lookups.begin(org(n)).ok()));
            assert!(lookups.begin(org(n)).is_err());
        }
        assert!(lookups.begin(org(7)).is_ok(), "{} hang", hanging.len());
        hanging.clear();
        assert_eq!(lookups.0.lock().unwrap().held(), 0);
    }

    #[test]
    fn a_success_is_used_for_a_moment_and_a_failure_never() {
        let answer = |found, at| Answer { found, at };
        let found = || Ok(Rc::from([[192, 0, 2, 1].into()]));
        assert!(is_fresh(&answer(found(), clock::now())));
        assert!(!is_fresh(&answer(found(), clock::now().checked_sub(ANSWER_LIFETIME).unwrap())));
        assert!(!is_fresh(&answer(Err(Unconnected::Theirs("no such host".into())), clock::now())));
    }
}
