//! Jobs: replay and backfill, counted or begun; looked at and cancelled.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

pub use super::input::PageQuery as Query;
use super::input::{Faults, Time, shown};
use super::{Fault, List};
use crate::clock;
use crate::model::{DestinationId, JobId, OrgId, Status};
use crate::store::jobs::{self, Job, Kind, Spec};
use crate::store::{Connection, destinations, events, retention};

/// How long a dry run may count before it says how far it came.
pub const COUNTING: Duration = Duration::from_secs(2);

/// Statuses that can be replayed: what is pending is queued already.
const REPLAYABLE: [Status; 3] = [Status::Failed, Status::Delivered, Status::Dead];

/// [`REPLAYABLE`], for the API's document.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
#[allow(dead_code, reason = "only described")]
enum Replayable {
    Failed,
    Delivered,
    Dead,
}

/// What to replay, as it was asked.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"status": ["dead"], "from": "2026-01-31T12:00:00Z", "to": "2026-02-01T00:00:00Z",
    "dry_run": true}))]
pub struct Replay {
    /// Deliveries in these statuses; without, the dead ones.
    #[schema(value_type = Option<Vec<Replayable>>, min_items = 1)]
    pub status: Option<Vec<String>>,
    /// Only those of events of this type.
    #[schema(min_length = 1, max_length = 100)]
    pub event_type: Option<String>,
    /// Queued at this time or later; without, from the beginning.
    #[schema(value_type = Option<Time>)]
    pub from: Option<String>,
    /// Queued before this time; without, before now.
    #[schema(value_type = Option<Time>)]
    pub to: Option<String>,
    /// Only count them.
    #[serde(default)]
    pub dry_run: bool,
}

/// What to backfill, as it was asked.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"from": "2026-01-31T12:00:00Z", "dry_run": true}))]
pub struct Backfill {
    /// Events created at this time or later.
    #[schema(value_type = Option<Time>)]
    pub from: Option<String>,
    /// Events created before this time; without, before now.
    #[schema(value_type = Option<Time>)]
    pub to: Option<String>,
    /// Also over a time of which retention has deleted deliveries: what was delivered then is sent again.
    #[serde(default)]
    pub force: bool,
    /// Only count them.
    #[serde(default)]
    pub dry_run: bool,
}

/// What came of a request: a job, or a count.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Begun {
    /// The job, to be looked at again.
    Job(Box<View>),
    /// What it would do.
    Count(CountView),
}

/// What a dry run counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = Count)]
pub struct CountView {
    /// Deliveries that would be queued.
    pub count: i64,
    /// Whether that is all; otherwise there was no time to count more.
    pub complete: bool,
}

/// A job as it is shown.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Job)]
pub struct View {
    /// Its id.
    pub id: Uuid,
    /// `replay` or `backfill`.
    pub kind: &'static str,
    /// `running`, `done`, `cancelled` or `failed`.
    pub state: &'static str,
    /// The destination.
    pub destination_id: Uuid,
    /// The beginning of its range.
    pub from: Option<String>,
    /// The end of its range.
    pub to: Option<String>,
    /// Which deliveries it replays.
    pub status: Vec<Status>,
    /// Of which type of events.
    pub event_type: Option<String>,
    /// Rows in its range; null: too many to count.
    pub total: Option<i64>,
    /// Rows of them that it has looked at.
    pub seen: i64,
    /// Deliveries that it has queued.
    pub queued: i64,
    /// Why it failed, or why its last batch did and is tried again.
    pub error: Option<String>,
    /// When it was created.
    #[schema(format = DateTime)]
    pub created_at: String,
    /// When it last changed.
    #[schema(format = DateTime)]
    pub updated_at: String,
}

/// Begins a replay for a destination of `org`, or counts what it would queue.
///
/// # Errors
/// [`Fault::NotFound`], [`Fault::Invalid`]; [`Fault::Conflict`] where too many jobs are running.
pub async fn replay(
    db: &mut Connection,
    org: OrgId,
    destination: DestinationId,
    asked: &Replay,
    counting: Duration,
) -> Result<Begun, Fault> {
    let mut faults = Faults::default();
    let (from, to) = faults.range(asked.from.as_deref(), asked.to.as_deref());
    let mut statuses = vec![Status::Dead];
    if let Some(asked) = &asked.status {
        statuses = faults.statuses(asked.iter().map(String::as_str), &REPLAYABLE);
        if asked.is_empty() {
            faults.add("status", "must name at least one status");
        }
    }
    let event_type = faults.event_type(asked.event_type.as_deref());
    let spec = faults.check(Spec { kind: Kind::Replay, org, destination, from, to, statuses, event_type })?;
    begin(db, &spec, asked.dry_run, counting).await
}

