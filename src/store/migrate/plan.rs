//! The difference between what should be there and what is there, as statements.
//!
//! A table that is missing is made at once with everything that belongs to it, so that it is there whole or
//! not at all. To a table that is there only what is missing is added, in forms that lock it for a moment at
//! most.

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, Row, raw_sql};

use super::catalog::{Catalog, Constraint};
use super::checks::{Sayings, sayings};
use super::faults::has_unique;
use super::script::{Function, MIGRATIONS, Makes, Statement, columns_of, written};
use super::trial::{Trial, expression, stripped};
use super::{Choices, STAND_INS};
use crate::store::schema::{self, quoted};

/// How a step must be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In a transaction of its own, giving up soon when a lock cannot be had.
    Locking,
    /// Outside of a transaction, waiting for older transactions as long as they last: it keeps nobody
    /// waiting.
    Concurrently,
}

/// Statements that belong together.
#[derive(Debug)]
pub struct Step {
    /// How they must be run.
    pub mode: Mode,
    /// The statements, one transaction.
    pub statements: Vec<String>,
}

/// What is to be done, and what a person should know.
#[derive(Debug, Default)]
pub struct Plan {
    /// In this order.
    pub steps: Vec<Step>,
    /// Things left as they are, and why.
    pub notices: Vec<String>,
    /// Things that stand in the way and could only be seen by looking at the rows.
    pub faults: Vec<String>,
    /// Triggers that are there and do not fire.
    pub switched_off: Vec<String>,
}

impl Plan {
    fn lock(&mut self, statement: impl AsRef<str>) {
        self.lock_all([statement]);
    }

    fn lock_all<const N: usize>(&mut self, statements: [impl AsRef<str>; N]) {
        let statements = statements.map(|sql| schema::qualified(sql.as_ref()).into_owned());
        self.steps.push(Step { mode: Mode::Locking, statements: statements.into() });
    }

    fn concurrently(&mut self, statement: impl AsRef<str>) {
        let statement = schema::qualified(statement.as_ref()).into_owned();
        self.steps.push(Step { mode: Mode::Concurrently, statements: vec![statement] });
    }

    /// A statement that holds words of the application, and names the schema itself.
    fn lock_verbatim(&mut self, statement: String) {
        self.steps.push(Step { mode: Mode::Locking, statements: vec![statement] });
    }
}

/// Works out the plan. Rows are looked at only where a constraint is missing on a table that is in use.
pub async fn make(
    conn: &mut PgConnection,
    catalog: &Catalog,
    statements: &[Statement],
    choices: Choices,
) -> Result<Plan, sqlx::Error> {
    let mut plan = Plan::default();
    if !catalog.has_schema {
        plan.lock(format!("CREATE SCHEMA {}", schema::name()));
    }
    // Before the trigger: no event may meet it without them.
    policies(conn, catalog, &mut plan, choices).await?;
    let sayings = sayings(conn, catalog, statements).await?;
    // All functions are made in one step, as some call others: whoever writes events meanwhile must never
    // meet a half of them.
    let mut functions: Option<usize> = None;
    // The tables that this plan makes: their constraints and indexes go into the step of the table.
    let mut fresh: Vec<(&str, usize)> = Vec::new();
    for statement in statements {
        let step_of = |table: &str| fresh.iter().find(|(name, _)| *name == table).map(|(_, step)| *step);
        match &statement.makes {
            Makes::Table { name, .. } if !catalog.has_table(name) => {
                fresh.push((name, plan.steps.len()));
                plan.lock(statement.sql);
            }
            Makes::Constraint { table, .. } | Makes::Index { table, .. } if step_of(table).is_some() => {
                let step = step_of(table).unwrap_or(0);
                plan.steps[step].statements.push(schema::qualified(statement.sql).into_owned());
            }
            Makes::Table { name, columns, storage } => {
                // What activity_logs lacks is null on the wire: an application's event table gets no new
                // columns.
                let add = columns.iter().filter(|c| !catalog.has_column(name, c.name));
                let left_alone = STAND_INS.contains(name) || *name == "activity_logs";
                for column in add.filter(|_| !left_alone) {
                    plan.lock(format!("ALTER TABLE public.{name} ADD COLUMN {}", column.line));
                }
                let found = catalog.tables.get(*name).map_or(&[][..], |table| &table.storage);
                let is_set = |wanted: &&str| found.iter().any(|f| *f == wanted.replace(" = ", "="));
                for parameter in storage.iter().filter(|parameter| !is_set(parameter)) {
                    plan.lock(format!("ALTER TABLE public.{name} SET ({parameter})"));
                }
            }
            Makes::Constraint { table, name, definition } => {
                if !STAND_INS.contains(table) {
                    constraint(conn, catalog, &mut plan, &sayings, [table, name, definition]).await?;
                }
            }
            Makes::Index { table, name, definition } => index(catalog, &mut plan, [table, name, definition]),
            Makes::Function(wanted) => {
                let statements = function(catalog, wanted, statement.sql);
                if !statements.is_empty() {
                    let step = *functions.get_or_insert(plan.steps.len());
                    if step == plan.steps.len() {
                        plan.steps.push(Step { mode: Mode::Locking, statements: Vec::new() });
                    }
                    plan.steps[step].statements.extend(statements);
                }
            }
            Makes::NoFunction { name, arguments } => {
                if catalog.function(name, arguments).is_some() {
                    // Whoever writes events still calls it, unless the trigger fires after this moment.
                    plan.lock_all([
                        "LOCK TABLE public.activity_logs IN SHARE ROW EXCLUSIVE MODE",
                        statement.sql,
                    ]);
                }
            }
            Makes::Trigger { table, name } => {
                trigger(catalog, &mut plan, choices, [table, name, statement.sql])
            }
        }
    }
    bookkeeping(catalog, &mut plan, choices);
    Ok(plan)
}

