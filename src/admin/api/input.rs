//! What comes with a request, read so that everything that is wrong with it is told at once.

use std::future::{Future, Ready, ready};
use std::io::Read as _;
use std::pin::Pin;
use std::rc::Rc;

use actix_web::dev::Payload;
use actix_web::http::StatusCode;
use actix_web::http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use actix_web::{FromRequest, HttpMessage as _, HttpRequest, web};
use bytes::{Buf as _, Bytes, BytesMut};
use flate2::read::MultiGzDecoder;
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

/// Bytes that are decompressed at once.
const INFLATED_PIECE_BYTES: usize = 16 * 1024;
/// What some clients put before a text in UTF-8.
const UTF_8_MARK: &[u8] = b"\xef\xbb\xbf";

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
    if !request.content_type().eq_ignore_ascii_case("application/json") {
        let detail = "The body must be JSON, with the header content-type: application/json.";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
    }
    let header =
        request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let charset = header.split(';').skip(1).find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("charset").then(|| value.trim().trim_matches('"'))
    });
    let is_utf8 =
        |name: &str| ["utf-8", "utf8", "us-ascii"].iter().any(|known| name.eq_ignore_ascii_case(known));
    if charset.is_none_or(is_utf8) { Ok(()) } else { Err(not_utf8()) }
}

fn not_utf8() -> Problem {
    Problem::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "The body must be JSON in UTF-8, and in no other charset.",
    )
}

fn too_large(most: usize) -> Problem {
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, format!("The body is larger than {most} bytes."))
}

fn no_room() -> Problem {
    Problem::later("Too many bodies are being read: try again later.")
}

/// Whether a body is compressed.
fn is_compressed(request: &HttpRequest) -> Result<bool, Problem> {
    let codings = request.headers().get_all(CONTENT_ENCODING).filter_map(|value| value.to_str().ok());
    let codings: Vec<&str> = codings.flat_map(|value| value.split(',')).map(str::trim).collect();
    match codings[..] {
        [] => Ok(false),
        [one] if one.is_empty() || one.eq_ignore_ascii_case("identity") => Ok(false),
        [one] if one.eq_ignore_ascii_case("gzip") || one.eq_ignore_ascii_case("x-gzip") => Ok(true),
        _ => {
            let detail = "A body may be compressed by gzip, once, and not otherwise.";
            let problem = Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail);
            Err(problem.with(ACCEPT_ENCODING, "gzip"))
        }
    }
}

/// Reads a body of at most `most` bytes, as far as there is room, and as long as it makes progress.
async fn read(request: &HttpRequest, payload: Payload, most: usize) -> Result<Body, Problem> {
    let is_compressed = is_compressed(request)?;
    let org = request.extensions().get::<Org>().map_or(NOBODY, |org| org.0);
    let mut reserved = state(request)?.budget.open(org);
    let mut bytes = receive(request, payload, most, &mut reserved).await?;
    if is_compressed {
        bytes = inflate(&bytes, most, &mut reserved).await?;
    }
    if bytes.starts_with(UTF_8_MARK) {
        bytes.advance(UTF_8_MARK.len());
    }
    // Without its mark, UTF-16 looks like ASCII with zeros in between.
    if std::str::from_utf8(&bytes).is_err() || bytes.iter().take(2).any(|byte| *byte == 0) {
        return Err(not_utf8());
    }
    Ok(Body { bytes, reserved })
}

async fn receive(
    request: &HttpRequest,
    mut payload: Payload,
    most: usize,
    reserved: &mut Reserved,
) -> Result<Bytes, Problem> {
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
                    return Err(too_large(most));
                }
                if !reserved.grow(chunk.len() as u64) {
                    return Err(no_room());
                }
                body.extend_from_slice(&chunk);
            }
            Ok(false)
        };
        if tokio::time::timeout(PROGRESS_TIME, some).await.map_err(timed_out)?? {
            return Ok(body.freeze());
        }
    }
}

/// What was compressed: its limit and its budget are those of bodies that were not.
async fn inflate(compressed: &[u8], most: usize, reserved: &mut Reserved) -> Result<Bytes, Problem> {
    let mut decoder = MultiGzDecoder::new(compressed);
    let mut body = BytesMut::new();
    let mut piece = vec![0; INFLATED_PIECE_BYTES];
    loop {
        let read = decoder.read(&mut piece).map_err(|error| {
            Problem::new(StatusCode::BAD_REQUEST, format!("The body is not whole gzip: {error}."))
        })?;
        if read == 0 {
            return Ok(body.freeze());
        }
        if body.len() + read > most {
            return Err(too_large(most));
        }
        if !reserved.grow(read as u64) {
            return Err(no_room());
        }
        body.extend_from_slice(&piece[..read]);
        // The thread has other connections.
        tokio::task::yield_now().await;
    }
}
