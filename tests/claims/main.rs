//! The claim protocol against a model of it: random sequences of everything that can happen to deliveries run
//! against PostgreSQL and in memory, and after each step both must say the same.
//!
//! The cases derive from one seed. `POSTHASTE_MODEL_CASES` asks for more of them, `POSTHASTE_MODEL_SEED` for
//! others.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod change;
mod compare;
mod fill;
mod model;
mod ops;
mod world;

use std::time::Duration;

use common::Db;
use ops::{Kind, Op, Reset, Result as Recorded};
use proptest::test_runner::{
    Config, RngAlgorithm, TestCaseError, TestCaseResult, TestError, TestRng, TestRunner,
};
use world::World;

/// Cases of a usual run.
const CASES: u64 = 20;
const SEED: u64 = 1;
/// Steps of a case at most.
const STEPS: usize = 40;
/// The model's clock stands still within a case, the real one does not: its moments lie five seconds apart.
const SLOW: Duration = Duration::from_secs(5);

/// Runs one sequence on both sides.
async fn case(db: &Db, ops: &[Op]) -> TestCaseResult {
    let mut world = World::new(db).await;
    let mut verdict = Ok(());
    for (at, op) in ops.iter().enumerate() {
        verdict = world.step(op).await;
        if verdict.is_ok() {
            verdict = compare::compare(&mut world).await;
        }
        if let Err(fault) = &mut verdict {
            *fault = format!("step {at}, {op:?}: {fault}");
            break;
        }
    }
    let slow = world.began.elapsed() > SLOW;
    world.end().await;
    match verdict {
        Err(_) if slow => Err(TestCaseError::reject("the machine was too slow to compare times")),
        Err(fault) => Err(TestCaseError::fail(fault)),
        Ok(()) => Ok(()),
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

#[test]
fn whatever_happens_postgresql_and_the_model_agree() {
    let seed = number("POSTHASTE_MODEL_SEED", SEED);
    let config = Config {
        cases: number("POSTHASTE_MODEL_CASES", CASES) as u32,
        max_shrink_iters: 400,
        failure_persistence: None,
        ..Config::default()
    };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let db = runtime.block_on(Db::new());
    let run = |ops: Vec<Op>| runtime.block_on(case(&db, &ops));
    match TestRunner::new_with_rng(config, rng).run(&ops::sequences(STEPS), run) {
        Ok(()) => {}
        Err(TestError::Fail(why, ops)) => panic!("POSTHASTE_MODEL_SEED={seed}: {why}\n{ops:#?}"),
        Err(TestError::Abort(why)) => panic!("POSTHASTE_MODEL_SEED={seed}: {why}"),
    }
}

/// Sequences that once found something, or that would be the shortest to do so.
#[tokio::test]
async fn sequences_that_matter_agree_with_the_model() {
    use Kind::*;
    let (one, ingest) = (Op::Ingest { events: 1, commit: true }, Op::Ingest { events: 2, commit: true });
    let claim = |process| Op::Claim { process, of: 1, want: 2, one_byte: false };
    let record = |results: &[(usize, Kind)]| Op::Record {
        results: results
            .iter()
            .map(|(lease, kind)| (*lease, Recorded { kind: *kind, ahead: false }))
            .collect(),
    };
    let pass = |half_minutes| Op::Pass { half_minutes };
    let order = Op::Order { of: 0, ordered: true };
    let crash = Op::Crash { process: 0 };
    let replay = Op::Replay { of: 0, only_dead: false };
    let reset = |how| Op::Reset { row: 0, how };
    let late = [(0, Failed { delay: 0 }), (1, GivenBack), (2, GivenBack), (3, GivenBack)];
    let table: [(&str, Vec<Op>); 8] = [
        (
            "what was lost is not written, unless it is a success",
            vec![ingest.clone(), claim(0), pass(2), claim(1), record(&[(0, Failed { delay: 15 })])],
        ),
        (
            "a success and a failure of the same delivery in one statement",
            vec![one, claim(0), pass(2), claim(1), record(&[(1, Failed { delay: 0 }), (0, Delivered)])],
        ),
        (
            "a new process after a crash, and results of the old one after that",
            vec![ingest.clone(), claim(0), crash, claim(1), record(&late), claim(1)],
        ),
        (
            "an ordered queue is held by a lease from when it was not ordered",
            vec![ingest.clone(), claim(0), order.clone(), ingest.clone(), claim(1), pass(2), claim(1)],
        ),
        (
            "a failed head holds back what is behind it",
            vec![
                order,
                ingest.clone(),
                claim(0),
                record(&[(0, Failed { delay: 45 }), (1, GivenBack)]),
                claim(0),
            ],
        ),
        (
            "a replay leaves out what is leased, and takes it when the lease has ended",
            vec![
                ingest.clone(),
                claim(0),
                replay.clone(),
                claim(1),
                pass(2),
                replay,
                claim(1),
                record(&late),
            ],
        ),
        (
            "an application that resets a leased row",
            vec![ingest.clone(), claim(0), reset(Reset::NoTime), claim(1), reset(Reset::Now), claim(1)],
        ),
        (
            "the same result twice, with a reset between",
            vec![ingest, claim(0), record(&late), reset(Reset::NoTime), record(&late), pass(2), claim(1)],
        ),
    ];
    let db = Db::new().await;
    for (name, ops) in table {
        case(&db, &ops).await.unwrap_or_else(|fault| panic!("{name}: {fault}"));
    }
}
