//! Tables in another schema than `public`, two installations side by side in one database.

use posthaste::model::Secret;
use serde_json::Value;
use uuid::Uuid;

use crate::common::{Db, Posthaste, Receiver, Reply, check_invariants, eventually, run};

/// An installation in a schema of its own.
struct Installation {
    db: Db,
    schema: &'static str,
}

impl Installation {
    /// Beside others in the database of `whole`, where no table is in `public`.
    fn new(whole: &Db, schema: &'static str) -> Installation {
        let mut url = url::Url::parse(whole.url.reveal()).unwrap();
        url.query_pairs_mut().append_pair("options", &format!("-csearch_path=\"{schema}\""));
        Installation { db: Db::at(Secret::new(url)), schema }
    }

    /// What the program is told. Its own sessions have no use for the search_path.
    fn environment<'a>(&self, owner: &'a Secret) -> [(&'static str, &'a str); 3] {
        [
            ("DATABASE_URL", owner.reveal()),
            ("POSTHASTE_SCHEMA", self.schema),
            // What arrives at once was notified.
            ("POSTHASTE_POLL_INTERVAL", "1h"),
        ]
    }

    fn run(&self, owner: &Secret, arguments: &[&str]) -> String {
        let output = run(arguments, &self.environment(owner));
        let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
        assert!(output.status.success(), "{arguments:?}: {out}{err}");
        format!("{out}{err}")
    }

    async fn serve(&self, owner: &Secret) -> Posthaste {
        let program = Posthaste::spawn(&["serve"], &self.environment(owner));
        program.ready().await;
        program
    }

    /// A destination, made by the shell.
    fn destination(&self, owner: &Secret, org: Uuid, receiver: &Receiver) -> Uuid {
        let (org, url) = (org.to_string(), receiver.url("/"));
        let create = ["destinations", "create", "--org", &org, "--name", "first", "--url", &url, "--json"];
        let output = run(&create, &self.environment(owner));
        let created: Value = serde_json::from_slice(&output.stdout).unwrap();
        created["id"].as_str().unwrap().parse().unwrap()
    }
}

/// A database in which whatever still means `public` fails.
async fn without_public() -> Db {
    let whole = Db::empty().await;
    whole.execute("DROP SCHEMA public").await;
    whole
}

#[tokio::test]
async fn two_schemas_of_a_database_are_two_installations() {
    let whole = without_public().await;
    let name = whole.text("current_database()").await.unwrap();
    // As it should be: the tables' owner is no superuser.
    let (role, owner) = whole.role(&format!("GRANT CREATE ON DATABASE {name} TO :\"role\"")).await;
    // The one is a word of SQL, the other one is what the first one's name begins with.
    let both = ["order", "order_2"].map(|schema| Installation::new(&whole, schema));
    for one in &both {
        assert!(one.run(&owner, &["migrate", "--dry-run"]).contains("CREATE SCHEMA"));
        assert!(one.run(&owner, &["migrate"]).contains("statements ran"));
        assert!(one.run(&owner, &["migrate"]).contains("The database is up to date."));
    }
    let receivers = [Receiver::start(), Receiver::start()];
    let mut programs = Vec::new();
    for one in &both {
        programs.push(one.serve(&owner).await);
    }
    // The same organization in both.
    let org = both[0].db.org().await;
    let same = format!("INSERT INTO organizations (id, name) VALUES ('{org}', 'the same')");
    both[1].db.execute(&same).await;
    for (one, receiver) in both.iter().zip(&receivers) {
        let destination = one.destination(&owner, org, receiver);
        let events = one.db.events(org, 3).await;
        eventually("they have arrived by notification", async || {
            events.iter().all(|event| receiver.accepted().contains_key(event))
        })
        .await;
        assert_eq!(receiver.accepted().len(), 3);

        let (org, id) = (org.to_string(), destination.to_string());
        one.run(&owner, &["destinations", "list", "--org", &org]);
        one.run(&owner, &["deliveries", "list", "--org", &org]);
        one.run(&owner, &["events", "list", "--org", &org]);
        one.run(&owner, &["events", "show", &events[0].to_string(), "--org", &org]);
        let what = ["--destination", &id, "--status", "delivered"];
        one.run(&owner, &[&["deliveries", "replay", "--wait", "--org", &org], &what[..]].concat());
        eventually("they have arrived again", async || {
            events.iter().all(|event| receiver.accepted().get(event) == Some(&2))
        })
        .await;
        one.db.settled().await;
        check_invariants(&one.db, &[receiver]).await;
        assert!(one.run(&owner, &["check"]).contains("All is well."));
    }
    for program in &mut programs {
        assert!(program.terminate().await.success());
        assert!(!program.log().contains("WARN"), "{}", program.log());
    }
    whole.drop_role(&role).await;
}

