//! What is there: the catalog's facts about the schema that a plan depends on.

use std::collections::{BTreeMap, BTreeSet};

use crate::store::schema;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Row, raw_sql};

/// A table, view or whatever else has a name in the schema.
#[derive(Debug)]
pub struct Table {
    /// `pg_class.relkind`: `r` is a table, `p` a partitioned one.
    pub kind: String,
    /// Whether we may alter it.
    pub ours_to_alter: bool,
    /// Whether row-level security applies to us as it would inside of a trigger function that we own.
    pub secured: bool,
    /// Its storage parameters, each as `name=value`.
    pub storage: Vec<String>,
    /// Its columns.
    pub columns: BTreeMap<String, Column>,
}

/// A column.
#[derive(Debug)]
pub struct Column {
    /// Its type without a modifier; of a domain, the type below it.
    pub base_type: String,
    /// The modifier of that type; of a timestamp, its digits behind the second, or -1.
    pub modifier: i32,
    /// Whether it may be NULL.
    pub nullable: bool,
    /// Whether an INSERT that does not name it fails.
    pub must_be_named: bool,
    /// How to end that PostgreSQL works out its values itself, and refuses those of others.
    pub computed: Option<&'static str>,
}

/// A constraint.
#[derive(Debug)]
pub struct Constraint {
    /// The table it belongs to.
    pub table: String,
    /// Its name.
    pub name: String,
    /// `p`, `u`, `f` or `c`.
    pub kind: String,
    /// As `pg_get_constraintdef` prints it.
    pub definition: String,
    /// The columns it is about, in its order.
    pub columns: Vec<String>,
    /// The table it refers to, where it is a foreign key: with its schema, where that is another one.
    pub refers_to: Option<String>,
    /// Whether all rows are known to obey it.
    pub validated: bool,
}

/// An index.
#[derive(Debug)]
pub struct Index {
    /// The table it belongs to.
    pub table: String,
    /// Its name.
    pub name: String,
    /// What follows the schema's name in `pg_get_indexdef`.
    pub definition: String,
    /// Whether it can be used: one whose building was interrupted cannot.
    pub valid: bool,
    /// Whether it can be what ON CONFLICT and foreign keys ask for: unique, at once, over all rows.
    pub arbiter: bool,
    /// Whether it keeps rows out.
    pub unique: bool,
    /// Whether it may do so at the end of a transaction only.
    pub deferrable: bool,
}

/// A function whose name begins with `posthaste_`.
#[derive(Debug)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// The types of its arguments.
    pub arguments: String,
    /// Whether it runs with the rights of its owner.
    pub is_definer: bool,
    /// Its settings.
    pub settings: Vec<String>,
    /// What it does.
    pub body: String,
    /// Whether everybody may execute it, and so make a trigger of it.
    pub is_public: bool,
    /// Its owner, where that is a superuser.
    pub superuser: Option<String>,
    /// Its owner, where that is neither the tables' owner nor this role.
    pub stranger: Option<String>,
    /// Roles that may make a trigger of it, besides its owner.
    pub attachers: Vec<String>,
}

/// A trigger.
#[derive(Debug)]
pub struct Trigger {
    /// As `pg_get_triggerdef` prints it.
    pub definition: String,
    /// Whether it fires in ordinary sessions.
    pub enabled: bool,
}

/// All facts.
#[derive(Debug)]
pub struct Catalog {
    /// PostgreSQL's version as a number: 150018.
    pub server_version: i32,
    /// In which encoding texts are stored.
    pub encoding: String,
    /// Whether the schema exists.
    pub has_schema: bool,
    /// Whether we may create things in the schema, or the schema itself.
    pub may_create: bool,
    /// Whether everybody may.
    pub public_may_create: bool,
    /// Tables by name.
    pub tables: BTreeMap<String, Table>,
    /// All constraints.
    pub constraints: Vec<Constraint>,
    /// All indexes.
    pub indexes: Vec<Index>,
    /// Functions.
    pub functions: Vec<Function>,
    /// Triggers by table and name.
    pub triggers: BTreeMap<(String, String), Trigger>,
    /// Tables that have our policy.
    pub policies: BTreeSet<String>,
    /// Versions that are recorded as applied.
    pub versions: BTreeSet<i32>,
    /// What `migrate` was told before.
    pub options: BTreeMap<String, bool>,
    /// Whether `webhook_deliveries` holds rows.
    pub has_deliveries: bool,
}

