//! Jobs: replay and backfill. A job is its row and nothing else.

mod work;

pub use self::work::{Counted, Pace, dry_run, postpone, waiting, work};

use sqlx::Row;
use sqlx::postgres::{PgConnection, PgRow};
use uuid::Uuid;

use super::events::timed_events;
use super::page::{Page, Position};
use super::{StoreError, in_time};
use crate::model::{DbTime, DestinationId, JobId, OrgId, Status};
use crate::store::schema;

/// Rows that are counted for a total; a job with more has none.
const MAX_COUNTED: i64 = 1_000_000;
/// Jobs that an organization may have running at a time.
const MAX_RUNNING: i64 = 20;

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Queues deliveries again.
    Replay,
    /// Creates the deliveries of past events that a destination never got.
    Backfill,
}

impl Kind {
    /// As the column has it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Replay => "replay",
            Kind::Backfill => "backfill",
        }
    }
}

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It goes on.
    Running,
    /// It came to its end.
    Done,
    /// Somebody stopped it; what it did stays.
    Cancelled,
    /// It cannot go on; `error` says why.
    Failed,
}

impl State {
    const ALL: [State; 4] = [State::Running, State::Done, State::Cancelled, State::Failed];

    /// As the column has it.
    pub fn name(self) -> &'static str {
        match self {
            State::Running => "running",
            State::Done => "done",
            State::Cancelled => "cancelled",
            State::Failed => "failed",
        }
    }
}

/// What a job is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Replay or backfill.
    pub kind: Kind,
    /// Whose destination.
    pub org: OrgId,
    /// For which destination.
    pub destination: DestinationId,
    /// From when on, by `created_at` of deliveries (replay) or events (backfill); `None`: from the beginning.
    pub from: Option<DbTime>,
    /// Until when, exclusive; what comes after the job's creation is never meant.
    pub to: Option<DbTime>,
    /// Which deliveries to replay: failed, delivered, dead; none of them for a backfill.
    pub statuses: Vec<Status>,
    /// Only deliveries of events of this type (replay).
    pub event_type: Option<String>,
}

/// A row of `posthaste_jobs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Primary key.
    pub id: JobId,
    /// What it does; `to` is filled in.
    pub spec: Spec,
    /// How far it is.
    pub state: State,
    /// How many rows there were to look at in its range; `None`: too many to count.
    pub total: Option<i64>,
    /// How many of them it has looked at.
    pub seen: i64,
    /// How many deliveries it has queued.
    pub queued: i64,
    /// Why it failed, or why its last batch did.
    pub error: Option<String>,
    /// When it was created.
    pub created_at: DbTime,
    /// When it last changed.
    pub updated_at: DbTime,
}

macro_rules! columns {
    () => {
        "j.id, j.org_id, j.destination_id, j.kind, j.state, j.range_from, j.range_to, j.statuses,
         j.event_type, j.total, j.seen, j.queued, j.error, j.created_at, j.updated_at"
    };
}

const COUNT_DELIVERIES: &str = "
    SELECT count(*) FROM (
        SELECT FROM public.webhook_deliveries w CROSS JOIN unnest($3::text[]) AS s (status)
        WHERE w.destination_id = $1 AND w.status = s.status AND w.status IN ('delivered', 'failed', 'dead')
          AND w.created_at >= $4 AND w.created_at < $5
        LIMIT $2
    ) counted";

const COUNT_EVENTS: &str = concat!(
    "
    SELECT count(*) FROM (
        SELECT FROM ",
    timed_events!(),
    " JOIN public.webhook_destinations d ON d.org_id = l.org_id
        WHERE d.id = $1 AND o.created_at >= $3 AND o.created_at < $4
        LIMIT $2
    ) counted"
);

/// A destination of another organization, or none, gives no row; neither does one job too many.
const CREATE: &str = concat!(
    "
WITH clock AS MATERIALIZED (SELECT timezone('UTC', clock_timestamp()) AS now)
INSERT INTO public.posthaste_jobs AS j
    (id, org_id, destination_id, kind, range_from, range_to, statuses, event_type, after_at, after_id, total,
     resume_at, created_at, updated_at)
SELECT $1, d.org_id, d.id, $4, $5, least(coalesce($6, c.now), c.now), $7, $8,
    coalesce($5, '-infinity'), '00000000-0000-0000-0000-000000000000', $9, c.now, c.now, c.now
FROM public.webhook_destinations d CROSS JOIN clock c
WHERE d.id = $3 AND d.org_id = $2
  AND (SELECT count(*) FROM public.posthaste_jobs r WHERE r.org_id = $2 AND r.state = 'running') < $10
RETURNING ",
    columns!()
);