/// Makes a function as it should be, and for nobody by default: whoever may execute one could make a
/// trigger of it on a table of their own.
fn function(catalog: &Catalog, wanted: &Function, sql: &str) -> Vec<String> {
    let (from, to) = event_payload(catalog);
    let found = catalog.function(wanted.name, &wanted.arguments);
    let is_as_wanted = found.is_some_and(|found| {
        found.body == schema::qualified(&wanted.body.replace(from, to))
            && found.is_definer == wanted.is_definer
            && found.settings == wanted.settings
    });
    let mut statements = Vec::new();
    if !is_as_wanted {
        statements.push(schema::qualified(&sql.replace(from, to)).into_owned());
    }
    if found.is_none_or(|found| found.is_public) {
        let (name, arguments) = (wanted.name, &wanted.arguments);
        let schema = schema::name();
        statements.push(format!("REVOKE ALL ON FUNCTION {schema}.{name}({arguments}) FROM PUBLIC"));
    }
    statements
}

/// The functions read events by name, the payload excepted, for speed: where the table has none, it is null.
fn event_payload(catalog: &Catalog) -> (&'static str, &'static str) {
    let lacks = catalog.has_table("activity_logs") && !catalog.has_column("activity_logs", "payload");
    ("n.payload", if lacks { "NULL::jsonb AS payload" } else { "n.payload" })
}

async fn constraint(
    conn: &mut PgConnection,
    catalog: &Catalog,
    plan: &mut Plan,
    sayings: &Sayings,
    [table, name, definition]: [&str; 3],
) -> Result<(), sqlx::Error> {
    if name == "webhook_destinations_auth_type_check" && catalog.has_table(table) {
        let trial = Trial::prepare(conn, table).await?;
        let on_it = catalog.constraints.iter().filter(|c| c.table == table && c.kind == "c");
        for old in on_it.filter(|c| c.columns == ["auth_type"]) {
            widen(conn, plan, &trial, old, definition).await?;
        }
    }
    let mut of_table = catalog.constraints.iter().filter(|c| c.table == table);
    if let Some(found) = of_table.find(|c| c.name == name || same(catalog, c, table, definition)) {
        let says = sayings.get(&(table.to_owned(), name.to_owned()));
        let found_says = found.definition.trim_end_matches(" NOT VALID");
        if says.is_some_and(|says| found.name == name && says != found_says) {
            return replace(conn, catalog, plan, [table, name, definition]).await;
        }
        // An earlier run may have been interrupted between adding and validating.
        if found.name == name && !found.validated && rows_obey(conn, catalog, table, definition).await? {
            plan.lock(format!("ALTER TABLE public.{table} VALIDATE CONSTRAINT {name}"));
        }
        return Ok(());
    }
    let kind = definition.split('(').next().unwrap_or_default().trim();
    let add = format!("ALTER TABLE public.{table} ADD CONSTRAINT {name}");
    match kind {
        "PRIMARY KEY" | "UNIQUE" => unique(conn, catalog, plan, [table, name, definition]).await?,
        // The application lives without this key; with it, INSERTs that work today might fail.
        "FOREIGN KEY" if STAND_INS.iter().any(|t| definition.contains(&format!("REFERENCES {t}("))) => {}
        _ if !rows_obey(conn, catalog, table, definition).await? => {
            let text = format!("{table} holds rows that break `{definition}`");
            match kind {
                "CHECK" => plan.notices.push(format!("{text}: {name} was left out")),
                _ => plan.faults.push(format!("{text}: delete these rows first")),
            }
        }
        _ => {
            plan.lock(format!("{add} {} NOT VALID", written(definition)));
            plan.lock(format!("ALTER TABLE public.{table} VALIDATE CONSTRAINT {name}"));
        }
    }
    Ok(())
}

