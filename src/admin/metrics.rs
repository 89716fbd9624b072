//! `/metrics`: what the process and its destinations do, in the text format of Prometheus.
//!
//! ```text
//!   metrics (atomics), snapshots of the actors ──┐
//!   /proc ───────────────────────────────────────┼──▶ page
//!   readiness and queues: asked for now and then ┘
//! ```
//!
//! Written by ourselves: the format is three kinds of lines, and what is shown is not kept in a library's
//! registry but read from the actors. Labels are ids and words of our own; never a name, a URL or a content.

mod families;
mod measure;
mod page;
mod process;

use std::fmt::Display;
use std::sync::Arc;

use actix_web::http::StatusCode;
use actix_web::http::header::WWW_AUTHENTICATE;
use actix_web::{HttpRequest, HttpResponse, get, web};

use self::families::*;
pub use self::families::{FAMILIES, Family};
pub use self::measure::Measure;
use self::measure::Measured;
use self::page::Page;
use super::api::{Problem, is_operator};
use super::{IsOpen, State};
use crate::actors::db::DbSnapshot;
use crate::actors::metrics::{ATTEMPTS as OUTCOMES, Figures, RESULTS, Reading, dropped_log_lines};
use crate::actors::retention::RetentionSnapshot;
use crate::actors::supervision::{Part, Supervision};
use crate::actors::supervisor::SupervisorSnapshot;
use crate::actors::{Dispatcher, db, supervisor};
use crate::model::DestinationId;
use crate::policy::health::Standing;
use crate::store::{faults, retention};
use crate::{VERSION, outbound};

/// Label of the sum of the destinations that have no series of their own.
const OTHER: &str = "other";

#[get("/metrics")]
pub(super) async fn metrics(
    request: HttpRequest,
    state: web::Data<State>,
    measure: web::Data<Measure>,
    is_open: web::Data<IsOpen>,
) -> Result<HttpResponse, Problem> {
    if !is_open.0 && !is_operator(&state, &request)? {
        let detail = "This listener is not on loopback: send the admin token, or give metrics a listener of \
                      their own (POSTHASTE_METRICS_LISTEN).";
        return Err(Problem::new(StatusCode::UNAUTHORIZED, detail).with(WWW_AUTHENTICATE, "Bearer"));
    }
    let mut page = Page::default();
    page.value(&BUILD_INFO, &format!("version=\"{VERSION}\""), 1);
    page.value(&LOG_LINES_DROPPED, "", dropped_log_lines());
    match state.get() {
        Ok(dispatcher) => {
            let troubles = state.troubles.look(dispatcher.pool.clone()).await.len();
            running(&mut page, &dispatcher, measure.into_inner(), troubles).await;
        }
        Err(_) => {
            page.value(&READY, "", 0);
            page.value(&PROBLEMS, "", 1);
        }
    }
    process::write(&mut page);
    let mut response = HttpResponse::Ok();
    Ok(response.content_type("text/plain; version=0.0.4; charset=utf-8").body(page.into_text()))
}

async fn running(page: &mut Page, dispatcher: &Dispatcher, measure: Arc<Measure>, troubles: usize) {
    let reading = dispatcher.shared.metrics.read();
    let measured = measure.look(dispatcher, &reading).await;
    // An actor that does not answer is told by the readiness; what it would have said is left out.
    let supervisor = dispatcher.supervisor.send(supervisor::Snapshot).await.ok();
    let db = dispatcher.db.send(db::Snapshot).await.ok();
    readiness(page, &measured, troubles, supervisor.as_ref(), &dispatcher.shared.supervision);
    requests(page, dispatcher, &reading.all);
    if let Some(db) = &db {
        database(page, dispatcher, db);
    }
    if dispatcher.retention.is_some() {
        retention(page, &dispatcher.retention());
    }
    destinations(page, &reading, &measured);
}

fn readiness(
    page: &mut Page,
    measured: &Measured,
    troubles: usize,
    supervisor: Option<&SupervisorSnapshot>,
    supervision: &Supervision,
) {
    let readiness = &measured.readiness;
    page.value(&READY, "", u8::from(readiness.problems.is_empty()));
    page.value(&PROBLEMS, "", readiness.problems.len());
    page.value(&WARNINGS, "", readiness.warnings.len() + troubles);
    page.value(&DATABASE_UP, "", u8::from(readiness.database_up));
    if let Some(supervisor) = supervisor {
        let listens = supervisor.loaded && supervisor.not_listening.is_none();
        page.value(&LISTENER_UP, "", u8::from(listens && !supervision.is_down(Part::Listener)));
        page.value(&DESTINATIONS, "", supervisor.destinations);
        page.value(&DESTINATIONS_LOCKED, "", supervisor.locked);
        page.value(&DESTINATION_PANICS, "", supervisor.panics);
    }
    page.values(&PANICS, Part::ALL.map(|part| (label("part", part.name()), supervision.panics(part))));
}

