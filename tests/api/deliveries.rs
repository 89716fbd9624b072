//! Events, their deliveries, retries, replays and backfills, by the API.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::common::{Db, Receiver, Reply, check_invariants, eventually};
use crate::{ADMIN, Api};

#[tokio::test]
async fn an_event_that_is_sent_is_delivered_and_everything_about_it_is_shown() {
    let db = Db::new().await;
    let org = db.org().await;
    let receiver = Receiver::start();
    let destination = db.destination(org, receiver.url("/")).insert().await;
    let api = Api::on(&db).await;
    let id = Uuid::new_v4();
    let event = json!({"id": id, "event_type": "invoice.paid", "payload": {"amount": 1}});
    let sent = api.post(org, "/events", &event).await.success(201);
    assert_eq!(sent["items"][0]["id"], id.to_string());
    assert_eq!(api.post(org, "/events", &event).await.success(201), sent, "the same again, the same answer");
    let other = json!({"id": id, "event_type": "invoice.void"});
    api.post(org, "/events", &other).await.is_problem(409);
    db.settled().await;

    let shown = api.get(org, &format!("/events/{id}")).await.success(200);
    assert_eq!((&shown["payload"], &shown["event_category"]), (&json!({"amount": 1}), &json!("api")));
    let delivery = shown["deliveries"][0]["id"].as_str().unwrap().to_owned();
    let listed =
        api.get(org, "/deliveries?status=delivered&event_type=invoice.paid&limit=1").await.success(200);
    assert_eq!((&listed["items"][0]["id"], &listed["next_cursor"]), (&json!(delivery), &Value::Null));
    assert_eq!(listed["items"][0]["destination_id"], destination.to_string());
    let path = format!("/deliveries/{delivery}");
    let one = api.get(org, &path).await;
    assert_eq!(one.header("cache-control"), Some("no-store"));
    assert_eq!(one.success(200)["failed_attempts"], json!([]));
    assert_eq!(api.get(org, &format!("{path}/attempts")).await.success(200)["items"], json!([]));
    let retried = api.post(org, &format!("{path}/retry"), &Value::Null).await.success(200);
    assert_eq!(retried["id"], json!(delivery));
    eventually("the receiver has it twice", async || receiver.count() == 2).await;
    db.settled().await;
    let both = api.post(org, "/deliveries/retry", &json!({"ids": [delivery]})).await.success(200);
    assert_eq!(both, json!({"queued": [delivery], "in_flight": []}));
    let unknown = api.post(org, "/deliveries/retry", &json!({"ids": [delivery, Uuid::nil()]})).await;
    assert!(unknown.is_problem(404).body["detail"].as_str().unwrap().contains(&Uuid::nil().to_string()));
    db.settled().await;
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn pages_follow_each_other_while_rows_arrive() {
    let db = Db::new().await;
    let org = db.org().await;
    let first = db.events(org, 7).await;
    let api = Api::on(&db).await;
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = api.get(org, &format!("/events?limit=3{cursor}")).await.success(200);
        let items = page["items"].as_array().unwrap();
        seen.extend(items.iter().map(|item| item["id"].as_str().unwrap().parse::<Uuid>().unwrap()));
        db.events(org, 2).await;
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    seen.sort();
    let mut expected = first;
    expected.sort();
    assert_eq!(seen, expected, "each once, and none that came later");
}

#[tokio::test]
async fn what_failed_is_shown_with_its_attempts_and_replayed() {
    let db = Db::new().await;
    let org = db.org().await;
    let receiver = Receiver::start();
    receiver.reply(Reply::Status(422));
    let destination = db.destination(org, receiver.url("/")).retry(1, 100).insert().await;
    let api = Api::on(&db).await;
    db.events(org, 3).await;
    db.settled().await;
    let dead = api.get(org, "/deliveries?status=dead").await.success(200);
    assert_eq!(dead["items"].as_array().unwrap().len(), 3);
    let path = format!("/deliveries/{}/attempts", dead["items"][0]["id"].as_str().unwrap());
    let attempts = api.get(org, &path).await.success(200);
    let attempts: Vec<(&Value, &Value)> = attempts["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (&one["attempt"], &one["response_status"]))
        .collect();
    assert_eq!(attempts, [(&json!(1), &json!(422)), (&json!(2), &json!(422))]);

    receiver.reply(Reply::Status(200));
    let replay = format!("/destinations/{destination}/replay");
    let counted = api.post(org, &replay, &json!({"dry_run": true})).await.success(200);
    assert_eq!(counted, json!({"count": 3, "complete": true}));
    let job = api.post(org, &replay, &json!({"from": "2026-01-01"})).await.success(202);
    let path = format!("/jobs/{}", job["id"].as_str().unwrap());
    eventually("the job is done", async || api.get(org, &path).await.success(200)["state"] == "done").await;
    db.settled().await;
    assert_eq!(db.deliveries("status = 'delivered'").await, 3);
    api.post(org, &format!("{path}/cancel"), &Value::Null).await.is_problem(409);
    assert_eq!(api.get(org, "/jobs").await.success(200)["items"].as_array().unwrap().len(), 1);

    db.execute("DELETE FROM webhook_deliveries").await;
    let backfill = format!("/destinations/{destination}/backfill");
    let asked = json!({"from": "2026-01-01", "dry_run": true});
    assert_eq!(api.post(org, &backfill, &asked).await.success(200), json!({"count": 3, "complete": true}));
    api.post(org, &backfill, &json!({"from": "2026-01-01"})).await.success(202);
    eventually("they are delivered again", async || db.deliveries("status = 'delivered'").await == 3).await;
    for what in ["replay", "backfill"] {
        let nobody_s = format!("/api/v1/orgs/{org}/destinations/{}/{what}", Uuid::nil());
        api.ask(ADMIN, "POST", &nobody_s, r#"{"from": "2026-01-01"}"#).await.is_problem(404);
    }
    check_invariants(&db, &[&receiver]).await;
}
