//! What comes with a request, read so that everything that is wrong with it is told at once.

use std::future::{Future, Ready, ready};
use std::pin::Pin;
use std::rc::Rc;

use actix_web::dev::Payload;
use actix_web::http::StatusCode;
use actix_web::http::header::CONTENT_LENGTH;
use actix_web::{FromRequest, HttpMessage as _, HttpRequest, web};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use url::form_urlencoded;
use utoipa::IntoParams;
use uuid::Uuid;

use super::access::Org;
use super::problem::Problem;
use crate::admin::State;
use crate::admin::limits::{NOBODY, Reserved};
use crate::admin::server::{ConnectionSlot, PROGRESS_BYTES, PROGRESS_TIME};
use crate::manage::input;

/// Bytes of a body, unless it holds events.
const MAX_BODY: usize = 256 * 1024;
/// Bytes of a body with events, beside one event of the largest size.
const MAX_EVENTS_BODY: usize = 1024 * 1024;

/// In the path of every request about an organization.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[allow(dead_code, reason = "describes what access and Id read")]
pub(super) struct OrgPath {
    /// The organization.
    org_id: Uuid,
}

/// The path of one thing of an organization.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[allow(dead_code, reason = "describes what access and Id read")]
pub(super) struct OnePath {
    /// The organization.
    org_id: Uuid,
    /// The thing.
    id: Uuid,
}

/// The path of a key.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[allow(dead_code, reason = "describes what Id reads")]
pub(super) struct KeyPath {
    /// The key.
    id: Uuid,
}

/// The id in the path.
pub(super) struct Id(pub Uuid);

impl FromRequest for Id {
    type Error = Problem;
    type Future = Ready<Result<Id, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let id = request.match_info().get("id").and_then(|id| id.parse().ok());
        ready(id.map(Id).ok_or_else(|| Problem::invalid("id", "must be a UUID")))
    }
}

/// The query.
pub(super) struct Query<T>(pub T);

impl<T: DeserializeOwned> FromRequest for Query<T> {
    type Error = Problem;
    type Future = Ready<Result<Query<T>, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let pairs = form_urlencoded::parse(request.query_string().as_bytes()).into_owned();
        ready(input::read_pairs(pairs).map(Query).map_err(Problem::from))
    }
}

/// A JSON body.
pub(super) struct Json<T>(pub T);

impl<T: DeserializeOwned + 'static> FromRequest for Json<T> {
    type Error = Problem;
    type Future = Pin<Box<dyn Future<Output = Result<Json<T>, Problem>>>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let (request, payload) = (request.clone(), payload.take());
        Box::pin(async move {
            is_json(&request)?;
            let body = read(&request, payload, MAX_BODY).await?;
            Ok(Json(input::read_object(&body.bytes)?))
        })
    }
}

/// A JSON body that may be missing: then it is `{}`.
pub(super) struct MaybeJson<T>(pub T);

impl<T: DeserializeOwned + 'static> FromRequest for MaybeJson<T> {
    type Error = Problem;
    type Future = Pin<Box<dyn Future<Output = Result<MaybeJson<T>, Problem>>>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let (request, payload) = (request.clone(), payload.take());
        Box::pin(async move {
            let body = read(&request, payload, MAX_BODY).await?;
            if body.bytes.is_empty() {
                return Ok(MaybeJson(input::read_object(b"{}")?));
            }
            is_json(&request)?;
            Ok(MaybeJson(input::read_object(&body.bytes)?))
        })
    }
}

/// The members of a body where there is nothing to say.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

/// A JSON body with events, not read yet.
pub(super) struct EventsBody(pub Body);

impl FromRequest for EventsBody {
    type Error = Problem;
    type Future = Pin<Box<dyn Future<Output = Result<EventsBody, Problem>>>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let (request, payload) = (request.clone(), payload.take());
        Box::pin(async move {
            let most = state(&request)?.get().map_err(Problem::later)?.shared.config.max_event_bytes;
            is_json(&request)?;
            Ok(EventsBody(read(&request, payload, most + MAX_EVENTS_BODY).await?))
        })
    }
}

/// A body, which counts as long as it is here.
pub(super) struct Body {
    pub(super) bytes: Bytes,
    pub(super) reserved: Reserved,
}

fn state(request: &HttpRequest) -> Result<&State, Problem> {
    let state = request.app_data::<web::Data<State>>();
    state.map(|state| state.get_ref()).ok_or_else(|| Problem::later("The server is starting."))
}

fn is_json(request: &HttpRequest) -> Result<(), Problem> {
    if request.content_type().eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let detail = "The body must be JSON, with the header content-type: application/json.";
    Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail))
}

/// Reads a body of at most `most` bytes, as far as there is room, and as long as it makes progress.
async fn read(request: &HttpRequest, mut payload: Payload, most: usize) -> Result<Body, Problem> {
    let org = request.extensions().get::<Org>().map_or(NOBODY, |org| org.0);
    let mut reserved = state(request)?.budget.open(org);
    let length = request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let _reads = request.conn_data::<Rc<ConnectionSlot>>().map(|place| place.read_body(length));
    let mut body = BytesMut::new();
    let timed_out = |_| Problem::new(StatusCode::REQUEST_TIMEOUT, "The body did not arrive in time.");
    loop {
        let enough = body.len() + PROGRESS_BYTES;
        let some = async {
            while body.len() < enough {
                let Some(chunk) = payload.next().await else { return Ok(true) };
                let chunk = chunk.map_err(|error| {
                    Problem::new(StatusCode::BAD_REQUEST, format!("The body did not arrive whole: {error}."))
                })?;
                if body.len() + chunk.len() > most {
                    let detail = format!("The body is larger than {most} bytes.");
                    return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail));
                }
                if !reserved.grow(chunk.len() as u64) {
                    return Err(Problem::later("Too many bodies are being read: try again later."));
                }
                body.extend_from_slice(&chunk);
            }
            Ok(false)
        };
        if tokio::time::timeout(PROGRESS_TIME, some).await.map_err(timed_out)?? {
            return Ok(Body { bytes: body.freeze(), reserved });
        }
    }
}
