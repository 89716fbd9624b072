//! Secrets: encrypted in the database, missing everywhere else.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod at_rest;
mod commands;
mod leaks;

use common::{Db, run};
use posthaste::model::Secret;
use serde_json::Value;
use uuid::Uuid;

/// Keys and their ids: `printf '\1%.0s' $(seq 32) | sha256sum` and so on.
const KEY: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
const KEY_ID: &str = "72cd6e84";
const OTHER_KEY: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";
const OTHER_ID: &str = "75877bb4";

/// What a run of the program came to.
struct Done {
    code: i32,
    /// Standard output and standard error.
    said: String,
}

impl Done {
    /// What `--json` printed.
    fn json(&self) -> Value {
        serde_json::from_str(&self.said).unwrap_or_else(|error| panic!("{error}: {}", self.said))
    }
}

/// Runs `posthaste` with these keys.
fn posthaste(arguments: &[&str], url: &Secret, keys: &str) -> Done {
    let environment = [("DATABASE_URL", url.reveal()), ("POSTHASTE_SECRET_KEY", keys)];
    let output = run(arguments, &environment);
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    Done { code: output.status.code().unwrap(), said }
}

/// Encrypts everything under the first of `keys`.
fn encrypt(db: &Db, keys: &str) {
    let done = posthaste(&["secrets", "encrypt"], &db.url, keys);
    assert_eq!(done.code, 0, "{}", done.said);
}

/// A column of a destination, as it is stored.
async fn signing_secret(db: &Db, destination: Uuid) -> String {
    let sql = format!("SELECT signing_secret FROM webhook_destinations WHERE id = '{destination}'");
    db.text(&sql).await.unwrap()
}
