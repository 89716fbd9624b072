//! Options for those who run it: who may manage it, where metrics answer, how long rows are kept.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use ipnet::IpNet;

use super::{Reader, YEAR};
use crate::model::Secret;

/// Connections of an HTTP server: each may hold 128 KiB of a head that never ends.
pub const MAX_CONNECTIONS: usize = 512;

/// Destinations with series of their own: some 25 series each.
const DEFAULT_METRICS_MAX_DESTINATIONS: &str = "1000";
/// How long delivered deliveries are kept: long enough to answer a receiver's questions about last month.
const DEFAULT_RETENTION_DELIVERED: &str = "30d";
/// How long dead deliveries are kept: until somebody has looked at them.
const DEFAULT_RETENTION_DEAD: &str = "0";
/// How long failed attempts are kept: as long as the deliveries.
const DEFAULT_RETENTION_ATTEMPTS: &str = "30d";
/// How long jobs that have ended are kept: as long as what they did can be looked at.
const DEFAULT_RETENTION_JOBS: &str = "30d";

/// Bytes of request bodies and of answers that the API holds: twelve of the largest events.
const DEFAULT_MAX_API_BYTES: &str = "64MiB";
/// Destinations that keys may create for one organization: each costs an actor and its connections.
const DEFAULT_MAX_DESTINATIONS: &str = "100";
/// Characters of an admin token at least: shorter ones can be guessed.
const LEAST_TOKEN: usize = 16;

/// Longest age: a lifetime.
const LONGEST_AGE: Duration = YEAR.saturating_mul(100);

/// Administration, metrics and retention.
#[derive(Args, Clone, Debug)]
pub struct OperationArgs {
    /// Address and port of an HTTP server of its own for health and metrics [default: they are on --listen]
    #[arg(long, env = "POSTHASTE_METRICS_LISTEN", value_name = "ADDRESS")]
    pub metrics_listen: Option<String>,
    /// Token that lets its bearer do everything by the API, for all organizations [default: nobody can]
    #[arg(long, env = "POSTHASTE_ADMIN_TOKEN", hide_env_values = true, value_name = "TOKEN",
          value_parser = super::hidden)]
    pub admin_token: Option<Secret>,
    /// Proxies whose X-Forwarded-For says which address a request comes from, comma-separated CIDRs
    #[arg(long, env = "POSTHASTE_TRUSTED_PROXIES", default_value = "", value_name = "CIDRS")]
    pub trusted_proxies: String,
    /// Bytes of request bodies, and of answers not yet taken, that the API holds in memory, 16MiB to 64GiB
    #[arg(long, env = "POSTHASTE_MAX_API_BYTES", default_value = DEFAULT_MAX_API_BYTES, value_name = "BYTES")]
    pub max_api_bytes: String,
    /// Destinations that the keys of an organization may create, 1 to 1000000; the admin token may go beyond
    #[arg(long, env = "POSTHASTE_MAX_DESTINATIONS", default_value = DEFAULT_MAX_DESTINATIONS,
          value_name = "DESTINATIONS")]
    pub max_destinations: String,
    /// Destinations with metrics of their own, 0 to 100000; those of all others are added up
    #[arg(long, env = "POSTHASTE_METRICS_MAX_DESTINATIONS", value_name = "DESTINATIONS",
          default_value = DEFAULT_METRICS_MAX_DESTINATIONS)]
    pub metrics_max_destinations: String,
    /// How long delivered deliveries are kept, a duration up to 100y; 0 keeps them for ever
    #[arg(long, env = "POSTHASTE_RETENTION_DELIVERED", default_value = DEFAULT_RETENTION_DELIVERED,
          value_name = "DURATION")]
    pub retention_delivered: String,
    /// How long dead deliveries are kept, a duration up to 100y; 0 keeps them for ever
    #[arg(long, env = "POSTHASTE_RETENTION_DEAD", default_value = DEFAULT_RETENTION_DEAD,
          value_name = "DURATION")]
    pub retention_dead: String,
    /// How long failed attempts of settled deliveries are kept, a duration up to 100y; 0 keeps them for ever
    #[arg(long, env = "POSTHASTE_RETENTION_ATTEMPTS", default_value = DEFAULT_RETENTION_ATTEMPTS,
          value_name = "DURATION")]
    pub retention_attempts: String,
    /// How long replays and backfills that have ended are kept, a duration up to 100y; 0 keeps them for ever
    #[arg(long, env = "POSTHASTE_RETENTION_JOBS", default_value = DEFAULT_RETENTION_JOBS,
          value_name = "DURATION")]
    pub retention_jobs: String,
}

