//! What must not be written, and the fields that it is told by.

use posthaste::manage::{Fault, destinations};
use posthaste::model::{DestinationId, OrgId};
use posthaste::policy::egress::Rules;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::common::{Db, check_invariants};
use crate::{Desk, KEY, MAX_DESTINATIONS, OPERATOR, WRITER, changes, connection, fields, good};

const URL: &str = "http://127.0.0.1:1/";

/// What is given, and every field that must be named for it.
fn bad() -> Vec<(Value, Vec<&'static str>)> {
    let text = |length: usize| "x".repeat(length);
    let auth = |kind: &str, config: Value| json!({"auth_type": kind, "auth_config": config});
    let oauth = |url: &str| json!({"token_url": url, "client_id": "a", "client_secret": "b"});
    let many_types = vec!["x"; 101];
    vec![
        (json!({"name": ""}), vec!["name"]),
        (json!({"name": text(101)}), vec!["name"]),
        (json!({"name": "a\0"}), vec!["name"]),
        (json!({"name": 3}), vec!["name"]),
        (json!({"name": null, "url": null}), vec!["name", "url"]),
        (json!({"url": ["hunter2"]}), vec!["url"]),
        (json!({"url": "nowhere"}), vec!["url"]),
        (json!({"url": "ftp://example.com/"}), vec!["url"]),
        (json!({"url": "https://user:hunter2@example.com/"}), vec!["url"]),
        (json!({"url": "https://example.com:0/"}), vec!["url"]),
        (json!({"url": "http://10.0.0.1/"}), vec!["url"]),
        (json!({"url": "http://169.254.169.254/latest"}), vec!["url"]),
        (json!({"url": "http://[::ffff:192.168.0.1]/"}), vec!["url"]),
        (json!({"url": "http://2130706434.1/"}), vec!["url"]),
        (json!({"url": format!("https://example.com/{}", text(8_192))}), vec!["url"]),
        (json!({"auth_type": "digest"}), vec!["auth_type"]),
        (json!({"auth_type": "bearer"}), vec!["auth_config.token"]),
        (auth("bearer", json!({"token": "hunter2\r\n"})), vec!["auth_config.token"]),
        (auth("bearer", json!({"token": ""})), vec!["auth_config.token"]),
        (auth("bearer", json!({"token": "a", "tokn": "b"})), vec!["auth_config.tokn"]),
        (auth("none", json!({"token": "a"})), vec!["auth_config.token"]),
        (auth("bearer", json!("hunter2")), vec!["auth_config"]),
        (auth("bearer", json!({"token": 3})), vec!["auth_config"]),
        (auth("basic", json!({})), vec!["auth_config.username", "auth_config.password"]),
        (auth("basic", json!({"username": "a:b", "password": "c"})), vec!["auth_config.username"]),
        (auth("basic", json!({"username": "a", "password": "b\0"})), vec!["auth_config.password"]),
        (
            auth("header", json!({"header_name": "host", "header_value": "a"})),
            vec!["auth_config.header_name"],
        ),
        (auth("header", json!({"header_name": "a b", "header_value": "a"})), vec!["auth_config.header_name"]),
        (auth("oauth2", oauth("http://10.0.0.1/")), vec!["auth_config.token_url"]),
        (auth("oauth2", oauth("hunter2")), vec!["auth_config.token_url"]),
        (json!({"event_types": "a"}), vec!["event_types"]),
        (json!({"event_types": ["a", ""]}), vec!["event_types[1]"]),
        (json!({"event_types": many_types}), vec!["event_types"]),
        (json!({"event_types": ["a", text(256), "b\0"]}), vec!["event_types[1]", "event_types[2]"]),
        (json!({"event_filter": []}), vec!["event_filter"]),
        (json!({"event_filter": {"$or": 1}}), vec!["event_filter"]),
        (json!({"event_filter": {"$jsonpath": "$.amount"}}), vec!["event_filter"]),
        (json!({"event_filter": {"$jsonpath": "$.amount >"}}), vec!["event_filter"]),
        (json!({"event_filter": {"a": "\0"}}), vec!["event_filter"]),
        (json!({"enabled": "yes"}), vec!["enabled"]),
        (json!({"batch_size": 0}), vec!["batch_size"]),
        (json!({"batch_size": 101}), vec!["batch_size"]),
        (json!({"batch_size": 1.5}), vec!["batch_size"]),
        (json!({"timeout_ms": 999}), vec!["timeout_ms"]),
        (json!({"timeout_ms": 1e300}), vec!["timeout_ms"]),
        (json!({"retry_max": -1}), vec!["retry_max"]),
        (json!({"retry_max": "3"}), vec!["retry_max"]),
        (json!({"retry_backoff_ms": 99}), vec!["retry_backoff_ms"]),
        (json!({"retry_backoff_ms": 4_294_967_296_i64}), vec!["retry_backoff_ms"]),
        (json!({"signing_secret": "whsec_!"}), vec!["signing_secret"]),
        (json!({"signing_secret": "whsec_aHVudGVyMg=="}), vec!["signing_secret"]),
        (json!({"signing_secret": "whsk_aHVudGVyMg=="}), vec!["signing_secret"]),
        (json!({"signing_secret": text(256)}), vec!["signing_secret"]),
        (json!({"signing_secret": ""}), vec!["signing_secret"]),
        (json!({"signing_secret": "phs1:hunter2"}), vec!["signing_secret"]),
    ]
}

