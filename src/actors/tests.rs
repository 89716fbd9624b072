//! What cannot be brought about from outside: a panic in an actor's code, an event loop that freezes.

use std::time::Duration;

use actix_web::{App, HttpResponse, HttpServer, web};
use tokio::sync::mpsc;

use super::supervision::{Fatal, Part, Watchdog};
use super::*;
use crate::config::DispatchArgs;
use crate::embedded::{Durability, Embedded};
use crate::model::{DestinationId, OrgId, Status};
use crate::store::demo::{self, NewDestination, NewEvent};
use crate::store::{jobs as stored_jobs, migrate};

/// A receiver on loopback that passes on the path of every request.
fn receiver() -> (String, mpsc::UnboundedReceiver<String>) {
    let (seen, requests) = mpsc::unbounded_channel();
    let server = HttpServer::new(move || {
        let seen = seen.clone();
        App::new().default_service(web::to(move |request: actix_web::HttpRequest| {
            seen.send(request.path().to_owned()).unwrap_or(());
            std::future::ready(HttpResponse::Ok())
        }))
    });
    let server = server.workers(1).disable_signals().bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", server.addrs()[0]);
    actix_rt::spawn(server.run());
    (url, requests)
}

async fn next(requests: &mut mpsc::UnboundedReceiver<String>) -> String {
    let waited = tokio::time::timeout(Duration::from_secs(60), requests.recv()).await;
    waited.expect("a request within a minute").expect("the receiver lives")
}

/// A migrated database of its own.
struct Database {
    server: Embedded,
    options: ConnectOptions,
    _dir: tempfile::TempDir,
}

async fn database() -> Database {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("its mode");
    let place = dir.path().join("postgres");
    let server = tokio::task::spawn_blocking(move || Embedded::start(&place, Durability::Throwaway))
        .await
        .expect("no panic")
        .expect("a private PostgreSQL");
    let options = store::options(&server.url("postgres")).expect("a URL");
    migrate::migrate(&options, migrate::Options::default()).await.expect("tables");
    Database { server, options, _dir: dir }
}

impl Database {
    async fn connect(&self) -> store::Connection {
        store::connect(&self.options).await.expect("a connection")
    }

    fn dispatcher(&self, flags: &[&str], supervision: Supervision) -> Dispatcher {
        let flags = [&["--allow-networks=127.0.0.0/8"], flags].concat();
        let args = DispatchArgs::from_flags(&flags).expect("flags");
        let config = args.validate(self.server.url("postgres")).expect("valid");
        Dispatcher::start(config, self.options.clone(), supervision).expect("a dispatcher")
    }

    async fn stop(self) {
        let server = self.server;
        tokio::task::spawn_blocking(move || server.stop()).await.expect("no panic").expect("stopped");
    }
}

#[actix_rt::test]
async fn a_destination_that_panics_comes_back_and_the_others_do_not_notice() {
    let database = database().await;
    let mut db = database.connect().await;
    let org: OrgId = demo::insert_organization(&mut db, "one").await.expect("an organization");
    let (url, mut requests) = receiver();
    let mut ids: Vec<DestinationId> = Vec::new();
    for name in ["/first", "/second"] {
        ids.push(insert(&mut db, org, &format!("{url}{name}")).await);
    }
    let dispatcher = database.dispatcher(&["--poll-interval=100ms"], Supervision::default());

    event(&mut db, org, "test").await;
    let mut both = [next(&mut requests).await, next(&mut requests).await];
    both.sort();
    assert_eq!(both, ["/first", "/second"]);

    // What a panic finds in flight is sent again only when its lease ends: that is not what this test waits
    // for.
    while demo::not_delivered(&mut db).await.expect("a count") > 0 {}
    dispatcher.supervisor.send(supervisor::panics::LetPanic(ids[0])).await.expect("the supervisor lives");
    while dispatcher.supervisor.send(supervisor::Snapshot).await.expect("the supervisor lives").panics == 0 {}
    event(&mut db, org, "test").await;
    let mut both = [next(&mut requests).await, next(&mut requests).await];
    both.sort();
    assert_eq!(both, ["/first", "/second"], "the one came back, the other went on");
    let state = dispatcher.supervisor.send(supervisor::Snapshot).await.expect("the supervisor lives");
    assert_eq!((state.panics, state.destinations), (1, 2));

    let destinations =
        dispatcher.supervisor.send(supervisor::Destinations).await.expect("the supervisor lives");
    assert_eq!(destinations.len(), 2);
    assert!(destinations.iter().all(|d| d.ready == 0 && !d.tripped && d.fault.is_none()), "{destinations:?}");

    // A panic of a request is nobody's failure: its delivery waits, and what comes after it goes on.
    event(&mut db, org, "panic").await;
    let postponed = "SELECT count(*) FROM public.webhook_deliveries
        WHERE status = 'pending' AND attempts = 0 AND next_retry_at > created_at + interval '500 ms'";
    while sqlx::query_scalar::<_, i64>(postponed).fetch_one(&mut db).await.expect("a count") < 2 {}
    event(&mut db, org, "test").await;
    let mut both = [next(&mut requests).await, next(&mut requests).await];
    both.sort();
    assert_eq!(both, ["/first", "/second"]);

    dispatcher.stop().await;
    drop(db);
    database.stop().await;
}

