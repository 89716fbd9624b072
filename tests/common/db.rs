//! A database of a test's own, and what tests put into it.

use posthaste::model::Secret;
use posthaste::store::database;
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Row};
use uuid::Uuid;

use super::cluster::cluster;

/// A database that is dropped with this value.
pub struct Db {
    /// How the program reaches it.
    pub url: Secret,
    /// How the test reaches it, as a superuser.
    pub pool: PgPool,
    /// Its name on the shared server; `None` elsewhere.
    name: Option<String>,
}

/// Brings the database at `url` to the present version, as `posthaste migrate` does.
pub async fn migrate(url: &Secret) {
    let options = posthaste::store::options(url).unwrap();
    posthaste::store::migrate::migrate(&options, Default::default()).await.unwrap();
}

/// `url` for another role.
pub fn with_user(url: &Secret, role: &str) -> Secret {
    let mut url = url::Url::parse(url.reveal()).unwrap();
    let pairs: Vec<(String, String)> =
        url.query_pairs().filter(|(name, _)| name != "user").map(|(k, v)| (k.into(), v.into())).collect();
    url.query_pairs_mut().clear().extend_pairs(pairs).append_pair("user", role);
    Secret::new(url)
}

impl Db {
    /// A migrated database without rows.
    pub async fn new() -> Db {
        Db::create(&format!("TEMPLATE {}", cluster().template)).await
    }

    /// A database without anything in it, for tests of migrations.
    pub async fn empty() -> Db {
        Db::create("TEMPLATE template0").await
    }

    /// The same in another encoding than UTF8.
    pub async fn encoded(encoding: &str) -> Db {
        Db::create(&format!("TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'")).await
    }

    async fn create(how: &str) -> Db {
        let name = format!("test_{}", Uuid::new_v4().simple());
        let admin = PgPoolOptions::new().max_connections(1).connect_lazy(cluster().admin.reveal()).unwrap();
        let create = format!("CREATE DATABASE {name} {how}");
        sqlx::query(AssertSqlSafe(create)).execute(&admin).await.unwrap();
        admin.close().await;
        let mut db = Db::at(cluster().url(&name));
        db.name = Some(name);
        db
    }

    /// The database at `url`, which somebody else drops.
    pub fn at(url: Secret) -> Db {
        let pool = PgPoolOptions::new().max_connections(5).connect_lazy(url.reveal()).unwrap();
        Db { url, pool, name: None }
    }

    /// Runs one statement without parameters; the number of rows it touched.
    pub async fn execute(&self, sql: &str) -> u64 {
        let done = sqlx::query(AssertSqlSafe(sql.to_owned())).persistent(false).execute(&self.pool).await;
        done.unwrap_or_else(|error| panic!("{sql}: {error}")).rows_affected()
    }

    /// Runs one statement that must fail; PostgreSQL's message.
    pub async fn refused(&self, sql: &str) -> String {
        match sqlx::query(AssertSqlSafe(sql.to_owned())).persistent(false).execute(&self.pool).await {
            Ok(_) => panic!("not refused: {sql}"),
            Err(sqlx::Error::Database(error)) => error.message().to_owned(),
            Err(error) => panic!("{sql}: {error}"),
        }
    }

    /// The first column of the only row, as text; `None` for NULL.
    pub async fn text(&self, sql: &str) -> Option<String> {
        let sql = format!("SELECT ({sql})::text");
        let row = sqlx::query(AssertSqlSafe(sql.clone())).persistent(false).fetch_one(&self.pool).await;
        row.unwrap_or_else(|error| panic!("{sql}: {error}")).get(0)
    }

    /// The first column of the only row, a number.
    pub async fn number(&self, sql: &str) -> i64 {
        let text = self.text(sql).await.unwrap_or_else(|| panic!("{sql}: NULL"));
        text.parse().unwrap_or_else(|_| panic!("{sql}: {text}"))
    }

    /// How many rows of `webhook_deliveries` satisfy `condition`.
    pub async fn deliveries(&self, condition: &str) -> i64 {
        self.number(&format!("SELECT count(*) FROM webhook_deliveries WHERE {condition}")).await
    }

    /// Waits until every delivery is delivered or dead.
    pub async fn settled(&self) {
        super::eventually("every delivery is delivered or dead", async || {
            self.deliveries("status IN ('pending', 'failed')").await == 0
        })
        .await;
    }

    /// A new role with these rights and the URL of this database for it.
    pub async fn role(&self, grants: &str) -> (String, Secret) {
        let role = format!("role_{}", Uuid::new_v4().simple());
        self.execute(&format!("CREATE ROLE {role} LOGIN")).await;
        self.grant(grants, &role).await;
        let url = with_user(&self.url, &role);
        (role, url)
    }

