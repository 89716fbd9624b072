//! The real side: PostgreSQL, reached through the store, with the model beside it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use posthaste::model::{
    DbTime, Delivery, DeliveryId, DestinationId, FailedAttempt, Ordered, OrgId, Outcome, Status,
};
use posthaste::store::deliveries::{Ask, ClaimSql, Grant, Room, record, record_unlocked, renew, retry};
use posthaste::store::destinations::{self, Disabled};
use posthaste::store::{self, Connection, jobs, presence};
use sqlx::Row as _;
use uuid::Uuid;

use crate::common::Db;
use crate::model::{Given, Model, Moment, Verdict};
use crate::ops::{DESTINATIONS, Kind, Op, PROCESSES, Reset, Result as Recorded};

/// Passing time is everything else becoming older.
const PASS: [&str; 2] = [
    "UPDATE webhook_deliveries SET last_attempt_at = last_attempt_at - $1 * interval '1 s',
        next_retry_at = next_retry_at - $1 * interval '1 s', created_at = created_at - $1 * interval '1 s'",
    "UPDATE posthaste_attempts SET started_at = started_at - $1 * interval '1 s'",
];
struct Process {
    connection: Connection,
    backend: i32,
    sql: ClaimSql,
    announced: DbTime,
}

/// One case: a database with one organization, and the model of it.
pub struct World<'a> {
    pub db: &'a Db,
    pub model: Model,
    pub destinations: Vec<Uuid>,
    /// When the case began: the model's time stands still, the real one does not.
    pub began: Instant,
    org: Uuid,
    recorder: Connection,
    processes: [Option<Process>; PROCESSES],
    /// The deliveries of the model's leases.
    claimed: Vec<Delivery>,
}

