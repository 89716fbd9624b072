//! The HTTP API: `/api/v1`, its document at `/api/openapi.json`, which is made from this code, and a browser
//! of it at `/api/docs`. Handlers say what they take and what they answer; everything else is
//! [`crate::manage`]'s.

mod access;
mod deliveries;
mod destinations;
mod document;
mod events;
mod input;
mod jobs;
mod keys;
mod problem;

use actix_web::http::StatusCode;
use actix_web::http::header::{ALLOW, CACHE_CONTROL, LOCATION};
use actix_web::middleware::{DefaultHeaders, from_fn};
use actix_web::{App, HttpRequest, HttpResponse, web};
use serde::Serialize;
use utoipa::openapi::OpenApi;
use utoipa_actix_web::service_config::ServiceConfig;
use utoipa_actix_web::{AppExt as _, scope};
use utoipa_swagger_ui::{Config, SwaggerUi};

use self::problem::Problem;
use super::State;
use crate::store::{self, Pooled};

/// What a handler returns.
type Answer = Result<HttpResponse, Problem>;

/// Where the document is.
const DOCUMENT: &str = "/api/openapi.json";
/// Where its browser is.
const DOCS: &str = "/api/docs/";

/// Adds the API to a server.
pub(super) fn configure(config: &mut web::ServiceConfig) {
    let document = web::Data::new(document());
    let browser =
        Config::from(DOCUMENT).validator_url("none").doc_expansion("list").default_models_expand_depth(-1);
    config
        .app_data(document)
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

async fn show(document: web::Data<OpenApi>) -> HttpResponse {
    HttpResponse::Ok().json(document.as_ref())
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

impl State {
    /// A connection for one request.
    async fn acquire(&self) -> Result<Pooled, Problem> {
        let pool = self.pool().map_err(Problem::later)?;
        match store::acquire(&pool).await {
            Ok(conn) => Ok(conn),
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
