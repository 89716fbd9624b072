//! What a run is made of, drawn from its seed: settings, with their extremes together, receivers, events, and
//! trouble. After a while everything is well, so that everything can arrive.

use std::time::Duration;

use fastrand::Rng;
use posthaste::dispatch::{BatchRules, Rules};
use posthaste::model::{DestinationId, OrgId, RetryPolicy};
use posthaste::policy::health::Limits;
use uuid::Uuid;

use crate::receiver::{Manner, Phase, Receiver};

/// Virtual time, in microseconds.
pub type Time = i64;

pub const MILLI: Time = 1_000;
pub const SECOND: Time = 1_000 * MILLI;
pub const MINUTE: Time = 60 * SECOND;

/// How often the supervisor polls.
pub const POLL: Time = 5 * SECOND;

pub struct Scenario {
    pub destinations: Vec<(Rules, Receiver)>,
    pub rows: Vec<NewRow>,
    pub processes: usize,
    /// Requests in flight in a process.
    pub slots: usize,
    /// Of a statement.
    pub database_takes: (Time, Time),
    /// Part of the statements whose answers are lost.
    pub answers_lost: f64,
    pub hints_lost: f64,
    /// Part of the rows that somebody has locked when their leases are renewed.
    pub rows_locked: f64,
    /// When the database is away.
    pub outages: Vec<(Time, Time)>,
    /// Which process is killed, and when it is back.
    pub crashes: Vec<(usize, Time, Time)>,
    /// When the settings of a destination change.
    pub changes: Vec<(Time, usize, Rules)>,
    /// From then on everything is well.
    pub calm: Time,
}

pub struct NewRow {
    pub destination: usize,
    /// When its statement ran, and when it was committed.
    pub inserted: Time,
    pub committed: Time,
    /// Its receiver refuses it.
    pub bad: bool,
    pub bytes: usize,
    /// An application inserted it itself.
    pub without_due_time: bool,
}

fn pick<T: Copy>(rng: &mut Rng, from: &[T]) -> T {
    from[rng.usize(..from.len())]
}

fn chance(rng: &mut Rng, part: f64) -> bool {
    rng.f64() < part
}

impl Scenario {
    pub fn draw(seed: u64) -> Scenario {
        let rng = &mut Rng::with_seed(seed);
        let calm = pick(rng, &[MINUTE, 5 * MINUTE, 20 * MINUTE, 60 * MINUTE, 240 * MINUTE]);
        let processes = pick(rng, &[1, 1, 1, 2, 3]);
        let count = rng.usize(1..=4);
        let destinations: Vec<_> = (0..count).map(|n| destination(rng, n, calm)).collect();
        let rows = (0..count).flat_map(|n| rows(rng, n, &destinations[n].0, calm)).collect();
        let spans = |rng: &mut Rng, most: usize, longest: Time| -> Vec<(Time, Time)> {
            let count = rng.usize(0..=most);
            let mut spans: Vec<_> = (0..count)
                .map(|_| {
                    let from = rng.i64(0..calm);
                    (from, (from + rng.i64(MILLI..longest)).min(calm))
                })
                .collect();
            spans.sort_unstable();
            spans
        };
        let outages = if chance(rng, 0.3) { spans(rng, 3, 2 * MINUTE) } else { Vec::new() };
        let crashes = if chance(rng, 0.3) { spans(rng, 3, 3 * MINUTE) } else { Vec::new() };
        let crashes = crashes.into_iter().map(|(from, to)| (rng.usize(..processes), from, to)).collect();
        let mut changes = Vec::new();
        if chance(rng, 0.2) {
            for _ in 0..rng.usize(1..4) {
                let of = rng.usize(..count);
                // Its receiver may be slower than a shorter timeout.
                let changed = rules(rng, of);
                let timeout = changed.timeout.max(destinations[of].0.timeout);
                let changed = Rules { timeout, ..changed };
                changes.push((rng.i64(0..calm), of, changed));
            }
        }
        changes.sort_by_key(|(at, ..)| *at);
        Scenario {
            rows,
            processes,
            slots: pick(rng, &[1, 3, 50, 1_000]),
            database_takes: pick(rng, &[(MILLI, 3 * MILLI), (MILLI, 20 * MILLI), (5 * MILLI, 3 * SECOND)]),
            answers_lost: pick(rng, &[0.0, 0.0, 0.01, 0.1]),
            hints_lost: pick(rng, &[0.0, 0.0, 0.5, 1.0]),
            rows_locked: if calm > 5 * MINUTE { pick(rng, &[0.0, 0.0, 0.3]) } else { 0.0 },
            outages,
            crashes,
            changes,
            calm,
            destinations,
        }
    }
}

