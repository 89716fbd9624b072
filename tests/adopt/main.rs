//! Adopting the tables of an application, as their owner who is no superuser.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod application;
mod drawn;
mod found;
mod schema;
mod twists;

use common::Db;
use posthaste::model::Secret;
use uuid::Uuid;

/// A new role that may log in; it stays with the server, unless somebody drops it.
async fn role(db: &Db, what: &str) -> String {
    let name = format!("{what}_{}", Uuid::new_v4().simple());
    db.execute(&format!("CREATE ROLE {name} LOGIN")).await;
    name
}

/// The database's URL for another role: the private server trusts whoever can reach its socket.
fn url_of(db: &Db, role: &str) -> Secret {
    let mut url = url::Url::parse(db.url.reveal()).unwrap();
    let pairs: Vec<(String, String)> =
        url.query_pairs().filter(|(name, _)| name != "user").map(|(k, v)| (k.into(), v.into())).collect();
    url.query_pairs_mut().clear().extend_pairs(pairs).append_pair("user", role);
    Secret::new(url.as_str())
}
