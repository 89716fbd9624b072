//! Secrets that go in and do not come out.

use posthaste::manage::destinations::{self, Query, Rotate};
use posthaste::manage::patch::Patch;
use posthaste::model::{DestinationId, OrgId};
use serde_json::json;
use standardwebhooks::Webhook;

use crate::common::{Db, Posthaste, Received, Receiver, assert_silent, check_invariants, eventually};
use crate::{Desk, KEY, OPERATOR, connection, good, loopback};

fn accepts(secret: &str, request: &Received) -> bool {
    let headers =
        request.headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
    Webhook::new(secret).unwrap().verify(&request.body, &headers).is_ok()
}

#[tokio::test]
async fn a_secret_that_is_made_is_shown_once_and_no_other_ever() {
    let db = Db::new().await;
    let org = OrgId(db.org().await);
    for key in ["", KEY] {
        let desk = Desk::with(key, loopback());
        let mut conn = connection(&db).await;
        let given = json!({"name": format!("key {key}"), "auth_type": "bearer",
            "auth_config": {"token": "hunter2hunter2"},
            "settings": {"extra_headers": {"x-api-key": "hunter3hunter3"}}});
        let created = desk.create(&mut conn, org.0, &good("http://127.0.0.1:1/", given)).await.unwrap();
        let id = DestinationId(created.destination.id);
        let made = serde_json::to_value(&created).unwrap()["signing_secret"].as_str().unwrap().to_owned();
        assert!(made.starts_with("whsec_") && made.len() == 50, "{made}");
        let secrets = [made.as_str(), "hunter2hunter2", "hunter3hunter3"];
        assert_silent("Debug", &format!("{created:?}"), &secrets);
        let again = serde_json::to_string(&created).unwrap().replacen(&made, "", 1);
        assert_silent("the answer that shows it once", &again, &secrets);
        let mut texts = Vec::new();
        let one = destinations::one(&mut conn, org, OPERATOR, id).await.unwrap();
        assert!(one.has_signing_secret);
        texts.push(serde_json::to_string(&one).unwrap() + &format!("{one:?}"));
        let page = destinations::list(&mut conn, org, OPERATOR, &Query::default()).await.unwrap();
        texts.push(serde_json::to_string(&page).unwrap());
        let update = desk.update(&mut conn, org, id, &json!({"retry_max": 1})).await.unwrap();
        texts.push(serde_json::to_string(&update).unwrap());
        let disabled = destinations::disable(&mut conn, org, OPERATOR, id, Default::default()).await.unwrap();
        texts.push(serde_json::to_string(&disabled).unwrap());
        for text in texts {
            assert_silent("what is shown", &text, &secrets);
        }
        let stored = format!(
            "SELECT w.signing_secret || w.auth_config::text FROM webhook_destinations w
            WHERE id = '{id}'"
        );
        let stored = db.text(&stored).await.unwrap();
        if key.is_empty() {
            assert!(stored.contains(&made) && stored.contains("hunter2hunter2"), "{stored}");
        } else {
            assert_silent("the table", &stored, &secrets[..2]);
            assert_eq!(stored.matches("phs1:").count(), 2, "{stored}");
        }
        // An update that does not touch them leaves them as they are, letter by letter.
        desk.update(&mut conn, org, id, &json!({"name": format!("renamed {key}")})).await.unwrap();
        let sql = format!(
            "SELECT w.signing_secret || w.auth_config::text FROM webhook_destinations w
            WHERE id = '{id}'"
        );
        assert_eq!(db.text(&sql).await.unwrap(), stored);
    }
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn a_receiver_accepts_requests_by_the_old_and_the_new_secret_until_the_overlap_is_over() {
    let db = Db::new().await;
    let org = OrgId(db.org().await);
    let receiver = Receiver::start();
    let desk = Desk::with(KEY, loopback());
    let mut conn = connection(&db).await;
    let created = desk.create(&mut conn, org.0, &good(&receiver.url("/"), json!({}))).await.unwrap();
    let id = DestinationId(created.destination.id);
    let first = created.signing_secret.unwrap().0;
    let posthaste = Posthaste::serve_with(&db.url, &[("POSTHASTE_SECRET_KEY", KEY)]).await;
    let mut sent = 0;
    // Sends an event until one is signed as expected: a change is taken over within a second.
    let mut signed_by = async |secrets: &[&str], not: &[&str]| {
        eventually("requests are signed by the secrets of the moment", async || {
            db.events(org.0, 1).await;
            sent += 1;
            eventually("it arrives", async || receiver.count() == sent).await;
            let last = receiver.received().pop().unwrap();
            secrets.iter().all(|secret| accepts(secret, &last))
                && !not.iter().any(|secret| accepts(secret, &last))
        })
        .await;
    };
    signed_by(&[first.reveal()], &[]).await;
    let rotate =
        async |conn: &mut _, asked| destinations::rotate(conn, org, OPERATOR, id, asked, desk.setup()).await;
    let rotated = rotate(&mut conn, Rotate::default()).await.unwrap();
    let second = rotated.signing_secret.0;
    assert!(rotated.destination.settings.has_previous_signing_secret);
    assert_ne!(first, second);
    signed_by(&[first.reveal(), second.reveal()], &[]).await;
    // A given one, without an overlap.
    let third = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let asked = Rotate { signing_secret: Patch::Value(third.into()), overlap_seconds: Patch::Value(0) };
    let rotated = rotate(&mut conn, asked).await.unwrap();
    assert!(!rotated.destination.settings.has_previous_signing_secret);
    signed_by(&[third], &[first.reveal(), second.reveal()]).await;
    let bad = Rotate { signing_secret: Patch::Value("whsec_!".into()), overlap_seconds: Patch::Value(-1) };
    let refused = rotate(&mut conn, bad).await.unwrap_err();
    assert_eq!(crate::fields(refused).0, ["overlap_seconds", "signing_secret"]);
    posthaste.assert_silent_about(&[first.reveal(), second.reveal(), third]);
    db.settled().await;
    check_invariants(&db, &[&receiver]).await;
}