const SERVER: &str = "SELECT current_setting('server_version_num')::int4,
    coalesce(has_schema_privilege(to_regnamespace('public')::oid, 'CREATE'),
        has_database_privilege(current_database(), 'CREATE')),
    coalesce(has_schema_privilege('public', to_regnamespace('public')::oid, 'CREATE'), false),
    to_regnamespace('public') IS NOT NULL, current_setting('server_encoding')";

const TABLES: &str =
    "SELECT c.relname::text, c.relkind::text, pg_has_role(c.relowner, 'USAGE'), row_security_active(c.oid),
        coalesce(c.reloptions, '{}')
    FROM pg_class c
    WHERE c.relnamespace = to_regnamespace('public') AND c.relkind IN ('r', 'p', 'v', 'm', 'f')";

const COLUMNS: &str = "SELECT c.relname::text, a.attname::text, format_type(b.oid, NULL), b.modifier,
        a.attnotnull OR b.not_null,
        (a.attnotnull OR b.not_null) AND NOT a.atthasdef AND a.attidentity = '' AND NOT b.has_default,
        a.attgenerated <> '', a.attidentity = 'a'
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid CROSS JOIN LATERAL (
        WITH RECURSIVE below AS (
            SELECT t.oid, t.typbasetype, t.typtypmod, t.typtype, a.atttypmod AS modifier,
                t.typnotnull AS not_null, t.typdefault IS NOT NULL AS has_default
            FROM pg_type t WHERE t.oid = a.atttypid
            UNION ALL
            SELECT t.oid, t.typbasetype, t.typtypmod, t.typtype, d.typtypmod, d.not_null OR t.typnotnull,
                d.has_default OR t.typdefault IS NOT NULL
            FROM below d JOIN pg_type t ON t.oid = d.typbasetype WHERE d.typtype = 'd'
        )
        SELECT * FROM below WHERE typtype <> 'd'
    ) b
    WHERE c.relnamespace = to_regnamespace('public') AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
        AND a.attnum > 0 AND NOT a.attisdropped";

const CONSTRAINTS: &str =
    "SELECT c.relname::text, k.conname::text, k.contype::text, pg_get_constraintdef(k.oid),
        ARRAY(SELECT a.attname::text FROM unnest(k.conkey) WITH ORDINALITY AS key (num, n)
              JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = key.num ORDER BY n),
        CASE WHEN r.relnamespace <> c.relnamespace THEN r.relnamespace::regnamespace::text || '.' ELSE '' END
            || r.relname, k.convalidated
    FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid LEFT JOIN pg_class r ON r.oid = k.confrelid
    WHERE c.relnamespace = to_regnamespace('public') AND k.contype IN ('p', 'u', 'f', 'c')";

const INDEXES: &str = "SELECT c.relname::text, i.relname::text,
        regexp_replace(pg_get_indexdef(i.oid), '^.*? ON (ONLY )?[^ ]+[.]', ''),
        x.indisvalid AND x.indisready, x.indisunique AND x.indimmediate AND x.indpred IS NULL
            AND x.indexprs IS NULL AND x.indisvalid, x.indisunique,
        NOT x.indimmediate
    FROM pg_index x JOIN pg_class c ON c.oid = x.indrelid JOIN pg_class i ON i.oid = x.indexrelid
    WHERE c.relnamespace = to_regnamespace('public')";

const FUNCTIONS: &str = "SELECT p.proname::text, oidvectortypes(p.proargtypes), p.prosecdef,
        coalesce(p.proconfig, '{}'), p.prosrc,
        EXISTS (SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
                WHERE a.grantee = 0 AND a.privilege_type = 'EXECUTE'),
        CASE WHEN o.rolsuper THEN o.rolname::text END,
        CASE WHEN NOT o.rolsuper AND o.rolname <> current_user AND o.oid IS DISTINCT FROM (
                SELECT c.relowner FROM pg_class c
                WHERE c.oid = to_regclass('public.webhook_destinations'::text)) THEN o.rolname::text END,
        ARRAY(SELECT quote_ident(g.rolname::text)
              FROM aclexplode(p.proacl) a JOIN pg_roles g ON g.oid = a.grantee
              WHERE p.prorettype = 'trigger'::regtype AND g.oid <> p.proowner)
    FROM pg_proc p JOIN pg_roles o ON o.oid = p.proowner
    WHERE p.pronamespace = to_regnamespace('public') AND p.proname LIKE 'posthaste\\_%'";

