//! The three connections of the [`super::db::DbActor`]: opened when needed, dropped after any error, with a
//! pause before the next try.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use super::db::{Renew, Renewed};
use crate::clock;
use crate::dispatch::RenewReply;
use crate::model::{DbTime, DestinationId, Outcome};
use crate::policy::health::Saved;
use crate::store::deliveries::{self, Ask, ClaimSql, Grant, LEASE, MAX_RECORD_ROWS, Room};
use crate::store::destinations::{self, Disabled, OperationalEvent};
use crate::store::presence;
use crate::store::{self, ConnectOptions, Connection, StoreError};

/// Pause after the first error; doubles up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(100);
/// Longest pause between two tries: a database that comes back is noticed within this.
const MAX_BACKOFF: Duration = Duration::from_secs(2);
/// Pause before rows that somebody has locked are tried again; what can be written waits no longer than this
/// for them.
const LOCKED_PAUSE: Duration = Duration::from_millis(100);
/// It is told after so many tries: an application may lock a row for a moment.
const LOCKED_TOLD_AFTER: u32 = 10;
/// Longest time in which a connection at rest must show that it lives, or be replaced: work waits for it.
const REFRESH_LIMIT: Duration = Duration::from_secs(1);
/// Another process is taken for gone when it was not to be seen for so long: one that lives and whose
/// connection has died makes another one sooner.
const UNSEEN: Duration = Duration::from_secs(3);
/// Operational events are dropped rather than hoarded when they cannot be written.
const MAX_EVENTS_WAITING: usize = 1_000;

/// How long to wait before the next try.
#[derive(Default)]
struct Backoff(Duration);

impl Backoff {
    async fn wait(&self) {
        if !self.0.is_zero() {
            tokio::time::sleep(self.0).await;
        }
    }

    fn note<T>(&mut self, result: &Result<T, StoreError>) {
        self.0 = match result {
            Ok(_) => Duration::ZERO,
            Err(_) => (self.0 * 2).clamp(MIN_BACKOFF, MAX_BACKOFF),
        };
    }
}

/// The connection that claims, and that shows other processes that this one lives.
pub(super) struct ClaimLane {
    options: ConnectOptions,
    open: Option<Open>,
    since: Option<Since>,
    backoff: Backoff,
}

/// A connection that claims.
struct Open {
    connection: Connection,
    sql: ClaimSql,
    /// Others can tell by it that this process lives.
    takes_part: bool,
}

impl Open {
    /// Takes part, unless it does.
    async fn take_part(&mut self) -> Result<(), StoreError> {
        if !self.takes_part {
            self.takes_part = presence::try_take_part(&mut self.connection).await?;
        }
        Ok(())
    }
}

impl ClaimLane {
    pub(super) fn new(options: ConnectOptions) -> ClaimLane {
        ClaimLane { options, open: None, since: None, backoff: Backoff::default() }
    }

    /// Whether the last statement failed.
    pub(super) fn has_failed(&self) -> bool {
        !self.backoff.0.is_zero()
    }

    /// A second connection that claims, once it is settled which leases are void: until then it would pass
    /// for another process that lives.
    pub(super) fn beside(&self) -> Option<ClaimLane> {
        let since = self.since.filter(Since::is_settled)?;
        Some(ClaimLane { since: Some(since), ..ClaimLane::new(self.options.clone()) })
    }

    /// Whether there is a connection by which others cannot see that this process lives.
    pub(super) fn is_unseen(&self) -> bool {
        self.open.as_ref().is_some_and(|open| !open.takes_part)
    }

    /// Waits as long as it should before the next statement.
    pub(super) async fn rest(&self) {
        self.backoff.wait().await;
    }

    pub(super) async fn claim(&mut self, asks: &[Ask], room: Room) -> Result<Vec<Grant>, StoreError> {
        // A connection in an unknown state is not used again.
        let result = self.try_claim(asks, room).await;
        if result.is_err() {
            self.open = None;
        }
        self.backoff.note(&result);
        result
    }

