//! Destinations: created, shown, changed, deleted; switched on and off; tried out.

use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::http::header::{ETAG, IF_MATCH, LOCATION};
use actix_web::{HttpRequest, HttpResponse, delete, get, patch, post, web};
use utoipa::openapi::schema::{AllOfBuilder, ObjectBuilder, Schema};
use utoipa::openapi::{Ref, RefOr};
use utoipa::{PartialSchema, ToSchema};
use utoipa_actix_web::service_config::ServiceConfig;

use super::access::Org;
use super::entity_tags;
use super::input::{Id, Json, MaybeJson, Nothing, OnePath, OrgPath, Query};
use super::problem::Problem;
use super::{Answer, ok};
use crate::actors::Shared;
use crate::admin::State;
use crate::manage::destinations::{
    self, Changes, CreatedView, DeletedView, Disable, EnabledView, Rotate, RotatedView, Setup, StatsView,
    TestView, UpdatedView, View,
};
use crate::manage::jobs::COUNTING;
use crate::manage::{List, Principal};
use crate::model::DestinationId;

/// How long a deletion may take before it has to be asked for again.
const DELETING: Duration = Duration::from_secs(5);

/// A destination as it is created: it needs a name and a URL.
struct NewDestination;

impl PartialSchema for NewDestination {
    fn schema() -> RefOr<Schema> {
        let needed = ObjectBuilder::new().required("name").required("url");
        let all = AllOfBuilder::new().item(Ref::from_schema_name(Changes::name())).item(needed);
        let example = serde_json::json!({"name": "audit", "url": "https://example.com/hook",
            "event_types": ["invoice.*"], "settings": {"ordered": true}});
        all.description(Some("A destination as it is created")).examples([example]).into()
    }
}

impl ToSchema for NewDestination {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((Changes::name().into(), Changes::schema()));
        Changes::schemas(schemas);
    }
}

pub(super) fn configure(config: &mut ServiceConfig) {
    config.service(list).service(create).service(one).service(update).service(delete);
    config.service(test).service(enable).service(disable).service(rotate).service(stats);
}

/// What destinations are checked against.
fn setup(shared: &Shared) -> Setup<'_> {
    let config = &shared.config;
    let max_destinations = config.operations.max_destinations;
    Setup { keys: &config.secret_keys, network: &shared.network, max_destinations }
}

/// A destination with its version as the entity tag.
fn tagged(status: StatusCode, view: &View, body: &impl serde::Serialize) -> HttpResponse {
    HttpResponse::build(status).insert_header((ETAG, format!("\"{}\"", view.version))).json(body)
}

/// List destinations
///
/// The newest first. A page may be shorter than asked for, where destinations are large. To keys that may
/// only read, `?…` stands for the query of a URL, here and elsewhere.
#[utoipa::path(tag = "destinations", operation_id = "list_destinations",
    params(OrgPath, destinations::Query),
    responses((status = 200, description = "A page of them", body = List<View>)))]
#[get("/destinations")]
async fn list(
    state: web::Data<State>,
    org: Org,
    principal: Principal,
    query: Query<destinations::Query>,
) -> Answer {
    ok(&destinations::list(&mut *state.acquire(org.0).await?, org.0, principal, &query.0).await?)
}

/// Create a destination
///
/// Without a signing secret one is made (Standard Webhooks, 32 random bytes), and shown in this answer only.
/// Keys may create destinations as long as their organization has fewer than `POSTHASTE_MAX_DESTINATIONS`.
#[utoipa::path(tag = "destinations", operation_id = "create_destination", params(OrgPath),
    request_body = NewDestination,
    responses((status = 201, description = "Created", body = CreatedView,
        headers(("location" = String, description = "Where it is"),
            ("etag" = String, description = "Its version")))))]
