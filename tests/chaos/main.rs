//! Two processes on one database.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod pair;
