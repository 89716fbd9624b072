//! Receivers behind TLS.

use std::io::Write as _;
use std::sync::Arc;

use actix_rt::net::TcpStream;
use actix_service::{Service as _, ServiceFactory};
use actix_tls::accept::rustls_0_23::Acceptor;
use posthaste::model::{Destination, Secret};
use posthaste::outbound::{Network, Sender, Target};
use posthaste::policy::egress::Rules;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::AsyncWriteExt as _;

use crate::receiver::Receiver;
use crate::{attempt, destination, failed, response};

/// A certificate authority of our own.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).expect("no names to parse");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Two authorities of one name would be taken for each other until a signature fails.
        let name = uuid::Uuid::new_v4().to_string();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        Authority(CertifiedIssuer::self_signed(params, key).expect("a certificate"))
    }

    fn issue(&self, params: &CertificateParams) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().expect("a key");
        (params.signed_by(&key, &self.0).expect("a certificate"), key)
    }

    fn network(&self) -> Network {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(self.0.pem().as_bytes()).expect("room for a certificate");
        Network::new(open_rules(), Some(file.path())).expect("a file with a certificate")
    }
}

fn open_rules() -> Rules {
    let allow = ["127.0.0.0/8", "::1/128"].map(|net| net.parse().expect("a network"));
    Rules { allow: allow.to_vec(), https_only: true }
}

fn params(name: &str) -> CertificateParams {
    CertificateParams::new(vec![name.to_owned()]).expect("a name")
}

/// Serves TLS with the given certificate; with `clients`, only to those whose certificate is from there.
async fn serve(certificate: (rcgen::Certificate, KeyPair), clients: Option<&Authority>) -> Receiver {
    let (certificate, key) = certificate;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("the default versions");
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(authority.0.der().clone()).expect("a root");
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.expect("a verifier"))
        }
    };
    let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
    let config = builder.with_single_cert(vec![certificate.der().clone()], key).expect("a certificate");
    Receiver::start(move |stream: TcpStream, number, receiver| {
        let config = config.clone();
        async move {
            let acceptor = <Acceptor as ServiceFactory<TcpStream>>::new_service(&Acceptor::new(config), ());
            let acceptor = acceptor.await.expect("an acceptor");
            let Ok(mut stream) = acceptor.call(stream).await else { return };
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
        let sender = sender(&at(&receiver, host), authority.network());
        for _ in 0..3 {
            assert_eq!(attempt(&sender).await, response(200, "secure"), "{host}");
        }
        assert_eq!(receiver.connections(), [0; 3]);
    }
}

#[actix_rt::test]
async fn certificates_that_cannot_be_trusted_are_refused_with_the_reason() {
    let authority = Authority::new();
    let expired = {
        let mut params = params("localhost");
        params.not_before = rcgen::date_time_ymd(2001, 1, 1);
        params.not_after = rcgen::date_time_ymd(2002, 1, 1);
        params
    };
    let early = {
        let mut params = params("localhost");
        params.not_before = rcgen::date_time_ymd(3001, 1, 1);
        params
    };
    let own = {
        let key = KeyPair::generate().unwrap();
        (params("localhost").self_signed(&key).unwrap(), key)
    };
    for (certificate, reason) in [
        (authority.issue(&expired), "TLS: certificate expired"),
        (authority.issue(&early), "TLS: certificate is not valid yet"),
        (authority.issue(&params("example.com")), "TLS: certificate is for another host"),
        (Authority::new().issue(&params("localhost")), "TLS: certificate of an unknown issuer"),
        (own, "TLS: certificate of an unknown issuer"),
    ] {
        let receiver = serve(certificate, None).await;
        let message = failed(attempt(&sender(&at(&receiver, "localhost"), authority.network())).await);
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
    let message = failed(attempt(&sender(&at(&receiver, "localhost"), Authority::new().network())).await);
    assert_eq!(message, format!("TLS: {} does not speak TLS", receiver.addr));
}

#[actix_rt::test]
async fn a_destination_may_trust_an_authority_of_its_own() {
    let authority = Authority::new();
    let receiver = serve(authority.issue(&params("localhost")), None).await;
    let mut destination = at(&receiver, "localhost");
    destination.settings.tls_ca = Some(authority.0.pem());
    let network = Network::new(open_rules(), None).unwrap();
    assert_eq!(attempt(&sender(&destination, network)).await, response(200, "secure"));
}

#[actix_rt::test]
async fn a_client_certificate_is_shown_when_there_is_one() {
    let authority = Authority::new();
    let receiver = serve(authority.issue(&params("localhost")), Some(&authority)).await;
    let mut destination = at(&receiver, "localhost");
    let message = failed(attempt(&sender(&destination, authority.network())).await);
    assert!(message.contains("CertificateRequired"), "{message}");

    let mut client = params("posthaste");
    client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let (certificate, key) = authority.issue(&client);
    destination.settings.tls_client_cert = Some(certificate.pem());
    destination.settings.tls_client_key = Some(Secret::new(key.serialize_pem()));
    assert_eq!(attempt(&sender(&destination, authority.network())).await, response(200, "secure"));
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
