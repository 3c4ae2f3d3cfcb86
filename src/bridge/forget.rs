//! The order to forget what the backend has said of clients, as processes pass it on: an event for the servers themselves, which Node's hear and
//! need not listen to. Secrets are told by their hashes.

use crate::bus::callouts::{Forget, Whose};
use crate::dialect::native::name_fault;
use crate::token::claims::NAME_BYTES_MAX;
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

/// The event's name.
const EVENT: &str = "throng:forget";

#[derive(Debug, Default, Serialize, Deserialize)]
struct Order {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
    #[serde(default, skip_serializing_if = "is_false")]
    all: bool,
    #[serde(default, skip_serializing_if = "is_false")]
    disconnect: bool,
}

fn is_false(flag: &bool) -> bool {
    !flag
}

/// The event's name and its argument: JSON values with a comma between them.
pub(super) fn encode(forget: &Forget) -> String {
    let mut order = Order { disconnect: forget.disconnect, ..Order::default() };
    match &forget.whose {
        Whose::User(name) => order.user = Some(name.to_string()),
        Whose::Credential(digest) => order.sha256 = Some(HEXLOWER.encode(digest)),
        Whose::All => order.all = true,
    }
    format!("\"{EVENT}\",{}", serde_json::to_string(&order).unwrap_or_default())
}

/// The order that these arguments are, if they are one.
pub(super) fn decode(args: &str) -> Option<Forget> {
    let (name, order): (String, Order) = serde_json::from_str(&format!("[{args}]")).ok()?;
    if name != EVENT {
        return None;
    }
    let whose = match order {
        Order { user: Some(name), sha256: None, all: false, .. } => {
            let is_name = name_fault(&name, NAME_BYTES_MAX).is_none();
            is_name.then(|| Whose::User(name.into()))?
        }
        Order { user: None, sha256: Some(hex), all: false, disconnect: false } => {
            Whose::Credential(HEXLOWER.decode(hex.as_bytes()).ok()?.try_into().ok()?)
        }
        Order { user: None, sha256: None, all: true, disconnect: false } => Whose::All,
        _ => return None,
    };
    Some(Forget { whose, disconnect: order.disconnect })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_read_as_it_was_written() {
        let check = |whose: Whose, disconnect: bool, expected: &str| {
            let forget = Forget { whose, disconnect };
            assert_eq!(encode(&forget), expected);
            assert_eq!(decode(expected), Some(forget));
        };
        check(Whose::User("42".into()), true, r#""throng:forget",{"user":"42","disconnect":true}"#);
        check(Whose::User("\"ä".into()), false, r#""throng:forget",{"user":"\"ä"}"#);
        check(Whose::All, false, r#""throng:forget",{"all":true}"#);
        let digest = [0xab; 32];
        let hex = "ab".repeat(32);
        check(Whose::Credential(digest), false, &format!(r#""throng:forget",{{"sha256":"{hex}"}}"#));
    }

    #[test]
    fn what_is_no_order_is_passed_over() {
        for args in [
            "",
            r#""other",{"all":true}"#,
            r#""throng:forget""#,
            r#""throng:forget",{}"#,
            r#""throng:forget",{"user":"7","all":true}"#,
            r#""throng:forget",{"all":true,"disconnect":true}"#,
            r#""throng:forget",{"sha256":"abcd"}"#,
            r#""throng:forget",{"user":""}"#,
            r#""throng:forget",{"user":"\u0001"}"#,
            r#""throng:forget",{"all":true},{}"#,
            r#""throng:forget",["7",null,true,true]"#,
        ] {
            assert_eq!(decode(args), None, "{args}");
        }
    }
}
