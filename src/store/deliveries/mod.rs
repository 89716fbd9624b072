//! Claiming and recording, the two statements that everything else waits for; and what people do: look at
//! deliveries, queue them again.
//!
//! **The lease.** A claim is written to the row itself: a delivery is leased if and only if
//!
//! ```text
//! last_attempt_at > now - LEASE  AND  (next_retry_at IS NULL OR last_attempt_at >= next_retry_at)
//! ```
//!
//! (unknown counts as no). The claim writes the clock into `last_attempt_at`; every recorded failure writes a
//! `next_retry_at` that is later. `last_attempt_at` stands in no index, so a claim is a HOT update. A process
//! that finds itself alone at its start passes that moment as `floor`: leases taken before it are void.

mod claim;
mod claim_sql;
pub mod list;
pub mod plain;
mod record;
mod renew;
mod requeue;
mod set_aside;
pub mod standing;

use std::time::Duration;

pub use self::claim::{Ask, ClaimSql, Claimed, Grant, MAX_CLAIM_ROWS, Room};
pub use self::record::{MAX_RECORD_ROWS, kept, record, record_unlocked};
pub use self::renew::{Renewals, renew};
pub use self::requeue::{Retried, retry};
pub(super) use self::requeue::{not_leased, requeued};
pub use self::set_aside::{Aside, set_aside};

/// How long a claim holds: the largest `timeout_ms` (30 s) and 15 s for waiting, recording and slow clocks.
pub const LEASE: Duration = Duration::from_secs(45);
