//! What destinations have done and how they are, as counters that anybody may read at any time.
//!
//! A [`DestinationActor`](super::destination::DestinationActor) writes to a [`Counters`] of its own, with
//! relaxed atomics that no other destination touches: an attempt costs three additions, no lock and no
//! allocation. The registry is locked when an actor begins or ends, and to be read. Asking ten thousand
//! actors for a snapshot would wake all of them; this wakes nobody.
//!
//! No sum ever falls: what an actor that ends has counted is kept in the sums.

use std::collections::HashMap;
use std::ops::AddAssign;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::model::{Change, DestinationId, OrgId};
use crate::policy::classify::Verdict;
use crate::policy::health::Standing;

/// Log lines that were dropped in this process, as nobody read them in time.
static DROPPED_LOG_LINES: AtomicU64 = AtomicU64::new(0);

/// Counts log lines that were dropped.
pub fn count_dropped_log_lines(lines: u64) {
    DROPPED_LOG_LINES.fetch_add(lines, Relaxed);
}

/// How many log lines were dropped.
pub fn dropped_log_lines() -> u64 {
    DROPPED_LOG_LINES.load(Relaxed)
}

/// Upper ends of the steps of all duration histograms, in microseconds: from what a fast database takes to
/// the largest `timeout_ms`.
pub const STEPS_MICROS: [u64; 13] = [
    1_000, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    10_000_000, 30_000_000,
];

/// How attempts end, as labels have it.
pub const ATTEMPTS: [&str; 5] = ["delivered", "refused", "failed", "paused", "our_fault"];

/// The place of a verdict in [`ATTEMPTS`].
pub fn attempt(verdict: Verdict) -> usize {
    match verdict {
        Verdict::Delivered => 0,
        // The receiver does not want this event, or not in this batch.
        Verdict::EventFailed | Verdict::Split => 1,
        Verdict::DestinationFailed | Verdict::Gone => 2,
        Verdict::Paused(_) => 3,
        Verdict::OurFault => 4,
    }
}

/// What becomes of a delivery's row, as labels have it.
pub const RESULTS: [&str; 5] = ["delivered", "failed", "dead", "postponed", "given_back"];

/// The place of a change in [`RESULTS`].
pub fn result(change: Change) -> usize {
    match change {
        Change::Delivered => 0,
        Change::Failed { .. } => 1,
        Change::Dead { .. } => 2,
        Change::Postponed { .. } => 3,
        Change::GivenBack => 4,
    }
}

/// How often something took how long.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Histogram {
    /// One for each of [`STEPS_MICROS`], and the last one for what took longer. Not cumulated.
    pub counts: [u64; STEPS_MICROS.len() + 1],
    /// Time in all, in microseconds.
    pub micros: u64,
}

impl Histogram {
    /// Counts one duration.
    pub fn note(&mut self, duration: Duration) {
        let micros = micros(duration);
        self.counts[step(micros)] += 1;
        self.micros += micros;
    }

    /// What this `part` of the durations, 0 to 1, did not exceed, in microseconds: as if those of a step were
    /// spread over it evenly. What took longer than the last step is told as its end. `None`: nothing was
    /// counted.
    pub fn quantile(&self, part: f64) -> Option<f64> {
        let wanted = self.count() as f64 * part;
        let mut below = 0.0;
        for (at, count) in self.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let count = *count as f64;
            if below + count >= wanted {
                let start = at.checked_sub(1).map_or(0, |before| STEPS_MICROS[before]) as f64;
                let end = STEPS_MICROS.get(at).map_or(start, |end| *end as f64);
                return Some(start + (end - start) * ((wanted - below) / count));
            }
            below += count;
        }
        None
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

impl AddAssign<&Histogram> for Histogram {
    fn add_assign(&mut self, other: &Histogram) {
        self.counts.iter_mut().zip(other.counts).for_each(|(count, more)| *count += more);
        self.micros += other.micros;
    }
}

/// The figures of one destination, or of several.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    /// Attempts, as in [`ATTEMPTS`].
    pub attempts: [u64; ATTEMPTS.len()],
    /// Attempts whose (first) delivery had been charged with one before.
    pub retries: u64,
    /// How long attempts took.
    pub durations: Histogram,
    /// Requests in flight.
    pub in_flight: u64,
    /// Destinations, by [`Standing`] of their breaker.
    pub standings: [u64; Standing::NAMES.len()],
}

impl AddAssign<&Figures> for Figures {
    fn add_assign(&mut self, other: &Figures) {
        self.attempts.iter_mut().zip(other.attempts).for_each(|(count, more)| *count += more);
        self.retries += other.retries;
        self.durations += &other.durations;
        self.in_flight += other.in_flight;
        self.standings.iter_mut().zip(other.standings).for_each(|(count, more)| *count += more);
    }
}

impl Figures {
    /// What stays when the destination is gone.
    fn of_the_past(mut self) -> Figures {
        (self.in_flight, self.standings) = (0, Default::default());
        self
    }
}

