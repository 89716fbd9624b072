//! Jobs: replays and backfills, begun for a destination, looked at and cancelled.

use actix_web::http::StatusCode;
use actix_web::{get, post, web};
use utoipa_actix_web::service_config::ServiceConfig;

use super::access::Org;
use super::input::{Id, MaybeJson, Nothing, OnePath, OrgPath, Query};
use super::{Answer, json, ok};
use crate::admin::State;
use crate::manage::List;
use crate::manage::jobs::{self, Backfill, Begun, COUNTING, CountView, Replay, View};
use crate::model::{DestinationId, JobId};

pub(super) fn configure(config: &mut ServiceConfig) {
    config.service(replay).service(backfill).service(list).service(one).service(cancel);
}

/// Replay deliveries of a destination
///
/// Those that are dead, or as chosen, are queued again, by a job that lets live deliveries pass and goes on
/// after a crash where it was. A dry run counts them.
#[utoipa::path(tag = "destinations", operation_id = "replay", params(OnePath),
    request_body(content = Option<Replay>, description = "Without a body: everything that is dead"),
    responses((status = 202, description = "The job", body = View),
        (status = 200, description = "What a dry run counted", body = CountView)))]
#[post("/destinations/{id}/replay")]
async fn replay(state: web::Data<State>, org: Org, id: Id, asked: MaybeJson<Replay>) -> Answer {
    let mut conn = state.acquire(org.0).await?;
    begun(jobs::replay(&mut conn, org.0, DestinationId(id.0), &asked.0, COUNTING).await?)
}

/// Backfill a destination
///
/// Creates the deliveries of past events that it would have got, and none twice: events from before it
/// existed, or was disabled. A dry run counts them.
#[utoipa::path(tag = "destinations", operation_id = "backfill", params(OnePath), request_body = Backfill,
    responses((status = 202, description = "The job", body = View),
        (status = 200, description = "What a dry run counted", body = CountView)))]
#[post("/destinations/{id}/backfill")]
async fn backfill(state: web::Data<State>, org: Org, id: Id, asked: MaybeJson<Backfill>) -> Answer {
    let mut conn = state.acquire(org.0).await?;
    begun(jobs::backfill(&mut conn, org.0, DestinationId(id.0), &asked.0, COUNTING).await?)
}

fn begun(begun: Begun) -> Answer {
    match begun {
        Begun::Job(job) => json(StatusCode::ACCEPTED, &job),
        Begun::Count(count) => ok(&count),
    }
}

/// List jobs
///
/// The newest first.
#[utoipa::path(tag = "jobs", operation_id = "list_jobs", params(OrgPath, jobs::Query),
    responses((status = 200, description = "A page of them", body = List<View>)))]
#[get("/jobs")]
async fn list(state: web::Data<State>, org: Org, query: Query<jobs::Query>) -> Answer {
    ok(&jobs::list(&mut *state.acquire(org.0).await?, org.0, &query.0).await?)
}

/// Show a job
///
/// How far it is.
#[utoipa::path(tag = "jobs", operation_id = "get_job", params(OnePath),
    responses((status = 200, description = "The job", body = View)))]
#[get("/jobs/{id}")]
async fn one(state: web::Data<State>, org: Org, id: Id) -> Answer {
    ok(&jobs::one(&mut *state.acquire(org.0).await?, org.0, JobId(id.0)).await?)
}

/// Cancel a job
///
/// What it has queued stays queued.
#[utoipa::path(tag = "jobs", operation_id = "cancel_job", params(OnePath),
    responses((status = 200, description = "Cancelled", body = View)))]
#[post("/jobs/{id}/cancel")]
async fn cancel(state: web::Data<State>, org: Org, id: Id, _: MaybeJson<Nothing>) -> Answer {
    ok(&jobs::cancel(&mut *state.acquire(org.0).await?, org.0, JobId(id.0)).await?)
}
