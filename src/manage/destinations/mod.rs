//! Destinations: created, shown, changed and deleted; switched on and off; tried out.
//!
//! Secrets go in and never come out: what is shown says that there is one. The exceptions are a secret that
//! was made here, which is shown in the answer that made it, and nowhere else.

mod changes;
mod check;
mod origin;
mod probe;
mod stats;
mod switch;
mod view;

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use self::check::{check, refused, seal, signing_secret};
use super::input::{Faults, shown};
use super::{Fault, List, Once, Principal};
use crate::clock;
use crate::model::{Destination, DestinationId, OrgId, RetryPolicy, Secret, Settings};
use crate::outbound::Network;
use crate::policy::keyring::KeyRing;
use crate::store::Connection;
use crate::store::destinations::deletion::{self, Deletion};
use crate::store::destinations::{self, Disabled, managed};

pub use self::changes::{Changes, EventTypePattern, SettingsChanges};
pub use self::probe::{Probe, TestView, prepare};
pub use self::stats::{AttemptsView, CountView, CountsView, LatencyView, StatsView, stats};
pub use self::switch::{
    DEFAULT_OVERLAP_SECONDS, Disable, EnabledView, MissedView, Rotate, RotatedView, disable, enable, rotate,
};
pub use self::view::{SettingsView, View};
pub use super::input::PageQuery as Query;

const FILTER_FIELD: &str = "event_filter";
/// How often an update is tried that somebody else's comes in between.
const TRIES: usize = 3;
/// Deliveries that one statement deletes: some hundred milliseconds.
const DELETED_AT_ONCE: i64 = 5_000;
/// Pause before deliveries that somebody else has locked are looked at again.
const LOCKED_PAUSE: Duration = Duration::from_millis(100);

/// What destinations are checked against and their secrets are encrypted with.
#[derive(Clone, Copy, Debug)]
pub struct Setup<'a> {
    /// The keys: with one, secrets are stored encrypted.
    pub keys: &'a KeyRing,
    /// Where requests may go.
    pub network: &'a Arc<Network>,
    /// Destinations that keys may create for one organization.
    pub max_destinations: u32,
}

/// A destination that was created.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = CreatedDestination)]
pub struct CreatedView {
    /// The destination.
    #[serde(flatten)]
    pub destination: View,
    /// The secret that was made for it, shown this once; null where it was given, or is none.
    #[schema(value_type = Option<String>)]
    pub signing_secret: Option<Once>,
}

/// A destination that was changed.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = UpdatedDestination)]
pub struct UpdatedView {
    /// The destination.
    #[serde(flatten)]
    pub destination: View,
    /// Credentials that were dropped, as a key gave another origin (scheme, host or port) in `url` and not
    /// them: `auth_config` (then `auth_type` is `none`), `settings.extra_headers`, `settings.tls_client_key`
    /// with `settings.tls_client_cert`, and secret members of `settings.format_options`. Absent: none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dropped: Vec<String>,
}

/// How far a deletion has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = Deleted)]
pub struct DeletedView {
    /// Whether the destination is gone. Otherwise it is disabled, and asking again goes on.
    pub deleted: bool,
    /// Its deliveries that were deleted.
    pub deliveries: u64,
}

/// Creates a destination of `org`.
///
/// # Errors
/// [`Fault::Invalid`] names everything that is wrong; [`Fault::Conflict`] where the name is taken, or `org`
/// has as many destinations as keys may create; [`Fault::NotFound`] where there is no such organization;
/// [`Fault::Store`].
pub async fn create(
    db: &mut Connection,
    org: OrgId,
    principal: Principal,
    changes: Changes,
    setup: Setup<'_>,
) -> Result<CreatedView, Fault> {
    let mut faults = Faults::default();
    let mut new = blank(org);
    let made = changes.signing_secret.is_absent().then(signing_secret);
    new.destination.signing_secret.clone_from(&made);
    for (field, given) in [("name", &changes.name), ("url", &changes.url)] {
        if given.is_nothing() {
            faults.add(field, "is missing");
        }
    }
    let mut touched = changes.apply(&mut new, &mut faults);
    touched.signing_secret |= made.is_some();
    check(db, &new, None, touched, setup, &mut faults).await?;
    seal(&mut new.destination, touched, setup.keys, &mut faults);
    faults.check(())?;
    let with_settings = new.destination.settings != Settings::default();
    let (id, name) = (new.destination.id, new.name.clone());
    let most = principal.is_key().then_some(setup.max_destinations);
    let created = managed::insert(db, &new, with_settings, most).await;
    if !created.map_err(|error| refused(org, &name, error))? {
        return Err(Fault::Conflict(format!(
            "the organization has {} destinations or more, and keys may create no further ones: delete one, \
             or ask the operator (POSTHASTE_MAX_DESTINATIONS)",
            setup.max_destinations
        )));
    }
    Ok(CreatedView { destination: one(db, org, principal, id).await?, signing_secret: made.map(Once) })
}

/// A page of the destinations of `org`, the newest first.
///
/// # Errors
/// [`Fault::Invalid`], [`Fault::Store`].
pub async fn list(
    db: &mut Connection,
    org: OrgId,
    principal: Principal,
    query: &Query,
) -> Result<List<View>, Fault> {
    let (limit, cursor) = query.read()?;
    Ok(shown(managed::list(db, org, cursor, limit).await?, |written| View::of(written, principal)))
}

/// One destination of `org`.
///
/// # Errors
/// [`Fault::NotFound`], [`Fault::Store`].
pub async fn one(
    db: &mut Connection,
    org: OrgId,
    principal: Principal,
    id: DestinationId,
) -> Result<View, Fault> {
    Ok(View::of(written(db, org, id).await?, principal))
}

