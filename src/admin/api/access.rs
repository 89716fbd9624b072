//! Who may do what: the admin token for everything, a key for its organization and by its role.
//!
//! Every route stands in a scope with one of these two, and handlers know their organization from here only.

use std::future::{Ready, ready};

use actix_web::body::MessageBody;
use actix_web::dev::{Payload, ServiceRequest, ServiceResponse};
use actix_web::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use actix_web::http::{Method, StatusCode};
use actix_web::middleware::Next;
use actix_web::{Error, FromRequest, HttpMessage, HttpRequest, web};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::problem::Problem;
use crate::admin::State;
use crate::clock;
use crate::manage::keys::{self, Caller, Role};
use crate::model::{KeyId, OrgId, Secret};
use crate::store::organizations;

/// The organization of a request, once it is known that the caller may ask about it.
#[derive(Clone, Copy)]
pub(super) struct Org(pub OrgId);

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
    let org = match caller(&state, &request).await? {
        Some(Caller { org: of, role, key }) => {
            note_use(&state, key);
            if org != Some(of) {
                return Err(not_found.into());
            }
            if role == Role::Read && request.method() != Method::GET {
                let detail = "This key may only read: use one with the role write.";
                return Err(Problem::new(StatusCode::FORBIDDEN, detail).into());
            }
            of
        }
        None => {
            let org = org.ok_or_else(|| Problem::invalid("org_id", "must be a UUID"))?;
            let mut conn = state.acquire().await?;
            if !organizations::exists(&mut conn, org).await.map_err(Problem::from)? {
                return Err(not_found.into());
            }
            org
        }
    };
    request.extensions_mut().insert(Org(org));
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

/// Whose key came with the request; `None`: the admin's token. What is neither costs no connection to the
/// database.
async fn caller(state: &State, request: &ServiceRequest) -> Result<Option<Caller>, Problem> {
    let admin = state.admin_token();
    let presented = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let presented = presented.and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    if let Some(token) = presented {
        if admin.is_some_and(|admin| is_same(admin, token)) {
            return Ok(None);
        }
        if keys::has_form(token)
            && let Some(caller) = keys::authenticate(&mut *state.acquire().await?, token).await?
        {
            return Ok(Some(caller));
        }
    }
    if admin.is_none() && !keys::any_exists(&mut *state.acquire().await?).await? {
        let detail = "Nobody can use this API yet: start posthaste serve with POSTHASTE_ADMIN_TOKEN, or make \
                      a key with posthaste keys create.";
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail));
    }
    let detail = "Send the admin token or an API key: authorization: Bearer <token>.";
    Err(Problem::new(StatusCode::UNAUTHORIZED, detail).with(WWW_AUTHENTICATE, "Bearer"))
}

/// Writes down that a key is used, now and then, and not while a request waits.
fn note_use(state: &State, key: KeyId) {
    if !state.key_uses.is_news(key, clock::now()) {
        return;
    }
    let state = state.clone();
    actix_rt::spawn(async move {
        let Ok(mut conn) = state.acquire().await else { return };
        if let Err(error) = keys::used(&mut conn, key).await {
            log::warn!("key={key} its use could not be written down: {error}");
        }
    });
}

/// Compares in constant time: of digests, so that not even the length can be measured.
fn is_same(secret: &Secret, presented: &str) -> bool {
    Sha256::digest(secret.reveal()).ct_eq(&Sha256::digest(presented)).into()
}
