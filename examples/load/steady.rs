//! `steady`: the highest rate at which producers and dispatcher keep up with each other.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use crate::fill::{self, NewDestination};
use crate::producer::{Plan, Producer};
use crate::program::Program;
use crate::receiver::Receiver;
use crate::report::Row;
use crate::usage::Usage;
use crate::{Bench, LoadError, bulk};

/// Destinations of each organization, all of which want every event.
const FAN_OUTS: [u32; 2] = [1, 10];
const ORGANIZATIONS: u32 = 10;
const CONNECTIONS: usize = 4;
/// Events of one INSERT.
const PER_TRANSACTION: usize = 10;
/// Deliveries per second that are tried first.
const FIRST: f64 = 2_000.0;
/// The search ends when it knows the rate to this factor.
const PRECISION: f64 = 1.06;
/// Rates below this are not looked for.
const LOWEST: f64 = 10.0;
/// How long a rate is tried, and the part of it during which the backlog may grow.
const PROBE: f64 = 7.0;
const PROBE_WARM_UP: f64 = 2.0;
/// The backlog has not grown when it grew by less than this share of what was produced meanwhile, apart from
/// the transactions that were just being made.
const TOLERANCE: f64 = 0.02;

/// What is needed to try a rate.
struct Stage {
    orgs: Vec<Uuid>,
    fan_out: u32,
    producer: Producer,
    receiver: Receiver,
    program: Program,
    /// Deliveries that should have arrived.
    due: u64,
}

/// How a rate went.
struct Probe {
    kept_up: bool,
    usage: Usage,
    deliveries: u64,
}

/// Measures all variants that are wanted.
pub async fn run(bench: &Bench, run: u32) -> Result<(), LoadError> {
    for fan_out in FAN_OUTS {
        let variant = format!("fan-out {fan_out}");
        if !bench.wants(&variant) {
            continue;
        }
        let database = bench.place.fresh().await?;
        let mut conn = database.connect().await?;
        bulk::past(&mut conn).await?;
        let receiver = Receiver::start().await?;
        let orgs = fill::organizations(&mut conn, ORGANIZATIONS as usize).await?;
        let numbered = (0..fan_out).flat_map(|_| orgs.iter()).zip(0..);
        let new: Vec<NewDestination> =
            numbered.map(|(org, number)| NewDestination::single(*org, receiver.url("ok", number))).collect();
        fill::destinations(&mut conn, &new).await?;
        fill::settle(&mut conn).await?;
        let producer = Producer::connect(&database, CONNECTIONS).await?;
        let mut program = Program::start(bench, &database.url)?;
        program.ready().await?;
        let mut stage = Stage { orgs, fan_out, producer, receiver, program, due: 0 };
        let (rate, probe) = stage.search(bench).await?;
        stage.program.stop().await?;
        drop((stage.producer, stage.receiver, conn));
        bench.place.discard(database).await?;

        let row = Row::new("steady", variant, run)
            .figure("deliveries_per_s", rate)
            .figure("events_per_s", rate / f64::from(fan_out));
        bench.done(probe.usage.per_delivery(row, probe.deliveries));
    }
    Ok(())
}

impl Stage {
    /// Twice as much until it is too much, half as much until it is not, and then between the two.
    async fn search(&mut self, bench: &Bench) -> Result<(f64, Probe), LoadError> {
        let mut best: Option<(f64, Probe)> = None;
        let mut too_much = f64::INFINITY;
        loop {
            let rate = match &best {
                Some((rate, _)) if too_much / rate <= PRECISION => break,
                Some((rate, _)) if too_much.is_infinite() => rate * 2.0,
                Some((rate, _)) => (rate * too_much).sqrt(),
                None if too_much.is_infinite() => FIRST,
                None if too_much < LOWEST => break,
                None => too_much / 2.0,
            };
            let probe = self.probe(bench, rate).await?;
            eprintln!("steady: {rate:.0}/s {}", if probe.kept_up { "holds" } else { "is too much" });
            match probe.kept_up {
                true => best = Some((rate, probe)),
                false => too_much = rate,
            }
        }
        best.ok_or_else(|| LoadError::Other("steady: it keeps up with nothing".into()))
    }

    /// Produces this many deliveries per second for a while, and lets everything arrive.
    async fn probe(&mut self, bench: &Bench, rate: f64) -> Result<Probe, LoadError> {
        let fan_out = u64::from(self.fan_out);
        let duration = bench.seconds(PROBE);
        let plan = Plan {
            orgs: self.orgs.clone(),
            events_per_second: rate / fan_out as f64,
            per_transaction: PER_TRANSACTION,
            connections: CONNECTIONS,
            duration,
        };
        let before = Usage::now(&bench.place, Some(&self.program), &self.receiver);
        let committed = self.producer.committed();
        let start = Instant::now();
        let receiver = &mut self.receiver;
        let watch = async {
            let mut seen = [(0, 0); 2];
            for (at, seen) in [bench.seconds(PROBE_WARM_UP), duration].into_iter().zip(&mut seen) {
                sleep_until(start + at - Duration::from_millis(1)).await;
                *seen = (committed.get() * fan_out, receiver.count().await?.events);
            }
            Ok::<_, LoadError>(seen)
        };
        let (produced, seen) = tokio::join!(self.producer.run(&plan), watch);
        let deliveries = produced?.commits.len() as u64 * fan_out;
        let [(produced_then, arrived_then), (produced_now, arrived_now)] = seen?;
        self.due += deliveries;
        self.receiver.until(self.due, &mut self.program).await?;
        let usage = Usage::now(&bench.place, Some(&self.program), &self.receiver).since(before);

        let produced = (produced_now - produced_then) as f64;
        let growth = produced - (arrived_now - arrived_then) as f64;
        let wanted = rate * (duration - bench.seconds(PROBE_WARM_UP)).as_secs_f64();
        let unfinished = (CONNECTIONS * PER_TRANSACTION) as f64 * fan_out as f64;
        let kept_up = growth <= produced * TOLERANCE + unfinished
            && produced >= wanted * (1.0 - TOLERANCE) - unfinished;
        Ok(Probe { kept_up, usage, deliveries })
    }
}
