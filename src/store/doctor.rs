//! The SQL of `posthaste check`: what would lose or delay deliveries, and what to do about it.
//!
//! Everything is read with the rights and the settings of the role that will run the dispatcher; nothing is
//! written.

mod clocks;

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Row, raw_sql};

use super::migrate;
use crate::store::schema;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// Something would lose or delay deliveries.
    Fault,
    /// Worth knowing.
    Warning,
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How much it matters.
    pub weight: Weight,
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

/// What row-level security means for the session's role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowSecurity {
    /// Nothing: no policy applies.
    Inactive,
    /// Policies apply and let everything through: sessions must run with `row_security = on`.
    Open,
    /// Policies would hide rows. The statements would let the role see them; an owner must run them.
    Hiding(Vec<String>),
}

fn fault(what: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { weight: Weight::Fault, what: what.into(), remedy: remedy.into() }
}

fn warning(what: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { weight: Weight::Warning, what: what.into(), remedy: remedy.into() }
}

/// Looks at everything. Where the tables are missing, or may not be read, what needs them is left out.
///
/// # Errors
/// Whatever the database says.
pub async fn examine(conn: &mut PgConnection) -> Result<Vec<Finding>, sqlx::Error> {
    let mut findings = Vec::new();
    if let Err(no_access) = schema::access(conn).await? {
        return Ok(vec![fault("the tables cannot be looked at", no_access.to_string())]);
    }
    let shadows = migrate::shadows(conn).await?;
    if !shadows.is_empty() {
        // Nothing more is asked: it could be they who answer.
        let found = |shadow: &String| fault(migrate::shadowed(shadow), "see above");
        return Ok(shadows.iter().map(found).collect());
    }
    let session = format!("SET search_path = {}; SET row_security = on", schema::name());
    raw_sql(AssertSqlSafe(session)).execute(&mut *conn).await?;
    findings.extend(encoding(conn).await?);
    findings.extend(notifications(conn).await?);
    let pending = migrate::pending(conn).await;
    match pending {
        Ok(pending) if pending.is_empty() => {}
        Ok(pending) => {
            findings.push(fault(
                format!("migrations are missing: {}", pending.join(", ")),
                "run posthaste migrate",
            ));
            return Ok(findings);
        }
        Err(error) if denied(&error) => {
            let what = "this role may not read posthaste_migrations";
            let grant = format!("GRANT SELECT ON {}.posthaste_migrations to this role", schema::name());
            findings.push(fault(what, format!("{grant} (examples/deploy/grants.sql has all)")));
            return Ok(findings);
        }
        Err(error) => return Err(error),
    }
    let misshapen = migrate::misshapen(conn).await?;
    if !misshapen.is_empty() {
        // What else there is to say is said when the tables can be read.
        let told = |what| fault(what, "until then deliveries may stop, those of everybody");
        findings.extend(misshapen.into_iter().map(told));
        findings.extend(faults(conn).await?);
        return Ok(findings);
    }
    findings.extend(rights(conn, &NEEDED, fault).await?);
    findings.extend(functions(conn).await?);
    if !findings.is_empty() {
        return Ok(findings);
    }
    findings.extend(rights(conn, &NEEDED_BESIDES, warning).await?);
    findings.extend(row_security_of_the_role(conn).await?);
    findings.extend(row_security_of_the_trigger(conn).await?);
    findings.extend(drift(conn).await?);
    findings.extend(columns(conn).await?);
    findings.extend(beyond(conn).await?);
    findings.extend(filters(conn).await?);
    findings.extend(idle(conn).await?);
    findings.extend(faults(conn).await?);
    findings.extend(clocks::examine(conn).await?);
    Ok(findings)
}

fn denied(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(|error| error.code()).as_deref() == Some("42501")
}

