//! The actors: who sends what to whom.
//!
//! ```text
//!               Heard, polls, loads                 Claim, Renew, Record, Remember, Disable, Announce
//!   listener ───────────────────────▶ Supervisor    ┌─────────────────────────────────────▶ DbActor
//!                                       │    ▲      │                                          │
//!            Wake, Reconfigure, Retire  │    │ Stopped                                         │
//!                                       ▼    │      │            ClaimDone, Renewed              │
//!                                     DestinationActor ◀───────────────────────────────────────┘
//!                                       │    ▲
//!                                       ▼    │ Finished
//!                                     a task per request
//! ```
//!
//! Destinations are spread over arbiters (threads); everything else runs on the main thread. Mailboxes are
//! never full: a destination has at most one `Claim` and one `Wake` under way and a `Finished` per request in
//! flight, so what waits is bounded by destinations and by [`Limit`]s. Two limits belong to the whole process
//! and are shared fairly between organizations: requests in flight, and bytes of events in memory.
//!
//! Beside them, the task of [`jobs`] queues deliveries for replays and backfills, through the database, and
//! that of [`retention`] deletes what is old. [`supervision`] says what becomes of what panics or freezes.
//!
//! Shutdown, in this order: no jobs and no claims any more; every destination gives back what has not started
//! and ends what has, within the grace; the results are written; the arbiters stop.

mod backlogs;
mod backoff;
mod claim_connection;
mod claims;
pub mod db;
pub mod destination;
mod faults;
pub mod jobs;
pub mod limit;
mod listen;
mod messages;
pub mod metrics;
mod outage;
mod record_connection;
mod result_buffer;
pub mod retention;
mod start_pacer;
pub mod supervision;
pub mod supervisor;
#[cfg(test)]
mod tests;
mod unusable;
mod work;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use actix::prelude::*;

use self::backlogs::Backlogs;
use self::db::DbActor;
use self::limit::Limit;
use self::metrics::Metrics;
use self::retention::RetentionSnapshot;
use self::supervision::Supervision;
use self::supervisor::Supervisor;
use crate::config::Config;
use crate::outbound::{Network, NetworkError};
use crate::store::{self, ConnectOptions, Pool, StoreError};

/// Connections besides the three of the [`DbActor`]: listening, polls, loading.
const POOL_CONNECTIONS: u32 = 4;

/// How often the same trouble of our own is told: every request meets it, and once is enough.
const TROUBLE_REPEATED_AFTER: Duration = Duration::from_secs(60);

/// What must answer, as the log calls it.
const SUPERVISOR: &str = "the supervisor";
const DB_ACTOR: &str = "the database actor";

/// What all destinations share.
pub struct Shared {
    /// The configuration.
    pub config: Config,
    /// The way out.
    pub network: Arc<Network>,
    /// Requests in flight.
    pub slots: Limit,
    /// Who is busy with a backlog.
    pub backlogs: Backlogs,
    /// What destinations count.
    pub metrics: Arc<Metrics>,
    /// What becomes of whatever panics or freezes.
    pub supervision: Supervision,
    /// What is wrong with this process or its machine, when it was told last.
    pub trouble: Trouble,
}

/// Remembers what was told about trouble of our own.
#[derive(Default)]
pub struct Trouble(Mutex<Option<(String, Instant)>>);

impl Trouble {
    /// Whether `what` should be told now, and notes that it is.
    pub fn is_news(&self, what: &str, now: Instant) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((last, at)) = &*told
            && last == what
            && now < *at + TROUBLE_REPEATED_AFTER
        {
            return false;
        }
        *told = Some((what.to_owned(), now));
        true
    }
}

/// From a test: panic, to see what becomes of it.
#[cfg(test)]
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Panic;

/// From a test: answer nothing any more.
#[cfg(test)]
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Freeze;

/// For a test: this thread does nothing any more.
#[cfg(test)]
fn freeze() -> ! {
    loop {
        std::thread::park();
    }
}

/// Why a dispatcher did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The roots of trust.
    #[error(transparent)]
    Network(#[from] NetworkError),
}

/// Whether a dispatcher can do its work.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Readiness {
    /// What keeps it from working; empty when nothing does.
    pub problems: Vec<String>,
    /// What makes it slower than it could be.
    pub warnings: Vec<String>,
    /// Destinations running.
    pub destinations: usize,
    /// Whether the database answers: otherwise that is among the problems.
    #[serde(skip)]
    pub database_up: bool,
}

/// A running dispatcher.
#[derive(Clone)]
pub struct Dispatcher {
    /// For short questions.
    pub pool: Pool,
    /// Starts and stops destinations.
    pub supervisor: Addr<Supervisor>,
    /// Claims and records.
    pub db: Addr<DbActor>,
    /// Works on jobs.
    pub jobs: jobs::Runner,
    /// Deletes what is old, unless everything is kept.
    pub retention: Option<retention::Runner>,
    /// What all destinations share.
    pub shared: Arc<Shared>,
    /// How to connect to the database.
    pub options: ConnectOptions,
}

