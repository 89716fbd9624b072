//! Destinations and keys, as people manage them: what is refused, what is shown and what is not, what a test
//! sends, what enabling offers. Against the functions that the API and the shell share, and by the shell.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod changing;
mod commands;
mod events;
mod keys;
mod origins;
mod queries;
mod refused;
mod secrets;
mod switching;
mod testing;
mod why;

use std::sync::Arc;

use common::Db;
use posthaste::actors::jobs::{FAST, Worker};
use posthaste::manage::destinations::{self, Changes, CreatedView, Setup, UpdatedView, View};
use posthaste::manage::keys::Role;
use posthaste::manage::{Fault, Principal, input};
use posthaste::model::{DestinationId, JobId, OrgId, Secret};
use posthaste::outbound::Network;
use posthaste::policy::egress::Rules;
use posthaste::policy::keyring::KeyRing;
use posthaste::store::jobs::{Kind, State};
use posthaste::store::{self, Connection};
use serde_json::{Value, json};
use uuid::Uuid;

const OPERATOR: Principal = Principal::Operator;
const READER: Principal = Principal::Key(Role::Read);
const WRITER: Principal = Principal::Key(Role::Write);

/// Destinations that keys may create in these tests.
const MAX_DESTINATIONS: u32 = 3;

/// A key of secrets.
const KEY: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";

/// A connection as the program uses it for what people ask.
async fn connection(db: &Db) -> Connection {
    store::connect(&store::indexed(store::options(&db.url).unwrap())).await.unwrap()
}

/// What destinations are checked against.
struct Desk {
    keys: KeyRing,
    network: Arc<Network>,
}

impl Desk {
    /// On loopback, without a key.
    fn new() -> Desk {
        Desk::with("", loopback())
    }

    fn with(keys: &str, rules: Rules) -> Desk {
        let network = Arc::new(Network::new(rules, None).unwrap());
        Desk { keys: KeyRing::parse(&Secret::new(keys)).unwrap(), network }
    }

    fn setup(&self) -> Setup<'_> {
        Setup { keys: &self.keys, network: &self.network, max_destinations: MAX_DESTINATIONS }
    }

    async fn create(&self, conn: &mut Connection, org: Uuid, json: &Value) -> Result<CreatedView, Fault> {
        destinations::create(conn, OrgId(org), OPERATOR, changes(json), self.setup()).await
    }

    async fn update(
        &self,
        conn: &mut Connection,
        org: OrgId,
        id: DestinationId,
        json: &Value,
    ) -> Result<View, Fault> {
        self.update_as(OPERATOR, conn, org, id, json).await.map(|updated| updated.destination)
    }

    async fn update_as(
        &self,
        principal: Principal,
        conn: &mut Connection,
        org: OrgId,
        id: DestinationId,
        json: &Value,
    ) -> Result<UpdatedView, Fault> {
        destinations::update(conn, org, principal, id, changes(json), None, self.setup()).await
    }
}

/// Rules that let requests go to this machine.
fn loopback() -> Rules {
    Rules { allow: vec!["127.0.0.0/8".parse().unwrap()], ..Rules::default() }
}

/// What a document says.
fn changes(json: &Value) -> Changes {
    input::read_object(json.to_string().as_bytes()).unwrap()
}

/// `json` over a destination that can be created.
fn good(url: &str, json: Value) -> Value {
    let mut whole = json!({"name": "a destination", "url": url});
    whole.as_object_mut().unwrap().extend(json.as_object().unwrap().clone());
    whole
}

/// The fields that a fault names, and its text.
fn fields(fault: Fault) -> (Vec<String>, String) {
    let text = fault.to_string();
    let Fault::Invalid(faults) = fault else { panic!("{text}") };
    (faults.into_iter().map(|fault| fault.field).collect(), text)
}

/// Works on a job to its end.
async fn finish(conn: &mut Connection, id: Uuid) {
    let mut worker = Worker::new(FAST);
    loop {
        match worker.batch(conn, JobId(id), Kind::Backfill).await.unwrap() {
            (Some(State::Running) | None, pause) => tokio::time::sleep(pause).await,
            _ => return,
        }
    }
}
