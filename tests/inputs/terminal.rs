//! Text that comes from outside and reaches a terminal.

use serde_json::Value;

use crate::common::{Db, Posthaste, Receiver, Reply, check_invariants, run};

/// What a terminal would obey: a title, a cleared screen, a colour, text from right to left, a C1 sequence.
const HOSTILE: &str =
    "\u{1b}]0;x\u{7}\u{1b}[2J\u{1b}[31mred\u{1b}[0m\u{202e}desrever\u{2066}\u{9b}2J\u{7f}\r";

fn obeyed(text: &str) -> String {
    let turns =
        |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().filter(|c| c.is_control() && *c != '\n' && *c != '\t' || turns(*c)).collect()
}

#[tokio::test]
async fn a_terminal_is_shown_nothing_from_outside_that_it_would_obey() {
    let db = Db::new().await;
    let org = db.org().await;
    let receiver = Receiver::with(Reply::body(410, HOSTILE));
    let quoted =
        format!("E'{}'", HOSTILE.chars().map(|c| format!("\\u{:04x}", c as u32)).collect::<String>());
    let destination = db.destination(org, receiver.url("/")).retry(0, 100).insert().await;
    db.execute(&format!("UPDATE webhook_destinations SET name = {quoted}")).await;
    let event = db.event(org, "a", "{}").await;
    db.execute(&format!(
        "UPDATE activity_logs SET event_type = {quoted}, event_category = {quoted}, content = {quoted}, \
         client_name = {quoted}, client_version = {quoted}, payload = to_jsonb({quoted}::text)"
    ))
    .await;
    // What cannot be compiled is told in the log, and by check.
    let broken = db.destination(org, "https://example.com/").insert().await;
    db.execute(&format!(
        "UPDATE webhook_destinations SET auth_type = 'header', \
         auth_config = jsonb_build_object('header_name', {quoted}, 'header_value', 'x') WHERE id = '{broken}'"
    ))
    .await;
    let mut posthaste = Posthaste::serve_with(&db.url, &[("RUST_LOG", "debug")]).await;
    db.settled().await;
    assert!(posthaste.terminate().await.success());
    assert_eq!(obeyed(&posthaste.log()), "", "{}", posthaste.log().escape_debug());

    let delivery = db.text("SELECT id::text FROM webhook_deliveries").await.unwrap();
    let (destination, event, org) = (destination.to_string(), event.to_string(), org.to_string());
    let environment = [("DATABASE_URL", db.url.reveal()), ("POSTHASTE_ORG", &org), ("RUST_LOG", "info")];
    for arguments in [
        &["check"][..],
        &["destinations", "list"],
        &["destinations", "show", &destination],
        &["destinations", "stats", &destination],
        &["destinations", "test", &destination],
        &["destinations", "enable", &destination],
        &["destinations", "create", "--name", HOSTILE, "--url", HOSTILE],
        &["deliveries", "list"],
        &["deliveries", "list", "--event-type", HOSTILE],
        &["deliveries", "show", &delivery],
        &["events", "list"],
        &["events", "show", &event],
        &["events", "send", "--file", HOSTILE],
        &["keys", "create", "--name", HOSTILE],
        &["jobs", "show", HOSTILE],
        &[HOSTILE],
    ] {
        for json in [false, true] {
            let more: &[&str] = if json { &["--json"] } else { &[] };
            let output = run(&[arguments, more].concat(), &environment);
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            let (out, err) = (text(&output.stdout), text(&output.stderr));
            assert_eq!(obeyed(&out), "", "{arguments:?}: {}", out.escape_debug());
            assert_eq!(obeyed(&err), "", "{arguments:?}: {}", err.escape_debug());
            if json && output.status.success() {
                let value: Value = serde_json::from_str(&out).unwrap();
                if arguments[..2] == ["events", "show"] {
                    assert_eq!(value["content"], HOSTILE, "as it is: {out}");
                }
            }
        }
    }
    check_invariants(&db, &[&receiver]).await;
}
