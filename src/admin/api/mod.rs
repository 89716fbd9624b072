//! The HTTP API: `/api/v1`, its document at `/api/openapi.json`, which is made from this code, and a browser
//! of it at `/api/docs`. Handlers say what they take and what they answer; everything else is
//! [`crate::manage`]'s.

mod access;
mod deliveries;
mod destinations;
mod document;
mod entity_tags;
mod events;
mod input;
mod jobs;
mod keys;
mod problem;

use std::ops::{Deref, DerefMut};

use actix_web::http::StatusCode;
use actix_web::http::header::{ALLOW, CACHE_CONTROL, ContentType, LOCATION};
use actix_web::middleware::{DefaultHeaders, from_fn};
use actix_web::{App, HttpRequest, HttpResponse, web};
use bytes::Bytes;
use serde::Serialize;
use utoipa::openapi::OpenApi;
use utoipa_actix_web::service_config::ServiceConfig;
use utoipa_actix_web::{AppExt as _, scope};
use utoipa_swagger_ui::{Config, SwaggerUi};

pub use self::access::FailedTokens;
pub(super) use self::access::{Org, is_operator};
pub(super) use self::problem::Problem;
use super::State;
use super::limits::{FairPermit, NOBODY};
use crate::clock;
use crate::model::OrgId;
use crate::store::{self, Connection, Pooled};

/// What a handler returns.
type Answer = Result<HttpResponse, Problem>;

/// What is answered to those who say who they are begins with.
pub(super) const ROOT: &str = "/api/v1/";
/// Where the document is.
const DOCUMENT: &str = "/api/openapi.json";
/// Where its browser is.
pub(super) const DOCS: &str = "/api/docs/";

/// Adds the API to a server.
pub(super) fn configure(config: &mut web::ServiceConfig) {
    let document = document();
    // Made once: it is the same for everybody.
    let json = Bytes::from(serde_json::to_vec(&document).unwrap_or_default());
    let document = web::Data::new(document);
    let browser =
        Config::from(DOCUMENT).validator_url("none").doc_expansion("list").default_models_expand_depth(-1);
    config
        .app_data(document)
        .app_data(web::Data::new(DocumentJson(json)))
        .configure(|config| routes(&mut ServiceConfig::new(config)))
        .service(web::resource(DOCUMENT).route(web::get().to(show)))
        .service(web::resource(DOCS.trim_end_matches('/')).route(web::get().to(browse)))
        .service(SwaggerUi::new(format!("{DOCS}{{_:.*}}")).config(browser))
        .default_service(web::to(nothing));
}

/// The routes of the API, each behind one of the two gates of [`access`].
fn routes(config: &mut ServiceConfig) {
    let tenant = scope("/api/v1/orgs/{org_id}")
        .configure(destinations::configure)
        .configure(deliveries::configure)
        .configure(events::configure)
        .configure(jobs::configure)
        .default_service(web::to(nothing))
        .wrap(from_fn(access::tenant))
        .wrap(DefaultHeaders::new().add((CACHE_CONTROL, "no-store")));
    let admin = scope("/api/v1/keys")
        .configure(keys::configure)
        .default_service(web::to(nothing))
        .wrap(from_fn(access::admin))
        .wrap(DefaultHeaders::new().add((CACHE_CONTROL, "no-store")));
    config.service(tenant).service(admin);
}

/// The document, from the same routes that are served.
fn document() -> OpenApi {
    let (_, document) =
        App::new().into_utoipa_app().openapi(document::outline()).configure(routes).split_for_parts();
    document::complete(document)
}

/// The document as it is answered.
struct DocumentJson(Bytes);

async fn show(document: web::Data<DocumentJson>) -> HttpResponse {
    HttpResponse::Ok().content_type(ContentType::json()).body(document.0.clone())
}

async fn browse() -> HttpResponse {
    HttpResponse::PermanentRedirect().insert_header((LOCATION, DOCS)).finish()
}

/// No route has this path, or none with this method.
async fn nothing(request: HttpRequest, document: web::Data<OpenApi>) -> Answer {
    match document::methods(&document, request.path()) {
        Some(methods) => {
            let detail = format!("{} is not possible here, but {methods} is.", request.method());
            Err(Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail).with(ALLOW, methods))
        }
        None => Err(Problem::new(StatusCode::NOT_FOUND, "There is nothing here; /api/docs shows what is.")),
    }
}

/// A connection for one request, in its turn.
struct Statements {
    connection: Pooled,
    _permit: FairPermit,
}

impl Deref for Statements {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl DerefMut for Statements {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.connection
    }
}

impl State {
    /// Has the keys read that can be used, while nobody waits for it.
    pub(super) fn look_for_keys(&self) {
        let state = self.clone();
        actix_rt::spawn(async move {
            // Why the database does not answer is told where somebody needs it.
            state.keys.refresh(clock::now(), async || state.acquire(NOBODY).await).await.ok();
        });
    }

    /// A connection for a request of `org`.
    async fn acquire(&self, org: OrgId) -> Result<Statements, Problem> {
        let busy = "Too many requests wait for the database: try again later.";
        let permit = self.statements.acquire(org).await.ok_or_else(|| Problem::later(busy))?;
        let pool = self.pool().map_err(Problem::later)?;
        match store::acquire(&pool).await {
            Ok(connection) => Ok(Statements { connection, _permit: permit }),
            Err(error) => Err(store::cause(&pool, error).await.into()),
        }
    }
}

fn json(status: StatusCode, body: &impl Serialize) -> Answer {
    Ok(HttpResponse::build(status).json(body))
}

fn ok(body: &impl Serialize) -> Answer {
    json(StatusCode::OK, body)
}
