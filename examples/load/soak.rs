//! `soak`: a long run with failures mixed in.

use std::time::Duration;

use sqlx::postgres::PgConnection;
use tokio::time::Instant;

use crate::producer::{Plan, Producer};
use crate::program::Program;
use crate::receiver::Receiver;
use crate::report::Row;
use crate::{Bench, LoadError, bulk, fill, process};

const HEALTHY: u32 = 40;
/// Each of them twice.
const BAD: [&str; 6] = ["slow", "flaky", "hang", "drip", "reset", "500"];
const EVENTS_PER_SECOND: f64 = 500.0;
const CONNECTIONS: usize = 4;
/// The run is made of slices, so that the driver forgets what it has checked.
const SLICES: u32 = 20;
/// After which of them the program is looked at; the first is the warm-up.
const MOMENTS: [(u32, &str); 3] = [(1, "start"), (SLICES / 2, "middle"), (SLICES, "end")];

/// Produces for the given minutes, and looks at the program three times.
pub async fn run(bench: &Bench) -> Result<(), LoadError> {
    let database = bench.place.fresh().await?;
    let (mut healthy, bad) = (Receiver::start().await?, Receiver::start().await?);
    let mut conn = database.connect().await?;
    bulk::past(&mut conn).await?;
    let mut urls: Vec<String> = (0..HEALTHY).map(|number| healthy.url("ok", number)).collect();
    urls.extend(BAD.iter().chain(&BAD).zip(0..).map(|(kind, number)| bad.url(kind, number)));
    let orgs = fill::one_each(&mut conn, urls, 1).await?;
    let mut program = Program::start(bench, &database.url)?;
    program.ready().await?;

    let plan = Plan {
        orgs,
        events_per_second: EVENTS_PER_SECOND,
        per_transaction: 1,
        connections: CONNECTIONS,
        duration: Duration::from_secs_f64(bench.args.minutes * 60.0 / f64::from(SLICES)),
    };
    let mut producer = Producer::connect(&database, CONNECTIONS).await?;
    let start = Instant::now();
    for slice in 1..=SLICES {
        let produced = producer.run(&plan).await?;
        let moment = MOMENTS.iter().find(|(at, _)| *at == slice);
        if let Some((_, moment)) = moment {
            let row = look(&mut conn, &program, Row::new("soak", *moment, 1)).await?;
            bench.done(row.figure("minutes", start.elapsed().as_secs_f64() / 60.0));
        }
        // Whatever the bad ones do, the healthy ones get everything.
        healthy.until(produced.events_of(0..HEALTHY as usize), &mut program).await?;
        healthy.take().await?;
    }
    program.stop().await?;
    drop((producer, conn));
    bench.place.discard(database).await
}

async fn look(conn: &mut PgConnection, program: &Program, row: Row) -> Result<Row, LoadError> {
    let connections: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM pg_stat_activity
         WHERE datname = current_database() AND application_name = 'posthaste'",
    )
    .fetch_one(&mut *conn)
    .await?;
    let waiting = fill::count(conn, "pending").await? + fill::count(conn, "failed").await?;
    Ok(row
        .maybe("rss_mb", process::resident_mb(program.pid()))
        .maybe("peak_rss_mb", process::peak_resident_mb(program.pid()))
        .maybe("descriptors", process::descriptors(program.pid()))
        .figure("connections", connections as f64)
        .figure("deliveries_waiting", waiting as f64))
}
