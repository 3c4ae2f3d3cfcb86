//! What several events that leave as one look like to those who have no message of their own for that.

use super::native::encode_str;
use crate::json::split;
use crate::message::{Bundle, ConnId, Publication, Shape};

/// The payload of the one event that a bundle is to a `member`, or to all without one: a list of its items, or an object with a field for each.
/// One value of JSON.
pub fn payload(bundle: &Bundle, member: Option<ConnId>) -> String {
    let mut out = Vec::new();
    let (open, close) = match bundle.shape {
        Shape::Batch { .. } => (b'[', b']'),
        Shape::Merge { .. } => (b'{', b'}'),
    };
    out.push(open);
    for (place, item) in bundle.items_for(member) {
        if out.len() > 1 {
            out.push(b',');
        }
        match &bundle.shape {
            Shape::Batch { data_only: true, .. } => push_data(&mut out, item),
            Shape::Batch { data_only: false, .. } => {
                out.extend_from_slice(br#"{"event":"#);
                encode_str(&mut out, item.event());
                out.extend_from_slice(br#","data":"#);
                push_data(&mut out, item);
                out.push(b'}');
            }
            Shape::Merge { fields } => {
                encode_str(&mut out, fields.get(place).map_or("", |field| field));
                out.push(b':');
                push_data(&mut out, item);
            }
        }
    }
    out.push(close);
    String::from_utf8(out).unwrap_or_default()
}

/// Several arguments are a list of them, and none is `null`.
fn push_data(out: &mut Vec<u8>, item: &Publication) {
    let is_list = item.special.as_ref().is_some_and(|special| special.is_list);
    let count = match std::str::from_utf8(item.payload()) {
        Ok(payload) if is_list => split(payload).len(),
        _ => 1,
    };
    match count {
        0 => out.extend_from_slice(b"null"),
        1 => out.extend_from_slice(item.payload()),
        _ => {
            out.push(b'[');
            out.extend_from_slice(item.payload());
            out.push(b']');
        }
    }
}
