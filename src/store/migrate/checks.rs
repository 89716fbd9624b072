//! CHECKs of our own tables, compared by what they say: PostgreSQL prints those of the migrations as it
//! prints those that are there.

use std::collections::BTreeMap;

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, raw_sql};

use super::catalog::Catalog;
use super::script::{Makes, Statement};

/// What the CHECKs of the migrations say, by table and name.
pub type Sayings = BTreeMap<(String, String), String>;

const SAYINGS: &str = "SELECT c.relname::text, k.conname::text, pg_get_constraintdef(k.oid)
    FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid
    WHERE k.contype = 'c' AND c.relnamespace = pg_my_temp_schema()";

/// Makes the tables anew, as temporary ones and for the question only. Nothing is known where that is not
/// possible: this role may not, the server takes no writes, an application's event trigger objects.
pub async fn sayings(
    conn: &mut PgConnection,
    catalog: &Catalog,
    statements: &[Statement],
) -> Result<Sayings, sqlx::Error> {
    let is_there = |table: &str| table.starts_with("posthaste_") && catalog.has_table(table);
    let script = statements.iter().filter_map(|statement| match &statement.makes {
        Makes::Table { name, .. } if is_there(name) => {
            let (columns, _) = statement.sql.rsplit_once("\n)")?;
            Some(columns.replacen("CREATE TABLE public.", "CREATE TEMPORARY TABLE ", 1) + ")")
        }
        Makes::Constraint { table, definition, .. } if is_there(table) && definition.starts_with("CHECK") => {
            Some(statement.sql.replacen("ALTER TABLE public.", "ALTER TABLE pg_temp.", 1))
        }
        _ => None,
    });
    let script: Vec<String> = script.collect();
    if script.is_empty() {
        return Ok(Sayings::new());
    }
    let mut transaction = conn.begin().await?;
    let made = raw_sql(AssertSqlSafe(script.join(";\n"))).execute(&mut *transaction).await;
    let found: Vec<(String, String, String)> = match made {
        Ok(_) => sqlx::query_as(SAYINGS).persistent(false).fetch_all(&mut *transaction).await?,
        Err(sqlx::Error::Database(_)) => Vec::new(),
        Err(error) => return Err(error),
    };
    transaction.rollback().await?;
    Ok(found.into_iter().map(|(table, name, text)| ((table, name), text)).collect())
}