// Also those of temporary tables, which other sessions have.
const FOREIGN_TRIGGERS: &str = "SELECT t.tgname::text, format('%I.%I', n.nspname, r.relname), p.proname::text
    FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_class r ON r.oid = t.tgrelid
        JOIN pg_namespace n ON n.oid = r.relnamespace
    WHERE p.pronamespace = to_regnamespace('public') AND p.proname LIKE 'posthaste\\_%'
        AND t.tgrelid NOT IN (SELECT c.oid FROM pg_class c
            WHERE c.relnamespace = to_regnamespace('public') AND c.relname = ANY ($1))";

const TRIGGERS: &str =
    "SELECT c.relname::text, t.tgname::text, pg_get_triggerdef(t.oid), t.tgenabled IN ('O', 'A')
    FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
    WHERE c.relnamespace = to_regnamespace('public') AND NOT t.tgisinternal";

const POLICIES: &str = "SELECT c.relname::text FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid
    WHERE c.relnamespace = to_regnamespace('public') AND p.polname = 'posthaste_fan_out'";

const VERSIONS: &str = "SELECT version FROM public.posthaste_migrations";

const OPTIONS: &str = "SELECT name, value FROM public.posthaste_options";

// Where a policy would hide the rows, the size tells: too careful at worst, as deleted rows leave size
// behind.
const DELIVERIES: &str = "SELECT CASE WHEN row_security_active('public.webhook_deliveries')
        THEN pg_relation_size('public.webhook_deliveries') > 0
        ELSE EXISTS (SELECT FROM public.webhook_deliveries) END";

impl Catalog {
    /// Reads everything. The session's search_path must be the schema, on which the spelling depends.
    pub async fn read(conn: &mut PgConnection) -> Result<Catalog, sqlx::Error> {
        let server = schema::query(SERVER).fetch_one(&mut *conn).await?;
        let mut tables: BTreeMap<String, Table> = schema::query(TABLES)
            .map(|row: PgRow| (row.get(0), table(&row)))
            .fetch_all(&mut *conn)
            .await?
            .into_iter()
            .collect();
        for row in schema::query(COLUMNS).fetch_all(&mut *conn).await? {
            let column = column(&row);
            if let Some(table) = tables.get_mut(row.get::<&str, _>(0)) {
                table.columns.insert(row.get(1), column);
            }
        }
        let mut catalog = Catalog {
            server_version: server.get(0),
            may_create: server.get(1),
            public_may_create: server.get(2),
            has_schema: server.get(3),
            encoding: server.get(4),
            constraints: schema::query(CONSTRAINTS).map(constraint).fetch_all(&mut *conn).await?,
            indexes: schema::query(INDEXES).map(index).fetch_all(&mut *conn).await?,
            functions: schema::query(FUNCTIONS).map(function).fetch_all(&mut *conn).await?,
            triggers: schema::query(TRIGGERS).map(trigger).fetch_all(&mut *conn).await?.into_iter().collect(),
            policies: schema::query(POLICIES)
                .map(|row: PgRow| row.get(0))
                .fetch_all(&mut *conn)
                .await?
                .into_iter()
                .collect(),
            versions: BTreeSet::new(),
            options: BTreeMap::new(),
            has_deliveries: false,
            tables,
        };
        if catalog.tables.contains_key("posthaste_migrations") {
            let rows = schema::query(VERSIONS).map(|row: PgRow| row.get(0)).fetch_all(&mut *conn).await?;
            catalog.versions = rows.into_iter().collect();
        }
        if catalog.tables.contains_key("posthaste_options") {
            let rows = schema::query(OPTIONS)
                .map(|row: PgRow| (row.get(0), row.get(1)))
                .fetch_all(&mut *conn)
                .await?;
            catalog.options = rows.into_iter().collect();
        }
        if catalog.tables.contains_key("webhook_deliveries") {
            catalog.has_deliveries = schema::query(DELIVERIES).fetch_one(&mut *conn).await?.get(0);
        }
        Ok(catalog)
    }

    /// The function of this name with arguments of these types.
    pub fn function(&self, name: &str, arguments: &str) -> Option<&Function> {
        self.functions.iter().find(|f| f.name == name && f.arguments == arguments)
    }

