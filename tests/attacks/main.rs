//! Attacks: by a login of the database, by a tenant, by a receiver, by anybody. Each stands for its kind.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod functions;
mod listener;
mod locks;
mod memory;
mod paths;
mod sizes;
mod surroundings;
mod tokens;
mod turns;

use common::{Db, Posthaste, request};
use serde_json::Value;
use uuid::Uuid;

/// The admin's token in these tests.
const ADMIN: &str = "the-token-of-the-admin";

/// Asks the program's API with a token; status and body.
async fn ask(posthaste: &Posthaste, token: &str, method: &str, path: &str, body: &str) -> (u16, Value) {
    let bearer = format!("Bearer {token}");
    let mut headers = vec![("authorization", bearer.as_str())];
    if !body.is_empty() {
        headers.push(("content-type", "application/json"));
    }
    let address = posthaste.address().unwrap();
    let (status, _, body) = request(address, method, path, &headers, body.as_bytes()).await.unwrap();
    (status, serde_json::from_str(&body).unwrap_or(Value::Null))
}

/// A new key of an organization.
async fn key(posthaste: &Posthaste, org: Uuid, role: &str) -> String {
    let body = serde_json::json!({"org_id": org, "name": "a key", "role": role}).to_string();
    let (status, made) = ask(posthaste, ADMIN, "POST", "/api/v1/keys", &body).await;
    assert_eq!(status, 201, "{made}");
    made["key"].as_str().unwrap().to_owned()
}

/// The program on `db`, with an admin token.
async fn serve(db: &Db) -> Posthaste {
    Posthaste::serve_with(&db.url, &[("POSTHASTE_ADMIN_TOKEN", ADMIN)]).await
}