#[post("/destinations")]
async fn create(state: web::Data<State>, org: Org, principal: Principal, new: Json<Changes>) -> Answer {
    let shared = state.get().map_err(Problem::later)?.shared;
    let mut conn = state.acquire(org.0).await?;
    let created = destinations::create(&mut conn, org.0, principal, new.0, setup(&shared)).await?;
    let mut response = tagged(StatusCode::CREATED, &created.destination, &created);
    let place = format!("/api/v1/orgs/{}/destinations/{}", org.0, created.destination.id);
    if let Ok(place) = place.parse() {
        response.headers_mut().insert(LOCATION, place);
    }
    Ok(response)
}

/// Show a destination
///
/// Without its secrets.
#[utoipa::path(tag = "destinations", operation_id = "get_destination", params(OnePath),
    responses((status = 200, description = "The destination", body = View,
        headers(("etag" = String, description = "Its version")))))]
#[get("/destinations/{id}")]
async fn one(state: web::Data<State>, org: Org, principal: Principal, id: Id) -> Answer {
    let id = DestinationId(id.0);
    let view = destinations::one(&mut *state.acquire(org.0).await?, org.0, principal, id).await?;
    Ok(tagged(StatusCode::OK, &view, &view))
}

/// Change a destination
///
/// Members that are absent stay as they are; null ones go back to their defaults. With `If-Match`, only if
/// nobody else has changed it meanwhile. When a key gives another origin (scheme, host or port) in `url`, the
/// credentials must come with it, or they are dropped and `dropped` names them: nobody reads a secret by
/// sending it to a receiver of their own.
#[utoipa::path(tag = "destinations", operation_id = "update_destination", request_body = Changes,
    params(OnePath,
        ("if-match" = Option<String>, Header, description = "The `etag` that came with what was read. One of \
            several is enough, and a weak one (`W/`), which a compressing proxy made of ours, is as good")),
    responses((status = 200, description = "Changed", body = UpdatedView,
            headers(("etag" = String, description = "Its version"))),
        (status = 412, description = "It is not what `If-Match` takes it for", body = Problem,
            content_type = "application/problem+json")))]
#[patch("/destinations/{id}")]
async fn update(
    state: web::Data<State>,
    org: Org,
    principal: Principal,
    id: Id,
    request: HttpRequest,
    changes: Json<Changes>,
) -> Answer {
    let expected = entity_tags::of(request.headers(), IF_MATCH);
    let shared = state.get().map_err(Problem::later)?.shared;
    let mut conn = state.acquire(org.0).await?;
    let id = DestinationId(id.0);
    let expected = match expected {
        // Of several, the one that it has now, if that is among them.
        Some(tags) if tags.len() > 1 => {
            let now = destinations::one(&mut conn, org.0, principal, id).await?.version;
            tags.iter().find(|tag| **tag == now).or(tags.last()).cloned()
        }
        tags => tags.and_then(|tags| tags.into_iter().next()),
    };
    let (expected, setup) = (expected.as_deref(), setup(&shared));
    let updated = destinations::update(&mut conn, org.0, principal, id, changes.0, expected, setup).await?;
    Ok(tagged(StatusCode::OK, &updated.destination, &updated))
}

/// Delete a destination
///
/// With its deliveries; its events stay. It is disabled at once. If it has so many deliveries that deleting
/// them takes longer than a few seconds, the answer is 202, and the same request goes on.
#[utoipa::path(tag = "destinations", operation_id = "delete_destination", params(OnePath),
    responses((status = 204, description = "Deleted"),
        (status = 202, description = "Not all of it yet: ask again", body = DeletedView)))]
#[delete("/destinations/{id}")]
async fn delete(state: web::Data<State>, org: Org, id: Id) -> Answer {
    let mut conn = state.acquire(org.0).await?;
    let deleted = destinations::delete(&mut conn, org.0, DestinationId(id.0), DELETING).await?;
    match deleted.deleted {
        true => Ok(HttpResponse::NoContent().finish()),
        false => Ok(HttpResponse::Accepted().json(deleted)),
    }
}