    /// Whether a table of this name is there.
    pub fn has_table(&self, table: &str) -> bool {
        self.tables.contains_key(table)
    }

    /// Whether the table has the column.
    pub fn has_column(&self, table: &str, column: &str) -> bool {
        self.tables.get(table).is_some_and(|table| table.columns.contains_key(column))
    }
}

fn table(row: &PgRow) -> Table {
    Table {
        kind: row.get(1),
        ours_to_alter: row.get(2),
        secured: row.get(3),
        storage: row.get(4),
        columns: BTreeMap::new(),
    }
}

fn column(row: &PgRow) -> Column {
    Column {
        base_type: row.get(2),
        modifier: row.get(3),
        nullable: !row.get::<bool, _>(4),
        must_be_named: row.get(5),
        computed: match (row.get(6), row.get(7)) {
            (true, _) => Some("DROP EXPRESSION"),
            (_, true) => Some("SET GENERATED BY DEFAULT"),
            (false, false) => None,
        },
    }
}

fn constraint(row: PgRow) -> Constraint {
    Constraint {
        table: row.get(0),
        name: row.get(1),
        kind: row.get(2),
        definition: row.get(3),
        columns: row.get(4),
        refers_to: row.get(5),
        validated: row.get(6),
    }
}

fn index(row: PgRow) -> Index {
    Index {
        table: row.get(0),
        name: row.get(1),
        definition: row.get(2),
        valid: row.get(3),
        arbiter: row.get(4),
        unique: row.get(5),
        deferrable: row.get(6),
    }
}

fn trigger(row: PgRow) -> ((String, String), Trigger) {
    let definition = schema::as_public(row.get(2));
    ((row.get(0), row.get(1)), Trigger { definition, enabled: row.get(3) })
}

fn function(row: PgRow) -> Function {
    Function {
        name: row.get(0),
        arguments: row.get(1),
        is_definer: row.get(2),
        settings: row.get(3),
        body: row.get(4),
        is_public: row.get(5),
        superuser: row.get(6),
        stranger: row.get(7),
        attachers: row.get(8),
    }
}

// What is named like something of PostgreSQL's own, and may be taken for it. Extensions are the superuser's.
const SHADOWS: &str = "
    SELECT format('function %s of %I'::text, p.oid::regprocedure::text, o.rolname)
    FROM pg_proc p JOIN pg_roles o ON o.oid = p.proowner
    WHERE p.pronamespace = to_regnamespace('public'::text)::oid AND NOT o.rolsuper
        AND o.rolname <> current_user AND o.oid IS DISTINCT FROM (SELECT c.relowner FROM pg_class c
            WHERE c.oid = to_regclass('public.webhook_destinations'::text)::oid)
        AND EXISTS (SELECT FROM pg_proc b WHERE b.proname = p.proname
            AND b.pronamespace = 'pg_catalog'::regnamespace::oid)
        AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.objid = p.oid AND e.deptype = 'e'::\"char\")
    UNION ALL
    SELECT format('operator %s of %I'::text, p.oid::regoperator::text, o.rolname)
    FROM pg_operator p JOIN pg_roles o ON o.oid = p.oprowner
    WHERE p.oprnamespace = to_regnamespace('public'::text)::oid AND NOT o.rolsuper
        AND o.rolname <> current_user
        AND EXISTS (SELECT FROM pg_operator b WHERE b.oprname = p.oprname
            AND b.oprnamespace = 'pg_catalog'::regnamespace::oid)
        AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.objid = p.oid AND e.deptype = 'e'::\"char\")
    ORDER BY 1 LIMIT 20";

/// Functions and operators of others in the schema that would be called instead of PostgreSQL's own. To be
/// asked before anything else is, and while the session's search_path does not have the schema.
pub async fn shadows(conn: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
    raw_sql("SET search_path = pg_catalog").execute(&mut *conn).await?;
    schema::query_scalar(SHADOWS).fetch_all(conn).await
}

/// Triggers that call a function of ours for a table that is none of `ours`: name, table, function.
pub async fn foreign_triggers(
    conn: &mut PgConnection,
    ours: &[&str],
) -> Result<Vec<(String, String, String)>, sqlx::Error> {
    schema::query_as(FOREIGN_TRIGGERS).bind(ours).fetch_all(conn).await
}
