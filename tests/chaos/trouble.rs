//! What goes wrong in a chaos run, and how it ends.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use sqlx::{AssertSqlSafe, Postgres, Transaction};
use tokio::sync::mpsc::UnboundedSender;

use crate::cast::{Manner, Member};
use crate::common::{Db, End, Fault, Posthaste, Proxy, Server};

/// Longest wait for the database where trouble needs it: it may be away already.
const PATIENCE: Duration = Duration::from_secs(2);
/// Processes that run at most.
const MOST_PROCESSES: usize = 2;

/// Everything that trouble can be made with.
pub struct Stage {
    pub server: Server,
    pub db: Db,
    pub proxy: Proxy,
    pub processes: Vec<Posthaste>,
    pub members: Arc<Vec<Member>>,
    pub switches: UnboundedSender<(usize, bool)>,
    /// When processes were killed.
    pub kills: Vec<Instant>,
    /// When processes that had been stopped went on.
    pub continued: Vec<Instant>,
    /// How often each kind of trouble was made.
    pub counts: BTreeMap<&'static str, usize>,
    /// What began and ended when, since the start of the run.
    pub start: Instant,
    pub story: Vec<String>,
    /// The logs of processes that are gone.
    pub logs: Vec<String>,
    pub server_is_up: bool,
}

/// What ends a piece of trouble.
pub enum Cure {
    Nothing,
    Network,
    Continue(i32),
    Start,
    Database,
    Unlock(Transaction<'static, Postgres>),
    Enable(usize),
    Restore(usize),
}

impl Cure {
    fn name(&self) -> &'static str {
        match self {
            Cure::Nothing => "  (over)",
            Cure::Network => "  network well",
            Cure::Continue(_) => "  process continues",
            Cure::Start => "  process started",
            Cure::Database => "  database up",
            Cure::Unlock(_) => "  unlocked",
            Cure::Enable(_) => "  enabled",
            Cure::Restore(_) => "  receiver back",
        }
    }
}

impl Stage {
    /// Starts one more process; it need not become ready.
    pub fn start_process(&mut self) {
        let url = self.proxy.url();
        let environment = [
            ("DATABASE_URL", url.reveal()),
            ("RUST_LOG", "info,posthaste::actors=debug"),
            ("POSTHASTE_SHUTDOWN_GRACE", "5s"),
            ("POSTHASTE_OUTAGE_GRACE", "24h"),
        ];
        self.processes.push(Posthaste::spawn(&["serve"], &environment));
    }

    /// Makes trouble of one kind.
    pub async fn begin(&mut self, rng: &mut fastrand::Rng) -> Cure {
        let kind = rng.usize(0..20);
        let (name, cure) = match kind {
            0..=5 => self.network(kind, rng),
            6 => ("connections hung up", self.hang_up(rng)),
            7 | 8 => ("process killed", self.kill(rng)),
            9 | 10 => ("process stopped", self.stop(rng)),
            11 => ("process terminated", self.terminate(rng).await),
            12 => ("process joined", self.join()),
            13 => ("database restarted", self.restart_database(rng)),
            14 => ("sessions ended", self.sessions("pg_terminate_backend").await),
            15 => ("statements cancelled", self.sessions("pg_cancel_backend").await),
            16 => ("rows locked", self.lock(rng).await),
            17 => ("destination disabled", self.disable(rng)),
            18 => ("destination changed", self.change(rng).await),
            _ => ("receiver away", self.outage(rng).await),
        };
        *self.counts.entry(name).or_default() += 1;
        self.tell(name);
        cure
    }

    fn tell(&mut self, what: &str) {
        let processes: Vec<i32> = self.processes.iter().map(Posthaste::pid).collect();
        self.story.push(format!("{:.1?} {what} {processes:?}", self.start.elapsed()));
    }

    /// Ends it.
    pub async fn end(&mut self, cure: Cure) {
        self.tell(cure.name());
        match cure {
            Cure::Nothing => {}
            Cure::Network => self.proxy.set(Fault::None),
            Cure::Continue(pid) => {
                if let Some(process) = self.processes.iter().find(|process| process.pid() == pid) {
                    process.signal(Signal::CONT);
                    self.continued.push(Instant::now());
                }
            }
            Cure::Start => {
                if self.processes.len() < MOST_PROCESSES {
                    self.start_process();
                }
            }
            Cure::Database => {
                if !self.server_is_up {
                    self.server.restart();
                    self.server_is_up = true;
                }
            }
            Cure::Unlock(transaction) => {
                tokio::time::timeout(PATIENCE, transaction.rollback()).await.ok();
            }
            Cure::Enable(member) => self.switches.send((member, true)).unwrap(),
            Cure::Restore(member) => self.members[member].receiver.restore().await,
        }
    }

    fn network(&mut self, kind: usize, rng: &mut fastrand::Rng) -> (&'static str, Cure) {
        let (name, fault) = match kind {
            0 => ("network cut", Fault::Cut),
            1 => ("network reset", Fault::Reset),
            2 => ("network stalled", Fault::Stall),
            3 => ("network half-open", Fault::HalfOpen),
            4 => ("network slow", Fault::Slow(Duration::from_millis(rng.u64(1..100)))),
            _ => ("connections closed after some bytes", Fault::CloseAfter(rng.usize(1..50_000))),
        };
        self.proxy.set(fault);
        (name, Cure::Network)
    }

