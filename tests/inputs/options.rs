//! Variables and files as other programs write them.

use std::process::{Command, Stdio};

use clap::CommandFactory as _;
use posthaste::cli::Cli;

use crate::common::Db;

/// Nobody listens there.
const NOWHERE: &str = "postgres://nobody@127.0.0.1:1/nothing?sslmode=disable";

type Outcome = (Option<i32>, String, String);

fn run(arguments: &[String], environment: &[(String, String)], directory: &std::path::Path) -> Outcome {
    let mut command = Command::new(env!("CARGO_BIN_EXE_posthaste"));
    command.env_clear().current_dir(directory).args(arguments).stdin(Stdio::null());
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// Every command that has no further ones, and the variables that it reads.
fn commands(command: &clap::Command, path: &[String]) -> Vec<(Vec<String>, Vec<String>)> {
    let mut found = Vec::new();
    for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
        let path = [path, &[below.get_name().to_owned()]].concat();
        if below.has_subcommands() {
            found.extend(commands(below, &path));
        } else {
            let env = |arg: &clap::Arg| Some(arg.get_env()?.to_str().unwrap().to_owned());
            found.push((path, below.get_arguments().filter_map(env).collect()));
        }
    }
    found
}

#[test]
fn an_empty_variable_is_unset_for_every_option_of_every_command() {
    let mut definition = Cli::command();
    definition.build();
    let commands = commands(&definition, &[]);
    assert!(commands.len() > 25, "{commands:?}");
    let directory = tempfile::tempdir().unwrap();
    let mut seen = 0;
    for (arguments, mut variables) in commands {
        // It prints another one each time.
        if arguments == ["secrets", "generate-key"] {
            continue;
        }
        // It would wait for the database.
        let served = arguments == ["serve"];
        variables.retain(|name| served || name != "DATABASE_URL");
        variables.extend(["RUST_LOG", "NO_COLOR", "PGHOST", "PGPORT", "PGSSLMODE"].map(str::to_owned));
        let database = match served {
            true => Vec::new(),
            false => vec![("DATABASE_URL".to_owned(), NOWHERE.to_owned())],
        };
        let with = |empty: &[String]| {
            let empty = empty.iter().map(|name| (name.clone(), String::new()));
            run(&arguments, &database.iter().cloned().chain(empty).collect::<Vec<_>>(), directory.path())
        };
        let unset = with(&[]);
        if with(&variables) != unset {
            let culprits: Vec<_> =
                variables.iter().filter(|name| with(std::slice::from_ref(*name)) != unset).collect();
            panic!("{arguments:?}: {culprits:?}: {:?} instead of {unset:?}", with(&variables));
        }
        // The same by a file.
        let file: String = variables.iter().map(|name| format!("{name}=\n")).collect();
        std::fs::write(directory.path().join(".env"), file).unwrap();
        assert_eq!(with(&[]), unset, "{arguments:?}");
        std::fs::remove_file(directory.path().join(".env")).unwrap();
        seen += variables.len();
    }
    assert!(seen > 150, "{seen}");
}

#[test]
fn help_names_the_variable_of_an_option_also_while_it_is_empty() {
    let directory = tempfile::tempdir().unwrap();
    let empty = [("POSTHASTE_CA_FILE".to_owned(), String::new())];
    let (code, out, _) = run(&["serve".into(), "--help".into()], &empty, directory.path());
    assert!(code == Some(0) && out.contains("[env: POSTHASTE_CA_FILE=]"), "{out}");
}

#[test]
fn a_line_of_the_env_file_that_cannot_be_read_is_told_and_nothing_runs() {
    let directory = tempfile::tempdir().unwrap();
    for (file, told) in [
        ("APP_NAME=My Shop\nPOSTHASTE_HTTPS_ONLY=true\n", "at its beginning"),
        ("RUST_LOG=info\nAPP NAME=x\nPOSTHASTE_HTTPS_ONLY=true\n", "after RUST_LOG"),
    ] {
        std::fs::write(directory.path().join(".env"), file).unwrap();
        let (code, _, err) = run(&["check".into()], &[], directory.path());
        assert_eq!(code, Some(2), "{err}");
        assert!(err.contains(".env in the working directory has a line") && err.contains(told), "{err}");
    }
    let marked = "\u{feff}POSTHASTE_LOG_FORMAT=xml\r\nRUST_LOG=info\r\n";
    std::fs::write(directory.path().join(".env"), marked).unwrap();
    let (code, _, err) = run(&["check".into()], &[], directory.path());
    assert!(code == Some(2) && err.contains("xml"), "a byte order mark is no part of a name: {err}");
}

