//! The [`Supervisor`]: one [`DestinationActor`] per enabled destination, always.
//!
//! It starts them, tells them of changes, wakes them, and brings back the ones that panicked. Hints make it
//! quick, the poll makes it sure: whatever was missed is found within one poll interval, or, where there is a
//! backlog, by the destination itself.

#[cfg(test)]
pub(super) mod panics;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use actix::prelude::*;
use tokio::sync::oneshot;

use super::Shared;
use super::db::{CannotLoad, DbActor, Refresh, Withdraw};
use super::destination::{self, DestinationActor, Handles, Reconfigure, Retire, Stopped, Wake};
use super::listen::{self, Heard};
use super::messages::{Flush, StopClaims};
use super::outage::Outage;
use super::supervision::{ExitGuard, MAX_RESTART_PAUSE, Ping, StopHandle, restart_pause};
use super::unusable::UnusableDestinations;
use crate::clock::{self, DbClock};
use crate::model::{DbTime, Destination, DestinationId};
use crate::policy::health::Saved;
use crate::store::destinations::{self, Loaded, Seen, Unusable};
use crate::store::listener::{Hint, Scope};
use crate::store::{self, Pool, StoreError};

/// Pause before the destinations are looked at again after that failed.
const POLL_RETRY: Duration = Duration::from_secs(1);
/// After the grace, how long the results may take to be written before a shutdown gives up waiting.
const FLUSH_LIMIT: Duration = Duration::from_secs(20);

/// To itself: a destination that panicked may come back.
#[derive(Message)]
#[rtype(result = "()")]
struct Respawn(DestinationId);

/// From the dispatcher: stop everything; the reply comes when it is done.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Shutdown;

/// Asks for the state of the supervisor.
#[derive(Message)]
#[rtype(result = "SupervisorSnapshot")]
pub struct Snapshot;

/// Asks for the states of the destinations; those that do not answer are left out.
#[derive(Message)]
#[rtype(result = "Vec<destination::DestinationSnapshot>")]
pub struct Destinations;

/// The state of the [`Supervisor`].
#[derive(Clone, Debug, Default, serde::Serialize, MessageResponse)]
pub struct SupervisorSnapshot {
    /// Destinations running.
    pub destinations: usize,
    /// Whether the destinations have been loaded once.
    pub loaded: bool,
    /// Destinations that are enabled and not contacted, since their secrets cannot be decrypted.
    pub locked: usize,
    /// Panics of destinations since the start.
    pub panics: u64,
    /// Why notifications do not arrive, if they do not: polling still finds everything.
    pub not_listening: Option<String>,
    /// Why the last poll failed, if it did.
    pub trouble: Option<String>,
}

struct Child {
    addr: Addr<DestinationActor>,
    generation: u64,
    version: i64,
    woken: Arc<AtomicBool>,
}

/// See the module.
pub struct Supervisor {
    shared: Arc<Shared>,
    db: Addr<DbActor>,
    pool: Pool,
    /// Where destinations report their end: known once it runs.
    reports: Option<Recipient<Stopped>>,
    listening: Option<StopHandle>,
    arbiters: Vec<Arbiter>,
    children: HashMap<DestinationId, Child>,
    /// Every life that has not ended, also of destinations that are disabled by now.
    living: HashMap<(DestinationId, u64), Addr<DestinationActor>>,
    unusable: UnusableDestinations,
    generation: u64,
    respawn_pauses: HashMap<DestinationId, Duration>,
    /// Those that panicked and whose return is planned.
    returning: BTreeSet<DestinationId>,
    /// Changed destinations that are to be loaded.
    changed: BTreeSet<DestinationId>,
    loading: bool,
    polling: bool,
    /// A poll is wanted as soon as the present one is done.
    poll_again: bool,
    /// A poll failed, and the next one is planned.
    retrying: bool,
    outage: Outage,
    stats: SupervisorSnapshot,
    stopping: Option<oneshot::Sender<()>>,
    is_stopping: bool,
    _exit_guard: ExitGuard,
}

