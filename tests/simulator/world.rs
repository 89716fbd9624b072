//! Runs a scenario: machines of some processes, one database, receivers, in virtual time.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use fastrand::Rng;
use posthaste::dispatch::{Claim, ClaimReply, Effect, Event, Machine, Moment, RenewReply};
use posthaste::model::{Attempt, DbTime, DeliveryId, Outcome};
use posthaste::policy::health::Saved;

use crate::database::{Database, Status, time};
use crate::draw::{MILLI, MINUTE, POLL, SECOND, Scenario, Time};
use crate::holds::Holds;

pub type Verdict<T = ()> = Result<T, String>;

/// Effects that may follow each other without time passing: more would be a loop without end.
const MOST_EFFECTS_AT_ONCE: usize = 20_000;

/// Events of a run: more would be a busy loop.
const MOST_EVENTS: u64 = 100_000;
/// And so many for each second.
const MOST_EVENTS_A_SECOND: u64 = 30;

/// What is planned.
pub(super) enum Happens {
    Commit(usize),
    Poll { process: usize },
    Alarm { who: Who, nth: u64 },
    Claim { who: Who, claim: Claim },
    Claimed { who: Who, reply: ClaimReply<()> },
    Renew { who: Who, leases: Vec<(DeliveryId, DbTime)>, asked: Time, is_uncertain: bool },
    Renewed { who: Who, reply: RenewReply },
    Record { process: usize, life: u64 },
    Remember { of: usize, saved: Saved },
    Disable { of: usize },
    Enable { of: usize },
    Finished { who: Who, request: u64, attempt: Attempt },
    Crash(usize),
    Restart(usize),
    Change(usize),
}

/// A machine, in one of its lives.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Who {
    pub process: usize,
    pub of: usize,
    life: u64,
}

pub(super) struct Running {
    who: Who,
    machine: Machine<()>,
    alarms: u64,
    has_backlog: bool,
}

#[derive(Default)]
pub(super) struct Process {
    pub(super) lives: bool,
    pub(super) life: u64,
    pub(super) machines: Vec<Option<Running>>,
    pub(super) slots: usize,
    pub(super) waiting: VecDeque<Who>,
    /// Results that are not written yet, in their order.
    pub(super) results: VecDeque<(u64, Vec<Outcome>)>,
    pub(super) sent: u64,
    pub(super) written: u64,
    /// The last statement that was to write them failed.
    pub(super) cannot_record: bool,
    /// Claims that wait until so many results are written.
    pub(super) held: Vec<(u64, Who, Claim)>,
}

/// What a run came to.
#[derive(Default, Debug, Clone, Copy)]
pub struct Figures {
    pub passed: Time,
    pub events: u64,
    pub requests: u64,
    pub delivered: u64,
    pub dead: u64,
}

struct Planned(Time, u64, Happens);

pub struct World {
    pub(super) scenario: Scenario,
    pub(super) rng: Rng,
    pub(super) base: Instant,
    pub(super) now: Time,
    planned: BinaryHeap<Reverse<Planned>>,
    pub(super) numbered: u64,
    pub(super) lives: u64,
    pub(super) db: Database,
    pub(super) processes: Vec<Process>,
    pub(super) in_flight: HashMap<(Who, u64), Vec<usize>>,
    pub(super) holds: Holds,
    pub(super) figures: Figures,
    pub(super) trace: bool,
}

impl World {
    pub fn new(seed: u64, base: Instant, trace: bool) -> World {
        let scenario = Scenario::draw(seed);
        let db = Database::new(&scenario);
        let holds = Holds::new(&scenario);
        let mut world = World {
            rng: Rng::with_seed(seed ^ 0x9e37_79b9),
            base,
            now: 0,
            planned: BinaryHeap::new(),
            numbered: 0,
            lives: 0,
            processes: Vec::new(),
            in_flight: HashMap::new(),
            figures: Figures::default(),
            holds,
            db,
            scenario,
            trace,
        };
        for row in 0..world.db.rows.len() {
            world.plan(world.db.rows[row].committed, Happens::Commit(row));
        }
        for process in 0..world.scenario.processes {
            world.processes.push(Process::default());
            world.start(process);
        }
        for (process, from, to) in world.scenario.crashes.clone() {
            world.plan(from, Happens::Crash(process));
            world.plan(to, Happens::Restart(process));
        }
        for (n, at) in world.scenario.changes.iter().map(|(at, ..)| *at).enumerate().collect::<Vec<_>>() {
            world.plan(at, Happens::Change(n));
        }
        world
    }

