//! Nothing stops working without a word: what becomes of whatever panics or freezes.
//!
//! ```text
//!   a destination panics                               the Supervisor starts it again
//!   jobs, listener, retention, accept loop panic       keep_running starts it again
//!   a handler of an HTTP request panics                its request is answered with 500
//!   the Supervisor or the DbActor panics               its ExitGuard ends the process
//!   an event loop or one of these two actors freezes   the Watchdog ends the process
//! ```
//!
//! A process that ends like this gives nothing back: the leases of what it had in flight tell others of it.

#[cfg(test)]
mod panics;
mod watchdog;

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::watch;

use self::watchdog::Watched;
pub use self::watchdog::{Ping, TICK, TICKS, Watchdog};
use crate::clock;

/// Pause before what panicked is started again; doubles up to [`MAX_RESTART_PAUSE`] while it keeps panicking.
const MIN_RESTART_PAUSE: Duration = Duration::from_millis(100);
/// Longest such pause. A life that lasts as long is not punished for the one before.
pub(super) const MAX_RESTART_PAUSE: Duration = Duration::from_secs(60);

/// The pause before the next start, given the last one, if that was a moment ago.
pub(super) fn restart_pause(last: Option<Duration>) -> Duration {
    last.map_or(MIN_RESTART_PAUSE, |last| last * 2).min(MAX_RESTART_PAUSE)
}

/// What runs beside the destinations and can panic without ending the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Works on replays and backfills.
    Jobs,
    /// Hears notifications.
    Listener,
    /// Deletes what is old.
    Retention,
    /// Accepts connections to an HTTP server.
    HttpServer,
    /// Answers one HTTP request.
    HttpRequest,
}

impl Part {
    /// All parts.
    pub const ALL: [Part; 5] =
        [Part::Jobs, Part::Listener, Part::Retention, Part::HttpServer, Part::HttpRequest];

    /// As in labels.
    pub fn name(self) -> &'static str {
        match self {
            Part::Jobs => "jobs",
            Part::Listener => "listener",
            Part::Retention => "retention",
            Part::HttpServer => "http_server",
            Part::HttpRequest => "http_request",
        }
    }

    /// As in the log.
    fn title(self) -> &'static str {
        match self {
            Part::Jobs => "the runner of jobs",
            Part::Listener => "the listener for notifications",
            Part::Retention => "the task of retention",
            Part::HttpServer => "the accept loop of an HTTP server",
            Part::HttpRequest => "the handler of an HTTP request",
        }
    }

    /// What that means while it is down.
    fn consequence(self) -> &'static str {
        match self {
            Part::Jobs => "replays and backfills wait",
            Part::Listener => "notifications do not arrive, polling finds the work",
            Part::Retention => "old rows are not deleted",
            Part::HttpServer => "connections are not accepted",
            Part::HttpRequest => "a request was answered with 500",
        }
    }
}

/// Why the process must end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fatal {
    /// What everything depends on has panicked.
    #[error("{0} panicked, which is a fault of this program")]
    Panicked(String),
    /// What everything depends on does not answer.
    #[error("frozen: {0}")]
    Frozen(String),
    /// What everything depends on could not go on.
    #[error("{0}")]
    Failed(String),
}

/// What is known of the parts of this process.
#[derive(Clone)]
pub struct Supervision(Arc<Inner>);

struct Inner {
    parts: [PartState; Part::ALL.len()],
    fatal: watch::Sender<Option<Fatal>>,
    watched: Mutex<Vec<Watched>>,
}

#[derive(Default)]
struct PartState {
    panics: AtomicU64,
    is_down: AtomicBool,
    #[cfg(test)]
    let_panic: tokio::sync::Notify,
}

impl Default for Supervision {
    fn default() -> Supervision {
        let fatal = watch::Sender::new(None);
        Supervision(Arc::new(Inner { parts: Default::default(), fatal, watched: Mutex::default() }))
    }
}

