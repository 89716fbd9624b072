//! The deliveries as PostgreSQL would hold them, and the statements of a dispatcher as it would run them.

use std::sync::Arc;
use std::time::Duration;

use posthaste::dispatch::{Claim, RenewReply};
use posthaste::model::{Change, DbTime, Delivery, DeliveryId, DestinationId, Event, EventId, OrgId, Outcome};
use posthaste::policy::health::Saved;
use posthaste::store::deliveries::LEASE;
use uuid::Uuid;

use crate::draw::{SECOND, Scenario, Time};

/// How far an ordered claim looks for leases when it has no reason to look further.
const LOOKAHEAD: usize = 1_000;
/// Rows that a claim statement takes at most.
const MOST_ROWS: usize = 500;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    Open,
    Delivered,
    Dead,
}

#[derive(Clone, Debug)]
pub struct Row {
    pub destination: usize,
    pub created: Time,
    pub committed: Time,
    pub status: Status,
    pub attempts: u32,
    pub next: Option<Time>,
    pub last: Option<Time>,
    /// What `last` was before the claim.
    previous: Option<Time>,
    pub first_attempt: Option<Time>,
    pub bad: bool,
    pub bytes: usize,
}

impl Row {
    pub fn is_open(&self, now: Time) -> bool {
        self.status == Status::Open && self.committed <= now
    }

    fn is_due(&self, now: Time) -> bool {
        self.next.is_none_or(|next| next <= now)
    }

    pub fn is_leased(&self, now: Time) -> bool {
        self.last.is_some_and(|last| {
            last > now - LEASE.as_micros() as Time && self.next.is_none_or(|next| last >= next)
        })
    }
}

/// What a claim found.
pub struct Found {
    pub rows: Vec<usize>,
    pub more: bool,
    pub next_due: Option<Time>,
    pub reached: Option<Time>,
}

pub struct Database {
    pub rows: Vec<Row>,
    /// By destination, in the order of insertion.
    of: Vec<Vec<usize>>,
    pub states: Vec<Saved>,
    pub enabled: Vec<bool>,
    event: Arc<Event>,
}

impl Database {
    pub fn new(scenario: &Scenario) -> Database {
        let mut rows: Vec<Row> = scenario
            .rows
            .iter()
            .map(|new| Row {
                destination: new.destination,
                created: new.inserted,
                committed: new.committed,
                status: Status::Open,
                attempts: 0,
                next: (!new.without_due_time).then_some(new.inserted),
                last: None,
                previous: None,
                first_attempt: None,
                bad: new.bad,
                bytes: new.bytes,
            })
            .collect();
        rows.sort_by_key(|row| row.created);
        let count = scenario.destinations.len();
        let mut of = vec![Vec::new(); count];
        for (n, row) in rows.iter_mut().enumerate() {
            // As the ordinal within a statement does: no two are alike.
            row.created = row.created * 1_000 + (n as Time % 1_000);
            row.created /= 1_000;
            of[row.destination].push(n);
        }
        let event = Event {
            id: EventId(Uuid::nil()),
            org: OrgId(Uuid::nil()),
            employee_id: None,
            session_id: None,
            client_name: None,
            client_version: None,
            event_type: "test".into(),
            event_category: "test".into(),
            content: None,
            payload: "{}".into(),
            created_at: String::new(),
        };
        let states = vec![Saved::default(); count];
        Database { rows, of, states, enabled: vec![true; count], event: Arc::new(event) }
    }

    /// One more event, committed now.
    pub fn insert(&mut self, destination: usize, now: Time) -> usize {
        let row = Row {
            destination,
            created: now,
            committed: now,
            status: Status::Open,
            attempts: 0,
            next: Some(now),
            last: None,
            previous: None,
            first_attempt: None,
            bad: false,
            bytes: 100,
        };
        self.rows.push(row);
        self.of[destination].push(self.rows.len() - 1);
        self.rows.len() - 1
    }