/// Puts a CHECK of ours in the place of what it said in an earlier version.
async fn replace(
    conn: &mut PgConnection,
    catalog: &Catalog,
    plan: &mut Plan,
    [table, name, definition]: [&str; 3],
) -> Result<(), sqlx::Error> {
    if rows_obey(conn, catalog, table, definition).await? {
        plan.lock(format!(
            "ALTER TABLE public.{table} DROP CONSTRAINT {name}, ADD CONSTRAINT {name} {} NOT VALID",
            written(definition)
        ));
        plan.lock(format!("ALTER TABLE public.{table} VALIDATE CONSTRAINT {name}"));
    } else {
        plan.notices.push(format!("{table} holds rows that break `{definition}`: {name} was left as it is"));
    }
    Ok(())
}

/// Lets what we have added to the given ways of authentication through a CHECK that an application has
/// written, whatever else it says.
async fn widen(
    conn: &mut PgConnection,
    plan: &mut Plan,
    trial: &Trial<'_>,
    old: &Constraint,
    definition: &str,
) -> Result<(), sqlx::Error> {
    let mut added = String::new();
    for way in ["oauth2", "aws"].into_iter().filter(|way| definition.contains(&format!("'{way}'"))) {
        if !trial.lets(conn, expression(old), "auth_type", &way.into()).await? {
            added += &format!(" OR ((auth_type)::text = '{way}'::text)");
        }
    }
    if !added.is_empty() {
        let verbatim = verbatim(conn, old).await?;
        let (name, expression) = (quoted(&old.name), stripped(&verbatim));
        let alter = format!("ALTER TABLE {}.webhook_destinations", schema::name());
        plan.lock_verbatim(format!(
            "{alter} DROP CONSTRAINT {name}, ADD CONSTRAINT {name} CHECK ({expression}{added}) NOT VALID"
        ));
        if old.validated {
            plan.lock_verbatim(format!("{alter} VALIDATE CONSTRAINT {name}"));
        }
    }
    Ok(())
}

/// What a constraint says, with everything named in full: it may be read under another search_path.
async fn verbatim(conn: &mut PgConnection, constraint: &Constraint) -> Result<String, sqlx::Error> {
    let sql = "SELECT pg_get_constraintdef(k.oid) FROM pg_constraint k
        WHERE k.conrelid = to_regclass('public.' || $1) AND k.conname = $2";
    let mut transaction = conn.begin().await?;
    raw_sql("SET LOCAL search_path = pg_catalog").execute(&mut *transaction).await?;
    let query = schema::query(sql).bind(&constraint.table).bind(&constraint.name).persistent(false);
    let definition = query.fetch_one(&mut *transaction).await?.get(0);
    transaction.rollback().await?;
    Ok(definition)
}

/// Whether a constraint of another name does what `definition` would do. What an application's own CHECK says
/// about a column is its own affair, as far as the preflight has let it pass.
fn same(catalog: &Catalog, found: &Constraint, table: &str, definition: &str) -> bool {
    let is_word = |name: &str| {
        let unquoted = definition.split('\'').step_by(2);
        unquoted
            .flat_map(|text| text.split(|c: char| !c.is_alphanumeric() && c != '_'))
            .any(|word| word == name)
    };
    let is_about_the_same = || {
        let of_table = catalog.tables.get(table).map(|table| table.columns.keys());
        let names: Vec<&String> = of_table.into_iter().flatten().filter(|name| is_word(name)).collect();
        found.columns.iter().collect::<Vec<_>>() == names
    };
    if found.kind == "c" && definition.starts_with("CHECK") && !table.starts_with("posthaste_") {
        return is_about_the_same();
    }
    let same_key = || {
        let refers_to = definition.split("REFERENCES ").nth(1).and_then(|rest| rest.split('(').next());
        found.columns == columns_of(definition) && found.refers_to.as_deref() == refers_to
    };
    found.definition == definition
        || (found.kind == "f" && definition.starts_with("FOREIGN KEY") && same_key())
}