    /// Makes sure that the connection lives, if there has been one and that is possible at once.
    pub(super) async fn refresh(&mut self) {
        if self.since.is_none() {
            return;
        }
        let kept = self.open.take();
        let (options, since) = (&self.options, &mut self.since);
        let refreshed = tokio::time::timeout(REFRESH_LIMIT, async {
            if let Some(mut open) = kept
                && store::answers(&mut open.connection).await
                && open.take_part().await.is_ok()
            {
                return Some(open);
            }
            open(options, since).await.ok()
        });
        self.open = refreshed.await.unwrap_or(None);
    }

    async fn try_claim(&mut self, asks: &[Ask], room: Room) -> Result<Vec<Grant>, StoreError> {
        let open = match &mut self.open {
            Some(open) => open,
            closed => closed.insert(open(&self.options, &mut self.since).await?),
        };
        open.take_part().await?;
        let Open { connection, sql, .. } = open;
        let floor = match &mut self.since {
            Some(since) => since.floor(connection).await?,
            None => DbTime(i64::MIN),
        };
        let (ordered, plain): (Vec<Ask>, Vec<Ask>) =
            asks.iter().cloned().partition(|ask| ask.ordered.is_some());
        // Two statements share the room by the number of their asks.
        let part = |some: &[Ask]| room.part(some.len(), asks.len());
        let mut grants = Vec::new();
        if !plain.is_empty() {
            grants = sql.claim(connection, &plain, floor, part(&plain)).await?;
        }
        if !ordered.is_empty() {
            match sql.claim_ordered(connection, &ordered, floor, part(&ordered)).await {
                Ok(more) => grants.extend(more),
                // What was claimed before must not be lost with it; these look again at the next poll.
                Err(error) if !grants.is_empty() => {
                    log::error!("claiming for {} ordered destination(s) failed: {error}", ordered.len());
                    self.open = None;
                }
                Err(error) => return Err(error),
            }
        }
        if let Some(wait) = self.since.as_ref().and_then(Since::undecided_for) {
            for grant in grants.iter_mut().filter(|grant| grant.now != DbTime(0)) {
                // Leases that may be void by then should be looked at again.
                let again = grant.now.after(wait);
                grant.next_due = Some(grant.next_due.map_or(again, |due| due.min(again)));
            }
        }
        Ok(grants)
    }
}

/// When this process took part, and what that says about older leases.
#[derive(Clone, Copy)]
struct Since {
    announced: DbTime,
    at: Instant,
    /// No other process has been seen since.
    unseen: Option<Instant>,
    /// No other process lived at some moment after: leases from before `announced` belong to nobody.
    alone: bool,
}

impl Since {
    /// Whether there is nothing to be asked any more.
    fn is_settled(&self) -> bool {
        self.alone || clock::now() >= self.at + LEASE
    }

    /// How long until it may be said that no other process lives; none where that is clear.
    fn undecided_for(&self) -> Option<Duration> {
        let unseen = self.unseen.filter(|_| !self.is_settled())?;
        Some(UNSEEN.saturating_sub(clock::now().saturating_duration_since(unseen)))
    }

    /// Leases from before this moment are void.
    ///
    /// It is asked again until those leases have ended anyway: a killed process may live on for a while in a
    /// statement that PostgreSQL still runs for it.
    async fn floor(&mut self, connection: &mut Connection) -> Result<DbTime, StoreError> {
        if !self.is_settled() {
            let now = clock::now();
            let is_alone = presence::is_alone(connection).await?;
            self.unseen = is_alone.then(|| self.unseen.unwrap_or(now));
            self.alone = self.unseen.is_some_and(|since| now >= since + UNSEEN);
        }
        Ok(if self.alone { self.announced } else { DbTime(i64::MIN) })
    }
}

