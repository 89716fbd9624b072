//! Who may do what: the admin token for everything, a key for its organization and by its role.
//!
//! Every route stands in a scope with one of these two, and handlers know their organization from here only.

use std::collections::HashMap;
use std::future::{Ready, ready};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use actix_web::body::MessageBody;
use actix_web::dev::{Payload, ServiceRequest, ServiceResponse};
use actix_web::http::header::{AUTHORIZATION, RETRY_AFTER, WWW_AUTHENTICATE};
use actix_web::http::{Method, StatusCode};
use actix_web::middleware::Next;
use actix_web::{Error, FromRequest, HttpMessage, HttpRequest, web};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::problem::Problem;
use crate::admin::State;
use crate::admin::limits::NOBODY;
use crate::admin::server::{ConnectionSlot, network_of};
use crate::clock;
use crate::manage::Principal;
use crate::manage::keys::{self, Caller, Freshness, Recognized, Role};
use crate::model::{KeyId, OrgId, Secret};
use crate::store::organizations;

/// The organization of a request, once it is known that the caller may ask about it.
#[derive(Clone, Copy)]
pub(in crate::admin) struct Org(pub OrgId);

impl FromRequest for Org {
    type Error = Problem;
    type Future = Ready<Result<Org, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let org = request.extensions().get::<Org>().copied();
        ready(
            org.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "There is no organization in this path.")),
        )
    }
}

impl FromRequest for Principal {
    type Error = Problem;
    type Future = Ready<Result<Principal, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let principal = request.extensions().get::<Principal>().copied();
        ready(principal.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "There is nothing here.")))
    }
}

/// Lets the admin pass, and the keys of the organization in the path, if their role allows the method.
///
/// # Errors
/// A [`Problem`]; whatever belongs to another organization is not found, as if it did not exist.
pub(super) async fn tenant(
    state: web::Data<State>,
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let named = request.match_info().get("org_id").unwrap_or_default();
    let not_found = Problem::new(StatusCode::NOT_FOUND, format!("There is no organization {named}."));
    let org = named.parse().ok().map(OrgId);
    let (org, principal) = match caller(&state, &request).await? {
        Some(Caller { org: of, role, key }) => {
            note_use(&state, of, key);
            if org != Some(of) {
                return Err(not_found.into());
            }
            if role == Role::Read && request.method() != Method::GET {
                let detail = "This key may only read: use one with the role write.";
                return Err(Problem::new(StatusCode::FORBIDDEN, detail).into());
            }
            (of, Principal::Key(role))
        }
        None => {
            let org = org.ok_or_else(|| Problem::invalid("org_id", "must be a UUID"))?;
            let mut conn = state.acquire(NOBODY).await?;
            if !organizations::exists(&mut conn, org).await.map_err(Problem::from)? {
                return Err(not_found.into());
            }
            (org, Principal::Operator)
        }
    };
    request.extensions_mut().insert(Org(org));
    request.extensions_mut().insert(principal);
    next.call(request).await
}

/// Lets only the admin pass.
///
/// # Errors
/// A [`Problem`]: to a key, there is nothing here.
pub(super) async fn admin(
    state: web::Data<State>,
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    if caller(&state, &request).await?.is_some() {
        return Err(Problem::new(StatusCode::NOT_FOUND, "There is nothing here.").into());
    }
    next.call(request).await
}

/// Whether the request comes with the admin token.
///
/// # Errors
/// A [`Problem`] where it comes with another one, and too many such have come from its address.
pub(in crate::admin) fn is_operator(state: &State, request: &HttpRequest) -> Result<bool, Problem> {
    let Some(token) = presented(request) else { return Ok(false) };
    if has_admin_token(state, request) {
        return Ok(true);
    }
    // Keys are of no use there.
    if !keys::has_form(token) {
        note_wrong(state, request, clock::now())?;
    }
    Ok(false)
}

fn has_admin_token(state: &State, request: &HttpRequest) -> bool {
    let (admin, token) = (state.admin_token(), presented(request));
    admin.zip(token).is_some_and(|(admin, token)| is_same(admin, token))
}

/// Counts a wrong token.
fn note_wrong(state: &State, request: &HttpRequest, now: Instant) -> Result<(), Problem> {
    let Some(address) = state.address(request) else { return Ok(()) };
    let Some(wait) = state.failed_tokens.note(network_of(address), now) else { return Ok(()) };
    let detail = "Too many wrong tokens came from this address: wrong ones are not looked at for a while.";
    let seconds = wait.as_secs().max(1).to_string();
    Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, detail).with(RETRY_AFTER, seconds))
}

