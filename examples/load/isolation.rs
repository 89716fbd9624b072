//! `isolation`: what one bad destination does to 99 healthy ones.

use std::time::Duration;

use crate::place::Database;
use crate::producer::{Latencies, Plan, Producer};
use crate::program::Program;
use crate::receiver::Receiver;
use crate::report::{Row, median};
use crate::{Bench, LoadError, bulk, clock, fill, latency};

/// How the hundredth one behaves, as the receiver's paths have it. A good one first: what that changes is the
/// noise of the machine.
const KINDS: [&str; 5] = ["ok", "hang", "drip", "reset", "500"];
const HEALTHY: usize = 99;
/// With the hundredth one or without, in turn, so that a machine that gets slower or faster hurts neither.
const TURNS: [bool; 4] = [false, true, true, false];
/// How often these turns are taken. The medians count: one stall of the disk is a turn's p99.
const TRICKLES: usize = 4;
/// For backlogs, which have to be made for each turn.
const BACKLOGS: usize = 2;
/// Events per second for all healthy destinations together, and for how many seconds in each turn.
const RATE: f64 = 500.0;
const SECONDS: f64 = 5.0;
/// What is not counted of a turn.
const SETTLE: Duration = Duration::from_secs(1);
/// Deliveries of the backlog of each destination.
const BACKLOG: u64 = 500;

/// What the turns gave without the hundredth one, and with it.
#[derive(Default)]
struct Turns {
    without: Vec<f64>,
    with: Vec<f64>,
}

impl Turns {
    fn note(&mut self, is_there: bool, figure: f64) {
        let figures = if is_there { &mut self.with } else { &mut self.without };
        figures.push(figure);
    }

    /// The medians without and with, and their ratio.
    fn figures(mut self) -> [f64; 3] {
        self.without.sort_by(f64::total_cmp);
        self.with.sort_by(f64::total_cmp);
        let (without, with) = (median(&self.without), median(&self.with));
        [without, with, with / without]
    }
}

/// Measures all variants that are wanted.
pub async fn run(bench: &Bench, run: u32) -> Result<(), LoadError> {
    for kind in KINDS {
        let variant = format!("one of 100: {kind}");
        if !bench.wants(&variant) {
            continue;
        }
        let [p99_without, p99_with, p99_ratio] = trickles(bench, kind).await?.figures();
        let mut speeds = Turns::default();
        for is_there in TURNS.repeat(BACKLOGS) {
            speeds.note(is_there, backlog(bench, is_there.then_some(kind)).await?);
        }
        let [without_per_s, with_per_s, throughput_ratio] = speeds.figures();
        bench.done(
            Row::new("isolation", variant, run)
                .figure("p99_without_ms", p99_without)
                .figure("p99_with_ms", p99_with)
                .figure("p99_ratio", p99_ratio)
                .figure("without_per_s", without_per_s)
                .figure("with_per_s", with_per_s)
                .figure("throughput_ratio", throughput_ratio),
        );
    }
    Ok(())
}

/// URLs of the healthy destinations, and the hundredth one's after them.
fn urls(healthy: &Receiver, hundredth: &Receiver, kind: Option<&str>) -> Vec<String> {
    let mut urls: Vec<String> = (0..HEALTHY as u32).map(|number| healthy.url("ok", number)).collect();
    urls.extend(kind.map(|kind| hundredth.url(kind, 0)));
    urls
}

/// The healthy destinations' p99 under a moderate load, of two programs in turn, each with a database of its
/// own.
async fn trickles(bench: &Bench, kind: &str) -> Result<Turns, LoadError> {
    let mut without = Trickle::start(bench, None).await?;
    let mut with = Trickle::start(bench, Some(kind)).await?;
    without.turn(latency::WARM_UP).await?;
    with.turn(latency::WARM_UP).await?;
    let mut turns = Turns::default();
    for is_there in TURNS.repeat(TRICKLES) {
        let trickle = if is_there { &mut with } else { &mut without };
        turns.note(is_there, trickle.turn(SETTLE + bench.seconds(SECONDS)).await?);
    }
    without.end(bench).await?;
    with.end(bench).await?;
    Ok(turns)
}

/// A program, and an application whose events it delivers.
struct Trickle {
    database: Database,
    healthy: Receiver,
    /// Ends when this does.
    _hundredth: Receiver,
    program: Program,
    producer: Producer,
    plan: Plan,
}

impl Trickle {
    async fn start(bench: &Bench, kind: Option<&str>) -> Result<Trickle, LoadError> {
        let database = bench.place.fresh().await?;
        let (healthy, hundredth) = (Receiver::start().await?, Receiver::start().await?);
        let mut conn = database.connect().await?;
        bulk::past(&mut conn).await?;
        let orgs = fill::one_each(&mut conn, urls(&healthy, &hundredth, kind), 1).await?;
        fill::settle(&mut conn).await?;
        let mut program = Program::start(bench, &database.url)?;
        program.ready().await?;
        // The healthy ones get the same, with and without.
        let rate = RATE * orgs.len() as f64 / HEALTHY as f64;
        let plan = latency::plan(bench, orgs, rate, SECONDS);
        let producer = Producer::connect(&database, plan.connections).await?;
        Ok(Trickle { database, healthy, _hundredth: hundredth, program, producer, plan })
    }

    /// The p99 in milliseconds of the healthy ones' events, except the first ones.
    async fn turn(&mut self, duration: Duration) -> Result<f64, LoadError> {
        let produced = self.producer.run(&Plan { duration, ..self.plan.clone() }).await?;
        self.healthy.until(produced.events_of(0..HEALTHY), &mut self.program).await?;
        let latencies = Latencies::join(&produced, &self.healthy.take().await?, produced.warm(SETTLE));
        Ok(latencies.quantile_ms(0.99))
    }

    async fn end(self, bench: &Bench) -> Result<(), LoadError> {
        self.program.kill().await?;
        drop(self.producer);
        bench.place.discard(self.database).await
    }
}

/// How fast the healthy destinations' backlog goes out, from their first arrival to their last.
async fn backlog(bench: &Bench, kind: Option<&str>) -> Result<f64, LoadError> {
    let database = bench.place.fresh().await?;
    let (mut healthy, hundredth) = (Receiver::start().await?, Receiver::start().await?);
    let mut conn = database.connect().await?;
    let orgs = fill::one_each(&mut conn, urls(&healthy, &hundredth, kind), 1).await?;
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