/// What one destination's actor writes.
#[derive(Debug, Default)]
struct Counters {
    attempts: [AtomicU64; ATTEMPTS.len()],
    retries: AtomicU64,
    counts: [AtomicU64; STEPS_MICROS.len() + 1],
    micros: AtomicU64,
    in_flight: AtomicU64,
    standing: AtomicU8,
}

impl Counters {
    fn read(&self) -> Figures {
        let read = |count: &AtomicU64| count.load(Relaxed);
        let mut figures = Figures {
            attempts: self.attempts.each_ref().map(read),
            retries: read(&self.retries),
            durations: Histogram { counts: self.counts.each_ref().map(read), micros: read(&self.micros) },
            in_flight: read(&self.in_flight),
            standings: Default::default(),
        };
        figures.standings[usize::from(self.standing.load(Relaxed))] = 1;
        figures
    }
}

/// All metrics of the process.
pub struct Metrics {
    /// Destinations that are listed by themselves at most.
    most_listed: usize,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    living: HashMap<DestinationId, Entry>,
    listed: usize,
    /// What those counted that are gone.
    gone: Figures,
    /// The part of it that is of destinations that were not listed.
    gone_unlisted: Figures,
}

struct Entry {
    org: OrgId,
    counters: Arc<Counters>,
    /// Decided when it begins and kept: a destination that moved between its own series and the sum of the
    /// rest would make a counter fall.
    listed: bool,
    /// Actors that write: two while one gives way to the next.
    lives: usize,
}

/// Everything at one moment.
#[derive(Debug, Default)]
pub struct Reading {
    /// Destinations by themselves, in the order of their ids.
    pub listed: Vec<(DestinationId, OrgId, Figures)>,
    /// Which destinations there are beyond those.
    pub unlisted: Vec<DestinationId>,
    /// The sum of those, living and gone.
    pub rest: Figures,
    /// The sum of all that there ever were.
    pub all: Figures,
}

impl Metrics {
    /// Without any destination yet; at most `most_listed` will be listed by themselves.
    pub fn new(most_listed: usize) -> Arc<Metrics> {
        Arc::new(Metrics { most_listed, inner: Mutex::default() })
    }

    /// The counters of a destination, for its actor.
    pub fn register(self: &Arc<Metrics>, id: DestinationId, org: OrgId) -> Counting {
        let mut inner = self.inner();
        let listed = inner.listed < self.most_listed;
        let entry = inner.living.entry(id);
        let mut is_new = false;
        let entry = entry.or_insert_with(|| {
            is_new = true;
            Entry { org, counters: Arc::default(), listed, lives: 0 }
        });
        entry.lives += 1;
        let counters = entry.counters.clone();
        inner.listed += usize::from(is_new && listed);
        drop(inner);
        Counting { metrics: self.clone(), id, counters }
    }

    /// Reads that of one destination; `None`: no actor sends to it.
    pub fn of(&self, id: DestinationId) -> Option<Figures> {
        self.inner().living.get(&id).map(|entry| entry.counters.read())
    }

    /// Reads all of them.
    pub fn read(&self) -> Reading {
        let inner = self.inner();
        let mut reading = Reading { rest: inner.gone_unlisted, all: inner.gone, ..Reading::default() };
        for (id, entry) in &inner.living {
            let figures = entry.counters.read();
            reading.all += &figures;
            if entry.listed {
                reading.listed.push((*id, entry.org, figures));
            } else {
                reading.unlisted.push(*id);
                reading.rest += &figures;
            }
        }
        drop(inner);
        reading.listed.sort_unstable_by_key(|(id, ..)| *id);
        reading
    }

    /// Nothing between lock and unlock can panic; if it did, the counts would still be counts.
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An actor's hold on its counters; dropping it ends that life of the destination.
pub struct Counting {
    metrics: Arc<Metrics>,
    id: DestinationId,
    counters: Arc<Counters>,
}

impl Counting {
    /// An attempt has ended.
    pub fn attempted(&self, verdict: Verdict, duration: Duration, is_retry: bool) {
        let micros = micros(duration);
        self.counters.attempts[attempt(verdict)].fetch_add(1, Relaxed);
        self.counters.counts[step(micros)].fetch_add(1, Relaxed);
        self.counters.micros.fetch_add(micros, Relaxed);
        if is_retry {
            self.counters.retries.fetch_add(1, Relaxed);
        }
    }