/// The same of the settings, and of many things at once.
fn bad_settings() -> Vec<(Value, Vec<&'static str>)> {
    let set = |settings: Value| json!({"settings": settings});
    vec![
        (set(json!({"payload_format": "xml"})), vec!["settings.payload_format"]),
        (set(json!({"payload_format": "slack"})), vec!["settings.payload_format"]),
        (set(json!({"format_options": []})), vec!["settings.format_options"]),
        (set(json!({"format_options": {"a": "\0"}})), vec!["settings.format_options"]),
        (set(json!({"format_options": {"a": "x".repeat(65_536)}})), vec!["settings.format_options"]),
        (set(json!({"rate_limit_per_second": 0})), vec!["settings.rate_limit_per_second"]),
        (set(json!({"rate_limit_per_second": "3"})), vec!["settings.rate_limit_per_second"]),
        (set(json!({"rate_limit_burst": 0})), vec!["settings.rate_limit_burst"]),
        (set(json!({"max_in_flight": 10_001})), vec!["settings.max_in_flight"]),
        (set(json!({"ordered": 1})), vec!["settings.ordered"]),
        (set(json!({"batch_wait_ms": 300_001})), vec!["settings.batch_wait_ms"]),
        (set(json!({"max_age_seconds": 0})), vec!["settings.max_age_seconds"]),
        (set(json!({"extra_headers": {"host": "a"}})), vec!["settings.extra_headers"]),
        (set(json!({"extra_headers": {"webhook-id": "a"}})), vec!["settings.extra_headers"]),
        (set(json!({"extra_headers": {"x-a": "hunter2\n"}})), vec!["settings.extra_headers"]),
        (set(json!({"extra_headers": {"x-a": 3}})), vec!["settings.extra_headers"]),
        (set(json!({"signature_scheme": "md5"})), vec!["settings.signature_scheme"]),
        (
            set(json!({"signature_scheme": "hex", "signature_header": "a b"})),
            vec!["settings.signature_header"],
        ),
        (
            set(json!({"signature_scheme": "hex", "signature_header": "host"})),
            vec!["settings.signature_header"],
        ),
        (set(json!({"gzip": true})), vec!["settings.gzip"]),
        (
            set(json!({"tls_client_cert": "hunter2"})),
            vec!["settings.tls_client_key", "settings.tls_client_cert"],
        ),
        (set(json!({"tls_client_key": "hunter2"})), vec!["settings.tls_client_cert"]),
        (set(json!({"tls_ca": "hunter2"})), vec!["settings.tls_ca"]),
        (
            json!({"name": "", "url": "ftp://x", "batch_size": 0, "event_filter": {"$x": 1},
                "auth_type": "basic", "signing_secret": "whsec_!",
                "settings": {"gzip": true, "max_in_flight": 0, "tls_ca": "x", "extra_headers": {"te": "x"}}}),
            vec![
                "name",
                "batch_size",
                "settings.max_in_flight",
                "event_filter",
                "url",
                "auth_config.username",
                "signing_secret",
                "settings.extra_headers",
                "settings.gzip",
                "settings.tls_ca",
            ],
        ),
    ]
}