fn rules(rng: &mut Rng, n: usize) -> Rules {
    let events = pick(rng, &[1, 1, 2, 8, 100, 1_000]);
    let ordered = chance(rng, 0.25);
    let in_flight = pick(rng, &[1, 2, 32, 10_000]);
    Rules {
        destination: DestinationId(Uuid::from_u128(n as u128)),
        org: OrgId(Uuid::nil()),
        batch: BatchRules {
            events,
            bytes: pick(rng, &[1_024, 64 << 10, 64 << 20]),
            wait: Duration::from_millis(pick(rng, &[0, 0, 100, 10_000, 300_000])),
            always: events > 1,
        },
        timeout: Duration::from_millis(pick(rng, &[1_000, 5_000, 30_000])),
        retry: RetryPolicy {
            max: pick(rng, &[0, 1, 3, 10]),
            backoff: Duration::from_millis(pick(rng, &[100, 1_000, 30_000])),
        },
        max_retry_delay: Duration::from_secs(pick(rng, &[10, 600, 43_200])),
        outage_grace: Duration::from_secs(pick(rng, &[0, 86_400])),
        limits: Limits {
            threshold: pick(rng, &[1, 5, 5, 50]),
            auto_disable_after: Duration::from_secs(pick(rng, &[0, 5 * 86_400])),
        },
        max_in_flight: if ordered { 1 } else { in_flight },
        ordered,
        rate_per_second: pick(rng, &[None, None, Some(0.1), Some(1.0), Some(50.0)]),
        rate_burst: pick(rng, &[None, Some(1), Some(20)]),
        max_age: pick(rng, &[None, None, None, Some(Duration::from_secs(900))]),
        max_event_bytes: 5 << 20,
    }
}

fn destination(rng: &mut Rng, n: usize, calm: Time) -> (Rules, Receiver) {
    let rules = rules(rng, n);
    let timeout = rules.timeout.as_micros() as Time;
    let slowest = pick(rng, &[5 * MILLI, 200 * MILLI, SECOND, 11 * SECOND, timeout - 1]).min(timeout - 1);
    let mut phases = Vec::new();
    let mut at = 0;
    while at < calm && chance(rng, 0.8) {
        at = (at + rng.i64(SECOND..calm)).min(calm);
        let manner = match rng.u32(0..10) {
            0 => Manner::Answers(pick(rng, &[500, 502, 301, 401, 404])),
            1 => Manner::Hangs,
            2 => Manner::Pauses(429, pick(rng, &[None, Some(1), Some(30), Some(300)])),
            3 => Manner::Pauses(503, Some(pick(rng, &[1, 60]))),
            4 => Manner::Flaky(rng.f64()),
            5 => Manner::FailsAbove(pick(rng, &[1, 2, 10])),
            6 => Manner::Gone,
            7 => Manner::RefusesAll(pick(rng, &[400, 405, 422])),
            _ => Manner::Well,
        };
        phases.push(Phase { until: at, manner });
    }
    let receiver = Receiver {
        fastest: pick(rng, &[MILLI, slowest]).min(slowest),
        slowest,
        refuses_with: pick(rng, &[400, 422, 409]),
        most_events: pick(rng, &[None, None, None, Some(1), Some(10)]),
        phases,
    };
    (rules, receiver)
}

fn rows(rng: &mut Rng, destination: usize, rules: &Rules, calm: Time) -> Vec<NewRow> {
    let slow = rules.rate_per_second.is_some_and(|rate| rate < 1.0);
    let most = if slow { 20 } else { pick(rng, &[1, 10, 60, 400]) };
    let count = rng.usize(1..=most);
    let bad = pick(rng, &[0.0, 0.0, 0.02, 0.3, 1.0]);
    let at = rng.i64(0..calm);
    let burst = pick(rng, &[None, Some(at)]);
    let large = pick(rng, &[100, 100, 20_000]);
    (0..count)
        .map(|_| {
            let inserted = burst.unwrap_or_else(|| rng.i64(0..calm));
            let late = if chance(rng, 0.05) { rng.i64(0..40 * SECOND) } else { 0 };
            NewRow {
                destination,
                inserted,
                committed: inserted + late,
                bad: chance(rng, bad),
                bytes: rng.usize(50..=large),
                without_due_time: chance(rng, 0.02),
            }
        })
        .collect()
}