    /// Runs until everything has arrived or is dead, and checks what must hold at each step.
    pub fn run(&mut self) -> Verdict<Figures> {
        self.run_until(self.scenario.calm)?;
        let bound = self.holds.bound(&self.scenario, &self.db, self.now) + self.longest_pause();
        let end = self.now + bound;
        while self.is_unfinished() {
            if self.now > end {
                return Err(format!("no progress within {} s: {}", bound / SECOND, self.unfinished()));
            }
            self.step()?;
        }
        self.prompt()?;
        self.figures.passed = self.now;
        let count = |status| self.db.rows.iter().filter(|row| row.status == status).count() as u64;
        (self.figures.delivered, self.figures.dead) = (count(Status::Delivered), count(Status::Dead));
        Ok(self.figures)
    }

    /// When all is well and nothing waits, a new event arrives soon.
    fn prompt(&mut self) -> Verdict {
        // Whoever had to slow down has recovered by then.
        self.run_until(self.now + 10 * MINUTE)?;
        for of in 0..self.scenario.destinations.len() {
            let row = self.db.insert(of, self.now);
            self.holds.inserted(&self.db, row);
            self.plan(self.now, Happens::Commit(row));
            let (rules, receiver) = &self.scenario.destinations[of];
            let bound = self.holds.prompt_bound(rules, receiver, &self.scenario) + self.longest_pause();
            let end = self.now + bound;
            while self.db.rows[row].status == Status::Open {
                if self.now > end {
                    let what = &self.db.rows[row];
                    return Err(format!("a new event did not arrive within {} ms: {what:?}", bound / MILLI));
                }
                self.step()?;
            }
        }
        Ok(())
    }

    /// Until the last pause that some receiver has asked for is over.
    fn longest_pause(&self) -> Time {
        let machines = self.processes.iter().flat_map(|process| process.machines.iter().flatten());
        let paused = machines.filter_map(|running| running.machine.saved(time(self.now)).paused_until);
        paused.map(|until| until.0 - self.now).max().unwrap_or(0)
    }

    fn is_unfinished(&self) -> bool {
        self.db.rows.iter().any(|row| row.status == Status::Open)
    }

    fn unfinished(&self) -> String {
        let open = self.db.rows.iter().enumerate().filter(|(_, row)| row.status == Status::Open);
        let some: Vec<_> = open.take(3).collect();
        let of = some.first().map_or(0, |(_, row)| row.destination);
        format!("{some:?} of {:?}", self.scenario.destinations[of].0)
    }

    fn run_until(&mut self, end: Time) -> Verdict {
        while self.planned.peek().is_some_and(|Reverse(next)| next.0 <= end) {
            self.step()?;
        }
        self.now = self.now.max(end);
        Ok(())
    }

    pub(super) fn plan(&mut self, at: Time, happens: Happens) {
        self.numbered += 1;
        self.planned.push(Reverse(Planned(at.max(self.now), self.numbered, happens)));
    }

    pub(super) fn after(&mut self, (least, most): (Time, Time)) -> Time {
        let now = self.now;
        now + self.rng.i64(least..=most)
    }

    fn step(&mut self) -> Verdict {
        let Some(Reverse(Planned(at, _, happens))) = self.planned.pop() else {
            return Err("nothing is planned any more".into());
        };
        self.now = at;
        self.figures.events += 1;
        let seconds = self.now / SECOND;
        if self.figures.events > MOST_EVENTS + MOST_EVENTS_A_SECOND * seconds as u64 {
            return Err(format!("{} events in {seconds} s", self.figures.events));
        }
        match happens {
            Happens::Commit(row) => self.hint(self.db.rows[row].destination),
            Happens::Poll { process } => self.poll(process),
            Happens::Alarm { who, nth } => match self.running(who) {
                Some(running) if running.alarms == nth => self.handle(who, Event::TimeCame),
                _ => Ok(()),
            },
            Happens::Claim { who, claim } => self.claim(who, claim),
            Happens::Claimed { who, reply } => self.claimed(who, reply),
            Happens::Renew { who, leases, asked, is_uncertain } => {
                self.renew(who, leases, asked, is_uncertain)
            }
            Happens::Renewed { who, reply } => self.handle(who, Event::Renewed(reply)),
            Happens::Record { process, life } => self.record(process, life),
            Happens::Remember { of, saved } => {
                self.db.states[of] = saved;
                Ok(())
            }
            Happens::Disable { of } => self.disable(of),
            Happens::Enable { of } => self.enable(of),
            Happens::Finished { who, request, attempt } => self.finished(who, request, attempt),
            Happens::Crash(process) => self.crash(process),
            Happens::Restart(process) => {
                if !self.processes[process].lives {
                    self.start(process);
                }
                Ok(())
            }
            Happens::Change(n) => self.change(n),
        }
    }

