//! What must hold, whatever happens.

use std::collections::HashMap;
use std::time::Duration;

use posthaste::dispatch::{Effect, MAX_LONE_REFUSALS, Machine, Rules};
use posthaste::model::{Answer, Attempt, Change, Delivery, Outcome};
use posthaste::store::deliveries::LEASE;

use crate::database::{Database, Status, index};
use crate::draw::{MINUTE, POLL, SECOND, Scenario, Time};
use crate::receiver::Receiver;
use crate::world::{Verdict, Who};

const LEASED: Time = LEASE.as_micros() as Time;
/// Deliveries that one destination may hold ready, besides a batch.
const MOST_READY: usize = 1_600;

/// A request that has just ended, until its machine has come to rest.
struct Ended {
    who: Who,
    rows: Vec<usize>,
    status: u16,
    has_retry_after: bool,
}

/// What a machine did in a minute.
#[derive(Default)]
struct Minute {
    began: Time,
    sent: usize,
    claims: usize,
    claimed: usize,
    given_back: usize,
}

#[derive(Default)]
struct Doing {
    in_flight: usize,
    /// When the bucket of its rate limit is full again.
    full_at: Time,
    minute: Minute,
}

/// What is known of a row that the database does not say.
#[derive(Clone, Default)]
struct Seen {
    /// In flight.
    flies: Option<Who>,
    /// Decided by a process, though perhaps not written.
    settled: Option<usize>,
    first_sent: Option<Time>,
    /// The smallest batch with it that was refused, since it had a result.
    refused: Option<(Who, u64, usize)>,
    /// The first refusal of the bisection that it is in.
    bisected: Option<u64>,
    /// Its transaction was open for a while.
    late: bool,
}

#[derive(Default)]
pub struct Holds {
    rows: Vec<Seen>,
    doing: HashMap<Who, Doing>,
    ended: Option<Ended>,
    refusals: u64,
    /// By bisection: refusals of events alone.
    refused_alone: HashMap<u64, u32>,
    accepted: Vec<Option<Time>>,
    changed: Vec<bool>,
    /// An outage kills nothing.
    spared: Vec<bool>,
    of: Vec<usize>,
}

impl Holds {
    pub fn new(scenario: &Scenario) -> Holds {
        let count = scenario.destinations.len();
        let mut rows: Vec<_> = scenario.rows.iter().collect();
        rows.sort_by_key(|row| row.inserted);
        let seen = |late: bool| Seen { late, ..Seen::default() };
        let mut of = vec![0; count];
        rows.iter().for_each(|row| of[row.destination] += 1);
        Holds {
            rows: rows.iter().map(|row| seen(row.committed != row.inserted)).collect(),
            accepted: vec![None; count],
            changed: vec![false; count],
            spared: scenario
                .destinations
                .iter()
                .map(|(rules, _)| rules.retry.max > 0 && !rules.outage_grace.is_zero())
                .collect(),
            of,
            ..Holds::default()
        }
    }

    pub fn inserted(&mut self, db: &Database, row: usize) {
        self.rows.resize(db.rows.len(), Seen::default());
        self.of[db.rows[row].destination] += 1;
    }

    pub fn began(&mut self, who: Who, now: Time) {
        let minute = Minute { began: now, ..Minute::default() };
        self.doing.insert(who, Doing { minute, ..Doing::default() });
    }

    pub fn changed(&mut self, of: usize) {
        self.changed[of] = true;
        self.doing.iter_mut().filter(|(who, _)| who.of == of).for_each(|(_, doing)| doing.full_at = 0);
    }

    pub fn crashed(&mut self, process: usize, db: &Database) {
        for (seen, row) in self.rows.iter_mut().zip(&db.rows) {
            if seen.flies.is_some_and(|who| who.process == process) {
                seen.flies = None;
            }
            if seen.settled == Some(process) && row.status == Status::Open {
                seen.settled = None;
            }
        }
    }