    fn hang_up(&mut self, rng: &mut fastrand::Rng) -> Cure {
        self.proxy.hang_up(if rng.bool() { End::Close } else { End::Reset });
        Cure::Nothing
    }

    fn any_process(&self, rng: &mut fastrand::Rng) -> usize {
        rng.usize(0..self.processes.len())
    }

    fn kill(&mut self, rng: &mut fastrand::Rng) -> Cure {
        let mut process = self.processes.swap_remove(self.any_process(rng));
        process.kill_9();
        self.kills.push(Instant::now());
        self.logs.push(process.log());
        // Somebody must be there for the next piece of trouble.
        if self.processes.is_empty() && rng.bool() {
            self.start_process();
            return Cure::Nothing;
        }
        if self.processes.is_empty() {
            self.start_process();
        }
        Cure::Start
    }

    fn stop(&mut self, rng: &mut fastrand::Rng) -> Cure {
        let process = &self.processes[self.any_process(rng)];
        process.signal(Signal::STOP);
        Cure::Continue(process.pid())
    }

    async fn terminate(&mut self, rng: &mut fastrand::Rng) -> Cure {
        let process = self.processes.swap_remove(self.any_process(rng));
        self.see_off(process).await;
        if self.processes.is_empty() {
            self.start_process();
        }
        Cure::Nothing
    }

    /// Ends a process in order; what it could not write any more will come again.
    pub async fn see_off(&mut self, mut process: Posthaste) {
        process.signal(Signal::CONT);
        let status = process.terminate().await;
        let log = process.log();
        // On a busy machine it may be told to end before it has begun, and so before it could listen.
        let never_began = log.is_empty() && status.signal() == Some(Signal::TERM.as_raw());
        assert!(status.success() || never_began, "it ended with {status}:\n{log}");
        if log.contains("results could not be written") {
            self.kills.push(Instant::now());
        }
        self.logs.push(log);
    }

    fn join(&mut self) -> Cure {
        if self.processes.len() < MOST_PROCESSES {
            self.start_process();
        }
        Cure::Nothing
    }

    fn restart_database(&mut self, rng: &mut fastrand::Rng) -> Cure {
        if self.server_is_up {
            if rng.bool() {
                self.server.crash()
            } else {
                self.server.stop()
            }
            self.server_is_up = false;
        }
        Cure::Database
    }

    async fn sessions(&mut self, how: &str) -> Cure {
        let sql = format!(
            "SELECT count({how}(pid)) FROM pg_stat_activity
            WHERE datname = current_database() AND application_name = 'posthaste'"
        );
        self.try_execute(&sql).await;
        Cure::Nothing
    }

    async fn lock(&mut self, rng: &mut fastrand::Rng) -> Cure {
        let Ok(Ok(mut transaction)) = tokio::time::timeout(PATIENCE, self.db.pool.begin()).await else {
            return Cure::Nothing;
        };
        let sql = match rng.u8(0..4) {
            0 => "LOCK TABLE webhook_deliveries IN ACCESS EXCLUSIVE MODE",
            1 => "SELECT FROM webhook_destinations LIMIT 5 FOR UPDATE",
            _ => "SELECT FROM webhook_deliveries WHERE status IN ('pending', 'failed') LIMIT 20 FOR UPDATE",
        };
        match tokio::time::timeout(PATIENCE, sqlx::query(sql).execute(&mut *transaction)).await {
            Ok(Ok(_)) => Cure::Unlock(transaction),
            _ => Cure::Nothing,
        }
    }

    fn disable(&mut self, rng: &mut fastrand::Rng) -> Cure {
        let member = rng.usize(0..self.members.len());
        self.switches.send((member, false)).unwrap();
        Cure::Enable(member)
    }

    /// Something about a destination changes that makes its actor begin anew.
    async fn change(&mut self, rng: &mut fastrand::Rng) -> Cure {
        let member = &self.members[rng.usize(0..self.members.len())];
        let sql = format!(
            "UPDATE webhook_destinations SET signing_secret = '{}', updated_at = now() WHERE id = '{}'",
            rng.u64(..),
            member.id
        );
        self.try_execute(&sql).await;
        Cure::Nothing
    }

    /// Not of one whose deliveries must be delivered at once.
    async fn outage(&mut self, rng: &mut fastrand::Rng) -> Cure {
        let member = rng.usize(0..self.members.len());
        if self.members[member].manner == Manner::Healthy {
            return Cure::Nothing;
        }
        self.members[member].outage().await;
        Cure::Restore(member)
    }

    async fn try_execute(&self, sql: &str) {
        let done = sqlx::query(AssertSqlSafe(sql.to_owned())).persistent(false).execute(&self.db.pool);
        tokio::time::timeout(PATIENCE, done).await.ok();
    }
}
