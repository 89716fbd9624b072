//! `posthaste secrets`, on real databases.

use posthaste::model::{DestinationId, Secret};
use posthaste::policy::keyring::{Field, KeyRing};
use sqlx::Row;
use uuid::Uuid;

use super::{KEY, KEY_ID, OTHER_ID, OTHER_KEY, encrypt, posthaste, signing_secret};
use crate::common::{Db, Posthaste, check_invariants, eventually, run};

/// 450 destinations: more than two pages. Every second one is disabled.
const MANY: &str = "
    WITH d AS (
        INSERT INTO webhook_destinations (org_id, name, url, enabled, signing_secret, auth_config)
        SELECT o.id, n, 'http://x', n % 2 = 0, 'signing-' || n,
            jsonb_build_object('token', 'token-' || n, 'password', 'pass-' || n,
                'header_value', 'value-' || n, 'client_secret', 'client-' || n, 'username', 'user-' || n,
                'big', 12345678901234567890.50)
        FROM organizations o, generate_series(1, 450) n RETURNING id, name
    )
    INSERT INTO posthaste_destination_settings
        (destination_id, previous_signing_secret, tls_client_key, tls_client_cert)
    SELECT id, 'previous-' || name, 'key-' || name, '-----BEGIN CERTIFICATE-----' FROM d";
const SECRETS_OF_EACH: u64 = 7;

/// All secrets of the database with their fields, decrypted, in no order that matters.
async fn decrypted(db: &Db, keys: &str) -> Vec<(Uuid, Field, String)> {
    let ring = KeyRing::parse(&Secret::new(keys)).unwrap();
    let sql = "SELECT d.id, d.signing_secret, d.auth_config ->> 'token', d.auth_config ->> 'header_value',
            d.auth_config ->> 'password', d.auth_config ->> 'client_secret', s.previous_signing_secret,
            s.tls_client_key
        FROM webhook_destinations d LEFT JOIN posthaste_destination_settings s ON s.destination_id = d.id
        ORDER BY d.id";
    let fields = ["signing_secret", "auth_config.token", "auth_config.header_value", "auth_config.password"];
    let more = ["auth_config.client_secret", "previous_signing_secret", "tls_client_key"];
    let fields: Vec<Field> = fields.into_iter().chain(more).map(|name| Field::named(name).unwrap()).collect();
    let mut all = Vec::new();
    for row in sqlx::query(sql).fetch_all(&db.pool).await.unwrap() {
        let id: Uuid = row.get(0);
        for (n, field) in fields.iter().enumerate() {
            let Some(text) = row.get::<Option<String>, _>(n + 1) else { continue };
            let plain = ring.open(DestinationId(id), *field, &Secret::new(text)).unwrap();
            all.push((id, *field, plain.reveal().to_owned()));
        }
    }
    all
}

/// Everything in both tables that is no secret.
async fn the_rest(db: &Db) -> String {
    let sql = "SELECT string_agg((d.id, d.updated_at, s.tls_client_cert, CASE jsonb_typeof(d.auth_config)
            WHEN 'object' THEN d.auth_config - '{token,password,header_value,client_secret}'::text[]
            ELSE d.auth_config END)::text, ' ' ORDER BY d.id)
        FROM webhook_destinations d LEFT JOIN posthaste_destination_settings s ON s.destination_id = d.id";
    db.text(sql).await.unwrap()
}

async fn encrypted_under(db: &Db, id: &str) -> i64 {
    let columns = "d.signing_secret, d.auth_config ->> 'token', d.auth_config ->> 'header_value',
        d.auth_config ->> 'password', d.auth_config ->> 'client_secret', s.previous_signing_secret,
        s.tls_client_key";
    db.number(&format!(
        "SELECT count(*) FROM webhook_destinations d
         LEFT JOIN posthaste_destination_settings s ON s.destination_id = d.id,
         unnest(ARRAY[{columns}]) AS secret WHERE secret LIKE 'phs1:{id}:%'"
    ))
    .await
}

