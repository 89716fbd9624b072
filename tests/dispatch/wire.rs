//! What stands on the wire: bodies and headers, to the byte.

use std::time::{SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};
use sqlx::Row;
use uuid::Uuid;

use crate::common::{Db, Posthaste, Received, Receiver, check_invariants};

/// The columns of an event that has everything, up to its time. `{id}` and the like stand for ids.
/// jsonb keeps numbers as they were written, but the `1e-7` of the insert is 0.0000001 to it.
const FULL: &str = concat!(
    r#""id":"{id}","org_id":"{org}","employee_id":"{employee}","session_id":"{session}","#,
    r#""client_name":"claude \"code\"","client_version":"1.0\\2","event_type":"tool call/ä","#,
    r#""event_category":"agent_activity","content":"Called\nBash → 日本","#,
    r#""payload":{"b": 1, "aa": [1.50, 12345678901234567890123, 0.0000001], "é": "x"}"#
);

/// The columns of an event that has only what it must have, up to its time.
const BARE: &str = concat!(
    r#""id":"{id}","org_id":"{org}","employee_id":null,"session_id":null,"client_name":null,"#,
    r#""client_version":null,"event_type":"bare","event_category":"test","content":null,"payload":{}"#
);

const FULL_TYPE: &str = r#""tool call/ä""#;
const FULL_AT: &str = r#""2025-12-23T16:02:19.890000Z""#;
const BARE_AT: &str = r#""1999-12-31T23:59:59.999999Z""#;

/// Two events of `org`, and what [`FULL`] and [`BARE`] look like with their ids.
struct Events {
    ids: [Uuid; 2],
    columns: [String; 2],
}

/// Inserts both in one statement.
async fn insert(db: &Db, org: Uuid) -> Events {
    let [full, bare, employee, session] = [(); 4].map(|()| Uuid::new_v4());
    db.execute(&format!("INSERT INTO employees (id, org_id) VALUES ('{employee}', '{org}')")).await;
    db.execute(&format!(
        r#"INSERT INTO activity_logs (id, org_id, employee_id, session_id, client_name, client_version,
            event_type, event_category, content, payload, created_at) VALUES
            ('{full}', '{org}', '{employee}', '{session}', 'claude "code"', '1.0\2', 'tool call/ä',
             'agent_activity', E'Called\nBash → 日本',
             '{{"aa":[1.50,12345678901234567890123,1e-7],"b":2,"b":1,"é":"x"}}', '2025-12-23 16:02:19.89'),
            ('{bare}', '{org}', NULL, NULL, NULL, NULL, 'bare', 'test', NULL, '{{}}',
             '1999-12-31 23:59:59.999999')"#
    ))
    .await;
    let with_ids = |text: &str, id: Uuid| {
        let ids = [("{id}", id), ("{org}", org), ("{employee}", employee), ("{session}", session)];
        ids.iter().fold(text.to_owned(), |text, (name, id)| text.replace(name, &id.to_string()))
    };
    Events { ids: [full, bare], columns: [with_ids(FULL, full), with_ids(BARE, bare)] }
}

