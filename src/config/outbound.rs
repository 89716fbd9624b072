//! Options for whoever sends requests: the dispatcher, and commands that try a destination out.

use std::path::PathBuf;

use clap::Args;

use super::{ConfigFaults, Reader, SecretKeyArgs, certificates_in, listed};
use crate::policy::egress::Rules;
use crate::policy::keyring::KeyRing;

/// Where requests may go, whom to trust, and the keys of the secrets that they need.
#[derive(Args, Clone, Debug, Default)]
pub struct OutboundArgs {
    /// Networks that may be connected to although they are not public, comma-separated CIDRs
    #[arg(long, env = "POSTHASTE_ALLOW_NETWORKS", default_value = "", value_name = "CIDRS")]
    pub allow_networks: String,
    /// Ports that may be connected to although services other than HTTP use them, comma-separated
    #[arg(long, env = "POSTHASTE_ALLOW_PORTS", default_value = "", value_name = "PORTS")]
    pub allow_ports: String,
    /// Refuse destinations with http URLs
    #[arg(long, env = "POSTHASTE_HTTPS_ONLY", default_value = "false", value_name = "BOOL", num_args = 0..=1,
          default_missing_value = "true")]
    pub https_only: String,
    /// File with further root certificates to trust, PEM
    #[arg(long, env = "POSTHASTE_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub secret_key: SecretKeyArgs,
}

/// [`OutboundArgs`], checked.
#[derive(Clone, Debug, Default)]
pub struct Outbound {
    /// Where requests may go.
    pub rules: Rules,
    /// Further root certificates, PEM.
    pub ca_file: Option<PathBuf>,
    /// Keys of the secrets in the database.
    pub secret_keys: KeyRing,
}

impl OutboundArgs {
    /// Checks them by themselves.
    ///
    /// # Errors
    /// All faults at once.
    pub fn validate(&self) -> Result<Outbound, ConfigFaults> {
        let mut reader = Reader { faults: Vec::new() };
        let outbound = self.read(&mut reader);
        if reader.faults.is_empty() { Ok(outbound) } else { Err(ConfigFaults(reader.faults)) }
    }

    pub(super) fn read(&self, r: &mut Reader) -> Outbound {
        let allow = r.networks("--allow-networks", &self.allow_networks);
        let mut allow_ports = Vec::new();
        for text in listed(&self.allow_ports) {
            let parsed = text.parse::<u16>().map_err(|_| "is not a port, 1 to 65535".to_string());
            allow_ports.extend(r.check("--allow-ports", text, parsed.map(Some)));
        }
        if let Some(file) = &self.ca_file
            && let Err(fault) = certificates_in(file)
        {
            r.faults.push(format!("--ca-file: {} {fault}", file.display()));
        }
        let secret_keys = self.secret_key.keys().unwrap_or_else(|ConfigFaults(faults)| {
            r.faults.extend(faults);
            KeyRing::default()
        });
        let https_only = r.bool("--https-only", &self.https_only);
        let rules = Rules { allow, allow_ports, https_only };
        Outbound { rules, ca_file: self.ca_file.clone(), secret_keys }
    }
}
