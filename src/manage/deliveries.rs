//! Deliveries: lists, one with its attempts, retry by hand.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::input::{Faults, Time, shown};
use super::{Fault, List, Principal, why};
use crate::model::{DbTime, DeliveryId, OrgId, Status};
use crate::store::Connection;
use crate::store::deliveries::list::{self, Detail, Filter, Listed, PastAttempt};
use crate::store::deliveries::standing::{self, Standing};
use crate::store::deliveries::{self};

/// What is known of deliveries that are open.
pub(super) type Standings = HashMap<DeliveryId, Standing>;

/// Deliveries that one retry by hand may name.
pub const MAX_RETRIED: usize = 1_000;

/// Which deliveries to list, as it was asked.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Query {
    /// Only those to this destination.
    #[param(value_type = Option<Uuid>)]
    pub destination: Option<String>,
    /// Only those in these statuses, separated by commas.
    #[param(
        pattern = "^(pending|failed|delivered|dead)(,(pending|failed|delivered|dead))*$",
        example = "dead"
    )]
    pub status: Option<String>,
    /// Only those of events of this type.
    #[param(min_length = 1, max_length = 100, example = "invoice.paid")]
    pub event_type: Option<String>,
    /// Queued at this time or later.
    #[param(value_type = Option<Time>)]
    pub from: Option<String>,
    /// Queued before this time.
    #[param(value_type = Option<Time>)]
    pub to: Option<String>,
    /// Rows of the page.
    #[param(value_type = Option<u32>, minimum = 1, maximum = 200)]
    pub limit: Option<String>,
    /// Where it starts.
    #[param(pattern = "^[A-Za-z0-9_-]{32}$")]
    pub cursor: Option<String>,
}

/// A delivery as it is shown.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Delivery)]
pub struct View {
    /// Its id.
    pub id: Uuid,
    /// The destination.
    pub destination_id: Uuid,
    /// The event.
    pub event_id: Uuid,
    /// The event's type.
    pub event_type: String,
    /// `pending`, `failed`, `delivered` or `dead`.
    pub status: Status,
    /// Charged attempts.
    pub attempts: i32,
    /// When it was queued.
    #[schema(format = DateTime)]
    pub created_at: String,
    /// The last attempt.
    #[schema(format = DateTime)]
    pub last_attempt_at: Option<String>,
    /// When it is tried again; null: it is not, or it is due already.
    #[schema(format = DateTime)]
    pub next_retry_at: Option<String>,
    /// When it was delivered.
    #[schema(format = DateTime)]
    pub delivered_at: Option<String>,
    /// HTTP status of the last attempt.
    pub response_status: Option<i32>,
    /// What went wrong with the last attempt.
    pub error_message: Option<String>,
    /// Where it is and, unless it is delivered, why, in a sentence.
    #[schema(example = "waits for retry 2 of 3 at 2026-01-31T12:00:00Z: the receiver answered 503")]
    pub reason: String,
}

/// A delivery with its failed attempts.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = DeliveryDetail)]
pub struct DetailView {
    /// The delivery. A successful attempt is told by it alone.
    #[serde(flatten)]
    pub delivery: View,
    /// The first 4 KiB of the last response.
    pub response_body: Option<String>,
    /// Failed attempts, the oldest first.
    pub failed_attempts: Vec<AttemptView>,
}

/// A failed attempt.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Attempt)]
pub struct AttemptView {
    /// 1-based, of those that count.
    pub attempt: i32,
    /// When it started.
    #[schema(format = DateTime)]
    pub started_at: String,
    /// How long it took.
    pub duration_ms: i32,
    /// HTTP status, if one came.
    pub response_status: Option<i32>,
    /// The first 4 KiB of the response.
    pub response_body: Option<String>,
    /// What went wrong.
    pub error_message: Option<String>,
    /// Whether it counts against the retries.
    pub charged: bool,
}

impl View {
    /// The same as `principal` may see it: a message may quote a URL.
    #[must_use]
    pub fn shown_to(self, principal: Principal) -> View {
        View {
            error_message: principal.optional_text(self.error_message),
            reason: principal.text(self.reason),
            ..self
        }
    }
}

impl DetailView {
    /// The same as `principal` may see it: a receiver may repeat the URL that it was asked for.
    #[must_use]
    pub fn shown_to(self, principal: Principal) -> DetailView {
        DetailView {
            delivery: self.delivery.shown_to(principal),
            response_body: principal.optional_text(self.response_body),
            failed_attempts: self.failed_attempts.into_iter().map(|one| one.shown_to(principal)).collect(),
        }
    }
}

impl AttemptView {
    fn shown_to(self, principal: Principal) -> AttemptView {
        AttemptView {
            response_body: principal.optional_text(self.response_body),
            error_message: principal.optional_text(self.error_message),
            ..self
        }
    }
}

/// What a retry by hand did.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Retried)]
pub struct RetriedView {
    /// Queued again.
    pub queued: Vec<Uuid>,
    /// Left as they are: they are being sent at this moment.
    pub in_flight: Vec<Uuid>,
}

