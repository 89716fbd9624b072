//! The event's columns as one flat object, with `timestamp` for `created_at`.

use super::{columns, columns_len};
use crate::model::Event;

pub(super) fn write(body: &mut Vec<u8>, event: &Event) {
    body.push(b'{');
    columns(body, event, "timestamp");
    body.push(b'}');
}

pub(super) fn encoded_len(event: &Event) -> usize {
    2 + columns_len(event, "timestamp")
}
