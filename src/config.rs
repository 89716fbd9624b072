//! The configuration: as written ([`DispatchArgs`], [`DatabaseArgs`]) → `validate()` → ready to use
//! ([`Config`]).
//!
//! Every option is a flag and an environment variable (also from a `.env` file). Values arrive as text, so
//! that all faults can be reported at once and not one per run.

mod operations;
mod outbound;

use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, FromArgMatches as _};
use ipnet::IpNet;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

pub use self::operations::{MAX_CONNECTIONS, OperationArgs, Operations, Retention};
pub use self::outbound::{Outbound, OutboundArgs};
use crate::model::Secret;
use crate::policy::egress::Rules;
use crate::policy::keyring::KeyRing;

/// Where `/healthz` and `/readyz` answer: loopback, because nothing should be open by accident.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:8460";
/// How often the database is asked for work that no notification announced.
pub const DEFAULT_POLL_INTERVAL: &str = "5s";
/// How long a shutdown waits for requests in flight: the largest `timeout_ms` (30 s) fits.
pub const DEFAULT_SHUTDOWN_GRACE: &str = "30s";
/// How long an outage may spare deliveries whose retries are used up.
pub const DEFAULT_OUTAGE_GRACE: &str = "24h";
/// Largest event, in bytes of JSON: what most receivers accept at most.
pub const DEFAULT_MAX_EVENT_BYTES: &str = "5MiB";
/// Requests in flight in the whole process: each needs a descriptor and some 20 KiB.
pub const DEFAULT_MAX_IN_FLIGHT: &str = "1024";
/// Requests in flight per destination, where its settings say nothing.
pub const DEFAULT_DESTINATION_IN_FLIGHT: &str = "32";
/// Bytes of events held in memory in the whole process.
pub const DEFAULT_MAX_BYTES_IN_FLIGHT: &str = "64MiB";
/// Consecutive failures of a destination that trip its breaker.
pub const DEFAULT_BREAKER_THRESHOLD: &str = "5";
/// Longest delay between two attempts of a delivery.
pub const DEFAULT_MAX_RETRY_DELAY: &str = "12h";
/// How long a destination may fail without any success before it is disabled.
pub const DEFAULT_AUTO_DISABLE_AFTER: &str = "5d";

/// How to reach PostgreSQL.
#[derive(Args, Clone, Debug, Default)]
pub struct DatabaseArgs {
    /// PostgreSQL connection URL, e.g. postgres://user@host/database
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub database_url: Option<String>,
}

/// Where a private PostgreSQL keeps its data.
#[derive(Args, Clone, Debug, Default)]
pub struct DataDirArgs {
    /// Directory of the private PostgreSQL server [default: /var/lib/posthaste for root, else
    /// ~/.local/share/posthaste]
    #[arg(long, env = "POSTHASTE_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

/// The keys of the secrets in the database.
#[derive(Args, Clone, Debug, Default)]
pub struct SecretKeyArgs {
    /// Keys of the secrets in the database, comma-separated, 32 bytes in base64 each: the first one encrypts,
    /// all of them decrypt
    #[arg(long, env = "POSTHASTE_SECRET_KEY", hide_env_values = true, value_name = "KEYS",
          value_parser = hidden)]
    pub secret_key: Option<Secret>,
}

/// A value that `Debug` must not show.
fn hidden(text: &str) -> Result<Secret, Infallible> {
    Ok(Secret::new(text))
}

impl SecretKeyArgs {
    /// Reads the keys; without any, only plain secrets can be used.
    ///
    /// # Errors
    /// All faults at once. They don't repeat any key.
    pub fn keys(&self) -> Result<KeyRing, ConfigFaults> {
        let Some(text) = &self.secret_key else { return Ok(KeyRing::default()) };
        let named = |fault| format!("--secret-key: {fault}; posthaste secrets generate-key makes a key");
        KeyRing::parse(text).map_err(|faults| ConfigFaults(faults.into_iter().map(named).collect()))
    }
}