    fn start(&mut self, process: usize) {
        self.lives += 1;
        let life = self.lives;
        let slots = self.scenario.slots;
        self.processes[process] = Process { lives: true, life, slots, ..Process::default() };
        for of in 0..self.scenario.destinations.len() {
            self.processes[process].machines.push(None);
            self.spawn(process, of);
        }
        let first = self.now + self.rng.i64(0..POLL);
        self.plan(first, Happens::Poll { process });
    }

    fn spawn(&mut self, process: usize, of: usize) {
        if !self.db.enabled[of] {
            return;
        }
        self.lives += 1;
        let who = Who { process, of, life: self.lives };
        let rules = self.scenario.destinations[of].0.clone();
        let instant = self.base + Duration::from_micros(self.now as u64);
        let machine = Machine::new(rules, self.db.states[of], instant);
        let running = Running { who, machine, alarms: 0, has_backlog: false };
        self.processes[process].machines[of] = Some(running);
        self.holds.began(who, self.now);
        self.plan(self.now, Happens::Alarm { who, nth: 0 });
    }

    pub(super) fn running(&mut self, who: Who) -> Option<&mut Running> {
        self.processes[who.process].machines[who.of].as_mut().filter(|running| running.who == who)
    }

    fn hint(&mut self, of: usize) -> Verdict {
        for process in 0..self.processes.len() {
            let lost = self.rng.f64() < self.scenario.hints_lost;
            if let Some(running) = self.processes[process].machines.get(of).and_then(Option::as_ref)
                && !lost
            {
                let who = running.who;
                self.handle(who, Event::Woken)?;
            }
        }
        Ok(())
    }

    fn poll(&mut self, process: usize) -> Verdict {
        self.plan(self.now + POLL, Happens::Poll { process });
        if !self.processes[process].lives || self.away_until().is_some() {
            return Ok(());
        }
        self.db.vacuum();
        for of in 0..self.scenario.destinations.len() {
            let Some(running) = &self.processes[process].machines[of] else {
                self.spawn(process, of);
                continue;
            };
            let who = running.who;
            if !running.has_backlog && self.db.may_be_due(of, self.now) {
                self.handle(who, Event::Woken)?;
            }
        }
        Ok(())
    }

    /// Has a machine decide, and does what it decided.
    pub(super) fn handle(&mut self, who: Who, event: Event<()>) -> Verdict {
        let mut next = Some(event);
        let mut done = 0;
        while let Some(event) = next.take() {
            let now = self.base + Duration::from_micros(self.now as u64);
            let busy = (self.scenario.slots - self.processes[who.process].slots) as u32;
            let at = Moment { now, db_now: time(self.now), chance: self.rng.f64(), busy };
            if self.trace {
                println!("{:>14} {who:?} {event:?}", self.now);
            }
            let Some(running) = self.running(who) else { return Ok(()) };
            running.machine.handle(event, at);
            while let Some(effect) = self.running(who).and_then(|running| running.machine.next_effect()) {
                done += 1;
                if done > MOST_EFFECTS_AT_ONCE {
                    return Err(format!("{who:?} does not come to rest: {effect:?}"));
                }
                if self.trace {
                    println!("{:>14} {who:?}    {effect:?}", self.now);
                }
                if self.perform(who, effect)? {
                    // As the actor does: before the effects that follow.
                    let Some(running) = self.running(who) else { return Ok(()) };
                    running.machine.handle(Event::SlotAcquired, at);
                }
            }
            let now = self.now;
            if let Some(running) = self.processes[who.process].machines[who.of].as_ref() {
                self.holds.rests(who, &running.machine, &self.scenario.destinations[who.of].0, now)?;
            }
        }
        Ok(())
    }

