//! What cannot be brought about from outside: a panic in an actor's code.

use std::time::Duration;

use actix_web::{App, HttpResponse, HttpServer, web};
use tokio::sync::mpsc;

use super::*;
use crate::config::DispatchArgs;
use crate::embedded::{Durability, Embedded};
use crate::model::{DestinationId, OrgId};
use crate::store::demo::{self, NewDestination, NewEvent};
use crate::store::migrate;

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

#[actix_rt::test]
async fn a_destination_that_panics_comes_back_and_the_others_do_not_notice() {
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
    let mut db = store::connect(&options).await.expect("a connection");
    let org: OrgId = demo::insert_organization(&mut db, "one").await.expect("an organization");
    let (url, mut requests) = receiver();
    let mut ids: Vec<DestinationId> = Vec::new();
    for name in ["/first", "/second"] {
        ids.push(insert(&mut db, org, &format!("{url}{name}")).await);
    }
    let flags = ["--allow-networks=127.0.0.0/8", "--poll-interval=100ms"];
    let args = DispatchArgs::from_flags(&flags).expect("flags");
    let config = args.validate(server.url("postgres")).expect("valid");
    let dispatcher = Dispatcher::start(config, options).expect("a dispatcher");

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
    tokio::task::spawn_blocking(move || server.stop()).await.expect("no panic").expect("stopped");
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
