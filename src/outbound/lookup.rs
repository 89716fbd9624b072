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

use super::explain::{self, Unconnected};
use super::single_flight::{Answer, SingleFlight};
use crate::clock;
use crate::model::OrgId;
use crate::policy::fairness::Shares;

/// Lookups at once in the whole process. An arbiter of actix has 512 threads for them.
const MAX_LOOKUPS: u64 = 384;
/// An organization with so many under way is told that its resolver does not answer.
const HANGING_LOOKUPS: u64 = 8;
/// How long after its lookup began an answer serves those who ask for it, however long it took. Short,
/// as nobody tells us the record's lifetime; long enough that a receiver without keep-alive does not cost a
/// lookup for each request.
const ANSWER_LIFETIME: Duration = Duration::from_secs(5);

/// What a resolver says of a name.
pub(super) type Found = Result<Rc<[IpAddr]>, Unconnected>;

/// Looks a name up.
pub(super) type Resolver = Box<dyn Fn(String) -> LocalBoxFuture<'static, Found>>;

/// The lookup that is under way, or the last one.
pub(super) struct Lookup {
    flight: SingleFlight<Found>,
    resolver: Resolver,
    lifetime: Duration,
}

impl Lookup {
    /// Lookups by `resolver`.
    pub(super) fn new(resolver: Resolver) -> Lookup {
        Lookup { flight: SingleFlight::default(), resolver, lifetime: ANSWER_LIFETIME }
    }

    /// Lookups by this machine's resolver, for a destination of `org`.
    pub(super) fn by_system(lookups: Lookups, org: OrgId) -> Lookup {
        Lookup::new(Box::new(move |name| {
            let begun = lookups.begin(org);
            Box::pin(async move {
                let _under_way = begun?;
                look_up(name).await
            })
        }))
    }

    /// The addresses of `name`.
    pub(super) async fn addresses(&self, name: &str) -> Found {
        let asked = clock::now();
        let is_usable = |answer: Answer<'_, Found>| is_fresh(&answer, asked, self.lifetime);
        self.flight.get(is_usable, || (self.resolver)(name.to_owned()), stopped).await
    }

    /// The same lookups, whose answers serve nobody who asks after they began.
    #[cfg(test)]
    pub(super) fn forgetful(self) -> Lookup {
        Lookup { lifetime: Duration::ZERO, ..self }
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

/// Whether `answer` serves one who `asked` then. A failure serves only those who waited for it.
fn is_fresh(answer: &Answer<'_, Found>, asked: Instant, lifetime: Duration) -> bool {
    let is_young = asked.saturating_duration_since(answer.begun) < lifetime;
    is_young && (answer.is_awaited || answer.value.is_ok())
}

async fn look_up(name: String) -> Found {
    match tokio::net::lookup_host((name.as_str(), 0)).await {
        Ok(addresses) => Ok(addresses.map(|a| a.ip()).collect()),
        Err(error) => Err(explain::lookup(&error, &name)),
    }
}

fn stopped() -> Found {
    Err(Unconnected::Ours("the lookup was stopped: this process is shutting down".into()))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::pin::pin;

    use futures_util::FutureExt as _;
    use tokio::sync::oneshot;
    use uuid::Uuid;

    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const ELSEWHERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

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
    fn a_success_serves_for_five_seconds_from_its_start_and_a_failure_only_those_who_waited() {
        let (found, failed) = (Ok(Rc::from([HERE])), Err(Unconnected::Theirs("no such host".into())));
        let begun = clock::now();
        let (early, late) = (begun + Duration::from_millis(4_999), begun + Duration::from_secs(5));
        for (value, is_awaited, asked, serves) in [
            (&found, false, early, true),
            (&found, true, early, true),
            (&found, false, late, false),
            (&found, true, late, false),
            (&failed, false, early, false),
            (&failed, true, early, true),
            (&failed, true, late, false),
        ] {
            let answer = Answer { value, begun, is_awaited };
            assert_eq!(is_fresh(&answer, asked, ANSWER_LIFETIME), serves, "{value:?} {is_awaited}");
        }
    }

    /// A resolver that says where a name leads when it is told so; how often it was asked.
    fn told() -> (Lookup, Rc<RefCell<Vec<oneshot::Sender<IpAddr>>>>) {
        let asked: Rc<RefCell<Vec<oneshot::Sender<IpAddr>>>> = Rc::default();
        let of_resolver = asked.clone();
        let lookup = Lookup::new(Box::new(move |_| {
            let (sender, receiver) = oneshot::channel();
            of_resolver.borrow_mut().push(sender);
            Box::pin(async { Ok(Rc::from([receiver.await.unwrap()])) })
        }));
        (lookup, asked)
    }

    #[actix_rt::test]
    async fn where_a_name_led_before_everybody_left_is_not_where_it_leads_later() {
        let (lookup, asked) = told();
        // The zero stands for the five seconds that have passed when the second one asks.
        let lookup = lookup.forgetful();
        assert!(lookup.addresses("example.com").now_or_never().is_none());
        let mut later = pin!(lookup.addresses("example.com"));
        assert!((&mut later).now_or_never().is_none());
        assert_eq!(asked.borrow().len(), 1, "one lookup at a time");
        asked.borrow_mut().pop().unwrap().send(HERE).unwrap();
        let meanwhile = async {
            while asked.borrow().is_empty() {
                tokio::task::yield_now().await;
            }
            asked.borrow_mut().pop().unwrap().send(ELSEWHERE).unwrap();
        };
        let found = tokio::select! {
            found = &mut later => found,
            () = meanwhile => later.await,
        };
        assert_eq!(*found.unwrap(), [ELSEWHERE]);
    }
}
