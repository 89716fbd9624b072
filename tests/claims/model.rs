//! The claim protocol in memory: what PostgreSQL must hold after each step, and what a claim may give.

use uuid::Uuid;

use crate::ops::{DESTINATIONS, Kind, PROCESSES, Reset, Result as Recorded};

/// How long a lease lasts, in seconds.
const LEASE: i64 = 45;

/// What went against the model.
pub type Verdict<T = ()> = Result<T, String>;

/// A moment of the model: seconds that pass only when a step says so, and a count that orders what happens
/// within one of them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Moment {
    pub seconds: i64,
    pub count: u64,
}

impl Moment {
    fn later(self, seconds: i64) -> Moment {
        Moment { seconds: self.seconds + seconds, ..self }
    }

    /// The next moment: a microsecond later.
    fn next(self) -> Moment {
        Moment { count: self.count + 1, ..self }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    Pending,
    Failed,
    Delivered,
    Dead,
}

/// A delivery.
#[derive(Clone, Debug)]
pub struct Row {
    pub id: Uuid,
    pub destination: usize,
    pub created: Moment,
    pub status: Status,
    pub attempts: i32,
    pub last: Option<Moment>,
    pub next: Option<Moment>,
    /// When the failed attempts that are kept started.
    pub history: Vec<Moment>,
}

impl Row {
    fn is_open(&self) -> bool {
        matches!(self.status, Status::Pending | Status::Failed)
    }

    fn is_due(&self, now: Moment) -> bool {
        self.next.is_none_or(|next| next <= now)
    }

    /// The lease as the row has it, for somebody to whom leases from before `floor` are void.
    pub fn is_leased(&self, now: Moment, floor: Option<Moment>) -> bool {
        self.last.is_some_and(|last| {
            last > now.later(-LEASE)
                && floor.is_none_or(|floor| last > floor)
                && self.next.is_none_or(|next| last >= next)
        })
    }

    pub fn first_attempt(&self) -> Option<Moment> {
        let since_queued = self.history.iter().filter(|started| **started >= self.created);
        self.last.and(since_queued.min().copied())
    }
}

/// What a process was given, as it knows it itself.
#[derive(Clone, Debug)]
pub struct Lease {
    pub row: usize,
    /// Which life of which process.
    process: u64,
    pub claimed: Moment,
    previous: Option<Moment>,
    /// It does nothing with it any more, or somebody was allowed to take it away.
    ended: bool,
}

#[derive(Clone, Debug, Default)]
pub struct Destination {
    pub disabled: bool,
    pub ordered: bool,
    /// The reason for which the dispatcher disabled it is kept.
    pub reason: bool,
}

#[derive(Clone, Copy, Debug)]
struct Process {
    life: u64,
    announced: Moment,
    alone: bool,
}

/// What one process asked of one destination, and what it got.
#[derive(Clone, Debug)]
pub struct Given {
    pub process: usize,
    pub want: usize,
    pub one_byte: bool,
    pub rows: Vec<usize>,
    pub more: bool,
}

#[derive(Debug, Default)]
pub struct Model {
    seconds: i64,
    count: u64,
    pub rows: Vec<Row>,
    pub leases: Vec<Lease>,
    pub destinations: [Destination; DESTINATIONS],
    processes: [Option<Process>; PROCESSES],
    lives: u64,
}

impl Model {
    /// The present, later than everything before.
    pub fn now(&mut self) -> Moment {
        self.count += 100;
        Moment { seconds: self.seconds, count: self.count }
    }

    pub fn pass(&mut self, seconds: i64) {
        self.seconds += seconds;
    }

    /// A delivery that the fan-out made, the `ordinal`-th of its statement.
    pub fn queue(&mut self, id: Uuid, destination: usize, due: Moment, ordinal: u64) {
        let created = Moment { count: due.count - 50 + ordinal, ..due };
        let (last, next) = (None, Some(due));
        let (status, attempts, history) = (Status::Pending, 0, Vec::new());
        self.rows.push(Row { id, destination, created, status, attempts, last, next, history });
    }

    pub fn start(&mut self, process: usize) {
        let announced = self.now();
        self.lives += 1;
        self.processes[process] = Some(Process { life: self.lives, announced, alone: false });
    }

    pub fn crash(&mut self, process: usize) {
        self.processes[process] = None;
    }

    /// Whether it still asks if it is alone, and so may learn that older leases are void.
    pub fn asks_whether_alone(&self, process: usize) -> bool {
        let process = self.processes[process].unwrap();
        !process.alone && self.seconds < process.announced.seconds + LEASE
    }

    pub fn learn_whether_alone(&mut self, process: usize) -> bool {
        let alone = self.processes.iter().flatten().count() == 1;
        self.processes[process].as_mut().unwrap().alone = alone;
        alone
    }