    /// A request starts.
    pub fn sent(&mut self, who: Who, sent: &[Delivery], rules: &Rules, db: &Database, now: Time) -> Verdict {
        let rows: Vec<usize> = sent.iter().map(|delivery| index(delivery.id)).collect();
        let timeout = rules.timeout.as_micros() as Time;
        for delivery in sent {
            let n = index(delivery.id);
            let (row, seen) = (&db.rows[n], &mut self.rows[n]);
            let claimed = delivery.claimed_at.0;
            // Its success was written under a lease that had ended meanwhile.
            let told_late = row.status == Status::Delivered && seen.settled != Some(who.process);
            if told_late {
                seen.flies = Some(who);
                continue;
            }
            if row.status != Status::Open || row.last != Some(claimed) || !row.is_leased(now) {
                return Err(format!("{who:?} sends {n} without its lease: {row:?}"));
            }
            if now + timeout > claimed + LEASED {
                return Err(format!("{who:?} sends {n}, which may outlast its lease: {row:?}"));
            }
            if let Some(other) = seen.flies.replace(who) {
                return Err(format!("{n} is sent by {who:?} while {other:?} sends it"));
            }
            seen.first_sent.get_or_insert(now);
        }
        if !self.changed[who.of] {
            let bytes: usize = rows.iter().map(|row| db.rows[*row].bytes + 1).sum();
            let fits = rows.len() <= rules.batch.events && (rows.len() == 1 || bytes < rules.batch.bytes);
            if !fits {
                return Err(format!("{who:?} sends {} events of {bytes} bytes", rows.len()));
            }
        }
        if let [first, rest @ ..] = &rows[..]
            && let Some((by, id, size)) = self.rows[*first].refused
            && by == who
            && size == rows.len()
            && rest.iter().all(|row| self.rows[*row].refused == Some((by, id, size)))
        {
            return Err(format!("{who:?} sends a batch of {size} that was refused"));
        }
        if rules.ordered {
            self.in_order(who, &rows, db, now)?;
        }
        self.within_limits(who, rules, now)
    }

    fn in_order(&self, who: Who, rows: &[usize], db: &Database, now: Time) -> Verdict {
        let flying = |(n, seen): (usize, &Seen)| {
            // What was delivered, and is sent again as that was told late, is behind nothing any more.
            let row = &db.rows[n];
            let other = row.destination == who.of && row.status == Status::Open && seen.flies.is_some();
            (other && !rows.contains(&n)).then_some(n)
        };
        if let Some(other) = self.rows.iter().enumerate().find_map(flying) {
            return Err(format!("ordered: {rows:?} are sent beside {other}"));
        }
        let last = rows.iter().max().copied().unwrap_or(0);
        let passed = db.open(who.of, now).take_while(|(n, _)| *n < last).find(|(n, row)| {
            let seen = &self.rows[*n];
            // Earlier, as rows are numbered in the order of insertion.
            row.created < db.rows[last].created && !rows.contains(n) && seen.settled.is_none() && !seen.late
        });
        match passed {
            Some((n, row)) => Err(format!("ordered: {rows:?} are sent before {n}: {row:?}")),
            None => Ok(()),
        }
    }

    fn within_limits(&mut self, who: Who, rules: &Rules, now: Time) -> Verdict {
        let doing = self.doing.entry(who).or_default();
        doing.in_flight += 1;
        doing.minute.sent += 1;
        if doing.in_flight > rules.max_in_flight as usize && !self.changed[who.of] {
            return Err(format!("{who:?} has {} in flight", doing.in_flight));
        }
        if let Some(rate) = rules.rate_per_second {
            let period = (SECOND as f64 / rate) as Time;
            let burst = rules.rate_burst.unwrap_or((rate * 0.1) as u32).max(1);
            let full_at = doing.full_at.max(now) + period;
            if full_at - now > period * Time::from(burst) + 10 {
                return Err(format!("{who:?} is faster than {rate}/s with a burst of {burst}"));
            }
            doing.full_at = full_at;
        }
        Ok(())
    }

    /// A request has ended; its machine is told next.
    pub fn answered(&mut self, who: Who, rows: &[usize], attempt: &Attempt, now: Time) {
        if let Some(doing) = self.doing.get_mut(&who) {
            doing.in_flight -= 1;
        }
        rows.iter().for_each(|row| self.rows[*row].flies = None);
        let (status, has_retry_after) = match &attempt.answer {
            Answer::Response { status, retry_after, .. } => (*status, retry_after.is_some()),
            _ => (0, false),
        };
        if status == 200 {
            self.accepted[who.of] = Some(now);
        }
        if rows.len() > 1 && matches!(status, 400 | 413 | 422) {
            self.refusals += 1;
            for row in rows {
                let seen = &mut self.rows[*row];
                seen.refused = Some((who, self.refusals, rows.len()));
                seen.bisected.get_or_insert(self.refusals);
            }
        } else if let [row] = rows
            && let Some(bisection) = self.rows[*row].bisected
            && matches!(status, 400 | 405 | 409 | 413 | 422)
        {
            *self.refused_alone.entry(bisection).or_default() += 1;
        }
        self.ended = Some(Ended { who, rows: rows.to_vec(), status, has_retry_after });
    }