/// The options that every dispatcher takes, whatever its database is.
#[derive(Args, Clone, Debug)]
pub struct DispatchArgs {
    /// Address and port of the HTTP server: API, health, metrics
    #[arg(long, env = "POSTHASTE_LISTEN", default_value = DEFAULT_LISTEN, value_name = "ADDRESS")]
    pub listen: String,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub outbound: OutboundArgs,
    /// How often to look for work that no notification announced, a duration from 100ms to 1h
    #[arg(long, env = "POSTHASTE_POLL_INTERVAL", default_value = DEFAULT_POLL_INTERVAL,
          value_name = "DURATION")]
    pub poll_interval: String,
    /// How long a shutdown waits for requests in flight, a duration up to 10min
    #[arg(long, env = "POSTHASTE_SHUTDOWN_GRACE", default_value = DEFAULT_SHUTDOWN_GRACE,
          value_name = "DURATION")]
    pub shutdown_grace: String,
    /// How long an outage may spare a delivery whose retries are used up; 0 switches sparing off
    #[arg(long, env = "POSTHASTE_OUTAGE_GRACE", default_value = DEFAULT_OUTAGE_GRACE,
          value_name = "DURATION")]
    pub outage_grace: String,
    /// Largest event and largest batch, in bytes of JSON, 1KiB to 64MiB; larger events are dead at once
    #[arg(long, env = "POSTHASTE_MAX_EVENT_BYTES", default_value = DEFAULT_MAX_EVENT_BYTES,
          value_name = "BYTES")]
    pub max_event_bytes: String,
    /// Requests in flight at once in the whole process, 1 to 100000
    #[arg(long, env = "POSTHASTE_MAX_IN_FLIGHT", default_value = DEFAULT_MAX_IN_FLIGHT,
          value_name = "REQUESTS")]
    pub max_in_flight: String,
    /// Requests in flight at once per destination unless its settings say otherwise, 1 to 10000
    #[arg(long, env = "POSTHASTE_DESTINATION_IN_FLIGHT", default_value = DEFAULT_DESTINATION_IN_FLIGHT,
          value_name = "REQUESTS")]
    pub destination_in_flight: String,
    /// Bytes of events held in memory at once in the whole process, 1MiB to 64GiB
    #[arg(long, env = "POSTHASTE_MAX_BYTES_IN_FLIGHT", default_value = DEFAULT_MAX_BYTES_IN_FLIGHT,
          value_name = "BYTES")]
    pub max_bytes_in_flight: String,
    /// Consecutive failures of a destination that trip its breaker, 1 to 1000
    #[arg(long, env = "POSTHASTE_BREAKER_THRESHOLD", default_value = DEFAULT_BREAKER_THRESHOLD,
          value_name = "FAILURES")]
    pub breaker_threshold: String,
    /// Longest delay between two attempts of a delivery, a duration from 1s to 30d
    #[arg(long, env = "POSTHASTE_MAX_RETRY_DELAY", default_value = DEFAULT_MAX_RETRY_DELAY,
          value_name = "DURATION")]
    pub max_retry_delay: String,
    /// How long a destination may fail without a success before it is disabled; 0 never disables
    #[arg(long, env = "POSTHASTE_AUTO_DISABLE_AFTER", default_value = DEFAULT_AUTO_DISABLE_AFTER,
          value_name = "DURATION")]
    pub auto_disable_after: String,
    /// Write operational events (webhook.destination.disabled and the like) to activity_logs
    #[arg(long, env = "POSTHASTE_OPERATIONAL_EVENTS", default_value = "false",
          value_name = "BOOL", num_args = 0..=1,
          default_missing_value = "true")]
    pub operational_events: String,
    /// Threads that send requests, 1 to 256 [default: the number of cores]
    #[arg(long, env = "POSTHASTE_WORKERS", value_name = "THREADS")]
    pub workers: Option<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub operations: OperationArgs,
}

/// What a running dispatcher needs to know. All values are within their limits.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where PostgreSQL is. A [`Secret`], since it may hold a password.
    pub database_url: Secret,
    /// Address of the HTTP server.
    pub listen: SocketAddr,
    /// Networks opened on purpose.
    pub allow_networks: Vec<IpNet>,
    /// Ports opened on purpose.
    pub allow_ports: Vec<u16>,
    /// Whether `http` URLs are refused.
    pub https_only: bool,
    /// Further root certificates, PEM.
    pub ca_file: Option<PathBuf>,
    /// Keys of the secrets in the database.
    pub secret_keys: KeyRing,
    /// Pause between two polls.
    pub poll_interval: Duration,
    /// Limit of a graceful shutdown.
    pub shutdown_grace: Duration,
    /// How long an outage spares; zero: never.
    pub outage_grace: Duration,
    /// Largest event and batch, bytes of JSON.
    pub max_event_bytes: usize,
    /// Requests in flight in the process.
    pub max_in_flight: u32,
    /// Requests in flight per destination by default.
    pub destination_in_flight: u32,
    /// Bytes of events in memory.
    pub max_bytes_in_flight: u64,
    /// Consecutive failures that trip a breaker.
    pub breaker_threshold: u32,
    /// Longest retry delay.
    pub max_retry_delay: Duration,
    /// Failing time after which a destination is disabled; zero: never.
    pub auto_disable_after: Duration,
    /// Whether operational events are written.
    pub operational_events: bool,
    /// Arbiters that run destinations.
    pub workers: usize,
    /// Administration, metrics and retention.
    pub operations: Operations,
}

