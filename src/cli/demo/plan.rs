//! Who takes part in the demo, and which events each of them should get: computed here a second time,
//! independently of the trigger that decides it in the database.

use uuid::Uuid;

use crate::model::{EventId, OrgId, Secret};
use crate::store::demo::{NewDestination, NewEvent};

/// How the receiver of a destination behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Answers at once.
    Healthy,
    /// Answers after a while, always.
    Slow,
    /// Answers every third request with 500, until it heals.
    Flaky,
    /// Answers nothing, until it heals.
    Hanging,
}

/// A destination of the demo.
#[derive(Clone, Debug)]
pub struct Participant {
    /// Index into [`ORGANIZATIONS`].
    pub org: usize,
    /// Its name for people; also the last part of its URL.
    pub name: &'static str,
    /// What its receiver does.
    pub manner: Manner,
    /// Event types it subscribes to; empty: all.
    pub event_types: &'static [&'static str],
    /// What the payload's `severity` must be, if it matters.
    pub severity: Option<&'static str>,
    /// Events per request.
    pub batch_size: i32,
    /// Signs its requests.
    pub secret: Secret,
}

/// The tenants.
pub const ORGANIZATIONS: [&str; 3] = ["Acme", "Globex", "Initech"];

const EVENT_TYPES: [&str; 4] = ["tool_call", "session.started", "file.read", "session.ended"];
const SEVERITIES: [&str; 3] = ["low", "medium", "high"];

/// A request to the hanging receiver holds a slot for this long.
const TIMEOUT_MS: i32 = 2000;
/// The most that the table allows: nothing may die of bad luck.
const RETRY_MAX: i32 = 10;
const RETRY_BACKOFF_MS: i32 = 100;

/// All destinations of the demo, with fresh secrets.
pub fn participants() -> Vec<Participant> {
    let participant = |org, name, manner, batch_size| Participant {
        org,
        name,
        manner,
        event_types: &[],
        severity: None,
        batch_size,
        secret: fresh_secret(),
    };
    let plain = |org, name, manner| participant(org, name, manner, 1);
    vec![
        plain(0, "audit", Manner::Healthy),
        participant(0, "archive (batches)", Manner::Healthy, 50),
        Participant {
            event_types: &["tool_call", "session.*"],
            ..plain(0, "sessions (types)", Manner::Healthy)
        },
        Participant { severity: Some("high"), ..plain(0, "alerts (filter)", Manner::Healthy) },
        plain(1, "audit", Manner::Healthy),
        plain(1, "slow", Manner::Slow),
        plain(1, "flaky", Manner::Flaky),
        plain(2, "audit", Manner::Healthy),
        plain(2, "hanging", Manner::Hanging),
    ]
}

/// A secret as the Standard Webhooks want it: 32 random bytes.
fn fresh_secret() -> Secret {
    use base64::Engine;
    let bytes = [Uuid::new_v4().into_bytes(), Uuid::new_v4().into_bytes()].concat();
    Secret::new(format!("whsec_{}", base64::engine::general_purpose::STANDARD.encode(bytes)))
}

impl Participant {
    /// As a row of `webhook_destinations`.
    pub fn row(&self, org: OrgId, url: String) -> NewDestination {
        let filter = self.severity.map_or("{}".into(), |severity| format!(r#"{{"severity":"{severity}"}}"#));
        NewDestination {
            org,
            name: self.name.into(),
            url,
            event_types: self.event_types.iter().map(|pattern| (*pattern).into()).collect(),
            event_filter: filter,
            batch_size: self.batch_size,
            timeout_ms: TIMEOUT_MS,
            retry_max: RETRY_MAX,
            retry_backoff_ms: RETRY_BACKOFF_MS,
            signing_secret: self.secret.clone(),
        }
    }

    /// Whether the event number `n` should arrive here.
    pub fn wants(&self, n: usize) -> bool {
        let event_type = event_type(n);
        let type_matches = |pattern: &&str| match pattern.strip_suffix('*') {
            Some(start) => event_type.starts_with(start),
            None => event_type == *pattern,
        };
        n % ORGANIZATIONS.len() == self.org
            && (self.event_types.is_empty() || self.event_types.iter().any(type_matches))
            && self.severity.is_none_or(|wanted| severity(n) == wanted)
    }
}

/// The event number `n`. The tenants take turns; what happens changes from turn to turn.
pub fn event(n: usize, organizations: &[OrgId]) -> NewEvent {
    let (event_type, severity) = (event_type(n), severity(n));
    NewEvent {
        id: EventId(Uuid::new_v4()),
        org: organizations[n % organizations.len()],
        event_type,
        content: format!("{event_type} no. {n}"),
        payload: format!(r#"{{"number":{n},"severity":"{severity}","amount":{}.50}}"#, n * 7 % 1000),
    }
}

fn event_type(n: usize) -> &'static str {
    EVENT_TYPES[n / ORGANIZATIONS.len() % EVENT_TYPES.len()]
}

fn severity(n: usize) -> &'static str {
    SEVERITIES[n / ORGANIZATIONS.len() % SEVERITIES.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_participant_gets_some_events_and_the_filtered_ones_not_all() {
        for participant in participants() {
            let of_org = (0..600).filter(|n| n % ORGANIZATIONS.len() == participant.org).count();
            let wanted = (0..600).filter(|n| participant.wants(*n)).count();
            let filtered = !participant.event_types.is_empty() || participant.severity.is_some();
            assert!(wanted > 0, "{}", participant.name);
            assert_eq!(wanted < of_org, filtered, "{}", participant.name);
        }
    }
}
