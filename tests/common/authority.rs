//! A certificate authority for tests, and receivers' ends of TLS connections.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use actix_rt::net::TcpStream;
use actix_service::{Service as _, ServiceFactory};
use actix_tls::accept::rustls_0_23::{Acceptor, TlsStream};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

/// A certificate and its key.
pub type Identity = (Certificate, KeyPair);

/// A certificate authority of our own.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).expect("no names to parse");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Two authorities of one name would be taken for each other until a signature fails.
        let name = uuid::Uuid::new_v4().to_string();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        Authority(CertifiedIssuer::self_signed(params, key).expect("a certificate"))
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A file with the certificate of the authority.
    pub fn file(&self) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(self.pem().as_bytes()).expect("room for a certificate");
        file
    }

    pub fn issue(&self, params: &CertificateParams) -> Identity {
        let key = KeyPair::generate().expect("a key");
        (params.signed_by(&key, &self.0).expect("a certificate"), key)
    }

    /// A certificate that a client shows.
    pub fn client(&self) -> Identity {
        let mut client = params("posthaste");
        client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(&client)
    }

    /// Certificates for `host` that must not be trusted, and what is to be said about each.
    pub fn untrustworthy(&self, host: &str) -> [(Identity, &'static str); 5] {
        let (mut expired, mut early) = (params(host), params(host));
        expired.not_before = rcgen::date_time_ymd(2001, 1, 1);
        expired.not_after = rcgen::date_time_ymd(2002, 1, 1);
        early.not_before = rcgen::date_time_ymd(3001, 1, 1);
        early.not_after = rcgen::date_time_ymd(3002, 1, 1);
        let key = KeyPair::generate().expect("a key");
        let own = params(host).self_signed(&key).expect("a certificate");
        [
            (self.issue(&expired), "TLS: certificate expired"),
            (self.issue(&early), "TLS: certificate is not valid yet"),
            (self.issue(&params("example.com")), "TLS: certificate is for another host"),
            (Authority::new().issue(&params(host)), "TLS: certificate of an unknown issuer"),
            ((own, key), "TLS: certificate of an unknown issuer"),
        ]
    }
}

/// What a certificate for `name` says.
pub fn params(name: &str) -> CertificateParams {
    CertificateParams::new(vec![name.to_owned()]).expect("a name")
}

/// A receiver with this certificate; with `clients`, only for those whose certificate is from there.
pub fn server((certificate, key): Identity, clients: Option<&Authority>) -> ServerConfig {
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
    builder.with_single_cert(vec![certificate.der().clone()], key).expect("a certificate")
}

/// The receiver's part of the handshake; `None` when the other side refuses.
pub async fn accept(config: ServerConfig, stream: TcpStream) -> Option<TlsStream<TcpStream>> {
    let mut acceptor = Acceptor::new(config);
    acceptor.set_handshake_timeout(Duration::from_secs(60));
    let acceptor = <Acceptor as ServiceFactory<TcpStream>>::new_service(&acceptor, ()).await;
    acceptor.expect("an acceptor").call(stream).await.ok()
}

/// What servers say that know no version of TLS but 1.1: newer ones of them an alert (protocol version),
/// older ones that they take 1.1.
pub fn tls_1_1() -> [Vec<u8>; 2] {
    let alert = vec![21, 3, 2, 0, 2, 2, 70];
    let (record, handshake, version) = ([22, 3, 2, 0, 42], [2, 0, 0, 38], [3, 2]);
    // No session, TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA, no compression.
    let hello = [&record[..], &handshake, &version, &[7; 32], &[0, 0xc0, 0x13, 0]].concat();
    [alert, hello]
}
