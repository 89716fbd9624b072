//! Posthaste: a webhook dispatcher for applications that already write their events to PostgreSQL.
//!
//! # From above
//!
//! ```text
//!   the application                     PostgreSQL                                  Posthaste
//!  ┌────────────────┐   ┌──────────────────────────────────────┐   ┌────────────────────────────────────┐
//!  │ INSERT INTO    │   │ activity_logs                        │   │ Supervisor    one actor for each   │
//!  │ activity_logs ─┼──▶│   │ trigger, in the same transaction │   │   │           destination          │
//!  └────────────────┘   │   ▼                                  │   │   ▼                                │
//!                       │ webhook_deliveries ──── NOTIFY ──────┼──▶│ DestinationActor ──▶ a receiver    │
//!                       │   ▲        │                         │   │   │      ▲                         │
//!                       │   │        └── claims ───────────────┼──▶│   ▼      │                         │
//!                       │   └─────────── results ◀─────────────┼───│ DbActor ─┘                         │
//!                       └──────────────────────────────────────┘   └────────────────────────────────────┘
//! ```
//!
//! PostgreSQL is the queue and the truth. This process holds nothing that it could lose.
//!
//! # The life of a delivery
//!
//! 1. The application inserts an event. A trigger inserts a delivery for each destination of that
//!    organization that wants it, in the application's own transaction (`migrations/`, [`policy::filter`]).
//! 2. A notification names the destinations; the [`actors::supervisor`] wakes their actors. Were it lost, the
//!    next poll would find the same ([`store::listener`], [`store::destinations`]).
//! 3. The [`actors::destination`] asks the [`actors::db`] for work. Asks of many destinations become one
//!    statement, which leases deliveries and reads their events ([`store::deliveries`]).
//! 4. Breaker, pause, rate limit and the limits in flight permitting, it makes a batch and starts a request.
//!    What it does next is decided in [`dispatch`], with [`policy::health`]; [`actors::limit`] is for all.
//! 5. The body is written in the destination's [`format`](mod@format), signed ([`policy::signature`]), and
//!    sent to an address that the egress rules allow ([`outbound`], [`policy::egress`]).
//! 6. What came back becomes a verdict, and the verdict a change of the row: delivered, to be tried again,
//!    dead ([`policy::classify`], [`policy::retry`]).
//! 7. Results of many destinations become one statement ([`store::deliveries`]). Only then has it happened.
//! 8. When it is old, it is deleted; its event stays ([`actors::retention`], [`store::retention`]).
//!
//! # Where things are
//!
//! | module | what |
//! | --- | --- |
//! | [`cli`] | the commands |
//! | [`config`] | options: as written, checked, ready to use |
//! | [`model`] | the words of the domain as types |
//! | [`clock`] | the only file that asks for the time |
//! | [`policy`] | decisions: pure functions of their arguments |
//! | [`format`](mod@format) | bodies |
//! | [`dispatch`] | what a destination does next: events in, effects out, time as an argument |
//! | [`store`] | the only SQL |
//! | [`outbound`] | the only HTTP client |
//! | [`actors`] | who does what when; what they count is in [`actors::metrics`] |
//! | [`manage`] | what people do, by the API and by the command line alike |
//! | [`admin`] | the HTTP server; [`admin::metrics`] is a page of it |
//! | [`embedded`] | a private PostgreSQL |
//!
//! Imports point one way: model ← policy, format ← dispatch, store, outbound ← actors ← manage ← admin ← cli.
//! `tests/tidy.rs` holds it.
//!
//! # What always holds
//!
//! - **An event that is committed is queued.** There is no second queue, and no moment between the two.
//! - **No transaction and no database connection is held during a request.** A slow receiver costs a slot,
//!   not a lock.
//! - **Every claimed delivery is leased in its row**, and nothing else says that it is ours. No request
//!   starts that could outlast its lease; what takes longer renews it and goes on where it was.
//! - **A refused batch only becomes smaller**, and what waits to fill a batch is not leased.
//! - **`delivered` is recorded whenever it is true; anything else only under our own lease.**
//! - **Our faults are charged to nobody**: not the database's absence, not a shutdown, not a missing
//!   descriptor.
//! - **A hint carries no findings.** Whoever is woken looks for itself, and whoever was not is found by
//!   polling.
//! - **Destinations pull.** No queue in this process grows with the backlog.
//! - **One destination's trouble stays its own**: its connections, its limits, its lookups, its panics.
//! - **Whatever may panic or freeze is supervised**; what cannot be started again ends the process
//!   ([`actors::supervision`]).
//! - **A payload is never parsed and copied once**: from the row, into the body.
//! - **Secrets are never shown**, neither in logs nor in errors nor by `Debug`.

pub mod actors;
pub mod admin;
pub mod cli;
pub mod clock;
pub mod config;
pub mod dispatch;
pub mod embedded;
pub mod format;
pub mod manage;
pub mod model;
pub mod outbound;
pub mod policy;
pub mod store;

/// The version of this build, as in `user-agent: Posthaste/<version>`.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