/// Changes a destination of `org`. With `expected`, only if its `version` is still that one. What was wrong
/// with it before, and is not touched, is not held against the change. Where a key changes the origin of the
/// URL, credentials that do not come with it are dropped.
///
/// # Errors
/// As [`create`]; [`Fault::Stale`] where it is of another version; [`Fault::Conflict`] also where it is being
/// changed by others all the time, or has a secret whose key is missing.
pub async fn update(
    db: &mut Connection,
    org: OrgId,
    principal: Principal,
    id: DestinationId,
    changes: Changes,
    expected: Option<&str>,
    setup: Setup<'_>,
) -> Result<UpdatedView, Fault> {
    for _ in 0..TRIES {
        let before = written(db, org, id).await?;
        if expected.is_some_and(|expected| expected != view::version(&before)) {
            return Err(Fault::Stale);
        }
        let mut faults = Faults::default();
        let mut after = before.clone();
        for (field, given) in [("name", &changes.name), ("url", &changes.url)] {
            if given.is_null() {
                faults.add(field, "must not be null");
            }
        }
        let mut touched = changes.clone().apply(&mut after, &mut faults);
        let moved = !origin::is_same(&before.destination.url, &after.destination.url);
        let dropped = match moved && principal.is_key() {
            true => changes.drop_credentials(&mut after.destination, &mut touched),
            false => Vec::new(),
        };
        check(db, &after, Some(&before), touched, setup, &mut faults).await?;
        seal(&mut after.destination, touched, setup.keys, &mut faults);
        faults.check(())?;
        let done = managed::update(db, &after, touched.filter, touched.settings).await;
        if done.map_err(|error| refused(org, &after.name, error))? {
            return Ok(UpdatedView { destination: one(db, org, principal, id).await?, dropped });
        }
        if expected.is_some() {
            return Err(Fault::Stale);
        }
    }
    Err(Fault::Conflict(format!("the destination {id} is being changed by somebody else: try again")))
}

/// Deletes a destination of `org` and its deliveries; its events stay. It is disabled at once. Where there
/// are so many deliveries that it takes longer than `patience`, it has to be asked again.
///
/// # Errors
/// [`Fault::NotFound`]; [`Fault::Conflict`] while somebody else has locked it or its deliveries, and where a
/// trigger of the application keeps them; [`Fault::Store`].
pub async fn delete(
    db: &mut Connection,
    org: OrgId,
    id: DestinationId,
    patience: Duration,
) -> Result<DeletedView, Fault> {
    let until = clock::now() + patience;
    written(db, org, id).await?;
    switch_off(db, id, "it is being deleted").await?;
    let mut deliveries = 0;
    loop {
        let part = deletion::delete_deliveries(db, id, DELETED_AT_ONCE).await?;
        deliveries += part.deleted;
        if part.picked > 0 && part.deleted == 0 {
            return Err(kept("the destination is disabled, and not deleted", "DELETE", "webhook_deliveries"));
        }
        match deletion::delete(db, org, id).await? {
            Deletion::Gone => return Ok(DeletedView { deleted: true, deliveries }),
            Deletion::Kept => {
                return Err(kept(
                    "the destination is disabled, and not deleted",
                    "DELETE",
                    "webhook_destinations",
                ));
            }
            Deletion::HasDeliveries if clock::now() < until => {}
            Deletion::HasDeliveries if deliveries > 0 => {
                return Ok(DeletedView { deleted: false, deliveries });
            }
            Deletion::HasDeliveries => {
                let what =
                    "it is disabled, and not deleted: somebody else has locked its deliveries; try again";
                return Err(Fault::Conflict(what.into()));
            }
        }
        if part.picked == 0 {
            tokio::time::sleep(LOCKED_PAUSE).await;
        }
    }
}

/// What a trigger that returns NULL, a rule or a policy has left as it was: PostgreSQL says no word about it.
fn kept(what: &str, on: &str, table: &str) -> Fault {
    Fault::Conflict(format!(
        "{what}: the database has left the row as it was, without an error. A trigger (BEFORE {on}, \
         returning NULL), a rule or a policy of the application on {table} does that"
    ))
}

async fn written(db: &mut Connection, org: OrgId, id: DestinationId) -> Result<managed::Written, Fault> {
    managed::get(db, org, id).await?.ok_or_else(|| unknown(id))
}

/// A destination with its defaults.
fn blank(org: OrgId) -> managed::Written {
    managed::Written {
        destination: Destination {
            id: DestinationId(Uuid::new_v4()),
            org,
            url: String::new(),
            auth_type: "none".into(),
            auth_config: Secret::new("{}"),
            batch_size: 1,
            timeout: Duration::from_millis(5_000),
            retry: RetryPolicy { max: 3, backoff: Duration::from_millis(1_000) },
            signing_secret: None,
            settings: Settings::default(),
        },
        name: String::new(),
        event_types: Vec::new(),
        event_filter: Some("{}".into()),
        enabled: true,
        created_at: Default::default(),
        updated_at: Default::default(),
        version: 0,
        disabled_at: None,
        disabled_reason: None,
        saved: Default::default(),
        now: Default::default(),
    }
}

fn unknown(id: DestinationId) -> Fault {
    Fault::NotFound(format!("destination {id}"))
}

async fn switch_off(db: &mut Connection, id: DestinationId, reason: &str) -> Result<(), Fault> {
    match destinations::disable_in_turn(&mut *db, id, reason).await {
        Err(error) if error.is_about_locks() => {
            Err(Fault::Conflict(format!("somebody else has locked the destination {id}: try again")))
        }
        Ok(Disabled::Kept) => Err(kept("the destination stays enabled", "UPDATE", "webhook_destinations")),
        done => Ok(done.map(drop)?),
    }
}