    /// How it stands now.
    pub fn show(&self, in_flight: usize, standing: Standing) {
        self.counters.in_flight.store(in_flight as u64, Relaxed);
        self.counters.standing.store(standing as u8, Relaxed);
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        let mut inner = self.metrics.inner();
        let Some(entry) = inner.living.get_mut(&self.id) else { return };
        entry.lives -= 1;
        if entry.lives > 0 {
            return;
        }
        let Some(entry) = inner.living.remove(&self.id) else { return };
        let figures = entry.counters.read().of_the_past();
        inner.gone += &figures;
        if entry.listed {
            inner.listed -= 1;
        } else {
            inner.gone_unlisted += &figures;
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn step(micros: u64) -> usize {
    STEPS_MICROS.partition_point(|end| *end < micros)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn each_verdict_and_change_has_its_label() {
        let later = Duration::ZERO;
        for (verdict, label) in [
            (Verdict::Delivered, "delivered"),
            (Verdict::EventFailed, "refused"),
            (Verdict::Split, "refused"),
            (Verdict::DestinationFailed, "failed"),
            (Verdict::Gone, "failed"),
            (Verdict::Paused(None), "paused"),
            (Verdict::OurFault, "our_fault"),
        ] {
            assert_eq!(ATTEMPTS[attempt(verdict)], label);
        }
        for (change, label) in [
            (Change::Delivered, "delivered"),
            (Change::Failed { delay: later }, "failed"),
            (Change::Dead { charged: true }, "dead"),
            (Change::Postponed { delay: later }, "postponed"),
            (Change::GivenBack, "given_back"),
        ] {
            assert_eq!(RESULTS[result(change)], label);
        }
    }

    fn id(n: u128) -> DestinationId {
        DestinationId(Uuid::from_u128(n))
    }

    const ORG: OrgId = OrgId(Uuid::nil());
    const SECOND: Duration = Duration::from_secs(1);

    /// Attempts in all, of each one listed, and of the rest.
    fn counts(metrics: &Metrics) -> (u64, Vec<u64>, u64) {
        let sum = |figures: &Figures| figures.attempts.iter().sum::<u64>();
        let reading = metrics.read();
        (sum(&reading.all), reading.listed.iter().map(|(.., f)| sum(f)).collect(), sum(&reading.rest))
    }

    #[test]
    fn no_sum_falls_when_destinations_go_and_none_moves_between_its_own_series_and_the_rest() {
        let metrics = Metrics::new(1);
        let first = metrics.register(id(1), ORG);
        let second = metrics.register(id(2), ORG);
        first.attempted(Verdict::Delivered, SECOND, false);
        for _ in 0..2 {
            second.attempted(Verdict::DestinationFailed, SECOND, true);
        }
        assert_eq!(counts(&metrics), (3, vec![1], 2));
        drop(first);
        assert_eq!(counts(&metrics), (3, vec![], 2), "the second one is not listed now either");
        let third = metrics.register(id(3), ORG);
        third.attempted(Verdict::Paused(None), SECOND, false);
        assert_eq!(counts(&metrics), (4, vec![1], 2));
        drop(second);
        assert_eq!(counts(&metrics), (4, vec![1], 2));
        assert!(metrics.read().unlisted.is_empty());
        assert_eq!(metrics.read().all.retries, 2);
    }

    #[test]
    fn two_lives_of_a_destination_share_counters_until_both_have_ended() {
        let metrics = Metrics::new(10);
        let old = metrics.register(id(1), ORG);
        let new = metrics.register(id(1), ORG);
        old.attempted(Verdict::Delivered, SECOND, false);
        new.attempted(Verdict::Delivered, SECOND, false);
        new.show(3, Standing::Tripped);
        assert_eq!(counts(&metrics), (2, vec![2], 0));
        drop(old);
        assert_eq!(counts(&metrics), (2, vec![2], 0));
        assert_eq!((metrics.read().all.in_flight, metrics.read().all.standings), (3, [0, 0, 1]));
        drop(new);
        assert_eq!(counts(&metrics), (2, vec![], 0));
        assert_eq!((metrics.read().all.in_flight, metrics.read().all.standings), (0, [0, 0, 0]));
    }

    #[test]
    fn a_duration_is_counted_in_the_first_step_that_it_does_not_exceed() {
        let mut histogram = Histogram::default();
        for micros in [0, 1_000, 1_001, 30_000_000, 30_000_001] {
            histogram.note(Duration::from_micros(micros));
        }
        assert_eq!((histogram.counts[0], histogram.counts[1]), (2, 1));
        assert_eq!((histogram.counts[12], histogram.counts[13]), (1, 1));
        assert_eq!((histogram.count(), histogram.micros), (5, 60_002_002));
    }

    #[test]
    fn a_quantile_lies_in_the_step_that_reaches_it() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), None);
        for _ in 0..98 {
            histogram.note(Duration::from_micros(3_000));
        }
        assert_eq!(histogram.quantile(0.5), Some(3_000.0), "half of the step from 1 to 5 ms");
        histogram.note(Duration::from_micros(700_000));
        histogram.note(Duration::from_secs(40));
        assert_eq!(histogram.quantile(0.99), Some(1_000_000.0), "the end of its step");
        assert_eq!(histogram.quantile(1.0), Some(30_000_000.0), "the end of the last step");
    }

    #[test]
    fn standings_are_numbered_as_they_are_named() {
        assert!(Standing::NAMES.iter().enumerate().all(|(number, (s, _))| *s as usize == number));
    }
}