    /// A machine has decided something.
    pub fn decided(&mut self, who: Who, effect: &Effect, rules: &Rules, db: &Database, now: Time) -> Verdict {
        match effect {
            Effect::Record(outcomes) => {
                outcomes.iter().try_for_each(|outcome| self.result(who, outcome, rules, db, now))
            }
            Effect::Claim(_) => {
                self.doing.entry(who).or_default().minute.claims += 1;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn result(&mut self, who: Who, outcome: &Outcome, rules: &Rules, db: &Database, now: Time) -> Verdict {
        let n = index(outcome.delivery);
        match outcome.change {
            Change::Delivered => {
                let is_so = self.ended.as_ref().is_some_and(|e| e.status == 200 && e.rows.contains(&n));
                if !is_so {
                    return Err(format!("{n} was not delivered"));
                }
                self.rows[n].settled = Some(who.process);
            }
            Change::Failed { delay } => {
                self.charged(who, n, now, false)?;
                retries(n, outcome, rules, delay)?;
            }
            Change::Dead { charged: true } => {
                self.charged(who, n, now, true)?;
                let status = outcome.response_status.unwrap_or(0);
                let before = outcome.failed.map_or(0, |failed| failed.number - 1);
                if before < rules.retry.max && status != 410 {
                    return Err(format!(
                        "{n} died of {status} after {before} retries of {}",
                        rules.retry.max
                    ));
                }
            }
            Change::Dead { charged: false } => {
                let age = now - db.rows[n].created;
                if rules.max_age.is_none_or(|most| age <= most.as_micros() as Time) {
                    return Err(format!("{n} died unsent after {} s", age / SECOND));
                }
                self.rows[n].settled = Some(who.process);
            }
            Change::GivenBack => self.doing.entry(who).or_default().minute.given_back += 1,
            Change::Postponed { .. } => {
                if matches!(outcome.response_status, Some(200 | 400 | 405 | 409 | 413 | 422 | 410)) {
                    return Err(format!("{n} was postponed after {:?}", outcome.response_status));
                }
            }
        }
        let seen = &mut self.rows[n];
        seen.bisected = None;
        if outcome.change != Change::GivenBack {
            seen.refused = None;
        }
        Ok(())
    }

    /// A failure is charged to this row.
    fn charged(&mut self, who: Who, n: usize, now: Time, dead: bool) -> Verdict {
        let Some(ended) = self.ended.as_ref().filter(|ended| ended.who == who) else {
            return Err(format!("{n} is charged, and no request has ended"));
        };
        let (status, events) = (ended.status, ended.rows.len());
        let fault = |why: &str| Err(format!("{n} is charged for {status} to {events} events: {why}"));
        let seen = &mut self.rows[n];
        if !ended.rows.contains(&n) {
            let refused = seen.bisected.and_then(|bisection| self.refused_alone.get(&bisection));
            if refused.is_none_or(|refused| *refused < MAX_LONE_REFUSALS) {
                return fault("it was not sent");
            }
        } else if status != 410
            && events > 1
            && (seen.bisected.is_some() || matches!(status, 400 | 413 | 422))
        {
            return fault("only an event alone is, in a bisection");
        }
        if matches!(status, 200 | 429) || status == 503 && ended.has_retry_after {
            return fault("that is no failure");
        }
        let by_destination = matches!(status, 0 | 301 | 401 | 404 | 500 | 502 | 503);
        if dead {
            seen.settled = Some(who.process);
            let first = seen.first_sent.unwrap_or(now);
            let some_got_through = self.accepted[who.of].is_some_and(|accepted| accepted >= first);
            // The two settings that switch sparing off may have changed.
            if by_destination && !some_got_through && self.spares(who.of) {
                return fault("an outage has killed it");
            }
        }
        Ok(())
    }

    fn spares(&self, of: usize) -> bool {
        self.spared[of] && !self.changed[of]
    }

    /// A claim has brought something, or nothing.
    pub fn claimed(&mut self, who: Who, rows: &[usize], now: Time) -> Verdict {
        // Whoever had refused parts of it has lost them.
        for row in rows {
            let seen = &mut self.rows[*row];
            if seen.bisected.take().is_some() {
                seen.refused = None;
            }
        }
        let total = self.of[who.of];
        let doing = self.doing.entry(who).or_default();
        doing.minute.claimed += rows.len();
        let minute = &doing.minute;
        if now - minute.began < MINUTE {
            return Ok(());
        }
        let Minute { sent, claims, claimed, given_back, .. } = *minute;
        if claims > 300 + 8 * (claimed + sent) + 3 * total || given_back > 2_000 + 300 * sent {
            return Err(format!(
                "{who:?} is busy with nothing: in {} s {claims} claims of {claimed} rows, of which \
                 {given_back} were given back, and {sent} requests",
                (now - minute.began) / SECOND
            ));
        }
        doing.minute = Minute { began: now, ..Minute::default() };
        Ok(())
    }

    /// A machine has come to rest.
    pub fn rests(&mut self, who: Who, machine: &Machine<()>, rules: &Rules, _: Time) -> Verdict {
        self.ended = None;
        let most = MOST_READY + 2 * rules.batch.events;
        match machine.ready() > most {
            true => Err(format!("{who:?} holds {} deliveries", machine.ready())),
            false => Ok(()),
        }
    }

    /// How long everything may take once all is well.
    pub fn bound(&self, scenario: &Scenario, db: &Database, now: Time) -> Time {
        let mut bound = db.longest_wait(now) + 10 * MINUTE;
        for (of, (rules, receiver)) in scenario.destinations.iter().enumerate() {
            let open =
                db.rows.iter().filter(|row| row.destination == of && row.status == Status::Open).count();
            let doubled = |n: u32| rules.retry.backoff.as_micros() as f64 * 2f64.powi(n as i32) * 1.2;
            let longest = rules.max_retry_delay.as_micros() as f64;
            let retries: f64 = (0..rules.retry.max).map(|n| doubled(n).min(longest)).sum();
            let rounds = Time::from(rules.retry.max) + 1;
            let period = rules.rate_per_second.map_or(0, |rate| (SECOND as f64 / rate) as Time);
            let request = receiver.slowest + period + 4 * scenario.database_takes.1 + scenario.lost_time();
            // A bisection makes at most twice as many requests as it has events.
            let requests = 2 * open as Time * rounds * request;
            let waits =
                rounds * (rules.batch.wait.as_micros() as Time + POLL + LEASED + scenario.lost_time());
            // Each holds back what is behind it.
            let rows = if rules.ordered { open as Time } else { 1 };
            bound += rows * (retries as Time + waits) + requests;
        }
        bound
    }

    /// How long a new event may take where nothing else waits.
    pub fn prompt_bound(&self, rules: &Rules, receiver: &Receiver, scenario: &Scenario) -> Time {
        let wait = if rules.batch.events > 1 { rules.batch.wait.as_micros() as Time } else { 0 };
        let period = rules.rate_per_second.map_or(0, |rate| (SECOND as f64 / rate) as Time);
        let statements = 8 * scenario.database_takes.1 + 4 * scenario.lost_time();
        wait + wait / 8 + period + receiver.slowest + statements + 2 * POLL
    }
}

/// A retry comes when the policy says.
fn retries(n: usize, outcome: &Outcome, rules: &Rules, delay: Duration) -> Verdict {
    let nth = outcome.failed.map_or(0, |failed| failed.number);
    let doubled = rules.retry.backoff.as_secs_f64() * 2f64.powi(nth.saturating_sub(1) as i32);
    let most = rules.max_retry_delay.as_secs_f64();
    let fits = (doubled * 0.79).min(most)..=(doubled * 1.21).min(most);
    match nth <= rules.retry.max && fits.contains(&delay.as_secs_f64()) {
        true => Ok(()),
        false => Err(format!("{n}: retry {nth} of {:?} waits for {delay:?}", rules.retry)),
    }
}

impl Scenario {
    /// What an answer that is lost costs: its leases end first.
    fn lost_time(&self) -> Time {
        if self.answers_lost > 0.0 { LEASED + 5 * SECOND } else { 0 }
    }
}
