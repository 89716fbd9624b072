//! `{"type":…,"timestamp":…,"data":{…}}`: the default, shaped after Standard Webhooks.

use super::{columns, columns_len, string, string_len};
use crate::model::Event;

pub(super) fn write(body: &mut Vec<u8>, event: &Event) {
    body.extend_from_slice(b"{\"type\":");
    string(body, &event.event_type);
    body.extend_from_slice(b",\"timestamp\":");
    string(body, &event.created_at);
    body.extend_from_slice(b",\"data\":{");
    columns(body, event, "created_at");
    body.extend_from_slice(b"}}");
}

pub(super) fn encoded_len(event: &Event) -> usize {
    const FRAME: usize = r#"{"type":,"timestamp":,"data":{}}"#.len();
    FRAME + string_len(&event.event_type) + string_len(&event.created_at) + columns_len(event, "created_at")
}