/// What `serve` needs; `examples/deploy/grants.sql` grants exactly this.
const NEEDED: [(&str, &str); 32] = [
    ("webhook_deliveries", "SELECT"),
    ("webhook_deliveries", "UPDATE (status)"),
    ("webhook_deliveries", "UPDATE (attempts)"),
    ("webhook_deliveries", "UPDATE (last_attempt_at)"),
    ("webhook_deliveries", "UPDATE (next_retry_at)"),
    ("webhook_deliveries", "UPDATE (response_status)"),
    ("webhook_deliveries", "UPDATE (response_body)"),
    ("webhook_deliveries", "UPDATE (error_message)"),
    ("webhook_deliveries", "UPDATE (delivered_at)"),
    ("webhook_deliveries", "UPDATE (created_at)"),
    ("webhook_deliveries", "INSERT"),
    ("webhook_destinations", "SELECT"),
    ("webhook_destinations", "UPDATE (enabled)"),
    ("webhook_destinations", "UPDATE (updated_at)"),
    ("activity_logs", "SELECT"),
    ("posthaste_destination_settings", "SELECT"),
    ("posthaste_destination_state", "SELECT"),
    ("posthaste_destination_state", "INSERT"),
    ("posthaste_destination_state", "UPDATE"),
    ("posthaste_destination_state", "DELETE"),
    ("posthaste_faults", "SELECT"),
    ("posthaste_faults", "INSERT"),
    ("posthaste_faults", "UPDATE"),
    ("posthaste_faults", "DELETE"),
    ("posthaste_attempts", "SELECT"),
    ("posthaste_attempts", "INSERT"),
    ("posthaste_jobs", "SELECT"),
    ("posthaste_jobs", "INSERT"),
    ("posthaste_jobs", "UPDATE"),
    ("posthaste_retention", "SELECT"),
    ("posthaste_api_keys", "SELECT"),
    ("posthaste_api_keys", "UPDATE (last_used_at)"),
];

/// What retention needs besides, and what explains: without it nothing is delivered later.
const NEEDED_BESIDES: [(&str, &str); 7] = [
    ("posthaste_disabled_periods", "SELECT"),
    ("webhook_deliveries", "DELETE"),
    ("posthaste_attempts", "DELETE"),
    ("posthaste_jobs", "DELETE"),
    ("posthaste_retention", "SELECT"),
    ("posthaste_retention", "INSERT"),
    ("posthaste_retention", "UPDATE"),
];

const RIGHTS: &str = "SELECT n.relation, n.privilege, quote_ident(current_user)
    FROM unnest($1::text[], $2::text[]) AS n (relation, privilege)
        -- a column that is missing is another finding
        LEFT JOIN pg_attribute a ON a.attrelid = to_regclass('public.' || n.relation) AND NOT a.attisdropped
            AND a.attname = substring(n.privilege FROM '[(](.*)[)]')
    WHERE NOT CASE WHEN n.privilege LIKE 'UPDATE (%'
        THEN coalesce(has_column_privilege(a.attrelid, a.attnum, 'UPDATE'), true)
        ELSE has_table_privilege('public.' || n.relation, n.privilege) END";

/// Those of `needed` that are not granted.
async fn rights(
    conn: &mut PgConnection,
    needed: &[(&'static str, &'static str)],
    finding: fn(String, String) -> Finding,
) -> Result<Vec<Finding>, sqlx::Error> {
    let (tables, privileges): (Vec<&str>, Vec<&str>) = needed.iter().copied().unzip();
    let rows = schema::query(RIGHTS).bind(tables).bind(privileges).fetch_all(conn).await?;
    Ok(rows
        .iter()
        .map(|row| {
            let (table, privilege, role): (&str, &str, &str) = (row.get(0), row.get(1), row.get(2));
            finding(
                format!("{privilege} on {table} is not granted"),
                format!("GRANT {privilege} ON {}.{table} TO {role}", schema::name()),
            )
        })
        .collect())
}

async fn encoding(conn: &mut PgConnection) -> Result<Vec<Finding>, sqlx::Error> {
    let encoding: String = schema::query_scalar(ENCODING).fetch_one(conn).await?;
    Ok((encoding == "SQL_ASCII").then(|| fault(migrate::ENCODING, "see above")).into_iter().collect())
}

const ENCODING: &str = "SELECT current_setting('server_encoding')";

const NOTIFICATIONS: &str = "SELECT (pg_notification_queue_usage() * 100)::float8";

/// PostgreSQL fails the commit of whoever notifies when its queue is full; so from half of it on nothing is
/// told.
async fn notifications(conn: &mut PgConnection) -> Result<Vec<Finding>, sqlx::Error> {
    let percent: f64 = schema::query(NOTIFICATIONS).fetch_one(conn).await?.get(0);
    let what = format!(
        "PostgreSQL's queue of notifications is full by {percent:.0} %: polling finds what is not told"
    );
    let remedy =
        "end the session that listens and stays in a transaction: pg_stat_activity, idle in transaction";
    Ok((percent >= 50.0).then(|| warning(what, remedy)).into_iter().collect())
}