async fn unique(
    conn: &mut PgConnection,
    catalog: &Catalog,
    plan: &mut Plan,
    [table, name, definition]: [&str; 3],
) -> Result<(), sqlx::Error> {
    let columns = columns_of(definition);
    if has_unique(catalog, table, &columns) {
        return Ok(());
    }
    let list = columns.join(", ");
    let probe = format!("SELECT FROM public.{table} GROUP BY {list} HAVING count(*) > 1 LIMIT 1");
    if !is_hidden(catalog, table) && schema::query(AssertSqlSafe(probe)).fetch_optional(conn).await?.is_some()
    {
        plan.faults
            .push(format!("{table} holds rows with the same ({list}), which must be unique: remove them"));
        return Ok(());
    }
    let mut name = name.to_owned();
    match catalog.indexes.iter().find(|index| index.name == name) {
        // What an interrupted run has left.
        Some(index) if !index.valid && index.table == table => {
            plan.concurrently(format!("DROP INDEX CONCURRENTLY public.{name}"));
        }
        // The application's, which does something else.
        Some(_) => name = format!("posthaste_{name}"),
        None => {}
    }
    // A table has one primary key at most; where the application uses it for something else, UNIQUE does as
    // well.
    let has_primary = catalog.constraints.iter().any(|c| c.table == table && c.kind == "p");
    let kind = if definition.starts_with("PRIMARY") && !has_primary { "PRIMARY KEY" } else { "UNIQUE" };
    plan.concurrently(format!(
        "CREATE UNIQUE INDEX CONCURRENTLY {name} ON public.{table} USING btree ({list})"
    ));
    plan.lock(format!("ALTER TABLE public.{table} ADD CONSTRAINT {name} {kind} USING INDEX {name}"));
    Ok(())
}

/// Whether a policy would hide rows from us: then nothing can be said about them.
fn is_hidden(catalog: &Catalog, table: &str) -> bool {
    catalog.tables.get(table).is_some_and(|table| table.secured)
}

/// Whether the rows that are there satisfy a CHECK or a foreign key.
async fn rows_obey(
    conn: &mut PgConnection,
    catalog: &Catalog,
    table: &str,
    definition: &str,
) -> Result<bool, sqlx::Error> {
    let columns = columns_of(definition);
    let breaks = if let Some(expression) = definition.strip_prefix("CHECK ") {
        format!("SELECT EXISTS (SELECT FROM public.{table} WHERE NOT {expression})")
    } else if let Some(target) =
        definition.split("REFERENCES ").nth(1).and_then(|rest| rest.split('(').next())
    {
        if !catalog.has_table(target) {
            return Ok(true);
        }
        format!(
            "SELECT EXISTS (SELECT FROM public.{table} t WHERE t.{0} IS NOT NULL
                AND NOT EXISTS (SELECT FROM public.{target} r WHERE r.id = t.{0}))",
            columns[0]
        )
    } else {
        return Ok(true);
    };
    // A column that is yet to be added has its default in every row, which satisfies every CHECK of ours.
    let known = catalog.tables.get(table).is_some_and(|t| {
        definition.starts_with("CHECK") || columns.iter().all(|column| t.columns.contains_key(*column))
    });
    if !known || is_hidden(catalog, table) {
        return Ok(true);
    }
    match schema::query(AssertSqlSafe(breaks)).fetch_one(conn).await {
        Ok(row) => Ok(!row.get::<bool, _>(0)),
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42703") => Ok(true),
        Err(error) => Err(error),
    }
}