/// Waits until `part` has panicked, as it was asked to.
async fn panicked(dispatcher: &Dispatcher, part: Part, times: u64) {
    dispatcher.shared.supervision.ask_to_panic(part);
    eventually("it panics", async || dispatcher.shared.supervision.panics(part) >= times).await;
}

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let begun = crate::clock::now();
    while !holds().await {
        assert!(begun.elapsed() < Duration::from_secs(30), "not within half a minute: {what}");
        tokio::task::yield_now().await;
    }
}

/// Waits until everything is delivered.
async fn delivered(db: &mut store::Connection) {
    eventually("everything is delivered", async || demo::not_delivered(db).await.expect("a count") == 0)
        .await;
}

#[actix_rt::test]
async fn jobs_the_listener_and_retention_come_back_after_a_panic_and_readiness_tells_meanwhile() {
    let database = database().await;
    let mut db = database.connect().await;
    let org: OrgId = demo::insert_organization(&mut db, "one").await.expect("an organization");
    let (url, mut requests) = receiver();
    let destination = insert(&mut db, org, &format!("{url}/it")).await;
    // No poll finds anything: all depends on notifications, and on the pauses between passes.
    let dispatcher = database.dispatcher(&["--poll-interval=1h"], Supervision::default());
    event(&mut db, org, "test").await;
    assert_eq!(next(&mut requests).await, "/it");
    eventually("a pass of retention", async || dispatcher.retention().last_pass.is_some()).await;
    delivered(&mut db).await;

    for part in [Part::Listener, Part::Jobs, Part::Retention] {
        for times in 1..=3 {
            panicked(&dispatcher, part, times).await;
        }
        let readiness = dispatcher.readiness().await;
        let warnings = dispatcher.shared.supervision.warnings();
        assert_eq!((readiness.problems.len(), readiness.warnings), (0, warnings.clone()));
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("panicked and is to be started again"), "{warnings:?}");
        eventually("it starts again", async || !dispatcher.shared.supervision.is_down(part)).await;
    }
    event(&mut db, org, "test").await;
    assert_eq!(next(&mut requests).await, "/it", "the listener hears again");
    delivered(&mut db).await;

    let spec = stored_jobs::Spec {
        kind: stored_jobs::Kind::Replay,
        org,
        destination,
        from: None,
        to: None,
        statuses: vec![Status::Delivered],
        event_type: None,
    };
    stored_jobs::create(&mut db, &spec).await.expect("a job").expect("not too many");
    dispatcher.jobs.wake();
    assert_eq!([next(&mut requests).await, next(&mut requests).await], ["/it", "/it"], "the job is done");
    delivered(&mut db).await;

    let age = "UPDATE public.webhook_deliveries SET delivered_at = delivered_at - interval '1 y'";
    sqlx::query(age).execute(&mut db).await.expect("old deliveries");
    panicked(&dispatcher, Part::Retention, 4).await;
    assert!(dispatcher.retention().last_pass.is_some(), "what was known before is not forgotten");
    eventually("they are deleted", async || dispatcher.retention().deleted[0] == 2).await;
    assert!(dispatcher.readiness().await.warnings.is_empty());
    dispatcher.stop().await;
    drop(db);
    database.stop().await;
}

#[actix_rt::test]
async fn a_delivery_that_freezes_its_worker_ends_the_process_and_keeps_its_lease() {
    let database = database().await;
    let mut db = database.connect().await;
    let org: OrgId = demo::insert_organization(&mut db, "one").await.expect("an organization");
    insert(&mut db, org, "http://127.0.0.1:9/").await;
    let supervision = Supervision::default();
    Watchdog::start(supervision.clone(), Duration::from_millis(200), || {}).expect("a thread");
    let dispatcher = database.dispatcher(&["--workers=2"], supervision.clone());
    event(&mut db, org, "freeze").await;
    let ended = tokio::time::timeout(Duration::from_secs(60), supervision.ended()).await;
    let Ok(Fatal::Frozen(name)) = ended else { panic!("not frozen: {ended:?}") };
    assert!(["worker 1 of 2", "worker 2 of 2"].contains(&name.as_str()), "{name}");
    let leased = "SELECT count(*) FROM public.webhook_deliveries
        WHERE status = 'pending' AND attempts = 0 AND last_attempt_at >= next_retry_at";
    assert_eq!(sqlx::query_scalar::<_, i64>(leased).fetch_one(&mut db).await.expect("a count"), 1);
    assert!(dispatcher.readiness().await.problems.is_empty(), "nothing else is frozen");
    drop(db);
    database.stop().await;
}

async fn insert(db: &mut store::Connection, org: OrgId, url: &str) -> DestinationId {
    let new = NewDestination {
        org,
        name: url.to_owned(),
        url: url.to_owned(),
        event_types: Vec::new(),
        event_filter: "{}".into(),
        batch_size: 1,
        timeout_ms: 5000,
        retry_max: 3,
        retry_backoff_ms: 1000,
        signing_secret: crate::model::Secret::new("a secret"),
    };
    demo::insert_destination(db, &new).await.expect("a destination")
}

async fn event(db: &mut store::Connection, org: OrgId, event_type: &'static str) {
    let id = crate::model::EventId(uuid::Uuid::new_v4());
    let (content, payload) = ("something".to_owned(), "{}".to_owned());
    let new = NewEvent { id, org, event_type, content, payload };
    demo::insert_events(db, &[new]).await.expect("an event");
}
