//! What is answered when something was not done: problem documents (RFC 9457).

use std::fmt;

use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderName};
use actix_web::{HttpResponse, HttpResponseBuilder, ResponseError};
use serde::Serialize;
use utoipa::ToSchema;

use crate::manage::{Fault, FieldFault};
use crate::store::StoreError;

/// Media type of a problem document.
pub(super) const CONTENT_TYPE: &str = "application/problem+json";

/// Why a request was not carried out (RFC 9457). Nothing was done; after a 503 that is not certain, and what
/// has an id can be repeated.
#[derive(Debug, Serialize, ToSchema)]
pub struct Problem {
    /// Always `about:blank`: the status says what kind of problem it is.
    #[serde(rename = "type")]
    #[schema(format = "uri-reference", example = "about:blank")]
    kind: &'static str,
    /// The kind of problem, in words.
    #[schema(example = "Bad Request")]
    title: &'static str,
    /// HTTP status.
    #[schema(minimum = 400, maximum = 599, example = 400)]
    status: u16,
    /// What is wrong, and what to do.
    #[schema(example = "The request is wrong in 1 place.")]
    detail: String,
    /// What is wrong with which part of the request.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<FieldFault>,
    #[serde(skip)]
    header: Option<Box<(HeaderName, String)>>,
}

impl Problem {
    /// A problem of this status.
    pub(in crate::admin) fn new(status: StatusCode, detail: impl Into<String>) -> Problem {
        Problem {
            kind: "about:blank",
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            detail: detail.into(),
            errors: Vec::new(),
            header: None,
        }
    }

    /// One with a header that goes with its status.
    pub(in crate::admin) fn with(mut self, name: HeaderName, value: impl Into<String>) -> Problem {
        self.header = Some(Box::new((name, value.into())));
        self
    }

    /// Something that is there later.
    pub(in crate::admin) fn later(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).with(header::RETRY_AFTER, "1")
    }

    /// A part of the request that is wrong.
    pub(super) fn invalid(field: &str, detail: &str) -> Problem {
        Fault::Invalid(vec![FieldFault { field: field.into(), detail: detail.into() }]).into()
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponseBuilder::new(self.status_code());
        response.content_type(CONTENT_TYPE).insert_header((header::CACHE_CONTROL, "no-store"));
        if let Some((name, value)) = self.header.as_deref() {
            response.insert_header((name.clone(), value.as_str()));
        }
        response.body(serde_json::to_string(self).unwrap_or_default())
    }
}

impl From<Fault> for Problem {
    fn from(fault: Fault) -> Problem {
        match fault {
            Fault::Invalid(errors) => {
                let places =
                    if errors.len() == 1 { "1 place".into() } else { format!("{} places", errors.len()) };
                let detail = format!("The request is wrong in {places}.");
                Problem { errors, ..Problem::new(StatusCode::BAD_REQUEST, detail) }
            }
            Fault::NotFound(what) => Problem::new(StatusCode::NOT_FOUND, format!("There is no {what}.")),
            Fault::Conflict(why) => Problem::new(StatusCode::CONFLICT, why),
            Fault::Stale => {
                let detail = "It was changed since it was read: read it again.";
                Problem::new(StatusCode::PRECONDITION_FAILED, detail)
            }
            Fault::Store(error) => error.into(),
        }
    }
}

/// The cause is for the log: what the database says is not for everybody.
impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Problem {
        if error.is_about_locks() {
            return Problem::later("Somebody else is changing this at the moment: try again.");
        }
        log::error!("the API could not use the database: {error}");
        if error.is_about_rights() {
            let detail = "The server's role in the database may not do this: examples/deploy has the rights \
                          that it takes (grants.sql, and grants-management.sql for what changes something).";
            return Problem::new(StatusCode::FORBIDDEN, detail);
        }
        if !error.is_about_the_moment() {
            let detail = "The database refused a statement; the log of the server says why.";
            return Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail);
        }
        Problem::later("The database does not answer: try again later.")
    }
}
