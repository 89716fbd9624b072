//! The query of a URL often holds a token: keys that may only read do not see it.

use posthaste::manage::destinations::{self, Disable, Query};
use posthaste::manage::patch::Patch;
use posthaste::manage::{Principal, deliveries, events};
use posthaste::model::{DeliveryId, DestinationId, EventId, OrgId};
use posthaste::store::Connection;
use serde::Serialize;
use serde_json::json;

use crate::common::{Db, assert_silent, check_invariants};
use crate::{Desk, OPERATOR, READER, WRITER, connection, good};

const SECRETS: [&str; 3] = ["hunter2hunter2", "hunter3hunter3", "hunter4hunter4"];

fn json_of(view: &impl Serialize) -> String {
    serde_json::to_string(view).unwrap()
}

/// Everything that is shown of a destination.
async fn of_destination(
    conn: &mut Connection,
    org: OrgId,
    principal: Principal,
    id: DestinationId,
) -> [String; 3] {
    let page = destinations::list(conn, org, principal, &Query::default()).await.unwrap();
    [
        json_of(&destinations::one(conn, org, principal, id).await.unwrap()),
        json_of(&page),
        json_of(&destinations::stats(conn, org, principal, id, None).await.unwrap()),
    ]
}

#[tokio::test]
async fn a_read_key_sees_where_a_destination_leads_without_the_query() {
    let db = Db::new().await;
    let org = OrgId(db.org().await);
    let desk = Desk::new();
    let mut conn = connection(&db).await;
    let [first, second, third] = SECRETS;
    let config = json!({"token_url": format!("https://login.example.com/token?tenant={second}"),
        "client_id": "a", "client_secret": "b"});
    let json = json!({"auth_type": "oauth2", "auth_config": config});
    let new = good(&format!("https://example.com/hook?token={first}"), json);
    let id = DestinationId(desk.create(&mut conn, org.0, &new).await.unwrap().destination.id);
    let reason = Patch::Value(format!("they moved to https://example.com/new?token={third}"));
    destinations::disable(&mut conn, org, OPERATOR, id, Disable { reason }).await.unwrap();

    for text in of_destination(&mut conn, org, READER, id).await {
        assert_silent("what a read key sees", &text, &SECRETS);
        assert!(text.contains("they moved to https://example.com/new?…"), "{text}");
    }
    let [one, list, _] = of_destination(&mut conn, org, READER, id).await;
    for text in [one, list] {
        assert!(text.contains(r#""url":"https://example.com/hook?…""#), "{text}");
        assert!(text.contains(r#""token_url":"https://login.example.com/token?…""#), "{text}");
    }
    for principal in [WRITER, OPERATOR] {
        let [one, list, stats] = of_destination(&mut conn, org, principal, id).await;
        assert!([&one, &list].iter().all(|text| SECRETS.iter().all(|secret| text.contains(secret))), "{one}");
        assert!(stats.contains(third), "{stats}");
    }
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn a_read_key_sees_no_query_that_an_error_or_an_answer_quotes() {
    let db = Db::new().await;
    let org = OrgId(db.org().await);
    db.destination(org.0, "https://example.com/").insert().await;
    let event = EventId(db.event(org.0, "a", r#"{"link": "https://example.com/?theirs"}"#).await);
    let [first, second, third] = SECRETS;
    db.execute(&format!(
        "UPDATE webhook_deliveries SET status = 'dead', error_message = 'no way to http://h/p?a={first}',
            response_body = '<p>Cannot POST /p?a={second}</p>'"
    ))
    .await;
    db.execute(&format!(
        "INSERT INTO posthaste_attempts
         SELECT id, 1, now(), 1, 404, 'POST /p?a={second}', 'http://h/p?a={third}', true
         FROM webhook_deliveries"
    ))
    .await;
    let id = DeliveryId(db.text("SELECT id FROM webhook_deliveries").await.unwrap().parse().unwrap());
    let mut conn = connection(&db).await;
    let shown = async |conn: &mut _, principal| {
        let list = deliveries::list(conn, org, &deliveries::Query::default()).await.unwrap();
        let one = deliveries::one(conn, org, id).await.unwrap().shown_to(principal);
        let event = events::one(conn, org, principal, event, 1 << 20).await.unwrap();
        [json_of(&list.map(|delivery| delivery.shown_to(principal))), json_of(&one), json_of(&event)]
    };
    let [list, one, detail] = shown(&mut conn, READER).await;
    for text in [&list, &one, &detail] {
        assert_silent("what a read key sees", text, &SECRETS);
        assert!(text.contains("no way to http://h/p?…"), "{text}");
    }
    assert!(one.contains("<p>Cannot POST /p?…</p>") && one.contains("POST /p?…\""), "{one}");
    assert!(detail.contains("https://example.com/?theirs"), "what an event holds is its own: {detail}");
    for principal in [WRITER, OPERATOR] {
        let [list, one, detail] = shown(&mut conn, principal).await;
        assert!([&list, &one, &detail].iter().all(|text| text.contains(first)), "{list}");
        assert!(one.contains(second) && one.contains(third), "{one}");
    }
    check_invariants(&db, &[]).await;
}
