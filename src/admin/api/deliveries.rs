//! Deliveries: lists, one with its attempts, retries.

use actix_web::{get, post, web};
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_actix_web::service_config::ServiceConfig;
use uuid::Uuid;

use super::access::Org;
use super::input::{Id, Json, MaybeJson, Nothing, OnePath, OrgPath, Query};
use super::{Answer, ok};
use crate::admin::State;
use crate::manage::deliveries::{self, AttemptView, DetailView, MAX_RETRIED, RetriedView, View};
use crate::manage::{List, Principal};
use crate::model::DeliveryId;

pub(super) fn configure(config: &mut ServiceConfig) {
    config.service(list).service(retry_some);
    // With another method this is not the delivery whose id is "retry".
    config.route("/deliveries/retry", web::to(super::nothing));
    config.service(one).service(attempts).service(retry);
}

/// List deliveries
///
/// The newest first. A page may hold fewer rows than asked for, even none, and still name the next one.
#[utoipa::path(tag = "deliveries", operation_id = "list_deliveries", params(OrgPath, deliveries::Query),
    responses((status = 200, description = "A page of them", body = List<View>)))]
#[get("/deliveries")]
async fn list(
    state: web::Data<State>,
    org: Org,
    principal: Principal,
    query: Query<deliveries::Query>,
) -> Answer {
    let page = deliveries::list(&mut *state.acquire(org.0).await?, org.0, &query.0).await?;
    ok(&page.map(|delivery| delivery.shown_to(principal)))
}

/// Show a delivery
///
/// With its failed attempts, the oldest first.
#[utoipa::path(tag = "deliveries", operation_id = "get_delivery", params(OnePath),
    responses((status = 200, description = "The delivery", body = DetailView)))]
#[get("/deliveries/{id}")]
async fn one(state: web::Data<State>, org: Org, principal: Principal, id: Id) -> Answer {
    let delivery = deliveries::one(&mut *state.acquire(org.0).await?, org.0, DeliveryId(id.0)).await?;
    ok(&delivery.shown_to(principal))
}

/// List the failed attempts of a delivery
///
/// The oldest first; the latest of them, where there are many.
#[utoipa::path(tag = "deliveries", operation_id = "list_attempts", params(OnePath),
    responses((status = 200, description = "All of them", body = List<AttemptView>)))]
#[get("/deliveries/{id}/attempts")]
async fn attempts(state: web::Data<State>, org: Org, principal: Principal, id: Id) -> Answer {
    let delivery = deliveries::one(&mut *state.acquire(org.0).await?, org.0, DeliveryId(id.0)).await?;
    ok(&List { items: delivery.shown_to(principal).failed_attempts, next_cursor: None })
}

/// Retry a delivery
///
/// It is queued again as if it were new: pending, no attempts, due now.
#[utoipa::path(tag = "deliveries", operation_id = "retry_delivery", params(OnePath),
    responses((status = 200, description = "Queued again", body = DetailView)))]
#[post("/deliveries/{id}/retry")]
async fn retry(
    state: web::Data<State>,
    org: Org,
    principal: Principal,
    id: Id,
    _: MaybeJson<Nothing>,
) -> Answer {
    let delivery = deliveries::retry_one(&mut *state.acquire(org.0).await?, org.0, DeliveryId(id.0)).await?;
    ok(&delivery.shown_to(principal))
}

/// Which deliveries to retry.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"ids": ["0b1c6f0e-7a52-4c11-9d52-0c8b9c1d2e3f"]}))]
struct Selection {
    /// Their ids.
    #[schema(min_items = 1, max_items = 1_000)]
    ids: Vec<Uuid>,
}

const _: () = assert!(MAX_RETRIED == 1_000);

/// Retry a selection of deliveries
///
/// All of them, or none if one is not known. To retry all dead ones of a destination, replay them.
#[utoipa::path(tag = "deliveries", operation_id = "retry_deliveries", params(OrgPath),
    request_body = Selection,
    responses((status = 200, description = "What was queued again", body = RetriedView)))]
#[post("/deliveries/retry")]
async fn retry_some(state: web::Data<State>, org: Org, selection: Json<Selection>) -> Answer {
    let ids: Vec<DeliveryId> = selection.0.ids.into_iter().map(DeliveryId).collect();
    ok(&deliveries::retry(&mut *state.acquire(org.0).await?, org.0, &ids).await?)
}
