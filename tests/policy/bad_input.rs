//! Destinations that are written wrong: each says what is wrong with it, and nobody else notices.

use uuid::Uuid;

use crate::common::{Db, Posthaste, Receiver, check_invariants, eventually};

/// Nothing of this may ever be logged, or be written into `error_message`.
const SECRETS: [&str; 3] = ["hunter2", "s3cr3t", "dG9vIHNob3J0"];

/// Columns of a row and their values.
type Row = &'static [(&'static str, &'static str)];

/// What is written wrong (in the destination, in its settings), and what the message must say about it.
const FAULTS: &[(Row, Row, &str)] = &[
    (&[("url", "not a url")], &[], "the URL cannot be used"),
    (&[("url", "")], &[], "the URL cannot be used"),
    (&[("url", "http://")], &[], "the URL cannot be used"),
    (&[("url", "http://exa mple.com/")], &[], "the URL cannot be used"),
    (&[("url", "http://127.0.0.1:99999/")], &[], "the URL cannot be used"),
    (&[("url", "http://127.0.0.1/\r\nx: y")], &[], "the URL cannot be used"),
    (&[("url", "ftp://127.0.0.1/")], &[], "only http and https"),
    (&[("url", "file:///etc/passwd")], &[], "only http and https"),
    (&[("url", "http://user:hunter2@127.0.0.1/")], &[], "user name and password in the URL"),
    (&[("url", "http://169.254.169.254/latest/meta-data")], &[], "link-local"),
    (&[("url", "http://10.1.2.3/")], &[], "private network"),
    (&[("url", "http://[::1]/")], &[], "loopback"),
    (&[("url", "http://0x7f000002/")], &[], "loopback"),
    (&[("url", "http://[::ffff:10.0.0.1]/")], &[], "private network"),
    (&[("auth_type", "bearer")], &[], "needs the member \"token\""),
    (&[("auth_type", "bearer"), ("auth_config", "[\"s3cr3t\"]")], &[], "auth_config is not a JSON object"),
    (&[("auth_type", "bearer"), ("auth_config", "{\"token\": 5}")], &[], "needs the member \"token\""),
    (
        &[("auth_type", "basic"), ("auth_config", "{\"username\": \"u\"}")],
        &[],
        "needs the member \"password\"",
    ),
    (
        &[("auth_type", "header"), ("auth_config", "{\"header_name\": \"x-a\"}")],
        &[],
        "member \"header_value\"",
    ),
    (
        &[
            ("auth_type", "header"),
            ("auth_config", r#"{"header_name": "x-a\r\nx", "header_value": "s3cr3t"}"#),
        ],
        &[],
        "not a valid header name",
    ),
    (
        &[
            ("auth_type", "header"),
            ("auth_config", r#"{"header_name": "x-a", "header_value": "s3cr3t\r\nx: y"}"#),
        ],
        &[],
        "control character",
    ),
    (
        &[("auth_type", "header"), ("auth_config", r#"{"header_name": "host", "header_value": "s3cr3t"}"#)],
        &[],
        "cannot set host",
    ),
    (&[("auth_type", "bearer"), ("auth_config", r#"{"token": "s3cr3t\n"}"#)], &[], "control character"),
    (
        &[("auth_type", "oauth2"), ("auth_config", r#"{"client_id": "a", "client_secret": "s3cr3t"}"#)],
        &[],
        "needs the member \"token_url\"",
    ),
    (
        &[
            ("auth_type", "oauth2"),
            (
                "auth_config",
                r#"{"token_url": "http://10.0.0.1/", "client_id": "a", "client_secret": "s3cr3t"}"#,
            ),
        ],
        &[],
        "auth_config.token_url: address 10.0.0.1 is refused: private network",
    ),
    (&[("signing_secret", "whsec_s3cr3t!")], &[], "signing_secret cannot be decoded"),
    (&[("signing_secret", "whsec_dG9vIHNob3J0")], &[], "signing_secret has 9 bytes"),
    (&[("signing_secret", "whsk_s3cr3t!")], &[], "signing_secret cannot be decoded"),
    (&[], &[("payload_format", "splunk_hec")], "not available in this version"),
    (&[], &[("extra_headers", r#"{"content-length": "0"}"#)], "extra_headers cannot set content-length"),
    (&[], &[("extra_headers", r#"{"webhook-id": "mine"}"#)], "extra_headers cannot set webhook-id"),
    (&[], &[("extra_headers", r#"{"not a name": "s3cr3t"}"#)], "not a valid header name"),
    (&[], &[("extra_headers", r#"{"x-a": "s3cr3t\r\nx: y"}"#)], "control character"),
];

#[tokio::test]
async fn each_fault_is_named_nobody_else_notices_and_correcting_it_delivers() {
    let (db, receiver, healthy) = (Db::new().await, Receiver::start(), Receiver::start());
    let org = db.org().await;
    let mut broken: Vec<(Uuid, &str)> = Vec::new();
    for (columns, settings, message) in FAULTS {
        let url = columns.iter().find(|(column, _)| *column == "url").map(|(_, url)| (*url).to_owned());
        let destination = db.destination(org, url.unwrap_or_else(|| receiver.url("/"))).retry(3, 100);
        let columns = columns.iter().filter(|(column, _)| *column != "url");
        let destination = columns.fold(destination, |d, (column, value)| d.with(column, value));
        let destination = settings.iter().fold(destination, |d, (column, value)| d.setting(column, value));
        broken.push((destination.insert().await, message));
    }
    db.destination(org, healthy.url("/")).insert().await;
    let environment = [("POSTHASTE_ALLOW_NETWORKS", "127.0.0.1/32")];
    let program = Posthaste::serve_with(&db.url, &environment).await;
    db.events(org, 2).await;
    eventually("the healthy one has its events", async || healthy.accepted().len() == 2).await;
    for (destination, message) in &broken {
        let sql = "SELECT max(error_message) FROM webhook_deliveries WHERE destination_id";
        let sql = format!("{sql} = '{destination}'");
        let found = async || db.text(&sql).await;
        eventually("there is a message", async || found().await.is_some()).await;
        let found = found().await.unwrap();
        assert!(found.contains(message), "expected {message:?}, found {found:?}");
        assert!(!SECRETS.iter().any(|secret| found.contains(secret)), "a secret in {found:?}");
    }
    assert_eq!(db.deliveries("status IN ('delivered', 'dead')").await, 2, "only the healthy one's");
    assert_eq!(receiver.count(), 0);

    let url = receiver.url("/corrected");
    db.execute("DELETE FROM posthaste_destination_settings").await;
    let ids: Vec<String> = broken.iter().map(|(destination, _)| format!("'{destination}'")).collect();
    db.execute(&format!(
        "UPDATE webhook_destinations SET url = '{url}', auth_type = 'none', auth_config = '{{}}',
            signing_secret = NULL
         WHERE id IN ({})",
        ids.join(", ")
    ))
    .await;
    db.settled().await;
    assert_eq!(db.deliveries("status = 'delivered'").await, 2 * (FAULTS.len() as i64 + 1));
    assert_eq!(receiver.count(), 2 * FAULTS.len());
    assert!(!program.log().contains("panicked"));
    program.assert_silent_about(&SECRETS);
    check_invariants(&db, &[&receiver, &healthy]).await;
}

#[tokio::test]
async fn without_an_allow_list_this_machine_is_refused_under_every_name() {
    let (db, receiver) = (Db::new().await, Receiver::start());
    let (org, port) = (db.org().await, receiver.address().port());
    let hosts = [
        "127.0.0.1",
        "127.1",
        "0177.0.0.1",
        "2130706433",
        "localhost",
        "a.localhost",
        "[::ffff:7f00:1]",
        "0.0.0.0",
    ];
    for host in hosts {
        db.destination(org, format!("http://{host}:{port}/")).retry(0, 100).insert().await;
    }
    let _program = Posthaste::serve_with(&db.url, &[("POSTHASTE_ALLOW_NETWORKS", "")]).await;
    db.events(org, 1).await;
    db.settled().await;
    let refused = "status = 'dead' AND error_message LIKE '%refused%(POSTHASTE_ALLOW_NETWORKS opens%'";
    assert_eq!(db.deliveries(refused).await, hosts.len() as i64);
    assert_eq!((receiver.count(), receiver.connections()), (0, 0));
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn settings_that_can_never_work_are_refused_when_they_are_written() {
    let db = Db::new().await;
    let org = db.org().await;
    let destination = db.destination(org, "http://127.0.0.1/").insert().await;
    let table = [
        ("payload_format", "'xml'"),
        ("rate_limit_per_second", "0"),
        ("rate_limit_per_second", "'NaN'"),
        ("rate_limit_burst", "0"),
        ("max_in_flight", "0"),
        ("batch_wait_ms", "-1"),
        ("max_age_seconds", "0"),
        ("extra_headers", "'[]'"),
        ("extra_headers", "'{\"x\": 1}'"),
        ("signature_scheme", "'md5'"),
        ("signature_header", "E'x\\r\\ny'"),
    ];
    for (column, value) in table {
        let insert = format!("INSERT INTO posthaste_destination_settings (destination_id, {column})");
        let message = db.refused(&format!("{insert} VALUES ('{destination}', {value})")).await;
        assert!(message.contains("violates check constraint"), "{column}: {message}");
    }
    check_invariants(&db, &[]).await;
}
