//! Inputs as they come from elsewhere: other shells, other editors, other clients, other servers. By the real
//! program.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod bodies;
mod bridge;
mod dates;
mod kept;
mod log;
mod names;
mod options;
mod output;
mod paths;
mod plans;
mod setups;
mod signals;
mod stored;
mod terminal;

use common::{Db, Posthaste, eventually, request};
use serde_json::{Value, json};
use uuid::Uuid;

/// The admin's token in these tests.
const ADMIN: &str = "the-token-of-the-admin";

/// The program with its API.
struct Api(Posthaste);

impl Api {
    async fn on(db: &Db) -> Api {
        Api(Posthaste::serve_with(&db.url, &[("POSTHASTE_ADMIN_TOKEN", ADMIN)]).await)
    }

    /// The admin asks about something of an organization.
    async fn ask(&self, method: &str, org: Uuid, path: &str, body: Value) -> (u16, Value) {
        let bearer = format!("Bearer {ADMIN}");
        let mut headers = vec![("authorization", bearer.as_str())];
        let body = if body.is_null() { String::new() } else { body.to_string() };
        if !body.is_empty() {
            headers.push(("content-type", "application/json"));
        }
        let path = format!("/api/v1/orgs/{org}{path}");
        let address = self.0.address().unwrap();
        let (status, _, answer) = request(address, method, &path, &headers, body.as_bytes()).await.unwrap();
        (status, serde_json::from_str(&answer).unwrap_or(Value::String(answer)))
    }

    async fn get(&self, org: Uuid, path: &str) -> (u16, Value) {
        self.ask("GET", org, path, Value::Null).await
    }

    /// Begins a job, and waits for its end; the job as it is then.
    async fn job(&self, org: Uuid, path: &str, body: Value) -> Value {
        let (status, job) = self.ask("POST", org, path, body).await;
        assert_eq!(status, 202, "{job}");
        let path = format!("/jobs/{}", job["id"].as_str().unwrap());
        let mut seen = json!(null);
        eventually("the job is done", async || {
            seen = self.get(org, &path).await.1;
            seen["state"] == "done"
        })
        .await;
        seen
    }
}
