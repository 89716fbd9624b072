//! The body of a request, by the destination's `payload_format`. Pure: events in, bytes out.
//!
//! A body is written once, into a buffer of exactly its size. Payloads are copied as the text that PostgreSQL
//! printed, never parsed: that is how big numbers and odd keys reach the receiver unharmed.

mod flat;
mod standard;

use bytes::Bytes;
use uuid::Uuid;

use crate::model::Event;

/// Formats that can be chosen, for messages.
const AVAILABLE: &str = "standard, flat";
/// Formats that have a name already, but no code yet. Each enters as a variant of [`Format`] and a file
/// beside `standard.rs`; the compiler then shows every place that has to know it.
const PLANNED: [&str; 9] = [
    "ndjson",
    "cloudevents",
    "cloudevents_binary",
    "splunk_hec",
    "datadog",
    "elastic_bulk",
    "slack",
    "teams",
    "pagerduty",
];

/// What is wrong with `payload_format` or its options.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatFault {
    /// No such format.
    #[error("payload_format {0:?} is unknown: use one of {AVAILABLE}")]
    Unknown(String),
    /// A format that this version does not have.
    #[error("payload_format {0:?} is not available in this version: use one of {AVAILABLE}")]
    NotAvailable(String),
    /// The options are no JSON object.
    #[error("format_options is not a JSON object")]
    Options,
}

/// How bodies are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `{"type", "timestamp", "data": {…}}`, after Standard Webhooks.
    Standard,
    /// The event's columns as one object.
    Flat,
}

impl Format {
    /// The format called `name` with `options` (JSON text; `standard` and `flat` take none).
    ///
    /// # Errors
    /// No such format, or options that are no JSON object.
    pub fn compile(name: &str, options: &str) -> Result<Format, FormatFault> {
        let format = match name {
            "standard" => Format::Standard,
            "flat" => Format::Flat,
            planned if PLANNED.contains(&planned) => return Err(FormatFault::NotAvailable(name.to_owned())),
            unknown => return Err(FormatFault::Unknown(unknown.to_owned())),
        };
        type Options = Option<serde_json::Map<String, serde_json::Value>>;
        serde_json::from_str::<Options>(options).map_err(|_| FormatFault::Options)?;
        Ok(format)
    }

    /// The header `content-type`.
    pub fn content_type(self, _batch: bool) -> &'static str {
        match self {
            Format::Standard | Format::Flat => "application/json",
        }
    }

    /// Exactly the bytes that `event` takes in a body, without what stands between events.
    pub fn event_bytes(self, event: &Event) -> usize {
        match self {
            Format::Standard => standard::encoded_len(event),
            Format::Flat => flat::encoded_len(event),
        }
    }

    /// The body for `events`: an array when `batch` is true (even around a single event), else the only
    /// event.
    pub fn body<'a, I>(self, batch: bool, events: I) -> Bytes
    where
        I: IntoIterator<Item = &'a Event>,
        I::IntoIter: Clone,
    {
        let events = events.into_iter();
        let write = match self {
            Format::Standard => standard::write,
            Format::Flat => flat::write,
        };
        // One byte more for each event is a comma or, at the end, part of the brackets.
        let size: usize = events.clone().map(|event| self.event_bytes(event) + 1).sum();
        let mut body = Vec::with_capacity(size + 1);
        if batch {
            body.push(b'[');
        }
        for (index, event) in events.enumerate() {
            if index > 0 {
                body.push(b',');
            }
            write(&mut body, event);
        }
        if batch {
            body.push(b']');
        }
        body.into()
    }
}

/// Writes `text` as a JSON string.
fn string(body: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(body, text).expect("a str always becomes JSON, and a Vec takes it");
}

fn optional_string(body: &mut Vec<u8>, text: Option<&str>) {
    match text {
        Some(text) => string(body, text),
        None => body.extend_from_slice(b"null"),
    }
}