/// Test a destination
///
/// Sends it a signed event of type `webhook.test` as a delivery is sent, whether it is enabled or not. The
/// event is not stored, and not tried again.
#[utoipa::path(tag = "destinations", operation_id = "test_destination", params(OnePath),
    responses((status = 200, description = "What came of it", body = TestView)))]
#[post("/destinations/{id}/test")]
async fn test(state: web::Data<State>, org: Org, id: Id, _: MaybeJson<Nothing>) -> Answer {
    let shared = state.get().map_err(Problem::later)?.shared;
    let busy = "Tests of other destinations are under way: try again later.";
    let _permit = state.tests.acquire(org.0).await.ok_or_else(|| Problem::later(busy))?;
    let mut conn = state.acquire(org.0).await?;
    let probe = destinations::prepare(&mut conn, org.0, DestinationId(id.0), setup(&shared)).await?;
    // No connection is held during a request.
    drop(conn);
    ok(&probe.run().await)
}

/// Enable a destination
///
/// Its deliveries go on, and the answer says how many events it has missed: a backfill queues them.
#[utoipa::path(tag = "destinations", operation_id = "enable_destination", params(OnePath),
    responses((status = 200, description = "Enabled", body = EnabledView)))]
#[post("/destinations/{id}/enable")]
async fn enable(
    state: web::Data<State>,
    org: Org,
    principal: Principal,
    id: Id,
    _: MaybeJson<Nothing>,
) -> Answer {
    let mut conn = state.acquire(org.0).await?;
    ok(&destinations::enable(&mut conn, org.0, principal, DestinationId(id.0), COUNTING).await?)
}

/// Disable a destination
///
/// Its deliveries stay and wait; events from now on are not queued for it.
#[utoipa::path(tag = "destinations", operation_id = "disable_destination", params(OnePath),
    request_body = Option<Disable>,
    responses((status = 200, description = "Disabled", body = View)))]
#[post("/destinations/{id}/disable")]
async fn disable(
    state: web::Data<State>,
    org: Org,
    principal: Principal,
    id: Id,
    asked: MaybeJson<Disable>,
) -> Answer {
    let mut conn = state.acquire(org.0).await?;
    ok(&destinations::disable(&mut conn, org.0, principal, DestinationId(id.0), asked.0).await?)
}

/// Rotate the signing secret
///
/// The new one is shown in this answer only. Until the overlap is over, the old one signs as well.
#[utoipa::path(tag = "destinations", operation_id = "rotate_secret", params(OnePath),
    request_body = Option<Rotate>,
    responses((status = 200, description = "Rotated", body = RotatedView)))]
#[post("/destinations/{id}/rotate-secret")]
async fn rotate(
    state: web::Data<State>,
    org: Org,
    principal: Principal,
    id: Id,
    asked: MaybeJson<Rotate>,
) -> Answer {
    let shared = state.get().map_err(Problem::later)?.shared;
    let mut conn = state.acquire(org.0).await?;
    let (id, setup) = (DestinationId(id.0), setup(&shared));
    ok(&destinations::rotate(&mut conn, org.0, principal, id, asked.0, setup).await?)
}

/// Show how a destination does
///
/// Deliveries by status (counted up to a limit), the success rate, latencies of this process, the oldest
/// delivery that waits, and what its breaker does.
#[utoipa::path(tag = "destinations", operation_id = "get_stats", params(OnePath),
    responses((status = 200, description = "Its figures", body = StatsView)))]
#[get("/destinations/{id}/stats")]
async fn stats(state: web::Data<State>, org: Org, principal: Principal, id: Id) -> Answer {
    let id = DestinationId(id.0);
    let figures = state.get().map_err(Problem::later)?.shared.metrics.of(id);
    let mut conn = state.acquire(org.0).await?;
    ok(&destinations::stats(&mut conn, org.0, principal, id, figures.as_ref()).await?)
}