    /// Runs a file for psql that gives rights to a role: `:"role"` stands for its name, and what begins with
    /// a backslash is for psql alone.
    pub async fn grant(&self, grants: &str, role: &str) {
        let sql: Vec<&str> = grants.lines().filter(|line| !line.starts_with('\\')).collect();
        let sql = sql.join("\n").replace(":\"role\"", role);
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&self.pool).await.unwrap();
    }

    /// Removes a role and its rights: roles belong to the server, not to the database.
    pub async fn drop_role(&self, role: &str) {
        let sessions = format!("SELECT count(*) FROM pg_stat_activity WHERE usename = '{role}'");
        super::eventually("the sessions of the role have ended", async || self.number(&sessions).await == 0)
            .await;
        self.execute(&format!("DROP OWNED BY {role}")).await;
        self.execute(&format!("DROP ROLE {role}")).await;
    }

    /// A new organization.
    pub async fn org(&self) -> Uuid {
        let sql = "INSERT INTO organizations (name) VALUES ('an organization') RETURNING id";
        sqlx::query(sql).fetch_one(&self.pool).await.unwrap().get(0)
    }

    /// A new destination, to be finished with [`NewDestination::insert`].
    pub fn destination(&self, org: Uuid, url: impl Into<String>) -> NewDestination<'_> {
        NewDestination {
            db: self,
            columns: vec![("org_id", org.to_string()), ("url", url.into())],
            settings: Vec::new(),
        }
    }

    /// `count` events of type `test.event` in one statement; their ids, in order.
    pub async fn events(&self, org: Uuid, count: usize) -> Vec<Uuid> {
        let sql = "INSERT INTO activity_logs (id, org_id, event_type, event_category, content, payload)
                   SELECT id, $1, 'test.event', 'test', 'event ' || n, jsonb_build_object('n', n)
                   FROM unnest($2::uuid[]) WITH ORDINALITY AS given (id, n) ORDER BY n";
        let ids: Vec<Uuid> = (0..count).map(|_| Uuid::new_v4()).collect();
        sqlx::query(sql).bind(org).bind(&ids).execute(&self.pool).await.unwrap();
        ids
    }

    /// One event with this type and payload.
    pub async fn event(&self, org: Uuid, event_type: &str, payload: &str) -> Uuid {
        let sql = "INSERT INTO activity_logs (org_id, event_type, event_category, payload)
                   VALUES ($1, $2, 'test', $3::jsonb) RETURNING id";
        let insert = sqlx::query(sql).bind(org).bind(event_type).bind(payload);
        insert.fetch_one(&self.pool).await.unwrap().get(0)
    }
}

impl Drop for Db {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            super::block_on(database::drop(&cluster().admin, name)).ok();
        }
    }
}

/// A destination that is being described. Values are written as PostgreSQL reads them: `42`, `{a,b}`,
/// `{"token":"x"}`.
pub struct NewDestination<'a> {
    db: &'a Db,
    columns: Vec<(&'static str, String)>,
    settings: Vec<(&'static str, String)>,
}

impl NewDestination<'_> {
    /// Sets a column of `webhook_destinations`.
    pub fn with(mut self, column: &'static str, value: impl ToString) -> Self {
        self.columns.push((column, value.to_string()));
        self
    }

    /// Sets a column of `posthaste_destination_settings`.
    pub fn setting(mut self, column: &'static str, value: impl ToString) -> Self {
        self.settings.push((column, value.to_string()));
        self
    }

    pub fn name(self, name: &str) -> Self {
        self.with("name", name)
    }

    pub fn secret(self, secret: &str) -> Self {
        self.with("signing_secret", secret)
    }

    pub fn batch_size(self, events: u32) -> Self {
        self.with("batch_size", events)
    }

    pub fn timeout_ms(self, milliseconds: u32) -> Self {
        self.with("timeout_ms", milliseconds)
    }

    pub fn retry(self, max: u32, backoff_ms: u32) -> Self {
        self.with("retry_max", max).with("retry_backoff_ms", backoff_ms)
    }

    /// `none`, `bearer`, …, and the JSON that goes with it.
    pub fn auth(self, auth_type: &str, config: &str) -> Self {
        self.with("auth_type", auth_type).with("auth_config", config)
    }

    /// As a PostgreSQL array: `{tool_call,session.*}`.
    pub fn event_types(self, types: &str) -> Self {
        self.with("event_types", types)
    }

    pub fn event_filter(self, filter: &str) -> Self {
        self.with("event_filter", filter)
    }

    /// Inserts the destination and its settings in one transaction; its id.
    pub async fn insert(mut self) -> Uuid {
        if !self.columns.iter().any(|(column, _)| *column == "name") {
            self = self.name(&Uuid::new_v4().to_string());
        }
        let mut transaction = self.db.pool.begin().await.unwrap();
        let sql = insert_sql("webhook_destinations", &self.columns) + " RETURNING id";
        let id: Uuid = sqlx::query(AssertSqlSafe(sql)).fetch_one(&mut *transaction).await.unwrap().get(0);
        if !self.settings.is_empty() {
            self.settings.push(("destination_id", id.to_string()));
            let sql = insert_sql("posthaste_destination_settings", &self.settings);
            sqlx::query(AssertSqlSafe(sql)).execute(&mut *transaction).await.unwrap();
        }
        transaction.commit().await.unwrap();
        id
    }
}

/// Quoted literals have no type yet, so PostgreSQL takes each for what its column is.
fn insert_sql(table: &str, columns: &[(&'static str, String)]) -> String {
    let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
    let values: Vec<String> = columns
        .iter()
        .map(|(_, value)| format!("E'{}'", value.replace('\\', "\\\\").replace('\'', "''")))
        .collect();
    format!("INSERT INTO {table} ({}) VALUES ({})", names.join(", "), values.join(", "))
}