/// [`OperationArgs`], checked.
#[derive(Clone, Debug)]
pub struct Operations {
    /// Where health and metrics answer, if not on the main address.
    pub metrics_listen: Option<SocketAddr>,
    /// Who has it may do everything by the API.
    pub admin_token: Option<Secret>,
    /// Whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Connections of each HTTP server, as far as files may be open.
    pub max_connections: usize,
    /// Bytes of bodies and answers that the API holds.
    pub max_api_bytes: u64,
    /// Destinations that the keys of an organization may create.
    pub max_destinations: u32,
    /// Destinations with series of their own.
    pub metrics_max_destinations: usize,
    /// How long rows are kept.
    pub retention: Retention,
}

/// How long rows are kept; `None`: for ever.
#[derive(Clone, Copy, Debug, Default)]
pub struct Retention {
    /// Delivered deliveries.
    pub delivered: Option<Duration>,
    /// Dead deliveries.
    pub dead: Option<Duration>,
    /// Failed attempts.
    pub attempts: Option<Duration>,
    /// Replays and backfills that have ended.
    pub jobs: Option<Duration>,
}

impl Retention {
    /// Whether nothing is ever deleted.
    pub fn is_off(self) -> bool {
        self.delivered.or(self.dead).or(self.attempts).or(self.jobs).is_none()
    }
}

/// A token as a header can carry it; an empty one is none.
fn read_token(token: &Secret, r: &mut Reader) -> Option<Secret> {
    let text = token.reveal().trim();
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        r.faults.push("--admin-token: must be visible ASCII characters, without spaces".into());
    } else if (1..LEAST_TOKEN).contains(&text.len()) {
        r.faults.push(format!(
            "--admin-token: must have at least {LEAST_TOKEN} characters, as it opens everything; \
             openssl rand -hex 32 makes one"
        ));
    }
    Some(text).filter(|text| !text.is_empty()).map(Secret::new)
}

impl OperationArgs {
    pub(super) fn validate(&self, r: &mut Reader) -> Operations {
        let metrics_listen = self.metrics_listen.as_deref().filter(|text| !text.is_empty());
        let mut age = |option: &str, value: &str| {
            let age = r.duration(option, value, [Duration::ZERO, LONGEST_AGE]);
            Some(age).filter(|age| !age.is_zero())
        };
        let retention = Retention {
            delivered: age("--retention-delivered", &self.retention_delivered),
            dead: age("--retention-dead", &self.retention_dead),
            attempts: age("--retention-attempts", &self.retention_attempts),
            jobs: age("--retention-jobs", &self.retention_jobs),
        };
        let admin_token = self.admin_token.as_ref().and_then(|token| read_token(token, r));
        Operations {
            metrics_listen: metrics_listen.and_then(|text| r.address("--metrics-listen", text)),
            admin_token,
            trusted_proxies: r.networks("--trusted-proxies", &self.trusted_proxies),
            max_connections: MAX_CONNECTIONS,
            max_api_bytes: r.number("--max-api-bytes", &self.max_api_bytes, 16 << 20, 64 << 30),
            max_destinations: r.number("--max-destinations", &self.max_destinations, 1, 1_000_000) as u32,
            metrics_max_destinations: r.number(
                "--metrics-max-destinations",
                &self.metrics_max_destinations,
                0,
                100_000,
            ) as usize,
            retention,
        }
    }
}
