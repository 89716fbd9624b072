//! Receivers behind TLS.

use std::io::Write as _;
use std::sync::Arc;

use actix_rt::net::TcpStream;
use posthaste::model::{Answer, Destination, Secret};
use posthaste::outbound::{Network, Sender, Target};
use posthaste::policy::egress::Rules;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::authority::{self, Authority, Identity, params};
use crate::receiver::Receiver;
use crate::{attempt, destination, failed, response};

fn network(authority: &Authority) -> Network {
    Network::new(open_rules(), Some(authority.file().path())).expect("a file with a certificate")
}

fn open_rules() -> Rules {
    let allow = ["127.0.0.0/8", "::1/128"].map(|net| net.parse().expect("a network"));
    Rules { allow: allow.to_vec(), https_only: true, ..Rules::default() }
}

/// Serves TLS with the given certificate; with `clients`, only to those whose certificate is from there.
async fn serve(identity: Identity, clients: Option<&Authority>) -> Receiver {
    let config = authority::server(identity, clients);
    Receiver::start(move |stream: TcpStream, number, receiver| {
        let config = config.clone();
        async move {
            let Some(mut stream) = authority::accept(config, stream).await else { return };
            while receiver.read(&mut stream, number).await {
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecure";
                if stream.write_all(answer).await.is_err() || stream.flush().await.is_err() {
                    return;
                }
            }
        }
    })
    .await
}

/// Answers whatever comes first with `bytes`, without TLS.
async fn saying(bytes: Vec<u8>) -> Receiver {
    Receiver::start(move |mut stream: TcpStream, _, _| {
        let bytes = bytes.clone();
        async move {
            let mut hello = [0; 4096];
            assert!(stream.read(&mut hello).await.expect("a greeting") > 0);
            stream.write_all(&bytes).await.expect("an open connection");
            while stream.read(&mut hello).await.is_ok_and(|length| length > 0) {}
        }
    })
    .await
}

fn at(receiver: &Receiver, host: &str) -> Destination {
    destination(format!("https://{host}:{}/hook", receiver.addr.port()))
}

fn sender(destination: &Destination, network: Network) -> Sender {
    let network = Arc::new(network);
    Sender::new(Target::compile(destination, &network).expect("a destination without fault"), &network)
}

#[actix_rt::test]
async fn a_certificate_of_a_trusted_authority_is_accepted_and_the_connection_kept() {
    let authority = Authority::new();
    for host in ["localhost", "127.0.0.1"] {
        let receiver = serve(authority.issue(&params(host)), None).await;
        let sender = sender(&at(&receiver, host), network(&authority));
        for _ in 0..3 {
            assert_eq!(attempt(&sender).await, response(200, "secure"), "{host}");
        }
        assert_eq!(receiver.connections(), [0; 3]);
    }
}

#[actix_rt::test]
async fn certificates_that_cannot_be_trusted_are_refused_with_the_reason() {
    let authority = Authority::new();
    for (certificate, reason) in authority.untrustworthy("localhost") {
        let receiver = serve(certificate, None).await;
        let message = failed(attempt(&sender(&at(&receiver, "localhost"), network(&authority))).await);
        assert!(message.starts_with(reason), "{reason:?} was expected, but it says: {message}");
        assert_eq!(receiver.connections(), [0; 0], "nothing may be sent");
    }
}

#[actix_rt::test]
async fn a_receiver_without_tls_is_told() {
    let receiver = Receiver::start(|mut stream, _, _| async move {
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.expect("an open connection");
    })
    .await;
    let message = failed(attempt(&sender(&at(&receiver, "localhost"), network(&Authority::new()))).await);
    assert_eq!(message, format!("TLS: localhost:{} does not speak TLS", receiver.addr.port()));
}

#[actix_rt::test]
async fn a_receiver_that_knows_only_old_versions_of_tls_is_refused() {
    let network = Arc::new(network(&Authority::new()));
    for bytes in authority::tls_1_1() {
        let receiver = saying(bytes).await;
        let target = Target::compile(&at(&receiver, "localhost"), &network).unwrap();
        let message = failed(attempt(&Sender::new(target, &network)).await);
        assert_eq!(
            message,
            "TLS: the receiver speaks no version of TLS from 1.2 on, older ones are not safe"
        );
    }
}