/// Begins a backfill for a destination of `org`, or counts what it would queue.
///
/// # Errors
/// As [`replay`]; [`Fault::Conflict`] also where the destination is disabled, and where deliveries of the
/// range have been deleted.
pub async fn backfill(
    db: &mut Connection,
    org: OrgId,
    destination: DestinationId,
    asked: &Backfill,
    counting: Duration,
) -> Result<Begun, Fault> {
    let mut faults = Faults::default();
    let (from, to) = faults.range(asked.from.as_deref(), asked.to.as_deref());
    if asked.from.is_none() {
        faults.add("from", "is missing: when do the events begin that are to be backfilled?");
    }
    let (statuses, event_type) = (Vec::new(), None);
    let spec = Spec { kind: Kind::Backfill, org, destination, from, to, statuses, event_type };
    let spec = faults.check(spec)?;
    let enabled = destinations::is_enabled(&mut *db, org, destination).await?;
    if !enabled.ok_or_else(|| unknown_destination(destination))? {
        return Err(Fault::Conflict(format!("the destination {destination} is disabled: enable it first")));
    }
    if !events::have_times(db).await? {
        return Err(Fault::Conflict(
            "this application's events have no created_at, by which a backfill finds them".into(),
        ));
    }
    let pruned = retention::pruned_until(&mut *db, destination).await?;
    if let Some(until) = pruned.filter(|until| from < Some(*until) && !asked.force) {
        return Err(Fault::Conflict(format!(
            "deliveries from before {} have been deleted by retention, and what was delivered then would be \
             sent again: begin later, or use force",
            until.iso()
        )));
    }
    begin(db, &spec, asked.dry_run, counting).await
}

async fn begin(db: &mut Connection, spec: &Spec, dry_run: bool, counting: Duration) -> Result<Begun, Fault> {
    let known = destinations::is_enabled(&mut *db, spec.org, spec.destination).await?.is_some();
    if !known {
        return Err(unknown_destination(spec.destination));
    }
    if dry_run {
        return Ok(Begun::Count(count(db, spec, clock::now() + counting).await?));
    }
    match jobs::create(db, spec).await? {
        Some(job) => Ok(Begun::Job(Box::new(view(job)))),
        None => Err(Fault::Conflict("too many jobs are running: wait for one, or cancel one".into())),
    }
}

/// Counts what a job would queue, until it knows or it is time to stop.
pub(super) async fn count(db: &mut Connection, spec: &Spec, until: Instant) -> Result<CountView, Fault> {
    let (mut count, mut after) = (0, None);
    loop {
        let counted = jobs::dry_run(db, spec, after).await?;
        let disabled = || Fault::Conflict(format!("the destination {} is disabled", spec.destination));
        let counted = counted.ok_or_else(disabled)?;
        count += counted.count;
        after = counted.next;
        if after.is_none() || clock::now() >= until {
            return Ok(CountView { count, complete: after.is_none() });
        }
    }
}

/// A page of the jobs of `org`, the newest first.
///
/// # Errors
/// [`Fault::Invalid`], [`Fault::Store`].
pub async fn list(db: &mut Connection, org: OrgId, query: &Query) -> Result<List<View>, Fault> {
    let (limit, cursor) = query.read()?;
    Ok(shown(jobs::list(db, org, cursor, limit).await?, view))
}

/// A job of `org`.
///
/// # Errors
/// [`Fault::NotFound`], [`Fault::Store`].
pub async fn one(db: &mut Connection, org: OrgId, id: JobId) -> Result<View, Fault> {
    jobs::get(db, org, id).await?.map(view).ok_or_else(|| unknown(id))
}

/// Stops a job; what it has queued stays queued.
///
/// # Errors
/// [`Fault::NotFound`]; [`Fault::Conflict`] where it has ended already; [`Fault::Store`].
pub async fn cancel(db: &mut Connection, org: OrgId, id: JobId) -> Result<View, Fault> {
    let job = jobs::cancel(db, org, id).await?.ok_or_else(|| unknown(id))?;
    match job.state {
        jobs::State::Cancelled => Ok(view(job)),
        state => Err(Fault::Conflict(format!("the job {id} is {} already", state.name()))),
    }
}

/// A job as it is shown.
pub fn view(job: Job) -> View {
    View {
        id: job.id.0,
        kind: job.spec.kind.name(),
        state: job.state.name(),
        destination_id: job.spec.destination.0,
        from: job.spec.from.map(|time| time.iso()),
        to: job.spec.to.map(|time| time.iso()),
        status: job.spec.statuses,
        event_type: job.spec.event_type,
        total: job.total,
        seen: job.seen,
        queued: job.queued,
        error: job.error,
        created_at: job.created_at.iso(),
        updated_at: job.updated_at.iso(),
    }
}

fn unknown(id: JobId) -> Fault {
    Fault::NotFound(format!("job {id}"))
}

fn unknown_destination(id: DestinationId) -> Fault {
    Fault::NotFound(format!("destination {id}"))
}
