//! Who works on jobs: a task beside the dispatcher, and whoever waits for a job at the command line.
//!
//! It does nothing while there are none, notices new ones when it is woken or at the next poll, and shares
//! them with every other process through their rows (see [`crate::store::jobs`]).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::supervision::{Part, Stop, StopHandle, Supervision};
use crate::clock;
use crate::model::JobId;
use crate::store::jobs::{self, Kind, Pace, State};
use crate::store::{self, Connection, Pool, StoreError};

/// Beside live traffic: some 200 rows a second, two at a time, so that a live delivery finds a request free.
pub const GENTLE: Pace =
    Pace { rows: 25, look: 1_000, pause: Duration::from_millis(120), patience: Duration::from_secs(1) };
/// Where nobody dispatches, there is no live delivery to wait.
pub const FAST: Pace =
    Pace { rows: 250, look: 2_000, pause: Duration::from_millis(1), patience: Duration::from_millis(1) };
/// A batch is followed by a pause of so many times what it took: the database has others to serve.
const REST: u32 = 4;
/// Jobs of which it is remembered how long they take.
const MAX_REMEMBERED: usize = 10_000;
/// Until a batch that failed is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// The task that works on jobs.
#[derive(Clone)]
pub struct Runner {
    wake: Arc<Notify>,
    stop: StopHandle,
}

impl Runner {
    /// Starts it. It looks for jobs every `poll`.
    pub fn start(supervision: Supervision, pool: Pool, poll: Duration) -> Runner {
        let wake = Arc::new(Notify::new());
        let (handle, stop) = StopHandle::new();
        let runner = Runner { wake: wake.clone(), stop: handle };
        actix_rt::spawn(async move {
            let run = async |stop: Stop| run(&pool, &wake, poll, stop).await;
            supervision.keep_running(Part::Jobs, stop, run).await;
        });
        runner
    }

    /// There may be a new job.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// Lets the batch that is under way end, and stops. What is left goes on with the next process.
    pub async fn stop(&self) {
        self.stop.stop().await;
    }
}

async fn run(pool: &Pool, wake: &Notify, poll: Duration, mut stop: Stop) {
    let mut worker = Worker::new(GENTLE);
    let mut said = String::new();
    while !stop.is_asked() {
        let wait = match turn(pool, &mut worker).await {
            Ok(wait) => {
                said.clear();
                wait.map_or(poll, |wait| wait.min(poll))
            }
            Err(error) => {
                let error = error.to_string();
                if error != said {
                    log::warn!("jobs wait, trying again until the database answers: {error}");
                    said = error;
                }
                RETRY
            }
        };
        tokio::select! {
            () = stop.asked() => {}
            () = wake.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// One batch of a job of each organization whose turn it is; how long until it is the turn of the next one.
async fn turn(pool: &Pool, worker: &mut Worker) -> Result<Option<Duration>, StoreError> {
    let waiting = on_connection(pool, async |connection| jobs::waiting(connection).await).await?;
    let mut next: Option<Duration> = None;
    for (id, kind, wait) in waiting {
        let wait = if wait.is_zero() { batch(pool, worker, id, kind).await? } else { wait };
        next = Some(next.map_or(wait, |next| next.min(wait)));
    }
    Ok(next)
}

/// A batch of a job; how long to wait before the next one. One that gets no answer in time is as one that
/// fails, unless the database gives none to others either.
async fn batch(pool: &Pool, worker: &mut Worker, id: JobId, kind: Kind) -> Result<Duration, StoreError> {
    match on_connection(pool, async |connection| worker.batch(connection, id, kind).await).await {
        Ok((_, wait)) => Ok(wait),
        Err(error @ StoreError::Timeout) => {
            // Its row may still be locked by the batch that PostgreSQL has not given up yet.
            let noted = on_connection(pool, async |connection| postpone(connection, id, &error).await).await;
            match noted {
                Err(error) if !error.is_about_locks() => Err(error),
                _ => Ok(RETRY),
            }
        }
        Err(error) => Err(error),
    }
}

/// Does `work` on a connection, which ends where that fails: a statement may still be running on it.
async fn on_connection<T>(
    pool: &Pool,
    work: impl AsyncFnOnce(&mut Connection) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let mut connection = store::acquire(pool).await?;
    let done = work(&mut connection).await;
    if done.is_err() {
        connection.close_on_drop();
    }
    done
}

/// Notes that a batch failed; the state after it.
async fn postpone(
    connection: &mut Connection,
    id: JobId,
    error: &StoreError,
) -> Result<Option<State>, StoreError> {
    let state = jobs::postpone(connection, id, error, RETRY).await?;
    match state {
        Some(State::Failed) => log::warn!("job={id} is failed, as its batches fail again and again: {error}"),
        _ => log::warn!("job={id} a batch failed, it is tried again: {error}"),
    }
    Ok(state)
}

/// Does batches at a pace.
pub struct Worker {
    pace: Pace,
    /// How long the last batch of each job took.
    took: HashMap<JobId, Duration>,
}

impl Worker {
    /// One that has done nothing yet.
    pub fn new(pace: Pace) -> Worker {
        Worker { pace, took: HashMap::new() }
    }

    /// The next batch of a job, if it is its turn. Returns the state after it, and how long to wait before
    /// the next one.
    ///
    /// # Errors
    /// When the database does not answer; the connection must be dropped. What it says against the batch is
    /// kept with the job, which tries again later.
    pub async fn batch(
        &mut self,
        connection: &mut Connection,
        id: JobId,
        kind: Kind,
    ) -> Result<(Option<State>, Duration), StoreError> {
        // An interval of PostgreSQL has no nanoseconds.
        let took = self.took.get(&id).copied().unwrap_or_default();
        let pause = Duration::from_micros(self.pace.pause.max(took * REST).as_micros() as u64);
        let began = clock::now();
        let done = jobs::work(connection, id, kind, &Pace { pause, ..self.pace }).await;
        if self.took.len() >= MAX_REMEMBERED {
            self.took.clear();
        }
        self.took.insert(id, began.elapsed());
        match done {
            Ok(state) => {
                if let Some(state @ (State::Done | State::Failed)) = state {
                    self.took.remove(&id);
                    log::info!("job={id} {} is {}", kind.name(), state.name());
                }
                Ok((state, pause))
            }
            Err(error) if error.is_an_answer() => Ok((postpone(connection, id, &error).await?, RETRY)),
            Err(error) => Err(error),
        }
    }
}
