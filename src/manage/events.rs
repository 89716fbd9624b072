//! Events: posted by those who do not write SQL, listed, one with its deliveries.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::input::{Faults, MAX_EVENT_TYPE, Time, has_nul, read_array, read_object, shown};
use super::{Fault, FieldFault, List, Principal, deliveries, why};
use crate::format::Format;
use crate::model::{DbTime, Event, EventId, OPERATIONAL_CATEGORY, OrgId};
use crate::store::deliveries::standing::{self, Unqueued};
use crate::store::events::{self, Filter, NewEvent, Posted, Refusal};
use crate::store::{Connection, StoreError, deliveries as store_deliveries};

/// Events of one request.
pub const MAX_EVENTS: usize = 1_000;
/// The category of events that name none.
pub use crate::store::events::DEFAULT_CATEGORY;
/// As long as every time on the wire.
const A_TIME: &str = "2026-01-31T12:00:00.000000Z";
/// What is said about an employee of another organization as well, whom nobody else is told of.
const UNKNOWN_EMPLOYEE: &str = "the organization has no such employee";
/// Ids that one conflict names.
const MAX_NAMED: usize = 10;
/// Characters of a category, a client's name and its version, as their columns have them.
const MAX_CATEGORY: usize = 50;
const MAX_CLIENT_NAME: usize = 100;
const MAX_CLIENT_VERSION: usize = 50;

/// An event as it was sent.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewEvent, example = json!({"event_type": "invoice.paid", "content": "Invoice 17 was paid",
    "payload": {"invoice": 17, "amount": "99.50"}}))]
pub struct Sent {
    /// Whoever repeats a request with the same id gets the same answer, and nothing is written twice.
    pub id: Option<Uuid>,
    /// What happened, such as `invoice.paid`.
    #[schema(min_length = 1, max_length = 100, example = "invoice.paid")]
    pub event_type: String,
    /// The kind of thing that happened.
    #[schema(min_length = 1, max_length = 50)]
    pub event_category: Option<String>,
    /// A sentence for people.
    pub content: Option<String>,
    /// Any JSON; it reaches receivers as it is.
    #[schema(value_type = Option<serde_json::Value>)]
    pub payload: Option<Box<RawValue>>,
    /// Who did it: an employee of the organization.
    pub employee_id: Option<Uuid>,
    /// In which session.
    pub session_id: Option<Uuid>,
    /// With which client.
    #[schema(max_length = 100)]
    pub client_name: Option<String>,
    /// And which version of it.
    #[schema(max_length = 50)]
    pub client_version: Option<String>,
}

/// That an event is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Receipt {
    /// Its id.
    pub id: Uuid,
    /// When it was written, for the first time.
    #[schema(format = DateTime)]
    pub created_at: String,
}

