//! What the messages of plain clients make a shard do: each is an event, and carried out as one of a Socket.IO client is.

use super::Shard;
use super::socketio::Origin;
use crate::dialect::builtin::TOKEN_EVENT;
use crate::dialect::plain::{self, Message};
use crate::message::Slot;
use crate::time::Time;

impl Shard {
    /// One message of the plain dialect, which has been counted.
    pub(super) fn plain_message(&mut self, slot: Slot, message: &str, now: Time) {
        let Message { event, id } = match plain::decode(message) {
            Ok(message) => message,
            Err(refusal) => return self.refuse(slot, &refusal),
        };
        let origin = Origin { slot, namespace: None, id };
        if !self.lacks_user(slot) {
            self.event(origin, (&event, message), &[], now);
        } else if event == TOKEN_EVENT {
            // Whatever the rules say of this event: there is nothing else that it could do now.
            self.token_event(origin, message, now);
        } else {
            self.refuse_nobody(slot, id);
        }
    }
}
