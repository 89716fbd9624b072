//! Destinations by the API: what is wrong is named, secrets are shown once, updates do not overtake each
//! other, and what is tried out is tried for real.

use serde_json::{Value, json};
use standardwebhooks::Webhook;
use uuid::Uuid;

use crate::common::{Db, Receiver, Reply, check_invariants, eventually};
use crate::{ADMIN, Api};

#[tokio::test]
async fn a_destination_lives_from_its_creation_to_its_end() {
    let db = Db::new().await;
    let org = db.org().await;
    let receiver = Receiver::start();
    let api = Api::on(&db).await;
    let new = json!({"name": "audit", "url": receiver.url("/hook"), "event_types": ["invoice.*"],
        "auth_type": "bearer", "auth_config": {"token": "a-bearer-token"},
        "settings": {"ordered": true, "extra_headers": {"x-tenant": "a-header-value"}}});
    let answer = api.post(org, "/destinations", &new).await;
    let (location, tag) =
        (answer.header("location").unwrap().to_owned(), answer.header("etag").unwrap().to_owned());
    let created = answer.success(201);
    let (id, secret) =
        (created["id"].as_str().unwrap(), created["signing_secret"].as_str().unwrap().to_owned());
    assert_eq!(location, format!("/api/v1/orgs/{org}/destinations/{id}"));
    assert!(secret.starts_with("whsec_") && secret.len() == 6 + 44, "{secret}");
    let path = format!("/destinations/{id}");
    let shown = api.get(org, &path).await;
    assert_eq!(shown.header("etag"), Some(&*tag));
    let shown = shown.success(200);
    for (field, expected) in [
        ("name", json!("audit")),
        ("event_types", json!(["invoice.*"])),
        ("enabled", json!(true)),
        ("has_signing_secret", json!(true)),
        ("retry_max", json!(3)),
    ] {
        assert_eq!(shown[field], expected, "{field}");
    }
    assert_eq!(shown["settings"]["ordered"], true);
    for secret in ["a-bearer-token", "a-header-value", &secret] {
        assert!(!shown.to_string().contains(secret), "{secret} is shown");
    }
    // What is created is served at once, and signed with that secret.
    api.post(org, "/events", &json!({"event_type": "invoice.paid"})).await.success(201);
    db.settled().await;
    let received = receiver.received();
    assert_eq!(received[0].header("authorization"), Some("Bearer a-bearer-token"));
    assert!(received[0].is_signed(&Webhook::new(&secret).unwrap()));

    let changed =
        api.admin("PATCH", org, &path, &json!({"retry_max": 7, "event_types": null})).await.success(200);
    assert_eq!(
        (&changed["retry_max"], &changed["event_types"], &changed["name"]),
        (&json!(7), &json!([]), &json!("audit"))
    );
    let listed = api.get(org, "/destinations?limit=1").await.success(200);
    assert_eq!((&listed["items"][0], &listed["next_cursor"]), (&changed, &Value::Null));
    assert_eq!(api.admin("DELETE", org, &path, &Value::Null).await.success(204), Value::Null);
    api.get(org, &path).await.is_problem(404);
    assert_eq!(db.number("SELECT count(*) FROM webhook_deliveries").await, 0);
    assert_eq!(db.number("SELECT count(*) FROM activity_logs").await, 1);
    api.posthaste.assert_silent_about(&["a-bearer-token", "a-header-value", &secret, ADMIN]);
}

