//! What the backend would hear: of each client that it comes, says something and goes, of each room that it is occupied and vacated, each
//! in turn.

use super::World;
use crate::bus::notices::{Kind, Notice, Notices, Settings, What};
use crate::message::SocketId;
use crate::rules::EventChoice;
use compact_str::CompactString;
use std::collections::HashSet;
use std::sync::Arc;

/// Who is there, by what was told.
#[derive(Debug, Default)]
pub(super) struct Stories {
    clients: HashSet<SocketId>,
    /// How many came into a namespace so far.
    joins: u64,
    rooms: HashSet<CompactString>,
}

/// All that can be told.
pub(super) fn notices(shards: usize) -> Arc<Notices> {
    let settings = Settings {
        kinds: [true; Kind::LABELS.len()],
        events: vec![EventChoice { event: None, namespace: None }],
        waiting_max: usize::MAX,
        waiting_bytes_max: usize::MAX,
        lanes: 1,
        origin_unix_ms: 0,
    };
    Arc::new(Notices::new(shards, settings))
}

impl World {
    /// Hears what was told since the last time.
    pub(super) fn hear_notices(&mut self) {
        let notices = self.bus.notices().map(Notices::take).unwrap_or_default();
        notices.into_iter().for_each(|notice| self.stories.hear(notice));
    }

    /// Everybody who was said to come was said to go, and the rooms are empty.
    pub(super) fn check_stories_have_ended(&mut self) {
        self.hear_notices();
        let Stories { clients, rooms, joins } = &self.stories;
        assert_eq!(*joins, self.model.counts.namespace_joins, "namespaces joined, by what was told");
        assert!(clients.is_empty() && rooms.is_empty(), "nobody has told the end of {clients:?}, {rooms:?}");
    }
}

impl Stories {
    fn hear(&mut self, notice: Notice) {
        match notice.what {
            What::Connected { who, .. } => {
                self.joins += u64::from(who.namespace.is_some());
                assert!(self.clients.insert(who.id), "{who:?} comes twice");
            }
            What::Disconnected { who, .. } => assert!(self.clients.remove(&who.id), "{who:?} was not there"),
            What::Event { who, event, .. } => {
                assert!(self.clients.contains(&who.id), "{who:?} says {event} and is not there");
            }
            What::Room { name, occupied: true } => {
                assert!(self.rooms.insert(name.clone()), "{name} is occupied twice");
            }
            What::Room { name, occupied: false } => {
                assert!(self.rooms.remove(&name), "{name} was not occupied");
            }
        }
    }
}
