//! Credentials stay with the origin that they were given for.

use posthaste::manage::destinations::{self, UpdatedView};
use posthaste::manage::{Fault, Principal};
use posthaste::model::{DestinationId, OrgId};
use serde_json::{Value, json};

use crate::common::{Db, Receiver, assert_silent, check_invariants};
use crate::{Desk, KEY, OPERATOR, WRITER, connection, fields, good, loopback};

const BEFORE: &str = "https://127.0.0.1:8001/in";
const AFTER: &str = "https://127.0.0.1:8002/in";
const TOKEN: &str = "hunter2hunter2";
const HEADER: &str = "hunter3hunter3";
const ROUTING_KEY: &str = "hunter4hunter4";

/// A client certificate and its key, in PEM.
fn client_certificate() -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(Vec::new()).unwrap().self_signed(&key).unwrap();
    (certificate.pem(), key.serialize_pem())
}

/// What is stored of a destination and its settings.
async fn stored(db: &Db, id: DestinationId) -> String {
    let sql = format!(
        "SELECT to_jsonb(w)::text || to_jsonb(s)::text FROM webhook_destinations w
         JOIN posthaste_destination_settings s ON s.destination_id = w.id WHERE w.id = '{id}'"
    );
    db.text(&sql).await.unwrap()
}

#[actix_rt::test]
async fn a_key_does_not_read_a_secret_by_a_test_at_a_receiver_of_its_own() {
    let db = Db::new().await;
    let org = OrgId(db.org().await);
    let desk = Desk::new();
    let mut conn = connection(&db).await;
    let (receiver, own) = (Receiver::start(), Receiver::start());
    let json = json!({"auth_type": "bearer", "auth_config": {"token": TOKEN},
        "settings": {"extra_headers": {"x-api-key": HEADER}}});
    let created = desk.create(&mut conn, org.0, &good(&receiver.url("/"), json)).await.unwrap();
    let id = DestinationId(created.destination.id);
    let moved = json!({"url": own.url("/")});
    let moved = desk.update_as(WRITER, &mut conn, org, id, &moved).await.unwrap();
    assert_eq!(moved.dropped, ["auth_config", "settings.extra_headers"]);
    let (view, headers) = (&moved.destination, &moved.destination.settings.extra_header_names);
    assert!(view.auth_type == "none" && headers.is_empty() && view.has_signing_secret);
    let test = destinations::prepare(&mut conn, org, id, desk.setup()).await.unwrap().run().await;
    assert!(test.delivered, "{test:?}");
    let request = own.received().pop().unwrap();
    let secret = created.signing_secret.unwrap().0;
    assert_silent("the request", &format!("{:?}", request.headers), &[TOKEN, HEADER, secret.reveal()]);
    assert!(request.header("authorization").is_none() && request.header("webhook-signature").is_some());
    check_invariants(&db, &[]).await;
}

/// Everything that can be dropped, by its name in the answer.
const ALL: [&str; 5] = [
    "auth_config",
    "settings.extra_headers",
    "settings.tls_client_key",
    "settings.tls_client_cert",
    "settings.format_options.routing_key",
];

