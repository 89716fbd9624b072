//! The OpenAPI document: what is said once for all operations.

use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ContentBuilder, OpenApi as Document, RefOr, Response, ResponseBuilder};
use utoipa::{OpenApi, PartialSchema as _, ToSchema as _};

use super::problem::{CONTENT_TYPE, Problem};

/// How requests are authorized.
const BEARER: &str = "bearer";

/// Errors that any operation can answer with.
const ERRORS: [(&str, &str); 8] = [
    ("400", "The request is wrong; `errors` says where"),
    ("401", "Neither the admin token nor an API key"),
    ("403", "The role of the key, or the server's own in the database, does not allow it"),
    ("404", "There is no such thing, or it belongs to another organization"),
    ("405", "Not with this method"),
    (
        "429",
        "Too many wrong tokens from this address, or too many connections with this key; see `retry-after`",
    ),
    ("500", "The database refused; the log of the server says why"),
    ("503", "The database does not answer, or nobody can use this API yet"),
];
/// And those that take a body, too.
const BODY_ERRORS: [(&str, &str); 3] = [
    ("408", "The body did not arrive in time"),
    ("413", "The body is too large"),
    ("415", "The body is not JSON in UTF-8, or is compressed otherwise than by gzip"),
];

/// And those that change something.
const CHANGE_ERRORS: [(&str, &str); 1] = [("409", "What is there does not allow it")];

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Posthaste",
        description = "Webhooks from PostgreSQL.\n\nAll times are UTC. Lists have the newest first; \
            `next_cursor` of a page, as `cursor`, gives the next one. Errors are problem documents \
            (RFC 9457). Members that are not known are refused. HEAD is wherever GET is. Bodies are JSON in \
            UTF-8 and may be compressed (`content-encoding: gzip`).",
    ),
    servers((url = "/", description = "This server")),
    security(("bearer" = [])),
    tags(
        (name = "destinations", description = "Where deliveries go"),
        (name = "deliveries", description = "What became of an event at a destination"),
        (name = "events", description = "What happened"),
        (name = "jobs", description = "Replays and backfills"),
        (name = "keys", description = "API keys: the admin's to give"),
    )
)]
struct Outline;

/// The document without operations.
pub(super) fn outline() -> Document {
    Outline::openapi()
}

/// Adds what all operations have in common.
pub(super) fn complete(mut document: Document) -> Document {
    let components = document.components.get_or_insert_default();
    let mut schemas = vec![(Problem::name().into(), Problem::schema())];
    Problem::schemas(&mut schemas);
    components.schemas.extend(schemas);
    let token = HttpBuilder::new().scheme(HttpAuthScheme::Bearer);
    let token = token.description(Some("The admin token (`POSTHASTE_ADMIN_TOKEN`) or an API key"));
    components.security_schemes.insert(BEARER.into(), SecurityScheme::Http(token.build()).into());
    for item in document.paths.paths.values_mut() {
        item.get.iter_mut().for_each(|operation| add_errors(operation, &ERRORS));
        for operation in [&mut item.post, &mut item.patch, &mut item.delete].into_iter().flatten() {
            add_errors(operation, &ERRORS);
            add_errors(operation, &CHANGE_ERRORS);
            if operation.request_body.is_some() {
                add_errors(operation, &BODY_ERRORS);
            }
        }
    }
    document
}

fn add_errors(operation: &mut Operation, errors: &[(&str, &str)]) {
    for (status, description) in errors {
        let responses = &mut operation.responses.responses;
        responses.entry((*status).into()).or_insert_with(|| RefOr::T(problem(description)));
    }
}

/// An answer that is a problem document.
fn problem(description: &str) -> Response {
    let schema = utoipa::openapi::Ref::from_schema_name(Problem::name());
    let content = ContentBuilder::new().schema(Some(schema)).build();
    ResponseBuilder::new().description(description).content(CONTENT_TYPE, content).build()
}

/// The methods that are possible at `path`, as `allow` lists them; `None`: there is no such path.
pub(super) fn methods(document: &Document, path: &str) -> Option<String> {
    let segments: Vec<&str> = path.split('/').collect();
    let parameters = |template: &str| template.matches('{').count();
    let fits = |template: &str| {
        let mut pairs = template.split('/').zip(&segments);
        template.split('/').count() == segments.len()
            && pairs.all(|(part, segment)| part.starts_with('{') || part == *segment)
    };
    let fitting = document.paths.paths.iter().filter(|(template, _)| fits(template));
    // What is spelled out goes before what is a parameter.
    let (_, item) = fitting.min_by_key(|(template, _)| parameters(template))?;
    let all = [("GET", &item.get), ("POST", &item.post), ("PATCH", &item.patch), ("DELETE", &item.delete)];
    let possible = all.into_iter().filter(|(_, operation)| operation.is_some());
    let names = possible.map(|(name, _)| if name == "GET" { "GET, HEAD" } else { name });
    Some(names.collect::<Vec<_>>().join(", "))
}
