//! Keys of the HTTP API: each is for one organization and one role.
//!
//! A key is `phk_<prefix>_<secret>`: 8 hexadecimal digits by which it is found and people recognise it, and
//! 256 random bits in base64. Its SHA-256 is stored. That is enough: what makes passwords need a slow hash is
//! that they can be guessed, and nobody guesses 256 random bits, however fast each guess is.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::input::{Faults, shown};
use super::patch::Patch;
use super::{Fault, List, Once};
use crate::clock;
use crate::model::{DbTime, KeyId, OrgId, Secret};
use crate::store::keys::{self, Key, Known};
use crate::store::{Connection, StoreError, secrets};

pub use crate::store::keys::Role;

/// What every key begins with.
const SCHEME: &str = "phk_";
/// Random bytes of the prefix.
const PREFIX_BYTES: usize = 4;
/// Random bytes of the secret.
const SECRET_BYTES: usize = 32;
/// Characters of a name.
const MAX_NAME: usize = 100;
/// How often the use of one key is written down.
const USE_NOTED_AFTER: Duration = Duration::from_secs(60);
/// Characters of a key at most: longer ones are not looked at.
const MAX_KEY: usize = 100;

/// A key as it is asked for.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewKey)]
pub struct New {
    /// The organization, a UUID.
    #[serde(default)]
    #[schema(value_type = Uuid, required = true)]
    pub org_id: Patch<String>,
    /// What people call it, 1 to 100 characters.
    #[serde(default)]
    #[schema(value_type = String, min_length = 1, max_length = 100, required = true)]
    pub name: Patch<String>,
    /// `read` or `write`.
    #[serde(default)]
    #[schema(value_type = Role, required = true)]
    pub role: Patch<String>,
}

/// A key as it is shown.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Key)]
pub struct View {
    /// Its id.
    pub id: Uuid,
    /// The organization.
    pub org_id: Uuid,
    /// What people call it.
    pub name: String,
    /// What it allows: `read` or `write`.
    pub role: Role,
    /// What it begins with.
    pub prefix: String,
    /// When it was created.
    #[schema(format = DateTime)]
    pub created_at: String,
    /// When it was last used, to the minute.
    #[schema(format = DateTime)]
    pub last_used_at: Option<String>,
    /// When it was revoked; null: it can be used.
    #[schema(format = DateTime)]
    pub revoked_at: Option<String>,
}

/// A key that was created.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = CreatedKey)]
pub struct CreatedView {
    /// The key as it is shown from now on.
    #[serde(flatten)]
    pub view: View,
    /// The key itself, shown this once.
    #[schema(value_type = String)]
    pub key: Once,
}

/// Which keys to list, as it was asked.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Query {
    /// Only those of this organization.
    #[param(value_type = Option<Uuid>)]
    pub org_id: Option<String>,
    /// Rows of the page.
    #[param(value_type = Option<u32>, minimum = 1, maximum = 200)]
    pub limit: Option<String>,
    /// Where it starts.
    #[param(pattern = "^[A-Za-z0-9_-]{32}$")]
    pub cursor: Option<String>,
}

/// Whoever presented a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The organization that it is for.
    pub org: OrgId,
    /// What it allows.
    pub role: Role,
    /// Which key.
    pub key: KeyId,
}

/// Creates a key.
///
/// # Errors
/// [`Fault::Invalid`]; [`Fault::NotFound`] where there is no such organization; [`Fault::Store`].
pub async fn create(db: &mut Connection, new: New) -> Result<CreatedView, Fault> {
    let mut faults = Faults::default();
    let mut take = |given: Patch<String>, field: &str| {
        if given.is_nothing() {
            faults.add(field, "is missing");
        }
        given.take(field, String::new(), &mut faults).filter(|_| !faults.has(field))
    };
    let (org, name, role) = (take(new.org_id, "org_id"), take(new.name, "name"), take(new.role, "role"));
    let org = faults.read("org_id", org.as_deref(), "a UUID", |text| text.parse().ok().map(OrgId));
    let role = faults.read("role", role.as_deref(), "read or write", Role::named);
    if let Some(name) = &name {
        faults.text("name", name, 1, MAX_NAME);
    }
    let (Some(org), Some(name), Some(role)) = faults.check((org, name, role))? else {
        return Err(Fault::Invalid(Vec::new()));
    };
    let prefix: String = secrets::random::<PREFIX_BYTES>().iter().map(|byte| format!("{byte:02x}")).collect();
    let secret = URL_SAFE_NO_PAD.encode(secrets::random::<SECRET_BYTES>());
    let key = Secret::new(format!("{SCHEME}{prefix}_{secret}"));
    let created = keys::insert(db, org, &name, role, &prefix, &hash(key.reveal())).await;
    let created = created.map_err(|error| match error.constraint() {
        Some(name) if name.contains("org_id") => Fault::NotFound(format!("organization {org}")),
        _ => error.into(),
    })?;
    Ok(CreatedView { view: view(created), key: Once(key) })
}