    /// Returns whether a slot was there at once.
    fn perform(&mut self, who: Who, effect: Effect) -> Verdict<bool> {
        let rules = &self.scenario.destinations[who.of].0;
        self.holds.decided(who, &effect, rules, &self.db, self.now)?;
        match effect {
            Effect::AcquireSlot => {
                let process = &mut self.processes[who.process];
                if process.slots > 0 {
                    process.slots -= 1;
                    return Ok(true);
                }
                process.waiting.push_back(who);
            }
            Effect::ReleaseSlot => self.release(who.process)?,
            Effect::Send(send) => self.send(who, send)?,
            Effect::Abort(_) => return Err("nobody asked for an end".into()),
            Effect::Claim(claim) => {
                let process = &mut self.processes[who.process];
                if claim.after_results && process.written < process.sent {
                    process.held.push((process.sent, who, claim));
                } else {
                    let at = self.after(self.scenario.database_takes);
                    self.plan(at, Happens::Claim { who, claim });
                }
            }
            Effect::Renew(leases) => {
                let at = self.after(self.scenario.database_takes);
                self.plan(at, Happens::Renew { who, leases, asked: self.now, is_uncertain: false });
            }
            Effect::Record(outcomes) => {
                let process = &mut self.processes[who.process];
                process.sent += 1;
                process.results.push_back((process.sent, outcomes));
                let life = process.life;
                let at = self.after(self.scenario.database_takes);
                self.plan(at, Happens::Record { process: who.process, life });
            }
            Effect::WakeAt(moment) => {
                let at = moment.saturating_duration_since(self.base).as_micros() as Time + 1;
                let Some(running) = self.running(who) else { return Ok(false) };
                running.alarms += 1;
                let nth = running.alarms;
                self.plan(at, Happens::Alarm { who, nth });
            }
            Effect::Remember(saved) => {
                let at = self.after(self.scenario.database_takes);
                self.plan(at, Happens::Remember { of: who.of, saved });
            }
            Effect::Backlog(has_backlog) => {
                if let Some(running) = self.running(who) {
                    running.has_backlog = has_backlog;
                }
            }
            Effect::Disable(_) => {
                let at = self.after(self.scenario.database_takes);
                self.plan(at, Happens::Disable { of: who.of });
            }
            Effect::Tell(_) => {}
            Effect::Stop => self.processes[who.process].machines[who.of] = None,
        }
        Ok(false)
    }

    pub(super) fn release(&mut self, process: usize) -> Verdict {
        self.processes[process].slots += 1;
        while self.processes[process].slots > 0
            && let Some(who) = self.processes[process].waiting.pop_front()
        {
            if self.running(who).is_some() {
                self.processes[process].slots -= 1;
                self.handle(who, Event::SlotAcquired)?;
            }
        }
        Ok(())
    }

    fn disable(&mut self, of: usize) -> Verdict {
        self.db.enabled[of] = false;
        for process in 0..self.processes.len() {
            if let Some(running) = self.processes[process].machines.get(of).and_then(Option::as_ref) {
                let who = running.who;
                self.handle(who, Event::Retired)?;
            }
        }
        let again = (self.now + self.rng.i64(SECOND..5 * MINUTE)).max(self.now + SECOND);
        self.plan(again, Happens::Enable { of });
        Ok(())
    }

    /// Somebody enables it again, which clears its state. Processes find out when they poll.
    fn enable(&mut self, of: usize) -> Verdict {
        self.db.enabled[of] = true;
        self.db.states[of] = Saved::default();
        Ok(())
    }

    fn crash(&mut self, process: usize) -> Verdict {
        self.processes[process].lives = false;
        self.processes[process].life = 0;
        self.processes[process].machines.iter_mut().for_each(|machine| *machine = None);
        self.in_flight.retain(|(who, _), _| who.process != process);
        self.holds.crashed(process, &self.db);
        Ok(())
    }

    fn change(&mut self, n: usize) -> Verdict {
        let (_, of, rules) = self.scenario.changes[n].clone();
        self.scenario.destinations[of].0 = rules.clone();
        self.holds.changed(of);
        for process in 0..self.processes.len() {
            if let Some(running) = self.processes[process].machines.get(of).and_then(Option::as_ref) {
                let who = running.who;
                let saved = self.db.states[of];
                self.handle(who, Event::Reconfigured(Box::new(rules.clone()), saved))?;
            }
        }
        Ok(())
    }
}

impl PartialEq for Planned {
    fn eq(&self, other: &Planned) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}

impl Eq for Planned {}

impl PartialOrd for Planned {
    fn partial_cmp(&self, other: &Planned) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Planned {
    fn cmp(&self, other: &Planned) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}
