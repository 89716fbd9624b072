//! The chaos run: many destinations, a stream of events, and trouble by a seed; then calm, and everything
//! must be as it should.
//!
//! `POSTHASTE_CHAOS_SECONDS=600 sh .ci/test --no-capture chaos_of_a_seed` is a long one;
//! `POSTHASTE_CHAOS_SEED` repeats one. What the seed decides is the trouble and the manners of the receivers;
//! what meets what is up to the machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::cast::{Member, ORGS};
use crate::common::{Posthaste, Proxy, Server, check_rows, eventually_within};
use crate::producer::produce;
use crate::trouble::Stage;
use crate::verdict;

/// How long the trouble lasts unless it is told otherwise.
const SECONDS: u64 = 20;
/// Leases that nobody knows of last 45 s, breakers look every 60 s at least.
const CALM: Duration = Duration::from_secs(180);

/// Seeds of runs that found something, and how many seconds of them are repeated. The first one found that a
/// destination which was disabled for a while is judged by what it was owed, not by its filters; the second
/// one, after ten minutes and once only, ten events that were sent again after their leases; the third one,
/// once only, that a process which was stopped has no time left for answers.
const FOUND: [(u64, u64); 3] =
    [(9_389_226_924_489_301_221, 15), (7_031_578_467_587_775_636, 15), (16_825_730_833_724_075_931, 15)];

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable} is no number: {value}")))
}

#[tokio::test]
async fn after_the_chaos_of_a_seed_everything_is_as_it_should_be() {
    let seed = number("POSTHASTE_CHAOS_SEED").unwrap_or_else(|| fastrand::u64(..));
    let seconds = number("POSTHASTE_CHAOS_SECONDS").unwrap_or(SECONDS);
    run(seed, Duration::from_secs(seconds)).await;
}

#[tokio::test]
async fn seeds_that_found_something_find_nothing_any_more() {
    for (seed, seconds) in FOUND {
        run(seed, Duration::from_secs(seconds)).await;
    }
}

async fn run(seed: u64, length: Duration) {
    println!("POSTHASTE_CHAOS_SEED={seed} POSTHASTE_CHAOS_SECONDS={}", length.as_secs());
    let server = Server::start();
    let db = server.db().await;
    let mut orgs = Vec::new();
    for _ in 0..ORGS {
        orgs.push(db.org().await);
    }
    let members = Arc::new(Member::all(&db, &orgs, seed).await);
    let (switches, switched) = mpsc::unbounded_channel();
    let proxy = Proxy::before(&db.url);
    let mut stage = Stage {
        server,
        db,
        proxy,
        processes: Vec::new(),
        members: members.clone(),
        switches,
        kills: Vec::new(),
        continued: Vec::new(),
        counts: Default::default(),
        start: Instant::now(),
        story: Vec::new(),
        logs: Vec::new(),
        server_is_up: true,
    };
    stage.start_process();
    let stop = Arc::new(AtomicBool::new(false));
    let pool = stage.db.pool.clone();
    let producer = tokio::spawn(produce(pool, orgs, members, switched, stop.clone(), seed));
    let mut rng = fastrand::Rng::with_seed(seed);
    if rng.bool() {
        stage.start_process();
    }
    let start = Instant::now();
    while start.elapsed() < length {
        trouble(&mut stage, &mut rng).await;
    }
    calm(&mut stage, &mut rng).await;
    stop.store(true, Ordering::SeqCst);
    let written = producer.await.unwrap();
    let calm_since = Instant::now();
    eventually_within(CALM, "every delivery is delivered or dead", async || {
        stage.db.deliveries("status IN ('pending', 'failed')").await == 0
    })
    .await;
    println!("settled after {:.1?} of calm", calm_since.elapsed());
    for process in std::mem::take(&mut stage.processes) {
        stage.see_off(process).await;
    }
    check_rows(&stage.db).await;
    verdict::judge(&stage, &written).await;
}

/// One piece of trouble, or two that overlap, and a moment without.
async fn trouble(stage: &mut Stage, rng: &mut fastrand::Rng) {
    let first = stage.begin(rng).await;
    pass(rng).await;
    if rng.u8(0..3) == 0 {
        let second = stage.begin(rng).await;
        pass(rng).await;
        stage.end(first).await;
        pass(rng).await;
        stage.end(second).await;
    } else {
        stage.end(first).await;
    }
    pass(rng).await;
    for member in &*stage.members {
        // What they have seen is in their ledgers; a long run would fill the memory.
        member.receiver.forget();
    }
    stage.processes.iter().for_each(assert_well);
}

/// Most moments are short, some are long enough for what waits to give up.
async fn pass(rng: &mut fastrand::Rng) {
    let most = if rng.u8(0..8) == 0 { 6_000 } else { 1_200 };
    tokio::time::sleep(Duration::from_millis(rng.u64(0..most))).await;
}

fn assert_well(process: &Posthaste) {
    let log = process.log();
    assert!(!log.contains("panicked"), "{log}");
}

/// Ends everything that may still be wrong.
async fn calm(stage: &mut Stage, rng: &mut fastrand::Rng) {
    for (n, member) in stage.members.iter().enumerate() {
        member.calm_down();
        member.receiver.restore().await;
        stage.switches.send((n, true)).unwrap();
    }
    // A process that finds itself alone does not wait for the leases of others; one that goes on does.
    if rng.bool() {
        for process in std::mem::take(&mut stage.processes) {
            stage.see_off(process).await;
        }
        stage.start_process();
    }
}