impl<'a> World<'a> {
    pub async fn new(db: &'a Db) -> World<'a> {
        db.execute("DELETE FROM organizations").await;
        let org = db.org().await;
        let mut destinations = Vec::new();
        for _ in 0..DESTINATIONS {
            destinations.push(db.destination(org, "http://127.0.0.1/").insert().await);
        }
        World {
            db,
            model: Model::default(),
            destinations,
            began: Instant::now(),
            org,
            recorder: connect(db).await,
            processes: Default::default(),
            claimed: Vec::new(),
        }
    }

    /// Ends all processes, so that the next case begins without any.
    pub async fn end(mut self) {
        for process in 0..PROCESSES {
            self.crash(process).await;
        }
    }

    /// Does one step on both sides. Steps that have nothing to act on do nothing.
    pub async fn step(&mut self, op: &Op) -> Verdict {
        match op {
            Op::Ingest { events, commit } => self.ingest(*events, *commit).await,
            Op::Claim { process, of, want, one_byte } => {
                let all = (0..DESTINATIONS).filter(|destination| of & (1 << destination) != 0);
                let (ordered, plain): (Vec<usize>, Vec<usize>) =
                    all.partition(|of| self.model.destinations[*of].ordered);
                self.claim(*process, &plain, *want, *one_byte).await?;
                self.claim(*process, &ordered, *want, *one_byte).await?;
            }
            Op::Race { of, wants } => self.race(*of, *wants).await?,
            Op::ClaimAround { process, of, want, row } => {
                self.claim_around(*process, *of, *want, *row).await?;
            }
            Op::Record { results } => self.record(results).await?,
            Op::Renew { leases } => self.renew(leases).await?,
            Op::Pass { half_minutes } => self.pass(30 * half_minutes).await,
            Op::Crash { process } => self.crash(*process).await,
            Op::Disable { of, by_dispatcher } => self.disable(*of, *by_dispatcher).await?,
            Op::Enable { of } => {
                self.switch(*of, true).await;
                let destination = &mut self.model.destinations[*of];
                (destination.disabled, destination.reason) = (false, false);
            }
            Op::Order { of, ordered } => self.model.destinations[*of].ordered = *ordered,
            Op::Replay { of, only_dead } => {
                let now = self.model.now();
                self.replay(*of, *only_dead).await?;
                self.model.replay(*of, *only_dead, now);
            }
            Op::Reset { row, how } => self.reset(*row, *how).await,
        }
        Ok(())
    }

    async fn ingest(&mut self, events: usize, commit: bool) {
        let mut transaction = self.db.pool.begin().await.unwrap();
        let ids: Vec<Uuid> = (0..events).map(|_| Uuid::new_v4()).collect();
        // Some of them make the claim measure what it prints.
        let insert = "INSERT INTO activity_logs (id, org_id, event_type, event_category, payload)
            SELECT id, $1, 'test.event', 'test',
                CASE n % 3 WHEN 2 THEN jsonb_build_array(1e1000, repeat('x', 600)) ELSE '{}' END
            FROM unnest($2::uuid[]) WITH ORDINALITY AS e (id, n) ORDER BY n";
        sqlx::query(insert).bind(self.org).bind(&ids).execute(&mut *transaction).await.unwrap();
        if !commit {
            transaction.rollback().await.unwrap();
            return;
        }
        transaction.commit().await.unwrap();
        let due = self.model.now();
        for of in (0..DESTINATIONS).filter(|of| !self.model.destinations[*of].disabled).collect::<Vec<_>>() {
            let made = "SELECT w.id FROM unnest($2::uuid[]) WITH ORDINALITY AS e (id, n)
                JOIN webhook_deliveries w ON w.log_id = e.id AND w.destination_id = $1 ORDER BY n";
            let made = sqlx::query(made).bind(self.destinations[of]).bind(&ids);
            let made = made.fetch_all(&self.db.pool).await.unwrap();
            for (ordinal, row) in made.iter().enumerate() {
                self.model.queue(row.get(0), of, due, ordinal as u64);
            }
            // Whatever is missing or too much shows when both sides are compared: this counts all rows.
        }
    }

    /// A process opens its connection when it first needs it.
    async fn alive(&mut self, process: usize) {
        if self.processes[process].is_some() {
            return;
        }
        let mut connection = connect(self.db).await;
        let backend = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut connection).await.unwrap();
        self.model.start(process);
        // Others ask for the exclusive lock for a moment.
        while !presence::try_take_part(&mut connection).await.unwrap() {}
        let announced = presence::now(&mut connection).await.unwrap();
        let sql = ClaimSql::read(&mut connection).await.unwrap();
        self.processes[process] = Some(Process { connection, backend, sql, announced });
    }

    /// Before each claim, a process finds out which leases are void.
    async fn floor(&mut self, process: usize) -> Result<DbTime, String> {
        self.alive(process).await;
        let real = self.processes[process].as_mut().unwrap();
        if self.model.asks_whether_alone(process) {
            let alone = presence::is_alone(&mut real.connection).await.unwrap();
            if alone != self.model.learn_whether_alone(process) {
                return Err(format!("process {process} believes that alone = {alone}"));
            }
        }
        Ok(if self.model.is_alone(process) { real.announced } else { DbTime(i64::MIN) })
    }

    fn asks(&self, of: &[usize], want: usize, one_byte: bool) -> Vec<Ask> {
        let ask = |of: &usize| Ask {
            destination: DestinationId(self.destinations[*of]),
            // As the dispatcher does, which asks for no more than may fit.
            want: if one_byte { 1 } else { want as u32 },
            since: None,
            max_bytes: if one_byte { 1 } else { 1 << 30 },
            ordered: self.model.destinations[*of].ordered.then_some(Ordered::Everywhere),
            fill: None,
        };
        of.iter().map(ask).collect()
    }

    async fn claim(&mut self, process: usize, of: &[usize], want: usize, one_byte: bool) -> Verdict {
        if of.is_empty() {
            return Ok(());
        }
        let floor = self.floor(process).await?;
        let asks = self.asks(of, want, one_byte);
        let now = self.model.now();
        let grants = ask(self.processes[process].as_mut().unwrap(), &asks, floor).await;
        for (of, grant) in of.iter().zip(grants) {
            self.take_over(*of, vec![(process, want, one_byte, grant)], None, now)?;
        }
        Ok(())
    }

