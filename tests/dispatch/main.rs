//! The dispatcher end to end: a real PostgreSQL, real HTTP receivers, the real binary; and what happens when
//! any of the three fails.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod crash;
mod delivery;
mod isolation;
mod outage;
mod restart;
mod shutdown;
mod signatures;
mod starting;
mod wire;

use std::collections::HashMap;

use common::{Receiver, eventually};
use uuid::Uuid;

/// How often each event came, whatever it was answered.
fn times_received(receiver: &Receiver) -> HashMap<Uuid, usize> {
    let mut times = HashMap::new();
    for id in receiver.received().iter().flat_map(|request| request.event_ids()) {
        *times.entry(id).or_insert(0) += 1;
    }
    times
}

/// Waits until `receiver` has accepted each of `events`.
async fn accepted(receiver: &Receiver, events: &[Uuid]) {
    eventually("every event is accepted", async || {
        let accepted = receiver.accepted();
        events.iter().all(|event| accepted.contains_key(event))
    })
    .await;
}