fn requests(page: &mut Page, dispatcher: &Dispatcher, all: &Figures) {
    let shared = &dispatcher.shared;
    page.values(
        &BREAKERS,
        Standing::NAMES.map(|(s, name)| (label("state", name), all.standings[s as usize])),
    );
    page.value(&IN_FLIGHT, "", shared.slots.held());
    page.value(&IN_FLIGHT_LIMIT, "", shared.config.max_in_flight);
    page.value(&CONNECTIONS, "", outbound::open_connections());
    let attempts = OUTCOMES.iter().zip(all.attempts);
    page.values(&ATTEMPTS, attempts.map(|(name, n)| (label("outcome", name), n)));
    page.histograms(&ATTEMPT_DURATION, [("", &all.durations)]);
    page.value(&RETRIES, "", all.retries);
}

fn database(page: &mut Page, dispatcher: &Dispatcher, db: &DbSnapshot) {
    page.values(&DELIVERIES, RESULTS.iter().zip(db.results).map(|(name, n)| (label("result", name), n)));
    page.value(&EVENT_BYTES, "", db.bytes_held);
    page.value(&EVENT_BYTES_LIMIT, "", dispatcher.shared.config.max_bytes_in_flight);
    page.value(&CLAIMS_WAITING, "", db.claims_waiting);
    page.value(&RESULTS_WAITING, "", db.results_waiting);
    page.values(
        &FAULTS,
        faults::Kind::ALL.map(|kind| (label("kind", kind.name()), db.faults[kind as usize])),
    );
    page.value(&CLAIMED, "", db.claimed);
    page.histograms(&CLAIM_DURATION, [("", &db.claims)]);
    page.value(&RECORDED, "", db.recorded);
    page.histograms(&RECORD_DURATION, [("", &db.records)]);
}

fn retention(page: &mut Page, retention: &RetentionSnapshot) {
    let deleted =
        retention::Kind::ALL.map(|kind| (label("kind", kind.name()), retention.deleted[kind as usize]));
    page.values(&RETENTION_DELETED, deleted);
    page.histograms(&RETENTION_BATCH, [("", &retention.batches)]);
    page.value(&RETENTION_FAILURES, "", retention.failures);
    page.values(&RETENTION_LAST_PASS, retention.last_pass.map(|at| ("", at)));
}

/// The series of each destination. A family's lines stand together, so every family is a loop.
fn destinations(page: &mut Page, reading: &Reading, measured: &Measured) {
    page.value(&LEFT_OUT, "", reading.unlisted.len());
    page.values(&QUEUES_MEASURED, measured.at.map(|at| ("", at)));
    let mut all: Vec<(String, Option<DestinationId>, &Figures)> =
        reading.listed.iter().map(|(id, org, figures)| (labels(*id, *org), Some(*id), figures)).collect();
    if reading.rest.durations.count() > 0 || !reading.unlisted.is_empty() {
        all.push((format!("destination=\"{OTHER}\",organization=\"{OTHER}\""), None, &reading.rest));
    }
    let attempts = all.iter().flat_map(|(labels, _, figures)| {
        let outcomes = OUTCOMES.iter().zip(figures.attempts);
        outcomes.map(move |(name, n)| (format!("{labels},outcome=\"{name}\""), n))
    });
    page.values(&DESTINATION_ATTEMPTS, attempts);
    let durations = all.iter().map(|(labels, _, figures)| (labels.as_str(), &figures.durations));
    page.histograms(&DESTINATION_ATTEMPT_DURATION, durations);
    let in_flight = all.iter().map(|(labels, _, figures)| (labels, figures.in_flight));
    page.values(&DESTINATION_IN_FLIGHT, in_flight);
    // A sum of destinations has no breaker.
    let breakers = all.iter().filter(|(_, id, _)| id.is_some()).map(|(labels, _, figures)| {
        (labels, figures.standings.iter().position(|count| *count > 0).unwrap_or(0))
    });
    page.values(&DESTINATION_BREAKER, breakers);
    let depths = all.iter().filter_map(|(labels, id, _)| Some((labels, measured.depths.get(id)?)));
    page.values(&QUEUE_DEPTH, depths);
    let ages = all.iter().filter_map(|(labels, id, _)| Some((labels, measured.ages.get(id)?.as_secs_f64())));
    page.values(&OLDEST_PENDING, ages);
}

fn label(name: &str, value: &str) -> String {
    format!("{name}=\"{value}\"")
}

fn labels(destination: impl Display, organization: impl Display) -> String {
    format!("destination=\"{destination}\",organization=\"{organization}\"")
}