    async fn race(&mut self, of: usize, wants: [usize; PROCESSES]) -> Verdict {
        let floors = [self.floor(0).await?, self.floor(1).await?];
        let asks = wants.map(|want| self.asks(&[of], want, false));
        let now = self.model.now();
        let [one, other] = &mut self.processes;
        let (first, second) = tokio::join!(
            ask(one.as_mut().unwrap(), &asks[0], floors[0]),
            ask(other.as_mut().unwrap(), &asks[1], floors[1]),
        );
        let grants = first.into_iter().chain(second).enumerate();
        let grants = grants.map(|(process, grant)| (process, wants[process], false, grant)).collect();
        self.take_over(of, grants, None, now)
    }

    async fn claim_around(&mut self, process: usize, of: usize, want: usize, row: usize) -> Verdict {
        if self.model.rows.is_empty() {
            return Ok(());
        }
        let row = row % self.model.rows.len();
        let floor = self.floor(process).await?;
        let asks = self.asks(&[of], want, false);
        let mut transaction = self.db.pool.begin().await.unwrap();
        let lock = sqlx::query("SELECT FROM webhook_deliveries WHERE id = $1 FOR UPDATE");
        lock.bind(self.model.rows[row].id).execute(&mut *transaction).await.unwrap();
        let now = self.model.now();
        let mut grants = ask(self.processes[process].as_mut().unwrap(), &asks, floor).await;
        transaction.rollback().await.unwrap();
        self.take_over(of, vec![(process, want, false, grants.remove(0))], Some(row), now)
    }

    /// Compares what was granted with the model, and keeps the leases.
    fn take_over(
        &mut self,
        of: usize,
        grants: Vec<(usize, usize, bool, Grant)>,
        locked: Option<usize>,
        now: Moment,
    ) -> Verdict {
        let mut given = Vec::new();
        let mut claimed = Vec::new();
        for (process, want, one_byte, grant) in grants {
            let mut rows = Vec::new();
            for delivery in grant.deliveries.into_iter().map(|claimed| claimed.delivery) {
                let index = self.model.rows.iter().position(|row| row.id == delivery.id.0);
                let index = index.ok_or(format!("{} is not in the model", delivery.id))?;
                let row = &self.model.rows[index];
                let same = delivery.attempts as i32 == row.attempts
                    && delivery.previous_attempt_at.is_some() == row.last.is_some()
                    && delivery.first_attempt_at.is_some() == row.first_attempt().is_some();
                if !same {
                    return Err(format!("{delivery:?} was read, {row:?} is there"));
                }
                rows.push(index);
                claimed.push(delivery);
            }
            // An ordered claim says when to look again; the other one says when something falls due.
            if !self.model.destinations[of].ordered && grant.now != DbTime(0) {
                let expected = self.model.next_due(of, now);
                let told = grant.next_due.map(|due| due.since(grant.now).as_secs() as i64);
                if told.zip(expected).map_or(told.is_some() != expected.is_some(), |(a, b)| a.abs_diff(b) > 9)
                {
                    return Err(format!("next due in {told:?} s, expected in {expected:?} s"));
                }
            }
            given.push(Given { process, want, one_byte, rows, more: grant.more });
        }
        self.model.granted(of, &given, locked, now)?;
        self.claimed.extend(claimed);
        Ok(())
    }

