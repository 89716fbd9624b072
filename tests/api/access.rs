//! Who may do what.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sqlx::Row as _;
use uuid::Uuid;

use crate::common::{Db, Posthaste, Receiver, Reply, check_invariants, eventually, run};
use crate::{ADMIN, Api};

/// Everything in the database but when keys were last used.
async fn contents(db: &Db) -> BTreeMap<String, String> {
    let tables = "SELECT table_name::text FROM information_schema.tables WHERE table_schema = 'public'";
    let mut contents = BTreeMap::new();
    for row in sqlx::query(tables).fetch_all(&db.pool).await.unwrap() {
        let table: String = row.get(0);
        let sql = format!(
            "SELECT coalesce(string_agg(r, E'\\n' ORDER BY r), '')
             FROM (SELECT (to_jsonb(t) - 'last_used_at')::text AS r FROM {table} t) rows"
        );
        let all = db.text(&sql).await.unwrap();
        contents.insert(table, all);
    }
    contents
}

#[tokio::test]
async fn without_token_and_key_the_api_says_how_to_set_one() {
    let db = Db::new().await;
    let org = db.org().await;
    let api = Api::with(&db, &[]).await;
    let path = format!("/api/v1/orgs/{org}/events");
    for path in [&path, "/api/v1/keys"] {
        let answer = api.ask("anything", "GET", path, "").await;
        let detail = answer.is_problem(503).body["detail"].as_str().unwrap();
        assert!(
            detail.contains("POSTHASTE_ADMIN_TOKEN") && detail.contains("posthaste keys create"),
            "{detail}"
        );
    }
    // A key made by the shell opens it at once.
    let environment = [("DATABASE_URL", db.url.reveal()), ("POSTHASTE_ORG", &org.to_string())];
    let made = run(&["keys", "create", "--name", "first", "--role", "read", "--json"], &environment);
    assert!(made.status.success(), "{made:?}");
    let made: Value = serde_json::from_slice(&made.stdout).unwrap();
    api.ask(made["key"].as_str().unwrap(), "GET", &path, "").await.success(200);
    api.ask("anything", "GET", &path, "").await.is_problem(401);
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn only_the_exact_token_is_the_admin_s() {
    let db = Db::new().await;
    let org = db.org().await;
    let api = Api::on(&db).await;
    let path = format!("/api/v1/orgs/{org}/events");
    api.ask(ADMIN, "GET", &path, "").await.success(200);
    for token in ["", "the-token-of-the-admi", "the-token-of-the-admin2", "THE-TOKEN-OF-THE-ADMIN", "phk_x_y"]
    {
        let answer = api.ask(token, "GET", &path, "").await;
        assert_eq!(answer.is_problem(401).header("www-authenticate"), Some("bearer"), "{token}");
    }
    for headers in [&[][..], &[("authorization", "Basic dGhl")], &[("authorization", ADMIN)]] {
        api.send("GET", &path, headers, b"").await.is_problem(401);
    }
    // Health, metrics and the document are for everybody.
    for path in ["/healthz", "/readyz", "/metrics", "/api/openapi.json", "/api/docs/"] {
        api.send("GET", path, &[], b"").await.success(200);
    }
    api.posthaste.assert_silent_about(&[ADMIN]);
}

#[tokio::test]
async fn a_key_reads_or_writes_in_its_organization_until_it_is_revoked() {
    let db = Db::new().await;
    let org = db.org().await;
    let api = Api::on(&db).await;
    let (reader, writer) = (api.key(org, "read").await, api.key(org, "write").await);
    let path = format!("/api/v1/orgs/{org}/events");
    let event = r#"{"event_type": "a.b"}"#;
    api.ask(&reader, "GET", &path, "").await.success(200);
    api.ask(&reader, "POST", &path, event).await.is_problem(403);
    api.ask(&writer, "POST", &path, event).await.success(201);
    assert_eq!(db.number("SELECT count(*) FROM activity_logs").await, 1);
    // Keys are the admin's: to others there is nothing.
    for (method, body) in [("GET", ""), ("POST", "{}")] {
        api.ask(&writer, method, "/api/v1/keys", body).await.is_problem(404);
    }

    let listed = api.ask(ADMIN, "GET", "/api/v1/keys", "").await.success(200);
    let listed = listed["items"].as_array().unwrap();
    assert_eq!(listed.len(), 2);
    eventually("the use of the keys is noted", async || {
        db.number("SELECT count(*) FROM posthaste_api_keys WHERE last_used_at IS NOT NULL").await == 2
    })
    .await;
    for one in listed {
        let prefix = one["prefix"].as_str().unwrap();
        assert!(reader.starts_with(prefix) || writer.starts_with(prefix), "{one}");
        assert!(!one.to_string().contains(&reader) && !one.to_string().contains(&writer), "{one}");
        assert_eq!((&one["org_id"], &one["name"]), (&json!(org), &json!("a key")));
        let path = format!("/api/v1/keys/{}", one["id"].as_str().unwrap());
        assert_eq!(api.ask(ADMIN, "DELETE", &path, "").await.success(204), Value::Null);
        api.ask(ADMIN, "DELETE", &path, "").await.success(204);
    }
    api.ask(&reader, "GET", &path, "").await.is_problem(401);
    api.ask(&writer, "POST", &path, event).await.is_problem(401);
    // What is stored opens nothing.
    for row in
        sqlx::query("SELECT to_jsonb(k)::text FROM posthaste_api_keys k").fetch_all(&db.pool).await.unwrap()
    {
        let row: String = row.get(0);
        assert!(!row.contains(&reader) && !row.contains(&writer), "{row}");
    }
    api.posthaste.assert_silent_about(&[&reader, &writer, ADMIN]);
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn an_id_that_another_organization_has_used_is_refused_like_any_other_that_is_taken() {
    let db = Db::new().await;
    let (ours, theirs) = (db.org().await, db.org().await);
    let api = Api::on(&db).await;
    let key = api.key(theirs, "write").await;
    let [foreign, own] = [Uuid::new_v4(), Uuid::new_v4()];
    let event = |id: Uuid, content: &str| json!({"id": id, "event_type": "a.b", "content": content});
    api.post(ours, "/events", &event(foreign, "secret")).await.success(201);
    let path = format!("/api/v1/orgs/{theirs}/events");
    let send =
        async |id: Uuid, content: &str| api.ask(&key, "POST", &path, &event(id, content).to_string()).await;
    send(own, "secret").await.success(201);
    send(own, "secret").await.success(201);
    let mut told = Vec::new();
    for (id, content) in [(own, "guess"), (foreign, "guess"), (foreign, "secret")] {
        let answer = send(id, content).await;
        told.push(answer.is_problem(409).body.to_string().replace(&id.to_string(), ""));
    }
    assert!(told[0] == told[1] && told[0] == told[2], "{told:?}");
    assert_eq!(db.number("SELECT count(*) FROM activity_logs").await, 2);
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn a_read_key_sees_no_query_of_a_url_and_a_write_key_sees_it() {
    let db = Db::new().await;
    let org = db.org().await;
    let receiver = Receiver::scripted(|request| Reply::body(404, format!("Cannot POST {}", request.path)));
    let api = Api::on(&db).await;
    let (reader, writer) = (api.key(org, "read").await, api.key(org, "write").await);
    let destination =
        db.destination(org, receiver.url("/hook?token=hunter2hunter2")).retry(0, 100).insert().await;
    let event = db.event(org, "a.b", "{}").await;
    db.settled().await;
    let delivery = db.text("SELECT id FROM webhook_deliveries").await.unwrap();
    let paths = [
        "/destinations".to_owned(),
        format!("/destinations/{destination}"),
        format!("/destinations/{destination}/stats"),
        "/deliveries".into(),
        format!("/deliveries/{delivery}"),
        format!("/deliveries/{delivery}/attempts"),
        format!("/events/{event}"),
    ];
    let mut shown = 0;
    for path in &paths {
        let path = format!("/api/v1/orgs/{org}{path}");
        let answer = api.ask(&reader, "GET", &path, "").await;
        let tag = answer.header("etag").map(str::to_owned);
        let text = answer.success(200).to_string();
        assert!(!text.contains("hunter2"), "{path}: {text}");
        let answer = api.ask(&writer, "GET", &path, "").await;
        assert_eq!(answer.header("etag").map(str::to_owned), tag, "{path}: it says nothing about contents");
        shown += usize::from(answer.success(200).to_string().contains("token=hunter2hunter2"));
    }
    assert!(shown >= 2, "a write key sees it where it is");
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn with_the_least_rights_the_api_reads_and_says_what_is_missing_to_manage() {
    let db = Db::new().await;
    let org = db.org().await;
    let (role, url) = db.role(include_str!("../../examples/deploy/grants.sql")).await;
    let environment = [("POSTHASTE_ADMIN_TOKEN", ADMIN)];
    let mut api = Api { posthaste: Posthaste::serve_with(&url, &environment).await };
    for path in ["/events", "/deliveries", "/destinations", "/jobs"] {
        api.get(org, path).await.success(200);
    }
    api.post(org, "/events", &json!({"event_type": "a.b"})).await.success(201);
    let new = json!({"name": "x", "url": "https://example.com/"});
    let refused = api.post(org, "/destinations", &new).await;
    assert!(refused.is_problem(403).body["detail"].as_str().unwrap().contains("grants-management.sql"));
    let key = json!({"org_id": org, "name": "x", "role": "read"}).to_string();
    api.ask(ADMIN, "POST", "/api/v1/keys", &key).await.is_problem(403);
    assert!(api.posthaste.terminate().await.success());
    db.drop_role(&role).await;
}

/// One thing of each kind of an organization, all at rest, and their ids by the tag of their operations.
async fn one_of_each(db: &Db, api: &Api, org: Uuid, receiver: &Receiver) -> BTreeMap<&'static str, String> {
    let destination = db
        .destination(org, receiver.url("/"))
        .secret("whsec_c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0")
        .insert()
        .await;
    let event = db.event(org, "a.b", "{}").await;
    db.settled().await;
    let job = api.post(org, &format!("/destinations/{destination}/replay"), &Value::Null).await.success(202);
    let job = job["id"].as_str().unwrap().to_owned();
    eventually("the job is done", async || {
        api.get(org, &format!("/jobs/{job}")).await.success(200)["state"] == "done"
    })
    .await;
    let delivery = db.text("SELECT id FROM webhook_deliveries LIMIT 1").await.unwrap();
    let key = api.key(org, "read").await;
    let key = db
        .text(&format!("SELECT id FROM posthaste_api_keys WHERE starts_with('{key}', 'phk_' || prefix)"))
        .await
        .unwrap();
    BTreeMap::from([
        ("destinations", destination.to_string()),
        ("deliveries", delivery),
        ("events", event.to_string()),
        ("jobs", job),
        ("keys", key),
    ])
}

#[tokio::test]
async fn to_a_key_of_another_organization_nothing_exists_and_nothing_changes() {
    let db = Db::new().await;
    let (ours, theirs) = (db.org().await, db.org().await);
    let api = Api::on(&db).await;
    let receiver = Receiver::start();
    let things = one_of_each(&db, &api, ours, &receiver).await;
    let key = api.key(theirs, "write").await;
    let before = contents(&db).await;
    let document = api.document().await;
    let mut walked = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let (method, tag) = (method.to_uppercase(), operation["tags"][0].as_str().unwrap());
            let body = match (&method[..], path.rsplit('/').next().unwrap()) {
                ("GET" | "DELETE", _) => json!(null),
                (_, "backfill") => json!({"from": "2026-01-01"}),
                ("POST", "deliveries" | "events") => json!({"event_type": "a.b"}),
                (_, "retry") if !path.contains("{id}") => json!({"ids": [things["deliveries"]]}),
                ("POST", "destinations") => json!({"name": "x", "url": "https://example.com/"}),
                ("POST", "keys") => json!({"org_id": ours, "name": "x", "role": "write"}),
                _ => json!({}),
            };
            let body = if body.is_null() { String::new() } else { body.to_string() };
            let with_id = path.replace("{id}", &things[tag]);
            let address = with_id.replace("{org_id}", &ours.to_string());
            api.ask(&key, &method, &address, &body).await.is_problem(404);
            // Nor by way of their own organization.
            if path.contains("{id}") || path.ends_with("/deliveries/retry") {
                let address = with_id.replace("{org_id}", &theirs.to_string());
                api.ask(&key, &method, &address, &body).await.is_problem(404);
            }
            walked += 1;
        }
    }
    assert!(walked >= 25, "only {walked} operations");
    assert_eq!(contents(&db).await, before);
    // The same requests find something when the right one asks: the walk went to where things are.
    for (tag, id) in &things {
        let path = match *tag {
            "keys" => continue,
            tag => format!("/{tag}/{id}"),
        };
        api.get(ours, &path).await.success(200);
    }
    check_invariants(&db, &[&receiver]).await;
}
