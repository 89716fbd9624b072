//! The secrets of all destinations, for whoever encrypts them, counts them, or changes their key.

use ring::rand::{SecureRandom as _, SystemRandom};
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Row};
use uuid::Uuid;

use super::{StoreError, in_time};
use crate::model::{DestinationId, Secret};
use crate::policy::keyring::Field;
use crate::store::schema;

/// Destinations on a page: a statement about so many is over in an instant, and so are its locks.
const PAGE: i64 = 200;

/// A secret as it is stored; empty ones are left out.
#[derive(Clone, Debug)]
pub struct Cell {
    /// Whose it is.
    pub destination: DestinationId,
    /// Where it stands.
    pub field: Field,
    /// Plain or encrypted.
    pub text: Secret,
}

/// The secrets of some destinations that follow each other.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// The secrets.
    pub cells: Vec<Cell>,
    /// The destination that the next page comes after; `None`: this is the last one.
    pub next: Option<DestinationId>,
}

/// Another text for a secret.
#[derive(Clone, Debug)]
pub struct Replacement {
    /// The secret as it was read.
    pub cell: Cell,
    /// What it becomes.
    pub text: Secret,
}

const READ: &str = "
WITH page AS MATERIALIZED (
    SELECT d.id, d.signing_secret, d.auth_config, s.previous_signing_secret, s.tls_client_key
    FROM public.webhook_destinations d
    LEFT JOIN public.posthaste_destination_settings s ON s.destination_id = d.id
    WHERE $1::uuid IS NULL OR d.id > $1
    ORDER BY d.id LIMIT $2
)
-- a destination without a secret has one row, so that the page ends with its last destination
SELECT p.id, cell.field, cell.text, (SELECT count(*) FROM page) AS destinations
FROM page p LEFT JOIN LATERAL (
    SELECT 'signing_secret', p.signing_secret::text
    UNION ALL SELECT 'previous_signing_secret', p.previous_signing_secret::text
    UNION ALL SELECT 'tls_client_key', p.tls_client_key
    UNION ALL SELECT 'auth_config.' || member, p.auth_config ->> member
    FROM unnest($3::text[]) AS member WHERE jsonb_typeof(p.auth_config -> member) = 'string'
) AS cell (field, text) ON cell.text <> ''
ORDER BY p.id, cell.field";

/// Reads a page of the secrets, enabled or not: the one after the destination `after`, or the first.
///
/// # Errors
/// Whatever the database says.
pub async fn read(conn: &mut PgConnection, after: Option<DestinationId>) -> Result<Page, StoreError> {
    let members = Field::ALL.into_iter().filter_map(|field| match field {
        Field::Auth(member) => Some(member),
        _ => None,
    });
    let query = schema::query(READ).bind(after.map(|id| id.0)).bind(PAGE).bind(members.collect::<Vec<_>>());
    let rows = in_time(query.fetch_all(conn)).await?;
    let id = |row: &PgRow| Ok::<_, sqlx::Error>(DestinationId(row.try_get("id")?));
    let mut page = Page::default();
    for row in &rows {
        let field = row.try_get::<Option<&str>, _>("field")?.and_then(Field::named);
        if let Some(field) = field {
            let text = Secret::new(row.try_get::<String, _>("text")?);
            page.cells.push(Cell { destination: id(row)?, field, text });
        }
    }
    if let Some(last) = rows.last()
        && last.try_get::<i64, _>("destinations")? == PAGE
    {
        page.next = Some(id(last)?);
    }
    Ok(page)
}

/// One statement for each field, from what is assigned and what must still be there. Nothing is written where
/// the secret is another one by now: whoever changed it has the last word.
macro_rules! replace {
    ($table:literal, $key:literal, $assignment:literal, $now:literal) => {
        concat!(
            "UPDATE public.",
            $table,
            " AS t SET ",
            $assignment,
            " FROM unnest($1::uuid[], $2::text[], $3::text[]) AS o (id, before, after)
              WHERE t.",
            $key,
            " = o.id AND ",
            $now,
            " = o.before"
        )
    };
}

const REPLACE_SIGNING_SECRET: &str =
    replace!("webhook_destinations", "id", "signing_secret = o.after", "t.signing_secret");
const REPLACE_MEMBER: &str = replace!(
    "webhook_destinations",
    "id",
    "auth_config = jsonb_set(t.auth_config, ARRAY[$4::text], to_jsonb(o.after))",
    "t.auth_config ->> $4"
);
const REPLACE_PREVIOUS: &str = replace!(
    "posthaste_destination_settings",
    "destination_id",
    "previous_signing_secret = o.after",
    "t.previous_signing_secret"
);
const REPLACE_CLIENT_KEY: &str = replace!(
    "posthaste_destination_settings",
    "destination_id",
    "tls_client_key = o.after",
    "t.tls_client_key"
);

/// Replaces secrets that are still what they were; returns how many were.
///
/// # Errors
/// Whatever the database says; some fields may have been written, and doing it again is harmless.
pub async fn replace(conn: &mut PgConnection, replacements: &[Replacement]) -> Result<u64, StoreError> {
    let mut written = 0;
    for field in Field::ALL {
        let (sql, member) = match field {
            Field::SigningSecret => (REPLACE_SIGNING_SECRET, None),
            Field::PreviousSigningSecret => (REPLACE_PREVIOUS, None),
            Field::Auth(member) => (REPLACE_MEMBER, Some(member)),
            Field::TlsClientKey => (REPLACE_CLIENT_KEY, None),
        };
        let of_field: Vec<_> = replacements.iter().filter(|r| r.cell.field == field).collect();
        if of_field.is_empty() {
            continue;
        }
        let query = schema::query(AssertSqlSafe(sql))
            .bind(of_field.iter().map(|r| r.cell.destination.0).collect::<Vec<Uuid>>())
            .bind(of_field.iter().map(|r| r.cell.text.reveal()).collect::<Vec<_>>())
            .bind(of_field.iter().map(|r| r.text.reveal()).collect::<Vec<_>>());
        let query = match member {
            Some(member) => query.bind(member),
            None => query,
        };
        written += in_time(query.execute(&mut *conn)).await?.rows_affected();
    }
    Ok(written)
}

/// Random bytes for keys and nonces, from the operating system.
pub fn random<const BYTES: usize>() -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    SystemRandom::new().fill(&mut bytes).expect("the operating system always has random bytes");
    bytes
}
