//! Keys of the API.

use std::time::{Duration, Instant};

use posthaste::manage::keys::{self, CreatedView, New, Query, Role, Uses};
use posthaste::manage::{Fault, input};
use posthaste::model::{KeyId, OrgId};
use posthaste::store::Connection;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::common::{Db, assert_silent, check_invariants};
use crate::{connection, fields};

async fn create(conn: &mut Connection, json: Value) -> Result<CreatedView, Fault> {
    let new: New = input::read_object(json.to_string().as_bytes()).unwrap();
    keys::create(conn, new).await
}

#[tokio::test]
async fn a_key_is_shown_once_names_its_organization_and_role_and_is_of_no_use_once_revoked() {
    let db = Db::new().await;
    let (org, other) = (db.org().await, db.org().await);
    let mut conn = connection(&db).await;
    assert!(!any_exists(&mut conn).await);
    let mut made = Vec::new();
    for (org, role) in [(org, "read"), (other, "write")] {
        let created = create(&mut conn, json!({"org_id": org, "name": "a key", "role": role})).await.unwrap();
        let key = created.key.0.reveal().to_owned();
        assert!(key.starts_with(&format!("{}_", created.view.prefix)) && key.len() == 56, "{key}");
        assert_silent("Debug", &format!("{created:?}"), &[&key]);
        let caller = keys::authenticate(&mut conn, &key).await.unwrap().unwrap();
        assert_eq!((caller.org, caller.role.name(), caller.key.0), (OrgId(org), role, created.view.id));
        made.push((created.view, key));
    }
    assert!(any_exists(&mut conn).await);
    let (view, key) = &made[0];
    // Nothing of it is stored, and nothing that looks like it is taken for it.
    let stored = db.text("SELECT string_agg(k::text, ' ') FROM posthaste_api_keys k").await.unwrap();
    assert_silent("the table", &stored, &[key, &key[13..]]);
    let (first, rest) = key.split_at(key.len() - 1);
    let other_end = if rest == "A" { "B" } else { "A" };
    let foreign = format!("{}{}", &key[..13], &made[1].1[13..]);
    let wrong = [first, &format!("{key}A"), &format!("{first}{other_end}"), &foreign, "", "phk_", "x"];
    for text in wrong {
        assert_eq!(keys::authenticate(&mut conn, text).await.unwrap(), None, "{text}");
    }
    let all = keys::list(&mut conn, &Query::default()).await.unwrap();
    let ids: Vec<Uuid> = all.items.iter().map(|view| view.id).collect();
    assert_eq!(ids, [made[1].0.id, view.id], "the newest first");
    assert_silent("the list", &serde_json::to_string(&all).unwrap(), &[key, &made[1].1]);
    let of_org = Query { org_id: Some(org.to_string()), ..Query::default() };
    assert_eq!(keys::list(&mut conn, &of_org).await.unwrap().items.len(), 1);

    let id = KeyId(view.id);
    let foreign = keys::revoke(&mut conn, Some(OrgId(other)), id).await;
    assert!(matches!(foreign, Err(Fault::NotFound(_))));
    assert!(keys::authenticate(&mut conn, key).await.unwrap().is_some());
    let revoked = keys::revoke(&mut conn, None, id).await.unwrap();
    assert!(revoked.revoked_at.is_some());
    assert_eq!(keys::authenticate(&mut conn, key).await.unwrap(), None);
    let again = keys::revoke(&mut conn, Some(OrgId(org)), id).await.unwrap();
    assert_eq!(again.revoked_at, revoked.revoked_at);
    assert!(any_exists(&mut conn).await, "there is the other one");
    keys::revoke(&mut conn, None, KeyId(made[1].0.id)).await.unwrap();
    assert!(!any_exists(&mut conn).await);
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn bad_keys_are_refused_with_all_their_faults() {
    let db = Db::new().await;
    let org = db.org().await;
    let mut conn = connection(&db).await;
    for (json, expected) in [
        (json!({}), vec!["org_id", "name", "role"]),
        (json!({"org_id": "x", "name": "", "role": "admin"}), vec!["org_id", "role", "name"]),
        (json!({"org_id": 1, "name": 2, "role": null}), vec!["org_id", "name", "role"]),
        (json!({"org_id": org, "name": "x".repeat(101), "role": "read"}), vec!["name"]),
        (json!({"org_id": org, "name": "a\0", "role": "read"}), vec!["name"]),
    ] {
        let (found, text) = fields(create(&mut conn, json.clone()).await.unwrap_err());
        assert_eq!(found, expected, "{json}: {text}");
    }
    let nobody = create(&mut conn, json!({"org_id": Uuid::new_v4(), "name": "a", "role": "read"})).await;
    assert!(matches!(nobody, Err(Fault::NotFound(_))));
    assert_eq!(db.number("SELECT count(*) FROM posthaste_api_keys").await, 0);
    let query = Query { org_id: Some("x".into()), limit: Some("0".into()), cursor: Some("?".into()) };
    let refused = keys::list(&mut conn, &query).await.unwrap_err();
    assert_eq!(fields(refused).0, ["org_id", "limit", "cursor"]);
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn the_last_use_is_written_once_a_minute_at_most() {
    let db = Db::new().await;
    let org = db.org().await;
    let mut conn = connection(&db).await;
    let mut made = Vec::new();
    for name in ["a", "b"] {
        let created = create(&mut conn, json!({"org_id": org, "name": name, "role": "read"})).await.unwrap();
        made.push(keys::authenticate(&mut conn, created.key.0.reveal()).await.unwrap().unwrap());
    }
    assert_eq!(made[0].role, Role::Read);
    let used = "SELECT count(*) FROM posthaste_api_keys WHERE last_used_at IS NOT NULL";
    assert_eq!(db.number(used).await, 0, "nobody is kept waiting for it");
    let (uses, start) = (Uses::default(), Instant::now());
    let at = |seconds| start + Duration::from_secs(seconds);
    let news = [(0, at(0)), (0, at(59)), (1, at(59)), (0, at(60)), (0, at(61)), (1, at(118)), (1, at(119))];
    let news = news.map(|(key, at): (usize, Instant)| uses.is_news(made[key].key, at));
    assert_eq!(news, [true, false, true, true, false, false, true]);
    keys::used(&mut conn, made[1].key).await.unwrap();
    let written = keys::list(&mut conn, &Query::default()).await.unwrap();
    let written: Vec<bool> = written.items.iter().map(|view| view.last_used_at.is_some()).collect();
    assert_eq!(written, [true, false], "the newest first");
    check_invariants(&db, &[]).await;
}

/// Whether there is a key that can be used.
async fn any_exists(db: &mut posthaste::store::Connection) -> bool {
    !posthaste::store::keys::usable(db, posthaste::model::DbTime(i64::MIN)).await.unwrap().is_empty()
}
