//! Changes, and what comes in between.

use std::time::Duration;

use posthaste::manage::destinations::{self, Query, View};
use posthaste::manage::{Fault, patch::Patch};
use posthaste::model::{DestinationId, OrgId};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::common::{Db, check_invariants};
use crate::{Desk, OPERATOR, WRITER, changes, connection, good};

const URL: &str = "http://127.0.0.1:1/";

fn shown(view: &View) -> Value {
    serde_json::to_value(view).unwrap()
}

#[tokio::test]
async fn what_is_left_out_stays_and_null_goes_back_to_the_default() {
    let db = Db::new().await;
    let org = db.org().await;
    let desk = Desk::new();
    let mut conn = connection(&db).await;
    let defaults = desk.create(&mut conn, org, &good(URL, json!({"name": "plain"}))).await.unwrap();
    let all = json!({
        "auth_type": "basic", "auth_config": {"username": "u", "password": "p"}, "event_types": ["a", "b.*"],
        "event_filter": {"n": 12345678901234567890123_u128.to_string(), "$jsonpath": "$.payload.n > 1"},
        "enabled": false, "batch_size": 7, "timeout_ms": 2_000, "retry_max": 0, "retry_backoff_ms": 100,
        "signing_secret": "old form",
        "settings": {
            "payload_format": "flat", "rate_limit_per_second": 2.5, "rate_limit_burst": 3,
            "max_in_flight": 4, "ordered": true, "batch_wait_ms": 5, "max_age_seconds": 6,
            "extra_headers": {"x-a": "b"}, "signature_scheme": "hex", "signature_header": "x-sig",
        },
    });
    let created = desk.create(&mut conn, org, &good(URL, all.clone())).await.unwrap();
    assert!(created.signing_secret.is_none(), "it was given");
    let id = DestinationId(created.destination.id);
    let mut update = async |json: Value| shown(&desk.update(&mut conn, OrgId(org), id, &json).await.unwrap());
    let view = update(json!({})).await;
    for name in ["event_types", "batch_size", "timeout_ms", "retry_max", "retry_backoff_ms", "enabled"] {
        assert_eq!(view[name], all[name], "{name}");
    }
    assert_eq!(view["auth_config"], json!({"username": "u"}));
    assert_eq!(view["event_filter"], all["event_filter"]);
    for name in ["payload_format", "rate_limit_burst", "max_in_flight", "ordered", "signature_header"] {
        assert_eq!(view["settings"][name], all["settings"][name], "{name}");
    }
    assert_eq!(view["settings"]["extra_header_names"], json!(["x-a"]));
    let view = update(json!({"batch_size": 9, "settings": {"ordered": null}})).await;
    assert_eq!((&view["batch_size"], &view["retry_max"]), (&json!(9), &json!(0)));
    assert_eq!(
        (&view["settings"]["ordered"], &view["settings"]["max_in_flight"]),
        (&json!(false), &json!(4))
    );
    // Everything that can be null.
    let nulls: serde_json::Map<String, Value> =
        all.as_object().unwrap().keys().map(|name| (name.clone(), Value::Null)).collect();
    let view = update(Value::Object(nulls)).await;
    let expected = shown(&defaults.destination);
    for (name, value) in expected.as_object().unwrap() {
        let own = ["id", "name", "created_at", "updated_at", "version", "has_signing_secret"];
        assert!(own.contains(&name.as_str()) || view[name] == *value, "{name}: {}", view[name]);
    }
    assert_eq!(view["has_signing_secret"], false);
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn an_update_of_what_somebody_else_has_changed_is_refused() {
    let db = Db::new().await;
    let org = OrgId(db.org().await);
    let desk = Desk::new();
    let mut conn = connection(&db).await;
    let created = desk.create(&mut conn, org.0, &good(URL, json!({}))).await.unwrap().destination;
    let id = DestinationId(created.id);
    let mut version = created.version;
    let by_sql = [
        format!("UPDATE webhook_destinations SET retry_max = 5 WHERE id = '{id}'"),
        format!("INSERT INTO posthaste_destination_settings (destination_id) VALUES ('{id}')"),
        format!("UPDATE posthaste_destination_settings SET ordered = true WHERE destination_id = '{id}'"),
    ];
    for sql in by_sql {
        let update = async |conn: &mut _, name: &str, version: &str| {
            let json = changes(&json!({"name": name}));
            destinations::update(conn, org, OPERATOR, id, json, Some(version), desk.setup()).await
        };
        version = update(&mut conn, "mine", &version).await.unwrap().destination.version;
        db.execute(&sql).await;
        let stale = update(&mut conn, "too late", &version).await.unwrap_err();
        assert!(matches!(stale, Fault::Stale), "{sql}: {stale}");
        let now = destinations::one(&mut conn, org, OPERATOR, id).await.unwrap();
        assert!(now.name == "mine" && now.version != version, "{sql}");
        version = now.version;
    }
    let view = destinations::one(&mut conn, org, OPERATOR, id).await.unwrap();
    assert!(view.settings.ordered && view.retry_max == 5);
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn what_was_wrong_before_does_not_keep_a_destination_from_being_renamed() {
    let db = Db::new().await;
    let org = OrgId(db.org().await);
    let id = db
        .destination(org.0, "http://10.0.0.1/")
        .auth("bearer", "{}")
        .secret("whsec_x")
        .setting("payload_format", "slack")
        .insert()
        .await;
    let desk = Desk::new();
    let mut conn = connection(&db).await;
    let id = DestinationId(id);
    let mut update = async |json: Value| desk.update(&mut conn, org, id, &json).await;
    let view = update(json!({"name": "renamed", "enabled": false})).await.unwrap();
    assert!(view.name == "renamed" && !view.enabled);
    let (named, text) = crate::fields(update(json!({"url": "http://10.0.0.2/"})).await.unwrap_err());
    assert_eq!(named, ["url"], "{text}");
    let repaired = json!({"url": URL, "auth_type": "none", "signing_secret": null, "settings": null});
    update(repaired).await.unwrap();
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn nobody_sees_or_touches_the_destinations_of_others() {
    let db = Db::new().await;
    let (org, other) = (OrgId(db.org().await), OrgId(db.org().await));
    let desk = Desk::new();
    let mut conn = connection(&db).await;
    let created = desk.create(&mut conn, org.0, &good(URL, json!({}))).await.unwrap().destination;
    let id = DestinationId(created.id);
    let rename = || changes(&json!({"name": "mine"}));
    let not_found = |fault: Fault| assert!(matches!(fault, Fault::NotFound(_)), "{fault}");
    let (setup, patience) = (desk.setup(), Duration::ZERO);
    for by in [OPERATOR, WRITER] {
        not_found(destinations::one(&mut conn, other, by, id).await.unwrap_err());
        not_found(destinations::update(&mut conn, other, by, id, rename(), None, setup).await.unwrap_err());
        not_found(destinations::delete(&mut conn, other, id, patience).await.unwrap_err());
        not_found(destinations::enable(&mut conn, other, by, id, patience).await.unwrap_err());
        not_found(destinations::disable(&mut conn, other, by, id, Default::default()).await.unwrap_err());
        not_found(
            destinations::rotate(&mut conn, other, by, id, Default::default(), setup).await.unwrap_err(),
        );
        not_found(destinations::stats(&mut conn, other, by, id, None).await.unwrap_err());
        not_found(destinations::prepare(&mut conn, other, id, setup).await.map(drop).unwrap_err());
        let list = destinations::list(&mut conn, other, by, &Query::default()).await.unwrap();
        assert!(list.items.is_empty());
    }
    let after = destinations::one(&mut conn, org, OPERATOR, id).await.unwrap();
    assert_eq!(after.version, created.version);
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn a_list_goes_on_where_its_page_ended() {
    let db = Db::new().await;
    let org = OrgId(db.org().await);
    let mut created: Vec<Uuid> = Vec::new();
    for _ in 0..5 {
        created.insert(0, db.destination(org.0, URL).insert().await);
    }
    let mut conn = connection(&db).await;
    let (mut found, mut query) = (Vec::new(), Query { limit: Some("2".into()), cursor: None });
    loop {
        let page = destinations::list(&mut conn, org, OPERATOR, &query).await.unwrap();
        assert!(page.items.len() <= 2);
        found.extend(page.items.iter().map(|view| view.id));
        query.cursor = page.next_cursor;
        if query.cursor.is_none() {
            break;
        }
        db.destination(org.0, URL).insert().await;
    }
    assert_eq!(found, created);
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn a_page_of_large_destinations_is_shorter_than_asked_for() {
    let db = Db::new().await;
    let org = OrgId(db.org().await);
    let mut conn = connection(&db).await;
    // Three megabytes each as they are shown, and little as they are stored.
    let large = json!({"scope": "x".repeat(3 << 20)}).to_string();
    let mut created: Vec<Uuid> = Vec::new();
    for _ in 0..5 {
        let new = db.destination(org.0, URL).with("auth_config", &large).insert().await;
        created.insert(0, new);
    }
    let (mut found, mut lengths, mut query) = (Vec::new(), Vec::new(), Query::default());
    loop {
        let page = destinations::list(&mut conn, org, OPERATOR, &query).await.unwrap();
        lengths.push(page.items.len());
        found.extend(page.items.iter().map(|view| view.id));
        query.cursor = page.next_cursor;
        if query.cursor.is_none() {
            break;
        }
    }
    assert_eq!((found, lengths), (created, vec![2, 2, 1]));
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn a_filter_that_is_too_large_to_be_shown_stays_as_it_is() {
    let db = Db::new().await;
    let org = OrgId(db.org().await);
    let desk = Desk::new();
    let mut conn = connection(&db).await;
    let created = desk.create(&mut conn, org.0, &good(URL, json!({"enabled": false}))).await.unwrap();
    let id = DestinationId(created.destination.id);
    // From before there was a limit.
    let switch =
        |how: &str| format!("ALTER TABLE webhook_destinations {how} TRIGGER posthaste_refuse_bad_filter");
    db.execute(&switch("DISABLE")).await;
    let set =
        format!("UPDATE webhook_destinations SET event_filter = '{{\"n\": 1e100000}}' WHERE id = '{id}'");
    db.execute(&set).await;
    db.execute(&switch("ENABLE")).await;
    let renamed = desk.update(&mut conn, org, id, &json!({"name": "renamed"})).await.unwrap();
    assert!(renamed.name == "renamed" && renamed.event_filter.is_none());
    let filter = format!("SELECT length(event_filter::text) FROM webhook_destinations WHERE id = '{id}'");
    assert!(db.number(&filter).await > 100_000);
    let mended = desk.update(&mut conn, org, id, &json!({"event_filter": {"n": 1}})).await.unwrap();
    assert_eq!(mended.event_filter.unwrap().get(), r#"{"n": 1}"#);
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn a_destination_with_many_deliveries_is_deleted_in_parts() {
    let db = Db::new().await;
    let org = OrgId(db.org().await);
    let (id, kept) = (db.destination(org.0, URL).insert().await, db.destination(org.0, URL).insert().await);
    db.events(org.0, 6_000).await;
    let mut conn = connection(&db).await;
    let id = DestinationId(id);
    let first = destinations::delete(&mut conn, org, id, Duration::ZERO).await.unwrap();
    assert_eq!((first.deleted, first.deliveries), (false, 5_000));
    let view = destinations::one(&mut conn, org, OPERATOR, id).await.unwrap();
    assert!(!view.enabled && view.disabled_reason.is_some());
    let second = destinations::delete(&mut conn, org, id, Duration::ZERO).await.unwrap();
    assert_eq!((second.deleted, second.deliveries), (true, 1_000));
    assert!(matches!(destinations::one(&mut conn, org, OPERATOR, id).await, Err(Fault::NotFound(_))));
    assert_eq!(db.deliveries(&format!("destination_id = '{kept}'")).await, 6_000);
    assert_eq!(db.deliveries("true").await, 6_000);
    assert_eq!(db.number("SELECT count(*) FROM activity_logs").await, 6_000);
    let disable = destinations::Disable { reason: Patch::Value("x".into()) };
    let gone = destinations::disable(&mut conn, org, OPERATOR, id, disable);
    assert!(matches!(gone.await, Err(Fault::NotFound(_))));
    check_invariants(&db, &[]).await;
}