#[tokio::test]
async fn every_secret_is_encrypted_once_and_nothing_else_changes() {
    let db = Db::new().await;
    let org = db.org().await;
    db.execute(MANY).await;
    // What has no secret, or none that is one.
    for config in ["null", "[]", "[1, 2]", "\"phs1:\"", "7", r#"{"token": 5}"#, r#"{"token": ""}"#] {
        db.destination(org, "http://x").with("auth_config", config).with("signing_secret", "").insert().await;
    }
    let (secrets, rest) = (decrypted(&db, "").await, the_rest(&db).await);
    let all = 450 * SECRETS_OF_EACH;

    let dry = posthaste(&["secrets", "encrypt", "--dry-run", "--json"], &db.url, KEY);
    assert_eq!((dry.code, dry.json()["encrypted"].as_u64()), (0, Some(all)), "{}", dry.said);
    assert_eq!(encrypted_under(&db, KEY_ID).await, 0);
    for expected in [all, 0] {
        let done = posthaste(&["secrets", "encrypt", "--json"], &db.url, KEY);
        assert_eq!((done.code, done.json()["encrypted"].as_u64()), (0, Some(expected)), "{}", done.said);
    }
    assert_eq!(encrypted_under(&db, KEY_ID).await, all as i64);
    let same = |found: Vec<(Uuid, Field, String)>| {
        found.into_iter().filter(|(.., text)| !text.is_empty()).collect::<Vec<_>>()
    };
    assert_eq!(same(decrypted(&db, KEY).await), same(secrets));
    assert_eq!(the_rest(&db).await, rest);
    let status = posthaste(&["secrets", "status"], &db.url, KEY);
    assert!(status.said.contains(&format!("under {KEY_ID} (encrypts)    {all}")), "{}", status.said);
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn rotating_moves_everything_under_the_first_key_and_names_the_unused_ones() {
    let db = Db::new().await;
    db.org().await;
    db.execute(MANY).await;
    let secrets = decrypted(&db, "").await;
    encrypt(&db, KEY);
    db.execute("UPDATE webhook_destinations SET signing_secret = 'written later' WHERE enabled").await;
    let both = format!("{OTHER_KEY},{KEY}");
    let all = 450 * SECRETS_OF_EACH;

    let status = posthaste(&["secrets", "status", "--json"], &db.url, OTHER_KEY);
    assert_eq!((status.code, status.json()["plain"].as_u64()), (1, Some(225)), "{}", status.said);
    let keys = serde_json::json!([
        { "id": OTHER_ID, "place": "first", "secrets": 0 },
        { "id": KEY_ID, "place": "missing", "secrets": all - 225 },
    ]);
    assert_eq!(status.json()["keys"], keys);

    let locked = posthaste(&["secrets", "rotate", "--json"], &db.url, OTHER_KEY);
    let counts = ["encrypted", "problem_count"].map(|name| locked.json()[name].as_u64().unwrap());
    assert_eq!((locked.code, counts), (1, [225, all - 225]), "{}", locked.said);
    assert_eq!(locked.json()["problems"].as_array().unwrap().len(), 100);

    let dry = posthaste(&["secrets", "rotate", "--dry-run"], &db.url, &both);
    assert!(dry.code == 0 && dry.said.contains("would be encrypted"), "{}", dry.said);
    assert!(!dry.said.contains("any more"), "{}", dry.said);
    let rotated = posthaste(&["secrets", "rotate", "--json"], &db.url, &both);
    assert_eq!(rotated.json()["encrypted"].as_u64(), Some(all - 225), "{}", rotated.said);
    assert_eq!(rotated.json()["unused_keys"], serde_json::json!([KEY_ID]));
    assert_eq!(encrypted_under(&db, OTHER_ID).await, all as i64);
    let again = posthaste(&["secrets", "rotate"], &db.url, &both);
    assert!(again.said.starts_with("0 secret(s) encrypted"), "{}", again.said);
    assert!(again.said.contains(&format!("any more under: {KEY_ID}.")), "{}", again.said);

    let later = |(id, field, text): (Uuid, Field, String)| {
        let is_later = field == Field::SigningSecret;
        (id, field, if is_later { String::new() } else { text })
    };
    let found = decrypted(&db, OTHER_KEY).await;
    assert_eq!(found.iter().filter(|(.., text)| text == "written later").count(), 225);
    assert_eq!(
        found.into_iter().map(later).collect::<Vec<_>>(),
        secrets.into_iter().map(later).collect::<Vec<_>>()
    );
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn a_secret_that_the_application_changes_at_that_moment_keeps_its_new_value() {
    let db = Db::new().await;
    let org = db.org().await;
    let destination = db.destination(org, "http://x").secret("before").insert().await;
    let token = db.destination(org, "http://x").auth("bearer", r#"{"token": "before"}"#).insert().await;
    let mut application = db.pool.begin().await.unwrap();
    let update =
        "UPDATE webhook_destinations SET signing_secret = 'after', auth_config = '{\"token\": \"after\"}'";
    sqlx::query(update).execute(&mut *application).await.unwrap();
    let environment = [("DATABASE_URL", db.url.reveal()), ("POSTHASTE_SECRET_KEY", KEY)];
    let mut program = Posthaste::spawn(&["secrets", "encrypt"], &environment);
    eventually("it waits for the application", async || {
        let waiting = "SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE 'UPDATE%phs%'";
        let waiting = waiting.replace("%phs%", "%unnest%");
        db.number(&waiting).await == 1
    })
    .await;
    application.commit().await.unwrap();
    assert_eq!(program.exit().await.code(), Some(0), "{}", program.log());
    assert!(program.log().contains("4 secret(s) encrypted"), "{}", program.log());
    for id in [destination, token] {
        assert!(signing_secret(&db, id).await.starts_with("phs1:"));
    }
    assert!(decrypted(&db, KEY).await.iter().all(|(.., text)| text == "after"));
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn a_secret_too_long_for_its_column_is_named_with_the_limit_and_the_others_are_encrypted() {
    let db = Db::new().await;
    let org = db.org().await;
    let fits = db.destination(org, "http://x").secret(&"é".repeat(76)).insert().await;
    let long = db.destination(org, "http://x").secret(&"x".repeat(153)).insert().await;
    let done = posthaste(&["secrets", "encrypt"], &db.url, KEY);
    assert_eq!(done.code, 1, "{}", done.said);
    let named = format!("destination {long}: signing_secret has 153 bytes, and only 152 fit");
    assert!(done.said.contains(&named) && done.said.starts_with("1 secret(s) encrypted"), "{}", done.said);
    assert!(signing_secret(&db, fits).await.starts_with("phs1:"));
    assert_eq!(signing_secret(&db, long).await, "x".repeat(153));
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn the_rights_that_the_documentation_names_are_enough() {
    let db = Db::new().await;
    db.org().await;
    db.execute(MANY).await;
    let (role, url) = db
        .role(
            "GRANT SELECT, UPDATE (signing_secret, auth_config) ON webhook_destinations TO :\"role\";
             GRANT SELECT, UPDATE (previous_signing_secret, tls_client_key)
                 ON posthaste_destination_settings TO :\"role\"",
        )
        .await;
    for (command, keys) in [
        ("encrypt", KEY.to_owned()),
        ("rotate", format!("{OTHER_KEY},{KEY}")),
        ("status", OTHER_KEY.to_owned()),
    ] {
        let done = posthaste(&["secrets", command], &url, &keys);
        assert_eq!(done.code, 0, "{command}: {}", done.said);
    }
    assert_eq!(encrypted_under(&db, OTHER_ID).await, 450 * SECRETS_OF_EACH as i64);
    db.drop_role(&role).await;
}

#[tokio::test]
async fn rows_that_policies_hide_are_not_skipped_silently() {
    let db = Db::new().await;
    let org = db.org().await;
    db.destination(org, "http://x").secret("a secret").insert().await;
    let rights = "GRANT SELECT, UPDATE ON webhook_destinations, posthaste_destination_settings TO :\"role\"";
    let (role, url) = db.role(rights).await;
    db.execute("ALTER TABLE webhook_destinations ENABLE ROW LEVEL SECURITY").await;
    let done = posthaste(&["secrets", "encrypt"], &url, KEY);
    assert!(done.code == 1 && done.said.contains("CREATE POLICY"), "exit {}: {}", done.code, done.said);
    db.drop_role(&role).await;
}

#[test]
fn wrong_keys_are_faults_of_the_configuration_and_reported_together() {
    let url = Secret::new("postgres://nobody@127.0.0.1:1/nothing");
    let keys = format!("{KEY},hunter2!,aHVudGVyMg==");
    let environment = [
        ("DATABASE_URL", url.reveal()),
        ("POSTHASTE_SECRET_KEY", keys.as_str()),
        ("POSTHASTE_POLL_INTERVAL", "never"),
    ];
    for command in ["serve", "check"] {
        let output = run(&[command], &environment);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        for fault in
            ["key 2 is no base64", "key 3 has 7 bytes", "generate-key", "--poll-interval", "3 fault(s)"]
        {
            assert!(said.contains(fault), "{command}: {fault}: {said}");
        }
        assert!(!said.contains("hunter2") && !said.contains("aHVudGVyMg") && !said.contains(KEY), "{said}");
    }
    for (command, keys, fault) in [
        ("encrypt", "", "must hold a key"),
        ("rotate", " , ", "must hold a key"),
        ("status", "hunter2!", "key 1 is no base64"),
    ] {
        let done = posthaste(&["secrets", command], &url, keys);
        assert!(done.code == 2 && done.said.contains(fault), "{command}: exit {}: {}", done.code, done.said);
        let done = posthaste(&["secrets", command], &Secret::new(""), KEY);
        assert!(done.code == 2 && done.said.contains("DATABASE_URL"), "{command}: {}", done.said);
    }
}

#[test]
fn a_generated_key_is_one_and_a_new_one_each_time() {
    let generated = || {
        let output = run(&["secrets", "generate-key"], &[]);
        assert!(output.status.success());
        Secret::new(String::from_utf8(output.stdout).unwrap())
    };
    let keys = [generated(), generated()].map(|key| KeyRing::parse(&key).unwrap());
    let ids: Vec<&str> = keys.iter().flat_map(KeyRing::ids).collect();
    assert!(ids.len() == 2 && ids[0] != ids[1], "{ids:?}");
}
