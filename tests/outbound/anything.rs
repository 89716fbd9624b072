//! Whatever comes: bytes that nobody thought of, from receivers and from whoever writes a destination.

use std::sync::Arc;
use std::time::SystemTime;

use posthaste::model::{Answer, Destination, Secret};
use posthaste::outbound::{KEPT_BODY_BYTES, Network, Sender, Target};
use posthaste::policy::classify::classify;
use proptest::prelude::*;
use proptest::test_runner::Config;
use tokio::io::AsyncWriteExt as _;

use crate::authority::Authority;
use crate::receiver::Receiver;
use crate::{attempt, destination, open_network};

/// Most characters of a message.
const MESSAGE_CHARS: usize = 500 + "the body of the answer is broken: ".len();

/// Pieces that answers are made of, and pieces that break them.
const PIECES: [&str; 32] = [
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.0 200 OK\r\n",
    "HTTP/1.1 100 Continue\r\n\r\n",
    "HTTP/1.1 101 Go\r\n\r\n",
    "HTTP/1.1 103 Hints\r\n",
    "HTTP/1.1 204 No\r\n",
    "HTTP/1.1 304 Same\r\n",
    "HTTP/1.1 429 Slow\r\n",
    "HTTP/1.1 503 No\r\n",
    "HTTP/1.1 999 Odd\r\n",
    "HTTP/1.1 ",
    "HTTP/9.9 200 OK\r\n",
    "content-length: 5\r\n",
    "content-length: 0\r\n",
    "content-length: 99999999999999999999\r\n",
    "Content-Length: 7\r\n",
    "transfer-encoding: chunked\r\n",
    "transfer-encoding: gzip, chunked\r\n",
    "retry-after: 5\r\n",
    "retry-after: \u{e9}\u{1}\r\n",
    "connection: close\r\n",
    "upgrade: websocket\r\n",
    "5\r\n",
    "0\r\n\r\n",
    "ffffffffffffffff\r\n",
    "fffffffffffffffff;x\r\n",
    "\r\n",
    "\r\n\r\n",
    "\n",
    "\r",
    "hello",
    ": ",
];

fn answers() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        6 => prop::sample::select(&PIECES[..]).prop_map(|piece| piece.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..20),
    ];
    let start = prop::sample::select(&PIECES[..12]).prop_map(|piece| piece.as_bytes().to_vec());
    let pieces = prop::collection::vec(piece, 0..12);
    (prop::option::weighted(0.8, start), pieces).prop_map(|(start, pieces)| {
        let mut bytes = start.unwrap_or_default();
        pieces.into_iter().for_each(|piece| bytes.extend(piece));
        bytes
    })
}

async fn answered(bytes: Vec<u8>, network: &Arc<Network>) -> Answer {
    let receiver = Receiver::start(move |mut stream, number, receiver| {
        let bytes = bytes.clone();
        async move {
            receiver.read(&mut stream, number).await;
            // The other side may have heard enough.
            stream.write_all(&bytes).await.ok();
        }
    })
    .await;
    let target = Target::compile(&destination(receiver.url()), network).expect("a destination without fault");
    attempt(&Sender::new(target, network)).await
}

#[test]
fn whatever_a_receiver_sends_is_a_bounded_answer_or_its_failure() {
    let system = actix_rt::System::new();
    let network = open_network();
    let config = Config { cases: 300, failure_persistence: None, ..Config::default() };
    proptest!(config, |(bytes in answers())| {
        let answer = system.block_on(answered(bytes, &network));
        classify(&answer, 2, SystemTime::UNIX_EPOCH);
        let (text, message) = match answer {
            Answer::Response { status, body, retry_after, broken } => {
                prop_assert!((100..1000).contains(&status));
                prop_assert!(retry_after.unwrap_or_default().len() <= 3 * 64);
                (body, broken.unwrap_or_default())
            }
            Answer::Failed(message) => (String::new(), message),
            Answer::OurFault(message) => panic!("nothing of this is our fault: {message}"),
        };
        prop_assert!(text.len() <= KEPT_BODY_BYTES && !text.contains('\0'));
        prop_assert!(message.chars().count() <= MESSAGE_CHARS && !message.contains('\0'), "{}", message);
    });
}