/// A page of the keys, the newest first; revoked ones as well.
///
/// # Errors
/// [`Fault::Invalid`], [`Fault::Store`].
pub async fn list(db: &mut Connection, query: &Query) -> Result<List<View>, Fault> {
    let mut faults = Faults::default();
    let uuid = |text: &str| text.parse().ok().map(OrgId);
    let org = faults.read("org_id", query.org_id.as_deref(), "a UUID", uuid);
    let limit = faults.limit(query.limit.as_deref());
    let cursor = faults.cursor(query.cursor.as_deref());
    let (org, limit, cursor) = faults.check((org, limit, cursor))?;
    Ok(shown(keys::list(db, org, cursor, limit).await?, view))
}

/// Revokes a key, of `org` where that is said. It can be used no more, from now on; it stays in the list.
///
/// # Errors
/// [`Fault::NotFound`], [`Fault::Store`].
pub async fn revoke(db: &mut Connection, org: Option<OrgId>, id: KeyId) -> Result<View, Fault> {
    let revoked = keys::revoke(db, org, id).await?;
    revoked.map(view).ok_or_else(|| Fault::NotFound(format!("key {id}")))
}

/// Whether a text has the form of a key.
pub fn has_form(presented: &str) -> bool {
    prefix(presented).is_some()
}

/// Who presents this key; `None`: it is none, or revoked. Asks the database each time, so that a revoked key
/// is of no use at once.
///
/// # Errors
/// Whatever the database says.
pub async fn authenticate(db: &mut Connection, presented: &str) -> Result<Option<Caller>, StoreError> {
    let Some(prefix) = prefix(presented) else { return Ok(None) };
    let Some(found) = keys::find(db, prefix).await? else { return Ok(None) };
    // Only whoever knows the whole key learns anything from how long this takes.
    let is_same: bool = hash(presented).as_slice().ct_eq(&found.hash).into();
    Ok(is_same.then_some(Caller { org: found.org, role: found.role, key: found.id }))
}

/// Between two looks for keys that are new.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Between two looks at all keys.
const LOOK_AT_ALL_EVERY: Duration = Duration::from_secs(60);
/// Transactions that take longer than this between making a key and committing it are found with all keys.
const LATE_COMMIT: Duration = Duration::from_secs(30);

/// The hashes of the keys, so that guessing one costs no query. What is in it may have been revoked.
#[derive(Default)]
pub struct Directory {
    known: Mutex<HashMap<String, Known>>,
    looks: tokio::sync::Mutex<Refreshes>,
}

/// How old what is known of keys is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Nobody has looked yet: nothing is known.
    Never,
    /// It was looked for a second ago or earlier: it is time for another look.
    Due,
    /// It was looked for a moment ago, or is being looked for.
    Current,
}

/// What is known of a text that has the form of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recognized {
    /// A key of this organization, which may have been revoked.
    Key(OrgId),
    /// It begins like a key that is another one.
    Wrong,
    /// It begins like none that is known.
    Unknown,
}

#[derive(Default)]
struct Refreshes {
    last: Option<Instant>,
    failed: Option<Instant>,
    at_all: Option<Instant>,
    newest: Option<DbTime>,
}

impl Directory {
    /// What is known of a text that has the form of a key.
    pub fn recognize(&self, presented: &str) -> Recognized {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match prefix(presented).and_then(|prefix| known.get(prefix)) {
            None => Recognized::Unknown,
            Some(found) if hash(presented).as_slice().ct_eq(&found.hash).into() => Recognized::Key(found.org),
            Some(_) => Recognized::Wrong,
        }
    }

    /// Knows a key that was created a moment ago.
    pub fn add(&self, created: &CreatedView) {
        let key = created.key.0.reveal();
        let Some(prefix) = prefix(key) else { return };
        let known = Known {
            prefix: prefix.to_owned(),
            hash: hash(key).to_vec(),
            org: OrgId(created.view.org_id),
            // It is read once more with those that come after.
            created_at: DbTime(i64::MIN),
        };
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(prefix.to_owned(), known);
    }

    /// Forgets a key that turned out to be revoked.
    pub fn forget(&self, revoked: &str) {
        let Some(prefix) = prefix(revoked) else { return };
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(prefix);
    }

