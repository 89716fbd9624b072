//! What happens outside of the machines: requests, and the statements of the database actor.

use std::time::Duration;

use posthaste::dispatch::{Claim, ClaimReply, Event, Leased, Send};
use posthaste::model::{Attempt, DbTime, DeliveryId, Outcome};
use posthaste::store::deliveries::LEASE;

use crate::database::{index, time};
use crate::draw::{MILLI, SECOND, Time};
use crate::world::{Happens, Verdict, Who, World};

impl World {
    /// When the database answers again, if it is away.
    pub(super) fn away_until(&self) -> Option<Time> {
        self.scenario.outages.iter().find(|(from, to)| *from <= self.now && self.now < *to).map(|(_, to)| *to)
    }

    pub(super) fn send(&mut self, who: Who, send: Send) -> Verdict {
        let Send { request, deliveries, started_at, .. } = send;
        self.figures.requests += 1;
        let (rules, receiver) = &self.scenario.destinations[who.of];
        self.holds.sent(who, &deliveries, rules, &self.db, self.now)?;
        let rows: Vec<usize> = deliveries.iter().map(|delivery| index(delivery.id)).collect();
        let bad = rows.iter().any(|row| self.db.rows[*row].bad);
        let timeout = rules.timeout;
        let (answer, takes) = receiver.answer(self.now, rows.len(), bad, timeout, &mut self.rng);
        self.in_flight.insert((who, request), rows);
        let attempt = Attempt { started_at, duration: Duration::from_micros(takes as u64), answer };
        self.plan(self.now + takes, Happens::Finished { who, request, attempt });
        Ok(())
    }

    pub(super) fn finished(&mut self, who: Who, request: u64, attempt: Attempt) -> Verdict {
        let Some(rows) = self.in_flight.remove(&(who, request)) else { return Ok(()) };
        self.holds.answered(who, &rows, &attempt, self.now);
        self.handle(who, Event::Finished { request, attempt })?;
        self.release(who.process)
    }

    pub(super) fn claim(&mut self, who: Who, claim: Claim) -> Verdict {
        if self.running(who).is_none() {
            return Ok(());
        }
        if let Some(back) = self.away_until() {
            let at = back + self.rng.i64(0..2 * SECOND);
            self.plan(at, Happens::Claim { who, claim });
            return Ok(());
        }
        if self.processes[who.process].cannot_record {
            // What cannot be recorded would be sent again and again.
            self.plan(self.now + 10 * MILLI, Happens::Claim { who, claim });
            return Ok(());
        }
        let sent = self.now;
        let found = self.db.claim(who.of, &claim, self.now);
        self.holds.claimed(who, &found.rows, self.now)?;
        if self.rng.f64() < self.scenario.answers_lost {
            let at = self.now + 4 * SECOND;
            self.plan(at, Happens::Claim { who, claim });
            return Ok(());
        }
        let expires = self.base + Duration::from_micros(sent as u64) + LEASE;
        let leased = found
            .rows
            .iter()
            .map(|row| Leased::new(self.db.delivery(*row), false, self.db.rows[*row].bytes, expires, ()))
            .collect();
        let reply = ClaimReply {
            leased,
            more: found.more,
            next_due: found.next_due.map(time),
            reached: found.reached.map(time),
            behind: false,
        };
        let at = self.after((0, self.scenario.database_takes.1));
        self.plan(at, Happens::Claimed { who, reply });
        Ok(())
    }

    /// What nobody takes any more is given back.
    pub(super) fn claimed(&mut self, who: Who, reply: ClaimReply<()>) -> Verdict {
        if self.running(who).is_some() {
            return self.handle(who, Event::Claimed(reply));
        }
        if self.processes[who.process].lives {
            let back: Vec<Outcome> =
                reply.leased.iter().map(|leased| Outcome::given_back(&leased.delivery)).collect();
            self.db.record(&back, self.now);
        }
        Ok(())
    }

    pub(super) fn renew(
        &mut self,
        who: Who,
        leases: Vec<(DeliveryId, DbTime)>,
        asked: Time,
        is_uncertain: bool,
    ) -> Verdict {
        if self.running(who).is_none() {
            return Ok(());
        }
        if let Some(back) = self.away_until() {
            let at = back + self.rng.i64(0..2 * SECOND);
            self.plan(at, Happens::Renew { who, leases, asked: at, is_uncertain });
            return Ok(());
        }
        let (rng, locked) = (&mut self.rng, self.scenario.rows_locked);
        let mut reply = self.db.renew(&leases, |_| rng.f64() < locked, self.now);
        if is_uncertain {
            reply.locked.clear();
        }
        reply.expires = Some(self.base + Duration::from_micros(asked as u64) + LEASE);
        if self.rng.f64() < self.scenario.answers_lost {
            let at = self.now + 4 * SECOND;
            self.plan(at, Happens::Renew { who, leases, asked: at, is_uncertain: true });
            return Ok(());
        }
        let at = self.after((0, self.scenario.database_takes.1));
        self.plan(at, Happens::Renewed { who, reply });
        Ok(())
    }

    /// Writes all results that wait, as one statement does.
    pub(super) fn record(&mut self, process: usize, life: u64) -> Verdict {
        if self.processes[process].life != life {
            return Ok(());
        }
        if let Some(back) = self.away_until() {
            let at = back + self.rng.i64(0..2 * SECOND);
            self.processes[process].cannot_record = true;
            self.plan(at, Happens::Record { process, life });
            return Ok(());
        }
        self.processes[process].cannot_record = false;
        let lost = self.rng.f64() < self.scenario.answers_lost;
        while let Some((nth, outcomes)) = self.processes[process].results.pop_front() {
            self.db.record(&outcomes, self.now);
            self.processes[process].written = nth;
        }
        let written = self.processes[process].written;
        let held = std::mem::take(&mut self.processes[process].held);
        let (ready, held) = held.into_iter().partition(|(after, ..)| *after <= written);
        self.processes[process].held = held;
        let ready: Vec<(u64, Who, Claim)> = ready;
        for (_, who, claim) in ready {
            // An answer that was lost is found out when the statement is run again.
            let late = if lost { 4 * SECOND } else { 0 };
            let at = self.after(self.scenario.database_takes) + late;
            self.plan(at, Happens::Claim { who, claim });
        }
        Ok(())
    }
}