/// Texts around what a column should hold: JSON or not, of the right members or not.
fn config_texts() -> impl Strategy<Value = String> {
    // Names of headers and URLs are no secrets: those that are taken for them here hold none.
    let shown = (prop::sample::select(&["header_name", "token_url"][..]), ".{0,20}")
        .prop_map(|(name, text)| (name, serde_json::to_string(&text).expect("a string")));
    let member = prop::sample::select(
        &[
            "token",
            "username",
            "password",
            "header_value",
            "client_id",
            "client_secret",
            "client_auth",
            "scope",
            "audience",
            "x-a",
        ][..],
    );
    let value = prop_oneof![
        Just("\"\"".to_owned()),
        Just("null".to_owned()),
        Just("7".to_owned()),
        Just("\"https://example.com/\"".to_owned()),
        ".{0,10}hunter2.{0,10}".prop_map(|text| serde_json::to_string(&text).expect("a string")),
    ];
    let members =
        prop::collection::vec(prop_oneof![5 => (member, value), 1 => shown], 0..8).prop_map(|members| {
            let members: Vec<String> =
                members.iter().map(|(name, value)| format!("\"{name}\": {value}")).collect();
            format!("{{{}}}", members.join(", "))
        });
    prop_oneof![4 => members, 1 => ".{0,20}", 1 => Just("[\"hunter2\"]".to_owned())]
}

/// A certificate in PEM with one character changed.
fn damaged(pem: &str, at: usize, by: char) -> String {
    pem.chars().enumerate().map(|(i, c)| if i == at % pem.len() { by } else { c }).collect()
}

#[test]
fn whatever_is_written_into_a_destination_is_used_or_refused_without_repeating_a_secret() {
    let network = open_network();
    let authority = Authority::new();
    let ((certificate, key), root) = (authority.client(), authority.pem());
    let (certificate, key) = (certificate.pem(), key.serialize_pem());
    let config = Config { cases: 1000, failure_persistence: None, ..Config::default() };
    let auth_types = prop::sample::select(&["none", "bearer", "basic", "header", "oauth2"][..]);
    let schemes = prop::sample::select(&["standard", "hex", "x"][..]);
    let secrets = "(whsec_|whsk_)?[ -~]{0,5}hunter2[ -~é]{0,60}";
    let options = (config_texts(), config_texts(), ".{0,20}", schemes, secrets);
    let damage = (any::<usize>(), any::<char>(), prop::option::of(0..3usize));
    proptest!(config, |(auth_type in auth_types, (auth, extra, header, scheme, secret) in options,
                        (at, by, which) in damage)| {
        let pem = |number, text: &String| match which {
            Some(which) if which == number => damaged(text, at, by),
            _ => text.clone(),
        };
        let mut destination: Destination = destination("https://example.com/hook".into());
        destination.auth_type = auth_type.into();
        destination.auth_config = Secret::new(auth);
        destination.signing_secret = Some(Secret::new(secret.clone()));
        let settings = &mut destination.settings;
        settings.extra_headers = Secret::new(extra);
        settings.previous_signing_secret = Some(Secret::new(secret));
        settings.signature_scheme = scheme.into();
        settings.signature_header = Some(header);
        if at % 4 == 0 {
            settings.tls_ca = Some(pem(0, &root));
            settings.tls_client_cert = Some(pem(1, &certificate));
            settings.tls_client_key = Some(Secret::new(pem(2, &key)));
        }
        let shown = match Target::compile(&destination, &network) {
            Ok(target) => format!("{target:?}"),
            Err(fault) => format!("{fault} {fault:?}"),
        };
        prop_assert!(!shown.contains("hunter2") && !shown.contains("PRIVATE"), "{}", shown);
    });
}
