//! Signatures, checked as a receiver checks them: by the official verifier where it knows the scheme.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, SigningKey, Verifier as _};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use standardwebhooks::Webhook;
use uuid::Uuid;

use crate::common::{Db, NewDestination, Posthaste, Received, Receiver, check_invariants};

const NEW: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OLD: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
const LEGACY: &str = "any other text: the old form";

/// What the receiver got at `path`.
fn only(receiver: &Receiver, path: &str) -> Received {
    let mut requests: Vec<Received> = receiver.received().into_iter().filter(|r| r.path == path).collect();
    assert_eq!(requests.len(), 1, "{path}");
    requests.remove(0)
}

fn signature_count(request: &Received) -> usize {
    request.header("webhook-signature").map_or(0, |value| value.split(' ').count())
}

/// Delivers one event to each of the destinations, and sees that the log keeps their secrets.
async fn deliver<'a>(db: &'a Db, org: Uuid, destinations: Vec<NewDestination<'a>>) {
    for destination in destinations {
        destination.insert().await;
    }
    let posthaste = Posthaste::serve(&db.url).await;
    db.event(org, "signed", r#"{"text":"é 日本"}"#).await;
    db.settled().await;
    assert_eq!(db.deliveries("status <> 'delivered'").await, 0);
    posthaste.assert_silent_about(&[NEW, OLD, LEGACY, &NEW[6..], &OLD[6..]]);
}

#[tokio::test]
async fn the_official_verifier_accepts_hmac_signatures() {
    let db = Db::new().await;
    let receiver = Receiver::start();
    let org = db.org().await;
    let at = |path: &str| db.destination(org, receiver.url(path));
    let rotating = |path: &str, until: &str| {
        at(path)
            .secret(NEW)
            .setting("previous_signing_secret", OLD)
            .setting("previous_secret_expires_at", until)
    };
    let all = vec![
        at("/whsec").secret(NEW),
        at("/batch").secret(NEW).batch_size(10),
        at("/legacy").secret(LEGACY),
        at("/none"),
        rotating("/rotating", "2999-01-01"),
        rotating("/rotated", "2020-01-01"),
    ];
    deliver(&db, org, all).await;

    let [new, old] = [NEW, OLD].map(|secret| Webhook::new(secret).unwrap());
    let legacy = Webhook::from_bytes(LEGACY.as_bytes().to_vec()).unwrap();
    type Verdicts<'a> = &'a [(&'a Webhook, bool)];
    let table: [(&str, Verdicts<'_>, usize); 6] = [
        ("/whsec", &[(&new, true), (&old, false)], 1),
        ("/batch", &[(&new, true), (&old, false)], 1),
        ("/legacy", &[(&legacy, true), (&new, false)], 1),
        ("/none", &[(&new, false)], 0),
        ("/rotating", &[(&new, true), (&old, true)], 2),
        ("/rotated", &[(&new, true), (&old, false)], 1),
    ];
    for (path, verifiers, signatures) in table {
        let request = only(&receiver, path);
        assert_eq!(signature_count(&request), signatures, "{path}");
        for (verifier, expected) in verifiers {
            assert_eq!(request.is_signed(verifier), *expected, "{path}: {request:?}");
            let mut forged = request.clone();
            forged.body.push(b' ');
            assert!(!forged.is_signed(verifier), "{path}: the signature covers the body");
        }
    }
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn an_ed25519_key_signs_what_the_standard_says() {
    let db = Db::new().await;
    let receiver = Receiver::start();
    let org = db.org().await;
    let key = SigningKey::from_bytes(&[42; 32]);
    let secret = format!("whsk_{}", STANDARD.encode(key.to_keypair_bytes()));
    deliver(&db, org, vec![db.destination(org, receiver.url("/")).secret(&secret)]).await;

    let request = only(&receiver, "/");
    let header = |name: &str| request.header(name).unwrap();
    let signature = STANDARD.decode(header("webhook-signature").strip_prefix("v1a,").unwrap()).unwrap();
    let prefix = format!("{}.{}.", header("webhook-id"), header("webhook-timestamp"));
    let message = [prefix.as_bytes(), &request.body].concat();
    key.verifying_key().verify(&message, &Signature::from_slice(&signature).unwrap()).unwrap();
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn the_hex_scheme_signs_the_body_in_one_header() {
    let db = Db::new().await;
    let receiver = Receiver::start();
    let org = db.org().await;
    let hex = |path: &str| {
        db.destination(org, receiver.url(path)).secret(LEGACY).setting("signature_scheme", "hex")
    };
    deliver(
        &db,
        org,
        vec![hex("/default"), hex("/named").setting("signature_header", "X-Hub-Signature-256")],
    )
    .await;

    for (path, name) in [("/default", "x-webhook-signature"), ("/named", "x-hub-signature-256")] {
        let request = only(&receiver, path);
        let mut mac = Hmac::<Sha256>::new_from_slice(LEGACY.as_bytes()).unwrap();
        mac.update(&request.body);
        let hex: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(request.header(name), Some(&*format!("sha256={hex}")), "{path}");
        let signed = request.headers.iter().filter(|(name, _)| name.contains("signature")).count();
        assert_eq!(signed, 1, "{path} has no other signature");
    }
    check_invariants(&db, &[&receiver]).await;
}