impl Supervisor {
    /// A supervisor whose destinations use `db`.
    pub fn new(shared: Arc<Shared>, db: Addr<DbActor>, pool: Pool, exit_guard: ExitGuard) -> Supervisor {
        Supervisor {
            shared,
            db,
            pool,
            reports: None,
            listening: None,
            arbiters: Vec::new(),
            children: HashMap::new(),
            living: HashMap::new(),
            unusable: UnusableDestinations::default(),
            generation: 0,
            respawn_pauses: HashMap::new(),
            returning: BTreeSet::new(),
            changed: BTreeSet::new(),
            loading: false,
            polling: false,
            poll_again: false,
            retrying: false,
            outage: Outage::default(),
            stats: SupervisorSnapshot::default(),
            stopping: None,
            is_stopping: false,
            _exit_guard: exit_guard,
        }
    }

    /// Looks at all destinations: which have changed, which have work.
    fn poll(&mut self, ctx: &mut Context<Self>) {
        if self.is_stopping {
            return;
        }
        if self.polling {
            self.poll_again = true;
            return;
        }
        (self.polling, self.poll_again) = (true, false);
        let (pool, busy) = (self.pool.clone(), self.shared.backlogs.all());
        let poll = async move {
            match destinations::poll(&pool, &busy).await {
                Err(error) => Err(store::cause(&pool, error).await),
                seen => seen,
            }
        };
        ctx.spawn(poll.into_actor(self).map(|seen, this, ctx| {
            this.polling = false;
            match seen {
                Ok(seen) => this.polled(&seen, ctx),
                Err(error) => this.trouble(&error, ctx),
            }
            if this.poll_again {
                this.poll(ctx);
            }
        }));
    }

    fn polled(&mut self, seen: &[Seen], ctx: &mut Context<Self>) {
        if self.outage.ends() {
            log::info!("the database answers again");
        }
        let enabled: HashMap<_, _> = seen.iter().map(|seen| (seen.destination, seen)).collect();
        let gone: Vec<DestinationId> =
            self.children.keys().filter(|id| !enabled.contains_key(id)).copied().collect();
        // Looked at again: it may have been enabled since this poll began.
        self.changed.extend(gone);
        self.forget_unusable(|id| enabled.contains_key(&id));
        for seen in seen {
            match self.children.get(&seen.destination) {
                Some(child) if child.version == seen.version => {
                    if seen.due {
                        child.wake();
                    }
                }
                // Panicked a moment ago: its return is planned.
                None if self.returning.contains(&seen.destination) => {}
                None if self.unusable.knows(seen.destination, seen.version, clock::now()) => {}
                _ => {
                    self.changed.insert(seen.destination);
                }
            }
        }
        if !self.stats.loaded && self.changed.is_empty() {
            self.stats.loaded = true;
            log::info!("no destination is enabled yet");
        }
        self.load(ctx);
    }

    fn trouble(&mut self, error: &StoreError, ctx: &mut Context<Self>) {
        if self.outage.is_news(error, clock::now()) {
            log::error!("looking at the destinations failed, trying again until it works: {error}");
        }
        if error.is_silence() {
            self.db.do_send(Refresh);
        }
        if !std::mem::replace(&mut self.retrying, true) {
            ctx.run_later(POLL_RETRY, |this, ctx| {
                this.retrying = false;
                this.poll(ctx);
            });
        }
    }

    /// Loads the destinations that have changed, all of them in one statement.
    fn load(&mut self, ctx: &mut Context<Self>) {
        if self.loading || self.changed.is_empty() || self.is_stopping {
            return;
        }
        self.loading = true;
        let ids: Vec<DestinationId> = std::mem::take(&mut self.changed).into_iter().collect();
        let (pool, keys) = (self.pool.clone(), self.shared.config.secret_keys.clone());
        let load = async move {
            let loaded = destinations::load(&pool, &ids, &keys).await;
            (ids, loaded)
        };
        ctx.spawn(load.into_actor(self).map(|(ids, loaded), this, ctx| {
            this.loading = false;
            match loaded {
                Ok(loaded) => this.loaded(&ids, loaded),
                // The next poll sees the difference again.
                Err(error) => this.trouble(&error, ctx),
            }
            this.load(ctx);
        }));
    }

    fn loaded(&mut self, asked: &[DestinationId], loaded: Vec<Loaded>) {
        let enabled: BTreeSet<_> = loaded.iter().map(|loaded| loaded.id).collect();
        asked.iter().filter(|id| !enabled.contains(id)).for_each(|id| self.retire(*id));
        let before = self.children.len();
        loaded.into_iter().for_each(|loaded| self.apply(loaded));
        let started = self.children.len() - before.min(self.children.len());
        if !std::mem::replace(&mut self.stats.loaded, true) || started > 0 {
            log::info!("{started} destination(s) started, {} running", self.children.len());
        }
    }

