//! The same by the shell, with the real binary, directly on the database.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use uuid::Uuid;

use crate::common::{Db, Receiver, Reply, assert_silent, check_invariants, run};

const SERVE: &str = include_str!("../../examples/deploy/grants.sql");
const MANAGEMENT: &str = include_str!("../../examples/deploy/grants-management.sql");

struct Shell<'a> {
    url: &'a str,
    org: String,
}

impl Shell<'_> {
    /// Runs a command; its exit code, standard output and standard error.
    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        self.run_with(arguments, &[])
    }

    fn run_with(&self, arguments: &[&str], more: &[(&str, &str)]) -> (i32, String, String) {
        let mut environment = vec![("DATABASE_URL", self.url), ("POSTHASTE_ORG", self.org.as_str())];
        environment.extend_from_slice(more);
        let output = run(arguments, &environment);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    }

    /// What a command that must succeed prints as JSON.
    fn json(&self, arguments: &[&str]) -> Value {
        let (code, out, err) = self.run(&[arguments, &["--json"]].concat());
        assert_eq!(code, 0, "{arguments:?}: {err}");
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {out}"))
    }
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

#[tokio::test]
async fn from_creating_a_destination_to_deleting_it_everything_is_done_by_the_shell() {
    let db = Db::new().await;
    let org = db.org().await;
    let shell = Shell { url: db.url.reveal(), org: org.to_string() };
    let receiver = Receiver::start();
    let url = receiver.url("/");
    let document = json!({"name": "other", "auth_type": "bearer", "auth_config": {"token": "hunter2hunter2"},
        "settings": {"ordered": true}})
    .to_string();
    let document = file(&document);
    let document = document.path().to_str().unwrap();
    let create = ["destinations", "create", "--from-json", document, "--name", "first", "--url", &url];
    let flags = ["--event-types", "a,b.*", "--event-filter", r#"{"n": 1}"#, "--max-in-flight", "3"];
    let created = shell.json(&[&create[..], &flags].concat());
    let id = created["id"].as_str().unwrap();
    let secret = created["signing_secret"].as_str().unwrap().to_owned();
    assert_eq!((&created["name"], &created["event_types"]), (&json!("first"), &json!(["a", "b.*"])));
    assert_eq!((&created["event_filter"]["n"], &created["auth_config"]), (&json!(1), &json!({})));
    assert_eq!(
        (&created["settings"]["ordered"], &created["settings"]["max_in_flight"]),
        (&json!(true), &json!(3))
    );

    let (code, table, err) = shell.run(&["destinations", "list"]);
    assert_eq!(code, 0, "{err}");
    assert!(table.starts_with("ID ") && table.contains(id) && !table.contains('\u{1b}'), "{table}");
    let version = shell.json(&["destinations", "show", id])["version"].as_str().unwrap().to_owned();
    let update = ["destinations", "update", id, "--retry-max", "1", "--if-version", &version];
    assert_eq!(shell.json(&update)["retry_max"], 1);
    let (code, out, err) = shell.run(&update);
    assert!(code == 1 && out.is_empty() && err.contains("changed"), "{err}");

    // Exit codes of a test are those of what came of it.
    let test = shell.json(&["destinations", "test", id]);
    assert_eq!((&test["delivered"], &test["response_status"]), (&json!(true), &json!(200)));
    receiver.reply(Reply::Status(500));
    let (code, out, _) = shell.run(&["destinations", "test", id]);
    assert!(code == 1 && out.contains("the receiver answered 500"), "{out}");
    let (code, out, _) = shell.run_with(&["destinations", "test", id], &[("POSTHASTE_ALLOW_NETWORKS", "")]);
    assert!(code == 1 && out.contains("loopback"), "{out}");
    assert_eq!(receiver.count(), 2);

    let disabled = shell.json(&["destinations", "disable", id, "--reason", "they are moving"]);
    assert_eq!(disabled["disabled_reason"], "they are moving");
    db.event(org, "a", r#"{"n": 1}"#).await;
    let (code, out, _) = shell.run(&["destinations", "enable", id]);
    let offer = format!("posthaste events backfill --org {org} --destination {id} --from ");
    assert!(code == 0 && out.contains("1 event(s)") && out.contains(&offer), "{out}");
    let from = out.split_once(&offer).unwrap().1.split_whitespace().next().unwrap();
    let backfill = ["events", "backfill", "--destination", id, "--from", from, "--wait"];
    assert_eq!(shell.json(&backfill)["queued"], 1);
    let stats = shell.json(&["destinations", "stats", id]);
    assert_eq!(stats["deliveries"]["pending"], json!({"count": 1, "complete": true}));

    let rotated = shell.json(&["destinations", "rotate-secret", id, "--overlap-seconds", "60"]);
    let new = rotated["signing_secret"].as_str().unwrap().to_owned();
    assert!(new != secret && rotated["settings"]["previous_secret_expires_at"].is_string());
    let own = file("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n");
    let own = ["destinations", "rotate-secret", id, "--secret-file", own.path().to_str().unwrap()];
    assert_eq!(shell.json(&own)["signing_secret"], "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
    for arguments in [&["destinations", "show", id][..], &["destinations", "list"]] {
        let secrets = [secret.as_str(), &new, "hunter2hunter2", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"];
        assert_silent("what is shown", &shell.json(arguments).to_string(), &secrets);
        assert_silent("what is shown", &shell.run(arguments).1, &secrets);
    }
    // Nobody to ask: not without --yes.
    let (code, out, err) = shell.run(&["destinations", "delete", id]);
    assert!(code == 2 && out.is_empty() && err.contains("--yes"), "{err}");
    assert_eq!(db.deliveries("true").await, 1);
    assert_eq!(shell.json(&["destinations", "delete", id, "--yes"])["deliveries"], 1);
    assert_eq!(db.number("SELECT count(*) FROM webhook_destinations").await, 0);
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn keys_are_made_listed_and_revoked_by_the_shell() {
    let db = Db::new().await;
    let org = db.org().await;
    let shell = Shell { url: db.url.reveal(), org: org.to_string() };
    let created = shell.json(&["keys", "create", "--name", "dashboard", "--role", "write"]);
    let (id, key) = (created["id"].as_str().unwrap(), created["key"].as_str().unwrap());
    assert_eq!((&created["role"], &created["org_id"]), (&json!("write"), &json!(org)));
    let (code, table, _) = shell.run(&["keys", "list"]);
    assert!(code == 0 && table.contains(id) && table.contains("active"), "{table}");
    assert_silent("the list", &table, &[key]);
    let (code, _, err) = shell.run(&["keys", "revoke", id]);
    assert!(code == 2 && err.contains("--yes"), "{err}");
    assert!(shell.json(&["keys", "revoke", id, "--yes"])["revoked_at"].is_string());
    let other = Uuid::new_v4().to_string();
    assert_eq!(shell.json(&["keys", "list", "--org", &other])["items"], json!([]));
    let table: [(&[&str], i32, &str); 5] = [
        (&["keys", "create", "--name", "", "--role", "admin"], 2, "role"),
        (&["keys", "create", "--name", "a", "--org", &other], 1, &other),
        (&["keys", "list", "--limit", "x"], 2, "limit"),
        (&["keys", "revoke", &other, "--yes"], 1, &other),
        (&["keys", "revoke", "1", "--yes"], 2, "<ID>"),
    ];
    for (arguments, code, words) in table {
        let (is, out, err) = shell.run(arguments);
        assert_eq!((is, out.as_str()), (code, ""), "{arguments:?}: {err}");
        assert!(err.contains(words), "{arguments:?}: {err}");
    }
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn exit_codes_tell_what_is_wrong_with_the_call_from_what_cannot_be_done() {
    let db = Db::new().await;
    let shell = Shell { url: db.url.reveal(), org: db.org().await.to_string() };
    let (unknown, good) = (Uuid::new_v4().to_string(), ["--name", "a", "--url", "https://example.com/"]);
    let unreadable = file("{");
    let unknown_field = file(r#"{"nam": "a"}"#);
    let create = |more: &[&str]| {
        let all: Vec<String> =
            [&["destinations", "create"], more].concat().iter().map(|t| (*t).into()).collect();
        all
    };
    let with = |more: &[&str]| create(&[&good[..], more].concat());
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<String>>();
    let json = |file: &tempfile::NamedTempFile| create(&["--from-json", file.path().to_str().unwrap()]);
    let table: Vec<(Vec<String>, i32, &str)> = vec![
        (create(&[]), 2, "name: is missing; url: is missing"),
        (with(&["--batch-size", "0", "--timeout-ms", "1"]), 2, "timeout_ms"),
        (with(&["--batch-size", "x"]), 2, "--batch-size"),
        (with(&["--event-filter", "{"]), 2, "event_filter"),
        (with(&["--allow-networks", "x"]), 2, "--allow-networks"),
        (with(&["--ca-file", "/nowhere"]), 2, "--ca-file"),
        (with(&["--secret-key", "hunter2"]), 2, "--secret-key"),
        (with(&["--org", &unknown]), 1, &unknown),
        (with(&["--from-json", "/nowhere"]), 2, "/nowhere"),
        (json(&unreadable), 2, "body"),
        (json(&unknown_field), 2, "nam: is unknown"),
        (words(&["destinations", "show", &unknown]), 1, &unknown),
        (words(&["destinations", "show", "1"]), 2, "<ID>"),
        (words(&["destinations", "update", &unknown, "--name", "b"]), 1, &unknown),
        (words(&["destinations", "delete", &unknown, "--yes"]), 1, &unknown),
        (words(&["destinations", "test", &unknown]), 1, &unknown),
        (words(&["destinations", "enable", &unknown]), 1, &unknown),
        (words(&["destinations", "disable", &unknown, "--reason", ""]), 2, "reason"),
        (words(&["destinations", "rotate-secret", &unknown]), 1, &unknown),
        (words(&["destinations", "stats", &unknown]), 1, &unknown),
        (words(&["destinations", "list", "--limit", "0", "--cursor", "x"]), 2, "cursor"),
        (words(&["completions", "cmd.exe"]), 2, "cmd.exe"),
    ];
    for (arguments, code, words) in table {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let (is, out, err) = shell.run(&arguments);
        assert_eq!((is, out.as_str()), (code, ""), "{arguments:?}: {err}");
        assert!(err.contains(words) && !err.contains("hunter2"), "{arguments:?}: {err}");
    }
    assert_eq!(db.number("SELECT count(*) FROM webhook_destinations").await, 0);
    let nowhere = run(&["destinations", "list", "--org", &unknown], &[]);
    assert_eq!(nowhere.status.code(), Some(2), "no database");
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn with_the_rights_for_it_a_role_manages_and_without_them_it_is_told() {
    let db = Db::new().await;
    let (role, url) = db.role(SERVE).await;
    let shell = Shell { url: url.reveal(), org: db.org().await.to_string() };
    let create = ["destinations", "create", "--name", "a", "--url", "https://example.com/", "--ordered"];
    for arguments in [&create[..], &["keys", "create", "--name", "a"]] {
        let (code, out, err) = shell.run(arguments);
        assert!(code == 1 && out.is_empty() && err.contains("permission denied"), "{err}");
    }
    assert_eq!(shell.json(&["destinations", "list"])["items"], json!([]));
    db.grant(MANAGEMENT, &role).await;
    let id = shell.json(&create)["id"].as_str().unwrap().to_owned();
    shell.json(&["destinations", "update", &id, "--name", "b", "--ordered", "false"]);
    shell.json(&["destinations", "rotate-secret", &id]);
    shell.json(&["destinations", "disable", &id]);
    shell.json(&["destinations", "enable", &id]);
    shell.json(&["destinations", "stats", &id]);
    shell.json(&["destinations", "delete", &id, "--yes"]);
    let key = shell.json(&["keys", "create", "--name", "a"])["id"].as_str().unwrap().to_owned();
    shell.json(&["keys", "revoke", &key, "--yes"]);
    let mut session = posthaste::store::connect(&posthaste::store::options(&url).unwrap()).await.unwrap();
    let since = posthaste::model::DbTime(i64::MIN);
    assert!(posthaste::store::keys::usable(&mut session, since).await.unwrap().is_empty());
    sqlx::Connection::close(session).await.unwrap();
    db.drop_role(&role).await;
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn shells_are_given_what_they_need_to_complete_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let output = run(&["completions", shell], &[]);
        assert!(output.status.success() && output.stderr.is_empty());
        let script = String::from_utf8(output.stdout).unwrap();
        for word in ["destinations", "rotate-secret", "overlap-seconds", "deliveries", "keys", "completions"]
        {
            assert!(script.contains(word), "{shell}: {word}");
        }
        if shell == "bash" {
            let mut bash = Command::new("bash").arg("-n").stdin(Stdio::piped()).spawn().unwrap();
            bash.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
            assert!(bash.wait().unwrap().success());
        }
    }
}
