//! Destinations switched on and off, and their secrets changed for new ones.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::changes::Touched;
use super::check::{check, refused_by_trigger, seal, signing_secret};
use super::{Setup, View, one, switch_off, unknown, written};
use crate::clock;
use crate::manage::input::Faults;
use crate::manage::patch::Patch;
use crate::manage::{Fault, Once, Principal, jobs};
use crate::model::{DestinationId, OrgId};
use crate::store::Connection;
use crate::store::destinations::managed;
use crate::store::jobs::{Kind, Spec};

/// How long the secret before a rotation signs beside the new one unless it is said: a day for receivers to
/// take the new one.
pub const DEFAULT_OVERLAP_SECONDS: i64 = 24 * 3600;
/// The longest that can be said: 90 days.
const MAX_OVERLAP_SECONDS: i64 = 90 * 24 * 3600;
/// The reason of whoever gives none.
const BY_HAND: &str = "by hand";
/// Characters of a reason.
const MAX_REASON: usize = 500;
/// Characters of a secret, as its column has them.
const MAX_SECRET: usize = 255;

/// How a destination is to be disabled.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Disable {
    /// Why, for whoever looks at it later; 1 to 500 characters.
    #[serde(default)]
    #[schema(value_type = Option<String>, min_length = 1, max_length = 500)]
    pub reason: Patch<String>,
}

/// How a secret is to be changed.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rotate {
    /// The new secret; without, one is made.
    #[serde(default)]
    #[schema(value_type = Option<String>, min_length = 1, max_length = 255)]
    pub signing_secret: Patch<String>,
    /// For how many seconds the old one signs, too: 0 to 7,776,000, a day by default.
    #[serde(default)]
    #[schema(value_type = Option<i64>, minimum = 0, maximum = 7776000)]
    pub overlap_seconds: Patch<i64>,
}

/// A destination that was enabled.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Enabled)]
pub struct EnabledView {
    /// The destination.
    pub destination: View,
    /// What it has missed, for a backfill from then on; null: it was enabled already.
    pub missed: Option<MissedView>,
}

/// Events that were not queued for a destination while it was disabled.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Missed)]
pub struct MissedView {
    /// Where a backfill has to begin.
    pub from: String,
    /// How many events it would queue.
    pub count: i64,
    /// Whether that is all; otherwise there was no time to count more.
    pub complete: bool,
}

/// A destination with a new secret.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Rotated)]
pub struct RotatedView {
    /// The destination.
    #[serde(flatten)]
    pub destination: View,
    /// The new secret, shown this once.
    #[schema(value_type = String)]
    pub signing_secret: Once,
}

/// Enables a destination of `org`, and counts for at most `counting` what it has missed.
///
/// # Errors
/// [`Fault::NotFound`]; [`Fault::Conflict`] where the filters of the organization's destinations would cost
/// too much together; [`Fault::Store`].
pub async fn enable(
    db: &mut Connection,
    org: OrgId,
    principal: Principal,
    id: DestinationId,
    counting: Duration,
) -> Result<EnabledView, Fault> {
    let enabled = managed::enable(db, org, id).await.map_err(|error| match refused_by_trigger(&error) {
        Some(fault) => Fault::Conflict(fault.to_string()),
        None => error.into(),
    })?;
    let enabled = enabled.ok_or_else(|| unknown(id))?;
    let mut missed = None;
    if !enabled.before {
        let (from, to) = (Some(enabled.since), Some(enabled.now));
        let (statuses, event_type) = (Vec::new(), None);
        let spec = Spec { kind: Kind::Backfill, org, destination: id, from, to, statuses, event_type };
        // It is enabled already, and from when on it has missed something must not be lost with the count.
        let counted = jobs::count(db, &spec, clock::now() + counting).await;
        let counted = counted.unwrap_or(jobs::CountView { count: 0, complete: false });
        let from = enabled.since.iso();
        missed = Some(MissedView { from, count: counted.count, complete: counted.complete });
    }
    Ok(EnabledView { destination: one(db, org, principal, id).await?, missed })
}

/// Disables a destination of `org`. Its deliveries stay; events from now on are not queued for it. One that
/// is disabled already stays as it is.
///
/// # Errors
/// [`Fault::NotFound`], [`Fault::Invalid`]; [`Fault::Conflict`] while somebody else has locked it;
/// [`Fault::Store`].
pub async fn disable(
    db: &mut Connection,
    org: OrgId,
    principal: Principal,
    id: DestinationId,
    asked: Disable,
) -> Result<View, Fault> {
    let mut faults = Faults::default();
    let reason = asked.reason.take("reason", BY_HAND.to_owned(), &mut faults);
    let reason = reason.unwrap_or_else(|| BY_HAND.to_owned());
    faults.text("reason", &reason, 1, MAX_REASON);
    faults.check(())?;
    written(db, org, id).await?;
    switch_off(db, id, &reason).await?;
    one(db, org, principal, id).await
}

/// Gives a destination of `org` a new signing secret. Until the overlap is over, the old one signs, too; the
/// `hex` scheme has room for one signature only, which is the new one's at once.
///
/// # Errors
/// [`Fault::NotFound`], [`Fault::Invalid`], [`Fault::Conflict`] where another secret cannot be decrypted,
/// [`Fault::Store`].
pub async fn rotate(
    db: &mut Connection,
    org: OrgId,
    principal: Principal,
    id: DestinationId,
    asked: Rotate,
    setup: Setup<'_>,
) -> Result<RotatedView, Fault> {
    let mut faults = Faults::default();
    let overlap = asked.overlap_seconds.take("overlap_seconds", DEFAULT_OVERLAP_SECONDS, &mut faults);
    let overlap = overlap.unwrap_or(DEFAULT_OVERLAP_SECONDS);
    if !(0..=MAX_OVERLAP_SECONDS).contains(&overlap) {
        faults.add("overlap_seconds", format!("must be 0 to {MAX_OVERLAP_SECONDS}"));
    }
    let given = asked.signing_secret.take_optional("signing_secret", &mut faults).flatten();
    let secret = given.map(crate::model::Secret::new);
    if let Some(secret) = &secret {
        faults.text("signing_secret", secret.reveal(), 1, MAX_SECRET);
    }
    let secret = secret.unwrap_or_else(signing_secret);
    let before = written(db, org, id).await?;
    let mut after = before.clone();
    after.destination.signing_secret = Some(secret.clone());
    let touched = Touched { signing_secret: true, ..Touched::default() };
    check(db, &after, Some(&before), touched, setup, &mut faults).await?;
    seal(&mut after.destination, touched, setup.keys, &mut faults);
    faults.check(())?;
    let sealed = after.destination.signing_secret.as_ref().unwrap_or(&secret);
    if !managed::rotate(db, org, id, sealed, overlap).await? {
        return Err(unknown(id));
    }
    Ok(RotatedView { destination: one(db, org, principal, id).await?, signing_secret: Once(secret) })
}