#[tokio::test]
async fn secret_files_of_other_editors_are_read_and_what_would_be_taken_amiss_is_refused() {
    let db = Db::new().await;
    let org = db.org().await;
    let destination = db.destination(org, "https://example.com/").insert().await.to_string();
    let stored = "SELECT signing_secret FROM webhook_destinations";
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("secret");
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let environment = [
        ("DATABASE_URL".to_owned(), db.url.reveal().to_owned()),
        ("POSTHASTE_ORG".to_owned(), org.to_string()),
    ];
    let rotate = |bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        let name = file.to_str().unwrap();
        let arguments = ["destinations", "rotate-secret", &destination, "--secret-file", name];
        run(&arguments.map(str::to_owned), &environment, directory.path())
    };
    for text in [
        format!("{secret}\n"),
        format!("\u{feff}{secret}\r\n"),
        format!("  {secret}\t\r\n\r\n"),
        secret.to_owned(),
    ] {
        db.execute("UPDATE webhook_destinations SET signing_secret = 'before'").await;
        let (code, _, err) = rotate(text.as_bytes());
        assert_eq!(code, Some(0), "{text:?}: {err}");
        assert_eq!(db.text(stored).await.as_deref(), Some(secret), "{text:?}");
    }
    let utf16: Vec<u8> = "\u{feff}secret".encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (bytes, told) in [
        (format!("\"{secret}\"\n").into_bytes(), "quotes"),
        (format!("'{secret}'").into_bytes(), "quotes"),
        (b"two words".to_vec(), "spaces"),
        (format!("SECRET={secret}\nOTHER=x\n").into_bytes(), "spaces"),
        (b"\xef\xbb\xbf\r\n".to_vec(), "empty"),
        (utf16, "UTF-8"),
    ] {
        let (code, _, err) = rotate(&bytes);
        assert_eq!(code, Some(2), "{bytes:?}: {err}");
        assert!(err.contains(told) && !err.contains("MfKQ9r8"), "{err}");
        assert_eq!(db.text(stored).await.as_deref(), Some(secret));
    }
}

#[tokio::test]
async fn database_urls_are_read_as_psql_reads_them() {
    let db = Db::new().await;
    let url = url::Url::parse(db.url.reveal()).unwrap();
    let parameter = |name: &str| url.query_pairs().find(|(n, _)| n == name).map(|(_, v)| v.into_owned());
    let directory = parameter("host").expect("the servers of tests listen on a socket only");
    let user = parameter("user").unwrap_or_else(|| url.username().to_owned());
    let port = url.port().map(|port| port.to_string()).or(parameter("port"));
    let port = port.map(|port| format!("&port={port}")).unwrap_or_default();
    let name = url.path().trim_start_matches('/');
    let empty = tempfile::tempdir().unwrap();
    let check = |url: &str, more: &[(&str, &str)]| {
        let mut environment = vec![("DATABASE_URL".to_owned(), url.to_owned())];
        environment.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        run(&["secrets".into(), "status".into()], &environment, empty.path())
    };
    let encoded: String = url::form_urlencoded::byte_serialize(directory.as_bytes()).collect();
    for (url, more) in [
        (format!("postgres://{user}@/{name}?host={directory}{port}"), vec![]),
        (format!("postgresql://{user}:p%2Bw+@/{name}?host={encoded}{port}"), vec![]),
        (format!("postgres:///{name}?host={directory}&user={user}{port}"), vec![]),
        (format!("postgres://{user}@{encoded}/{name}?{port}"), vec![]),
        (format!("postgres://{user}@/{name}?{port}"), vec![("PGHOST", directory.as_str())]),
        (format!("postgres://{user}@/{name}?host={directory}{port}&connect_timeout=9"), vec![("PGHOST", "")]),
    ] {
        let (code, out, err) = check(&url, &more);
        assert_eq!(code, Some(0), "{url} {more:?}: {out}{err}");
    }
    for (url, more, told) in [
        ("postgres://u@h1:5432,h2:5433/db", vec![], "one host"),
        ("postgres://u:p@h1,h2/db", vec![], "one host"),
        ("postgres://u@/db?host=h1,h2", vec![], "one host"),
        ("postgres://u@/db", vec![("PGHOST", "h1,h2")], "one host"),
        ("postgres:///?service=app", vec![], "service"),
        ("postgres://u@/db", vec![("PGSERVICE", "app")], "service"),
        ("postgres://u@h/db?sslcrl=/x", vec![], "sslcrl"),
        ("postgres://u@h/db?channel_binding=require", vec![], "channel_binding"),
        ("postgres://u@h/db?target_session_attrs=read-write", vec![], "target_session_attrs"),
        ("host=localhost dbname=hunter2", vec![], "postgres://user@host:5432/database"),
    ] {
        let (code, _, err) = check(url, &more);
        assert_eq!(code, Some(2), "{url}: {err}");
        assert!(err.contains(told) && !err.contains("hunter2"), "{url}: {err}");
    }
    // Nobody listens there, but there it went.
    let (_, _, err) = check("postgres://u@[::1]:1/db?sslmode=disable", &[]);
    assert!(err.contains("efused") || err.contains("unreachable") || err.contains("assign"), "{err}");
}
