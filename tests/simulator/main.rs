//! Dispatch in virtual time: machines of one or more processes against a model of the database and scripted
//! receivers, all drawn from a seed. See `holds.rs` for what is checked.
//!
//! `POSTHASTE_SIM_SECONDS` says for how long it draws new runs. `POSTHASTE_SIM_SEED` runs one seed and prints
//! everything that happens in it.

#![allow(clippy::unwrap_used)]

mod database;
mod draw;
mod holds;
mod receiver;
mod statements;
mod world;

use std::time::{Duration, Instant};

use draw::{SECOND, Time};
use world::{Figures, World};

/// How long a usual run draws.
const SECONDS: u64 = 100;

/// Seeds that once found something.
const FOUND: [u64; 7] = [51, 53, 69, 129, 775, 833, 1481];

fn run(seed: u64, base: Instant, trace: bool) -> Figures {
    match World::new(seed, base, trace).run() {
        Ok(figures) => figures,
        Err(fault) => panic!("POSTHASTE_SIM_SEED={seed}: {fault}"),
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

#[test]
fn whatever_is_drawn_everything_arrives_and_nothing_is_broken() {
    let began = Instant::now();
    if let Some(seed) = number("POSTHASTE_SIM_SEED") {
        println!("{:?}", run(seed, began, true));
        return;
    }
    let limit = Duration::from_secs(number("POSTHASTE_SIM_SECONDS").unwrap_or(SECONDS));
    let mut all = Figures::default();
    let mut runs = 0u64;
    let seeds = FOUND.into_iter().chain(1..);
    for seed in seeds {
        let one = run(seed, began, false);
        runs += 1;
        all.passed += one.passed;
        all.events += one.events;
        all.requests += one.requests;
        all.delivered += one.delivered;
        all.dead += one.dead;
        if began.elapsed() >= limit {
            break;
        }
    }
    let hours = all.passed / (3_600 * SECOND as Time);
    println!(
        "{runs} seeds, {hours} virtual hours in {} s: {} events, {} requests, {} delivered, {} dead",
        began.elapsed().as_secs(),
        all.events,
        all.requests,
        all.delivered,
        all.dead,
    );
}
