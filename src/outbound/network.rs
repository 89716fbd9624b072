//! What all destinations share: the egress rules and the trusted roots. Built once, at start.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use super::fault::Fault;
use super::lookup::Lookups;
use super::own_certificates::trusting;
use crate::config::certificates;
use crate::model::Settings;
use crate::policy::egress::Rules;

/// The network as the configuration allows it. Cheap to share among threads.
#[derive(Debug)]
pub struct Network {
    pub(super) rules: Arc<Rules>,
    roots: Arc<RootCertStore>,
    /// Of the roots, those that somebody has given: each may be a server's own.
    own: Vec<CertificateDer<'static>>,
    tls: Arc<ClientConfig>,
    pub(super) lookups: Lookups,
}

/// Why the network cannot be set up: a fault of the configuration.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The file of extra roots cannot be used.
    #[error("{file}: {reason}")]
    CaFile {
        /// The file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// TLS itself cannot be set up.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

impl Network {
    /// Reads the system's roots, and those in `ca_file` (PEM) on top.
    ///
    /// # Errors
    /// A `ca_file` that cannot be read or holds no certificate. Missing system roots are only a warning: with
    /// plain `http`, or with roots of its own, a destination does not need them.
    pub fn new(rules: Rules, ca_file: Option<&Path>) -> Result<Network, NetworkError> {
        let mut roots = RootCertStore::empty();
        let native = rustls_native_certs::load_native_certs();
        for error in &native.errors {
            log::warn!("a source of the system's trusted certificates cannot be used: {error}");
        }
        roots.add_parsable_certificates(native.certs);
        if roots.is_empty() {
            log::warn!(
                "the system has no trusted certificates: https works only with POSTHASTE_CA_FILE or tls_ca"
            );
        }
        let mut own = Vec::new();
        if let Some(path) = ca_file {
            let fault = |reason: String| NetworkError::CaFile { file: path.display().to_string(), reason };
            let pem = std::fs::read(path).map_err(|error| fault(error.to_string()))?;
            own = add_roots(&mut roots, &pem).map_err(fault)?;
        }
        let roots = Arc::new(roots);
        let tls = http1(trusting(roots.clone(), own.clone())?.with_no_client_auth());
        Ok(Network { rules: Arc::new(rules), roots, own, tls: Arc::new(tls), lookups: Lookups::default() })
    }

    /// The egress rules, for checks where a destination is written.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The TLS configuration that is not of one destination.
    pub(super) fn tls(&self) -> Arc<ClientConfig> {
        self.tls.clone()
    }

    /// The TLS configuration for `settings`: the shared one unless it has certificates of its own.
    pub(super) fn tls_for(&self, settings: &Settings) -> Result<Arc<ClientConfig>, Fault> {
        let Settings { tls_ca, tls_client_cert, tls_client_key, .. } = settings;
        if tls_ca.is_none() && tls_client_cert.is_none() && tls_client_key.is_none() {
            return Ok(self.tls());
        }
        let fault = |field: &'static str, why: &str| Fault::Tls(field, why.to_owned());
        let (roots, own) = match tls_ca {
            None => (self.roots.clone(), self.own.clone()),
            Some(pem) => {
                let mut roots = RootCertStore::empty();
                let own = add_roots(&mut roots, pem.as_bytes())
                    .map_err(|why| fault("tls_ca", &format!("tls_ca: {why}")))?;
                (Arc::new(roots), own)
            }
        };
        let builder = trusting(roots, own).map_err(|error| fault("tls_ca", &error.to_string()))?;
        let config = match (tls_client_cert, tls_client_key) {
            (None, None) => builder.with_no_client_auth(),
            (Some(cert), Some(key)) => {
                let chain = certificates(cert.as_bytes())
                    .map_err(|why| fault("tls_client_cert", &format!("tls_client_cert: {why}")))?;
                let key = PrivateKeyDer::from_pem_slice(key.reveal().as_bytes())
                    .map_err(|_| fault("tls_client_key", "tls_client_key is not a private key in PEM"))?;
                builder.with_client_auth_cert(chain, key).map_err(|error| {
                    let why = format!("tls_client_cert and tls_client_key cannot be used: {error}");
                    fault("tls_client_cert", &why)
                })?
            }
            (cert, _) => {
                let missing = if cert.is_none() { "tls_client_cert" } else { "tls_client_key" };
                return Err(fault(missing, "tls_client_cert and tls_client_key need each other"));
            }
        };
        Ok(Arc::new(http1(config)))
    }
}

fn http1(mut config: ClientConfig) -> ClientConfig {
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

/// Adds the certificates in `pem` to `roots`, and returns them.
fn add_roots(roots: &mut RootCertStore, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates = certificates(pem)?;
    for certificate in &certificates {
        roots
            .add(certificate.clone())
            .map_err(|error| format!("holds a certificate that cannot be used: {error}"))?;
    }
    Ok(certificates)
}
