//! The connection of the [`super::db::DbActor`] that writes: opened when needed, dropped after any error,
//! with a pause before the next try.
//!
//! What the database refuses for a lasting reason is halved until its culprit stands alone, and set aside;
//! everything else is written. Only what is about the database as a whole fails as a whole.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use super::backoff::Backoff;
use super::messages::{Renew, Renewed};
use super::work::{Item, Work};
use crate::clock;
use crate::dispatch::RenewReply;
use crate::model::{DestinationId, Outcome};
use crate::store::deliveries::{self, LEASE, MAX_RECORD_ROWS, Renewals, plain};
use crate::store::destinations::{self, Disabled};
use crate::store::faults::Fault;
use crate::store::{self, ConnectOptions, Connection, StoreError, faults};

/// Pause before rows that somebody has locked are tried again; what can be written waits no longer than this
/// for them.
const LOCKED_PAUSE: Duration = Duration::from_millis(100);
/// It is told after so many tries: an application may lock a row for a moment.
const LOCKED_TOLD_AFTER: u32 = 10;
/// Results of a destination that are tried singly in one go, where they are refused.
const TRIED_SINGLY: usize = 4;
/// Why something is not written that the database does not refuse either.
const KEPT: &str = "the database leaves the row as it was, without an error: a trigger (BEFORE UPDATE, \
                    returning NULL), a rule or a policy of the application does that";
/// Operational events that are tried singly: beyond, they are dropped together.
const EVENTS_TRIED_SINGLY: usize = 8;

/// See the module.
pub(super) struct RecordConnection {
    options: ConnectOptions,
    connection: Option<Connection>,
    backoff: Backoff,
    /// Somebody has locked rows of results: they are stepped around.
    avoiding: bool,
    /// How often in a row something could not be written because somebody has locked it.
    locked_tries: u32,
}