    /// Whether there is no key, as far as is known.
    pub fn is_empty(&self) -> bool {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// What is to be done by one who wants to know at `now` whether there is a key.
    pub fn freshness(&self, now: Instant) -> Freshness {
        // Whoever holds it is looking.
        let Ok(looks) = self.looks.try_lock() else { return Freshness::Current };
        let is_recent =
            |at: Option<Instant>| at.is_some_and(|at| now.saturating_duration_since(at) < LOOK_EVERY);
        match looks.last {
            None => Freshness::Never,
            Some(_) if is_recent(looks.last) || is_recent(looks.failed) => Freshness::Current,
            Some(_) => Freshness::Due,
        }
    }

    /// Reads which keys there are, unless that has been done after `since`; once a second at most, however
    /// many ask. Where the database did not answer less than a second before `since`, it is not asked.
    ///
    /// # Errors
    /// Whatever the database says, or `connect`.
    pub async fn refresh<C, E>(
        &self,
        since: Instant,
        connect: impl AsyncFnOnce() -> Result<C, E>,
    ) -> Result<(), E>
    where
        C: std::ops::DerefMut<Target = Connection>,
        E: From<StoreError>,
    {
        let mut looks = self.looks.lock().await;
        if looks.failed.is_some_and(|failed| failed + LOOK_EVERY > since) {
            // Nobody need find out once more, and who waited with others least of all.
            return Err(StoreError::Timeout.into());
        }
        if let Some(last) = looks.last {
            if last >= since {
                return Ok(());
            }
            tokio::time::sleep(LOOK_EVERY.saturating_sub(last.elapsed())).await;
        }
        let done = self.read(&mut looks, connect).await;
        looks.failed = done.is_err().then(clock::now);
        done
    }

    async fn read<C, E>(
        &self,
        looks: &mut Refreshes,
        connect: impl AsyncFnOnce() -> Result<C, E>,
    ) -> Result<(), E>
    where
        C: std::ops::DerefMut<Target = Connection>,
        E: From<StoreError>,
    {
        let now = clock::now();
        let at_all = looks.at_all.is_none_or(|at| now.duration_since(at) >= LOOK_AT_ALL_EVERY);
        let newest = looks.newest.filter(|_| !at_all);
        let from = newest.map_or(DbTime(i64::MIN), |newest| {
            DbTime(newest.0.saturating_sub(LATE_COMMIT.as_micros() as i64))
        });
        let found = keys::usable(&mut *connect().await?, from).await?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if at_all {
            known.clear();
            looks.at_all = Some(now);
        }
        looks.newest = found.iter().map(|key| key.created_at).max().max(looks.newest);
        known.extend(found.into_iter().map(|key| (key.prefix.clone(), key)));
        looks.last = Some(now);
        Ok(())
    }
}

/// Remembers when each key was used, so that its `last_used_at` is written once a minute at most.
#[derive(Debug, Default)]
pub struct Uses(Mutex<HashMap<KeyId, Instant>>);

impl Uses {
    /// Notes that a key is used at this moment; whether that is to be written down.
    pub fn is_news(&self, key: KeyId, now: Instant) -> bool {
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = noted.get(&key).is_none_or(|at| now.duration_since(*at) >= USE_NOTED_AFTER);
        if is_news {
            noted.insert(key, now);
        }
        is_news
    }
}

/// Writes down that a key was used a moment ago.
///
/// # Errors
/// Whatever the database says.
pub async fn used(db: &mut Connection, key: KeyId) -> Result<(), StoreError> {
    keys::used(db, key).await
}

/// The prefix of what has the form of a key.
fn prefix(presented: &str) -> Option<&str> {
    let rest = presented.strip_prefix(SCHEME).filter(|_| presented.len() <= MAX_KEY)?;
    let (prefix, secret) = rest.split_once('_')?;
    let is_prefix = prefix.len() == 2 * PREFIX_BYTES && prefix.bytes().all(|byte| byte.is_ascii_hexdigit());
    (is_prefix && !secret.is_empty()).then_some(prefix)
}

fn hash(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

fn view(key: Key) -> View {
    View {
        id: key.id.0,
        org_id: key.org.0,
        name: key.name,
        role: key.role,
        prefix: format!("{SCHEME}{}", key.prefix),
        created_at: key.created_at.iso(),
        last_used_at: key.last_used_at.map(DbTime::iso),
        revoked_at: key.revoked_at.map(DbTime::iso),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_the_form_of_a_key_is_looked_for() {
        assert_eq!(prefix("phk_0123abcd_x-_y"), Some("0123abcd"));
        let long = format!("phk_0123abcd_{}", "x".repeat(MAX_KEY));
        for text in ["", "phk_", "phk_0123abcd", "phk_0123abcd_", "phk_0123abc_xy", "phk_0123abcg_x", &long] {
            assert_eq!(prefix(text), None, "{text}");
        }
    }
}