fn uuid(body: &mut Vec<u8>, uuid: Uuid) {
    body.push(b'"');
    body.extend_from_slice(uuid.hyphenated().encode_lower(&mut Uuid::encode_buffer()).as_bytes());
    body.push(b'"');
}

fn optional_uuid(body: &mut Vec<u8>, value: Option<Uuid>) {
    match value {
        Some(value) => uuid(body, value),
        None => body.extend_from_slice(b"null"),
    }
}

/// Bytes that [`string`] writes for `text`.
fn string_len(text: &str) -> usize {
    let escaped = |byte: u8| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 2,
        0x00..0x20 => 6,
        _ => 1,
    };
    2 + text.bytes().map(escaped).sum::<usize>()
}

fn optional_string_len(text: Option<&str>) -> usize {
    text.map_or(4, string_len)
}

fn uuid_len(value: Option<Uuid>) -> usize {
    value.map_or(4, |_| 38)
}

/// Writes the columns of `event`, each as `"name":value`, with `timestamp_name` for `created_at`.
fn columns(body: &mut Vec<u8>, event: &Event, timestamp_name: &str) {
    body.extend_from_slice(b"\"id\":");
    uuid(body, event.id.0);
    body.extend_from_slice(b",\"org_id\":");
    uuid(body, event.org.0);
    body.extend_from_slice(b",\"employee_id\":");
    optional_uuid(body, event.employee_id);
    body.extend_from_slice(b",\"session_id\":");
    optional_uuid(body, event.session_id);
    body.extend_from_slice(b",\"client_name\":");
    optional_string(body, event.client_name.as_deref());
    body.extend_from_slice(b",\"client_version\":");
    optional_string(body, event.client_version.as_deref());
    body.extend_from_slice(b",\"event_type\":");
    string(body, &event.event_type);
    body.extend_from_slice(b",\"event_category\":");
    optional_string(body, event.event_category.0.as_deref());
    body.extend_from_slice(b",\"content\":");
    optional_string(body, event.content.as_deref());
    body.extend_from_slice(b",\"payload\":");
    body.extend_from_slice(event.payload.as_bytes());
    body.extend_from_slice(b",\"");
    body.extend_from_slice(timestamp_name.as_bytes());
    body.extend_from_slice(b"\":");
    string(body, &event.created_at);
}