    async fn record(&mut self, results: &[(usize, Recorded)]) -> Verdict {
        if self.claimed.is_empty() {
            return Ok(());
        }
        // At most one result for each lease: that is what a process has.
        let mut chosen: Vec<(usize, Recorded)> = Vec::new();
        for (lease, result) in results {
            let lease = lease % self.claimed.len();
            if chosen.iter().all(|(other, _)| *other != lease) {
                chosen.push((lease, *result));
            }
        }
        // Of two successes of a delivery either may be written: that is not worth a model.
        let row = |lease: usize| self.model.leases[lease].row;
        let is_success = |result: &Recorded| matches!(result.kind, Kind::Delivered);
        let chosen: Vec<(usize, Recorded)> = chosen
            .iter()
            .enumerate()
            .filter(|(i, (lease, result))| {
                let same = |(other, its): &(usize, Recorded)| row(*other) == row(*lease) && is_success(its);
                !is_success(result) || !chosen[..*i].iter().any(same)
            })
            .map(|(_, chosen)| *chosen)
            .collect();
        let outcomes: Vec<Outcome> =
            chosen.iter().map(|(lease, result)| outcome(&self.claimed[*lease], *result)).collect();
        let now = self.model.now();
        // Both statements that write results do the same where nobody has locked anything.
        if outcomes.len() % 2 == 1 {
            let locked = record_unlocked(&mut self.recorder, &outcomes).await.unwrap();
            self.model.record(&chosen, now);
            return if locked.is_empty() { Ok(()) } else { Err(format!("locked: {locked:?}")) };
        }
        let written = record(&mut self.recorder, &outcomes).await.unwrap();
        let expected = self.model.record(&chosen, now);
        match written == expected {
            true => Ok(()),
            false => Err(format!("{written} of {chosen:?} were written, {expected} were expected")),
        }
    }

    async fn renew(&mut self, leases: &[usize]) -> Verdict {
        if self.claimed.is_empty() {
            return Ok(());
        }
        let chosen: BTreeSet<usize> = leases.iter().map(|lease| lease % self.claimed.len()).collect();
        let lease = |n: &usize| (self.claimed[*n].id, self.claimed[*n].claimed_at);
        let asked: Vec<_> = chosen.iter().map(lease).collect();
        let now = self.model.now();
        let renewals = renew(&mut self.recorder, &asked).await.unwrap();
        for (n, (id, claimed_at)) in chosen.into_iter().zip(asked) {
            // Of two leases of a row at most one lives.
            let lives = self.model.renew(n, now);
            let renewed = renewals.renewed.iter().find(|(renewed, at)| *renewed == id && *at >= claimed_at);
            match (lives, renewed) {
                (true, Some((_, at))) => self.claimed[n].claimed_at = *at,
                (false, Some(_)) if asked_twice(&self.claimed, id) => {}
                (false, None) => {}
                _ => return Err(format!("lease {n} lives: {lives}, renewed: {renewed:?}")),
            }
        }
        Ok(())
    }

    async fn pass(&mut self, seconds: i64) {
        for sql in PASS {
            sqlx::query(sql).bind(seconds as f64).execute(&self.db.pool).await.unwrap();
        }
        let back = |time: &mut DbTime| time.0 -= seconds * 1_000_000;
        self.processes.iter_mut().flatten().for_each(|process| back(&mut process.announced));
        for delivery in &mut self.claimed {
            back(&mut delivery.claimed_at);
            delivery.previous_attempt_at.iter_mut().for_each(back);
        }
        self.model.pass(seconds);
    }

    async fn crash(&mut self, process: usize) {
        if let Some(Process { backend, .. }) = self.processes[process].take() {
            // Waits until it is gone, and with it the sign that the process lives.
            let end = sqlx::query("SELECT pg_terminate_backend($1, 10000)").bind(backend);
            end.execute(&self.db.pool).await.unwrap();
            self.model.crash(process);
        }
    }

    async fn disable(&mut self, of: usize, by_dispatcher: bool) -> Verdict {
        let was_enabled = !self.model.destinations[of].disabled;
        if by_dispatcher {
            let id = DestinationId(self.destinations[of]);
            let done = destinations::disable(&mut self.recorder, id, "a reason").await.unwrap();
            if (done == Disabled::Now) != was_enabled {
                return Err(format!("disabled: {done:?}, was enabled: {was_enabled}"));
            }
        } else {
            self.switch(of, false).await;
        }
        self.model.destinations[of].disabled = true;
        self.model.destinations[of].reason |= by_dispatcher && was_enabled;
        Ok(())
    }

    async fn switch(&self, of: usize, enabled: bool) {
        let sql = sqlx::query("UPDATE webhook_destinations SET enabled = $2 WHERE id = $1");
        sql.bind(self.destinations[of]).bind(enabled).execute(&self.db.pool).await.unwrap();
    }

