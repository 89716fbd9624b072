//! Keys of the HTTP API. No statement has to do with a key itself: what is stored is its hash.

use sqlx::Row;
use sqlx::postgres::{PgConnection, PgRow};

use super::page::{Page, Position};
use super::{StoreError, in_time};
use crate::model::{DbTime, KeyId, OrgId};
use crate::store::schema;

/// What a key allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Seeing.
    Read,
    /// Seeing and changing.
    Write,
}

impl Role {
    /// As the column has it.
    pub fn name(self) -> &'static str {
        match self {
            Role::Read => "read",
            Role::Write => "write",
        }
    }

    /// The role of this name.
    pub fn named(name: &str) -> Option<Role> {
        [Role::Read, Role::Write].into_iter().find(|role| role.name() == name)
    }
}

/// A key, without what would let anybody use it.
#[derive(Clone, Debug)]
pub struct Key {
    /// Primary key.
    pub id: KeyId,
    /// The organization that it is for.
    pub org: OrgId,
    /// What people call it.
    pub name: String,
    /// What it allows.
    pub role: Role,
    /// What it begins with, after `phk_`.
    pub prefix: String,
    /// When it was created.
    pub created_at: DbTime,
    /// When it was last used, to the minute.
    pub last_used_at: Option<DbTime>,
    /// When it was revoked.
    pub revoked_at: Option<DbTime>,
}

/// What a presented key is compared with.
#[derive(Clone, Debug)]
pub struct Credential {
    /// Which key.
    pub id: KeyId,
    /// Its organization.
    pub org: OrgId,
    /// Its role.
    pub role: Role,
    /// Its hash.
    pub hash: Vec<u8>,
}

macro_rules! columns {
    () => {
        "id, org_id, name, role, prefix, created_at, last_used_at, revoked_at"
    };
}

const INSERT: &str = concat!(
    "INSERT INTO public.posthaste_api_keys (org_id, name, role, prefix, hash, created_at)
    VALUES ($1, $2, $3, $4, $5, timezone('UTC', clock_timestamp())) RETURNING ",
    columns!()
);

/// Writes a new key.
///
/// # Errors
/// Whatever the database says.
pub async fn insert(
    db: &mut PgConnection,
    org: OrgId,
    name: &str,
    role: Role,
    prefix: &str,
    hash: &[u8],
) -> Result<Key, StoreError> {
    let query = schema::query(INSERT).bind(org.0).bind(name).bind(role.name()).bind(prefix).bind(hash);
    Ok(read(&in_time(query.fetch_one(db)).await?)?)
}

const LIST: &str = concat!(
    "SELECT ",
    columns!(),
    " FROM public.posthaste_api_keys
    WHERE ($1::uuid IS NULL OR org_id = $1) AND (created_at, id) < ($2::timestamp, $3::uuid)
    ORDER BY created_at DESC, id DESC LIMIT $4"
);

/// The keys of `org`, or of all, the newest first; revoked ones as well.
///
/// # Errors
/// Whatever the database says.
pub async fn list(
    db: &mut PgConnection,
    org: Option<OrgId>,
    before: Option<Position>,
    limit: u32,
) -> Result<Page<Key>, StoreError> {
    let before = Position::before(before, None);
    let query = schema::query(LIST).bind(org.map(|org| org.0)).bind(before.at).bind(before.id);
    // Planned for these values: the index depends on whether there is an organization.
    let query = query.bind(i64::from(limit) + 1).persistent(false);
    let rows = in_time(query.fetch_all(db)).await?;
    let keys = rows.iter().map(read).collect::<Result<Vec<Key>, _>>()?;
    Ok(Page::cut(keys, limit, |key| Position { at: key.created_at, id: key.id.0 }))
}

const REVOKE: &str = concat!(
    "UPDATE public.posthaste_api_keys
    SET revoked_at = coalesce(revoked_at, timezone('UTC', clock_timestamp()))
    WHERE id = $2 AND ($1::uuid IS NULL OR org_id = $1) RETURNING ",
    columns!()
);

/// Revokes a key of `org`, or of any; `None`: there is no such key.
///
/// # Errors
/// Whatever the database says; revoking again changes nothing.
pub async fn revoke(db: &mut PgConnection, org: Option<OrgId>, id: KeyId) -> Result<Option<Key>, StoreError> {
    let query = schema::query(REVOKE).bind(org.map(|org| org.0)).bind(id.0);
    let row = in_time(query.fetch_optional(db)).await?;
    Ok(row.as_ref().map(read).transpose()?)
}

const FIND: &str =
    "SELECT id, org_id, role, hash FROM public.posthaste_api_keys WHERE prefix = $1 AND revoked_at IS NULL";

/// The key with this prefix, unless it is revoked.
///
/// # Errors
/// Whatever the database says.
pub async fn find(db: &mut PgConnection, prefix: &str) -> Result<Option<Credential>, StoreError> {
    let row = in_time(schema::query(FIND).bind(prefix).fetch_optional(db)).await?;
    let read = |row: &PgRow| {
        Ok(Credential {
            id: KeyId(row.try_get("id")?),
            org: OrgId(row.try_get("org_id")?),
            role: read_role(row)?,
            hash: row.try_get("hash")?,
        })
    };
    row.as_ref().map(read).transpose().map_err(StoreError::Database)
}

const USED: &str = "
    UPDATE public.posthaste_api_keys SET last_used_at = timezone('UTC', clock_timestamp()) WHERE id = $1";

/// Notes that a key was used a moment ago.
///
/// # Errors
/// Whatever the database says.
pub async fn used(db: &mut PgConnection, key: KeyId) -> Result<(), StoreError> {
    in_time(schema::query(USED).bind(key.0).execute(db)).await?;
    Ok(())
}

/// A key as far as it can be told from others.
#[derive(Clone, Debug)]
pub struct Known {
    /// What it begins with, after `phk_`.
    pub prefix: String,
    /// Its hash.
    pub hash: Vec<u8>,
    /// Its organization.
    pub org: OrgId,
    /// When it was created.
    pub created_at: DbTime,
}

const USABLE: &str = "SELECT prefix, hash, org_id, created_at FROM public.posthaste_api_keys
    WHERE revoked_at IS NULL AND created_at >= $1";

/// Every key that can be used and was created at `since` or later.
///
/// # Errors
/// Whatever the database says.
pub async fn usable(db: &mut PgConnection, since: DbTime) -> Result<Vec<Known>, StoreError> {
    let rows = in_time(schema::query(USABLE).bind(since).fetch_all(db)).await?;
    let read = |row: &PgRow| {
        Ok(Known {
            prefix: row.try_get("prefix")?,
            hash: row.try_get("hash")?,
            org: OrgId(row.try_get("org_id")?),
            created_at: row.try_get("created_at")?,
        })
    };
    Ok(rows.iter().map(read).collect::<Result<_, sqlx::Error>>()?)
}

fn read_role(row: &PgRow) -> Result<Role, sqlx::Error> {
    let name: &str = row.try_get("role")?;
    Role::named(name).ok_or_else(|| sqlx::Error::Decode(format!("the role {name} is unknown").into()))
}

fn read(row: &PgRow) -> Result<Key, sqlx::Error> {
    Ok(Key {
        id: KeyId(row.try_get("id")?),
        org: OrgId(row.try_get("org_id")?),
        name: row.try_get("name")?,
        role: read_role(row)?,
        prefix: row.try_get("prefix")?,
        created_at: row.try_get("created_at")?,
        last_used_at: row.try_get("last_used_at")?,
        revoked_at: row.try_get("revoked_at")?,
    })
}