#[tokio::test]
async fn every_fault_is_named_by_its_field_all_at_once_and_nothing_is_written() {
    let db = Db::new().await;
    let org = db.org().await;
    let desk = Desk::new();
    let mut conn = connection(&db).await;
    let id = desk.create(&mut conn, org, &good(URL, json!({"name": "there"}))).await.unwrap();
    let id = DestinationId(id.destination.id);
    let before = destinations::one(&mut conn, OrgId(org), OPERATOR, id).await.unwrap();
    for (json, expected) in [bad(), bad_settings()].concat() {
        let refused = desk.create(&mut conn, org, &good(URL, json.clone())).await.expect_err("created");
        let (found, text) = fields(refused);
        assert_eq!(found, expected, "{json}: {text}");
        assert!(!text.contains("hunter2"), "{json}: {text}");
        // The same as a change.
        let changed = desk.update(&mut conn, OrgId(org), id, &json).await;
        let (found, text) = fields(changed.expect_err("changed"));
        assert_eq!(found, expected, "{json}: {text}");
        assert!(!text.contains("hunter2"), "{json}: {text}");
    }
    let (found, _) = fields(desk.create(&mut conn, org, &json!({})).await.unwrap_err());
    assert_eq!(found, ["name", "url"]);
    assert_eq!(db.number("SELECT count(*) FROM webhook_destinations").await, 1);
    let after = destinations::one(&mut conn, OrgId(org), OPERATOR, id).await.unwrap();
    assert_eq!(format!("{after:?}"), format!("{before:?}"));
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn what_the_options_forbid_is_refused_and_what_does_not_fit_encrypted_as_well() {
    let db = Db::new().await;
    let org = db.org().await;
    let mut conn = connection(&db).await;
    let strict = Desk::with(KEY, Rules { https_only: true, ..Rules::default() });
    for (json, field, words) in [
        (json!({"url": "http://example.com/"}), "url", "POSTHASTE_HTTPS_ONLY"),
        (json!({"url": "https://127.0.0.1/"}), "url", "loopback"),
        (json!({"url": "https://localhost/"}), "url", "loopback"),
        (json!({"signing_secret": "x".repeat(153)}), "signing_secret", "152"),
    ] {
        let json = good("https://example.com/", json);
        let (found, text) = fields(strict.create(&mut conn, org, &json).await.unwrap_err());
        assert_eq!(found, [field], "{text}");
        assert!(text.contains(words), "{text}");
    }
    let fits = good("https://example.com/", json!({"signing_secret": "x".repeat(152)}));
    strict.create(&mut conn, org, &fits).await.unwrap();
    assert_eq!(db.number("SELECT count(*) FROM webhook_destinations").await, 1);
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn names_are_unique_within_an_organization_which_must_exist() {
    let db = Db::new().await;
    let (org, other) = (db.org().await, db.org().await);
    let desk = Desk::new();
    let mut conn = connection(&db).await;
    let json = good(URL, json!({}));
    let first = desk.create(&mut conn, org, &json).await.unwrap().destination.id;
    desk.create(&mut conn, other, &json).await.unwrap();
    let second = desk.create(&mut conn, org, &good(URL, json!({"name": "b"}))).await.unwrap().destination.id;
    let taken = desk.create(&mut conn, org, &json).await.unwrap_err();
    assert!(matches!(&taken, Fault::Conflict(text) if text.contains("a destination")), "{taken}");
    let rename = json!({"name": "a destination"});
    let update = async |conn: &mut _, id| desk.update(conn, OrgId(org), DestinationId(id), &rename).await;
    assert!(matches!(update(&mut conn, second).await, Err(Fault::Conflict(_))));
    update(&mut conn, first).await.unwrap();
    let nobody = desk.create(&mut conn, Uuid::new_v4(), &json).await.unwrap_err();
    assert!(matches!(nobody, Fault::NotFound(_)), "{nobody}");
    assert_eq!(db.number("SELECT count(*) FROM webhook_destinations").await, 3);
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn keys_create_destinations_up_to_a_limit_and_the_operator_beyond_it() {
    let db = Db::new().await;
    let (org, other) = (OrgId(db.org().await), OrgId(db.org().await));
    let desk = Desk::new();
    let mut conn = connection(&db).await;
    let create = async |conn: &mut _, org, principal, name: String| {
        let new = changes(&good(URL, json!({ "name": name })));
        destinations::create(conn, org, principal, new, desk.setup()).await
    };
    for n in 0..MAX_DESTINATIONS {
        create(&mut conn, org, WRITER, n.to_string()).await.unwrap();
    }
    let refused = create(&mut conn, org, WRITER, "one more".into()).await.unwrap_err();
    let Fault::Conflict(why) = &refused else { panic!("{refused:?}") };
    assert!(why.contains(" 3 destinations") && why.contains("POSTHASTE_MAX_DESTINATIONS"), "{why}");
    create(&mut conn, other, WRITER, "of others".into()).await.unwrap();
    // What others may is not bounded, and counts.
    create(&mut conn, org, OPERATOR, "beyond".into()).await.unwrap();
    db.destination(org.0, URL).insert().await;
    assert!(create(&mut conn, org, WRITER, "one more".into()).await.is_err());
    let gone = format!("DELETE FROM webhook_destinations WHERE org_id = '{org}' AND name IN ('0', '1')");
    db.execute(&gone).await;
    assert!(create(&mut conn, org, WRITER, "one more".into()).await.is_err(), "there are three");
    db.execute(&format!("DELETE FROM webhook_destinations WHERE org_id = '{org}' AND name = '2'")).await;
    create(&mut conn, org, WRITER, "one more".into()).await.unwrap();
    check_invariants(&db, &[]).await;
}
