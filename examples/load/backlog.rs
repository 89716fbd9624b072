//! `backlog`: whether a claim costs more when there is more to claim, or more history.

use std::time::Instant;

use posthaste::model::DbTime;
use posthaste::store::deliveries::{Ask, ClaimSql, Grant, Room};
use sqlx::postgres::PgConnection;
use uuid::Uuid;

use crate::bulk::{self, Status};
use crate::report::Row;
use crate::{Bench, LoadError, clock, floor};

/// Due rows, growing.
const DUE: [(u64, &str); 3] =
    [(100_000, "100 thousand due"), (1_000_000, "1 million due"), (10_000_000, "10 million due")];
/// Delivered rows, before [`DUE`]'s first.
const HISTORY: (u64, &str) = (10_000_000, "100 thousand due, 10 million delivered");
/// Rows of one claim.
const ROWS: u32 = 1_000;
/// Claims of one run at the head of the queue, and of one run along the queue.
const AT_HEAD: usize = 5;
const ALONG: usize = 20;
/// Room for anything here; the largest event is as the dispatcher has it.
const ROOM: Room = Room { planned: 1 << 30, most: 1 << 30, max_event_bytes: 5 << 20 };

/// Microseconds per claimed row: the medians of a run.
#[derive(Clone, Copy)]
struct Cost {
    head: f64,
    along: f64,
}

/// Measures every size as often as runs are wanted: filling takes much longer than measuring.
pub async fn run(bench: &Bench) -> Result<(), LoadError> {
    let database = bench.place.fresh().await?;
    let mut conn = database.connect().await?;
    let (org, destinations) = bulk::organization(&mut conn).await?;

    let (mut filled, mut base) = (0, Vec::new());
    for (rows, variant) in DUE {
        // Without the larger ones a smaller fill will do; the first is what the others are compared to.
        if filled > 0 && !bench.wants(variant) {
            continue;
        }
        let rows = bench.rows(rows, 1_000);
        eprintln!("backlog: writing {} rows", rows - filled);
        bulk::deliveries(&mut conn, org, &destinations, filled..rows, Status::Due).await?;
        filled = rows;
        let costs = measure(bench, &database.url, &destinations).await?;
        if base.is_empty() {
            base.clone_from(&costs);
        }
        report(bench, variant, &costs, &base);
    }
    let (rows, variant) = HISTORY;
    if bench.wants(variant) {
        bulk::clear(&mut conn).await?;
        let history = bench.rows(rows, 1_000);
        eprintln!("backlog: writing {history} rows");
        let due = history..history + bench.rows(DUE[0].0, 1_000);
        bulk::deliveries(&mut conn, org, &destinations, 0..history, Status::Delivered).await?;
        bulk::deliveries(&mut conn, org, &destinations, due, Status::Due).await?;
        let costs = measure(bench, &database.url, &destinations).await?;
        report(bench, variant, &costs, &base);
    }
    drop(conn);
    bench.place.discard(database).await
}

fn report(bench: &Bench, variant: &str, costs: &[Cost], base: &[Cost]) {
    for ((run, cost), base) in (1..).zip(costs).zip(base) {
        bench.done(
            Row::new("backlog", variant, run)
                .figure("at_head_us_per_row", cost.head)
                .figure("along_us_per_row", cost.along)
                .figure("head_to_first", cost.head / base.head)
                .figure("along_to_first", cost.along / base.along),
        );
    }
}

async fn measure(
    bench: &Bench,
    url: &posthaste::model::Secret,
    destinations: &[Uuid],
) -> Result<Vec<Cost>, LoadError> {
    let mut claims = Claims::new(url, destinations).await?;
    let mut along = floor::asks(destinations, ROWS);
    // The first ones make the plan and read what is cold.
    for _ in 0..AT_HEAD {
        claims.at_head().await?;
    }
    let mut costs = Vec::new();
    for _ in 0..bench.args.runs {
        let mut heads = Vec::new();
        for _ in 0..AT_HEAD {
            heads.push(claims.at_head().await?);
        }
        let mut steps = Vec::new();
        for _ in 0..ALONG {
            steps.push(claims.along(&mut along).await?);
        }
        let median = |mut values: Vec<f64>| {
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        costs.push(Cost { head: median(heads), along: median(steps) });
    }
    Ok(costs)
}

/// The program's own claims, timed.
struct Claims {
    conn: PgConnection,
    sql: ClaimSql,
    head: Vec<Ask>,
    /// Leases before this moment are void.
    floor: DbTime,
}

impl Claims {
    async fn new(url: &posthaste::model::Secret, destinations: &[Uuid]) -> Result<Claims, LoadError> {
        let options = posthaste::store::planned(posthaste::store::options(url)?);
        let mut conn = posthaste::store::connect(&options).await?;
        let sql = ClaimSql::read(&mut conn).await?;
        Ok(Claims { conn, sql, head: floor::asks(destinations, ROWS), floor: DbTime(0) })
    }

    /// The rows that are due first. What was claimed before counts as free again.
    async fn at_head(&mut self) -> Result<f64, LoadError> {
        self.floor = DbTime(clock::micros() as i64);
        let head = self.head.clone();
        let (micros, grants) = self.claim(&head).await?;
        match rows(&grants) {
            0 => Err(LoadError::Other("backlog: nothing is due".into())),
            rows => Ok(micros / rows as f64),
        }
    }

    /// The rows after those of the last claim, as the dispatcher works through a backlog; at the end it
    /// begins anew.
    async fn along(&mut self, asks: &mut Vec<Ask>) -> Result<f64, LoadError> {
        let (micros, grants) = self.claim(asks).await?;
        floor::advance(asks, &grants);
        match rows(&grants) {
            0 => {
                asks.clone_from(&self.head);
                self.at_head().await
            }
            rows => Ok(micros / rows as f64),
        }
    }

    async fn claim(&mut self, asks: &[Ask]) -> Result<(f64, Vec<Grant>), LoadError> {
        let start = Instant::now();
        let grants = self.sql.claim(&mut self.conn, asks, self.floor, ROOM).await?;
        Ok((start.elapsed().as_secs_f64() * 1e6, grants))
    }
}

fn rows(grants: &[Grant]) -> usize {
    grants.iter().map(|grant| grant.deliveries.len()).sum()
}
