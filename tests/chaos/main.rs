//! Two processes on one database, and everything at once.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod cast;
mod pair;
mod producer;
mod run;
mod trouble;
mod verdict;
