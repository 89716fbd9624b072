//! Two processes on one database, and whole systems under a storm of faults.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod pair;