#[tokio::test]
async fn what_a_receiver_ends_and_what_retries_in_another_schema_is_written_there() {
    let whole = without_public().await;
    let owner = whole.url.clone();
    let one = Installation::new(&whole, "events_of_2026");
    one.run(&owner, &["migrate"]);
    let program = one.serve(&owner).await;
    let receiver = Receiver::scripted(|request| match request.header("posthaste-attempt") {
        Some("1") => Reply::Status(503),
        _ => Reply::Status(410),
    });
    let org = one.db.org().await;
    one.db.destination(org, receiver.url("/")).retry(3, 100).insert().await;
    one.db.events(org, 1).await;
    let disabled = "SELECT count(*) FROM webhook_destinations WHERE NOT enabled";
    eventually("it is disabled", async || one.db.number(disabled).await == 1).await;
    eventually("both attempts are known", async || {
        one.db.number("SELECT count(*) FROM posthaste_attempts").await == 2
    })
    .await;
    drop(program);
}

#[tokio::test]
async fn a_schema_in_which_everybody_may_create_things_is_an_error_and_a_bad_name_is_refused() {
    let whole = without_public().await;
    let owner = whole.url.clone();
    let one = Installation::new(&whole, "app");
    one.run(&owner, &["migrate"]);
    whole.execute("GRANT CREATE ON SCHEMA app TO PUBLIC").await;
    let output = run(&["check"], &one.environment(&owner));
    let out = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{out}");
    assert!(out.contains("REVOKE CREATE ON SCHEMA \"app\" FROM PUBLIC"), "{out}");

    let bad = [("DATABASE_URL", whole.url.reveal()), ("POSTHASTE_SCHEMA", "app; DROP")];
    let output = run(&["migrate"], &bad);
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && err.contains("lower-case letters"), "{err}");
}

#[tokio::test]
async fn what_a_dry_run_prints_names_the_schema_whatever_the_search_path_is() {
    let whole = Db::empty().await;
    let mine = |schema| [("DATABASE_URL", whole.url.reveal()), ("POSTHASTE_SCHEMA", schema)];
    assert!(run(&["migrate"], &mine("public")).status.success());
    // Adopted, with a CHECK that calls a function of the application's.
    for statement in [
        "CREATE SCHEMA app",
        "CREATE FUNCTION app.is_known(text) RETURNS boolean LANGUAGE sql IMMUTABLE AS
         $$ SELECT $1 IN ('none', 'bearer', 'header', 'basic') $$",
        "CREATE TABLE app.webhook_destinations (LIKE public.webhook_destinations INCLUDING DEFAULTS)",
        "ALTER TABLE app.webhook_destinations ADD CHECK (app.is_known(auth_type))",
        "ALTER TABLE app.webhook_destinations ADD PRIMARY KEY (id)",
    ] {
        whole.execute(statement).await;
    }
    let printed = run(&["migrate", "--dry-run"], &mine("app"));
    // psql would send one statement at a time.
    let printed = String::from_utf8(printed.stdout).unwrap().replace(" CONCURRENTLY", "");
    let printed = format!("SET search_path = pg_catalog;\n{printed}");
    let mut session = whole.pool.acquire().await.unwrap().detach();
    sqlx::raw_sql(sqlx::AssertSqlSafe(printed.clone())).execute(&mut session).await.unwrap();
    let again = run(&["migrate"], &mine("app"));
    let said = String::from_utf8_lossy(&again.stderr);
    assert!(said.contains("The database is up to date."), "{said}\n{printed}");
    let strays = "SELECT count(*) FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid
        JOIN pg_class r ON r.oid = k.confrelid
        WHERE k.contype = 'f' AND c.relnamespace <> r.relnamespace";
    assert_eq!(whole.number(strays).await, 0);
    let triggers = "SELECT count(*) FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
        JOIN pg_proc p ON p.oid = t.tgfoid
        WHERE NOT t.tgisinternal AND p.pronamespace <> c.relnamespace";
    assert_eq!(whole.number(triggers).await, 0);
}

