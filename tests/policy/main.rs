//! The delivery policy, end to end: a real PostgreSQL, real sockets, the real program.

#![allow(clippy::unwrap_used)]

#[path = "../common/authority.rs"]
mod authority;
#[path = "../common/mod.rs"]
mod common;

mod answers;
mod bad_input;
mod batches;
mod breaker;
mod connections;
mod hostile;
mod leases;
mod limits;
mod live;
mod oauth;
mod operational;
mod ordered;
mod pauses;
mod rows;
mod sparing;
mod tls;
mod waiting;

use std::time::Duration;

use common::{Db, Receiver, Reply, eventually, eventually_within};
use uuid::Uuid;

/// Notifications and timers have to do it all: no poll comes to their help.
const NO_POLLS: (&str, &str) = ("POSTHASTE_POLL_INTERVAL", "1h");
/// "Within a second", on a machine that is busy with other tests.
const SOON: Duration = Duration::from_secs(15);

/// A receiver that answers a request for `/418` with 418, and what is no number with 200.
fn by_path() -> Receiver {
    Receiver::scripted(|request| Reply::Status(status_of(&request.path)))
}

fn status_of(path: &str) -> u16 {
    path.trim_start_matches('/').parse().unwrap_or(200)
}

/// A column of the state of a destination; `None` when it is null or there is no state.
async fn state(db: &Db, destination: Uuid, column: &str) -> Option<String> {
    let of =
        format!("SELECT {column} FROM posthaste_destination_state WHERE destination_id = '{destination}'");
    db.text(&of).await
}

/// Waits until a column of the state of a destination is set.
async fn state_is_set(db: &Db, destination: Uuid, column: &str) {
    let what = format!("{column} is set");
    eventually(&what, async || state(db, destination, column).await.is_some()).await;
}

/// Waits until nothing is remembered of a destination's troubles.
async fn state_is_cleared(db: &Db, destination: Uuid) {
    eventually("nothing is remembered", async || state(db, destination, "destination_id").await.is_none())
        .await;
}

async fn set(db: &Db, destination: Uuid, assignments: &str) {
    db.execute(&format!("UPDATE webhook_destinations SET {assignments} WHERE id = '{destination}'")).await;
}

async fn soon(what: &str, holds: impl AsyncFnMut() -> bool) {
    eventually_within(SOON, what, holds).await;
}

/// How many deliveries of `destination` satisfy `condition`.
async fn deliveries_of(db: &Db, destination: Uuid, condition: &str) -> i64 {
    db.deliveries(&format!("destination_id = '{destination}' AND {condition}")).await
}

/// How often anything was charged at `destination`.
async fn charged(db: &Db, destination: Uuid) -> i64 {
    let sum = "SELECT coalesce(sum(attempts), 0) FROM webhook_deliveries WHERE destination_id";
    db.number(&format!("{sum} = '{destination}'")).await
}
