//! The few packets of Socket.IO v5 that a load needs, inside messages of Engine.IO v4. The handshake and the pings are
//! the connection's affair and in `client`. As in `native`, what is received is looked at by bytes, but for errors.

use serde_json::{Value, json};

use crate::protocol::Said;

/// The part of the request's query that asks for Engine.IO v4 over WebSocket.
pub(crate) const QUERY: &str = "EIO=4&transport=websocket";

/// Tells what a packet of namespace `/` says. Engine.IO's `4` was taken off it.
pub(crate) fn each_said(packet: &[u8], mut hear: impl FnMut(Said<'_>)) {
    match packet.split_first() {
        Some((b'3', rest)) => {
            let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
            let args = &rest[digits..];
            if args.starts_with(br#"[{"error":"#) { refused(args, hear) } else { hear(Said::Ack) }
        }
        Some((b'1', _)) => hear(Said::Error("disconnect")),
        _ => hear(Said::Other),
    }
}

/// An acknowledgement that says why not.
#[cold]
fn refused(args: &[u8], mut hear: impl FnMut(Said<'_>)) {
    match serde_json::from_slice::<Value>(args) {
        Ok(args) => hear(Said::Error(args[0]["error"]["code"].as_str().unwrap_or("unknown"))),
        Err(_) => hear(Said::Error("not_json")),
    }
}

/// The event that joins or leaves these rooms, to be acknowledged. The number is always the same: acknowledgements
/// are counted, not told apart.
pub(crate) fn with_rooms(verb: &str, rooms: &[String]) -> Vec<u8> {
    format!("420{}", json!([verb, { "rooms": rooms }])).into_bytes()
}

/// All of a publish event that comes before its data, and all that comes after it.
pub(crate) fn publish_ends(room: &str) -> (Vec<u8>, &'static [u8]) {
    (format!(r#"42["publish",{{"room":{},"event":"e","data":"#, json!(room)).into_bytes(), b"}]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart() {
        fn check(packet: &str, expected: Said<'_>) {
            let mut heard = 0;
            each_said(packet.as_bytes(), |said| {
                assert_eq!(said, expected, "{packet}");
                heard += 1;
            });
            assert_eq!(heard, 1, "{packet}");
        }
        check(r#"30[{"rooms":{"load":{"members":0}}}]"#, Said::Ack);
        check(r#"30[{"rooms":{"error":{"members":0}}}]"#, Said::Ack);
        check("312[{}]", Said::Ack);
        check("30[]", Said::Ack);
        check(r#"30[{"error":{"code":"bad_room","message":"no"}}]"#, Said::Error("bad_room"));
        check(r#"30[{"error":{}}]"#, Said::Error("unknown"));
        check(r#"30[{"error":"#, Said::Error("not_json"));
        check("1", Said::Error("disconnect"));
        check(r#"2["e",{"p":0}]"#, Said::Other);
        check("", Said::Other);
    }
}
