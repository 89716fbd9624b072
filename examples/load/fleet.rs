//! `fleet`: what destinations cost that have nothing to do.

use std::time::Duration;

use crate::program::Program;
use crate::receiver::Receiver;
use crate::report::Row;
use crate::usage::Usage;
use crate::{Bench, LoadError, bulk, clock, fill, process};

const DESTINATIONS: [usize; 3] = [100, 1_000, 10_000];
/// How long the program is left alone before anything is measured, and then watched, in seconds.
const SETTLE: f64 = 2.0;
const IDLE: f64 = 20.0;

/// Measures all variants that are wanted.
pub async fn run(bench: &Bench, run: u32) -> Result<(), LoadError> {
    for destinations in DESTINATIONS {
        let variant = format!("{destinations} destinations");
        if bench.wants(&variant) {
            let row = measure(bench, destinations, Row::new("fleet", variant, run)).await?;
            bench.done(row);
        }
    }
    Ok(())
}

async fn measure(bench: &Bench, destinations: usize, row: Row) -> Result<Row, LoadError> {
    let database = bench.place.fresh().await?;
    let mut receiver = Receiver::start().await?;
    let mut conn = database.connect().await?;
    bulk::past(&mut conn).await?;
    let urls = (0..destinations as u32).map(|number| receiver.url("ok", number)).collect();
    let orgs = fill::one_each(&mut conn, urls, 1).await?;
    fill::settle(&mut conn).await?;

    let mut program = Program::start(bench, &database.url)?;
    let started = program.ready().await?;
    tokio::time::sleep(bench.seconds(SETTLE)).await;
    let before = Usage::now(&bench.place, Some(&program), &receiver);
    let idle = bench.seconds(IDLE);
    tokio::time::sleep(idle).await;
    let usage = Usage::now(&bench.place, Some(&program), &receiver).since(before);
    let rss = process::resident_mb(program.pid());

    let start = clock::micros();
    fill::backlog(&mut conn, &orgs, destinations as u64, 1).await?;
    let count = receiver.until(destinations as u64, &mut program).await?;
    let peak = process::peak_resident_mb(program.pid());
    program.stop().await?;
    drop(conn);
    bench.place.discard(database).await?;
    let percent = |used: Option<Duration>| used.map(|u| 100.0 * u.as_secs_f64() / idle.as_secs_f64());
    Ok(row
        .figure("start_s", started.as_secs_f64())
        .maybe("idle_rss_mb", rss)
        .maybe("idle_cpu_percent", percent(usage.posthaste))
        .maybe("idle_postgres_cpu_percent", percent(usage.postgres))
        .figure("one_event_each_s", clock::seconds(start, count.last))
        .maybe("peak_rss_mb", peak))
}
