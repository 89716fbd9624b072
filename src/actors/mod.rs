//! The actors: who sends what to whom.
//!
//! ```text
//!               Hinted, polls, loads                Claim, Renew, Record, Remember, Disable, Announce
//!   listener ───────────────────────▶ Supervisor    ┌─────────────────────────────────────▶ DbActor
//!                                       │    ▲      │                                          │
//!            Wake, Reconfigure, Retire  │    │ Stopped                                         │
//!                                       ▼    │      │                 Granted                  │
//!                                     DestinationActor ◀───────────────────────────────────────┘
//!                                       │    ▲
//!                                       ▼    │ Finished
//!                                     a task per request
//! ```
//!
//! Beside them the [`RetentionActor`] deletes what is old; it knows nobody.
//!
//! Destinations are spread over arbiters (threads); everything else runs on the main thread. Mailboxes are
//! never full: a destination has at most one `Claim` and one `Wake` under way and a `Finished` per request in
//! flight, so what waits is bounded by destinations and by [`Limit`]s. Two limits belong to the whole process
//! and are shared fairly between organizations: requests in flight, and bytes of events in memory.
//!
//! Beside them, [`jobs`] queues deliveries for replays and backfills, through the database.
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
mod outage;
mod outbox;
mod record_connection;
pub mod retention;
pub mod supervisor;
pub mod tally;
#[cfg(test)]
mod tests;
mod turns;
mod unusable;
mod work;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use actix::prelude::*;
use tokio::sync::watch;

use self::backlogs::Backlogs;
use self::db::DbActor;
use self::jobs::Runner;
use self::limit::Limit;
use self::retention::{RetentionActor, RetentionSnapshot};
use self::supervisor::Supervisor;
use self::tally::Tallies;
use crate::config::Config;
use crate::outbound::{Network, NetworkError};
use crate::store::{self, ConnectOptions, Pool, StoreError};

/// Connections besides the three of the [`DbActor`]: listening, polls, loading.
const POOL_CONNECTIONS: u32 = 4;

/// How often the same trouble of our own is told: every request meets it, and once is enough.
const TROUBLE_REPEATED_AFTER: Duration = Duration::from_secs(60);

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
    pub tallies: Arc<Tallies>,
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

/// Held by an actor without which nothing goes on: tells when that has ended, as only a panic makes it end
/// before the process does.
pub struct ExitGuard {
    name: &'static str,
    ended: Arc<watch::Sender<&'static str>>,
}

impl Drop for ExitGuard {
    fn drop(&mut self) {
        self.ended.send_replace(self.name);
    }
}

/// From a test: panic, to see what becomes of it.
#[cfg(test)]
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Panic;

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
    pool: Pool,
    /// Starts and stops destinations.
    pub supervisor: Addr<Supervisor>,
    /// Claims and records.
    pub db: Addr<DbActor>,
    /// The actor that has ended; empty while both live.
    ended: watch::Receiver<&'static str>,
    /// Works on jobs.
    pub jobs: Runner,
    /// Deletes what is old, unless everything is kept.
    pub retention: Option<Addr<RetentionActor>>,
    /// What all destinations share.
    pub shared: Arc<Shared>,
    /// How to connect to the database.
    pub options: ConnectOptions,
}

impl Dispatcher {
    /// Starts the actors, within an actix `System`, on the database of `options`. The tables must exist; the
    /// database may be away for now.
    ///
    /// # Errors
    /// When the configuration cannot work: its certificates.
    pub fn start(config: Config, options: ConnectOptions) -> Result<Dispatcher, StartError> {
        let network = Arc::new(Network::new(config.egress_rules(), config.ca_file.as_deref())?);
        let bytes = Limit::new(config.max_bytes_in_flight);
        let slots = Limit::new(u64::from(config.max_in_flight));
        let planned = store::planned(options.clone());
        // An application that holds a lock for a moment is no outage, and no delivery waits for these.
        let patient = planned.clone().options([("lock_timeout", "2s")]);
        let pool = store::pool(patient, POOL_CONNECTIONS);
        let (told, ended) = watch::channel("");
        let told = Arc::new(told);
        let exit_guard = |name| ExitGuard { name, ended: told.clone() };
        let db = DbActor::new(config.clone(), planned, bytes, exit_guard("the database actor")).start();
        let jobs = Runner::start(store::pool(store::indexed(options.clone()), 1), config.poll_interval);
        let ages = config.operations.retention;
        let retention = (!ages.is_off()).then(|| RetentionActor::new(options.clone(), ages).start());
        let tallies = Tallies::new(config.operations.metrics_max_destinations);
        let shared = Arc::new(Shared {
            config,
            network,
            slots,
            backlogs: Backlogs::default(),
            tallies,
            trouble: Trouble::default(),
        });
        let exit_guard = exit_guard("the supervisor");
        let supervisor = Supervisor::new(shared.clone(), db.clone(), pool.clone(), exit_guard).start();
        Ok(Dispatcher { pool, supervisor, db, ended, jobs, retention, shared, options })
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
        readiness.warnings.extend(self.retention().await.trouble.map(slower));
        readiness
    }

    /// Waits until the supervisor or the database actor has panicked; says which. Nothing goes on then, and
    /// the process should end: all that counts is in the database, and the next process goes on from there.
    pub async fn panicked(&self) -> &'static str {
        let mut ended = self.ended.clone();
        ended.wait_for(|name| !name.is_empty()).await.map_or("an actor", |name| *name)
    }

    /// The state of retention; as at the start, where everything is kept.
    pub async fn retention(&self) -> RetentionSnapshot {
        match &self.retention {
            Some(retention) => retention.send(retention::Snapshot).await.unwrap_or_else(|error| {
                let trouble = Some(format!("the retention actor does not answer: {error}"));
                RetentionSnapshot { trouble, ..RetentionSnapshot::default() }
            }),
            None => RetentionSnapshot::default(),
        }
    }

    /// Stops in order; returns when everything is written and the destinations are gone.
    pub async fn stop(self) {
        self.jobs.stop().await;
        // At the same time as the rest: a batch under way ends by itself.
        let pruning = self.retention.as_ref().map(|retention| retention.send(retention::Stop));
        let pruned = actix_rt::spawn(async move {
            if let Some(pruning) = pruning {
                pruning.await.unwrap_or(());
            }
        });
        if let Err(error) = self.supervisor.send(supervisor::Shutdown).await {
            log::error!("the supervisor is gone already: {error}");
        }
        pruned.await.unwrap_or(());
    }
}
