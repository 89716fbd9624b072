//! Options for those who run it: who may manage it, where metrics answer, how long rows are kept.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;

use super::{Reader, YEAR};
use crate::model::Secret;

/// Destinations with series of their own: some 25 series each.
const DEFAULT_METRICS_MAX_DESTINATIONS: &str = "1000";
/// How long delivered deliveries are kept: long enough to answer a receiver's questions about last month.
const DEFAULT_RETENTION_DELIVERED: &str = "30d";
/// How long dead deliveries are kept: until somebody has looked at them.
const DEFAULT_RETENTION_DEAD: &str = "0";
/// How long failed attempts are kept: as long as the deliveries.
const DEFAULT_RETENTION_ATTEMPTS: &str = "30d";

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
}

/// [`OperationArgs`], checked.
#[derive(Clone, Debug)]
pub struct Operations {
    /// Where health and metrics answer, if not on the main address.
    pub metrics_listen: Option<SocketAddr>,
    /// Who has it may do everything by the API.
    pub admin_token: Option<Secret>,
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
}

impl Retention {
    /// Whether nothing is ever deleted.
    pub fn is_off(self) -> bool {
        self.delivered.or(self.dead).or(self.attempts).is_none()
    }
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
        };
        Operations {
            metrics_listen: metrics_listen.and_then(|text| r.address("--metrics-listen", text)),
            admin_token: self.admin_token.clone().filter(|token| !token.reveal().is_empty()),
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