/// Reads events: a JSON object, or an array of them.
///
/// # Errors
/// [`Fault::Invalid`] says where it is wrong.
pub fn read(json: &[u8]) -> Result<Vec<Sent>, Fault> {
    let is_array = json.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[');
    if !is_array {
        return Ok(vec![read_object(json)?]);
    }
    read_array(json).map_err(|fault| match fault {
        Fault::Invalid(mut faults) => {
            faults.iter_mut().filter(|fault| fault.field.starts_with('[')).for_each(|fault| {
                fault.field.insert_str(0, "events");
            });
            Fault::Invalid(faults)
        }
        other => other,
    })
}

/// Writes `sent` for `org`: all of them, in this order, or none. Events larger than `max_bytes` of JSON, as
/// PostgreSQL prints it, would be dead at once.
///
/// # Errors
/// [`Fault::Invalid`]; [`Fault::Conflict`] where an id belongs to another event, of whatever organization;
/// [`Fault::NotFound`] where there is no such organization; [`Fault::Store`].
pub async fn send(
    db: &mut Connection,
    org: OrgId,
    sent: Vec<Sent>,
    max_bytes: usize,
) -> Result<Vec<Receipt>, Fault> {
    let many = sent.len() > 1;
    let events = check(org, sent, max_bytes)?;
    match events::insert(db, org, &events).await {
        Ok(Posted::Stored(stored)) => {
            let receipt = |(id, at): (EventId, DbTime)| Receipt { id: id.0, created_at: at.iso() };
            Ok(stored.into_iter().map(receipt).collect())
        }
        Ok(Posted::Refused(refusals)) => Err(cannot_be_written(&events, &refusals, max_bytes)),
        Ok(Posted::NoColumn(column)) => Err(invalid(column, "this application's events have no such column")),
        Err(error) if error.is_about_data() || error.is_about_depth() => Err(refused(org, error, many)),
        Err(error) => Err(error.into()),
    }
}

/// Why these events cannot be written. What is wrong with a field is told first.
fn cannot_be_written(events: &[NewEvent], refusals: &[(usize, Refusal)], max_bytes: usize) -> Fault {
    let field = |at: usize, name: &str| place(events.len() > 1, at, name);
    let too_large = format!(
        "the event has more than {max_bytes} bytes of JSON, as PostgreSQL prints it \
         (POSTHASTE_MAX_EVENT_BYTES)"
    );
    let (mut faults, mut taken) = (Vec::new(), Vec::new());
    for (at, refusal) in refusals {
        let (name, detail) = match refusal {
            Refusal::TooLarge => ("payload", too_large.as_str()),
            Refusal::UnknownEmployee => ("employee_id", UNKNOWN_EMPLOYEE),
            Refusal::IdTaken => {
                taken.push(events[*at].id.to_string());
                continue;
            }
        };
        faults.push(FieldFault { field: field(*at, name), detail: detail.to_owned() });
    }
    if !faults.is_empty() {
        return Fault::Invalid(faults);
    }
    taken.truncate(MAX_NAMED);
    // The same whoever has used the id, and for what.
    Fault::Conflict(format!(
        "{} cannot be used as the id of such an event: send what was sent with it before, or use another id",
        taken.join(", ")
    ))
}

/// How the field of an event of a request is called.
fn place(many: bool, at: usize, field: &str) -> String {
    if many { format!("events[{at}].{field}") } else { field.to_owned() }
}

/// What PostgreSQL has against the values.
fn refused(org: OrgId, error: StoreError, many: bool) -> Fault {
    match error.constraint() {
        Some(name) if name.contains("org_id") => Fault::NotFound(format!("organization {org}")),
        Some(name) if name.contains("employee") => invalid("employee_id", UNKNOWN_EMPLOYEE),
        Some(_) => invalid("event", &error.to_string()),
        None if many => invalid("payload", &format!("of one of the events: {error}")),
        None => invalid("payload", &error.to_string()),
    }
}

fn invalid(field: &str, detail: &str) -> Fault {
    Fault::Invalid(vec![FieldFault { field: field.to_owned(), detail: detail.to_owned() }])
}

fn check(org: OrgId, sent: Vec<Sent>, max_bytes: usize) -> Result<Vec<NewEvent>, Fault> {
    let mut faults = Faults::default();
    if !(1..=MAX_EVENTS).contains(&sent.len()) {
        faults.add("events", format!("must be 1 to {MAX_EVENTS}, not {}", sent.len()));
        return faults.check(Vec::new());
    }
    let many = sent.len() > 1;
    let mut places: HashMap<Uuid, usize> = HashMap::new();
    let mut events = Vec::with_capacity(sent.len());
    for (at, one) in sent.into_iter().enumerate() {
        let place = |field: &str| place(many, at, field);
        let texts = [
            ("event_type", Some(&one.event_type), 1, MAX_EVENT_TYPE),
            ("event_category", one.event_category.as_ref(), 1, MAX_CATEGORY),
            ("content", one.content.as_ref(), 0, usize::MAX),
            ("client_name", one.client_name.as_ref(), 0, MAX_CLIENT_NAME),
            ("client_version", one.client_version.as_ref(), 0, MAX_CLIENT_VERSION),
        ];
        for (field, text, least, most) in texts {
            let Some(text) = text else { continue };
            faults.text(&place(field), text, least, most);
        }
        if one.event_category.as_deref() == Some(OPERATIONAL_CATEGORY) {
            faults.add(&place("event_category"), "\"webhook\" is kept for what Posthaste itself tells");
        }
        let payload = one.payload.as_ref().map_or("{}", |payload| payload.get());
        if has_nul(payload) {
            faults.add(&place("payload"), "must not contain the character NUL (\\u0000)");
        }
        let id = one.id.unwrap_or_else(Uuid::new_v4);
        if let Some(first) = places.insert(id, at) {
            faults.add(&place("id"), format!("is the id of events[{first}], too"));
        }
        let payload = payload.to_owned();
        events.push(new_event(org, EventId(id), one, payload, max_bytes));
    }
    faults.check(events)
}

/// What is to be written. How long the payload is, PostgreSQL only knows: it prints `1e131071` in full, and
/// leaves out blanks. Here is what the rest of the event leaves of `max_bytes` to it.
fn new_event(org: OrgId, id: EventId, sent: Sent, payload: String, max_bytes: usize) -> NewEvent {
    let Sent { employee_id, session_id, client_name, client_version, event_type, content, .. } = sent;
    let event_category = sent.event_category.unwrap_or_else(|| DEFAULT_CATEGORY.into());
    let event = Event {
        id,
        org,
        employee_id,
        session_id,
        client_name,
        client_version,
        event_type,
        event_category: event_category.clone().into(),
        content,
        payload: String::new(),
        created_at: A_TIME.to_owned(),
    };
    let payload_room = max_bytes.saturating_sub(Format::Standard.event_bytes(&event));
    NewEvent {
        id,
        event_type: event.event_type,
        event_category,
        content: event.content,
        payload,
        payload_room,
        employee_id,
        session_id,
        client_name: event.client_name,
        client_version: event.client_version,
    }
}

/// Which events to list, as it was asked.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Query {
    /// Only those of this type.
    #[param(min_length = 1, max_length = 100, example = "invoice.paid")]
    pub event_type: Option<String>,
    /// Created at this time or later.
    #[param(value_type = Option<Time>)]
    pub from: Option<String>,
    /// Created before this time.
    #[param(value_type = Option<Time>)]
    pub to: Option<String>,
    /// Rows of the page.
    #[param(value_type = Option<u32>, minimum = 1, maximum = 200)]
    pub limit: Option<String>,
    /// Where it starts.
    #[param(pattern = "^[A-Za-z0-9_-]{32}$")]
    pub cursor: Option<String>,
}