#[actix_rt::test]
async fn an_alert_in_the_handshake_is_told_and_one_in_the_answer_breaks_it() {
    let authority = Authority::new();
    let alert = |reason| vec![21, 3, 3, 0, 2, 2, reason];
    for (reason, name) in [(40, "handshake failure"), (80, "internal error"), (112, "unrecognised name")] {
        let receiver = saying(alert(reason)).await;
        let message = failed(attempt(&sender(&at(&receiver, "localhost"), network(&authority))).await);
        assert_eq!(message, format!("TLS: the receiver refused the handshake: {name}"));
    }

    let config = authority::server(authority.issue(&params("localhost")), None);
    let receiver = Receiver::start(move |stream: TcpStream, number, receiver| {
        let config = config.clone();
        async move {
            let mut stream = authority::accept(config, stream).await.expect("a handshake");
            receiver.read(&mut stream, number).await;
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsec")
                .await
                .expect("an open connection");
            stream.flush().await.expect("an open connection");
            let (tcp, _) = stream.get_mut();
            tcp.write_all(&alert(80)).await.expect("an open connection");
        }
    })
    .await;
    // The head counts, also where it came in one piece with the alert.
    let answer = attempt(&sender(&at(&receiver, "localhost"), network(&authority))).await;
    let Answer::Response { status: 200, body, broken: Some(broken), .. } = answer else {
        panic!("expected a broken answer, got {answer:?}");
    };
    assert_eq!(body, "sec");
    let peer = format!("localhost:{}", receiver.addr.port());
    assert_eq!(broken, format!("connection to {peer} broke: cannot decrypt peer's message"));
}