#[tokio::test]
async fn a_schema_that_was_forgotten_and_one_that_may_not_be_used_are_told() {
    let whole = Db::empty().await;
    let url = whole.url.reveal();
    let said = |arguments: &[&str], environment: &[(&str, &str)]| {
        let output = run(arguments, environment);
        let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
        (output.status.code(), format!("{out}{err}"))
    };
    assert_eq!(said(&["migrate"], &[("DATABASE_URL", url), ("POSTHASTE_SCHEMA", "app")]).0, Some(0));
    for command in ["migrate", "check", "serve"] {
        let (code, told) = said(&[command], &[("DATABASE_URL", url)]);
        assert!(code == Some(1) && told.contains("set POSTHASTE_SCHEMA=app"), "{command}: {told}");
    }
    let another = said(&["migrate"], &[("DATABASE_URL", url), ("POSTHASTE_SCHEMA", "public")]);
    assert_eq!(another.0, Some(0), "it was said which one is meant: {}", another.1);

    let (role, of_role) = whole.role("SELECT 1").await;
    let environment = [("DATABASE_URL", of_role.reveal()), ("POSTHASTE_SCHEMA", "app")];
    for command in ["migrate", "check", "serve"] {
        let (code, told) = said(&[command], &environment);
        let remedy = format!("GRANT USAGE ON SCHEMA \"app\" TO {role}");
        assert!(code == Some(1) && told.contains(&remedy), "{command}: {told}");
    }
    whole.drop_role(&role).await;
}

#[tokio::test]
async fn whoever_writes_through_a_view_needs_no_rights_on_the_schema() {
    let whole = without_public().await;
    let one = Installation::new(&whole, "app");
    let owner = whole.url.clone();
    one.run(&owner, &["migrate"]);
    let org = one.db.org().await;
    let view =
        "CREATE SCHEMA api; CREATE VIEW api.webhook_destinations AS SELECT * FROM app.webhook_destinations";
    sqlx::raw_sql(view).execute(&whole.pool).await.unwrap();
    let grants = "GRANT USAGE ON SCHEMA api TO :\"role\"; GRANT ALL ON api.webhook_destinations TO :\"role\"";
    let (role, url) = whole.role(grants).await;
    let web = Db::at(url);
    let insert = format!(
        "INSERT INTO api.webhook_destinations
            (id, org_id, name, url, auth_type, enabled, batch_size, timeout_ms,
            retry_max, retry_backoff_ms, created_at, updated_at)
         VALUES (gen_random_uuid(), '{org}', 'a', 'http://x', 'none', true, 1, 5000, 3, 1000, now(), now())"
    );
    for change in [
        insert.as_str(),
        "UPDATE api.webhook_destinations SET enabled = false",
        "UPDATE api.webhook_destinations SET enabled = true",
        "DELETE FROM api.webhook_destinations",
    ] {
        assert_eq!(web.execute(change).await, 1, "{change}");
    }
    web.pool.close().await;
    whole.drop_role(&role).await;
}
