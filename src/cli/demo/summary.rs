//! The verdict: what the receivers recorded, held against what the plan says.

use std::time::{Duration, Instant};

use super::plan::Participant;
use super::progress::name;
use super::receivers::Record;
use super::stream::Written;

/// How one participant fared.
struct Line {
    wanted: usize,
    missing: usize,
    /// Events that arrived although nobody had asked for them.
    strange: usize,
    /// From the commit of an event to its arrival, in order.
    latencies: Vec<Duration>,
}

/// Prints the summary; whether everything is as it should be.
pub fn print(
    participants: &[Participant],
    written: &Written,
    records: &[Record],
    not_delivered: i64,
) -> bool {
    let lines: Vec<Line> =
        participants.iter().zip(records).map(|(p, record)| judge(p, written, record)).collect();
    println!();
    println!(
        "{:28}{:>8}{:>9}{:>9}{:>11}{:>10}{:>8}{:>9}{:>9}",
        "destination", "events", "arrived", "missing", "duplicates", "requests", "failed", "p50", "p99"
    );
    for ((participant, record), line) in participants.iter().zip(records).zip(&lines) {
        println!(
            "{:28}{:>8}{:>9}{:>9}{:>11}{:>10}{:>8}{:>9}{:>9}",
            name(participant),
            line.wanted,
            record.arrived.len(),
            line.missing,
            record.duplicates,
            record.requests,
            record.refused,
            percentile(&line.latencies, 50),
            percentile(&line.latencies, 99),
        );
    }
    let sum = |of: fn(&Line) -> usize| lines.iter().map(of).sum::<usize>();
    let invalid: usize = records.iter().map(|record| record.invalid).sum();
    let requests: usize = records.iter().map(|record| record.requests).sum();
    let (wanted, missing, strange) = (sum(|l| l.wanted), sum(|l| l.missing), sum(|l| l.strange));
    println!();
    println!("p50, p99: from the commit of an event to its arrival{}", debug_note());
    let seconds = last_arrival(records).map_or(0.0, |last| (last - written.start).as_secs_f64());
    let arrived = wanted - missing;
    println!("{arrived} deliveries in {seconds:.1} s: {:.0} per second", arrived as f64 / seconds.max(0.001));
    println!();
    let truths = [
        (missing == 0, format!("every matching event arrived ({arrived} of {wanted})")),
        (strange == 0, format!("nothing arrived that nobody had asked for ({strange} events)")),
        (invalid == 0, format!("every signature held ({} of {requests} requests)", requests - invalid)),
        (not_delivered == 0, format!("every delivery is recorded as delivered ({not_delivered} are not)")),
    ];
    for (holds, truth) in &truths {
        println!("{} {truth}", if *holds { "true: " } else { "FALSE:" });
    }
    truths.iter().all(|(holds, _)| *holds)
}

fn judge(participant: &Participant, written: &Written, record: &Record) -> Line {
    let wanted = written.events.iter().enumerate().filter(|(n, _)| participant.wants(*n));
    let (mut count, mut latencies) = (0, Vec::new());
    for (_, (id, committed)) in wanted {
        count += 1;
        // The commit is known to us a moment after the dispatcher has heard of it: then the difference counts
        // as 0.
        let latency = record.arrived.get(&id.0).map(|at| at.saturating_duration_since(*committed));
        latencies.extend(latency);
    }
    latencies.sort();
    let missing = count - latencies.len();
    Line { wanted: count, missing, strange: record.arrived.len() - latencies.len(), latencies }
}

fn last_arrival(records: &[Record]) -> Option<Instant> {
    records.iter().flat_map(|record| record.arrived.values().copied()).max()
}

/// The latency that `percent` of all do not exceed.
fn percentile(sorted: &[Duration], percent: usize) -> String {
    let Some(last) = sorted.len().checked_sub(1) else { return "-".into() };
    let latency = sorted[(sorted.len() * percent).div_ceil(100).saturating_sub(1).min(last)];
    match latency.as_millis() {
        millis if millis >= 10_000 => format!("{:.1} s", latency.as_secs_f64()),
        millis if millis >= 10 => format!("{millis} ms"),
        _ => format!("{:.1} ms", latency.as_secs_f64() * 1000.0),
    }
}

fn debug_note() -> &'static str {
    if cfg!(debug_assertions) { "; this is a debug build, cargo run --release is faster" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::super::plan::{event, participants};
    use super::*;
    use crate::clock;
    use crate::model::OrgId;
    use uuid::Uuid;

    fn written() -> Written {
        let organizations = [(); 3].map(|()| OrgId(Uuid::new_v4()));
        let start = clock::now();
        Written { events: (0..60).map(|n| (event(n, &organizations).id, start)).collect(), start }
    }

    /// Records in which everything arrived 5 ms after its commit.
    fn perfect(participants: &[Participant], written: &Written) -> Vec<Record> {
        let of = |participant: &Participant| {
            let wanted = written.events.iter().enumerate().filter(|(n, _)| participant.wants(*n));
            wanted.map(|(_, (id, at))| (id.0, *at + Duration::from_millis(5))).collect()
        };
        participants.iter().map(|p| Record { arrived: of(p), ..Record::default() }).collect()
    }

    #[test]
    fn the_verdict_is_good_only_if_everything_is() {
        let (participants, written) = (participants(), written());
        let good = perfect(&participants, &written);
        assert!(print(&participants, &written, &good, 0));
        assert!(!print(&participants, &written, &good, 1));
        let mut missing = good.clone();
        let id = *missing[3].arrived.keys().next().unwrap();
        missing[3].arrived.remove(&id);
        assert!(!print(&participants, &written, &missing, 0));
        // The right number of events, but not the right ones.
        missing[3].arrived.insert(Uuid::new_v4(), written.start);
        assert!(!print(&participants, &written, &missing, 0));
        let mut unsigned = good.clone();
        (unsigned[0].requests, unsigned[0].invalid) = (1, 1);
        assert!(!print(&participants, &written, &unsigned, 0));
        let mut twice = good;
        twice[0].duplicates = 3;
        assert!(print(&participants, &written, &twice, 0), "at least once is the promise");
    }

    #[test]
    fn percentiles_are_of_the_sorted_latencies() {
        let latencies: Vec<Duration> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(
            (percentile(&latencies, 50), percentile(&latencies, 99)),
            ("50 ms".into(), "99 ms".into())
        );
        assert_eq!(percentile(&latencies[..1], 99), "1.0 ms");
        assert_eq!(percentile(&[], 99), "-");
    }
}