/// Bytes that [`columns`] writes.
fn columns_len(event: &Event, timestamp_name: &str) -> usize {
    const NAMES: usize = concat!(
        r#""id":,"org_id":,"employee_id":,"session_id":,"client_name":,"client_version":"#,
        r#","event_type":,"event_category":,"content":,"payload":,"":"#
    )
    .len();
    NAMES
        + timestamp_name.len()
        + 2 * 38
        + uuid_len(event.employee_id)
        + uuid_len(event.session_id)
        + optional_string_len(event.client_name.as_deref())
        + optional_string_len(event.client_version.as_deref())
        + string_len(&event.event_type)
        + optional_string_len(event.event_category.0.as_deref())
        + optional_string_len(event.content.as_deref())
        + event.payload.len()
        + string_len(&event.created_at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{EventId, OrgId};
    use proptest::prelude::*;
    use serde_json::value::RawValue;
    use serde_json::{Value, json};

    type Members = std::collections::BTreeMap<String, Box<RawValue>>;

    fn event() -> impl Strategy<Value = Event> {
        let text = || prop::option::of("\\PC*|[\\x00-\\x7f]*");
        let id = || any::<u128>().prop_map(Uuid::from_u128);
        let ids = (id(), id(), prop::option::of(id()), prop::option::of(id()));
        let texts = (text(), text(), any::<String>(), prop::option::of("[a-z_.]{1,20}"), text());
        let payload = prop::sample::select(vec![
            "{}",
            r#"{"n": 123456789012345678901234567890.000000000000000000001, "é\u0000": [null, 1e400, -0.0]}"#,
            r#"{"a": {"b": "\"\\\n"}, "type": "timestamp"}"#,
            "[1, 2]",
            "null",
        ]);
        (ids, texts, payload).prop_map(|(ids, texts, payload)| Event {
            id: EventId(ids.0),
            org: OrgId(ids.1),
            employee_id: ids.2,
            session_id: ids.3,
            client_name: texts.0,
            client_version: texts.1,
            event_type: texts.2,
            event_category: crate::model::Category(texts.3),
            content: texts.4,
            payload: payload.into(),
            created_at: "2025-12-23T16:02:19.890000Z".into(),
        })
    }

    /// The columns of `event`, by an independent route; the payload is compared as text elsewhere.
    fn expected(event: &Event, timestamp_name: &str) -> Value {
        json!({
            "id": event.id.0.to_string(),
            "org_id": event.org.0.to_string(),
            "employee_id": event.employee_id.map(|id| id.to_string()),
            "session_id": event.session_id.map(|id| id.to_string()),
            "client_name": event.client_name,
            "client_version": event.client_version,
            "event_type": event.event_type,
            "event_category": event.event_category.0,
            "content": event.content,
            timestamp_name: event.created_at,
        })
    }

    /// Takes `payload` out of the object in `text` as raw text.
    fn split(text: &RawValue) -> (Value, String) {
        let mut members: Members = serde_json::from_str(text.get()).unwrap();
        let payload = members.remove("payload").unwrap().get().to_owned();
        let rest = members.into_iter().map(|(k, v)| (k, serde_json::from_str(v.get()).unwrap())).collect();
        (Value::Object(rest), payload)
    }

    proptest! {
        #[test]
        fn a_standard_body_is_what_the_contract_says(events in prop::collection::vec(event(), 1..4)) {
            let body = Format::Standard.body(true, &events);
            let items: Vec<Members> = serde_json::from_slice(&body).unwrap();
            prop_assert_eq!(items.len(), events.len());
            for (item, event) in items.iter().zip(&events) {
                prop_assert_eq!(item.len(), 3);
                prop_assert_eq!(item["type"].get(), serde_json::to_string(&event.event_type).unwrap());
                prop_assert_eq!(item["timestamp"].get(), "\"2025-12-23T16:02:19.890000Z\"");
                let (data, payload) = split(&item["data"]);
                prop_assert_eq!(data, expected(event, "created_at"));
                prop_assert_eq!(&payload, &event.payload);
            }
        }

        #[test]
        fn a_flat_body_has_the_columns(event in event()) {
            let body = Format::Flat.body(false, [&event]);
            let (data, payload) = split(serde_json::from_slice::<&RawValue>(&body).unwrap());
            prop_assert_eq!(data, expected(&event, "timestamp"));
            prop_assert_eq!(&payload, &event.payload);
        }

        #[test]
        fn event_bytes_is_exact(event in event()) {
            for format in [Format::Standard, Format::Flat] {
                prop_assert_eq!(format.event_bytes(&event), format.body(false, [&event]).len());
                let two = format.body(true, [&event, &event]);
                prop_assert_eq!(2 * format.event_bytes(&event) + 3, two.len());
            }
        }
    }

    #[test]
    fn unknown_and_planned_formats_are_told_apart() {
        assert_eq!(Format::compile("flat", "{}"), Ok(Format::Flat));
        assert_eq!(Format::compile("standard", "null"), Ok(Format::Standard));
        for (name, options, expected) in [
            ("xml", "{}", "payload_format \"xml\" is unknown: use one of standard, flat"),
            ("", "{}", "is unknown"),
            ("slack", "{}", "payload_format \"slack\" is not available in this version"),
            ("standard", "[1]", "format_options is not a JSON object"),
            ("standard", "", "format_options is not a JSON object"),
        ] {
            let fault = Format::compile(name, options).unwrap_err().to_string();
            assert!(fault.contains(expected), "{fault}");
        }
    }
}
