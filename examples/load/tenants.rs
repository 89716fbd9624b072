//! `tenants`: what one organization's huge backlog does to another organization's trickle.

use crate::fill::{self, NewDestination};
use crate::place::Database;
use crate::program::Program;
use crate::receiver::Receiver;
use crate::report::Row;
use crate::{Bench, LoadError, bulk, latency};

/// Of the organization with the backlog.
const DESTINATIONS: u32 = 500;
/// Its deliveries: enough for the whole measurement.
const BACKLOG: u64 = 400_000;
/// Events per second of the trickle, and for how many seconds.
const RATE: f64 = 50.0;
const SECONDS: f64 = 10.0;

/// Measures the trickle alone and beside the backlog.
pub async fn run(bench: &Bench, run: u32) -> Result<(), LoadError> {
    let variant = "a trickle beside a backlog";
    if !bench.wants(variant) {
        return Ok(());
    }
    let alone = measure(bench, 0).await?;
    let beside = measure(bench, bench.rows(BACKLOG, u64::from(DESTINATIONS))).await?;
    bench.done(
        Row::new("tenants", variant, run)
            .figure("p50_alone_ms", alone.p50_ms)
            .figure("p50_beside_ms", beside.p50_ms)
            .figure("p99_alone_ms", alone.p99_ms)
            .figure("p99_beside_ms", beside.p99_ms)
            .figure("p99_ratio", beside.p99_ms / alone.p99_ms)
            .figure("backlog_left_percent", beside.backlog_left_percent),
    );
    Ok(())
}

/// What the trickle had.
struct Trickle {
    p50_ms: f64,
    p99_ms: f64,
    /// At its end; with 0 it was alone for a part of the time.
    backlog_left_percent: f64,
}

async fn measure(bench: &Bench, backlog: u64) -> Result<Trickle, LoadError> {
    let database = bench.place.fresh().await?;
    let (mut big, mut small) = (Receiver::start().await?, Receiver::start().await?);
    let org = fill_both(&database, &big, &small, backlog).await?;
    let mut program = Program::start(bench, &database.url)?;
    program.ready().await?;
    let plan = latency::plan(bench, vec![org], RATE, SECONDS);
    let (_, latencies) = latency::measure(&database, &mut program, &mut small, &plan).await?;
    let left = backlog.saturating_sub(big.count().await?.events);
    program.kill().await?;
    bench.place.discard(database).await?;
    Ok(Trickle {
        p50_ms: latencies.quantile_ms(0.5),
        p99_ms: latencies.quantile_ms(0.99),
        backlog_left_percent: 100.0 * left as f64 / backlog.max(1) as f64,
    })
}

/// Both organizations, their destinations and the backlog; the id of the one with the trickle.
async fn fill_both(
    database: &Database,
    big: &Receiver,
    small: &Receiver,
    backlog: u64,
) -> Result<uuid::Uuid, LoadError> {
    let mut conn = database.connect().await?;
    bulk::past(&mut conn).await?;
    let orgs = fill::organizations(&mut conn, 2).await?;
    let mut new: Vec<NewDestination> =
        (0..DESTINATIONS).map(|number| NewDestination::single(orgs[0], big.url("ok", number))).collect();
    new.push(NewDestination::single(orgs[1], small.url("ok", 0)));
    fill::destinations(&mut conn, &new).await?;
    let fan_out = u64::from(DESTINATIONS);
    fill::backlog(&mut conn, &orgs[..1], backlog / fan_out, fan_out).await?;
    fill::settle(&mut conn).await?;
    Ok(orgs[1])
}
