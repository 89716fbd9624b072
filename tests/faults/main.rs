//! PostgreSQL's bad days, and the dispatcher's own: whatever breaks, the process survives, says once what is
//! wrong, shows it in its readiness, recovers by itself, loses nothing and charges nobody.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod clock;
mod frozen;
mod local;
mod locks;
mod network;
mod pooler;
mod proxy;
mod refusals;
mod scene;
mod sessions;
mod stopped;
