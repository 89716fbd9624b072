//! What people do with deliveries and events: list them, retry and replay deliveries, backfill and post
//! events. Against the store, and through the real binary.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod backfill;
mod commands;
mod events;
mod lists;
mod replay;
mod turns;

use common::Db;
use posthaste::actors::jobs::{FAST, Worker};
use posthaste::model::{DbTime, DestinationId, OrgId, Status};
use posthaste::store::jobs::{self, Job, Kind, Spec, State};
use posthaste::store::{self, Connection};
use uuid::Uuid;

/// A connection as the program uses it for what people ask.
async fn connection(db: &Db) -> Connection {
    store::connect(&store::indexed(store::options(&db.url).unwrap())).await.unwrap()
}

/// A job about everything of a destination.
fn spec(kind: Kind, org: Uuid, destination: Uuid, statuses: &[Status]) -> Spec {
    Spec {
        kind,
        org: OrgId(org),
        destination: DestinationId(destination),
        from: None,
        to: None,
        statuses: statuses.to_vec(),
        event_type: None,
    }
}

/// Creates a job and works on it to its end.
async fn run(conn: &mut Connection, spec: &Spec) -> Job {
    let job = jobs::create(conn, spec).await.unwrap().unwrap();
    finish(conn, &job).await
}

/// Works on a job to its end.
async fn finish(conn: &mut Connection, job: &Job) -> Job {
    let mut worker = Worker::new(FAST);
    loop {
        let (state, pause) = worker.batch(conn, job.id, job.spec.kind).await.unwrap();
        match state {
            Some(State::Running) | None => tokio::time::sleep(pause).await,
            Some(_) => return jobs::get(conn, job.spec.org, job.id).await.unwrap().unwrap(),
        }
    }
}

/// Counts what a job would queue, to the end.
async fn count(conn: &mut Connection, spec: &Spec) -> Option<i64> {
    let (mut count, mut after) = (0, None);
    loop {
        let counted = jobs::dry_run(conn, spec, after).await.unwrap()?;
        count += counted.count;
        after = counted.next;
        if after.is_none() {
            return Some(count);
        }
    }
}

/// A point in time, `seconds` after the beginning of 2026.
fn time(seconds: i64) -> DbTime {
    DbTime((1_767_225_600 + seconds) * 1_000_000)
}