/// Opens the claiming connection. Only the first one of a process says when it took part: later ones find
/// leases of its own.
async fn open(options: &ConnectOptions, since: &mut Option<Since>) -> Result<Open, StoreError> {
    let mut connection = store::connect(options).await?;
    let takes_part = presence::try_take_part(&mut connection).await?;
    let announced = presence::now(&mut connection).await?;
    let sql = ClaimSql::read(&mut connection).await?;
    since.get_or_insert(Since { announced, at: clock::now(), unseen: None, alone: false });
    Ok(Open { connection, sql, takes_part })
}

/// What is to be written.
#[derive(Default)]
pub(super) struct Work {
    pub(super) outcomes: VecDeque<Outcome>,
    /// Outcomes set aside because somebody has locked their rows.
    pub(super) locked: VecDeque<Outcome>,
    pub(super) states: BTreeMap<DestinationId, Saved>,
    pub(super) disabled: Vec<(DestinationId, String)>,
    pub(super) events: Vec<OperationalEvent>,
    pub(super) renewals: Vec<Renew>,
}

impl Work {
    pub(super) fn is_empty(&self) -> bool {
        self.outcomes.is_empty()
            && self.locked.is_empty()
            && self.states.is_empty()
            && self.disabled.is_empty()
            && self.events.is_empty()
            && self.renewals.is_empty()
    }

    /// Takes at most `rows` outcomes, up to half of them such as were set aside, and everything else.
    pub(super) fn take(&mut self, rows: usize) -> Work {
        let mut outcomes = take_front(&mut self.locked, rows / 2);
        outcomes.extend(take_front(&mut self.outcomes, rows - outcomes.len()));
        Work {
            outcomes: outcomes.into(),
            locked: VecDeque::new(),
            states: std::mem::take(&mut self.states),
            disabled: std::mem::take(&mut self.disabled),
            events: std::mem::take(&mut self.events),
            renewals: std::mem::take(&mut self.renewals),
        }
    }

    /// Puts what was not written back in front.
    pub(super) fn put_back(&mut self, mut left: Work) {
        left.outcomes.append(&mut self.outcomes);
        // These take turns: there may be more of them than one statement tries.
        self.locked.append(&mut left.locked);
        left.locked = std::mem::take(&mut self.locked);
        // What came meanwhile is newer.
        left.states.append(&mut self.states);
        left.disabled.append(&mut self.disabled);
        left.events.append(&mut self.events);
        left.events.truncate(MAX_EVENTS_WAITING);
        left.renewals.append(&mut self.renewals);
        *self = left;
    }
}

/// The connection that writes.
pub(super) struct RecordLane {
    options: ConnectOptions,
    connection: Option<Connection>,
    backoff: Backoff,
    /// Somebody has locked rows of results: they are stepped around.
    avoiding: bool,
    /// How often in a row something could not be written because somebody has locked it.
    locked_tries: u32,
}

impl RecordLane {
    pub(super) fn new(options: ConnectOptions) -> RecordLane {
        RecordLane {
            options,
            connection: None,
            backoff: Backoff::default(),
            avoiding: false,
            locked_tries: 0,
        }
    }

    /// Uses another connection for the next statement.
    pub(super) fn reconnect(&mut self) {
        self.connection = None;
    }

    /// Waits as long as it should before the next statement.
    pub(super) async fn rest(&self) {
        self.backoff.wait().await;
        if self.locked_tries > 0 {
            tokio::time::sleep(LOCKED_PAUSE).await;
        }
    }

    /// Writes `work`, and leaves in it what was not written: after success, what somebody has locked.
    pub(super) async fn write(&mut self, work: &mut Work) -> Result<(), StoreError> {
        let result = self.try_write(work).await;
        if result.is_err() {
            self.connection = None;
        } else {
            self.note_locked(!work.is_empty());
        }
        self.backoff.note(&result);
        result
    }

