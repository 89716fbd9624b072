//! A connection of the [`super::db::DbActor`] that claims: opened when needed, dropped after any error, with
//! a pause before the next try.

use std::time::{Duration, Instant};

use super::backoff::Backoff;
use crate::clock;
use crate::model::{DbTime, DeliveryId, DestinationId};
use crate::store::deliveries::{self, Aside, Ask, ClaimSql, Grant, LEASE, Room};
use crate::store::{self, ConnectOptions, Connection, StoreError, presence};

/// Longest time in which a connection at rest must show that it lives, or be replaced: work waits for it.
const REFRESH_LIMIT: Duration = Duration::from_secs(1);
/// For how long a delivery that cannot be read waits at least.
const SET_ASIDE_FOR: Duration = Duration::from_secs(60);
/// Another process is taken for gone when it was not to be seen for so long: one that lives and whose
/// connection has died makes another one sooner.
const UNSEEN: Duration = Duration::from_secs(3);
/// What came of a claim.
pub(super) enum ClaimResult {
    /// Leases, and why those who are ordered got nothing, if they did not.
    Granted { grants: Vec<Grant>, ordered_failed: Option<StoreError> },
    /// Something of what would have been taken cannot be; with fewer it may work.
    Culprit(StoreError),
    /// This delivery cannot be claimed, and was made to wait; the others were granted.
    SetAside { delivery: DeliveryId, why: String, grants: Vec<Grant> },
    /// Nothing can be claimed for this destination.
    Refused(String),
    /// It is about the database.
    Failed(StoreError),
}

/// The connection that claims, and that shows other processes that this one lives.
pub(super) struct ClaimConnection {
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

impl ClaimConnection {
    pub(super) fn new(options: ConnectOptions) -> ClaimConnection {
        ClaimConnection { options, open: None, since: None, backoff: Backoff::default() }
    }

    /// Whether the last statement failed.
    pub(super) fn has_failed(&self) -> bool {
        !self.backoff.is_zero()
    }

    /// A second connection that claims, once it is settled which leases are void: until then it would pass
    /// for another process that lives.
    pub(super) fn beside(&self) -> Option<ClaimConnection> {
        let since = self.since.filter(Since::is_settled)?;
        Some(ClaimConnection { since: Some(since), ..ClaimConnection::new(self.options.clone()) })
    }

    /// Whether there is a connection by which others cannot see that this process lives.
    pub(super) fn is_unseen(&self) -> bool {
        self.open.as_ref().is_some_and(|open| !open.takes_part)
    }

    /// Waits as long as it should before the next statement.
    pub(super) async fn rest(&self) {
        self.backoff.wait().await;
    }

    pub(super) async fn claim(&mut self, asks: &[Ask], room: Room) -> ClaimResult {
        let error = match self.try_claim(asks, room).await {
            Ok((grants, ordered_failed)) => {
                self.backoff.worked();
                return ClaimResult::Granted { grants, ordered_failed };
            }
            Err(error) => error,
        };
        if error.is_about_what_was_asked() && self.claims_nothing(asks, room).await {
            return match asks {
                [ask] if ask.want == 1 && ask.since.is_none() => self.isolate(ask, room, error).await,
                _ => ClaimResult::Culprit(error),
            };
        }
        self.failed(error)
    }

    /// It is nobody's fault in particular: the next statement waits a little.
    fn failed(&mut self, error: StoreError) -> ClaimResult {
        self.open = None;
        self.backoff.failed();
        ClaimResult::Failed(error)
    }

    /// Whether the same statement works where it takes nothing: then it is about what it would take.
    async fn claims_nothing(&mut self, asks: &[Ask], room: Room) -> bool {
        let nothing: Vec<Ask> = asks.iter().map(|ask| Ask { want: 0, fill: None, ..ask.clone() }).collect();
        matches!(self.try_claim(&nothing, room).await, Ok((_, None)))
    }

    /// The claim for a single delivery has failed: it is made to wait.
    async fn isolate(&mut self, ask: &Ask, room: Room, error: StoreError) -> ClaimResult {
        // One with a due time and one without are looked for in one statement: is it the latter?
        let undated = Ask { since: Some(DbTime(i64::MAX)), ..ask.clone() };
        let (which, grants) = match ask.ordered {
            Some(_) => (Aside::Head, Vec::new()),
            None => match self.try_claim(&[undated], room).await {
                Ok((grants, _)) => (Aside::Due, grants),
                Err(error) if error.is_about_what_was_asked() => (Aside::Undated, Vec::new()),
                Err(error) => return self.failed(error),
            },
        };
        let why = error.to_string();
        match self.set_aside(ask.destination, which, &why).await {
            Ok(Some(delivery)) => ClaimResult::SetAside { delivery, why, grants },
            // What was leased meanwhile must not be lost; the culprit is met again.
            _ if grants.iter().any(|grant| !grant.deliveries.is_empty()) => {
                ClaimResult::Granted { grants, ordered_failed: None }
            }
            Err(refused) if refused.is_lasting() => {
                ClaimResult::Refused(format!("{why}; and it cannot be set aside: {refused}"))
            }
            // Somebody else has it by now, or the database went away.
            Ok(None) => self.failed(error),
            Err(other) => self.failed(other),
        }
    }

    async fn set_aside(
        &mut self,
        destination: DestinationId,
        which: Aside,
        why: &str,
    ) -> Result<Option<DeliveryId>, StoreError> {
        let floor = match &self.since {
            Some(since) if since.alone => since.announced,
            _ => DbTime(i64::MIN),
        };
        let mut connection = store::connect(&self.options).await?;
        deliveries::set_aside(&mut connection, destination, which, floor, SET_ASIDE_FOR, why).await
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

    /// The grants, and why those who are ordered got none, if they did not.
    async fn try_claim(
        &mut self,
        asks: &[Ask],
        room: Room,
    ) -> Result<(Vec<Grant>, Option<StoreError>), StoreError> {
        let result = self.claim_once(asks, room).await;
        if !matches!(result, Ok((_, None))) {
            // A connection in an unknown state is not used again.
            self.open = None;
        }
        result
    }

    async fn claim_once(
        &mut self,
        asks: &[Ask],
        room: Room,
    ) -> Result<(Vec<Grant>, Option<StoreError>), StoreError> {
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
        let (mut grants, mut failed) = (Vec::new(), None);
        if !plain.is_empty() {
            grants = sql.claim(connection, &plain, floor, part(&plain)).await?;
        }
        if !ordered.is_empty() {
            match sql.claim_ordered(connection, &ordered, floor, part(&ordered)).await {
                Ok(more) => grants.extend(more),
                // What was claimed before must not be lost with it.
                Err(error) if !plain.is_empty() => failed = Some(error),
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
        Ok((grants, failed))
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