/// An event as lists show it.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Event)]
pub struct View {
    /// Its id.
    pub id: Uuid,
    /// What happened.
    pub event_type: String,
    /// The kind of thing that happened; null where this application's events have no such column.
    pub event_category: Option<String>,
    /// When.
    #[schema(format = DateTime)]
    pub created_at: String,
}

/// An event with everything, and its deliveries.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = EventDetail)]
pub struct DetailView {
    /// What lists show.
    #[serde(flatten)]
    pub event: View,
    /// A sentence for people.
    pub content: Option<String>,
    /// Whether there is one that is not shown, as it is larger than an event may be.
    pub content_too_large: bool,
    /// Any JSON.
    #[schema(value_type = serde_json::Value)]
    pub payload: Box<RawValue>,
    /// Whether it is not shown (then it is null), as with the content it is larger than an event may be.
    pub payload_too_large: bool,
    /// Who did it.
    pub employee_id: Option<Uuid>,
    /// In which session.
    pub session_id: Option<Uuid>,
    /// With which client.
    pub client_name: Option<String>,
    /// And which version of it.
    pub client_version: Option<String>,
    /// Its deliveries, the oldest first; at most 1,000.
    pub deliveries: Vec<deliveries::View>,
    /// Destinations of its organization that have no delivery of it, and why; at most 1,000.
    pub not_queued: Vec<NotQueuedView>,
}