    pub fn is_alone(&self, process: usize) -> bool {
        self.floor(process).is_some()
    }

    fn floor(&self, process: usize) -> Option<Moment> {
        self.processes[process].filter(|process| process.alone).map(|process| process.announced)
    }

    fn in_order(&self, of: usize) -> Vec<usize> {
        let mut queue: Vec<usize> = (0..self.rows.len())
            .filter(|i| self.rows[*i].destination == of && self.rows[*i].is_open())
            .collect();
        queue.sort_by_key(|i| (self.rows[*i].created, self.rows[*i].id));
        queue
    }

    /// Checks what processes got that asked for one destination at the same time, and takes it over.
    /// `locked` is a row of which somebody held the lock.
    pub fn granted(&mut self, of: usize, given: &[Given], locked: Option<usize>, now: Moment) -> Verdict {
        if self.destinations[of].ordered {
            self.check_ordered(of, given, locked, now)?;
        } else {
            given.iter().try_for_each(|one| self.check_unordered(of, one, given, locked, now))?;
        }
        for one in given {
            for row in &one.rows {
                self.lease(one.process, *row, now)?;
            }
        }
        Ok(())
    }

    fn check_unordered(
        &self,
        of: usize,
        one: &Given,
        all: &[Given],
        locked: Option<usize>,
        now: Moment,
    ) -> Verdict {
        let floor = self.floor(one.process);
        let free: Vec<usize> = (0..self.rows.len())
            .filter(|i| {
                let row = &self.rows[*i];
                row.destination == of && row.is_open() && row.is_due(now) && !row.is_leased(now, floor)
            })
            .filter(|i| Some(*i) != locked)
            .collect();
        if let Some(wrong) = one.rows.iter().find(|row| !free.contains(row)) {
            return Err(format!("{wrong} was not free for {one:?}: {:?}", self.rows[*wrong]));
        }
        let left: Vec<usize> =
            free.into_iter().filter(|i| !all.iter().any(|other| other.rows.contains(i))).collect();
        if !left.is_empty() && !one.more {
            return Err(format!("{left:?} are left, and {one:?} was not told"));
        }
        // Those with a due time and those without are looked for separately.
        let next = |row: &usize| self.rows[*row].next;
        let (due, undated): (Vec<usize>, Vec<usize>) = one.rows.iter().partition(|row| next(row).is_some());
        let (left_due, left_undated): (Vec<usize>, Vec<usize>) =
            left.iter().partition(|row| next(row).is_some());
        if let Some(passed) = left_due.iter().find(|left| due.iter().any(|due| next(due) > next(left))) {
            return Err(format!("{passed} was passed over by {one:?}"));
        }
        let enough = match one.one_byte {
            true => {
                let few = due.len() <= 1 && undated.len() <= 1 && !one.rows.is_empty();
                few && (due.len() == 1 || left_due.is_empty())
            }
            false => {
                (due.len() == one.want || due.len() < one.want && left_due.is_empty())
                    && (undated.len() == one.want || undated.len() < one.want && left_undated.is_empty())
            }
        };
        match enough || (one.rows.is_empty() && left.is_empty()) {
            true => Ok(()),
            false => Err(format!("{one:?} is not what it could have been: {left:?} are left")),
        }
    }

    fn check_ordered(&self, of: usize, given: &[Given], locked: Option<usize>, now: Moment) -> Verdict {
        let queue = self.in_order(of);
        let head = |one: &Given| -> Vec<usize> {
            let floor = self.floor(one.process);
            if queue.iter().any(|row| self.rows[*row].is_leased(now, floor)) {
                return Vec::new();
            }
            let most = if one.one_byte { 1 } else { one.want };
            let due = |row: &&usize| self.rows[**row].is_due(now) && Some(**row) != locked;
            queue.iter().take(most).take_while(due).copied().collect()
        };
        let lucky: Vec<&Given> = given.iter().filter(|one| !one.rows.is_empty()).collect();
        if lucky.len() > 1 || lucky.iter().any(|one| one.rows != head(one)) {
            return Err(format!("ordered: {lucky:?} of {queue:?}"));
        }
        // Who looks while another one does gets nothing, even if the other one gets nothing either.
        if lucky.is_empty() && given.iter().all(|one| !head(one).is_empty()) {
            return Err(format!("ordered: nobody got the head of {queue:?}"));
        }
        Ok(())
    }

