//! The HTTP API, by the real program: who may do what, what is answered, and that the document says the same.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod access;
mod bodies;
mod deliveries;
mod destinations;
mod document;

use common::{Db, Posthaste, request};
use serde_json::Value;
use uuid::Uuid;

/// The admin's token in these tests.
const ADMIN: &str = "the-token-of-the-admin";

/// What was answered.
#[derive(Debug)]
struct Answer {
    status: u16,
    /// In lower case.
    head: String,
    /// Null where there is none.
    body: Value,
}

impl Answer {
    /// A header of it.
    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(header, _)| *header == name).map(|(_, value)| value)
    }

    /// Fails unless this is a problem document of this status.
    #[track_caller]
    fn is_problem(&self, status: u16) -> &Answer {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        assert_eq!((&self.body["status"], &self.body["type"]), (&status.into(), &"about:blank".into()));
        assert!(self.body["detail"].as_str().is_some_and(|detail| detail.len() > 10), "{self:?}");
        self
    }

    /// Fails unless it names these fields, and no others, as wrong.
    #[track_caller]
    fn names(&self, fields: &[&str]) {
        let errors = self.is_problem(400).body["errors"].as_array().unwrap();
        let told: Vec<&str> = errors.iter().map(|error| error["field"].as_str().unwrap()).collect();
        assert_eq!(told, fields, "{self:?}");
    }

    /// The body of a success of this status.
    #[track_caller]
    fn success(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        self.body
    }
}

/// The program, and how to ask it.
struct Api {
    posthaste: Posthaste,
}

impl Api {
    /// On a database, with an admin token.
    async fn on(db: &Db) -> Api {
        Api::with(db, &[("POSTHASTE_ADMIN_TOKEN", ADMIN)]).await
    }

    async fn with(db: &Db, environment: &[(&str, &str)]) -> Api {
        Api { posthaste: Posthaste::serve_with(&db.url, environment).await }
    }

    /// Asks with a token; a body that is a JSON text is sent as it is.
    async fn ask(&self, token: &str, method: &str, path: &str, body: &str) -> Answer {
        let bearer = format!("Bearer {token}");
        let mut headers = vec![("authorization", bearer.as_str())];
        if !body.is_empty() {
            headers.push(("content-type", "application/json"));
        }
        self.send(method, path, &headers, body.as_bytes()).await
    }

    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let address = self.posthaste.address().unwrap();
        let (status, head, body) = request(address, method, path, headers, body).await.unwrap();
        let body = if body.is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&body).unwrap_or_else(|_| Value::String(body.clone()))
        };
        Answer { status, head, body }
    }

    /// The admin asks about something of an organization.
    async fn admin(&self, method: &str, org: Uuid, path: &str, body: &Value) -> Answer {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.ask(ADMIN, method, &format!("/api/v1/orgs/{org}{path}"), &body).await
    }

    async fn get(&self, org: Uuid, path: &str) -> Answer {
        self.admin("GET", org, path, &Value::Null).await
    }

    async fn post(&self, org: Uuid, path: &str, body: &Value) -> Answer {
        self.admin("POST", org, path, body).await
    }

    /// The OpenAPI document.
    async fn document(&self) -> Value {
        self.send("GET", "/api/openapi.json", &[], b"").await.success(200)
    }

    /// A new key, made by the admin.
    async fn key(&self, org: Uuid, role: &str) -> String {
        let body = serde_json::json!({"org_id": org, "name": "a key", "role": role}).to_string();
        let made = self.ask(ADMIN, "POST", "/api/v1/keys", &body).await.success(201);
        made["key"].as_str().unwrap().to_owned()
    }
}
