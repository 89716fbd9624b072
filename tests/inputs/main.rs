//! Inputs as they come from elsewhere: other shells, other editors, other clients, other servers. By the real
//! program.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod bodies;
mod log;
mod options;
mod output;
mod paths;
mod signals;
mod terminal;
