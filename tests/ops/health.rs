//! `/healthz` and `/readyz`, and where they are.

use serde_json::Value;

use crate::common::{Db, Posthaste, Receiver, Reply, check_invariants, eventually, free_port, run};
use crate::page::Page;

#[tokio::test]
async fn health_and_metrics_move_to_an_address_of_their_own() {
    let db = Db::new().await;
    let mut posthaste = Posthaste::serve_with(&db.url, &[("POSTHASTE_METRICS_LISTEN", "127.0.0.1:0")]).await;
    let (main, own) = (posthaste.address(), posthaste.operations_address());
    assert_ne!(main, own);
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(posthaste.get_from(main, path).await.unwrap().0, 404, "{path}");
        assert_eq!(posthaste.get_from(own, path).await.unwrap().0, 200, "{path}");
    }
    assert!(posthaste.terminate().await.success());
}

#[tokio::test]
async fn an_address_that_cannot_be_had_is_named_with_its_option() {
    let db = Db::new().await;
    let taken = std::net::TcpListener::bind(("127.0.0.1", free_port())).unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let output = run(&["serve"], &[("DATABASE_URL", db.url.reveal()), ("POSTHASTE_METRICS_LISTEN", &taken)]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains(&taken) && said.contains("POSTHASTE_METRICS_LISTEN"), "{said}");
}

#[tokio::test]
async fn a_listener_that_cannot_listen_is_a_warning_and_the_process_stays_ready() {
    let db = Db::new().await;
    let posthaste = Posthaste::serve(&db.url).await;
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND query ILIKE 'listen%'";
    let mut told = Value::Null;
    eventually("the listener is missed", async || {
        db.execute(end).await;
        let (status, body) = posthaste.get("/readyz").await.unwrap();
        told = serde_json::from_str(&body).unwrap();
        assert_eq!((status, &told["ready"]), (200, &true.into()), "{body}");
        told["warnings"].as_array().is_some_and(|warnings| !warnings.is_empty())
    })
    .await;
    assert!(told["warnings"][0].as_str().unwrap().contains("polling finds the work"), "{told}");
    eventually("it listens again", async || {
        Page::of(&posthaste).await.value("posthaste_listener_up", &[]) == 1.0
    })
    .await;
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn destinations_in_trouble_are_warnings_with_their_ids() {
    let db = Db::new().await;
    let receiver = Receiver::with(Reply::Status(503));
    let org = db.org().await;
    let id = db.destination(org, receiver.url("/")).name("billing").retry(10, 100).insert().await;
    let posthaste = Posthaste::serve_with(&db.url, &[("POSTHASTE_BREAKER_THRESHOLD", "2")]).await;
    let (_, before) = posthaste.get("/readyz").await.unwrap();
    assert!(!before.contains("billing"), "{before}");
    db.events(org, 5).await;
    eventually("it is told", async || {
        let (status, body) = posthaste.get("/readyz").await.unwrap();
        let told: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, &told["ready"]), (200, &true.into()), "{body}");
        let warnings = told["warnings"].as_array().unwrap();
        let names = format!("destination \"billing\" ({id}) is tripped since");
        warnings.iter().any(|warning| warning.as_str().unwrap().starts_with(&names))
    })
    .await;
    assert!(Page::of(&posthaste).await.value("posthaste_warnings", &[]) >= 1.0);
    check_invariants(&db, &[&receiver]).await;
}