    /// The dead ones by a job, all of them by hand.
    async fn replay(&mut self, of: usize, only_dead: bool) -> Verdict {
        let destination = DestinationId(self.destinations[of]);
        if !only_dead {
            let rows = self.model.rows.iter().filter(|row| row.destination == of);
            let ids: Vec<DeliveryId> = rows.map(|row| DeliveryId(row.id)).collect();
            let retried = retry(&mut self.recorder, OrgId(self.org), &ids).await.unwrap();
            return match retried.unknown.is_empty() {
                true => Ok(()),
                false => Err(format!("{:?} are not known", retried.unknown)),
            };
        }
        let spec = jobs::Spec {
            kind: jobs::Kind::Replay,
            org: OrgId(self.org),
            destination,
            from: None,
            to: None,
            statuses: vec![Status::Dead],
            event_type: None,
        };
        let job = jobs::create(&mut self.recorder, &spec).await.unwrap().unwrap();
        let pace = jobs::Pace { rows: 2, look: 2, pause: Duration::ZERO, patience: Duration::ZERO };
        loop {
            match jobs::work(&mut self.recorder, job.id, spec.kind, &pace).await.unwrap() {
                Some(jobs::State::Running) => {}
                Some(jobs::State::Done) => return Ok(()),
                other => return Err(format!("the replay is {other:?}")),
            }
        }
    }

    async fn reset(&mut self, row: usize, how: Reset) {
        if self.model.rows.is_empty() {
            return;
        }
        let row = row % self.model.rows.len();
        let times = match how {
            Reset::NoTime => "next_retry_at = NULL",
            Reset::Now => "next_retry_at = timezone('UTC', clock_timestamp())",
            Reset::AsNew => "next_retry_at = NULL, last_attempt_at = NULL",
        };
        let now = self.model.now();
        let id = self.model.rows[row].id;
        let set = "UPDATE webhook_deliveries SET status = 'pending', attempts = 0, delivered_at = NULL";
        self.db.execute(&format!("{set}, {times} WHERE id = '{id}'")).await;
        self.model.reset(row, how, now);
    }
}

/// Whether there were several leases of a delivery.
fn asked_twice(claimed: &[Delivery], id: DeliveryId) -> bool {
    claimed.iter().filter(|delivery| delivery.id == id).count() > 1
}

async fn connect(db: &Db) -> Connection {
    let options = store::planned(store::options(&db.url).unwrap());
    store::connect(&options).await.unwrap()
}

/// `asks` are all ordered, or none is.
async fn ask(process: &mut Process, asks: &[Ask], floor: DbTime) -> Vec<Grant> {
    let room = Room { planned: 1 << 30, most: 1 << 30, max_event_bytes: 1 << 20 };
    let Process { connection, sql, .. } = process;
    let grants = match asks[0].ordered {
        Some(_) => sql.claim_ordered(connection, asks, floor, room).await.unwrap(),
        None => sql.claim(connection, asks, floor, room).await.unwrap(),
    };
    // An ordered destination at which another process looks at this moment is left out.
    let of = |ask: &Ask| grants.iter().find(|grant| grant.destination == ask.destination).cloned();
    asks.iter().map(|ask| of(ask).unwrap_or_else(|| Grant::none(ask.destination))).collect()
}

fn outcome(delivery: &Delivery, result: Recorded) -> Outcome {
    let change = result.kind.change();
    let given_back = Outcome::given_back(delivery);
    if change == given_back.change {
        return given_back;
    }
    let ahead = Duration::from_secs(if result.ahead { 10 } else { 0 });
    let started_at = delivery.claimed_at.after(ahead + Duration::from_micros(1));
    let is_success = matches!(result.kind, Kind::Delivered);
    let failed = FailedAttempt { number: delivery.attempts + 1, duration: ahead, charged: true };
    Outcome {
        change,
        last_attempt_at: Some(started_at),
        response_status: Some(if is_success { 200 } else { 500 }),
        error_message: (!is_success).then(|| "it failed".into()),
        failed: (!is_success).then_some(failed),
        ..given_back
    }
}
