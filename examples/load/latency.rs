//! `latency`: from commit to arrival.

use std::time::Duration;

use uuid::Uuid;

use crate::place::Database;
use crate::producer::{Latencies, Plan, Produced, Producer};
use crate::program::Program;
use crate::receiver::Receiver;
use crate::report::Row;
use crate::usage::Usage;
use crate::{Bench, LoadError, bulk, fill};

/// Events per second, events of one transaction, and for how many seconds.
///
/// A transaction that notifies holds a lock of the whole server while it commits, its fsync included: no
/// server commits 2,000 of them a second on this kind of disk, whoever dispatches. Hence several events each.
const VARIANTS: [(u32, usize, f64); 3] = [(20, 1, 25.0), (500, 1, 12.0), (2_000, 4, 12.0)];
const DESTINATIONS: u32 = 10;
/// Connections of the producers.
const CONNECTIONS: usize = 8;
/// What is not counted: connections are being opened, plans made, and all is claimed on one connection.
pub const WARM_UP: Duration = Duration::from_secs(5);

/// Measures all variants that are wanted.
pub async fn run(bench: &Bench, run: u32) -> Result<(), LoadError> {
    for (rate, per_transaction, seconds) in VARIANTS {
        let variant = format!("{rate} events/s");
        if !bench.wants(&variant) {
            continue;
        }
        let database = bench.place.fresh().await?;
        let mut receiver = Receiver::start().await?;
        let mut conn = database.connect().await?;
        bulk::past(&mut conn).await?;
        let urls = (0..DESTINATIONS).map(|number| receiver.url("ok", number)).collect();
        let orgs = fill::one_each(&mut conn, urls, 1).await?;
        fill::settle(&mut conn).await?;
        let mut program = Program::start(bench, &database.url)?;
        program.ready().await?;
        let before = Usage::now(&bench.place, Some(&program), &receiver);
        let plan = Plan { per_transaction, ..plan(bench, orgs, f64::from(rate), seconds) };
        let (produced, latencies) = measure(&database, &mut program, &mut receiver, &plan).await?;
        let usage = Usage::now(&bench.place, Some(&program), &receiver).since(before);
        program.stop().await?;
        bench.place.discard(database).await?;

        let events = produced.commits.len() as u64;
        let row = Row::new("latency", variant, run)
            .figure("events_per_s", events as f64 / produced.seconds)
            .figure("p50_ms", latencies.quantile_ms(0.5))
            .figure("p99_ms", latencies.quantile_ms(0.99))
            .figure("p99.9_ms", latencies.quantile_ms(0.999))
            .figure("max_ms", latencies.quantile_ms(1.0))
            .figure("before_the_ack_percent", latencies.early_percent())
            .figure("events", latencies.len() as f64);
        bench.done(usage.per_delivery(row, events));
    }
    Ok(())
}

/// One event per transaction.
pub fn plan(bench: &Bench, orgs: Vec<Uuid>, events_per_second: f64, seconds: f64) -> Plan {
    Plan {
        orgs,
        events_per_second,
        per_transaction: 1,
        connections: CONNECTIONS,
        duration: WARM_UP + bench.seconds(seconds),
    }
}

/// Produces while the program runs, until every event has arrived at `receiver`.
pub async fn measure(
    database: &Database,
    program: &mut Program,
    receiver: &mut Receiver,
    plan: &Plan,
) -> Result<(Produced, Latencies), LoadError> {
    let mut producer = Producer::connect(database, plan.connections).await?;
    let produced = producer.run(plan).await?;
    receiver.until(produced.commits.len() as u64, program).await?;
    let arrivals = receiver.take().await?;
    let latencies = Latencies::join(&produced, &arrivals, produced.warm(WARM_UP));
    Ok((produced, latencies))
}
