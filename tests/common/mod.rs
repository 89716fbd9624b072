//! What the integration tests share: databases, receivers, the program itself, and the invariants of the
//! whole.
//!
//! ```text
//! Db          a database of the test's own, cloned from a migrated template on one server for all tests
//! Receiver    a real HTTP server that remembers everything and misbehaves as told
//! Posthaste   the real binary as a child process
//! Server      a private PostgreSQL for one test alone, which it may crash
//! Proxy       a bad network between the program and PostgreSQL
//! ```
//!
//! A test ends with [`check_invariants`]. It waits with [`eventually`], never by sleeping.

// Each test binary uses another part of this.
#![allow(clippy::unwrap_used, dead_code, missing_docs, unused_imports)]

mod cluster;
mod db;
mod invariants;
mod posthaste;
mod proxy;
mod receiver;
mod secrecy;
mod tools;

use std::time::{Duration, Instant};

pub use cluster::{Server, fresh_dir};
pub use db::{Db, NewDestination, migrate, with_user};
pub use invariants::{check_invariants, check_rows, leased};
pub use posthaste::{Posthaste, Ready, free_port, request, run};
pub use proxy::{End, Fault, Proxy};
pub use receiver::{Received, Receiver, Reply, read_request};
pub use secrecy::assert_silent;
pub use tools::{copied, library, skip, unpacked};

/// How long anything may take before a test gives up: far more than it needs, for slow and busy machines.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Waits until `holds` says so; panics with `what` when it does not within [`DEADLINE`].
pub async fn eventually(what: &str, holds: impl AsyncFnMut() -> bool) {
    eventually_within(DEADLINE, what, holds).await;
}

/// [`eventually`] with a limit of its own, where the limit is what the test is about.
pub async fn eventually_within(limit: Duration, what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Runs `future` to its end from anywhere, also from `Drop` inside a runtime.
pub fn block_on<T: Send>(future: impl Future<Output = T> + Send) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    std::thread::scope(|scope| scope.spawn(move || runtime.block_on(future)).join().unwrap())
}
