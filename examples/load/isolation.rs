//! `isolation`: what one bad destination does to 99 healthy ones.

use crate::producer::{Latencies, Producer};
use crate::program::Program;
use crate::receiver::Receiver;
use crate::report::Row;
use crate::{Bench, LoadError, bulk, clock, fill, latency};

/// How the bad one behaves, as the receiver's paths have it.
const KINDS: [&str; 4] = ["hang", "drip", "reset", "500"];
const HEALTHY: usize = 99;
/// Events per second for all healthy destinations together, and for how many seconds.
const RATE: f64 = 500.0;
const SECONDS: f64 = 10.0;
/// Deliveries of the backlog of each destination.
const BACKLOG: u64 = 500;

/// What the healthy destinations had.
struct Health {
    p99_ms: f64,
    deliveries_per_s: f64,
}

/// Measures all variants that are wanted.
pub async fn run(bench: &Bench, run: u32) -> Result<(), LoadError> {
    for kind in KINDS {
        let variant = format!("one of 100: {kind}");
        if !bench.wants(&variant) {
            continue;
        }
        let without = measure(bench, None).await?;
        let with = measure(bench, Some(kind)).await?;
        bench.done(
            Row::new("isolation", variant, run)
                .figure("p99_without_ms", without.p99_ms)
                .figure("p99_with_ms", with.p99_ms)
                .figure("p99_ratio", with.p99_ms / without.p99_ms)
                .figure("without_per_s", without.deliveries_per_s)
                .figure("with_per_s", with.deliveries_per_s)
                .figure("throughput_ratio", with.deliveries_per_s / without.deliveries_per_s),
        );
    }
    Ok(())
}

async fn measure(bench: &Bench, kind: Option<&str>) -> Result<Health, LoadError> {
    Ok(Health { p99_ms: trickle(bench, kind).await?, deliveries_per_s: backlog(bench, kind).await? })
}

/// URLs of the healthy destinations, and the bad one's after them.
fn urls(healthy: &Receiver, bad: &Receiver, kind: Option<&str>) -> Vec<String> {
    let mut urls: Vec<String> = (0..HEALTHY as u32).map(|number| healthy.url("ok", number)).collect();
    urls.extend(kind.map(|kind| bad.url(kind, 0)));
    urls
}

/// The healthy destinations' p99 under a moderate load.
async fn trickle(bench: &Bench, kind: Option<&str>) -> Result<f64, LoadError> {
    let database = bench.place.fresh().await?;
    let (mut healthy, bad) = (Receiver::start().await?, Receiver::start().await?);
    let mut conn = database.connect().await?;
    bulk::past(&mut conn).await?;
    let orgs = fill::one_each(&mut conn, urls(&healthy, &bad, kind), 1).await?;
    fill::settle(&mut conn).await?;
    let mut program = Program::start(bench, &database.url)?;
    program.ready().await?;
    // The healthy ones get the same, with and without.
    let rate = RATE * orgs.len() as f64 / HEALTHY as f64;
    let plan = latency::plan(bench, orgs, rate, SECONDS);
    let mut producer = Producer::connect(&database, plan.connections).await?;
    let produced = producer.run(&plan).await?;
    healthy.until(produced.events_of(0..HEALTHY), &mut program).await?;
    let latencies = Latencies::join(&produced, &healthy.take().await?, produced.warm(latency::WARM_UP));
    program.kill().await?;
    drop((producer, conn));
    bench.place.discard(database).await?;
    Ok(latencies.quantile_ms(0.99))
}

/// How fast the healthy destinations' backlog goes out, from their first arrival to their last.
async fn backlog(bench: &Bench, kind: Option<&str>) -> Result<f64, LoadError> {
    let database = bench.place.fresh().await?;
    let (mut healthy, bad) = (Receiver::start().await?, Receiver::start().await?);
    let mut conn = database.connect().await?;
    let orgs = fill::one_each(&mut conn, urls(&healthy, &bad, kind), 1).await?;
    let each = bench.rows(BACKLOG, 1);
    fill::backlog(&mut conn, &orgs, each * orgs.len() as u64, 1).await?;
    fill::settle(&mut conn).await?;
    let mut program = Program::start(bench, &database.url)?;
    let count = healthy.until(each * HEALTHY as u64, &mut program).await?;
    program.kill().await?;
    drop(conn);
    bench.place.discard(database).await?;
    Ok(count.events as f64 / clock::seconds(count.first, count.last))
}