impl Config {
    /// Where requests may go.
    pub fn egress_rules(&self) -> Rules {
        Rules {
            allow: self.allow_networks.clone(),
            allow_ports: self.allow_ports.clone(),
            https_only: self.https_only,
        }
    }
}

/// Everything that is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub struct ConfigFaults(pub Vec<String>);

impl fmt::Display for ConfigFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "the configuration has {} fault(s):", self.0.len())?;
        self.0.iter().try_for_each(|fault| writeln!(f, "  - {fault}"))
    }
}

/// Collects the faults of one configuration while it is being read.
struct Reader {
    faults: Vec<String>,
}

impl Reader {
    fn check<T: Default>(&mut self, option: &str, value: &str, parsed: Result<T, String>) -> T {
        parsed.unwrap_or_else(|fault| {
            self.faults.push(format!("{option}: {value:?} {fault}"));
            T::default()
        })
    }

    fn bool(&mut self, option: &str, value: &str) -> bool {
        is_true(option, value, &mut self.faults)
    }

    fn duration(&mut self, option: &str, value: &str, limits: [Duration; 2]) -> Duration {
        let parsed = parse_duration(value).and_then(|d| {
            if d < limits[0] || d > limits[1] {
                let [least, most] = limits.map(|l| humantime::format_duration(l).to_string());
                return Err(format!("is outside {least} to {most}"));
            }
            Ok(d)
        });
        self.check(option, value, parsed)
    }

    fn address(&mut self, option: &str, value: &str) -> Option<SocketAddr> {
        let parsed = value.parse().map_err(|_| "is not an address such as 127.0.0.1:8460".to_string());
        self.check(option, value, parsed.map(Some))
    }

    fn networks(&mut self, option: &str, value: &str) -> Vec<IpNet> {
        let mut networks = Vec::new();
        for text in listed(value) {
            let parsed = text
                .parse::<IpNet>()
                .map_err(|_| "is not a network such as 10.0.0.0/8 or ::1/128".to_string());
            networks.extend(self.check(option, text, parsed.map(Some)));
        }
        networks
    }

    fn number(&mut self, option: &str, value: &str, least: u64, most: u64) -> u64 {
        let parsed = parse_bytes(value).and_then(|n| {
            if n < least || n > most {
                return Err(format!("is outside {least} to {most}"));
            }
            Ok(n)
        });
        self.check(option, value, parsed)
    }
}

/// The entries of a comma-separated list.
fn listed(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim).filter(|entry| !entry.is_empty())
}

/// Reads the value of a switch; what is no truth value is added to `faults`.
pub fn is_true(option: &str, value: &str, faults: &mut Vec<String>) -> bool {
    match value {
        "true" | "1" | "yes" | "on" => true,
        "false" | "0" | "no" | "off" | "" => false,
        _ => {
            faults.push(format!("{option}: {value:?} is neither true nor false"));
            false
        }
    }
}

/// A duration as people write it: `5s`, `24h`, `1h 30m`; a bare number is seconds.
fn parse_duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(Duration::from_secs(seconds));
    }
    humantime::parse_duration(text).map_err(|_| "is not a duration such as 500ms, 30s or 24h".into())
}

/// A count of bytes or things: `4096`, `64KiB`, `5MiB`, `1GiB`.
/// Reads a number of bytes: `5242880`, `5MiB`.
///
/// # Errors
/// What it is not, as the end of a sentence.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let (digits, unit) = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)]
        .into_iter()
        .find_map(|(suffix, unit)| text.strip_suffix(suffix).map(|digits| (digits, unit)))
        .unwrap_or((text, 1));
    let number = digits.trim().parse::<u64>().ok().and_then(|n| n.checked_mul(unit));
    number.ok_or_else(|| "is not a whole number (KiB, MiB and GiB may follow)".into())
}

/// The certificates in `pem`, at least one.
///
/// # Errors
/// What is wrong with it, as the end of a sentence.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    // What some editors put first would hide the first line.
    let pem = pem.strip_prefix(b"\xef\xbb\xbf").unwrap_or(pem);
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("is not PEM: {error}"))?;
    if certificates.is_empty() {
        return Err("holds no certificate in PEM".into());
    }
    Ok(certificates)
}