    pub fn open<'a>(&'a self, of: usize, now: Time) -> impl Iterator<Item = (usize, &'a Row)> + 'a {
        let rows = self.of[of].iter().map(|n| (*n, &self.rows[*n]));
        rows.filter(move |(_, row)| row.is_open(now))
    }

    /// Forgets what is done, so that nobody looks at it again.
    pub fn vacuum(&mut self) {
        for rows in &mut self.of {
            rows.retain(|n| self.rows[*n].status == Status::Open);
        }
    }

    /// As a poll looks.
    pub fn may_be_due(&self, of: usize, now: Time) -> bool {
        self.open(of, now).any(|(_, row)| row.is_due(now))
    }

    pub fn claim(&mut self, of: usize, claim: &Claim, now: Time) -> Found {
        let most = (claim.want as usize).min(MOST_ROWS);
        let mut found = match claim.ordered {
            Some(_) => self.ordered(of, claim, most, now),
            None => self.unordered(of, claim, most, now),
        };
        found.more = found.rows.len() >= most;
        for row in &found.rows {
            let row = &mut self.rows[*row];
            row.previous = row.last.replace(now);
        }
        found
    }

    fn unordered(&self, of: usize, claim: &Claim, most: usize, now: Time) -> Found {
        let since = claim.since.map_or(Time::MIN, |since| since.0);
        let free = |row: &Row| !row.is_leased(now) && row.next.is_none_or(|next| next >= since);
        let mut due: Vec<usize> =
            self.open(of, now).filter(|(_, row)| row.is_due(now) && free(row)).map(|(n, _)| n).collect();
        due.sort_by_key(|n| self.rows[*n].next.unwrap_or(Time::MAX));
        let (take, filled) = self.filled(claim, most, &due, now);
        let later = self.open(of, now).filter_map(|(_, row)| row.next.filter(|next| *next > now)).min();
        due.truncate(take);
        let reached = due.iter().filter_map(|n| self.rows[*n].next).max();
        Found { rows: due, more: false, next_due: later.into_iter().chain(filled).min(), reached }
    }

    fn ordered(&self, of: usize, claim: &Claim, most: usize, now: Time) -> Found {
        let nothing = Found { rows: Vec::new(), more: false, next_due: None, reached: None };
        if self.open(of, now).take(LOOKAHEAD).any(|(_, row)| row.is_leased(now)) {
            return nothing;
        }
        let head: Vec<usize> =
            self.open(of, now).take_while(|(_, row)| row.is_due(now)).map(|(n, _)| n).collect();
        let (take, filled) = self.filled(claim, most, &head, now);
        let later = match head.len() < take.max(1) {
            true => self.open(of, now).nth(head.len()).and_then(|(_, row)| row.next),
            false => None,
        };
        let rows: Vec<usize> = head.into_iter().take(take).collect();
        Found { rows, next_due: later.into_iter().chain(filled).min(), ..nothing }
    }

    /// How many of those that are `due` a claim takes, and when a batch that is not full has waited.
    fn filled(&self, claim: &Claim, most: usize, due: &[usize], now: Time) -> (usize, Option<Time>) {
        let Some(fill) = claim.fill else { return (most, None) };
        let full = fill.events as usize;
        let first = due.iter().map(|n| self.rows[*n].next.unwrap_or(self.rows[*n].created)).min();
        match first.map(|first| first + fill.wait.as_micros() as Time) {
            _ if due.len() >= full => (most.min(due.len() / full * full), None),
            Some(end) if end <= now => (most, None),
            end => (0, end),
        }
    }

    pub fn delivery(&self, n: usize) -> Delivery {
        let row = &self.rows[n];
        Delivery {
            id: DeliveryId(Uuid::from_u128(n as u128)),
            destination: DestinationId(Uuid::from_u128(row.destination as u128)),
            attempts: row.attempts,
            claimed_at: time(row.last.unwrap_or(0)),
            previous_attempt_at: row.previous.map(time),
            created_at: time(row.created),
            first_attempt_at: row.first_attempt.map(time),
            event: self.event.clone(),
        }
    }

    pub fn record(&mut self, outcomes: &[Outcome], now: Time) {
        for outcome in outcomes {
            let row = &mut self.rows[index(outcome.delivery)];
            if outcome.change == Change::Delivered {
                row.attempts += u32::from(row.status != Status::Delivered);
                row.status = Status::Delivered;
                continue;
            }
            let claimed = outcome.claimed_at.0;
            let ours = row.status == Status::Open
                && row.last == Some(claimed)
                && row.next.is_none_or(|next| claimed >= next);
            if !ours {
                continue;
            }
            let started = outcome.last_attempt_at.map(|at| at.0);
            let due = |delay: Duration| Some(now.max(started.unwrap_or(now) + 1) + delay.as_micros() as Time);
            if outcome.failed.is_some() {
                row.first_attempt = row.first_attempt.or(started);
            }
            row.last = started;
            match outcome.change {
                Change::Failed { delay } => (row.attempts, row.next) = (row.attempts + 1, due(delay)),
                Change::Postponed { delay } => row.next = due(delay),
                Change::Dead { charged } => {
                    row.status = Status::Dead;
                    row.attempts += u32::from(charged);
                }
                Change::Delivered | Change::GivenBack => {}
            }
        }
    }

    pub fn renew(
        &mut self,
        leases: &[(DeliveryId, DbTime)],
        mut somebody_has_locked: impl FnMut(DeliveryId) -> bool,
        now: Time,
    ) -> RenewReply {
        let mut reply = RenewReply::default();
        for (id, claimed) in leases {
            let row = &mut self.rows[index(*id)];
            if somebody_has_locked(*id) {
                reply.locked.push(*id);
            } else if row.status == Status::Open && row.last == Some(claimed.0) && row.is_leased(now) {
                let at = now.max(claimed.0);
                row.last = Some(at);
                reply.renewed.push((*id, time(at)));
            }
        }
        reply
    }

    /// The longest time until something falls due.
    pub fn longest_wait(&self, now: Time) -> Time {
        let open = self.rows.iter().filter(|row| row.status == Status::Open);
        open.filter_map(|row| row.next).max().map_or(0, |next| (next - now).max(0)) + SECOND
    }
}

pub fn index(delivery: DeliveryId) -> usize {
    delivery.0.as_u128() as usize
}

pub fn time(time: Time) -> DbTime {
    DbTime(time)
}
