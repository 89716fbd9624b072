//! `replay`: what the replay of a destination's dead deliveries does to live ones.

use posthaste::model::{DestinationId, OrgId, Status};
use posthaste::store::{self, jobs};
use uuid::Uuid;

use crate::fill::{self, NewDestination};
use crate::place::{Database, execute};
use crate::program::Program;
use crate::receiver::Receiver;
use crate::report::Row;
use crate::{Bench, LoadError, bulk, latency};

/// Destinations with live deliveries, each in an organization of its own.
const LIVE: u32 = 10;
/// Events per second for all of them together, and for how many seconds.
const RATE: f64 = 500.0;
const SECONDS: f64 = 20.0;
/// Dead deliveries that are replayed, of one more destination of the first organization.
const DEAD: u64 = 100_000;

/// Measures live deliveries without and beside a replay.
pub async fn run(bench: &Bench, run: u32) -> Result<(), LoadError> {
    let variant = "live deliveries beside a replay";
    if !bench.wants(variant) {
        return Ok(());
    }
    let alone = measure(bench, 0).await?;
    let beside = measure(bench, bench.rows(DEAD, 1)).await?;
    bench.done(
        Row::new("replay", variant, run)
            .figure("p50_alone_ms", alone.p50_ms)
            .figure("p50_beside_ms", beside.p50_ms)
            .figure("p99_alone_ms", alone.p99_ms)
            .figure("p99_beside_ms", beside.p99_ms)
            .figure("p99_ratio", beside.p99_ms / alone.p99_ms)
            .figure("replayed_per_s", beside.replayed_per_s),
    );
    Ok(())
}

/// What live deliveries had, and the replay.
struct Live {
    p50_ms: f64,
    p99_ms: f64,
    replayed_per_s: f64,
}

async fn measure(bench: &Bench, dead: u64) -> Result<Live, LoadError> {
    let database = bench.place.fresh().await?;
    let (mut live, mut replayed) = (Receiver::start().await?, Receiver::start().await?);
    let (orgs, destination) = fill_both(&database, &live, &replayed, dead).await?;
    let mut program = Program::start(bench, &database.url)?;
    program.ready().await?;
    if dead > 0 {
        begin(&database, orgs[0], destination).await?;
    }
    let plan = latency::plan(bench, orgs, RATE, SECONDS);
    let (produced, latencies) = latency::measure(&database, &mut program, &mut live, &plan).await?;
    let arrived = replayed.count().await?.events;
    program.kill().await?;
    bench.place.discard(database).await?;
    if dead > 0 && arrived == 0 {
        return Err(LoadError::Other("nothing was replayed".into()));
    }
    Ok(Live {
        p50_ms: latencies.quantile_ms(0.5),
        p99_ms: latencies.quantile_ms(0.99),
        replayed_per_s: arrived as f64 / produced.seconds,
    })
}

/// The organizations with live deliveries, and the destination whose deliveries are dead.
async fn fill_both(
    database: &Database,
    live: &Receiver,
    replayed: &Receiver,
    dead: u64,
) -> Result<(Vec<Uuid>, Uuid), LoadError> {
    let mut conn = database.connect().await?;
    bulk::past(&mut conn).await?;
    let orgs = fill::organizations(&mut conn, LIVE as usize).await?;
    let new = [NewDestination::single(orgs[0], replayed.url("ok", 0))];
    let destination = fill::destinations(&mut conn, &new).await?[0];
    fill::backlog(&mut conn, &orgs[..1], dead, 1).await?;
    let bury = "UPDATE webhook_deliveries SET status = 'dead', attempts = 4, error_message = 'it failed'
        WHERE status = 'pending'";
    execute(&mut conn, bury).await?;
    // What is live is nothing to it.
    let narrow =
        format!("UPDATE webhook_destinations SET event_types = '{{past}}' WHERE id = '{destination}'");
    execute(&mut conn, &narrow).await?;
    let new: Vec<NewDestination> = (0..LIVE)
        .map(|number| NewDestination::single(orgs[number as usize], live.url("ok", number)))
        .collect();
    fill::destinations(&mut conn, &new).await?;
    fill::settle(&mut conn).await?;
    Ok((orgs, destination))
}

/// Begins the replay, for the running program to work on.
async fn begin(database: &Database, org: Uuid, destination: Uuid) -> Result<(), LoadError> {
    let mut conn = store::connect(&store::indexed(store::options(&database.url)?)).await?;
    let spec = jobs::Spec {
        kind: jobs::Kind::Replay,
        org: OrgId(org),
        destination: DestinationId(destination),
        from: None,
        to: None,
        statuses: vec![Status::Dead],
        event_type: None,
    };
    match jobs::create(&mut conn, &spec).await? {
        Some(_) => Ok(()),
        None => Err(LoadError::Other("the replay was not begun".into())),
    }
}