#[tokio::test]
async fn a_key_that_sends_a_destination_elsewhere_is_told_which_credentials_stayed_behind() {
    let db = Db::new().await;
    let org = db.org().await;
    let (receiver, own) = (Receiver::start(), Receiver::start());
    let api = Api::on(&db).await;
    let key = api.key(org, "write").await;
    let new = json!({"name": "audit", "url": receiver.url("/hook"), "auth_type": "bearer",
        "auth_config": {"token": "a-bearer-token"},
        "settings": {"extra_headers": {"x-tenant": "a-header-value"}}});
    let id = api.post(org, "/destinations", &new).await.success(201)["id"].as_str().unwrap().to_owned();
    let path = format!("/api/v1/orgs/{org}/destinations/{id}");
    let patch = async |token: &str, change: Value| {
        api.ask(token, "PATCH", &path, &change.to_string()).await.success(200)
    };
    // The same origin, and the operator: nothing is dropped, and nothing is said.
    let moved = patch(&key, json!({"url": receiver.url("/other")})).await;
    assert_eq!((moved.get("dropped"), &moved["auth_type"]), (None, &json!("bearer")));
    let moved = patch(ADMIN, json!({"url": own.url("/")})).await;
    assert_eq!((moved.get("dropped"), &moved["auth_type"]), (None, &json!("bearer")));
    let moved = patch(&key, json!({"url": receiver.url("/hook")})).await;
    assert_eq!(moved["dropped"], json!(["auth_config", "settings.extra_headers"]));
    assert_eq!((&moved["auth_type"], &moved["auth_config"]), (&json!("none"), &json!({})));
    let done = api.ask(&key, "POST", &format!("{path}/test"), "").await.success(200);
    assert_eq!(done["delivered"], true);
    let headers = format!("{:?}", receiver.received()[0].headers);
    assert!(!headers.contains("a-bearer-token") && !headers.contains("a-header-value"), "{headers}");
    // What comes with it goes there.
    let with = json!({"url": own.url("/"), "auth_type": "bearer", "auth_config": {"token": "another-token"}});
    assert_eq!(patch(&key, with).await.get("dropped"), None);
    api.ask(&key, "POST", &format!("{path}/test"), "").await.success(200);
    assert_eq!(own.received()[0].header("authorization"), Some("Bearer another-token"));
    check_invariants(&db, &[&receiver, &own]).await;
}

