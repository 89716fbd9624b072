//! The schema that the tables and functions are in, and how statements come to name it.
//!
//! Statements, migrations and functions are written for `public`. Where it is another schema, its name is put
//! in when a statement is made, never by a session's search_path, which others can change. So every statement
//! goes through [`query`] and its kin: text that holds nothing of an application's own. What does (the CHECKs
//! of its tables, which the migrator evaluates) is put together from [`name`].

use std::borrow::Cow;
use std::str::FromStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest as _, Sha256};
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, FromRow, SqlSafeStr, SqlStr};

use super::statement::Query;

/// Longest name, in bytes: PostgreSQL's names have 63, and those of channels end with it.
const MAX_LENGTH: usize = 40;
/// The schema where nobody says otherwise.
const PUBLIC: &str = "public";

static SCHEMA: OnceLock<Schema> = OnceLock::new();
/// Whether somebody has said which one it is.
static IS_CHOSEN: AtomicBool = AtomicBool::new(false);

/// The name of a schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schema {
    name: String,
    quoted: String,
}

/// Why text is no [`Schema`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a schema's name must be 1 to {MAX_LENGTH} lower-case letters, digits and underscores, must begin with \
     none of the digits, and not with pg_"
)]
pub struct SchemaFault;

impl FromStr for Schema {
    type Err = SchemaFault;

    fn from_str(name: &str) -> Result<Schema, SchemaFault> {
        let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let is_system = name.starts_with("pg_") || name == "information_schema";
        let begins_well = name.starts_with(|c: char| !c.is_ascii_digit());
        if name.len() > MAX_LENGTH || !begins_well || is_system || !name.chars().all(is_part) {
            return Err(SchemaFault);
        }
        let quoted = if name == PUBLIC { name.to_owned() } else { quoted(name) };
        Ok(Schema { name: name.to_owned(), quoted })
    }
}

impl Schema {
    fn is_public(&self) -> bool {
        self.name == PUBLIC
    }

    fn qualified<'a>(&self, sql: &'a str) -> Cow<'a, str> {
        if self.is_public() {
            return Cow::Borrowed(sql);
        }
        let Schema { name, quoted } = self;
        let sql = sql.replace("public.", &format!("{quoted}."));
        let sql = sql.replace("namespace('public'", &format!("namespace('{name}'"));
        let sql = sql.replace("TG_TABLE_SCHEMA <> 'public'", &format!("TG_TABLE_SCHEMA <> '{name}'"));
        let sql = sql.replace("'posthaste_wake'", &format!("'{}'", self.channel("posthaste_wake")));
        Cow::Owned(sql.replace("'posthaste_config'", &format!("'{}'", self.channel("posthaste_config"))))
    }

    fn as_public(&self, printed: String) -> String {
        match self.is_public() {
            true => printed,
            false => printed
                .replace(&format!(" {}.", self.name), " public.")
                .replace(&format!(" {}.", self.quoted), " public."),
        }
    }

    fn channel(&self, of_public: &str) -> String {
        match self.is_public() {
            true => of_public.to_owned(),
            false => format!("{of_public}_{}", self.name),
        }
    }

    fn lock_key(&self, of_public: i64) -> i64 {
        let digest: [u8; 32] = Sha256::digest(&self.name).into();
        match (self.is_public(), digest.first_chunk()) {
            (false, Some(chunk)) => of_public ^ i64::from_be_bytes(*chunk),
            _ => of_public,
        }
    }
}

/// Says once which schema it is; unless somebody does, it is `public`.
///
/// # Panics
/// When it is said a second time: statements may have been made by then.
pub fn set(schema: Schema) {
    SCHEMA.set(schema).expect("the schema is said before any statement is made");
    IS_CHOSEN.store(true, Ordering::Relaxed);
}

fn current() -> &'static Schema {
    SCHEMA.get_or_init(|| Schema { name: PUBLIC.to_owned(), quoted: PUBLIC.to_owned() })
}

/// The name of the schema as statements say it, in quotes where it is another one than `public`.
pub(super) fn name() -> &'static str {
    &current().quoted
}

/// A statement of ours as it is for this schema.
pub(super) fn qualified(sql: &str) -> Cow<'_, str> {
    current().qualified(sql)
}