/// The functions that `serve` calls: those by which filters are judged and evaluated, and payloads printed.
const EXECUTED: &str = "SELECT format('public.%I(%s)', p.proname, oidvectortypes(p.proargtypes)),
        quote_ident(current_user)
    FROM pg_proc p
    WHERE p.pronamespace = to_regnamespace('public') AND p.proname = ANY ('{posthaste_is_predicate,
        posthaste_regex_fault,posthaste_path_fault,posthaste_filter_cost,posthaste_filter_fault,
        posthaste_types_fault,posthaste_usable,posthaste_subscriptions,posthaste_holds,posthaste_data,
        posthaste_backfill,posthaste_printed,posthaste_print}')
        AND NOT has_function_privilege(p.oid, 'EXECUTE')";

/// The statements that grant this role EXECUTE on the functions that `serve` calls, as far as it lacks it.
/// A role of an earlier version does: then everybody had it.
///
/// # Errors
/// Whatever the database says.
pub async fn missing_grants(conn: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
    let grant = |row: PgRow| {
        let (function, role): (&str, &str) = (row.get(0), row.get(1));
        format!("GRANT EXECUTE ON FUNCTION {function} TO {role}")
    };
    schema::query(EXECUTED).map(grant).fetch_all(conn).await
}

async fn functions(conn: &mut PgConnection) -> Result<Vec<Finding>, sqlx::Error> {
    let finding = |grant: String| {
        let what = "a function that serve calls may not be executed by this role";
        fault(what, format!("{grant} (examples/deploy/grants.sql has all)"))
    };
    Ok(missing_grants(conn).await?.into_iter().map(finding).collect())
}

// A role that some policy applies to sees everything only if one permissive policy lets all through for all
// commands and no restrictive one takes something away.
const POLICIES: &str = "SELECT c.relname::text, quote_ident(current_user),
        coalesce(bool_or(p.polpermissive AND p.polcmd = '*' AND pg_get_expr(p.polqual, p.polrelid) = 'true'
            AND coalesce(pg_get_expr(p.polwithcheck, p.polrelid), 'true') = 'true'), false)
        AND NOT coalesce(bool_or(NOT p.polpermissive), false)
    FROM pg_class c
    LEFT JOIN pg_policy p ON p.polrelid = c.oid AND EXISTS (
        SELECT FROM unnest(p.polroles) r WHERE r = 0 OR pg_has_role(current_user, r, 'USAGE'))
    WHERE c.relnamespace = to_regnamespace('public') AND row_security_active(c.oid)
        AND c.relname IN ('activity_logs', 'webhook_destinations', 'webhook_deliveries',
            'posthaste_destination_settings', 'posthaste_destination_state', 'posthaste_attempts')
    GROUP BY c.relname ORDER BY c.relname";

/// What row-level security means for the session's role. The session must run with `row_security = on`.
///
/// # Errors
/// Whatever the database says.
pub async fn row_security(conn: &mut PgConnection) -> Result<RowSecurity, sqlx::Error> {
    let rows = schema::query(POLICIES).fetch_all(conn).await?;
    let hiding: Vec<String> = rows
        .iter()
        .filter(|row| !row.get::<bool, _>(2))
        .map(|row| {
            let (table, role): (&str, &str) = (row.get(0), row.get(1));
            format!(
                "CREATE POLICY posthaste_serve ON {}.{table} TO {role} USING (true) WITH CHECK (true)",
                schema::name()
            )
        })
        .collect();
    Ok(match (rows.is_empty(), hiding.is_empty()) {
        (true, _) => RowSecurity::Inactive,
        (false, true) => RowSecurity::Open,
        (false, false) => RowSecurity::Hiding(hiding),
    })
}

async fn row_security_of_the_role(conn: &mut PgConnection) -> Result<Vec<Finding>, sqlx::Error> {
    let RowSecurity::Hiding(statements) = row_security(conn).await? else { return Ok(Vec::new()) };
    let what = "row-level security hides rows from this role";
    let or =
        "as the owner (restrictive policies must let the role through as well); or ALTER ROLE … BYPASSRLS";
    Ok(statements.into_iter().map(|statement| fault(what, format!("{statement}; {or}"))).collect())
}

