//! Which protocol the connections speak, and all that differs between the two for a load: how rooms are joined, how a
//! publication is wrapped, what an answer says. `native` and `socketio` have the words.

use serde::{Deserialize, Serialize};

use crate::{native, socketio};

/// Room names in one join, so that the message stays small and below any server's limit on rooms in one message.
const ROOMS_PER_MESSAGE: usize = 500;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Protocol {
    /// throng's own.
    #[default]
    Native,
    /// Socket.IO over WebSocket, namespace /; for echo Engine.IO alone.
    Socketio,
    /// Messages of an application, in which rooms are auctions.
    #[value(skip)]
    Plain,
}

/// What the server says, as far as a load cares.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Said<'a> {
    Ack,
    /// A refusal with its code.
    Error(&'a str),
    /// So many messages were left out for this connection.
    Dropped(u64),
    Other,
}

impl Protocol {
    /// What stands before the content of every message sent, and is taken off every message received.
    #[inline]
    pub(crate) fn message_head(self) -> &'static [u8] {
        match self {
            Self::Native | Self::Plain => b"",
            Self::Socketio => b"4",
        }
    }

    /// The messages that join these rooms, each of which is acknowledged.
    pub(crate) fn joins(self, rooms: &[String]) -> Vec<Vec<u8>> {
        self.with_rooms("join", rooms)
    }

    /// The messages that leave these rooms, each of which is acknowledged.
    pub(crate) fn leaves(self, rooms: &[String]) -> Vec<Vec<u8>> {
        self.with_rooms("leave", rooms)
    }

    /// All of a publication that comes before its data, and all that comes after it. It is not acknowledged.
    pub(crate) fn publish_ends(self, room: &str) -> (Vec<u8>, &'static [u8]) {
        match self {
            Self::Native | Self::Plain => native::publish_ends(room),
            Self::Socketio => socketio::publish_ends(room),
        }
    }

    /// Goes through what one message says, which its head was taken off.
    pub(crate) fn each_said(self, message: &[u8], hear: impl FnMut(Said<'_>)) {
        match self {
            Self::Native | Self::Plain => native::each_said(message, hear),
            Self::Socketio => socketio::each_said(message, hear),
        }
    }

    fn with_rooms(self, verb: &str, rooms: &[String]) -> Vec<Vec<u8>> {
        let message = match self {
            Self::Native => native::with_rooms,
            Self::Plain => return rooms.iter().map(|room| native::with_auction(verb, room)).collect(),
            Self::Socketio => socketio::with_rooms,
        };
        rooms.chunks(ROOMS_PER_MESSAGE).map(|rooms| message(verb, rooms)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_rooms_are_joined_in_several_messages() {
        let rooms: Vec<String> = (0..1_001).map(|index| format!("r{index}")).collect();
        for (protocol, join) in [
            (Protocol::Native, r#"{"type":"join","rooms":["r0"],"id":1}"#),
            (Protocol::Socketio, r#"420["join",{"rooms":["r0"]}]"#),
        ] {
            assert_eq!(protocol.joins(&rooms).len(), 3);
            assert_eq!(protocol.joins(&rooms[..1]).concat(), join.as_bytes());
            assert_eq!(protocol.leaves(&[]).len(), 0);
        }
    }

    #[test]
    fn data_stands_between_the_ends_of_a_publication() {
        for (protocol, publication) in [
            (Protocol::Native, r#"{"type":"publish","room":"a\"b","event":"e","data":7}"#),
            (Protocol::Socketio, r#"42["publish",{"room":"a\"b","event":"e","data":7}]"#),
        ] {
            let (head, tail) = protocol.publish_ends("a\"b");
            assert_eq!([&head, &b"7"[..], tail].concat(), publication.as_bytes());
            assert!(head.starts_with(protocol.message_head()));
        }
    }
}