impl Dispatcher {
    /// Starts the actors, within an actix `System`, on the database of `options`. The tables must exist; the
    /// database may be away for now. When it must end, `supervision` says so.
    ///
    /// # Errors
    /// When the configuration cannot work: its certificates.
    pub fn start(
        config: Config,
        options: ConnectOptions,
        supervision: Supervision,
    ) -> Result<Dispatcher, StartError> {
        let network = Arc::new(Network::new(config.egress_rules(), config.ca_file.as_deref())?);
        let bytes = Limit::new(config.max_bytes_in_flight);
        let slots = Limit::new(u64::from(config.max_in_flight));
        let planned = store::planned(options.clone());
        // An application that holds a lock for a moment is no outage, and no delivery waits for these.
        let patient = planned.clone().options([("lock_timeout", "2s")]);
        let pool = store::pool(patient, POOL_CONNECTIONS);
        let exit_guard = supervision.exit_guard(DB_ACTOR);
        let db = DbActor::new(config.clone(), planned, bytes, exit_guard).start();
        supervision.watch_actor(DB_ACTOR, db.clone().recipient());
        let pool_of_jobs = store::pool(store::indexed(options.clone()), 1);
        let jobs = jobs::Runner::start(supervision.clone(), pool_of_jobs, config.poll_interval);
        let ages = config.operations.retention;
        let prune = || retention::Runner::start(supervision.clone(), options.clone(), ages);
        let retention = (!ages.is_off()).then(prune);
        let metrics = Metrics::new(config.operations.metrics_max_destinations);
        let shared = Arc::new(Shared {
            config,
            network,
            slots,
            backlogs: Backlogs::default(),
            metrics,
            supervision: supervision.clone(),
            trouble: Trouble::default(),
        });
        let exit_guard = supervision.exit_guard(SUPERVISOR);
        let supervisor = Supervisor::new(shared.clone(), db.clone(), pool.clone(), exit_guard).start();
        supervision.watch_actor(SUPERVISOR, supervisor.clone().recipient());
        Ok(Dispatcher { pool, supervisor, db, jobs, retention, shared, options })
    }

    /// Asks the database and the actors how they are.
    pub async fn readiness(&self) -> Readiness {
        let mut readiness = Readiness::default();
        match store::ping(&self.pool).await {
            Ok(()) => readiness.database_up = true,
            Err(error) => readiness.problems.push(format!("database: {error}")),
        }
        match self.supervisor.send(supervisor::Snapshot).await {
            Ok(state) => {
                readiness.destinations = state.destinations;
                if !state.loaded {
                    readiness.problems.push("the destinations have not been loaded yet".into());
                }
                readiness.problems.extend(state.trouble.map(|why| format!("destinations: {why}")));
                let slower = |why| format!("notifications do not arrive, polling finds the work: {why}");
                readiness.warnings.extend(state.not_listening.map(slower));
                if state.locked > 0 {
                    let what = "destination(s) are not contacted: their secrets cannot be decrypted";
                    readiness.warnings.push(format!("{} {what}; posthaste check says why", state.locked));
                }
            }
            Err(error) => readiness.problems.push(format!("the supervisor does not answer: {error}")),
        }
        match self.db.send(db::Snapshot).await {
            Ok(state) => {
                readiness.problems.extend(state.trouble.map(|why| format!("deliveries: {why}")));
                readiness
                    .warnings
                    .extend(state.some_faults.iter().map(|fault| format!("{fault}; the others go on")));
                if state.results_locked > 0 {
                    let locked =
                        format!("{} results wait for rows that somebody has locked", state.results_locked);
                    readiness.warnings.push(locked);
                }
            }
            Err(error) => readiness.problems.push(format!("the database actor does not answer: {error}")),
        }
        let slower = |why| format!("old rows are not deleted: {why}");
        readiness.warnings.extend(self.retention().trouble.map(slower));
        readiness.warnings.extend(self.shared.supervision.warnings());
        readiness
    }

    /// The state of retention; as at the start, where everything is kept.
    pub fn retention(&self) -> RetentionSnapshot {
        self.retention.as_ref().map(retention::Runner::snapshot).unwrap_or_default()
    }

    /// Stops in order; returns when everything is written and the destinations are gone.
    pub async fn stop(self) {
        self.jobs.stop().await;
        // At the same time as the rest: a batch under way ends by itself.
        let pruned = async {
            if let Some(retention) = &self.retention {
                retention.stop().await;
            }
        };
        let (stopped, ()) = tokio::join!(self.supervisor.send(supervisor::Shutdown), pruned);
        if let Err(error) = stopped {
            log::error!("the supervisor is gone already: {error}");
        }
    }
}
