//! Posthaste: a webhook dispatcher for applications that already write their events to PostgreSQL.

pub mod actors;
pub mod admin;
pub mod cli;
pub mod clock;
pub mod config;
pub mod embedded;
pub mod format;
pub mod model;
pub mod outbound;
pub mod policy;
pub mod store;

/// The version of this build, as in `user-agent: Posthaste/<version>`.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
