//! What operators rely on: metrics, health, logs, retention, the least rights, dashboards and alerts. With
//! the real program and the real database.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod deploy;
mod health;
mod logs;
mod metrics;
mod page;
mod retention;
mod schema;