impl Events {
    /// The two in the format `standard`.
    fn standard(&self) -> [String; 2] {
        let [full, bare] = &self.columns;
        [
            format!(
                r#"{{"type":{FULL_TYPE},"timestamp":{FULL_AT},"data":{{{full},"created_at":{FULL_AT}}}}}"#
            ),
            format!(r#"{{"type":"bare","timestamp":{BARE_AT},"data":{{{bare},"created_at":{BARE_AT}}}}}"#),
        ]
    }

    /// The two in the format `flat`.
    fn flat(&self) -> [String; 2] {
        let [full, bare] = &self.columns;
        [format!(r#"{{{full},"timestamp":{FULL_AT}}}"#), format!(r#"{{{bare},"timestamp":{BARE_AT}}}"#)]
    }
}

/// The bodies of `requests`, sorted.
fn bodies(requests: &[Received]) -> Vec<String> {
    let mut bodies: Vec<String> =
        requests.iter().map(|request| String::from_utf8(request.body.clone()).unwrap()).collect();
    bodies.sort();
    bodies
}

fn sorted(texts: [String; 2]) -> Vec<String> {
    let mut texts = texts.to_vec();
    texts.sort();
    texts
}

/// The headers, sorted, without `webhook-timestamp`, which must be a time within the last minute, and without
/// `traceparent`, which differs from attempt to attempt.
fn headers(request: &Received) -> Vec<(String, String)> {
    let time: u64 = request.header("webhook-timestamp").unwrap().parse().unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert!((now - 60..=now + 1).contains(&time), "webhook-timestamp {time}, but it is {now}");
    let mut headers = request.headers.clone();
    // A client may say what time it is (RFC 9110, 6.6.1); the contract leaves that open.
    headers.retain(|(name, _)| !["webhook-timestamp", "traceparent", "date"].contains(&name.as_str()));
    headers.sort();
    headers
}

/// What every request has.
fn common_headers(receiver: &Receiver, request: &Received) -> Vec<(String, String)> {
    [
        ("host", receiver.address().to_string()),
        ("content-type", "application/json".to_owned()),
        ("content-length", request.body.len().to_string()),
        ("user-agent", format!("Posthaste/{}", env!("CARGO_PKG_VERSION"))),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// Inserts the events for one destination, which `settings` describe, and returns what it received.
async fn deliver(batch_size: u32, settings: &[(&'static str, &str)]) -> (Db, Receiver, Events) {
    let db = Db::new().await;
    let receiver = Receiver::start();
    let org = db.org().await;
    let mut destination = db.destination(org, receiver.url("/hook?a=b")).batch_size(batch_size);
    for (column, value) in settings {
        destination = destination.setting(column, value);
    }
    destination.insert().await;
    // Before the start, so that one claim finds both.
    let events = insert(&db, org).await;
    let posthaste = Posthaste::serve(&db.url).await;
    db.settled().await;
    check_invariants(&db, &[&receiver]).await;
    drop(posthaste);
    (db, receiver, events)
}

async fn delivery_of(db: &Db, event: Uuid) -> Uuid {
    let sql = "SELECT id FROM webhook_deliveries WHERE log_id = $1";
    sqlx::query(sql).bind(event).fetch_one(&db.pool).await.unwrap().get(0)
}

#[tokio::test]
async fn a_single_event_has_the_body_and_the_headers_of_the_contract() {
    let (db, receiver, events) = deliver(1, &[]).await;
    let requests = receiver.received();
    assert_eq!(bodies(&requests), sorted(events.standard()));
    for request in &requests {
        assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/hook?a=b"));
        let [event] = request.event_ids()[..] else { panic!("no single event: {request:?}") };
        let event_type = if event == events.ids[0] { "tool%20call/%C3%A4" } else { "bare" };
        let mut expected = common_headers(&receiver, request);
        expected.extend([
            ("webhook-id".to_owned(), event.to_string()),
            ("posthaste-event-type".to_owned(), event_type.to_owned()),
            ("posthaste-delivery-id".to_owned(), delivery_of(&db, event).await.to_string()),
            ("posthaste-attempt".to_owned(), "1".to_owned()),
        ]);
        expected.sort();
        assert_eq!(headers(request), expected);
    }
}

#[tokio::test]
async fn a_batch_has_the_body_and_the_headers_of_the_contract() {
    let (db, receiver, events) = deliver(5, &[]).await;
    let requests = receiver.received();
    let [request] = &requests[..] else { panic!("no single batch: {requests:?}") };
    let [full, bare] = events.standard();
    // A destination that is not ordered promises no order.
    let either = [format!("[{full},{bare}]"), format!("[{bare},{full}]")];
    assert!(either.contains(&bodies(&requests)[0]), "{:?}", bodies(&requests));
    let mut hash = Sha256::new();
    for event in request.event_ids() {
        hash.update(delivery_of(&db, event).await.as_bytes());
    }
    let id: String = hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    let mut expected = common_headers(&receiver, request);
    expected.push(("webhook-id".to_owned(), format!("batch_{id}")));
    expected.push(("posthaste-batch-size".to_owned(), "2".to_owned()));
    expected.sort();
    assert_eq!(headers(request), expected);
}

#[tokio::test]
async fn a_batch_of_an_ordered_destination_keeps_the_order_of_the_statement() {
    let (_db, receiver, events) = deliver(5, &[("ordered", "true")]).await;
    let [full, bare] = events.standard();
    assert_eq!(bodies(&receiver.received()), [format!("[{full},{bare}]")]);
}

#[tokio::test]
async fn where_batches_are_wanted_a_single_event_is_a_batch_as_well() {
    let db = Db::new().await;
    let receiver = Receiver::start();
    let org = db.org().await;
    db.destination(org, receiver.url("/")).batch_size(2).insert().await;
    let posthaste = Posthaste::serve(&db.url).await;
    let event = db.event(org, "lonely", "{}").await;
    db.settled().await;
    let requests = receiver.received();
    let [request] = &requests[..] else { panic!("one request: {requests:?}") };
    assert!(request.json().is_array(), "{request:?}");
    assert_eq!((request.event_ids(), request.header("posthaste-batch-size")), (vec![event], Some("1")));
    check_invariants(&db, &[&receiver]).await;
    drop(posthaste);
}

#[tokio::test]
async fn the_flat_format_has_the_columns_in_one_object() {
    let (_db, receiver, events) = deliver(1, &[("payload_format", "flat")]).await;
    assert_eq!(bodies(&receiver.received()), sorted(events.flat()));
}

#[tokio::test]
async fn a_payload_arrives_as_postgresql_prints_it() {
    let db = Db::new().await;
    let receiver = Receiver::start();
    let org = db.org().await;
    db.destination(org, receiver.url("/")).insert().await;
    let posthaste = Posthaste::serve(&db.url).await;
    let long = "ab\\\"é漢".repeat(50_000);
    let payloads = [
        r#"{"n":123456789012345678901234567890.000000000000000000001,"m":-0.0,"e":1E400}"#.to_owned(),
        r#"{"zz":1,"a":2,"b":{"y":null,"x":[true,[],{}]},"a":3}"#.to_owned(),
        r#"{"\u00e9\ud83d\ude00":"\u2028\b\f\u001f/\/"}"#.to_owned(),
        r#"["</script>", 1.10, "\\u0000", ""]"#.to_owned(),
        "null".to_owned(),
        serde_json::json!({ "long": long }).to_string(),
    ];
    for payload in &payloads {
        db.event(org, "payload", payload).await;
    }
    db.settled().await;
    assert_eq!(db.deliveries("status = 'delivered'").await, payloads.len() as i64);
    for request in receiver.received() {
        // Not from the body: these numbers are too big for the JSON reader of the tests.
        let id = request.header("webhook-id").unwrap().to_owned();
        let printed =
            db.text(&format!("SELECT payload::text FROM activity_logs WHERE id = '{id}'")).await.unwrap();
        let body = String::from_utf8(request.body).unwrap();
        let (_, after) = body.split_once(r#","payload":"#).unwrap();
        let (payload, _) = after.rsplit_once(r#","created_at":"#).unwrap();
        assert!(payload == printed, "{:.200} arrived as {:.200}", printed, payload);
    }
    check_invariants(&db, &[]).await;
    drop(posthaste);
}

#[tokio::test]
async fn an_event_just_below_the_limit_arrives_and_one_above_it_is_dead_at_once() {
    const LIMIT: usize = 5 << 20;
    let db = Db::new().await;
    let receiver = Receiver::start();
    let org = db.org().await;
    db.destination(org, receiver.url("/")).timeout_ms(30_000).insert().await;
    let posthaste = Posthaste::serve(&db.url).await;
    let of = |bytes: usize| format!(r#"{{"x":"{}"}}"#, "y".repeat(bytes));
    let fits = db.event(org, "large", &of(LIMIT - 1_000)).await;
    let above = db.event(org, "large", &of(LIMIT)).await;
    let far_above = db.event(org, "large", &of(6 << 20)).await;
    let small = db.event(org, "small", "{}").await;
    db.settled().await;
    let mut arrived: Vec<Uuid> = receiver.accepted().into_keys().collect();
    arrived.sort();
    let mut expected = [fits, small];
    expected.sort();
    assert_eq!(arrived, expected);
    let large = receiver.received().into_iter().map(|request| request.body.len()).max().unwrap();
    assert!((LIMIT - 1_000..=LIMIT).contains(&large), "{large} bytes arrived");
    let dead = format!(
        "status = 'dead' AND attempts = 0 AND error_message LIKE '%larger than {LIMIT} bytes%'
         AND log_id IN ('{above}', '{far_above}')"
    );
    assert_eq!(db.deliveries(&dead).await, 2);
    check_invariants(&db, &[&receiver]).await;
    drop(posthaste);
}
