//! `drain`: how fast a backlog goes out.

use std::time::Duration;

use crate::fill;
use crate::floor::Floors;
use crate::place::Database;
use crate::program::Program;
use crate::receiver::{Count, Receiver};
use crate::report::Row;
use crate::usage::Usage;
use crate::{Bench, LoadError, clock, process};

/// Deliveries of the backlog.
const DELIVERIES: u64 = 100_000;
/// Destinations and `batch_size`.
const VARIANTS: [(usize, i32); 5] = [(1, 1), (10, 1), (100, 1), (1000, 1), (10, 100)];
/// How often the database is asked whether everything is recorded, once everything has arrived.
const ASK_EVERY: Duration = Duration::from_millis(10);

/// What draining came to.
pub struct Drained {
    /// What arrived; more than the backlog where something was sent twice.
    pub count: Count,
    /// From the first arrival to the last result in the database.
    pub seconds: f64,
    /// From the start of the process to the last result.
    pub usage: Usage,
    pub peak_rss_mb: Option<f64>,
}

/// Measures all variants that are wanted.
pub async fn run(bench: &Bench, run: u32, floors: Option<Floors>) -> Result<(), LoadError> {
    let deliveries = bench.rows(DELIVERIES, 1_000);
    for (destinations, batch_size) in VARIANTS {
        let variant = match (destinations, batch_size) {
            (1, 1) => "1 destination".into(),
            (_, 1) => format!("{destinations} destinations"),
            _ => format!("{destinations} destinations, batches of {batch_size}"),
        };
        if !bench.wants(&variant) {
            continue;
        }
        let database = bench.place.fresh().await?;
        let mut receiver = Receiver::start().await?;
        let mut conn = database.connect().await?;
        let urls = (0..destinations as u32).map(|number| receiver.url("ok", number)).collect();
        let orgs = fill::one_each(&mut conn, urls, batch_size).await?;
        fill::backlog(&mut conn, &orgs, deliveries, 1).await?;
        fill::settle(&mut conn).await?;
        drop(conn);
        let drained = measure(bench, &database, &mut receiver, deliveries).await?;
        bench.place.discard(database).await?;

        let rate = deliveries as f64 / drained.seconds;
        let row = Row::new("drain", variant, run).figure("deliveries_per_s", rate);
        let row = match floors {
            Some(floors) if batch_size == 1 => row.figure("of_serial_floor", rate / floors.serial()),
            Some(floors) => row.figure("of_database_floor", rate / floors.database),
            None => row,
        };
        let row = drained.usage.per_delivery(row, deliveries).maybe("peak_rss_mb", drained.peak_rss_mb);
        bench.done(row.figure("sent_twice", (drained.count.events - deliveries) as f64));
    }
    Ok(())
}

/// Starts the program on a backlog of `deliveries`, all for `receiver`, and waits for the last result.
pub async fn measure(
    bench: &Bench,
    database: &Database,
    receiver: &mut Receiver,
    deliveries: u64,
) -> Result<Drained, LoadError> {
    let mut conn = database.connect().await?;
    let before = Usage::now(&bench.place, None, receiver);
    let mut program = Program::start(bench, &database.url)?;
    receiver.until(deliveries, &mut program).await?;
    while fill::is_anything_left(&mut conn).await? {
        program.check()?;
        tokio::time::sleep(ASK_EVERY).await;
    }
    let end = clock::micros();
    let usage = Usage::now(&bench.place, Some(&program), receiver).since(before);
    let peak_rss_mb = process::peak_resident_mb(program.pid());
    program.stop().await?;
    let delivered = fill::count(&mut conn, "delivered").await?;
    if delivered != deliveries {
        return Err(LoadError::Other(format!("only {delivered} of {deliveries} are delivered")));
    }
    let count = receiver.count().await?;
    Ok(Drained { count, seconds: clock::seconds(count.first, end), usage, peak_rss_mb })
}
