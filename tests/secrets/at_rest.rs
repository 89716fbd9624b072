//! What the dispatcher makes of encrypted secrets, with the right key and without it.

use standardwebhooks::Webhook;
use uuid::Uuid;

use super::{KEY, KEY_ID, OTHER_KEY, encrypt, posthaste, signing_secret};
use crate::common::{Db, Posthaste, Received, Receiver, check_invariants, eventually};

const NEW: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OLD: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
/// Only notifications can have told of a change.
const NO_POLLS: (&str, &str) = ("POSTHASTE_POLL_INTERVAL", "1h");

fn with_key(keys: &str) -> [(&str, &str); 1] {
    [("POSTHASTE_SECRET_KEY", keys)]
}

/// What came to `path`.
fn at(receiver: &Receiver, path: &str) -> Vec<Received> {
    receiver.received().into_iter().filter(|request| request.path == path).collect()
}

#[tokio::test]
async fn encrypted_secrets_sign_and_authenticate_as_plain_ones_do() {
    let (db, receiver) = (Db::new().await, Receiver::start());
    let org = db.org().await;
    let new = |path: &str| db.destination(org, receiver.url(path));
    new("/bearer").auth("bearer", r#"{"token": "t0ken", "n": 12345678901234567890}"#).insert().await;
    new("/header").auth("header", r#"{"header_name": "x-a", "header_value": "v4lue"}"#).insert().await;
    new("/basic").auth("basic", r#"{"username": "u", "password": "p4ss"}"#).insert().await;
    let rotating = new("/rotating").secret(OLD).insert().await;
    encrypt(&db, KEY);
    // As an application rotates that knows nothing of encryption: the old one moves as it is stored.
    db.execute(&format!(
        "INSERT INTO posthaste_destination_settings
             (destination_id, previous_signing_secret, previous_secret_expires_at)
         SELECT id, signing_secret, '2999-01-01' FROM webhook_destinations WHERE id = '{rotating}'"
    ))
    .await;
    db.execute(&format!("UPDATE webhook_destinations SET signing_secret = '{NEW}' WHERE id = '{rotating}'"))
        .await;
    new("/plain").secret(NEW).auth("bearer", r#"{"token": "t0ken"}"#).insert().await;

    let program = Posthaste::serve_with(&db.url, &with_key(&format!("{OTHER_KEY},{KEY}"))).await;
    db.events(org, 1).await;
    db.settled().await;
    let header = |path: &str, name: &str| at(&receiver, path)[0].header(name).map(str::to_owned);
    for (path, name, value) in [
        ("/bearer", "authorization", "Bearer t0ken"),
        ("/header", "x-a", "v4lue"),
        ("/basic", "authorization", "Basic dTpwNHNz"),
        ("/plain", "authorization", "Bearer t0ken"),
    ] {
        assert_eq!(header(path, name).as_deref(), Some(value), "{path}");
    }
    for (path, secret) in [("/rotating", NEW), ("/rotating", OLD), ("/plain", NEW)] {
        assert!(at(&receiver, path)[0].is_signed(&Webhook::new(secret).unwrap()), "{path}: {secret}");
    }
    program.assert_silent_about(&["t0ken", "v4lue", "p4ss", NEW, OLD, KEY]);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn without_its_key_a_destination_waits_uncharged_and_the_others_go_on() {
    let (db, locked, healthy) = (Db::new().await, Receiver::start(), Receiver::start());
    let org = db.org().await;
    let first = db.destination(org, locked.url("/")).secret(NEW).retry(0, 100).insert().await;
    let second = db.destination(org, locked.url("/")).auth("bearer", r#"{"token": "t0ken"}"#);
    let second = second.retry(0, 100).insert().await;
    encrypt(&db, KEY);
    let plain = db.destination(org, healthy.url("/")).secret(OLD).insert().await;
    for (run, keys) in [(1, ""), (2, OTHER_KEY)] {
        let environment = [with_key(keys)[0], ("POSTHASTE_POLL_INTERVAL", "100ms")];
        let mut program = Posthaste::serve_with(&db.url, &environment).await;
        db.events(org, 1).await;
        // Nothing tells of rows that are written by hand: each of them shows that there was another poll.
        for n in 0..3 {
            eventually("the other one has them", async || healthy.count() == run * 4 - 3 + n).await;
            let recorded = format!("destination_id = '{plain}' AND status = 'delivered'");
            eventually("they are recorded", async || db.deliveries(&recorded).await == run as i64).await;
            db.execute(&format!(
                "UPDATE webhook_deliveries SET status = 'pending', attempts = 0, delivered_at = NULL,
                     next_retry_at = timezone('UTC', clock_timestamp())
                 WHERE destination_id = '{plain}' AND delivered_at = (SELECT max(delivered_at)
                     FROM webhook_deliveries WHERE destination_id = '{plain}')"
            ))
            .await;
        }
        eventually("the other one has them", async || healthy.count() == run * 4).await;
        for (destination, field) in [(first, "signing_secret"), (second, "auth_config.token")] {
            let said = format!("destination={destination} is not contacted: {field} is encrypted");
            assert_eq!(program.log().matches(&said).count(), 1, "once, however often it was looked at");
        }
        let (status, body) = program.get("/readyz").await.unwrap();
        assert!(status == 200 && body.contains("2 destination(s) are not contacted"), "{status} {body}");
        assert!(program.terminate().await.success());
        let untouched = "status = 'pending' AND attempts = 0 AND last_attempt_at IS NULL
            AND error_message IS NULL";
        assert_eq!(db.deliveries(untouched).await, 2 * run as i64);

        let check = posthaste(&["check"], &db.url, keys);
        assert_eq!(check.code, 1, "{}", check.said);
        let finding = format!("destination {first}: signing_secret is encrypted under the key {KEY_ID}");
        assert!(check.said.contains(&finding), "{}", check.said);
        assert!(check.said.contains("remedy: give POSTHASTE_SECRET_KEY the key"), "{}", check.said);
        let warning = "1 secret(s) are stored as plain text although there is a key";
        assert_eq!(check.said.contains(warning), !keys.is_empty(), "{}", check.said);
    }
    assert_eq!((locked.count(), locked.connections()), (0, 0));

    let _program = Posthaste::serve_with(&db.url, &with_key(KEY)).await;
    db.settled().await;
    assert_eq!(db.deliveries("status = 'delivered' AND attempts = 1").await, 6);
    assert_eq!(locked.count(), 4);
    check_invariants(&db, &[&locked, &healthy]).await;
}

#[tokio::test]
async fn a_destination_is_locked_and_released_while_it_runs() {
    let (db, receiver) = (Db::new().await, Receiver::start());
    let org = db.org().await;
    let destination = db.destination(org, receiver.url("/")).secret(NEW).retry(0, 100).insert().await;
    let program = Posthaste::serve_with(&db.url, &[with_key(KEY)[0], NO_POLLS]).await;
    db.events(org, 1).await;
    db.settled().await;
    let stores = async |secret: &str| {
        let sql = format!("signing_secret = '{secret}' WHERE id = '{destination}'");
        db.execute(&format!("UPDATE webhook_destinations SET {sql}")).await;
    };
    // Cut off, of another destination, of a later version.
    let elsewhere = db.destination(org, receiver.url("/")).with("enabled", "false").secret(NEW);
    let elsewhere = elsewhere.insert().await;
    encrypt(&db, KEY);
    let copied = signing_secret(&db, elsewhere).await;
    let cut = &signing_secret(&db, destination).await[..40].to_owned();
    let faults = [
        (copied.as_str(), "was altered, or belongs to another destination"),
        (cut, "was altered, or belongs to another destination"),
        ("phs7:72cd6e84:AAAA", "begins like an encrypted secret and is none"),
    ];
    for (n, (secret, why)) in faults.into_iter().enumerate() {
        stores(secret).await;
        let said = format!("destination={destination} is not contacted: signing_secret ");
        eventually("it is locked", async || {
            let log = program.log();
            let told = log.matches(&said).count() == n + 1;
            told && log.rsplit_once(&said).is_some_and(|(_, rest)| rest.contains(why))
        })
        .await;
        db.events(org, 1).await;
        stores(OLD).await;
        let released = format!("destination={destination} its secrets can be decrypted again");
        eventually("it is released", async || program.log().matches(&released).count() == n + 1).await;
        db.settled().await;
        assert!(receiver.received().last().unwrap().is_signed(&Webhook::new(OLD).unwrap()));
    }
    assert_eq!(db.deliveries("status = 'delivered' AND attempts = 1").await, 4);
    assert_eq!(receiver.count(), 4);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn encrypting_under_a_running_dispatcher_costs_no_connection_and_no_delivery() {
    let (db, receiver) = (Db::new().await, Receiver::start());
    let org = db.org().await;
    let destination = db.destination(org, receiver.url("/")).secret(NEW).setting("max_in_flight", 1);
    let destination: Uuid = destination.auth("bearer", r#"{"token": "t0ken"}"#).insert().await;
    let program = Posthaste::serve_with(&db.url, &[with_key(KEY)[0], NO_POLLS]).await;
    db.events(org, 1).await;
    db.settled().await;
    encrypt(&db, KEY);
    assert!(signing_secret(&db, destination).await.starts_with("phs1:"));
    let changed = format!("destination={destination} has changed");
    eventually("it is taken over", async || program.log().contains(&changed)).await;
    db.events(org, 1).await;
    db.settled().await;
    let last = receiver.received().pop().unwrap();
    assert!(
        last.is_signed(&Webhook::new(NEW).unwrap()) && last.header("authorization") == Some("Bearer t0ken")
    );
    assert_eq!((receiver.count(), receiver.connections()), (2, 1));

    db.execute("UPDATE webhook_destinations SET auth_config = '{\"token\": \"other\"}'").await;
    eventually("what really changes counts", async || {
        db.events(org, 1).await;
        db.settled().await;
        receiver.received().last().is_some_and(|last| last.header("authorization") == Some("Bearer other"))
    })
    .await;
    check_invariants(&db, &[&receiver]).await;
}