    fn note_locked(&mut self, some: bool) {
        let before = self.locked_tries;
        self.locked_tries = if some { before.saturating_add(1) } else { 0 };
        if self.locked_tries == LOCKED_TOLD_AFTER {
            log::warn!("somebody has locked rows that are to be written; the others do not wait");
        } else if !some && before >= LOCKED_TOLD_AFTER {
            log::info!("the rows that somebody had locked are written");
        }
    }

    async fn try_write(&mut self, work: &mut Work) -> Result<(), StoreError> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            closed => closed.insert(store::connect(&self.options).await?),
        };
        if !work.renewals.is_empty() {
            renew(connection, &mut work.renewals).await?;
        }
        if !work.outcomes.is_empty() {
            record(connection, &mut self.avoiding, work).await?;
        }
        if !work.states.is_empty() {
            let locked = destinations::save(&mut *connection, &work.states).await?;
            work.states.retain(|destination, _| locked.contains(destination));
        }
        let mut at = 0;
        while let Some((destination, reason)) = work.disabled.get(at) {
            match destinations::disable(&mut *connection, *destination, reason).await? {
                Disabled::Now => log::warn!("destination={destination} disabled: {reason}"),
                Disabled::Before => {}
                Disabled::Locked => {
                    at += 1;
                    continue;
                }
            }
            work.disabled.remove(at);
        }
        let events = std::mem::take(&mut work.events);
        if !events.is_empty()
            && let Err(error) = destinations::announce(&mut *connection, &events).await
        {
            log::warn!("{} operational event(s) could not be written: {error}", events.len());
            self.connection = None;
        }
        Ok(())
    }
}

/// Writes the outcomes of `work`; those whose rows somebody has locked are set aside. Only where there are
/// any is the statement used that steps around them.
async fn record(connection: &mut Connection, avoiding: &mut bool, work: &mut Work) -> Result<(), StoreError> {
    let outcomes = work.outcomes.make_contiguous();
    // One order for all writers, so that two of them cannot wait for each other.
    outcomes.sort_unstable_by_key(|outcome| outcome.delivery);
    if !*avoiding {
        match deliveries::record(connection, outcomes).await {
            Ok(written) => {
                let lost = outcomes.len() as u64 - written;
                if lost > 0 {
                    log::debug!(
                        "{lost} of {} results were not written: their leases were lost",
                        outcomes.len()
                    );
                }
                work.outcomes.clear();
                return Ok(());
            }
            Err(error) if error.is_about_locks() => *avoiding = true,
            Err(error) => return Err(error),
        }
    }
    let locked = deliveries::record_unlocked(connection, outcomes).await?;
    work.locked.extend(work.outcomes.drain(..).filter(|outcome| locked.contains(&outcome.delivery)));
    *avoiding = !work.locked.is_empty();
    Ok(())
}

/// Renews leases for all who asked, and tells them.
async fn renew(connection: &mut Connection, asked: &mut Vec<Renew>) -> Result<(), StoreError> {
    let mut leases: Vec<_> = asked.iter().flat_map(|renew| &renew.leases).copied().collect();
    // As results are.
    leases.sort_unstable();
    let mut renewed = HashMap::new();
    let mut locked = HashSet::new();
    let sent = clock::now();
    for some in leases.chunks(MAX_RECORD_ROWS) {
        let renewals = deliveries::renew(connection, some).await?;
        renewed.extend(renewals.renewed);
        locked.extend(renewals.locked);
    }
    for Renew { leases, reply } in asked.drain(..) {
        let ids = || leases.iter().map(|(id, _)| *id);
        reply.do_send(Renewed(RenewReply {
            renewed: ids().filter_map(|id| Some((id, *renewed.get(&id)?))).collect(),
            locked: ids().filter(|id| locked.contains(id)).collect(),
            expires: Some(sent + LEASE),
        }));
    }
    Ok(())
}

/// Work in the order in which it came, with a way to take some of it.
fn take_front<T>(queue: &mut VecDeque<T>, most: usize) -> Vec<T> {
    queue.drain(..most.min(queue.len())).collect()
}
