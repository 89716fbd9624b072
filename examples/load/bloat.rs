//! `bloat`: a long drain while vacuum can remove nothing.

use crate::fill::{self, NewDestination};
use crate::place::execute;
use crate::receiver::Receiver;
use crate::report::Row;
use crate::{Bench, LoadError, clock, drain};

const DELIVERIES: u64 = 1_000_000;
const ORGANIZATIONS: usize = 10;
/// Destinations of each organization.
const FAN_OUT: u32 = 10;

/// Measures the first tenth of the drain and the last.
pub async fn run(bench: &Bench, run: u32) -> Result<(), LoadError> {
    let variant = "beside an open transaction";
    if !bench.wants(variant) {
        return Ok(());
    }
    let deliveries = bench.rows(DELIVERIES, 1_000);
    let database = bench.place.fresh().await?;
    let mut receiver = Receiver::start().await?;
    let mut conn = database.connect().await?;
    let orgs = fill::organizations(&mut conn, ORGANIZATIONS).await?;
    let numbered = (0..FAN_OUT).flat_map(|_| orgs.iter()).zip(0..);
    let new: Vec<NewDestination> =
        numbered.map(|(org, number)| NewDestination::single(*org, receiver.url("ok", number))).collect();
    fill::destinations(&mut conn, &new).await?;
    fill::backlog(&mut conn, &orgs, deliveries / u64::from(FAN_OUT), u64::from(FAN_OUT)).await?;
    fill::settle(&mut conn).await?;
    execute(&mut conn, "BEGIN ISOLATION LEVEL REPEATABLE READ").await?;
    // The first statement takes the snapshot. From here on nothing that dies can be removed.
    execute(&mut conn, "SELECT count(*) FROM organizations").await?;
    let drained = drain::measure(bench, &database, &mut receiver, deliveries).await?;
    let mut times: Vec<u64> = receiver.take().await?.iter().map(|arrival| arrival.at).collect();
    times.sort_unstable();
    execute(&mut conn, "COMMIT").await?;
    drop(conn);
    bench.place.discard(database).await?;

    let tenth = times.len() / 10;
    let rate = |first: usize, last: usize| (last - first) as f64 / clock::seconds(times[first], times[last]);
    let [first, last] = [rate(0, tenth), rate(times.len() - 1 - tenth, times.len() - 1)];
    let row = Row::new("bloat", variant, run)
        .figure("first_tenth_per_s", first)
        .figure("last_tenth_per_s", last)
        .figure("last_to_first", last / first)
        .figure("deliveries_per_s", deliveries as f64 / drained.seconds);
    bench.done(drained.usage.per_delivery(row, deliveries).maybe("peak_rss_mb", drained.peak_rss_mb));
    Ok(())
}
