//! Everything that the program says, with every logger at its loudest, held against every secret it was
//! given.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::{StreamExt as _, stream};
use posthaste::model::Secret;
use sqlx::{AssertSqlSafe, Row};
use uuid::Uuid;

use super::{KEY, OTHER_KEY, encrypt};
use crate::common::{
    Db, Posthaste, Receiver, Reply, assert_silent, check_invariants, eventually, request, run,
};

/// How a destination authenticates, and what of it must stay secret.
struct Auth {
    auth_type: &'static str,
    config: &'static str,
    secrets: &'static [&'static str],
}

const AUTHS: &[Auth] = &[
    Auth { auth_type: "none", config: r#"{"token": "tok-of-none-1"}"#, secrets: &["tok-of-none-1"] },
    Auth { auth_type: "bearer", config: r#"{"token": "tok-bearer-22"}"#, secrets: &["tok-bearer-22"] },
    Auth {
        auth_type: "header",
        config: r#"{"header_name": "x-api-key", "header_value": "val-header-333"}"#,
        secrets: &["val-header-333"],
    },
    Auth {
        auth_type: "basic",
        config: r#"{"username": "somebody", "password": "pass-basic-4444"}"#,
        secrets: &["pass-basic-4444", "somebody:pass-basic-4444"],
    },
    // What is wrong with these is said without repeating them.
    Auth { auth_type: "bearer", config: r#"{"token": "tok-\n-broken-5"}"#, secrets: &["-broken-5"] },
    Auth { auth_type: "bearer", config: r#"["tok-in-a-list-6"]"#, secrets: &["tok-in-a-list-6"] },
    Auth {
        auth_type: "header",
        config: r#"{"header_name": "no name", "header_value": "val-no-name-7"}"#,
        secrets: &["val-no-name-7"],
    },
    Auth {
        auth_type: "basic",
        config: r#"{"username": "a:b", "password": "pass-colon-8"}"#,
        secrets: &["pass-colon-8"],
    },
];

/// Every form of a signing secret, whole and broken.
const SIGNING: &[&str] = &[
    "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "whsk_BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=",
    "a legacy secret, as it is",
    "whsec_broken-and-no-base64!",
    "whsec_dG9vIHNob3J0IHRvbyBzaG9y",
];
const PREVIOUS: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
const EXTRA_HEADER: &str = "an-extra-header-99";
const DATABASE_PASSWORD: &str = "pass-of-the-database-10";
const MISSPELT_PASSWORD: &str = "pass-of-a-typo-11";
const URL_SECRET: &str = "path-of-a-hook-12";
const ADMIN: &str = "token-of-the-admin-15";
const CLIENT_SECRET: &str = "secret-of-a-client-17";
/// What comes of it.
const ACCESS_TOKEN: &str = "token-for-a-client-18";
/// No destination has it, or one that is wrong in the same way.
const REFUSED: &str = "whsk_refused-and-no-base64-16!";
/// A key that the program is never given.
const LOST_KEY: &str = "AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=";

/// What receivers do, by the beginning of the path.
fn misbehave(path: &str) -> Reply {
    match path.split('/').nth(1) {
        Some("fails") => Reply::body(500, "no"),
        Some("resets") => Reply::Reset,
        Some("hangs") => Reply::Hang,
        Some("garbage") => Reply::Raw(b"\0\0 no HTTP\r\n\r\n".to_vec()),
        Some("token") => {
            Reply::body(200, format!(r#"{{"access_token": "{ACCESS_TOKEN}", "expires_in": 2}}"#))
        }
        _ => Reply::Status(200),
    }
}

/// A client certificate and its key, in PEM.
fn client_certificate() -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(Vec::new()).unwrap().self_signed(&key).unwrap();
    (certificate.pem(), key.serialize_pem())
}

/// One destination for each kind of secret and each kind of receiver. They are tried once and then dead.
async fn populate(db: &Db, org: Uuid, receiver: &Receiver, (certificate, key): &(String, String)) {
    // Not the operational events: only what is sent here is waited for.
    let new =
        |url: String| db.destination(org, url).event_types("{test.event}").retry(0, 100).timeout_ms(1000);
    for place in ["ok", "fails", "resets", "hangs", "garbage"] {
        let url = receiver.url(&format!("/{place}/{URL_SECRET}"));
        for auth in AUTHS {
            new(url.clone()).auth(auth.auth_type, auth.config).insert().await;
        }
        for secret in SIGNING {
            let rotating = new(url.clone()).secret(secret).setting("previous_signing_secret", PREVIOUS);
            rotating.setting("extra_headers", format!(r#"{{"x-extra": "{EXTRA_HEADER}"}}"#)).insert().await;
        }
        for token in ["token", "fails", "garbage"] {
            let config = serde_json::json!({"token_url": receiver.url(&format!("/{token}")),
                "client_id": "a-client", "client_secret": CLIENT_SECRET});
            new(url.clone()).auth("oauth2", &config.to_string()).insert().await;
        }
    }
    // No receiver here speaks TLS, and the second key does not belong to its certificate.
    let tls = url_of(receiver, "https");
    for key in [key.as_str(), &client_certificate().1, "-----BEGIN of a broken key-----"] {
        let with_certificate = new(tls.clone()).setting("tls_client_cert", certificate);
        with_certificate.setting("tls_client_key", key).insert().await;
    }
}

fn url_of(receiver: &Receiver, scheme: &str) -> String {
    receiver.url("/").replacen("http", scheme, 1)
}

/// The lines of a key in PEM: each of them is a piece of it.
fn lines(pem: &str) -> impl Iterator<Item = &str> {
    pem.lines().filter(|line| !line.starts_with('-') && line.len() > 16)
}

/// The URL with a password, and with one that is misspelt.
fn with_passwords(url: &Secret) -> Secret {
    let passwords = format!("&password={DATABASE_PASSWORD}&pasword={MISSPELT_PASSWORD}");
    Secret::new(format!("{}{passwords}", url.reveal()))
}

/// Every text of every table that is not there to hold secrets.
async fn tables(db: &Db) -> String {
    let names = "SELECT table_name::text FROM information_schema.tables WHERE table_schema = 'public'
        AND (table_name LIKE 'posthaste%' OR table_name IN ('webhook_deliveries', 'activity_logs'))
        AND table_name <> 'posthaste_destination_settings'";
    let mut text = String::new();
    for row in sqlx::query(names).fetch_all(&db.pool).await.unwrap() {
        let table: String = row.get(0);
        let all = format!("SELECT coalesce(string_agg(t::text, E'\\n'), '') FROM {table} t");
        text += &sqlx::query_scalar::<_, String>(AssertSqlSafe(all)).fetch_one(&db.pool).await.unwrap();
    }
    text
}

/// What the API answers to the admin about everything that there is, and to mistakes.
async fn everything_it_answers(db: &Db, program: &Posthaste, org: Uuid) -> String {
    let ids = async |table: &str| -> Vec<Uuid> {
        let all = format!("SELECT id FROM {table}");
        sqlx::query_scalar(AssertSqlSafe(all)).fetch_all(&db.pool).await.unwrap()
    };
    let mut asked: Vec<(&str, String, String)> = Vec::new();
    for list in ["destinations", "deliveries", "events", "jobs"] {
        asked.push(("GET", format!("/{list}?limit=100"), String::new()));
    }
    for id in ids("webhook_deliveries").await {
        asked.push(("GET", format!("/deliveries/{id}"), String::new()));
        asked.push(("GET", format!("/deliveries/{id}/attempts"), String::new()));
    }
    for id in ids("webhook_destinations").await {
        let of = format!("/destinations/{id}");
        asked.push(("GET", of.clone(), String::new()));
        asked.push(("GET", format!("{of}/stats"), String::new()));
        asked.push(("POST", format!("{of}/test"), String::new()));
        for mistake in [
            format!(r#"{{"signing_secret": "{REFUSED}"}}"#),
            format!(r#"{{"auth_type": "bearer", "auth_config": {{"tokn": {:?}}}}}"#, AUTHS[1].secrets[0]),
            format!(r#"{{"settings": {{"extra_headers": {{"no name": "{EXTRA_HEADER}"}}}}}}"#),
            format!(r#"{{"signing_secret": ["{PREVIOUS}"]}}"#),
            format!(r#"{{"signing_secret": "{PREVIOUS}"#),
        ] {
            asked.push(("PATCH", of.clone(), mistake));
        }
    }
    let (address, token) = (program.address().unwrap(), format!("Bearer {ADMIN}"));
    let answers = stream::iter(asked).map(async |(method, path, body)| {
        let headers = [("authorization", token.as_str()), ("content-type", "application/json")];
        let path = format!("/api/v1/orgs/{org}{path}");
        let (status, head, said) = request(address, method, &path, &headers, body.as_bytes()).await.unwrap();
        // Every mistake is one, and of what is encrypted under a lost key nothing can be changed.
        let refused = [400, 409].contains(&status);
        assert!(status < 500 && (method != "PATCH" || refused), "{method} {path} {body}: {head}{said}");
        format!("{method} {path}: {head}\n{said}\n")
    });
    answers.buffer_unordered(16).collect::<Vec<String>>().await.concat()
}

/// Runs the dispatcher until all that can be tried has been tried, looks at all of its pages, and stops it.
/// What it said, and what its API answered.
async fn everything_it_says(
    db: &Db,
    org: Uuid,
    environment: &[(&str, &str)],
    locked: i64,
) -> (String, String) {
    let mut program = Posthaste::spawn(&["serve"], environment);
    program.ready().await;
    eventually("everything has been tried", async || {
        db.deliveries("status IN ('pending', 'failed')").await == locked
    })
    .await;
    let mut said = String::new();
    for path in ["/healthz", "/readyz", "/metrics", "/api/v1/keys", "/"] {
        said += &program.get(path).await.unwrap().1;
    }
    let answered = everything_it_answers(db, &program, org).await;
    assert!(program.terminate().await.success());
    let log = program.log();
    for target in ["TRACE", "sqlx::query", "actix_http", "rustls", "is not contacted", "cannot be used"] {
        assert!(log.contains(target) || locked == 0, "nothing was said about {target}");
    }
    (said + &log, answered)
}

fn output_of(arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let output = run(arguments, environment);
    [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat()
}

#[tokio::test]
async fn no_secret_is_said_or_stored_anywhere_at_any_log_level() {
    let db = Db::new().await;
    let receiver = Receiver::scripted(|request| misbehave(&request.path));
    let org = db.org().await;
    let client = client_certificate();
    // Encrypted under a key that is gone: nothing but fault finding comes of these.
    let lost = db.destination(org, receiver.url("/ok")).secret(SIGNING[2]).auth("bearer", AUTHS[1].config);
    lost.event_types("{test.event}").insert().await;
    encrypt(&db, LOST_KEY);
    populate(&db, org, &receiver, &client).await;
    encrypt(&db, OTHER_KEY);
    populate(&db, org, &receiver, &client).await;

    let (url, keys) = (with_passwords(&db.url), format!("{KEY},{OTHER_KEY}"));
    let mut environment = vec![
        ("DATABASE_URL", url.reveal()),
        ("POSTHASTE_SECRET_KEY", keys.as_str()),
        ("POSTHASTE_OPERATIONAL_EVENTS", "true"),
        ("POSTHASTE_ADMIN_TOKEN", ADMIN),
        ("RUST_LOG", "trace,sqlx_postgres::options::parse=trace"),
    ];
    db.event(org, "test.event", "{}").await;
    let (mut said, answered) = everything_it_says(&db, org, &environment, 1).await;
    for arguments in [
        &["check"][..],
        &["secrets", "status"],
        &["secrets", "encrypt"],
        &["secrets", "rotate", "--json"],
        &["secrets", "status", "--no-such-option"],
        &["serve", "--no-such-option"],
        &["serve", "--help"],
        &["migrate"],
    ] {
        said += &output_of(arguments, &environment);
    }
    let broken = [KEY, "a-broken-key-13", &STANDARD.encode("a-short-key-of-14")].join(",");
    environment[1].1 = &broken;
    for command in [&["serve"][..], &["check"], &["secrets", "encrypt"]] {
        said += &output_of(command, &environment);
    }

    let mut secrets = vec![KEY, OTHER_KEY, LOST_KEY, PREVIOUS, EXTRA_HEADER, DATABASE_PASSWORD, ADMIN];
    secrets.extend([MISSPELT_PASSWORD, REFUSED, "a-broken-key-13", "a-short-key-of-14"]);
    secrets.extend([CLIENT_SECRET, ACCESS_TOKEN]);
    secrets.extend(AUTHS.iter().flat_map(|auth| auth.secrets));
    secrets.extend(SIGNING);
    secrets.extend(lines(&client.1));
    // Whoever may ask for a destination sees its URL.
    assert_silent("an answer of the API", &answered, &secrets);
    secrets.push(URL_SECRET);
    assert_silent("what it said", &said, &secrets);
    assert_silent("a table", &tables(&db).await, &secrets);
    check_invariants(&db, &[&receiver]).await;
}
