//! Destinations that want nothing, because what they want is beyond what a filter may be.

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Connection as _, Row as _, raw_sql};

use super::catalog::Catalog;
use super::script::{LEAST_RIGHTS, Makes, Statement};
use crate::store::schema;

/// A destination whose filter or list of types is not used, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unusable {
    /// Which destination, for people.
    pub destination: String,
    /// `event_filter` or `event_types`.
    pub column: String,
    /// What is wrong with it.
    pub fault: String,
}

// `$1`: only those that have matched anything until now; the others were no filters at all.
const UNUSABLE: &str = "
    WITH usable AS MATERIALIZED (
        SELECT public.posthaste_usable(array_agg(DISTINCT d.org_id::uuid)) AS ids
        FROM public.webhook_destinations d WHERE d.enabled IS NOT FALSE AND d.event_filter <> '{}'
    )
    SELECT format('\"%s\" (%s)', d.name, d.id) AS destination, f.column_name AS column, f.fault
    FROM public.webhook_destinations d, LATERAL (
        SELECT 'event_filter' AS column_name, coalesce(c.fault, CASE
            WHEN d.enabled IS NOT FALSE AND d.id <> ALL ((SELECT ids FROM usable)::uuid[]) THEN
                'the enabled destinations of its organization have more than 64 paths, or more than 256 '
                'elements of arrays, in all'
            END) AS fault
        FROM public.posthaste_filter_cost(d.event_filter::jsonb) c WHERE d.event_filter <> '{}'
        UNION ALL
        SELECT 'event_types', public.posthaste_types_fault(d.event_types::text[])
    ) f
    WHERE f.fault IS NOT NULL AND NOT ($1 AND f.fault LIKE ANY ('{it must be a JSON object%,
        the key % is unknown;%,$jsonpath must be a string%,$jsonpath cannot be used:%,
        $jsonpath must be a predicate%}'))
    ORDER BY d.id LIMIT 100";

/// The first hundred of them. The functions that judge must be there.
pub async fn unusable(conn: &mut PgConnection) -> Result<Vec<Unusable>, sqlx::Error> {
    find(conn, false).await
}

async fn find(conn: &mut PgConnection, only_new: bool) -> Result<Vec<Unusable>, sqlx::Error> {
    let read = |row: PgRow| Unusable { destination: row.get(0), column: row.get(1), fault: row.get(2) };
    schema::query(UNUSABLE).bind(only_new).map(read).fetch_all(conn).await
}

/// Those that have worked until now and will not after this migration. The functions are made for the
/// question only, and taken back with it.
pub(super) async fn newly_unusable(
    conn: &mut PgConnection,
    catalog: &Catalog,
    statements: &[Statement],
) -> Result<Vec<Unusable>, sqlx::Error> {
    let needed = ["org_id", "name", "enabled", "event_filter", "event_types"];
    let is_there = needed.iter().all(|column| catalog.has_column("webhook_destinations", column));
    if catalog.versions.contains(&LEAST_RIGHTS) || !is_there {
        return Ok(Vec::new());
    }
    let judges =
        ["is_predicate", "regex_fault", "path_fault", "filter_cost", "types_fault", "usable", "printed"];
    let mut transaction = conn.begin().await?;
    for statement in statements {
        if let Makes::Function(function) = &statement.makes
            && function.name.strip_prefix("posthaste_").is_some_and(|name| judges.contains(&name))
        {
            raw_sql(AssertSqlSafe(schema::qualified(statement.sql))).execute(&mut *transaction).await?;
        }
    }
    let found = find(&mut transaction, true).await?;
    transaction.rollback().await?;
    Ok(found)
}