/// Creates a job, to be worked on at once. `None`: the organization has too many running.
///
/// # Errors
/// Whatever the database says.
pub async fn create(db: &mut PgConnection, spec: &Spec) -> Result<Option<Job>, StoreError> {
    // Nice to have: whatever goes wrong with it, the job itself can do without.
    let total = count(db, spec).await.unwrap_or(None);
    let query = schema::query(CREATE)
        .bind(Uuid::new_v4())
        .bind(spec.org.0)
        .bind(spec.destination.0)
        .bind(spec.kind.name())
        .bind(spec.from)
        .bind(spec.to)
        .bind(names(&spec.statuses))
        .bind(&spec.event_type)
        .bind(total)
        .bind(MAX_RUNNING);
    let row = in_time(query.fetch_optional(db)).await?;
    Ok(row.as_ref().map(read_job).transpose()?)
}

async fn count(db: &mut PgConnection, spec: &Spec) -> Result<Option<i64>, StoreError> {
    let query = match spec.kind {
        Kind::Replay => schema::query_scalar(COUNT_DELIVERIES)
            .bind(spec.destination.0)
            .bind(MAX_COUNTED)
            .bind(names(&spec.statuses)),
        Kind::Backfill => schema::query_scalar(COUNT_EVENTS).bind(spec.destination.0).bind(MAX_COUNTED),
    };
    let query = query
        .bind(spec.from.unwrap_or(DbTime(i64::MIN)))
        .bind(spec.to.unwrap_or(DbTime(i64::MAX)))
        .persistent(false);
    let counted: i64 = in_time(query.fetch_one(db)).await?;
    Ok(Some(counted).filter(|counted| *counted < MAX_COUNTED))
}

const GET: &str =
    concat!("SELECT ", columns!(), " FROM public.posthaste_jobs j WHERE j.id = $2 AND j.org_id = $1");

/// A job of `org`.
///
/// # Errors
/// Whatever the database says.
pub async fn get(db: &mut PgConnection, org: OrgId, id: JobId) -> Result<Option<Job>, StoreError> {
    let row = in_time(schema::query(GET).bind(org.0).bind(id.0).fetch_optional(db)).await?;
    Ok(row.as_ref().map(read_job).transpose()?)
}

const LIST: &str = concat!(
    "SELECT ",
    columns!(),
    " FROM public.posthaste_jobs j
    WHERE j.org_id = $1 AND (j.created_at, j.id) < ($2::timestamp, $3::uuid)
    ORDER BY j.created_at DESC, j.id DESC LIMIT $4"
);

/// The jobs of `org`, the newest first.
///
/// # Errors
/// Whatever the database says.
pub async fn list(
    db: &mut PgConnection,
    org: OrgId,
    before: Option<Position>,
    limit: u32,
) -> Result<Page<Job>, StoreError> {
    let before = Position::before(before, None);
    let query = schema::query(LIST).bind(org.0).bind(before.at).bind(before.id).bind(i64::from(limit) + 1);
    let rows = in_time(query.fetch_all(db)).await?;
    let jobs = rows.iter().map(read_job).collect::<Result<Vec<Job>, _>>()?;
    Ok(Page::cut(jobs, limit, |job| Position { at: job.created_at, id: job.id.0 }))
}

const CANCEL: &str = "
    UPDATE public.posthaste_jobs SET state = 'cancelled', updated_at = timezone('UTC', clock_timestamp())
    WHERE id = $2 AND org_id = $1 AND state = 'running'";

/// Stops a job where it is, and returns it; one that has ended stays as it is.
///
/// # Errors
/// Whatever the database says.
pub async fn cancel(db: &mut PgConnection, org: OrgId, id: JobId) -> Result<Option<Job>, StoreError> {
    in_time(schema::query(CANCEL).bind(org.0).bind(id.0).execute(&mut *db)).await?;
    get(db, org, id).await
}

fn names(statuses: &[Status]) -> Vec<&'static str> {
    statuses.iter().map(|status| status.name()).collect()
}

fn read_kind(name: &str) -> Result<Kind, sqlx::Error> {
    let known = [Kind::Replay, Kind::Backfill].into_iter().find(|kind| kind.name() == name);
    known.ok_or_else(|| sqlx::Error::Decode(format!("the kind {name} is unknown").into()))
}

fn read_state(name: &str) -> Result<State, sqlx::Error> {
    let known = State::ALL.into_iter().find(|state| state.name() == name);
    known.ok_or_else(|| sqlx::Error::Decode(format!("the state {name} is unknown").into()))
}

fn read_job(row: &PgRow) -> Result<Job, sqlx::Error> {
    let statuses: Vec<String> = row.try_get("statuses")?;
    let spec = Spec {
        kind: read_kind(row.try_get("kind")?)?,
        org: OrgId(row.try_get("org_id")?),
        destination: DestinationId(row.try_get("destination_id")?),
        from: row.try_get("range_from")?,
        to: row.try_get("range_to")?,
        statuses: statuses.iter().filter_map(|name| Status::named(name)).collect(),
        event_type: row.try_get("event_type")?,
    };
    Ok(Job {
        id: JobId(row.try_get("id")?),
        spec,
        state: read_state(row.try_get("state")?)?,
        total: row.try_get("total")?,
        seen: row.try_get("seen")?,
        queued: row.try_get("queued")?,
        error: row.try_get("error")?,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
    })
}