#[actix_rt::test]
async fn a_token_server_is_verified_by_the_roots_of_the_process() {
    let (trusted, other) = (Authority::new(), Authority::new());
    for (issuer, said) in [
        (&trusted, "the token server's answer is not a JSON object with an access_token"),
        (&other, "TLS: certificate of an unknown issuer"),
    ] {
        let tokens = serve(issuer.issue(&params("localhost")), None).await;
        let mut destination = destination("https://localhost:1/".into());
        let url = format!("https://localhost:{}/token", tokens.addr.port());
        destination.auth_type = "oauth2".into();
        let config = format!(r#"{{"token_url": "{url}", "client_id": "a", "client_secret": "b"}}"#);
        destination.auth_config = Secret::new(config);
        // The destination's own settings are for the receiver alone.
        destination.settings.tls_ca = Some(other.pem());
        let message = failed(attempt(&sender(&destination, network(&trusted))).await);
        assert!(message.starts_with(&format!("the token request failed: {said}")), "{message}");
    }
}

#[actix_rt::test]
async fn a_destination_may_trust_an_authority_of_its_own() {
    let authority = Authority::new();
    let receiver = serve(authority.issue(&params("localhost")), None).await;
    let mut destination = at(&receiver, "localhost");
    destination.settings.tls_ca = Some(authority.pem());
    let network = Network::new(open_rules(), None).unwrap();
    assert_eq!(attempt(&sender(&destination, network)).await, response(200, "secure"));
}

#[actix_rt::test]
async fn a_servers_own_certificate_is_trusted_as_that_very_certificate() {
    // As `openssl req -x509` makes it, which says that it is an authority; and as others do.
    for is_ca in [true, false] {
        let mut own = params("localhost");
        let name = own.distinguished_name.clone();
        if is_ca {
            own.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        }
        let identity = |params: &rcgen::CertificateParams| {
            let key = rcgen::KeyPair::generate().unwrap();
            (params.self_signed(&key).unwrap(), key)
        };
        let own_identity = identity(&own);
        let pem = own_identity.0.pem();
        let receiver = serve(own_identity, None).await;
        let mut trusting = at(&receiver, "localhost");
        trusting.settings.tls_ca = Some(pem.clone());
        let open = || Network::new(open_rules(), None).unwrap();
        assert_eq!(attempt(&sender(&trusting, open())).await, response(200, "secure"), "{is_ca}");
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(format!("\u{feff}{}", pem.replace('\n', "\r\n")).as_bytes()).unwrap();
        let by_file = Network::new(open_rules(), Some(file.path())).unwrap();
        let answer = attempt(&sender(&at(&receiver, "localhost"), by_file)).await;
        assert_eq!(answer, response(200, "secure"), "by a file of an editor that marks it, {is_ca}");

        // That one, for its own names, while it is valid; and no other that looks like it.
        let mut other_host = at(&receiver, "127.0.0.1");
        other_host.settings.tls_ca = Some(pem.clone());
        let told = failed(attempt(&sender(&other_host, open())).await);
        assert_eq!(told, "TLS: certificate is for another host");
        let imitation = serve(identity(&own), None).await;
        let mut imitated = at(&imitation, "localhost");
        imitated.settings.tls_ca = Some(pem.clone());
        let told = failed(attempt(&sender(&imitated, open())).await);
        assert!(told.starts_with("TLS: ") && told.contains("certificate "), "{told}");
        no_debug_text(&told);
        let mut old = own.clone();
        (old.not_before, old.not_after) =
            (rcgen::date_time_ymd(2001, 1, 1), rcgen::date_time_ymd(2002, 1, 1));
        old.distinguished_name = name;
        let old = identity(&old);
        let pem = old.0.pem();
        let receiver = serve(old, None).await;
        let mut trusting = at(&receiver, "localhost");
        trusting.settings.tls_ca = Some(pem);
        assert_eq!(failed(attempt(&sender(&trusting, open())).await), "TLS: certificate expired");
    }
}

/// Fails where a text shows how the program is written.
#[track_caller]
fn no_debug_text(told: &str) {
    let humps = |word: &str| {
        word.as_bytes().windows(2).any(|w| w[0].is_ascii_lowercase() && w[1].is_ascii_uppercase())
    };
    assert!(!told.split_whitespace().any(humps) && !told.contains(['{', '[']), "{told}");
}

#[actix_rt::test]
async fn errors_of_tls_are_told_in_words() {
    let authority = Authority::new();
    // An authority's certificate where a server's own is wanted; a server that answers with nonsense; one
    // that breaks the protocol.
    let mut params = params("localhost");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let as_server = serve(authority.issue(&params), None).await;
    let told = failed(attempt(&sender(&at(&as_server, "localhost"), network(&authority))).await);
    assert_eq!(told, "TLS: the certificate is one of an authority, not of a server");
    for bytes in [
        vec![22, 3, 3, 0, 4, 14, 0, 0, 0],
        vec![22, 3, 3, 0, 4, 2, 0, 0, 0],
        vec![23, 3, 3, 0, 4, 2, 0, 0, 0],
        vec![20, 3, 3, 0, 1, 1],
        vec![21, 3, 3, 0, 2, 2, 255],
    ] {
        let receiver = saying(bytes).await;
        no_debug_text(&failed(attempt(&sender(&at(&receiver, "localhost"), network(&authority))).await));
    }
}

#[actix_rt::test]
async fn a_client_certificate_is_shown_when_there_is_one() {
    let authority = Authority::new();
    let receiver = serve(authority.issue(&params("localhost")), Some(&authority)).await;
    let mut destination = at(&receiver, "localhost");
    let message = failed(attempt(&sender(&destination, network(&authority))).await);
    assert!(message.contains("certificate required"), "{message}");

    let (certificate, key) = authority.client();
    destination.settings.tls_client_cert = Some(certificate.pem());
    destination.settings.tls_client_key = Some(Secret::new(key.serialize_pem()));
    assert_eq!(attempt(&sender(&destination, network(&authority))).await, response(200, "secure"));
}

#[test]
fn a_file_of_roots_that_cannot_be_used_is_told() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"nonsense").unwrap();
    let message = Network::new(Rules::default(), Some(file.path())).unwrap_err().to_string();
    assert!(message.ends_with("holds no certificate in PEM"), "{message}");
    let missing = file.path().join("missing");
    assert!(Network::new(Rules::default(), Some(&missing)).is_err());
}