// The fan-out runs with its owner's rights, and forced row-level security binds owners, too.
const TRIGGER_POLICIES: &str = "SELECT c.relname::text, quote_ident(o.rolname)
    FROM pg_proc f JOIN pg_roles o ON o.oid = f.proowner, pg_class c
    WHERE f.pronamespace = to_regnamespace('public') AND f.proname = 'posthaste_fan_out'
        AND c.relnamespace = to_regnamespace('public')
        AND c.relname IN ('webhook_destinations', 'webhook_deliveries')
        AND c.relrowsecurity AND NOT o.rolsuper AND NOT o.rolbypassrls
        AND (c.relforcerowsecurity OR NOT pg_has_role(f.proowner, c.relowner, 'USAGE'))
        AND (EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = c.oid AND NOT p.polpermissive)
             OR NOT EXISTS (
                SELECT FROM pg_policy p WHERE p.polrelid = c.oid AND p.polpermissive AND p.polcmd = '*'
                    AND (p.polname = 'posthaste_fan_out' OR pg_get_expr(p.polqual, p.polrelid) = 'true')
                    AND (0 = ANY (p.polroles) OR f.proowner = ANY (p.polroles))))
        AND EXISTS (SELECT FROM public.posthaste_options t WHERE t.name = 'fan_out' AND t.value)";

async fn row_security_of_the_trigger(conn: &mut PgConnection) -> Result<Vec<Finding>, sqlx::Error> {
    let rows = schema::query(TRIGGER_POLICIES).fetch_all(conn).await?;
    Ok(rows
        .iter()
        .map(|row| {
            let (table, owner): (&str, &str) = (row.get(0), row.get(1));
            fault(
                format!(
                    "row-level security of {table} may hide rows from the fan-out, which runs as {owner}"
                ),
                format!(
                    "{}; and let {owner} through all restrictive policies",
                    migrate::fan_out_policy(table, owner)
                ),
            )
        })
        .collect())
}

/// What `migrate` would do now: indexes that are missing or invalid, triggers, functions.
async fn drift(conn: &mut PgConnection) -> Result<Vec<Finding>, sqlx::Error> {
    let drift = migrate::drift(conn).await?;
    let given = |statement: &str| {
        let statement = statement.replace(schema::name(), "");
        !["posthaste_", "UNIQUE", "ADD COLUMN"].iter().any(|word| statement.contains(word))
    };
    let mut findings: Vec<Finding> = drift
        .statements
        .iter()
        .map(|statement| {
            let what = format!("the tables are not as they should be; missing: {}", first_line(statement));
            let weight = if given(statement) { Weight::Warning } else { Weight::Fault };
            Finding { weight, what, remedy: "run posthaste migrate".into() }
        })
        .collect();
    findings.extend(drift.differences.into_iter().map(|difference| Finding {
        weight: if difference.stops { Weight::Fault } else { Weight::Warning },
        what: difference.what,
        remedy: difference.remedy,
    }));
    findings.extend(drift.exposures.into_iter().map(|(what, remedy)| fault(what, remedy)));
    findings.extend(drift.switched_off.iter().map(|trigger| {
        fault(format!("trigger {trigger} is switched off"), "ALTER TABLE … ENABLE TRIGGER, then backfill")
    }));
    Ok(findings)
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

async fn columns(conn: &mut PgConnection) -> Result<Vec<Finding>, sqlx::Error> {
    let missing = migrate::missing_event_columns(conn).await?;
    Ok(missing
        .iter()
        .map(|column| {
            let meaning = match *column {
                "created_at" => "every webhook has the delivery's, and nothing can be backfilled",
                _ => "it is null in every webhook",
            };
            let what = format!("activity_logs has no column {column}: {meaning}");
            warning(what, format!("add the column to activity_logs if receivers need {column}"))
        })
        .collect())
}

const BEYOND: &str = "SELECT l.name, l.most, l.found FROM (
        SELECT count(*) FILTER (WHERE timeout_ms > 30000) AS timeouts,
            count(*) FILTER (WHERE batch_size > 100) AS batches
        FROM public.webhook_destinations) n,
        LATERAL (VALUES ('timeout_ms', 30000, n.timeouts), ('batch_size', 100, n.batches))
            AS l (name, most, found)
    WHERE l.found > 0";

