//! What every bad day is played on: one destination, one receiver, a stream of events, the real program.

use std::time::{Duration, Instant};

use posthaste::model::Secret;
use sqlx::Row;
use uuid::Uuid;

use crate::common::{Db, Posthaste, Receiver, Reply, check_invariants, eventually};

/// How long a fault lasts at least: several times as long as what tries again waits.
const OUTAGE: Duration = Duration::from_secs(2);
/// Lines of log above `info` that one outage may cost: claiming, recording, looking at the destinations and
/// listening may each say once what is wrong.
const LINES: usize = 4;

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
        db.destination(org, receiver.url("/")).retry(3, 100).insert().await;
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

    /// Inserts events one by one, for as long as `outage` takes, or the database refuses them.
    pub async fn produce_during(&mut self, outage: impl Future<Output = ()>) {
        let sql = "INSERT INTO activity_logs (org_id, event_type, event_category)
                   VALUES ($1, 'test.event', 'test') RETURNING id";
        let pool = self.db.pool.clone();
        let produce = async {
            while let Ok(row) = sqlx::query(sql).bind(self.org).fetch_one(&pool).await {
                self.events.push(row.get(0));
                tokio::task::yield_now().await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = produce => {}
            () = outage => {}
        }
    }

    /// Waits until deliveries go on.
    pub async fn flows(&self) {
        let before = self.receiver.accepted().len();
        eventually("the stream flows", async || self.receiver.accepted().len() > before).await;
    }

    pub async fn status(&self, path: &str) -> Option<u16> {
        self.posthaste.get(path).await.map(|(status, _)| status)
    }

    /// Waits until the process says that it is not ready and why, in one of these words, until its log says so
    /// too, and until the fault has lasted for a while.
    pub async fn suffers(&mut self, causes: &[&str]) {
        self.outages += 1;
        let start = Instant::now();
        let names_it = |text: &str| causes.iter().any(|cause| text.contains(cause));
        let mut said = None;
        eventually(&format!("the process says that it is not ready: {causes:?}"), async || {
            said = self.posthaste.get("/readyz").await;
            said.as_ref().is_some_and(|(status, body)| *status == 503 && names_it(body))
        })
        .await;
        let is_told = async || self.loud_lines().iter().any(|line| names_it(line));
        eventually(&format!("the log says what is wrong: {said:?}"), is_told).await;
        assert_eq!(self.status("/healthz").await, Some(200), "but it lives");
        eventually("the fault has lasted for a while", async || start.elapsed() >= OUTAGE).await;
    }

    /// The lines of the log that are meant to be seen.
    pub fn loud_lines(&self) -> Vec<String> {
        let is_loud = |line: &&str| line.contains(" ERROR ") || line.contains(" WARN ");
        self.posthaste.log().lines().filter(is_loud).map(str::to_owned).collect()
    }

    /// Call it right after the cure of `what`: waits until the process is ready and delivers.
    pub async fn recovers(&mut self, what: &str) {
        let start = Instant::now();
        self.posthaste.ready().await;
        let ready = start.elapsed();
        self.events.extend(self.db.events(self.org, 1).await);
        let last = *self.events.last().unwrap();
        eventually("a new event is delivered", async || self.receiver.accepted().contains_key(&last)).await;
        eprintln!("{what}: ready after {ready:.1?}, delivering after {:.1?}", start.elapsed());
    }

    /// What holds after every bad day. Each event came, at most as often as `times`.
    pub async fn ends(mut self, times: usize) {
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
        assert!(loud.len() <= LINES * self.outages, "too many lines: {loud:#?}");
        assert!(!self.posthaste.log().contains("panicked"));
        assert!(self.posthaste.terminate().await.success());
        check_invariants(&self.db, &[&self.receiver]).await;
    }
}
