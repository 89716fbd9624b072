//! Limits of the process: memory, descriptors, requests in flight. With the real program, the real database,
//! and more of everything than fits.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod descriptors;
mod memory;
mod slots;

use common::{Db, Receiver};
use uuid::Uuid;

/// `count` destinations of `org` at paths of their own, each with a timeout of `timeout_ms`.
async fn destinations(db: &Db, org: Uuid, receiver: &Receiver, count: usize, timeout_ms: u32) {
    for number in 0..count {
        let destination = db.destination(org, receiver.url(&format!("/{org}/{number}")));
        destination.timeout_ms(timeout_ms).insert().await;
    }
}