    /// Makes the actor of a destination what its row says.
    fn apply(&mut self, loaded: Loaded) {
        if self.is_stopping {
            return;
        }
        let Loaded { id, destination, saved, version, now } = loaded;
        let destination = match destination {
            Ok(destination) => Box::new(destination),
            Err(why) => {
                self.end(id);
                if let Unusable::Unreadable(why) = &why {
                    self.db.do_send(CannotLoad(id, Some(why.clone())));
                }
                return self.unusable.add(id, version, why, clock::now());
            }
        };
        if self.unusable.release(id) {
            self.db.do_send(CannotLoad(id, None));
        }
        match self.children.get_mut(&id) {
            Some(child) if child.version == version => {}
            Some(child) => {
                child.version = version;
                child.addr.do_send(Reconfigure(destination, saved));
            }
            None => self.spawn(destination, saved, version, now),
        }
    }

    fn spawn(&mut self, destination: Box<Destination>, saved: Saved, version: i64, now: DbTime) {
        let id = destination.id;
        self.db.do_send(Withdraw(id));
        self.generation += 1;
        let generation = self.generation;
        let woken = Arc::new(AtomicBool::new(false));
        let Some(stopped) = self.reports.clone() else { return };
        let handles =
            Handles { db: self.db.clone(), stopped, shared: self.shared.clone(), woken: woken.clone() };
        let arbiter = &self.arbiters[generation as usize % self.arbiters.len()];
        let db_clock = DbClock::new(now, clock::now());
        let addr = DestinationActor::start_in_arbiter(&arbiter.handle(), move |_| {
            DestinationActor::new(destination, saved, db_clock, generation, handles)
        });
        let child = Child { addr: addr.clone(), generation, version, woken };
        child.wake();
        self.living.insert((id, generation), addr);
        self.children.insert(id, child);
    }

    /// Lets a destination that is disabled or deleted finish what is in flight and go.
    fn retire(&mut self, id: DestinationId) {
        self.forget_unusable(|unusable| unusable != id);
        if self.end(id) {
            log::info!("destination={id} is not enabled any more");
        }
    }

    fn forget_unusable(&mut self, is_enabled: impl Fn(DestinationId) -> bool) {
        for id in self.unusable.retain(is_enabled) {
            self.db.do_send(CannotLoad(id, None));
        }
    }

    /// Whether the destination was running.
    fn end(&mut self, id: DestinationId) -> bool {
        self.respawn_pauses.remove(&id);
        self.db.do_send(Withdraw(id));
        self.children.remove(&id).inspect(|child| child.addr.do_send(Retire(None))).is_some()
    }

    fn wake(&mut self, scope: Scope, ctx: &mut Context<Self>) {
        match scope {
            Scope::Destinations(ids) => {
                ids.iter().filter_map(|id| self.children.get(id)).for_each(Child::wake)
            }
            Scope::All => self.poll(ctx),
        }
    }

    /// Ends the shutdown when the last destination is gone.
    fn check_stopped(&mut self, ctx: &mut Context<Self>) {
        if !self.living.is_empty() || self.stopping.is_none() {
            return;
        }
        let Some(done) = self.stopping.take() else { return };
        let (db, pool, listening) = (self.db.clone(), self.pool.clone(), self.listening.take());
        let end = async move {
            if tokio::time::timeout(FLUSH_LIMIT, db.send(Flush)).await.is_err() {
                log::error!("some results could not be written; their deliveries will be sent again");
            }
            // Connections can only be dropped while the runtime lives.
            if let Some(listening) = listening {
                listening.stop().await;
            }
            tokio::time::timeout(store::STATEMENT_TIMEOUT, pool.close()).await.ok();
        };
        ctx.spawn(end.into_actor(self).map(|(), this, _| {
            this.arbiters.iter().for_each(|arbiter| {
                arbiter.stop();
            });
            // Nobody waits any more if the process is being killed.
            done.send(()).unwrap_or(());
        }));
    }
}

impl Child {
    /// Wakes the destination, unless a wake is under way to it.
    fn wake(&self) {
        if !self.woken.swap(true, Ordering::AcqRel) {
            self.addr.do_send(Wake);
        }
    }
}

