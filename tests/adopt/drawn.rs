//! Schemas that are drawn: `migrate` refuses with a reason and changes nothing, or everything works.
//!
//! The cases derive from one seed. `POSTHASTE_ADOPT_CASES` asks for more of them, `POSTHASTE_ADOPT_SEED` for
//! others.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::Value;
use uuid::Uuid;

use crate::common::{Posthaste, Receiver, Reply, check_rows, eventually_within};
use crate::schema::{App, Schema};
use crate::twists::{Expected, Twist, twists};

/// Cases of a usual run.
const CASES: u64 = 21;
const SEED: u64 = 1;
/// Differences of one case at most.
const TWISTS: usize = 12;
/// How long a delivery may take: several times as long as it does on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);

/// What every event has on the wire.
const WIRE: [&str; 11] = [
    "id",
    "org_id",
    "employee_id",
    "session_id",
    "client_name",
    "client_version",
    "event_type",
    "event_category",
    "content",
    "payload",
    "created_at",
];

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

#[actix_rt::test]
async fn a_drawn_schema_is_refused_with_a_reason_or_everything_works() {
    let (seed, cases) = (setting("POSTHASTE_ADOPT_SEED", SEED), setting("POSTHASTE_ADOPT_CASES", CASES));
    let mut failed = Vec::new();
    for (number, hand) in deal(seed, cases).into_iter().enumerate() {
        if actix_rt::spawn(case(seed, number, hand)).await.is_err() {
            failed.push(number);
        }
    }
    assert!(failed.is_empty(), "POSTHASTE_ADOPT_SEED={seed}: these cases failed, see above: {failed:?}");
}

async fn case(seed: u64, number: usize, hand: Vec<Twist>) {
    let mut schema = Schema::given();
    hand.iter().for_each(|twist| twist.apply(&mut schema));
    let named: Vec<String> =
        hand.iter().map(|twist| format!("{} {:?}", twist.place, twist.expected)).collect();
    println!("POSTHASTE_ADOPT_SEED={seed}, case {number}: {}", named.join("; "));
    let app = schema.make().await;
    println!("{}", app.ddl);
    let reason = hand.iter().find_map(|twist| match &twist.expected {
        Expected::Refused(reason) => Some(reason.as_str()),
        _ => None,
    });
    match reason {
        Some(reason) => is_refused(&app, reason).await,
        None => works(&app, &schema, &hand).await,
    }
}

/// What differs in each case. Nothing is dealt again before everything else has been; in every third case
/// one difference must be refused.
fn deal(seed: u64, cases: u64) -> Vec<Vec<Twist>> {
    let mut draw = fastrand::Rng::with_seed(seed);
    let refuses = |twist: &Twist| matches!(twist.expected, Expected::Refused(_));
    let mut decks: [VecDeque<Twist>; 2] = Default::default();
    let mut hands = Vec::new();
    for number in 0..cases {
        let mut hand: Vec<Twist> = Vec::new();
        let harmless = draw.usize(1..=TWISTS);
        for (kind, wanted) in [(1, usize::from(number % 3 == 2)), (0, harmless)] {
            let deck = &mut decks[kind];
            if deck.len() < wanted {
                let mut fresh: Vec<Twist> =
                    twists().into_iter().filter(|twist| refuses(twist) == (kind == 1)).collect();
                draw.shuffle(&mut fresh);
                deck.extend(fresh);
            }
            for _ in 0..wanted {
                let Some(twist) = deck.pop_front() else { continue };
                match hand.iter().any(|other| collide(other, &twist)) {
                    true => deck.push_back(twist),
                    false => hand.push(twist),
                }
            }
        }
        // By their names constraints are found, as long as they have them.
        hand.sort_by_key(|twist| twist.place.ends_with(".names"));
        hands.push(hand);
    }
    hands
}

/// Whether one takes away what the other one changes.
fn collide(one: &Twist, other: &Twist) -> bool {
    let words = |twist: &Twist| {
        twist.place.replace("pkey", "id").replace("unique", "log_id").replace(".key", ".log_id")
    };
    words(one) == words(other)
}

async fn is_refused(app: &App, reason: &str) {
    let before = app.catalog().await;
    let (code, said) = app.run(&["migrate", "--with-fan-out"]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains(reason), "{reason} is not in: {said}");
    assert_eq!(app.catalog().await, before, "something was changed");
}

