//! Which events a destination wants, by `event_types` and `event_filter`.
//!
//! The database decides this itself, in the producer's transaction (`migrations/0003_fan_out.sql`). Here is
//! the same rule as a pure function: a test holds the two against each other.

use serde_json::{Map, Value};

/// The key of a filter that is a predicate over the whole event instead of a part of the payload.
pub const JSONPATH: &str = "$jsonpath";

/// Whether `event_types` lets `event_type` through: none, or an empty list, lets every type through; an entry
/// is the type itself, or a prefix that ends in `*`.
pub fn type_wanted(event_types: Option<&[String]>, event_type: &str) -> bool {
    let entries = event_types.unwrap_or_default();
    entries.is_empty()
        || entries.iter().any(|entry| match entry.strip_suffix('*') {
            Some(prefix) => event_type.starts_with(prefix),
            None => entry == event_type,
        })
}

/// Whether `event_filter`, without its predicate, lets `payload` through. A bad filter lets nothing through.
pub fn payload_wanted(event_filter: Option<&Value>, payload: &Value) -> bool {
    let Some(filter) = event_filter else { return true };
    let Value::Object(filter) = filter else { return false };
    if filter.keys().any(|key| key.starts_with('$') && key != JSONPATH) {
        return false;
    }
    let parts: Map<String, Value> =
        filter.iter().filter(|(key, _)| *key != JSONPATH).map(|(k, v)| (k.clone(), v.clone())).collect();
    parts.is_empty() || contains(payload, &Value::Object(parts))
}

/// PostgreSQL's `whole @> part` for a `part` that is an object or an array, and what it means further down.
fn contains(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            part.iter().all(|(key, value)| whole.get(key).is_some_and(|found| contains(found, value)))
        }
        // Order and repetition do not count.
        (Value::Array(whole), Value::Array(part)) => {
            part.iter().all(|value| whole.iter().any(|found| contains(found, value)))
        }
        (Value::Number(whole), Value::Number(part)) => whole.as_f64() == part.as_f64(),
        _ => whole == part,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn types_are_exact_or_a_prefix() {
        let wanted = |entries: &[&str], event_type| {
            let entries: Vec<String> = entries.iter().map(|entry| entry.to_string()).collect();
            type_wanted(Some(&entries), event_type)
        };
        assert!(
            type_wanted(None, "a") && wanted(&[], "a") && wanted(&["*"], "a") && wanted(&["x", "a"], "a")
        );
        assert!(wanted(&["tool_*"], "tool_call") && wanted(&["tool_*"], "tool_"));
        assert!(
            !wanted(&["tool_"], "tool_call") && !wanted(&["tool_*"], "toolXcall") && !wanted(&["*l"], "tool")
        );
    }

    #[test]
    fn payloads_are_matched_by_containment() {
        let cases = [
            (json!({}), json!([1]), true),
            (json!({"a": 1}), json!({"a": 1.0, "b": 2}), true),
            (json!({"a": {"b": []}}), json!({"a": {"b": [1]}}), true),
            (json!({"a": [2, 1, 1]}), json!({"a": [1, 2, 3]}), true),
            (json!({"a": [[1]]}), json!({"a": [[2, 1]]}), true),
            (json!({"a": 1}), json!({"a": [1]}), false),
            (json!({"a": null}), json!({}), false),
            (json!([]), json!([]), false),
            (json!({"$or": 1}), json!({"$or": 1}), false),
        ];
        for (filter, payload, expected) in cases {
            assert_eq!(payload_wanted(Some(&filter), &payload), expected, "{filter} over {payload}");
        }
        assert!(payload_wanted(None, &json!(null)));
    }
}