/// A destination that has no delivery of an event.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = NotQueued)]
pub struct NotQueuedView {
    /// The destination.
    pub destination_id: Uuid,
    /// Its name.
    pub destination_name: String,
    /// Why it has none, in a sentence.
    #[schema(example = "not queued: the type user.created is not among the destination's event_types")]
    pub reason: String,
}

/// A page of the events of `org`, the newest first.
///
/// # Errors
/// [`Fault::Invalid`], [`Fault::Store`].
pub async fn list(db: &mut Connection, org: OrgId, query: &Query) -> Result<List<View>, Fault> {
    let mut faults = Faults::default();
    let (from, to) = faults.range(query.from.as_deref(), query.to.as_deref());
    let filter = Filter { org, event_type: faults.event_type(query.event_type.as_deref()), from, to };
    let limit = faults.limit(query.limit.as_deref());
    let cursor = faults.cursor(query.cursor.as_deref());
    let (filter, limit, cursor) = faults.check((filter, limit, cursor))?;
    Ok(shown(events::list(db, &filter, cursor, limit).await?, view))
}

/// One event of `org`, with as much of its content and its payload as has room in `max_bytes` of JSON.
///
/// # Errors
/// [`Fault::NotFound`], [`Fault::Store`].
pub async fn one(
    db: &mut Connection,
    org: OrgId,
    principal: Principal,
    id: EventId,
    max_bytes: usize,
) -> Result<DetailView, Fault> {
    let found = events::one(db, org, id, max_bytes).await?;
    let full = found.ok_or_else(|| Fault::NotFound(format!("event {id}")))?;
    let of_event = store_deliveries::list::of_event(db, org, id).await?;
    let standings = deliveries::standings(db, &of_event, false).await?;
    let not_queued = standing::unqueued(db, org, id).await?;
    let has_content = full.content.is_some() || full.content_too_large;
    let content = full.content.filter(|content| printed_bytes(content) <= max_bytes);
    let left = max_bytes - content.as_deref().map_or(0, printed_bytes);
    let payload = full.payload.filter(|payload| payload.len() <= left);
    let payload = payload.and_then(|payload| RawValue::from_string(payload).ok());
    Ok(DetailView {
        event: view(full.event),
        content_too_large: has_content && content.is_none(),
        content,
        payload_too_large: payload.is_none(),
        payload: payload.unwrap_or_default(),
        employee_id: full.employee_id,
        session_id: full.session_id,
        client_name: full.client_name,
        client_version: full.client_version,
        deliveries: of_event
            .into_iter()
            .map(|one| deliveries::view(one, &standings).shown_to(principal))
            .collect(),
        not_queued: not_queued.into_iter().map(|one| not_queued_view(one, principal)).collect(),
    })
}

fn not_queued_view(one: Unqueued, principal: Principal) -> NotQueuedView {
    NotQueuedView {
        reason: principal.text(why::unqueued(&one)),
        destination_id: one.destination.0,
        destination_name: one.name,
    }
}

/// Bytes of a text as JSON: a control character has six.
fn printed_bytes(text: &str) -> usize {
    serde_json::to_string(text).map_or(usize::MAX, |json| json.len())
}

fn view(listed: events::Listed) -> View {
    View {
        id: listed.id.0,
        event_type: listed.event_type,
        event_category: listed.event_category,
        created_at: listed.created_at.iso(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nul_is_found_where_it_is_one() {
        for (json, expected) in
            [(r#""\u0000""#, true), (r#""\\u0000""#, false), (r#""\\\u0000""#, true), (r#""u0000""#, false)]
        {
            assert_eq!(has_nul(json), expected, "{json}");
        }
    }
}