impl RecordConnection {
    pub(super) fn new(options: ConnectOptions) -> RecordConnection {
        RecordConnection {
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

    /// Writes `work`, and leaves in it what was not written: after success, what somebody has locked, and
    /// what was refused.
    pub(super) async fn write(&mut self, work: &mut Work) -> Result<(), StoreError> {
        let result = self.try_write(work).await;
        if result.is_err() {
            self.connection = None;
            self.backoff.failed();
        } else {
            self.note_locked(!work.is_empty());
            self.backoff.worked();
        }
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
            record_all(connection, &mut self.avoiding, work).await?;
        }
        if !work.states.is_empty() {
            save_all(connection, work).await?;
        }
        disable_all(connection, work).await?;
        announce(connection, work).await?;
        show_faults(connection, work).await
    }
}

/// Writes the outcomes of `work`; those whose rows somebody has locked, and those that are refused, are set
/// aside.
async fn record_all(
    connection: &mut Connection,
    avoiding: &mut bool,
    work: &mut Work,
) -> Result<(), StoreError> {
    let mut all: Vec<Outcome> = work.outcomes.drain(..).collect();
    // One order for all writers, so that two of them cannot wait for each other.
    all.sort_unstable_by_key(|outcome| outcome.delivery);
    let mut parts = vec![all];
    let mut refused: HashMap<DestinationId, usize> = HashMap::new();
    while let Some(mut part) = parts.pop() {
        let Err(error) = record(connection, avoiding, &mut part, work).await else { continue };
        let is_local = error.is_lasting()
            // What it is about can only be told where the statement itself works.
            && (!refused.is_empty() || deliveries::record(connection, &[]).await.is_ok());
        let simpler = match &part[..] {
            [culprit] if is_local => record_simpler(connection, culprit).await,
            _ => Ok(false),
        };
        if !is_local || simpler.is_err() {
            work.outcomes.extend(part);
            work.outcomes.extend(parts.into_iter().flatten());
            return Err(simpler.err().unwrap_or(error));
        }
        if simpler.is_ok_and(|done| done) {
            continue;
        }
        if error.is_about_characters() && !part.iter().all(plain::is_ascii) {
            // Most of them may have what only few lack: halving would take a statement for each.
            parts.push(part.iter().map(plain::in_ascii).collect());
            continue;
        }
        if part.len() > 1 {
            parts.push(part.split_off(part.len() / 2));
            parts.push(part);
            continue;
        }
        let Some(culprit) = part.pop() else { continue };
        let (destination, why) = (culprit.destination, error.to_string());
        work.refused.push((Item::Outcome(culprit), why.clone()));
        let count = refused.entry(destination).or_default();
        *count += 1;
        if *count >= TRIED_SINGLY {
            // The others of that destination are not worth a statement each: they are tried by and by.
            for part in &mut parts {
                let same = part.extract_if(.., |outcome| outcome.destination == destination);
                work.refused.extend(same.map(|outcome| (Item::Outcome(outcome), why.clone())));
            }
            parts.retain(|part| !part.is_empty());
        }
    }
    Ok(())
}

/// Writes what the database does not take as it is in simpler words. Whether it takes those.
async fn record_simpler(connection: &mut Connection, outcome: &Outcome) -> Result<bool, StoreError> {
    for simpler in plain::simpler(outcome) {
        match deliveries::record(connection, &[simpler]).await {
            Ok(_) => {
                log::debug!("delivery={} its result is stored in simpler words", outcome.delivery);
                return Ok(true);
            }
            Err(error) if error.is_lasting() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// Writes `outcomes`; those whose rows somebody has locked are set aside. Only where there are any is the
/// statement used that steps around them.
async fn record(
    connection: &mut Connection,
    avoiding: &mut bool,
    outcomes: &mut Vec<Outcome>,
    work: &mut Work,
) -> Result<(), StoreError> {
    if !*avoiding {
        match deliveries::record(connection, outcomes).await {
            Ok(written) => {
                let all = outcomes.len() as u64;
                if written < all {
                    log::debug!("{} of {all} results were not written", all - written);
                    set_kept_aside(connection, outcomes, work).await?;
                }
                return Ok(());
            }
            Err(error) if error.is_about_locks() => *avoiding = true,
            Err(error) => return Err(error),
        }
    }
    let locked = deliveries::record_unlocked(connection, outcomes).await?;
    work.locked.extend(outcomes.drain(..).filter(|outcome| locked.contains(&outcome.delivery)));
    *avoiding = !work.locked.is_empty();
    set_kept_aside(connection, outcomes, work).await
}

/// Of `outcomes`, those that are not written although nobody else has claimed them are refused in silence.
/// The others have lost their leases.
async fn set_kept_aside(
    connection: &mut Connection,
    outcomes: &mut Vec<Outcome>,
    work: &mut Work,
) -> Result<(), StoreError> {
    let kept = deliveries::kept(connection, outcomes).await?;
    let kept = outcomes.drain(..).filter(|outcome| kept.contains(&outcome.delivery));
    work.refused.extend(kept.map(|outcome| (Item::Outcome(outcome), KEPT.to_owned())));
    Ok(())
}

/// Writes the states of `work`, as [`record_all`] does.
async fn save_all(connection: &mut Connection, work: &mut Work) -> Result<(), StoreError> {
    let mut parts = vec![std::mem::take(&mut work.states)];
    let mut locked = BTreeMap::new();
    let mut result = Ok(());
    while let Some(mut part) = parts.pop() {
        match destinations::save(&mut *connection, &part).await {
            Ok(skipped) => {
                part.retain(|destination, _| skipped.contains(destination));
                locked.append(&mut part);
            }
            Err(error) if error.is_lasting() && part.len() == 1 => {
                let why = error.to_string();
                let refused = part.into_iter().map(|(id, saved)| (Item::State(id, saved), why.clone()));
                work.refused.extend(refused);
            }
            Err(error) if error.is_lasting() => {
                let middle = part.keys().nth(part.len() / 2).copied();
                parts.extend(middle.map(|middle| part.split_off(&middle)));
                parts.push(part);
            }
            Err(error) => {
                locked.append(&mut part);
                parts.drain(..).for_each(|mut part| locked.append(&mut part));
                result = Err(error);
            }
        }
    }
    work.states = locked;
    result
}

/// Disables the destinations of `work`, each for itself.
async fn disable_all(connection: &mut Connection, work: &mut Work) -> Result<(), StoreError> {
    let mut at = 0;
    while let Some((destination, reason)) = work.disabled.get(at) {
        match destinations::disable(&mut *connection, *destination, reason).await {
            Ok(Disabled::Now) => log::warn!("destination={destination} disabled: {reason}"),
            Ok(Disabled::Before) => {}
            Ok(Disabled::Locked) => {
                at += 1;
                continue;
            }
            Ok(Disabled::Kept) => {
                let (destination, reason) = work.disabled.remove(at);
                work.refused.push((Item::Disable(destination, reason), KEPT.to_owned()));
                continue;
            }
            Err(error) if error.is_lasting() => {
                let (destination, reason) = work.disabled.remove(at);
                work.refused.push((Item::Disable(destination, reason), error.to_string()));
                continue;
            }
            Err(error) => return Err(error),
        }
        work.disabled.remove(at);
    }
    Ok(())
}

/// Writes operational events, as far as that is possible.
async fn announce(connection: &mut Connection, work: &mut Work) -> Result<(), StoreError> {
    let events = std::mem::take(&mut work.events);
    let mut parts: Vec<&[_]> = if events.is_empty() { Vec::new() } else { vec![&events] };
    let mut dropped = 0;
    while let Some(part) = parts.pop() {
        let Err(error) = destinations::announce(&mut *connection, part).await else { continue };
        match part {
            _ if !error.is_lasting() => {
                log::warn!("{} operational event(s) could not be written: {error}", events.len());
                return Err(error);
            }
            [one] => {
                log::warn!("organization={} an operational event cannot be written: {error}", one.org);
                dropped += 1;
            }
            many if dropped >= EVENTS_TRIED_SINGLY => {
                log::warn!("{} operational event(s) cannot be written: {error}", many.len());
            }
            many => {
                let (first, second) = many.split_at(many.len() / 2);
                parts.extend([second, first]);
            }
        }
    }
    Ok(())
}

/// Shows faults to `check`. That this cannot be done holds up nothing.
async fn show_faults(connection: &mut Connection, work: &mut Work) -> Result<(), StoreError> {
    if work.faults.is_empty() && work.healed.is_empty() {
        return Ok(());
    }
    // Of each the last word counts.
    let found: BTreeMap<_, _> = work.faults.drain(..).map(|fault| (fault.subject, fault)).collect();
    let found: Vec<Fault> = found.into_values().collect();
    let healed = std::mem::take(&mut work.healed);
    let mut shown = faults::forget(connection, &healed).await;
    if shown.is_ok() {
        shown = faults::note(connection, &found).await;
    }
    if shown.as_ref().is_err_and(StoreError::is_about_characters) {
        let in_ascii =
            |fault: &Fault| Fault { message: plain::plain(&fault.message, usize::MAX), ..fault.clone() };
        shown = faults::note(connection, &found.iter().map(in_ascii).collect::<Vec<_>>()).await;
    }
    match shown {
        Err(error) if error.is_lasting() => {
            log::debug!("faults cannot be shown to posthaste check: {error}");
            Ok(())
        }
        Err(error) => {
            (work.faults, work.healed) = (found, healed);
            Err(error)
        }
        Ok(()) => Ok(()),
    }
}

/// Renews leases for all who asked, and tells them.
async fn renew(connection: &mut Connection, asked: &mut Vec<Renew>) -> Result<(), StoreError> {
    let mut leases: Vec<_> = asked.iter().flat_map(|renew| &renew.leases).copied().collect();
    // As results are.
    leases.sort_unstable();
    let mut renewed = HashMap::new();
    let mut locked = HashSet::new();
    let sent = clock::now();
    let mut parts: Vec<&[_]> = leases.chunks(MAX_RECORD_ROWS).rev().collect();
    let mut result = Ok(());
    while let Some(part) = parts.pop() {
        match deliveries::renew(connection, part).await {
            Ok(Renewals { renewed: some, locked: others }) => {
                renewed.extend(some);
                locked.extend(others);
            }
            // As if somebody had locked it: what will become of its result is told then.
            Err(error) if error.is_lasting() && part.len() == 1 => locked.extend(part.iter().map(|l| l.0)),
            Err(error) if error.is_lasting() => {
                let (first, second) = part.split_at(part.len() / 2);
                parts.extend([second, first]);
            }
            Err(error) if renewed.is_empty() => {
                asked.iter_mut().for_each(|renew| renew.is_uncertain = true);
                return Err(error);
            }
            // What was renewed must be known to be. Of this part it is not known; the others were not tried.
            Err(error) => {
                locked.extend(parts.drain(..).flatten().map(|lease| lease.0));
                result = Err(error);
            }
        }
    }
    for Renew { leases, is_uncertain, reply } in asked.drain(..) {
        let ids = || leases.iter().map(|(id, _)| *id);
        reply.do_send(Renewed(RenewReply {
            renewed: ids().filter_map(|id| Some((id, *renewed.get(&id)?))).collect(),
            // One that may have been renewed before is not as it was.
            locked: ids().filter(|id| locked.contains(id) && !is_uncertain).collect(),
            expires: Some(sent + LEASE),
        }));
    }
    result
}
