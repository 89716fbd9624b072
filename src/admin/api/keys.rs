//! API keys: the admin's to give and to take.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, delete, get, post, web};
use utoipa_actix_web::service_config::ServiceConfig;

use super::input::{Id, Json, KeyPath, Query};
use super::{Answer, json, ok};
use crate::admin::State;
use crate::admin::limits::NOBODY;
use crate::manage::List;
use crate::manage::keys::{self, CreatedView, New, View};
use crate::model::KeyId;

pub(super) fn configure(config: &mut ServiceConfig) {
    config.service(list).service(create).service(revoke);
}

/// List API keys
///
/// The newest first; also those that have been revoked.
#[utoipa::path(tag = "keys", operation_id = "list_keys", params(keys::Query),
    responses((status = 200, description = "A page of them", body = List<View>)))]
#[get("")]
async fn list(state: web::Data<State>, query: Query<keys::Query>) -> Answer {
    ok(&keys::list(&mut *state.acquire(NOBODY).await?, &query.0).await?)
}

/// Create an API key
///
/// For one organization and one role. The key itself is shown in this answer only.
#[utoipa::path(tag = "keys", operation_id = "create_key", request_body = New,
    responses((status = 201, description = "Created", body = CreatedView)))]
#[post("")]
async fn create(state: web::Data<State>, new: Json<New>) -> Answer {
    let created = keys::create(&mut *state.acquire(NOBODY).await?, new.0).await?;
    state.keys.add(&created);
    json(StatusCode::CREATED, &created)
}

/// Revoke an API key
///
/// It can be used no more, from now on. It stays in the list.
#[utoipa::path(tag = "keys", operation_id = "revoke_key", params(KeyPath),
    responses((status = 204, description = "Revoked, now or before")))]
#[delete("/{id}")]
async fn revoke(state: web::Data<State>, id: Id) -> Answer {
    keys::revoke(&mut *state.acquire(NOBODY).await?, None, KeyId(id.0)).await?;
    Ok(HttpResponse::NoContent().finish())
}
