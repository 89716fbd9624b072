//! Events: posted, listed, one with its deliveries.

use actix_web::http::StatusCode;
use actix_web::{get, post, web};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_actix_web::service_config::ServiceConfig;

use super::access::Org;
use super::input::{Body, EventsBody, Id, OnePath, OrgPath, Query};
use super::problem::Problem;
use super::{Answer, json, ok};
use crate::admin::State;
use crate::manage::events::{self, DetailView, Receipt, Sent, View};
use crate::manage::{List, Principal};
use crate::model::EventId;

pub(super) fn configure(config: &mut ServiceConfig) {
    config.service(list).service(send).service(one);
}

/// One event, or up to 1,000 of them.
#[derive(ToSchema)]
#[schema(as = Events)]
#[serde(untagged)]
#[allow(dead_code, reason = "describes what manage::events::read reads")]
enum OneOrMore {
    One(Sent),
    More(More),
}

/// All of them are written, or none.
#[derive(ToSchema)]
#[schema(as = NewEvents, min_items = 1, max_items = 1_000)]
#[allow(dead_code, reason = "describes what manage::events::read reads")]
struct More(Vec<Sent>);

/// What was written.
#[derive(Serialize, ToSchema)]
#[schema(as = Receipts)]
struct Receipts {
    /// In the order of the request.
    items: Vec<Receipt>,
}

/// Send events
///
/// One, or an array of up to 1,000: all of them are written, by one statement, or none. Who repeats an id
/// with the same contents gets the same answer, and nothing is written twice; with other contents, and where
/// anybody else has used it, it is refused. So is an event larger than `POSTHASTE_MAX_EVENT_BYTES` of JSON as
/// PostgreSQL prints it, as it could not be delivered.
#[utoipa::path(tag = "events", operation_id = "send_events", params(OrgPath),
    request_body = inline(OneOrMore),
    responses((status = 201, description = "They are written, now or before", body = Receipts)))]
#[post("/events")]
async fn send(state: web::Data<State>, org: Org, body: EventsBody) -> Answer {
    // A large body takes a while, in which this thread has others to answer.
    let Body { bytes, reserved } = body.0;
    let read = web::block(move || events::read(&bytes)).await;
    let sent = read.map_err(|_| Problem::later("The server is stopping."))??;
    let most = state.get().map_err(Problem::later)?.shared.config.max_event_bytes;
    let items = events::send(&mut *state.acquire(org.0).await?, org.0, sent, most).await?;
    // What was read of it was held until now.
    drop(reserved);
    json(StatusCode::CREATED, &Receipts { items })
}

/// List events
///
/// The newest first.
#[utoipa::path(tag = "events", operation_id = "list_events", params(OrgPath, events::Query),
    responses((status = 200, description = "A page of them", body = List<View>)))]
#[get("/events")]
async fn list(state: web::Data<State>, org: Org, query: Query<events::Query>) -> Answer {
    ok(&events::list(&mut *state.acquire(org.0).await?, org.0, &query.0).await?)
}

/// Show an event
///
/// With its deliveries. Where the event is larger than `POSTHASTE_MAX_EVENT_BYTES`, its payload is null.
#[utoipa::path(tag = "events", operation_id = "get_event", params(OnePath),
    responses((status = 200, description = "The event", body = DetailView)))]
#[get("/events/{id}")]
async fn one(state: web::Data<State>, org: Org, principal: Principal, id: Id) -> Answer {
    let most = state.get().map_err(Problem::later)?.shared.config.max_event_bytes;
    ok(&events::one(&mut *state.acquire(org.0).await?, org.0, principal, EventId(id.0), most).await?)
}
