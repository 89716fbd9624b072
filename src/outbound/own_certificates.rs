//! Whom connections trust: authorities, and certificates that receivers have made themselves.
//!
//! Such a one often says that it is an authority (`openssl req -x509`), and an authority's certificate is
//! none for a server. Who gives it as one to trust means that very certificate: it is accepted for the names
//! that stand in it, while it is valid.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WantsClientCert, WebPkiServerVerifier, verify_server_name};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, ConfigBuilder, DigitallySignedStruct, Error, RootCertStore,
    SignatureScheme,
};

/// A configuration that trusts `roots`, and each of `own` as a server's own certificate; those are among the
/// roots.
pub(super) fn trusting(
    roots: Arc<RootCertStore>,
    own: Vec<CertificateDer<'static>>,
) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    if own.is_empty() {
        return Ok(builder.with_root_certificates(roots));
    }
    let authorities = WebPkiServerVerifier::builder_with_provider(roots, provider).build();
    let authorities = authorities.map_err(|error| Error::General(error.to_string()))?;
    // What the authorities' verifier accepts is accepted; of what it refuses, one of `own` may pass.
    let verifier = Arc::new(Verifier { authorities, own });
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier))
}

#[derive(Debug)]
struct Verifier {
    authorities: Arc<WebPkiServerVerifier>,
    own: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let found =
            self.authorities.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match found {
            Err(Error::InvalidCertificate(fault)) if is_about_its_role(&fault) && self.is_own(end_entity) => {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            found => found,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authorities.supported_verify_schemes()
    }
}

impl Verifier {
    fn is_own(&self, certificate: &CertificateDer<'_>) -> bool {
        self.own.iter().any(|own| own == certificate)
    }
}

/// Whether a certificate is refused for what it may be used for: neither for its dates, which are judged
/// before, nor for its names.
fn is_about_its_role(fault: &CertificateError) -> bool {
    matches!(fault, CertificateError::Other(_) | CertificateError::UnknownIssuer)
}