/// The token that comes with a request.
fn presented(request: &HttpRequest) -> Option<&str> {
    let value = request.headers().get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Whose key came with the request; `None`: the admin's token. What is neither costs no query, but for one a
/// second that finds new keys.
async fn caller(state: &State, request: &ServiceRequest) -> Result<Option<Caller>, Problem> {
    let arrived = clock::now();
    let request = request.request();
    if has_admin_token(state, request) {
        return Ok(None);
    }
    if let Some(token) = presented(request).filter(|token| keys::has_form(token)) {
        if state.keys.recognize(token) == Recognized::Unknown {
            // It may be new: waiting for the next look costs nothing for one more.
            let _waits = request.conn_data::<Rc<ConnectionSlot>>().map(ConnectionSlot::wait);
            state.keys.refresh(arrived, async || state.acquire(NOBODY).await).await?;
        }
        if let Recognized::Key(org) = state.keys.recognize(token) {
            let caller = keys::authenticate(&mut *state.acquire(org).await?, token).await?;
            let place = request.conn_data::<Rc<ConnectionSlot>>();
            match caller {
                Some(caller) if place.is_some_and(|place| !place.is_for(caller.key, caller.org)) => {
                    let detail = "This key is used on too many connections at once: use fewer, or wait.";
                    let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, detail);
                    return Err(problem.with(RETRY_AFTER, "1"));
                }
                Some(caller) => return Ok(Some(caller)),
                // It was revoked: from now on it costs no more than any guess.
                None => state.keys.forget(token),
            }
        }
    }
    if state.admin_token().is_none() && !has_keys(state, arrived).await? {
        let detail = "Nobody can use this API yet: start posthaste serve with POSTHASTE_ADMIN_TOKEN, or \
                      make a key with posthaste keys create.";
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail));
    }
    if presented(request).is_some() {
        note_wrong(state, request, arrived)?;
    }
    let detail = "Send the admin token or an API key: authorization: Bearer <token>.";
    Err(Problem::new(StatusCode::UNAUTHORIZED, detail).with(WWW_AUTHENTICATE, "Bearer"))
}

/// Whether any key can be used, as it was found a second ago: nobody who has none waits for the database.
/// The requests that ask have it looked up again, one of them a second, and not for themselves.
async fn has_keys(state: &State, arrived: Instant) -> Result<bool, Problem> {
    if state.keys.is_empty() {
        match state.keys.freshness(arrived) {
            Freshness::Never => state.keys.refresh(arrived, async || state.acquire(NOBODY).await).await?,
            Freshness::Due => state.look_for_keys(),
            Freshness::Current => {}
        }
    }
    Ok(!state.keys.is_empty())
}

/// Wrong tokens of one address within [`GUESS_TIME`] until it is told to wait.
const MAX_GUESSES: u32 = 10;
/// See [`MAX_GUESSES`].
const GUESS_TIME: Duration = Duration::from_secs(60);
/// Addresses that are remembered.
const MAX_GUESSERS: usize = 10_000;

/// Who has sent wrong tokens.
#[derive(Default)]
pub struct FailedTokens(Mutex<HashMap<IpAddr, (u32, Instant)>>);

impl FailedTokens {
    /// Notes a wrong token; how long to wait, where there were too many.
    fn note(&self, address: IpAddr, now: Instant) -> Option<Duration> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX_GUESSERS && !all.contains_key(&address) {
            all.retain(|_, (_, since)| now.duration_since(*since) < GUESS_TIME);
            if all.len() >= MAX_GUESSERS {
                // So many at once are not told apart any more.
                return Some(GUESS_TIME);
            }
        }
        let (count, since) = all.entry(address).or_insert((0, now));
        if now.duration_since(*since) >= GUESS_TIME {
            (*count, *since) = (0, now);
        }
        *count = count.saturating_add(1);
        (*count > MAX_GUESSES).then(|| GUESS_TIME.saturating_sub(now.duration_since(*since)))
    }
}

/// Writes down that a key is used, now and then, and not while a request waits.
fn note_use(state: &State, org: OrgId, key: KeyId) {
    if !state.key_uses.is_news(key, clock::now()) {
        return;
    }
    let state = state.clone();
    actix_rt::spawn(async move {
        let Ok(mut conn) = state.acquire(org).await else { return };
        if let Err(error) = keys::used(&mut conn, key).await {
            log::warn!("key={key} its use could not be written down: {error}");
        }
    });
}

/// Compares in constant time: of digests, so that not even the length can be measured.
fn is_same(secret: &Secret, presented: &str) -> bool {
    Sha256::digest(secret.reveal()).ct_eq(&Sha256::digest(presented)).into()
}