/// An identifier as SQL reads it, whatever is in it.
pub(super) fn quoted(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

/// What PostgreSQL prints about this schema as it would print it about `public`.
pub(super) fn as_public(printed: String) -> String {
    current().as_public(printed)
}

/// The name of a channel: of two schemas of a database, each hears its own.
pub(super) fn channel(of_public: &str) -> String {
    current().channel(of_public)
}

/// The key of an advisory lock, which each schema has for itself.
pub(super) fn lock_key(of_public: i64) -> i64 {
    current().lock_key(of_public)
}

/// Names nothing in the schema, so that it can be asked without rights there.
const ACCESS: &str = "SELECT quote_ident(current_user),
    coalesce(has_schema_privilege(to_regnamespace('public')::oid, 'USAGE'), true),
    ARRAY(SELECT n.nspname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relname = 'posthaste_migrations' AND c.relkind = 'r'
            AND n.oid IS DISTINCT FROM to_regnamespace('public')::oid ORDER BY 1),
    EXISTS (SELECT FROM pg_class c WHERE c.relname = 'posthaste_migrations' AND c.relkind = 'r'
        AND c.relnamespace = to_regnamespace('public')::oid)";

/// What stands in the way of any statement, with its remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAccess {
    /// The role may not look into the schema.
    #[error("this role may not use schema {0}: GRANT USAGE ON SCHEMA {0} TO {1}")]
    Usage(String, String),
    /// Nobody has said which schema it is, and there is an installation in another one.
    #[error(
        "there is no installation in schema public, and one in schema {0}: set POSTHASTE_SCHEMA={0}, or \
         POSTHASTE_SCHEMA=public for another one beside it"
    )]
    Elsewhere(String),
}

/// Whether the schema may be used, and is the one that is meant. To be asked before any other statement.
///
/// # Errors
/// Whatever the database says.
pub async fn access(conn: &mut PgConnection) -> Result<Result<(), NoAccess>, sqlx::Error> {
    let (role, may_use, others, is_here): (String, bool, Vec<String>, bool) =
        self::query_as(ACCESS).persistent(false).fetch_one(conn).await?;
    let is_chosen = IS_CHOSEN.load(Ordering::Relaxed);
    Ok(match others.into_iter().next() {
        _ if !may_use => Err(NoAccess::Usage(name().to_owned(), role)),
        Some(other) if !is_here && !is_chosen => Err(NoAccess::Elsewhere(other)),
        _ => Ok(()),
    })
}

fn text(sql: impl SqlSafeStr) -> SqlStr {
    let sql = sql.into_sql_str();
    match qualified(sql.as_str()) {
        Cow::Borrowed(_) => sql,
        Cow::Owned(qualified) => AssertSqlSafe(qualified).into_sql_str(),
    }
}

/// [`sqlx::query`] for this schema.
pub(super) fn query(sql: impl SqlSafeStr) -> Query {
    Query::new(text(sql), Ok)
}

/// The same of text that names the schema already.
pub(super) fn query_verbatim(sql: impl SqlSafeStr) -> Query {
    Query::new(sql.into_sql_str(), Ok)
}

/// [`sqlx::query_as`] for this schema.
pub(super) fn query_as<O>(sql: impl SqlSafeStr) -> Query<O>
where
    O: for<'r> FromRow<'r, PgRow> + 'static,
{
    Query::new(text(sql), |row| O::from_row(&row))
}

/// [`sqlx::query_scalar`] for this schema.
pub(super) fn query_scalar<O: 'static>(sql: impl SqlSafeStr) -> Query<O>
where
    (O,): for<'r> FromRow<'r, PgRow>,
{
    Query::new(text(sql), |row| <(O,)>::from_row(&row).map(|(value,)| value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_names_the_schema_wherever_it_names_public() {
        let schema: Schema = "app".parse().expect("a name");
        for (sql, expected) in [
            ("SELECT FROM public.activity_logs l", r#"SELECT FROM "app".activity_logs l"#),
            ("to_regclass('public.' || $1)", r#"to_regclass('"app".' || $1)"#),
            ("to_regnamespace('public'::text)", "to_regnamespace('app'::text)"),
            ("IF TG_TABLE_SCHEMA <> 'public' OR", "IF TG_TABLE_SCHEMA <> 'app' OR"),
            ("has_schema_privilege('public', $1)", "has_schema_privilege('public', $1)"),
            ("pg_notify('posthaste_wake', $1)", "pg_notify('posthaste_wake_app', $1)"),
            ("pg_notify('posthaste_config', $1)", "pg_notify('posthaste_config_app', $1)"),
        ] {
            assert_eq!(schema.qualified(sql), expected);
            assert_eq!("public".parse::<Schema>().expect("a name").qualified(sql), sql);
        }
        assert_eq!(schema.as_public("ON app.t FOR".into()), "ON public.t FOR");
        assert_eq!(schema.as_public("ON \"app\".t FOR".into()), "ON public.t FOR");
        assert_ne!(schema.lock_key(7), 7);
    }

    #[test]
    fn a_name_that_cannot_be_one_is_refused() {
        for name in ["public", "app", "_1", "order", &"x".repeat(MAX_LENGTH)] {
            assert!(name.parse::<Schema>().is_ok(), "{name}");
        }
        for name in ["", "App", "1a", "a b", "a.b", "a\"b", "a'b", "pg_x", "information_schema", "é"] {
            assert_eq!(name.parse::<Schema>(), Err(SchemaFault), "{name}");
        }
        assert!("x".repeat(MAX_LENGTH + 1).parse::<Schema>().is_err());
        // PostgreSQL cuts off what is longer than 63 bytes.
        let longest: Schema = "x".repeat(MAX_LENGTH).parse().expect("a name");
        assert!(longest.channel("posthaste_config").len() <= 63);
    }
}
