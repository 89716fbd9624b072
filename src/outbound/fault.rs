//! What is wrong with a destination as it is written.

use crate::format::FormatFault;
use crate::policy::egress::Refusal;
use crate::policy::signature::SignatureFault;

/// What is wrong with a destination as it is written. Says what to do; holds no secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The URL, or where it leads.
    #[error("{0}")]
    Url(#[from] Refusal),
    /// `auth_type`, `auth_config` or one of its members, and what is wrong with it.
    #[error("{1}")]
    Auth(String, String),
    /// A header: where it is written, and what is wrong with it.
    #[error("{1}")]
    Header(String, String),
    /// `signing_secret` and what belongs to it.
    #[error("{0}")]
    Signature(#[from] SignatureFault),
    /// `payload_format` or `format_options`.
    #[error("{0}")]
    Format(#[from] FormatFault),
    /// `tls_ca`, `tls_client_cert` or `tls_client_key`, and what is wrong with it.
    #[error("{1}")]
    Tls(&'static str, String),
    /// Something that this version does not have.
    #[error("{0} is not available in this version")]
    NotAvailable(&'static str),
}

impl Fault {
    /// Where it is written: a column, or a member of `auth_config` such as `auth_config.token`.
    pub fn field(&self) -> &str {
        match self {
            Fault::Url(_) => "url",
            Fault::Auth(field, _) | Fault::Header(field, _) => field,
            Fault::Signature(fault) => match fault {
                SignatureFault::NotBase64 { which, .. }
                | SignatureFault::Length { which, .. }
                | SignatureFault::KeyPair { which } => which,
                SignatureFault::HexNeedsHmac { .. } | SignatureFault::Scheme(_) => "signature_scheme",
                SignatureFault::Header => "signature_header",
            },
            Fault::Format(FormatFault::Options) => "format_options",
            Fault::Format(_) => "payload_format",
            Fault::Tls(field, _) | Fault::NotAvailable(field) => field,
        }
    }
}