/// A page of the deliveries of `org`, the newest first.
///
/// # Errors
/// [`Fault::Invalid`], [`Fault::Store`].
pub async fn list(db: &mut Connection, org: OrgId, query: &Query) -> Result<List<View>, Fault> {
    let mut faults = Faults::default();
    let (from, to) = faults.range(query.from.as_deref(), query.to.as_deref());
    let statuses = query.status.as_deref().unwrap_or_default();
    let statuses = statuses.split(',').filter(|_| query.status.is_some());
    let filter = Filter {
        org,
        destination: faults.destination("destination", query.destination.as_deref()),
        statuses: faults.statuses(statuses, &Status::ALL),
        event_type: faults.event_type(query.event_type.as_deref()),
        from,
        to,
    };
    let limit = faults.limit(query.limit.as_deref());
    let cursor = faults.cursor(query.cursor.as_deref());
    let (filter, limit, cursor) = faults.check((filter, limit, cursor))?;
    let page = list::list(db, &filter, cursor, limit).await?;
    let standings = standings(db, &page.items, false).await?;
    Ok(shown(page, |one| view(one, &standings)))
}

/// What is known of those deliveries that are open.
pub(super) async fn standings(
    db: &mut Connection,
    deliveries: &[Listed],
    counts_ahead: bool,
) -> Result<Standings, Fault> {
    let open = deliveries.iter().filter(|one| matches!(one.status, Status::Pending | Status::Failed));
    let open: Vec<DeliveryId> = open.map(|one| one.id).collect();
    match open.is_empty() {
        true => Ok(Standings::new()),
        false => Ok(standing::standing(db, &open, counts_ahead).await?),
    }
}

/// One delivery of `org`.
///
/// # Errors
/// [`Fault::NotFound`], [`Fault::Store`].
pub async fn one(db: &mut Connection, org: OrgId, id: DeliveryId) -> Result<DetailView, Fault> {
    let found = list::one(db, org, id).await?;
    let Detail { delivery, response_body, attempts } = found.ok_or_else(|| unknown(&[id]))?;
    let standings = standings(db, std::slice::from_ref(&delivery), true).await?;
    let failed_attempts = attempts.into_iter().map(attempt_view).collect();
    Ok(DetailView { delivery: view(delivery, &standings), response_body, failed_attempts })
}

/// Queues a delivery again, at once.
///
/// # Errors
/// [`Fault::NotFound`]; [`Fault::Conflict`] while it is being sent; [`Fault::Store`].
pub async fn retry_one(db: &mut Connection, org: OrgId, id: DeliveryId) -> Result<DetailView, Fault> {
    let retried = retry(db, org, &[id]).await?;
    match retried.in_flight.is_empty() {
        true => one(db, org, id).await,
        false => Err(Fault::Conflict(format!("the delivery {id} is being sent at this moment"))),
    }
}

/// Queues deliveries again, at once; all of them, or none if one is not known. What is being sent at this
/// moment is left as it is.
///
/// # Errors
/// [`Fault::NotFound`], [`Fault::Invalid`], [`Fault::Store`].
pub async fn retry(db: &mut Connection, org: OrgId, ids: &[DeliveryId]) -> Result<RetriedView, Fault> {
    let mut faults = Faults::default();
    if !(1..=MAX_RETRIED).contains(&ids.len()) {
        faults.add("ids", format!("must be 1 to {MAX_RETRIED}; a replay can do more"));
    }
    faults.check(())?;
    let retried = deliveries::retry(db, org, ids).await?;
    if !retried.unknown.is_empty() {
        return Err(unknown(&retried.unknown));
    }
    let ids = |ids: Vec<DeliveryId>| ids.into_iter().map(|id| id.0).collect();
    Ok(RetriedView { queued: ids(retried.queued), in_flight: ids(retried.in_flight) })
}

/// A delivery as it is shown.
pub(super) fn view(listed: Listed, standings: &Standings) -> View {
    let time = |time: Option<DbTime>| time.map(DbTime::iso);
    let standing = standings.get(&listed.id);
    let is_ahead = |at: &DbTime| standing.is_some_and(|standing| *at > standing.now);
    View {
        reason: why::delivery(&listed, standing),
        id: listed.id.0,
        destination_id: listed.destination.0,
        event_id: listed.event.0,
        event_type: listed.event_type,
        status: listed.status,
        attempts: listed.attempts,
        created_at: listed.created_at.iso(),
        last_attempt_at: time(listed.last_attempt_at),
        next_retry_at: time(listed.next_retry_at.filter(is_ahead)),
        delivered_at: time(listed.delivered_at),
        response_status: listed.response_status,
        error_message: listed.error_message,
    }
}

fn attempt_view(attempt: PastAttempt) -> AttemptView {
    AttemptView {
        attempt: attempt.attempt,
        started_at: attempt.started_at.iso(),
        duration_ms: attempt.duration_ms,
        response_status: attempt.response_status,
        response_body: attempt.response_body,
        error_message: attempt.error_message,
        charged: attempt.charged,
    }
}

fn unknown(ids: &[DeliveryId]) -> Fault {
    let ids: Vec<String> = ids.iter().take(10).map(ToString::to_string).collect();
    Fault::NotFound(format!("delivery {}", ids.join(", ")))
}