#[tokio::test]
async fn keys_create_no_more_destinations_than_they_may() {
    let db = Db::new().await;
    let org = db.org().await;
    let api = Api::with(&db, &[("POSTHASTE_ADMIN_TOKEN", ADMIN), ("POSTHASTE_MAX_DESTINATIONS", "2")]).await;
    let key = api.key(org, "write").await;
    let create = async |token: &str, name: &str| {
        let new = json!({"name": name, "url": "https://example.com/"}).to_string();
        api.ask(token, "POST", &format!("/api/v1/orgs/{org}/destinations"), &new).await
    };
    create(&key, "a").await.success(201);
    create(&key, "b").await.success(201);
    let refused = create(&key, "c").await;
    let detail = refused.is_problem(409).body["detail"].as_str().unwrap();
    assert!(detail.contains("2 destinations") && detail.contains("POSTHASTE_MAX_DESTINATIONS"), "{detail}");
    create(ADMIN, "c").await.success(201);
    assert_eq!(db.number("SELECT count(*) FROM webhook_destinations").await, 3);
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn everything_that_is_wrong_with_a_destination_is_named_at_once() {
    let db = Db::new().await;
    let org = db.org().await;
    let api = Api::with(&db, &[("POSTHASTE_ADMIN_TOKEN", ADMIN), ("POSTHASTE_ALLOW_NETWORKS", "")]).await;
    let with = |members: Value| {
        let mut new = json!({"name": "x", "url": "https://example.com/"});
        new.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
        new
    };
    for (new, fields) in [
        (json!({}), &["name", "url"][..]),
        (json!({"name": 1, "url": true}), &["name", "url"]),
        (json!({"name": "x", "url": "ftp://example.com/"}), &["url"]),
        (json!({"name": "x", "url": "http://127.0.0.1/"}), &["url"]),
        (json!({"name": "x", "url": "http://[::ffff:169.254.169.254]/"}), &["url"]),
        (json!({"name": "x", "url": "http://2130706433/"}), &["url"]),
        (json!({"name": "x", "url": "https://user@example.com/"}), &["url"]),
        (with(json!({"unknown": 1})), &["unknown"]),
        (
            with(json!({"batch_size": 0, "timeout_ms": 1, "retry_max": 11, "retry_backoff_ms": 99})),
            &["batch_size", "timeout_ms", "retry_max", "retry_backoff_ms"],
        ),
        (with(json!({"auth_type": "bearer"})), &["auth_config.token"]),
        (with(json!({"event_filter": {"$what": 1}})), &["event_filter"]),
        (with(json!({"event_filter": {"$jsonpath": "$.("}})), &["event_filter"]),
        (with(json!({"signing_secret": "whsec_???"})), &["signing_secret"]),
        (
            with(json!({"settings": {"extra_headers": {"content-type": "x"}, "max_in_flight": 0}})),
            &["settings.max_in_flight", "settings.extra_headers"],
        ),
    ] {
        let answer = api.post(org, "/destinations", &new).await;
        let errors = answer.is_problem(400).body["errors"].as_array().unwrap();
        let told: Vec<&str> = errors.iter().map(|error| error["field"].as_str().unwrap()).collect();
        for field in fields {
            assert!(told.iter().any(|told| told.starts_with(field)), "{new}: {field} is not among {told:?}");
        }
        assert_eq!(told.len(), fields.len(), "{new}: {told:?}");
    }
    assert_eq!(db.number("SELECT count(*) FROM webhook_destinations").await, 0);
    api.post(org, "/destinations", &with(json!({}))).await.success(201);
    api.post(org, "/destinations", &with(json!({}))).await.is_problem(409);
}

#[tokio::test]
async fn who_was_overtaken_is_told_and_changes_nothing() {
    let db = Db::new().await;
    let org = db.org().await;
    let api = Api::on(&db).await;
    let id = db.destination(org, "https://example.com/").insert().await;
    let path = format!("/api/v1/orgs/{org}/destinations/{id}");
    let bearer = format!("Bearer {ADMIN}");
    let read = api.ask(ADMIN, "GET", &path, "").await.header("etag").unwrap().to_owned();
    let patch = async |tag: &str, retries: u32| {
        let headers = [("authorization", &*bearer), ("content-type", "application/json"), ("if-match", tag)];
        let body = json!({"retry_max": retries}).to_string();
        api.send("PATCH", &path, &headers, body.as_bytes()).await
    };
    let first = patch(&read, 1).await;
    let next = first.header("etag").unwrap().to_owned();
    first.success(200);
    patch(&read, 2).await.is_problem(412);
    // A change by SQL, or of the settings alone, is one, too.
    let settings =
        format!("INSERT INTO posthaste_destination_settings (destination_id, ordered) VALUES ('{id}', true)");
    db.execute(&settings).await;
    patch(&next, 3).await.is_problem(412);
    assert_eq!(db.number("SELECT retry_max FROM webhook_destinations").await, 1);
    patch("*", 4).await.success(200);
    assert_eq!(db.number("SELECT retry_max FROM webhook_destinations").await, 4);
}

#[tokio::test]
async fn a_test_is_a_real_signed_request_under_the_rules_of_all_requests() {
    let db = Db::new().await;
    let org = db.org().await;
    let receiver = Receiver::start();
    let api = Api::on(&db).await;
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let id = db.destination(org, receiver.url("/")).secret(secret).with("enabled", false).insert().await;
    let test = |id: Uuid| format!("/destinations/{id}/test");
    let done = api.post(org, &test(id), &Value::Null).await.success(200);
    assert_eq!((&done["delivered"], &done["response_status"]), (&json!(true), &json!(200)));
    let received = receiver.received();
    assert_eq!(received.len(), 1);
    assert_eq!(received[0].header("posthaste-event-type"), Some("webhook.test"));
    assert_eq!(received[0].header("webhook-id"), done["event_id"].as_str());
    assert!(received[0].header("webhook-signature").is_some_and(|signature| signature.starts_with("v1,")));
    receiver.reply(Reply::body(500, "it hurts"));
    let done = api.post(org, &test(id), &Value::Null).await.success(200);
    assert_eq!((&done["delivered"], &done["response_body"]), (&json!(false), &json!("it hurts")));
    assert!(done["error_message"].as_str().unwrap().contains("500"));
    // It goes nowhere where no delivery would go.
    let private = db.destination(org, "http://10.0.0.1/").with("enabled", false).insert().await;
    let done = api.post(org, &test(private), &Value::Null).await.success(200);
    assert_eq!(done["delivered"], false);
    assert!(done["error_message"].as_str().unwrap().contains("10.0.0.1"), "{done}");
    // Nothing of it is kept.
    for table in ["activity_logs", "webhook_deliveries", "posthaste_attempts", "posthaste_destination_state"]
    {
        assert_eq!(db.number(&format!("SELECT count(*) FROM {table}")).await, 0, "{table}");
    }
}

#[tokio::test]
async fn what_a_receiver_repeats_of_a_credential_is_not_shown() {
    let db = Db::new().await;
    let org = db.org().await;
    let receiver = Receiver::scripted(|request| {
        let all: Vec<String> =
            request.headers.iter().map(|(name, value)| format!("{name}={value}")).collect();
        Reply::body(422, all.join(" "))
    });
    let api = Api::on(&db).await;
    for (name, auth_type, auth_config, secret) in [
        ("bearer", "bearer", json!({"token": "a-bearer-token"}), "a-bearer-token"),
        (
            "header",
            "header",
            json!({"header_name": "x-key", "header_value": "a key of ours"}),
            "a key of ours",
        ),
        ("basic", "basic", json!({"username": "me", "password": "a-password"}), "bWU6YS1wYXNzd29yZA=="),
    ] {
        let new = json!({"name": name, "url": receiver.url("/"), "auth_type": auth_type,
            "auth_config": auth_config, "retry_max": 0,
            "settings": {"extra_headers": {"x-extra": "a-header-value"}}});
        let id = api.post(org, "/destinations", &new).await.success(201)["id"].as_str().unwrap().to_owned();
        let done = api.post(org, &format!("/destinations/{id}/test"), &Value::Null).await.success(200);
        let shown = done["response_body"].as_str().unwrap();
        assert!(shown.contains("user-agent=") && shown.contains("***"), "{shown}");
        assert!(!shown.contains(secret) && !shown.contains("a-header-value"), "{shown}");
    }
    // Nor is it stored.
    db.events(org, 1).await;
    db.settled().await;
    for text in ["a-bearer-token", "a key of ours", "bWU6YS1wYXNzd29yZA==", "a-header-value"] {
        assert_eq!(db.deliveries(&format!("response_body LIKE '%{text}%'")).await, 0, "{text}");
    }
    assert_eq!(db.deliveries("response_body LIKE '%***%'").await, 3);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn enabling_says_what_was_missed_and_a_backfill_from_then_on_delivers_it() {
    let db = Db::new().await;
    let org = db.org().await;
    let receiver = Receiver::start();
    let api = Api::on(&db).await;
    let id = db.destination(org, receiver.url("/")).insert().await;
    let path = format!("/destinations/{id}");
    let disabled =
        api.post(org, &format!("{path}/disable"), &json!({"reason": "maintenance"})).await.success(200);
    assert_eq!((&disabled["enabled"], &disabled["disabled_reason"]), (&json!(false), &json!("maintenance")));
    let stats = api.get(org, &format!("{path}/stats")).await.success(200);
    assert_eq!((&stats["enabled"], &stats["disabled_reason"]), (&json!(false), &json!("maintenance")));
    db.events(org, 3).await;
    let enabled = api.post(org, &format!("{path}/enable"), &Value::Null).await.success(200);
    assert_eq!((&enabled["destination"]["enabled"], &enabled["missed"]["count"]), (&json!(true), &json!(3)));
    let backfill = json!({"from": enabled["missed"]["from"]});
    api.post(org, &format!("{path}/backfill"), &backfill).await.success(202);
    eventually("what was missed is delivered", async || db.deliveries("status = 'delivered'").await == 3)
        .await;
    let stats = api.get(org, &format!("{path}/stats")).await.success(200);
    assert_eq!(stats["deliveries"]["delivered"], json!({"count": 3, "complete": true}));
    let quarter = &stats["last_15_minutes"];
    assert_eq!((&quarter["succeeded"], &quarter["success_rate"]), (&json!(3), &json!(1.0)));
    assert_eq!((&stats["health"]["state"], &stats["breaker"]), (&json!("ok"), &json!("closed")));
    assert_eq!(stats["latency"]["requests"], 3);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn a_rotated_secret_is_shown_once_and_both_sign_until_the_old_one_ends() {
    let db = Db::new().await;
    let org = db.org().await;
    let receiver = Receiver::start();
    let api = Api::on(&db).await;
    let id = db
        .destination(org, receiver.url("/"))
        .secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
        .insert()
        .await;
    let path = format!("/destinations/{id}/rotate-secret");
    api.post(org, &path, &json!({"overlap_seconds": -1, "signing_secret": 1}))
        .await
        .names(&["overlap_seconds", "signing_secret"]);
    let rotated = api.post(org, &path, &Value::Null).await.success(200);
    let secret = rotated["signing_secret"].as_str().unwrap();
    assert!(secret.starts_with("whsec_"));
    assert!(!api.get(org, &format!("/destinations/{id}")).await.success(200).to_string().contains(secret));
    let old = Webhook::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
    let new = Webhook::new(secret).unwrap();
    eventually("the new secret is taken over, and the old one signs as well", async || {
        db.events(org, 1).await;
        db.settled().await;
        let last = receiver.received().pop().unwrap();
        assert!(last.is_signed(&old));
        last.is_signed(&new)
    })
    .await;
    api.post(org, &path, &json!({"overlap_seconds": 0})).await.success(200);
    eventually("neither of them signs any more", async || {
        db.events(org, 1).await;
        db.settled().await;
        let last = receiver.received().pop().unwrap();
        !last.is_signed(&old) && !last.is_signed(&new)
    })
    .await;
    api.posthaste.assert_silent_about(&[secret]);
    check_invariants(&db, &[&receiver]).await;
}