impl Actor for Supervisor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.arbiters = (0..self.shared.config.workers.max(1)).map(|_| Arbiter::new()).collect();
        self.reports = Some(ctx.address().recipient());
        self.poll(ctx);
        ctx.run_interval(self.shared.config.poll_interval, |this, ctx| this.poll(ctx));
        let supervision = &self.shared.supervision;
        for (n, arbiter) in self.arbiters.iter().enumerate() {
            supervision
                .watch_arbiter(format!("worker {} of {}", n + 1, self.arbiters.len()), arbiter.handle());
        }
        self.listening =
            Some(listen::start(supervision.clone(), self.pool.clone(), ctx.address().recipient()));
    }
}

impl Handler<Heard> for Supervisor {
    type Result = ();

    fn handle(&mut self, heard: Heard, ctx: &mut Self::Context) {
        match heard {
            Heard::Hint(Hint::Wake(scope)) => self.wake(scope, ctx),
            Heard::Hint(Hint::Config(Scope::Destinations(ids))) => {
                self.changed.extend(ids);
                self.load(ctx);
            }
            Heard::Hint(Hint::Config(Scope::All)) => self.poll(ctx),
            Heard::Listening(state) => {
                match (&state, &self.stats.not_listening) {
                    (Err(why), None) => {
                        log::warn!("not listening for notifications, polling instead: {why}")
                    }
                    (Ok(()), Some(_)) => log::info!("listening for notifications again"),
                    _ => {}
                }
                self.stats.not_listening = state.err();
                self.db.do_send(Refresh);
            }
        }
    }
}

impl Handler<Stopped> for Supervisor {
    type Result = ();

    fn handle(&mut self, stopped: Stopped, ctx: &mut Self::Context) {
        let Stopped { destination: id, generation, clean } = stopped;
        self.living.remove(&(id, generation));
        let current = self.children.get(&id).is_some_and(|child| child.generation == generation);
        if !clean && !self.is_stopping {
            self.stats.panics += 1;
            log::error!("destination={id} panicked; what it had in flight is sent again when its leases end");
        }
        if current {
            self.children.remove(&id);
            if clean {
                self.changed.insert(id);
                self.load(ctx);
            } else if !self.is_stopping {
                let pause = restart_pause(self.respawn_pauses.get(&id).copied());
                self.respawn_pauses.insert(id, pause);
                self.returning.insert(id);
                ctx.notify_later(Respawn(id), pause);
            }
        }
        self.check_stopped(ctx);
    }
}

impl Handler<Respawn> for Supervisor {
    type Result = ();

    fn handle(&mut self, Respawn(id): Respawn, ctx: &mut Self::Context) {
        self.returning.remove(&id);
        self.changed.insert(id);
        self.load(ctx);
        // A life that lasts is not punished for the one before.
        ctx.run_later(MAX_RESTART_PAUSE, move |this, _| {
            if this.children.contains_key(&id) {
                this.respawn_pauses.remove(&id);
            }
        });
    }
}

impl Handler<Shutdown> for Supervisor {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: Shutdown, ctx: &mut Self::Context) -> Self::Result {
        let (done, stopped) = oneshot::channel();
        self.is_stopping = true;
        self.stopping = Some(done);
        self.db.do_send(StopClaims);
        let grace = self.shared.config.shutdown_grace;
        self.living.values().for_each(|addr| addr.do_send(Retire(Some(grace))));
        self.check_stopped(ctx);
        Box::pin(async { stopped.await.unwrap_or(()) })
    }
}

impl Handler<Ping> for Supervisor {
    type Result = ();

    fn handle(&mut self, _: Ping, _: &mut Self::Context) {}
}

impl Handler<Snapshot> for Supervisor {
    type Result = SupervisorSnapshot;

    fn handle(&mut self, _: Snapshot, _: &mut Self::Context) -> SupervisorSnapshot {
        let (destinations, locked) = (self.children.len(), self.unusable.locked());
        let trouble = self.outage.cause().map(str::to_owned);
        SupervisorSnapshot { destinations, locked, trouble, ..self.stats.clone() }
    }
}

impl Handler<Destinations> for Supervisor {
    type Result = ResponseFuture<Vec<destination::DestinationSnapshot>>;

    fn handle(&mut self, _: Destinations, _: &mut Self::Context) -> Self::Result {
        let asked: Vec<_> =
            self.children.values().map(|child| child.addr.send(destination::Snapshot)).collect();
        Box::pin(async move {
            futures_util::future::join_all(asked).await.into_iter().filter_map(Result::ok).collect()
        })
    }
}