async fn works(app: &App, schema: &Schema, chosen: &[Twist]) {
    app.adopt();
    let (_, again) = app.run(&["migrate", "--dry-run"]);
    assert!(again.contains("is up to date"), "a second run would do something: {again}");
    let (org, receiver, broken) = (Uuid::new_v4(), Receiver::start(), Receiver::with(Reply::Status(500)));
    app.db.execute(&format!("INSERT INTO organizations (id, name) VALUES ('{org}', 'one')")).await;
    let destination = |url: String| {
        let new = app.db.destination(org, url).retry(3, 60_000);
        schema.needs.iter().fold(new, |new, column| new.with(column, "x"))
    };
    let plain = destination(receiver.url("/plain")).insert().await;
    let filter =
        r#"{"$jsonpath": "$.event_type == \"it.happened\" && $.id != $.org_id || exists($.content)"}"#;
    let filter = filter.replace("$.id != $.org_id", r#"$.event_type != \"x\""#);
    destination(receiver.url("/filtered")).event_filter(&filter).insert().await;
    let failing = destination(broken.url("/")).insert().await;
    unusual_rows(app, schema, org, plain).await;

    let mut posthaste = Posthaste::serve(&app.url).await;
    let delivered =
        format!("destination_id = '{plain}' AND status = 'delivered' AND delivered_at IS NOT NULL");
    eventually_within(LIMIT, "both events are delivered", async || app.db.deliveries(&delivered).await == 2)
        .await;
    let failed = format!(
        "destination_id = '{failing}' AND status = 'failed' AND attempts = 1 \
        AND response_status = 500 AND next_retry_at > last_attempt_at"
    );
    eventually_within(LIMIT, "both failures are recorded", async || app.db.deliveries(&failed).await == 2)
        .await;
    eventually_within(LIMIT, "the filter is asked", async || {
        receiver.received().iter().any(|request| request.path == "/filtered")
    })
    .await;
    for request in receiver.received() {
        let body = request.json();
        let events: Vec<&Value> = body.as_array().map_or(vec![&body], |array| array.iter().collect());
        for event in events {
            assert!(WIRE.iter().all(|column| event["data"].get(column).is_some()), "{event}");
            assert!(event["timestamp"].is_string(), "{event}");
        }
    }
    assert!(posthaste.terminate().await.success());
    check_rows(&app.db).await;
    is_told(app, chosen);
    is_managed(app, &org.to_string(), &plain.to_string());
}

/// What people do from the shell.
fn is_managed(app: &App, org: &str, destination: &str) {
    for command in [
        &["destinations", "list"][..],
        &["destinations", "stats", destination],
        &["destinations", "update", destination, "--timeout-ms", "10000"],
        &["destinations", "disable", destination],
        &["destinations", "enable", destination],
        &["deliveries", "list"],
        &["events", "list"],
    ] {
        let (code, said) = app.run(&[command, &["--org", org]].concat());
        assert_eq!(code, 0, "{command:?}: {said}");
    }
    assert_eq!(app.run(&["deliveries", "replay", "--org", org, "--destination", destination]).0, 0);
}

/// Two events and the rows of one destination and its deliveries, with NULL wherever there may be one.
async fn unusual_rows(app: &App, schema: &Schema, org: Uuid, destination: Uuid) {
    let nulls = |table: &str| {
        let of_table = schema.nulls.iter().filter(move |(of, _)| *of == table);
        of_table.map(|(_, column)| *column).collect::<Vec<_>>()
    };
    let sets = nulls("webhook_destinations").into_iter().map(|column| format!("{column} = NULL"));
    for set in sets.chain(schema.sets.iter().cloned()) {
        app.db.execute(&format!("UPDATE webhook_destinations SET {set} WHERE id = '{destination}'")).await;
    }
    let plain = format!("INSERT INTO activity_logs (org_id, event_type) VALUES ('{org}', 'it.happened')");
    app.db.execute(&plain).await;
    let (mut columns, mut values) = ("org_id".to_owned(), format!("'{org}'"));
    let of_events = nulls("activity_logs");
    if !of_events.contains(&"event_type") {
        columns += ", event_type";
        values += ", 'it.happened'";
    }
    for column in of_events {
        columns += &format!(", {column}");
        values += ", NULL";
    }
    app.db.execute(&format!("INSERT INTO activity_logs ({columns}) VALUES ({values})")).await;
    for column in nulls("webhook_deliveries") {
        app.db.execute(&format!("UPDATE webhook_deliveries SET {column} = NULL")).await;
    }
}

/// `check` says what is lived with, and nothing else.
fn is_told(app: &App, chosen: &[Twist]) {
    let (code, said) = app.run(&["check"]);
    assert_eq!(code, 0, "{said}");
    let expected: Vec<&String> = chosen
        .iter()
        .filter_map(|twist| match &twist.expected {
            Expected::Told(text) => Some(text),
            _ => None,
        })
        .collect();
    for text in &expected {
        assert!(said.contains(text.as_str()), "check does not say {text}: {said}");
    }
    for warning in said.lines().filter(|line| line.starts_with("warning")) {
        assert!(expected.iter().any(|text| warning.contains(text.as_str())), "unasked: {warning}");
    }
}