/// Numbers that the given table does not let through.
async fn beyond(conn: &mut PgConnection) -> Result<Vec<Finding>, sqlx::Error> {
    let finding = |row: PgRow| {
        let (name, most, found): (&str, i32, i64) = (row.get(0), row.get(1), row.get(2));
        warning(
            format!(
                "webhook_destinations.{name} of {found} destinations is above {most}, and counts as {most}"
            ),
            format!("set it to {most} or less"),
        )
    };
    schema::query(BEYOND).map(finding).fetch_all(conn).await
}

async fn filters(conn: &mut PgConnection) -> Result<Vec<Finding>, sqlx::Error> {
    let found = migrate::unusable(conn).await?;
    let told = |one: migrate::Unusable| {
        let what = format!("{} of destination {} is bad: {}", one.column, one.destination, one.fault);
        fault(what, format!("correct the {}: it matches nothing", one.column))
    };
    Ok(found.into_iter().map(told).collect())
}

const FAULTS: &str = "SELECT f.kind, f.destination_id::text, f.delivery_id::text, left(f.message, 500),
        f.destination_id <> f.delivery_id, f.tries, to_char(f.since, 'YYYY-MM-DD HH24:MI:SS')
    FROM public.posthaste_faults f
    -- each is seen at least once an hour, while its process lives
    WHERE f.last_seen_at > timezone('UTC', clock_timestamp()) - interval '2 hours'
    ORDER BY f.since LIMIT 100";

/// What a running dispatcher cannot do.
async fn faults(conn: &mut PgConnection) -> Result<Vec<Finding>, sqlx::Error> {
    let rows = schema::query(FAULTS).fetch_all(conn).await?;
    let told = |row: &PgRow| -> Result<Finding, sqlx::Error> {
        let kind: String = row.try_get(0)?;
        let of = |n| row.try_get::<String, _>(n);
        let delivery = if row.try_get(4)? { format!(" delivery={}", of(2)?) } else { String::new() };
        let what = match kind.as_str() {
            "claim" => "it cannot be read",
            "result" => "its result cannot be written",
            "state" => "its state cannot be written",
            "disable" => "it cannot be disabled",
            _ => "it cannot be read, and is not contacted",
        };
        let (message, tries, since) = (of(3)?, row.try_get::<i32, _>(5)?, of(6)?);
        Ok(fault(
            format!("destination={}{delivery} {what}: {message} ({tries} tries since {since} UTC)", of(1)?),
            "mend what the message names; it is tried again by itself, and everything else goes on",
        ))
    };
    rows.iter().map(told).collect()
}

const IDLE: &str = "SELECT format('settings of destination \"%s\" (%s): %s', d.name, d.id, f.fault)
    FROM public.webhook_destinations d
    JOIN public.posthaste_destination_settings s ON s.destination_id = d.id,
    LATERAL (VALUES
        (s.batch_wait_ms > 0 AND coalesce(s.batch_max_events, d.batch_size, 1) = 1,
            'batch_wait_ms has no effect with batch_size 1'),
        (s.ordered AND s.max_in_flight > 1,
            'max_in_flight has no effect: ordered destinations send one at a time'),
        (s.rate_limit_burst IS NOT NULL AND s.rate_limit_per_second IS NULL,
            'rate_limit_burst has no effect without rate_limit_per_second'),
        (s.signature_scheme = 'hex' AND d.signing_secret IS NULL,
            'signature_scheme hex needs a signing_secret'),
        (s.signature_scheme = 'standard' AND s.signature_header IS NOT NULL,
            'signature_header has no effect with signature_scheme standard'),
        (s.previous_signing_secret IS NOT NULL AND s.previous_secret_expires_at IS NULL,
            'previous_signing_secret has no previous_secret_expires_at')
    ) AS f (holds, fault)
    WHERE f.holds ORDER BY d.id LIMIT 100";

async fn idle(conn: &mut PgConnection) -> Result<Vec<Finding>, sqlx::Error> {
    let finding = |row: PgRow| warning(row.get::<String, _>(0), "correct posthaste_destination_settings");
    schema::query(IDLE).map(finding).fetch_all(conn).await
}
