//! What every bad day is played on: one destination, one receiver, a stream of events, the real program.

use std::time::{Duration, Instant};

use posthaste::model::Secret;
use tokio::sync::watch;
use uuid::Uuid;

use crate::common::{Db, Posthaste, Receiver, Reply, check_invariants, eventually};

/// How long a fault lasts at least: long enough for several tries, also of such as wait for a lock.
const OUTAGE: Duration = Duration::from_secs(3);
/// Requests that a destination may have in flight.
const IN_FLIGHT: usize = 32;
/// How long after the cure the stream may need to flow again: 5 s, and as much again on a busy machine.
const RECOVERY: Duration = Duration::from_secs(10);
/// Lines of log above `info` that one outage may cost at most: claiming, recording, looking at destinations
/// and listening may each say once what is wrong, and what comes of it.
const LINES: usize = 12;

/// See the module.
pub struct Scene {
    pub db: Db,
    pub org: Uuid,
    pub receiver: Receiver,
    pub posthaste: Posthaste,
    events: Vec<Uuid>,
    outages: usize,
}

impl Scene {
    /// A stream of events that flows, on a database of its own.
    pub async fn start() -> Scene {
        let db = Db::new().await;
        let url = db.url.clone();
        Scene::at(db, &url).await
    }

    /// A stream of events that flows; the program reaches the database of `db` by `url`.
    pub async fn at(db: Db, url: &Secret) -> Scene {
        Scene::with(db, url, &[]).await
    }

    /// [`Scene::at`], and with these environment variables.
    pub async fn with(db: Db, url: &Secret, environment: &[(&str, &str)]) -> Scene {
        let receiver = Receiver::with(Reply::Slow(Duration::from_millis(10)));
        let org = db.org().await;
        db.destination(org, receiver.url("/")).retry(3, 100).timeout_ms(30_000).insert().await;
        let posthaste = Posthaste::serve_with(url, environment).await;
        let mut scene = Scene { db, org, receiver, posthaste, events: Vec::new(), outages: 0 };
        scene.produce(500).await;
        scene.flows().await;
        scene
    }

    /// Queues `count` more events.
    pub async fn produce(&mut self, count: usize) {
        self.events.extend(self.db.events(self.org, count).await);
    }

    /// Queues `count` more events, of which the receiver holds those in flight, and the others wait for them,
    /// until what is returned is set.
    pub async fn hold(&mut self, count: usize) -> watch::Sender<bool> {
        let (release, released) = watch::channel(false);
        self.receiver.reply(Reply::Held(200, released));
        self.produce(count).await;
        eventually("some are in flight", async || self.receiver.in_flight() >= IN_FLIGHT).await;
        release
    }

    /// Waits until deliveries go on.
    pub async fn flows(&self) {
        let before = self.receiver.accepted().len();
        eventually("the stream flows", async || self.receiver.accepted().len() > before).await;
    }

    /// Ends the sessions of the program.
    pub async fn end_sessions(&self) {
        let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
            WHERE datname = current_database() AND application_name = 'posthaste'";
        assert!(self.db.number(end).await > 0, "there was nothing to end");
    }

    pub async fn status(&self, path: &str) -> Option<u16> {
        self.posthaste.get(path).await.map(|(status, _)| status)
    }

    /// A fault begins that may be over before anybody can see it.
    pub fn strikes(&mut self) {
        self.outages += 1;
    }

    /// Waits until the process says that it is not ready and why, in one of these words, until its log says
    /// so too, and until the fault has lasted for a while.
    pub async fn suffers(&mut self, causes: &[&str]) {
        self.strikes();
        let start = Instant::now();
        let names_it = |text: &str| causes.iter().any(|cause| text.contains(cause));
        eventually("the process says that it is not ready, and why", async || {
            let said = self.posthaste.get("/readyz").await;
            said.is_some_and(|(status, body)| status == 503 && names_it(&body))
        })
        .await;
        let is_told = async || self.loud_lines().iter().any(|line| names_it(line));
        eventually("the log says what is wrong", is_told).await;
        assert_eq!(self.status("/healthz").await, Some(200), "but it lives");
        eventually("the fault has lasted for a while", async || start.elapsed() >= OUTAGE).await;
    }

    /// The lines of the log that are meant to be seen, without their times.
    fn loud_lines(&self) -> Vec<String> {
        let after_time = |line: &str| Some(line.split_once(' ')?.1.to_owned());
        let is_loud = |line: &String| line.starts_with("ERROR ") || line.starts_with("WARN ");
        self.posthaste.log().lines().filter_map(after_time).filter(is_loud).collect()
    }

    /// Call it right after the cure of `what`: waits until the process is ready and delivers.
    pub async fn recovers(&mut self, what: &str) {
        let start = Instant::now();
        self.posthaste.ready().await;
        let ready = start.elapsed();
        self.events.extend(self.db.events(self.org, 1).await);
        let last = *self.events.last().unwrap();
        eventually("a new event is delivered", async || self.receiver.accepted().contains_key(&last)).await;
        let delivering = start.elapsed();
        eprintln!("{what}: ready after {ready:.1?}, delivering after {delivering:.1?}");
        assert!(delivering < RECOVERY, "{what}: too slow");
    }

    /// What holds after every bad day. Each event came, at most as often as `times`. The database is left.
    pub async fn ends(mut self, times: usize) -> Db {
        let Scene { db, receiver, events, .. } = &self;
        eventually("every event is accepted", async || {
            let accepted = receiver.accepted();
            events.iter().all(|event| accepted.contains_key(event))
        })
        .await;
        db.settled().await;
        assert_eq!(db.deliveries("status = 'delivered' AND attempts = 1").await, events.len() as i64);
        assert_eq!(db.number("SELECT count(*) FROM posthaste_attempts").await, 0, "a receiver was charged");
        let most = receiver.accepted().into_values().max();
        assert!(most <= Some(times), "an event came {most:?} times");
        let loud = self.loud_lines();
        let times = |line| loud.iter().filter(|other| *other == line).count();
        assert!(loud.iter().all(|line| times(line) <= self.outages), "it repeats itself: {loud:#?}");
        assert!(loud.len() <= LINES * self.outages, "too many lines: {loud:#?}");
        assert!(!self.posthaste.log().contains("panicked"));
        assert!(self.posthaste.terminate().await.success());
        check_invariants(&self.db, &[&self.receiver]).await;
        self.db
    }
}