fn certificates_in(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    certificates(&std::fs::read(file).map_err(|error| format!("cannot be read: {error}"))?)
}

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

impl DispatchArgs {
    /// As a command takes them: from `flags`, the environment, and otherwise as they come.
    ///
    /// # Errors
    /// When there is no such flag, or one without its value.
    pub fn from_flags(flags: &[&str]) -> Result<DispatchArgs, clap::Error> {
        let command = DispatchArgs::augment_args(clap::Command::new("posthaste").no_binary_name(true));
        DispatchArgs::from_arg_matches(&command.try_get_matches_from(flags)?)
    }

    /// Checks all options; `database_url` comes from elsewhere, as it may be a private server's.
    ///
    /// # Errors
    /// All faults at once.
    pub fn validate(&self, database_url: Secret) -> Result<Config, ConfigFaults> {
        let mut r = Reader { faults: Vec::new() };
        let listen = r.address("--listen", &self.listen);
        let Outbound { rules, ca_file, secret_keys } = self.outbound.read(&mut r);
        let secs = Duration::from_secs;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let config = Config {
            database_url,
            listen: listen.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 0))),
            allow_networks: rules.allow,
            allow_ports: rules.allow_ports,
            https_only: rules.https_only,
            ca_file,
            secret_keys,
            poll_interval: r.duration(
                "--poll-interval",
                &self.poll_interval,
                [Duration::from_millis(100), secs(3600)],
            ),
            shutdown_grace: r.duration("--shutdown-grace", &self.shutdown_grace, [Duration::ZERO, secs(600)]),
            outage_grace: r.duration("--outage-grace", &self.outage_grace, [Duration::ZERO, YEAR]),
            max_event_bytes: r.number("--max-event-bytes", &self.max_event_bytes, 1 << 10, 64 << 20) as usize,
            max_in_flight: r.number("--max-in-flight", &self.max_in_flight, 1, 100_000) as u32,
            destination_in_flight: r.number("--destination-in-flight", &self.destination_in_flight, 1, 10_000)
                as u32,
            max_bytes_in_flight: r.number(
                "--max-bytes-in-flight",
                &self.max_bytes_in_flight,
                1 << 20,
                64 << 30,
            ),
            breaker_threshold: r.number("--breaker-threshold", &self.breaker_threshold, 1, 1000) as u32,
            max_retry_delay: r.duration(
                "--max-retry-delay",
                &self.max_retry_delay,
                [secs(1), secs(30 * 86_400)],
            ),
            auto_disable_after: r.duration(
                "--auto-disable-after",
                &self.auto_disable_after,
                [Duration::ZERO, YEAR],
            ),
            operational_events: r.bool("--operational-events", &self.operational_events),
            workers: match &self.workers {
                Some(text) => r.number("--workers", text, 1, 256) as usize,
                None => cores,
            },
            operations: self.operations.validate(&mut r),
        };
        if r.faults.is_empty() { Ok(config) } else { Err(ConfigFaults(r.faults)) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_text_is_a_value_within_its_limits_or_a_fault(
            networks in prop_oneof![".{0,40}", "([0-9a-f:.]{1,12}/[0-9]{1,4},? ?){0,3}"],
            duration in prop_oneof![".{0,20}", "[0-9]{1,25}(ns|ms|s|m|h|d|y)?( [0-9]{1,25}m)?"],
            bytes in prop_oneof![".{0,20}", "[-+]?[0-9]{1,25}(KiB|MiB|GiB| )?"],
            pem in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..60),
                "-----BEGIN (CERTIFICATE|X)-----\n[A-Za-z+/=!]{0,40}\n-----END CERTIFICATE-----\n"
                    .prop_map(String::into_bytes),
            ],
        ) {
            let mut args = DispatchArgs::from_flags(&[]).expect("all options have defaults");
            args.outbound.allow_networks = networks;
            args.max_retry_delay = duration;
            args.max_event_bytes = bytes;
            match args.validate(Secret::new("")) {
                Ok(config) => {
                    let delay = Duration::from_secs(1)..=Duration::from_secs(30 * 86_400);
                    prop_assert!(delay.contains(&config.max_retry_delay));
                    prop_assert!((1 << 10..=64 << 20).contains(&config.max_event_bytes));
                }
                Err(faults) => prop_assert!(!faults.0.is_empty()),
            }
            prop_assert!(certificates(&pem).map_or(true, |found| !found.is_empty()));
        }
    }
}