impl Supervision {
    /// Runs `part` until it returns, which it does when `stop` is asked for. Starts it again when it panics,
    /// after a pause of 100 ms, and twice as long each time, at most 60 s, while it keeps panicking.
    pub async fn keep_running(&self, part: Part, mut stop: Stop, mut run: impl AsyncFnMut(Stop)) {
        let mut last = None;
        loop {
            let began = clock::now();
            let life = run(stop.clone());
            #[cfg(test)]
            let life = self.let_panic(part, life);
            if AssertUnwindSafe(life).catch_unwind().await.is_ok() {
                return;
            }
            self.note_panic(part);
            if clock::now().saturating_duration_since(began) >= MAX_RESTART_PAUSE {
                last = None;
            }
            let pause = restart_pause(last);
            // What keeps panicking is told once, and shown by the readiness and a metric.
            let level = if last.is_none() { log::Level::Error } else { log::Level::Debug };
            log::log!(
                level,
                "{} panicked, which is a fault of this program: {} until it starts again, in {} ms at first",
                part.title(),
                part.consequence(),
                pause.as_millis()
            );
            last = Some(pause);
            self.state(part).is_down.store(true, Ordering::Relaxed);
            let is_asked = tokio::select! {
                () = stop.asked() => true,
                () = tokio::time::sleep(pause) => false,
            };
            self.state(part).is_down.store(false, Ordering::Relaxed);
            if is_asked {
                return;
            }
        }
    }

    /// Counts a panic of `part`.
    pub fn note_panic(&self, part: Part) {
        self.state(part).panics.fetch_add(1, Ordering::Relaxed);
    }

    /// Panics of `part` since the start.
    pub fn panics(&self, part: Part) -> u64 {
        self.state(part).panics.load(Ordering::Relaxed)
    }

    /// Whether `part` has panicked and waits to be started again.
    pub fn is_down(&self, part: Part) -> bool {
        self.state(part).is_down.load(Ordering::Relaxed)
    }

    /// What is down, and what that means.
    pub fn warnings(&self) -> Vec<String> {
        let down = Part::ALL.into_iter().filter(|part| self.is_down(*part));
        down.map(|part| {
            format!("{}: {} panicked and is to be started again", part.consequence(), part.title())
        })
        .collect()
    }

    /// For an actor or a task without which nothing goes on, called `name` in the log.
    pub fn exit_guard(&self, name: impl Into<String>) -> ExitGuard {
        ExitGuard { supervision: self.clone(), name: name.into() }
    }

    /// The process must end, because of `why`; what comes first is told.
    pub fn end(&self, why: Fatal) {
        self.0.fatal.send_if_modified(|fatal| {
            let is_first = fatal.is_none();
            fatal.get_or_insert(why);
            is_first
        });
    }

    /// Waits until the process must end; says why. All that counts is in the database, and the next process
    /// goes on from there.
    pub async fn ended(&self) -> Fatal {
        let mut fatal = self.0.fatal.subscribe();
        loop {
            if let Some(why) = fatal.borrow_and_update().clone() {
                return why;
            }
            // It cannot be closed: its sender is here.
            fatal.changed().await.ok();
        }
    }

    fn is_ending(&self) -> bool {
        self.0.fatal.borrow().is_some()
    }

    fn state(&self, part: Part) -> &PartState {
        &self.0.parts[part as usize]
    }
}

/// Held by what everything depends on. Dropping it ends the process: before that, only a panic does so.
pub struct ExitGuard {
    supervision: Supervision,
    name: String,
}

impl ExitGuard {
    /// Its holder ends as it should.
    pub fn release(mut self) {
        self.name.clear();
    }
}

impl Drop for ExitGuard {
    fn drop(&mut self) {
        if !self.name.is_empty() {
            self.supervision.end(Fatal::Panicked(std::mem::take(&mut self.name)));
        }
    }
}

/// Tells a task to end.
#[derive(Clone)]
pub struct StopHandle(Arc<watch::Sender<bool>>);

/// Tells a task whether it should end.
#[derive(Clone)]
pub struct Stop(watch::Receiver<bool>);

impl StopHandle {
    /// A handle, and what its task gets.
    pub fn new() -> (StopHandle, Stop) {
        let (handle, stop) = watch::channel(false);
        (StopHandle(Arc::new(handle)), Stop(stop))
    }

    /// Has the task end, and waits until it has.
    pub async fn stop(&self) {
        self.0.send_replace(true);
        self.0.closed().await;
    }
}

impl Stop {
    /// Whether the task should end: it was told to, or nobody is left who could tell.
    pub fn is_asked(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }

    /// Waits until it should.
    pub async fn asked(&mut self) {
        // An error says that nobody is left.
        self.0.wait_for(|asked| *asked).await.ok();
    }
}
