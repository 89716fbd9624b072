//! What every request passes on its way in, and every answer on its way out.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use actix_http::header::{
    CONTENT_SECURITY_POLICY, HeaderValue, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::{Method, StatusCode, Uri};
use actix_web::middleware::Next;
use actix_web::{Error, HttpMessage as _, HttpResponse, ResponseError as _, web};
use bytes::Bytes;
use futures_util::FutureExt as _;

use super::limits::{NOBODY, Reserved};
use super::server::{BusyGuard, ConnectionSlot, Kind};
use super::{State, api};
use crate::actors::supervision::Part;

/// Answers up to this size are not counted: what waits to be sent of any answer is no more.
const UNCOUNTED_BYTES: usize = 16 * 1024;
/// Larger answers are handed on in pieces of this size.
const PIECE_BYTES: usize = 16 * 1024;

/// The browser of the API's document loads nothing but its own files. Its style sheets hold images, and it
/// sets styles itself.
const DOCS_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
    img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// Everything else is no page.
pub(super) const POLICY: &str = "default-src 'none'; frame-ancestors 'none'";

/// HEAD is everywhere where GET is: it is answered alike, and the connection leaves the body out. A slash at
/// the end of a path changes nothing.
pub(super) async fn spelling(
    mut request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    if request.method() == Method::HEAD {
        request.head_mut().method = Method::GET;
    }
    if let Some(uri) = without_slash(request.uri()) {
        request.match_info_mut().get_mut().update(&uri);
        request.head_mut().uri = uri;
    }
    next.call(request).await
}

/// `uri` without slashes at the end of its path, unless there are none, or a page stands there.
fn without_slash(uri: &Uri) -> Option<Uri> {
    let path = uri.path();
    let bare = path.trim_end_matches('/');
    if bare == path || bare.is_empty() || path.starts_with(api::DOCS) {
        return None;
    }
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(format!("{bare}{query}").parse().ok()?);
    Uri::from_parts(parts).ok()
}

/// Tells browsers to take answers for what they are, and not to show them inside of other sites.
pub(super) async fn security_headers(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let policy = if request.path().starts_with(api::DOCS) { DOCS_POLICY } else { POLICY };
    let (request, answer) = next.call(request).await?.into_parts();
    Ok(ServiceResponse::new(request, with_security_headers(answer, policy)))
}

/// The same for one answer.
pub(super) fn with_security_headers<B>(mut answer: HttpResponse<B>, policy: &'static str) -> HttpResponse<B> {
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, policy),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
    ] {
        answer.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    answer
}

/// A handler that panics costs its own request and nothing else: its connection goes on.
pub(super) async fn contain_panics(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let state = request.app_data::<web::Data<State>>().cloned();
    let answer = AssertUnwindSafe(async { next.call(request).await }).catch_unwind().await;
    answer.unwrap_or_else(|_| {
        if let Some(state) = state {
            state.supervision.note_panic(Part::HttpRequest);
        }
        log::error!("the handler of an HTTP request panicked, which is a fault of this program");
        let detail = "The server could not answer this, which is a fault of its own; its log says more.";
        Err(api::Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail).into())
    })
}

/// Lets a request pass if there is a place for it, and an answer if there is room for it.
pub(super) async fn admission(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let kind = match request.path() {
        "/healthz" => Kind::Liveness,
        "/readyz" | "/metrics" => Kind::Operations,
        _ => Kind::Api,
    };
    let state = request.app_data::<web::Data<State>>().cloned();
    let place = request.request().conn_data::<Rc<ConnectionSlot>>().cloned();
    let client = state.as_ref().and_then(|state| state.address(request.request()));
    let begun = place.as_ref().zip(client).map(|(place, client)| place.begin(kind, client));
    let busy = match begun {
        Some(None) => {
            let full = api::Problem::later("Too many requests are under way: try again later.");
            return Ok(request.error_response(full));
        }
        Some(busy) => busy,
        None => None,
    };
    let is_public = kind == Kind::Api && !request.path().starts_with(api::ROOT);
    // What readiness and metrics wait for is the same for all.
    let waits = place.filter(|_| kind == Kind::Operations).map(|place| place.wait());
    let answer = next.call(request).await?;
    drop(waits);
    let org = answer.request().extensions().get::<api::Org>().map_or(NOBODY, |org| org.0);
    let (request, response) = answer.into_parts();
    let (response, body) = response.into_parts();
    let body = match body.try_into_bytes() {
        Ok(bytes) if bytes.len() > UNCOUNTED_BYTES => bytes,
        Ok(bytes) => {
            let body = MeteredBody { bytes, reserved: None, busy };
            return Ok(ServiceResponse::new(request, response.set_body(BoxBody::new(body))));
        }
        // None of our handlers makes such a one.
        Err(body) => return Ok(ServiceResponse::new(request, response.set_body(BoxBody::new(body)))),
    };
    let mut reserved = state.map(|state| match is_public {
        true => state.public_budget.open(NOBODY),
        false => state.budget.open(org),
    });
    if reserved.as_mut().is_some_and(|reserved| !reserved.grow(body.len() as u64)) {
        drop(body);
        let full =
            api::Problem::later("Too many answers wait to be taken: try again later.").error_response();
        return Ok(ServiceResponse::new(request, full));
    }
    let body = MeteredBody { bytes: body, reserved, busy };
    Ok(ServiceResponse::new(request, response.set_body(BoxBody::new(body))))
}

/// An answer that is handed on piece by piece, and counts until it is.
struct MeteredBody {
    bytes: Bytes,
    reserved: Option<Reserved>,
    busy: Option<BusyGuard>,
}

impl MessageBody for MeteredBody {
    type Error = Infallible;

    fn size(&self) -> BodySize {
        BodySize::Sized(self.bytes.len() as u64)
    }

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        let piece = self.bytes.len().min(PIECE_BYTES);
        if piece == 0 {
            (self.reserved, self.busy) = (None, None);
            return Poll::Ready(None);
        }
        Poll::Ready(Some(Ok(self.bytes.split_to(piece))))
    }
}