#[tokio::test]
async fn only_what_comes_with_another_origin_goes_there() {
    let db = Db::new().await;
    let org = OrgId(db.org().await);
    let mut conn = connection(&db).await;
    let ((cert, key), (own_cert, own_key)) = (client_certificate(), client_certificate());
    let whole = json!({"auth_type": "bearer", "auth_config": {"token": TOKEN}, "settings": {
        "extra_headers": {"x-api-key": HEADER}, "tls_client_cert": cert, "tls_client_key": key,
        "format_options": {"routing_key": ROUTING_KEY, "severity": "info"}}});
    let of_their_own = json!({"extra_headers": {"x-api-key": "mine"}, "tls_client_cert": own_cert,
        "tls_client_key": own_key, "format_options": {"routing_key": "mine"}});
    let token = json!({"token": "mine"});
    let table: [(Principal, Value, &[&str]); 9] = [
        (WRITER, json!({"url": AFTER}), &ALL),
        (WRITER, json!({"url": AFTER, "auth_config": token}), &ALL[1..]),
        (WRITER, json!({"url": AFTER, "auth_type": null}), &ALL[1..]),
        (WRITER, json!({"url": AFTER, "settings": of_their_own}), &ALL[..1]),
        (WRITER, json!({"url": AFTER, "settings": null}), &ALL[..1]),
        (WRITER, json!({"url": AFTER, "auth_config": token, "settings": of_their_own}), &[]),
        (WRITER, json!({"url": "https://127.0.0.1:8001/elsewhere"}), &[]),
        (WRITER, json!({"retry_max": 1}), &[]),
        (OPERATOR, json!({"url": AFTER}), &[]),
    ];
    for (at, secret_key) in ["", KEY].into_iter().enumerate() {
        let desk = Desk::with(secret_key, loopback());
        for (turn, (principal, change, dropped)) in table.iter().enumerate() {
            let mut json = whole.clone();
            json["name"] = json!(format!("{at} {turn}"));
            let created = desk.create(&mut conn, org.0, &good(BEFORE, json)).await.unwrap().destination;
            let id = DestinationId(created.id);
            let updated = desk.update_as(*principal, &mut conn, org, id, change).await.unwrap();
            let UpdatedView { destination, dropped: told } = updated;
            assert_eq!(&told, dropped, "{change}");
            let stored = stored(&db, id).await;
            let settings = &destination.settings;
            for (name, is_gone) in [
                (ALL[0], stored.contains(r#""auth_config": {}"#) && destination.auth_type == "none"),
                (ALL[1], settings.extra_header_names.is_empty() && !stored.contains(HEADER)),
                (ALL[2], !settings.has_tls_client_key && stored.contains(r#""tls_client_key": null"#)),
                (ALL[3], settings.tls_client_cert.is_none()),
                (ALL[4], !stored.contains(ROUTING_KEY)),
            ] {
                assert!(is_gone || !dropped.contains(&name), "{change}: {name}: {stored}");
            }
            assert!(destination.has_signing_secret, "{change}");
            // Secret options are not shown; what is none of them stays.
            let options = settings.format_options.get();
            assert!(!options.contains("routing_key"), "{options}");
            assert!(change.get("settings").is_some() || options.contains("severity"), "{change}: {options}");
        }
    }
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn half_of_what_belongs_together_is_refused_and_changes_nothing() {
    let db = Db::new().await;
    let org = OrgId(db.org().await);
    let desk = Desk::new();
    let mut conn = connection(&db).await;
    let (cert, key) = client_certificate();
    let json = json!({"auth_type": "bearer", "auth_config": {"token": TOKEN},
        "settings": {"tls_client_cert": cert, "tls_client_key": key}});
    let created = desk.create(&mut conn, org.0, &good(BEFORE, json)).await.unwrap().destination;
    let id = DestinationId(created.id);
    let before = stored(&db, id).await;
    for (change, field) in [
        (json!({"url": AFTER, "auth_type": "bearer"}), "auth_config.token"),
        (json!({"url": AFTER, "settings": {"tls_client_cert": cert}}), "settings.tls_client_key"),
    ] {
        let refused = desk.update_as(WRITER, &mut conn, org, id, &change).await.unwrap_err();
        let (found, text) = fields(refused);
        assert_eq!(found, [field], "{change}: {text}");
        assert_eq!(stored(&db, id).await, before, "{change}");
    }
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn another_token_url_needs_the_secret_that_goes_there() {
    let db = Db::new().await;
    let org = OrgId(db.org().await);
    let desk = Desk::new();
    let mut conn = connection(&db).await;
    let config =
        |url: &str, secret: &str| json!({"token_url": url, "client_id": "a", "client_secret": secret});
    let json = json!({"auth_type": "oauth2", "auth_config": config(BEFORE, TOKEN)});
    let created = desk.create(&mut conn, org.0, &good(BEFORE, json)).await.unwrap().destination;
    let id = DestinationId(created.id);
    let without = json!({"auth_config": {"token_url": AFTER, "client_id": "a"}});
    let refused = desk.update_as(WRITER, &mut conn, org, id, &without).await.unwrap_err();
    assert_eq!(fields(refused).0, ["auth_config.client_secret"]);
    let with = json!({"auth_config": config(AFTER, "mine")});
    let updated = desk.update_as(WRITER, &mut conn, org, id, &with).await.unwrap();
    assert_eq!((updated.dropped.len(), &*updated.destination.auth_config["token_url"]), (0, AFTER));
    let config = format!("SELECT auth_config::text FROM webhook_destinations WHERE id = '{id}'");
    assert_silent("the table", &db.text(&config).await.unwrap(), &[TOKEN]);
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn from_a_url_that_is_none_every_other_one_is_elsewhere() {
    let db = Db::new().await;
    let org = OrgId(db.org().await);
    let desk = Desk::new();
    let mut conn = connection(&db).await;
    let config = json!({ "token": TOKEN }).to_string();
    let id = DestinationId(db.destination(org.0, "nowhere").auth("bearer", &config).insert().await);
    let renamed = desk.update_as(WRITER, &mut conn, org, id, &json!({"name": "b"})).await.unwrap();
    assert_eq!((renamed.dropped.len(), &*renamed.destination.auth_type), (0, "bearer"));
    let moved = desk.update_as(WRITER, &mut conn, org, id, &json!({"url": AFTER})).await.unwrap();
    assert_eq!((moved.dropped, &*moved.destination.auth_type), (vec!["auth_config".to_owned()], "none"));
    let none = desk.update_as(WRITER, &mut conn, OrgId(db.org().await), id, &json!({"url": BEFORE})).await;
    assert!(matches!(none, Err(Fault::NotFound(_))));
    check_invariants(&db, &[]).await;
}