fn index(catalog: &Catalog, plan: &mut Plan, [table, name, definition]: [&str; 3]) {
    let find = |matches: &dyn Fn(&super::catalog::Index) -> bool| catalog.indexes.iter().find(|i| matches(i));
    let named = find(&|index| index.name == name);
    if named.is_some_and(|index| index.valid) || find(&|i| i.definition == definition && i.valid).is_some() {
        return;
    }
    if columns_of(definition)
        .iter()
        .any(|column| table == "activity_logs" && !catalog.has_column(table, column))
    {
        return;
    }
    if catalog.tables.get(table).is_some_and(|table| table.kind == "p") {
        plan.notices
            .push(format!("{table} is partitioned: {name} was left out, create it yourself if you want it"));
        return;
    }
    if named.is_some() {
        plan.concurrently(format!("DROP INDEX CONCURRENTLY public.{name}"));
    }
    plan.concurrently(format!("CREATE INDEX CONCURRENTLY {name} ON public.{definition}"));
}

fn trigger(catalog: &Catalog, plan: &mut Plan, choices: Choices, [table, name, sql]: [&str; 3]) {
    let wanted = match name {
        "posthaste_fan_out" => choices.fan_out,
        _ => choices.notify || !name.ends_with("_notify"),
    };
    let found = catalog.triggers.get(&(table.to_owned(), name.to_owned()));
    if !wanted {
        if found.is_some() {
            plan.lock(format!("DROP TRIGGER {name} ON public.{table}"));
        }
        return;
    }
    let sql = if choices.notify { sql.to_owned() } else { sql.replace("('notify')", "('quiet')") };
    match found {
        None => plan.lock(sql),
        Some(found) if !same_trigger(&found.definition, &sql) => {
            plan.lock(sql.replacen("CREATE TRIGGER", "CREATE OR REPLACE TRIGGER", 1));
        }
        Some(found) if !found.enabled => {
            plan.notices.push(format!("trigger {name} of {table} is switched off, and was left so"));
            plan.switched_off.push(name.to_owned());
        }
        Some(_) => {}
    }
}

/// Whether both say the same: of a column whose type is a domain PostgreSQL prints the type as well.
fn same_trigger(one: &str, other: &str) -> bool {
    let bare = |text: &str| {
        text.replace("::boolean", "").replace("FUNCTION public.", "FUNCTION ").replace(['(', ')'], "")
    };
    bare(one) == bare(other)
}

/// The policy that lets `owner` do everything to `table` inside of the fan-out trigger, and only there.
pub fn fan_out_policy(table: &str, owner: &str) -> String {
    let inside = "pg_trigger_depth() > 0 AND current_setting('posthaste.fan_out', true) = 'on'";
    format!(
        "CREATE POLICY posthaste_fan_out ON {}.{table} TO {owner} USING ({inside}) WITH CHECK ({inside})",
        schema::name()
    )
}

/// Where row-level security is forced on the owner, the fan-out, which runs with the owner's rights, would
/// find no destinations. The policy lets it through, and nothing else of the owner's: it holds only inside of
/// the trigger.
async fn policies(
    conn: &mut PgConnection,
    catalog: &Catalog,
    plan: &mut Plan,
    choices: Choices,
) -> Result<(), sqlx::Error> {
    for table in ["webhook_destinations", "webhook_deliveries"] {
        if !choices.fan_out || !is_hidden(catalog, table) || catalog.policies.contains(table) {
            continue;
        }
        let me: String =
            schema::query("SELECT quote_ident(current_user)").fetch_one(&mut *conn).await?.get(0);
        plan.lock_verbatim(fan_out_policy(table, &me));
        plan.notices.push(format!(
            "row-level security of {table} is forced on {me}: a policy lets the trigger through, and \
             nothing else"
        ));
    }
    Ok(())
}

fn bookkeeping(catalog: &Catalog, plan: &mut Plan, choices: Choices) {
    for (name, value) in [("fan_out", choices.fan_out), ("notify", choices.notify)] {
        if catalog.options.get(name) != Some(&value) {
            plan.lock(format!(
                "INSERT INTO public.posthaste_options (name, value) VALUES ('{name}', {value}) \
                 ON CONFLICT (name) DO UPDATE SET value = excluded.value"
            ));
        }
    }
    for migration in MIGRATIONS.iter().filter(|m| !catalog.versions.contains(&m.version)) {
        let (version, name) = (migration.version, migration.name);
        plan.lock(format!(
            "INSERT INTO public.posthaste_migrations (version, name) VALUES ({version}, '{name}')"
        ));
    }
}
