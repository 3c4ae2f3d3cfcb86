//! Room policies: what happens to events on their way to a room's members.
//!
//! A policy is for rooms by a pattern. Events for such a room go to its home, one of the shards, which keeps what waits and what is
//! known of the room: [`Homes`](homes::Homes) is that, as a plain structure that is handed publications and the time, and hands out what
//! leaves. Here is what a configuration says; `field` finds values in payloads, `patch` tells what has changed in an object.

pub mod field;
pub mod homes;
pub mod patch;

use crate::permissions::RoomPattern;
use crate::rules::Pattern;
use compact_str::CompactString;
use field::FieldPath;

/// All policies, in the order of the configuration: the first that is for a room counts.
#[derive(Clone, Debug, Default)]
pub struct Policies {
    policies: Box<[Policy]>,
    /// Bounds of what the homes keep in all.
    pub settings: Settings,
}

/// How much the homes of a process may keep, in equal shares for the shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Rooms whose state is known. Beyond, those that changed longest ago are forgotten.
    pub states_max: usize,
    /// Bytes of one state. A larger one is sent whole and not kept.
    pub state_bytes_max: usize,
    /// Bytes of all states; beyond, as with `states_max`.
    pub states_bytes_max: usize,
    /// How long the state of a room without members is kept, in milliseconds.
    pub state_idle_ms: u32,
    /// Values of `dedupe` fields that are known. Beyond, those that have been known longest are forgotten.
    pub dedupe_ids_max: usize,
    /// Bytes of events that wait. Beyond, those leave first that would do so next.
    pub waiting_bytes_max: usize,
}

/// What happens to the events of some rooms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Which rooms, by their names in their namespace.
    pub name: RoomPattern,
    /// Of which namespaces; `None` for all, and for those of the native protocol.
    pub namespace: Option<Pattern>,
    /// How long events may wait to leave together, in milliseconds.
    pub window_ms: u32,
    /// Events become one message.
    pub batch: Option<Batch>,
    /// Events that do not wait.
    pub urgent: Box<[CompactString]>,
    /// Of events that wait only the latest of each value of a field leaves.
    pub conflate: Option<Conflate>,
    /// Of an object only what has changed is sent.
    pub changes: Option<Changes>,
    /// Events that come again are left out.
    pub dedupe: Option<Dedupe>,
    /// Events become one event.
    pub merge: Option<Merge>,
    /// How much may wait for a slow client.
    pub burst: Option<Burst>,
}

/// See [`Policy::batch`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// So many leave at once, at least 2, or 1 where `lone` is set.
    pub most: usize,
    /// What a batch is called for clients of Socket.IO.
    pub event: CompactString,
    /// True when an item is the payload alone for them, without the event's name.
    pub data_only: bool,
    /// True when an event that leaves alone is a batch, too, even one that does not wait.
    pub lone: bool,
}

/// See [`Policy::conflate`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflate {
    /// The field. Events without it are as if there were no `conflate`.
    pub field: FieldPath,
    /// Which events; `None` for all.
    pub events: Option<Box<[CompactString]>>,
}

/// See [`Policy::changes`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// The event whose payload is the room's state.
    pub event: CompactString,
    /// Members of the object that are sent in any case.
    pub always: Box<[Box<str>]>,
}

/// See [`Policy::dedupe`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dedupe {
    /// The field. Events without it all pass.
    pub field: FieldPath,
    /// How long a value is known, in milliseconds.
    pub window_ms: u32,
}

/// See [`Policy::merge`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merge {
    /// What the one event is called.
    pub event: CompactString,
    /// Which events it is made of, and what their fields in it are called.
    pub fields: Box<[(CompactString, CompactString)]>,
}

impl Merge {
    /// The field of `event`, if that is one of those.
    pub fn field(&self, event: &str) -> Option<&CompactString> {
        self.fields.iter().find(|(name, _)| name == event).map(|(_, field)| field)
    }
}

/// See [`Policy::burst`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Burst {
    /// An event is not put behind so many bytes, or more, that wait for the client.
    pub bytes: usize,
    /// What happens instead: true closes the connection as too slow, false leaves the event out.
    pub disconnects: bool,
}

impl Policies {
    /// The most policies that a configuration may have: each may cost a comparison at every event.
    pub const CONFIGURED_MAX: usize = 100;

    /// These, in this order.
    pub fn new(policies: Vec<Policy>, settings: Settings) -> Policies {
        Policies { policies: policies.into(), settings }
    }

    /// The policy for a room of a namespace, and its place. The room that stands for all who are in a namespace has none.
    #[inline]
    pub fn find(&self, namespace: &str, room: &str) -> Option<(u16, &Policy)> {
        let is_for = |policy: &Policy| {
            policy.name.matches(room, "")
                && policy.namespace.as_ref().is_none_or(|pattern| pattern.matches(namespace))
        };
        let place = self.policies.iter().position(is_for).filter(|_| !room.is_empty())?;
        Some((place as u16, &self.policies[place]))
    }

    /// The policy in this place.
    pub fn at(&self, place: u16) -> &Policy {
        &self.policies[usize::from(place)]
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }

    /// All, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Policy> {
        self.policies.iter()
    }
}

impl Policy {
    /// A policy that does nothing yet, for these rooms.
    pub fn new(name: RoomPattern) -> Policy {
        Policy {
            name,
            namespace: None,
            window_ms: Policy::WINDOW_MS,
            batch: None,
            urgent: Box::default(),
            conflate: None,
            changes: None,
            dedupe: None,
            merge: None,
            burst: None,
        }
    }

    /// How long events wait when nothing else is said, in milliseconds.
    pub const WINDOW_MS: u32 = 100;

    /// True when events go by way of the room's home.
    pub fn has_home(&self) -> bool {
        self.waits() || self.changes.is_some() || self.dedupe.is_some()
    }

    /// True when events may have to wait.
    pub fn waits(&self) -> bool {
        self.batch.is_some() || self.conflate.is_some() || self.merge.is_some()
    }

    /// True when the home hears of what is published while nobody is in the room.
    pub fn hears_the_empty_room(&self) -> bool {
        self.changes.is_some()
    }
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            states_max: 100_000,
            state_bytes_max: 64 << 10,
            states_bytes_max: 256 << 20,
            state_idle_ms: 300_000,
            dedupe_ids_max: 1_000_000,
            waiting_bytes_max: 64 << 20,
        }
    }
}

impl Settings {
    /// The share of one of `shards`.
    #[must_use]
    pub fn share(self, shards: usize) -> Settings {
        Settings {
            states_max: self.states_max.div_ceil(shards),
            states_bytes_max: self.states_bytes_max.div_ceil(shards).max(self.state_bytes_max),
            dedupe_ids_max: self.dedupe_ids_max.div_ceil(shards),
            waiting_bytes_max: self.waiting_bytes_max.div_ceil(shards),
            ..self
        }
    }
}

#[cfg(test)]
mod tests;