    fn lease(&mut self, process: usize, row: usize, now: Moment) -> Verdict {
        let lives = |life: u64| self.processes.iter().flatten().any(|process| process.life == life);
        let ordered = self.destinations[self.rows[row].destination].ordered;
        // Whatever the row says: nobody who still acts on a lease may lose it.
        let holder = self.leases.iter().find(|lease| {
            let mine = lease.claimed == now;
            let place = lease.row == row
                || ordered && !mine && self.rows[lease.row].destination == self.rows[row].destination;
            place && !lease.ended && lives(lease.process) && now.seconds - lease.claimed.seconds < LEASE
        });
        if let Some(holder) = holder {
            return Err(format!("leased to two: {row}, which is held by {holder:?}"));
        }
        let life = self.processes[process].unwrap().life;
        let previous = self.rows[row].last.replace(now);
        self.leases.push(Lease { row, process: life, claimed: now, previous, ended: false });
        Ok(())
    }

    /// Takes over results, of which there is at most one for each lease; how many rows change.
    pub fn record(&mut self, results: &[(usize, Recorded)], now: Moment) -> u64 {
        let mut written = 0;
        // A success is a fact, whatever else is said about the same delivery.
        let (facts, others): (Vec<_>, Vec<_>) =
            results.iter().copied().partition(|(_, result)| matches!(result.kind, Kind::Delivered));
        for (lease, result) in facts.into_iter().chain(others) {
            written += u64::from(self.record_one(lease, result, now));
        }
        written
    }

    fn record_one(&mut self, lease: usize, result: Recorded, now: Moment) -> bool {
        self.leases[lease].ended = true;
        let Lease { row: index, claimed, previous, .. } = self.leases[lease];
        let started = claimed.next().later(if result.ahead { 10 } else { 0 });
        let row = &mut self.rows[index];
        if let Kind::Delivered = result.kind {
            let news = row.status != Status::Delivered;
            if news {
                (row.status, row.last) = (Status::Delivered, Some(started));
                row.attempts += 1;
                self.void(index);
            }
            return news;
        }
        let ours = row.is_open() && row.last == Some(claimed) && row.next.is_none_or(|next| claimed >= next);
        if !ours {
            return false;
        }
        row.last = if let Kind::GivenBack = result.kind { previous } else { Some(started) };
        match result.kind {
            Kind::Failed { delay } => {
                row.status = Status::Failed;
                row.attempts += 1;
                row.next = Some(now.max(started.next()).later(delay));
            }
            Kind::Postponed { delay } => row.next = Some(now.max(started.next()).later(delay)),
            Kind::Dead { charged } => {
                row.status = Status::Dead;
                row.attempts += i32::from(charged);
            }
            Kind::Delivered | Kind::GivenBack => {}
        }
        if !matches!(result.kind, Kind::GivenBack) {
            row.history.push(started);
        }
        true
    }

    /// Renews a lease, if it lives.
    pub fn renew(&mut self, lease: usize, now: Moment) -> bool {
        let Lease { row, claimed, .. } = self.leases[lease];
        let row = &mut self.rows[row];
        let lives = row.is_open() && row.last == Some(claimed) && row.is_leased(now, None);
        if lives {
            row.last = Some(now);
            self.leases[lease].claimed = now;
        }
        lives
    }

    /// Whoever holds this row has no right to it any more.
    fn void(&mut self, row: usize) {
        self.leases.iter_mut().filter(|lease| lease.row == row).for_each(|lease| lease.ended = true);
    }

    pub fn replay(&mut self, of: usize, only_dead: bool, now: Moment) {
        for row in self.rows.iter_mut().filter(|row| row.destination == of) {
            let held = row.is_open() && row.is_leased(now, None);
            if !held && (!only_dead || row.status == Status::Dead) {
                (row.status, row.attempts) = (Status::Pending, 0);
                // Later than any attempt, also than one by a clock that is ahead: it is no lease.
                row.next = Some(row.last.map_or(now, |last| now.max(last.next())));
                row.created = now;
            }
        }
    }

    pub fn reset(&mut self, index: usize, how: Reset, now: Moment) {
        let row = &mut self.rows[index];
        (row.status, row.attempts) = (Status::Pending, 0);
        row.next = if let Reset::Now = how { Some(now) } else { None };
        if let Reset::AsNew = how {
            row.last = None;
        }
        if !matches!(how, Reset::NoTime) {
            self.void(index);
        }
    }

    /// Whether a poll has to say that something may be due at a destination.
    pub fn may_be_due(&self, of: usize, now: Moment) -> bool {
        self.rows.iter().any(|row| row.destination == of && row.is_open() && row.is_due(now))
    }

    /// When the next delivery falls due that is not due yet, in seconds from now.
    pub fn next_due(&self, of: usize, now: Moment) -> Option<i64> {
        let rows = self.rows.iter().filter(|row| row.destination == of && row.is_open());
        rows.filter_map(|row| row.next).filter(|next| *next > now).map(|n| n.seconds - now.seconds).min()
    }
}
