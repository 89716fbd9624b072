//! What is wrong with a request is told, all of it at once, and nothing is half done.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::common::{Db, check_invariants};
use crate::{ADMIN, Api};

#[tokio::test]
async fn every_fault_of_a_request_is_named_and_nothing_is_written() {
    let db = Db::new().await;
    let org = db.org().await;
    let api = Api::on(&db).await;
    for (path, fields) in [
        (
            "/deliveries?limit=0&cursor=x&status=dead,alive&from=yesterday&to=2026-13-01",
            &["from", "to", "status", "limit", "cursor"][..],
        ),
        ("/deliveries?destination=1&event_type=", &["destination", "event_type"]),
        ("/deliveries?what=1&limit=1&limit=2", &["limit", "what"]),
        ("/deliveries?from=2026-02-01&to=2026-01-01", &["to"]),
        ("/deliveries/1", &["id"]),
        ("/deliveries/1/attempts", &["id"]),
        ("/events?status=dead", &["status"]),
        ("/events?event_type=%00", &["event_type"]),
        ("/events?limit=201", &["limit"]),
        ("/jobs?limit=x&cursor=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", &["limit", "cursor"]),
        ("/jobs/x", &["id"]),
    ] {
        api.get(org, path).await.names(fields);
    }
    let long = "x".repeat(101);
    let events = format!("/api/v1/orgs/{org}/events");
    for (body, fields) in [
        (r#"{"event_type": 1, "payload": {}, "id": "x", "more": 1}"#, &["event_type", "id", "more"][..]),
        (r#"{"payload": {}}"#, &["event_type"]),
        (r#"{"event_type": "a", "payload": "\u0000"}"#, &["payload"]),
        (r#"{"event_type": "", "event_category": "webhook"}"#, &["event_type", "event_category"]),
        (
            &format!(r#"[{{"event_type": "a"}}, {{"event_type": "{long}", "client_name": "{long}"}}]"#),
            &["events[1].event_type", "events[1].client_name"],
        ),
        (
            r#"[{"event_type": "a"}, {"event_type": "b", "session_id": 1, "z": 1}]"#,
            &["events[1].session_id", "events[1].z"],
        ),
        (r#"{"event_type": "a", "employee_id": "00000000-0000-0000-0000-000000000001"}"#, &["employee_id"]),
        (
            r#"[{"event_type": "a"},
                {"event_type": "a", "employee_id": "00000000-0000-0000-0000-000000000001"}]"#,
            &["events[1].employee_id"],
        ),
        ("[]", &["events"]),
        ("{", &["body"]),
        ("\"text\"", &["body"]),
        ("null", &["body"]),
        (r#"{"event_type": "a", "event_type": "b"}"#, &["body"]),
    ] {
        api.ask(ADMIN, "POST", &events, body).await.names(fields);
    }
    let many = Value::from(vec![json!({"event_type": "a"}); 1_001]);
    api.post(org, "/events", &many).await.names(&["events"]);
    let retries = |ids: Value| json!({ "ids": ids });
    api.post(org, "/deliveries/retry", &retries(json!([]))).await.names(&["ids"]);
    api.post(org, "/deliveries/retry", &retries(json!([1, "x"]))).await.names(&["ids[0]"]);
    api.post(org, "/deliveries/retry", &json!({})).await.names(&["ids"]);
    let destination = db.destination(org, "http://x/").insert().await;
    let of_it = |what: &str| format!("/destinations/{destination}/{what}");
    let wrong = json!({"status": ["dead", "pending"], "from": "x", "to": 3});
    api.post(org, &of_it("replay"), &wrong).await.names(&["to"]);
    let wrong = json!({"status": ["dead", "pending"], "from": "x", "event_type": ""});
    api.post(org, &of_it("replay"), &wrong).await.names(&["from", "status", "event_type"]);
    api.post(org, &of_it("backfill"), &json!({})).await.names(&["from"]);
    assert_eq!(db.number("SELECT count(*) FROM activity_logs").await, 0);
    assert_eq!(db.number("SELECT count(*) FROM posthaste_jobs").await, 0);
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn what_is_no_json_too_large_or_elsewhere_is_told() {
    let db = Db::new().await;
    let org = db.org().await;
    let api =
        Api::with(&db, &[("POSTHASTE_ADMIN_TOKEN", ADMIN), ("POSTHASTE_MAX_EVENT_BYTES", "1KiB")]).await;
    let bearer = format!("Bearer {ADMIN}");
    let events = format!("/api/v1/orgs/{org}/events");
    for headers in [&[][..], &[("content-type", "text/plain")], &[("content-type", "application/json-seq")]] {
        let headers = [&[("authorization", bearer.as_str())], headers].concat();
        api.send("POST", &events, &headers, br#"{"event_type": "a"}"#).await.is_problem(415);
    }
    let retry = format!("/api/v1/orgs/{org}/deliveries/retry");
    let body = format!(r#"{{"ids": [{}]}}"#, vec!["\"x\""; 70_000].join(","));
    api.ask(ADMIN, "POST", &retry, &body).await.is_problem(413);
    let large = json!({"event_type": "a", "payload": "x".repeat(2 << 20)});
    api.post(org, "/events", &large).await.is_problem(413);
    let too_large_to_deliver = json!({"event_type": "a", "payload": "x".repeat(1024)});
    api.post(org, "/events", &too_large_to_deliver).await.names(&["payload"]);
    // Few bytes as they are sent, and many as they are printed.
    let monster = r#"[{"event_type": "a"}, {"event_type": "a", "payload": 1e131071}]"#;
    api.ask(ADMIN, "POST", &events, monster).await.names(&["events[1].payload"]);
    let put = api.admin("PUT", org, "/events", &json!({})).await;
    assert_eq!(put.is_problem(405).header("allow"), Some("get, head, post"));
    let delete = api.admin("DELETE", org, "/deliveries/retry", &Value::Null).await;
    assert_eq!(delete.is_problem(405).header("allow"), Some("post"));
    for path in ["/", "/api/v1", "/api/v2/orgs", "/nothing"] {
        api.ask(ADMIN, "GET", path, "").await.is_problem(404);
    }
    api.get(org, "/nothing").await.is_problem(404);
    // An organization that nobody knows, and one that cannot be.
    api.get(Uuid::new_v4(), "/events").await.is_problem(404);
    api.ask(ADMIN, "GET", "/api/v1/orgs/x/events", "").await.names(&["org_id"]);
    assert_eq!(db.number("SELECT count(*) FROM activity_logs").await, 0);
    // What SQL has written is shown without its payload.
    let id = db.event(org, "a", r#"{"n": 1e131071}"#).await;
    let shown = api.get(org, &format!("/events/{id}")).await.success(200);
    assert_eq!((&shown["payload"], &shown["payload_too_large"]), (&Value::Null, &json!(true)));
}
