//! Channels of applications: what others publish on Redis without knowing of throng, and what is made of it for clients here.
//!
//! Every process hears every message by Redis itself. So each delivers to its own clients and tells no other, and of a room with a policy each
//! has a home, which gets the message once.

use super::{Core, REFUSAL_REST_MS};
use crate::bus::directory::room_key;
use crate::dialect::native::{is_too_deep, name_fault};
use crate::message::{Draft, is_reserved_room, user_key};
use crate::routes::channel::{Channel, own_prefixes};
use crate::routes::template::{Fault, Name, Values};
use crate::routes::{Publish, Target};
use crate::time::Time;
use serde_json::value::RawValue;
use smallvec::SmallVec;
use std::borrow::Cow;
use std::collections::HashMap;

/// How much of what is heard is taken. All bounds are inclusive.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bounds {
    /// Length of a message.
    pub bytes_max: usize,
    /// Rooms or users that one list in a message may name.
    pub names_max: usize,
    /// Length of a room's name.
    pub room_name_bytes_max: usize,
}

/// The channels by what Redis calls them.
#[derive(Debug)]
pub(super) struct Channels {
    channels: Vec<Channel>,
    /// Places in the list: of names, then of patterns.
    places: [HashMap<Vec<u8>, Vec<usize>>; 2],
    /// What the names of throng's own channels begin with, and those of Node's.
    own: [Vec<u8>; 4],
}

/// Why a message, or an event that was to be made of it, is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// It is longer than it may be.
    TooLarge,
    /// It is no JSON, or nests too deep.
    Malformed,
    /// A field is missing, or a name cannot be made from it.
    Refused,
    /// A mailbox is full.
    Overloaded,
}

impl Dropped {
    /// The labels of all reasons, in the order of [`Dropped::index`].
    pub const LABELS: [&'static str; 4] = ["too_large", "malformed", "refused", "overloaded"];

    /// The place of this reason in [`Dropped::LABELS`].
    pub fn index(self) -> usize {
        self as usize
    }
}

impl Channels {
    pub(super) fn new(channels: Vec<Channel>, prefix: &str) -> Channels {
        let mut places: [HashMap<Vec<u8>, Vec<usize>>; 2] = Default::default();
        for (place, channel) in channels.iter().enumerate() {
            let of_kind = &mut places[usize::from(channel.is_pattern)];
            of_kind.entry(channel.name.clone().into_bytes()).or_default().push(place);
        }
        Channels { channels, places, own: own_prefixes(prefix).map(String::into_bytes) }
    }

    /// What Redis calls them: names, or patterns.
    pub(super) fn names(&self, patterns: bool) -> impl Iterator<Item = &[u8]> {
        self.places[usize::from(patterns)].keys().map(Vec::as_slice)
    }

    /// The places of those that a message is for, which came on `channel`, and by `pattern` if it was one. Empty for what is not an application's.
    pub(super) fn find(&self, pattern: Option<&[u8]>, channel: &[u8]) -> &[usize] {
        let found = self.places[usize::from(pattern.is_some())].get(pattern.unwrap_or(channel));
        found.map_or(&[], Vec::as_slice)
    }

    /// True for what only a pattern leads to, and is said among servers.
    fn is_own(&self, channel: &[u8]) -> bool {
        self.own.iter().any(|own| channel.starts_with(own))
    }
}

impl Core {
    /// A message has come on a channel of an application. `places` are those in the list that it is for.
    pub(super) fn hear_channel(&self, places: &[usize], channel: &[u8], payload: &[u8]) {
        if self.channels.is_own(channel) {
            return;
        }
        self.stats.channel_messages.add(1);
        let bytes_max = self.bounds.load().channels.bytes_max;
        if payload.len() > bytes_max {
            return self.drop_message(
                channel,
                Dropped::TooLarge,
                "it is longer than redis.channel_bytes_max",
            );
        }
        let json =
            str::from_utf8(payload).ok().filter(|text| serde_json::from_str::<&RawValue>(text).is_ok());
        let Some(json) = json.map(str::trim_ascii).filter(|json| !is_too_deep(json)) else {
            return self.drop_message(channel, Dropped::Malformed, "it is no JSON, or nests too deep");
        };
        let (name, now) = (String::from_utf8_lossy(channel), self.clock.now());
        for place in places {
            let heard = &self.channels.channels[*place];
            let Channel { namespace, steps, .. } = heard;
            let found = steps.paths.find(json);
            if let Err(Fault(why)) = steps.check(&found) {
                self.drop_message(channel, Dropped::Refused, &why);
                continue;
            }
            let values = Values {
                found: &found,
                args: json,
                event: &name,
                namespace,
                user: None,
                now_ms: self.origin_us / 1_000 + now.ms(),
                id: "",
                socket: "",
                rooms: "",
            };
            for publish in &steps.publish {
                if let Err((reason, why)) = self.publish_heard(heard, publish, &values, now) {
                    self.drop_message(channel, reason, &why);
                }
            }
        }
    }

    /// Gives clients here what one step makes of a message.
    fn publish_heard(
        &self,
        channel: &Channel,
        publish: &Publish,
        values: &Values<'_>,
        now: Time,
    ) -> Result<(), (Dropped, String)> {
        let Channel { namespace, steps, .. } = channel;
        let bounds = self.bounds.load().channels;
        let fill = |name: &Name| -> Result<SmallVec<[String; 4]>, (Dropped, String)> {
            let mut names: SmallVec<[Cow<'_, str>; 4]> = SmallVec::new();
            let filled = name.fill(values, &steps.paths, bounds.names_max, &mut names);
            filled.map_err(|Fault(why)| (Dropped::Refused, why))?;
            Ok(names.into_iter().map(Cow::into_owned).collect())
        };
        let rooms_of = |name: &Name| -> Result<SmallVec<[Cow<'static, str>; 4]>, (Dropped, String)> {
            let names = fill(name)?;
            let fault = |name: &String| match is_reserved_room(name) {
                true => Some("is one that only the server publishes to".to_owned()),
                false => name_fault(name, bounds.room_name_bytes_max),
            };
            match names.iter().find_map(fault) {
                Some(fault) => Err((Dropped::Refused, format!("a room name {fault}"))),
                None => Ok(names.iter().map(|name| room_key(namespace, name).into_owned().into()).collect()),
            }
        };
        let mut rooms: SmallVec<[Cow<'static, str>; 4]> = SmallVec::new();
        let mut natives = false;
        for target in &publish.to {
            match target {
                Target::Room(name) => rooms.extend(rooms_of(name)?),
                Target::User(name) => {
                    let key = |name: String| room_key(namespace, &user_key(&name)).into_owned().into();
                    rooms.extend(fill(name)?.into_iter().map(key));
                }
                Target::Everyone => {
                    rooms.push(room_key(namespace, "").into_owned().into());
                    natives |= namespace == "/";
                }
            }
        }
        let mut except: SmallVec<[Cow<'static, str>; 4]> = SmallVec::new();
        for name in &publish.except {
            except.extend(rooms_of(name)?);
        }
        let Some((room, more_rooms)) = rooms.split_first() else { return Ok(()) };
        let mut data = Vec::new();
        if !publish.saying.data.fill(values, &mut data) {
            data.extend_from_slice(b"null");
        }
        if data.len() > bounds.bytes_max {
            // A template may name one member several times.
            return Err((Dropped::TooLarge, "what is made of it is longer than a message may be".to_owned()));
        }
        let event = publish.saying.event.as_deref().unwrap_or(values.event);
        let draft = Draft {
            more_rooms,
            except_rooms: &except,
            volatile: publish.volatile,
            natives,
            ..Draft::new(room, event, &data, now)
        };
        match self.bus.publish_here(&draft) {
            Ok(shards) => {
                self.bus.ring(shards);
                Ok(())
            }
            Err(crate::bus::Overloaded) => Err((Dropped::Overloaded, "a mailbox is full".to_owned())),
        }
    }

    /// Counted each time and logged now and then: a channel may be flooded with what is none of ours.
    fn drop_message(&self, channel: &[u8], reason: Dropped, why: &str) {
        self.stats.channel_dropped[reason.index()].add(1);
        let now = self.clock.now();
        let is_logged = self.state(|state| {
            let is_logged = now >= state.drop_logged_until;
            if is_logged {
                state.drop_logged_until = now.plus_ms(REFUSAL_REST_MS);
            }
            is_logged
        });
        if is_logged {
            let (channel, reason) = (String::from_utf8_lossy(channel), Dropped::LABELS[reason.index()]);
            tracing::warn!(%channel, reason, why, "a message on a channel of [[redis.channels]] was dropped");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::wire::Wire;
    use crate::bridge::{Cluster, State};
    use crate::bus::Bus;
    use crate::bus::mailbox::MAIL_MAX;
    use crate::cluster::Limits;
    use crate::routes::template::{Data, Paths};
    use crate::routes::{Saying, Steps};
    use crate::time::Clock;
    use arc_swap::ArcSwap;
    use std::sync::{Arc, Mutex, OnceLock};
    use std::time::Duration;

    /// A process that hears this channel, and has somebody in the room `all`.
    fn core(room: &str, data: serde_json::Value) -> Core {
        let mut paths = Paths::default();
        let saying =
            Saying { event: Some("e".to_owned()), data: Data::parse(&data, &mut paths).expect("a template") };
        let to = vec![Target::Room(Name::parse(room, &mut paths).expect("a template"))];
        let publish = vec![Publish { to, except: Vec::new(), saying, echo: false, volatile: false }];
        let steps = Steps { publish, paths, ..Steps::default() };
        let channel =
            Channel { name: "news".to_owned(), is_pattern: false, namespace: "/".to_owned(), steps };
        let bounds = super::super::Bounds {
            limits: Limits { message_bytes_max: 1, rooms_max: 1, answers_max: 1, attachments_max: 1 },
            channels: Bounds { bytes_max: 100, names_max: 3, room_name_bytes_max: 50 },
        };
        let bus = Bus::new(1, 100);
        bus.enter(0, "all").expect("there is room");
        Core {
            bus: Arc::new(bus),
            outside: Arc::default(),
            clock: Clock::start(),
            wire: Wire::new(Cluster::Throng, "throng", "uid".to_owned(), false),
            channels: Channels::new(vec![channel], "throng"),
            bounds: Arc::new(ArcSwap::from_pointee(bounds)),
            presence_timeout: Duration::ZERO,
            origin_us: 0,
            stats: Arc::default(),
            link: OnceLock::new(),
            state: Mutex::new(State::new()),
        }
    }

    fn dropped(core: &Core) -> [u64; 4] {
        core.stats.channel_dropped.each_ref().map(|counter| counter.value())
    }

    fn hear(core: &Core, message: &str) {
        core.hear_channel(core.channels.find(None, b"news"), b"news", message.as_bytes());
    }

    #[test]
    fn what_finds_no_place_is_counted_and_the_rest_waits() {
        let core = core("all", serde_json::json!("{payload}"));
        for _ in 0..MAIL_MAX + 100 {
            hear(&core, "1");
        }
        let waiting = core.bus.mailbox(0).len();
        assert_eq!(dropped(&core), [0, 0, 0, (MAIL_MAX + 100 - waiting) as u64]);
        assert!(waiting >= MAIL_MAX && dropped(&core)[3] > 0);
        assert_eq!(core.stats.channel_messages.value(), (MAIL_MAX + 100) as u64);
    }

    #[test]
    fn what_a_template_makes_of_a_message_is_no_longer_than_that_may_be() {
        let core = core("{payload.rooms}", serde_json::json!(["{x}", "{x}", "{x}"]));
        let of = |rooms: &str, x: usize| format!(r#"{{"rooms":{rooms},"x":"{}"}}"#, "x".repeat(x));
        hear(&core, &of("\"all\"", 20));
        assert_eq!((core.bus.mailbox(0).len(), dropped(&core)), (1, [0, 0, 0, 0]));
        hear(&core, &of("\"all\"", 40));
        hear(&core, &of("\"all\"", 100));
        assert_eq!(dropped(&core), [2, 0, 0, 0], "what is made of it is, and it is itself");
        hear(&core, &of(r#"["a","b","c","d"]"#, 1));
        hear(&core, &of("\"throng:gaps\"", 1));
        assert_eq!(dropped(&core), [2, 0, 2, 0], "too many rooms, and one that is the server's");
        assert_eq!(core.bus.mailbox(0).len(), 1);
    }

    #[test]
    fn patterns_and_names_are_told_apart() {
        let core = core("all", serde_json::json!(1));
        assert_eq!(core.channels.find(None, b"news"), [0]);
        assert!(core.channels.find(None, b"other").is_empty());
        assert!(core.channels.find(Some(b"news"), b"news").is_empty(), "it is no pattern");
        assert!(core.channels.is_own(b"throng:room:a") && !core.channels.is_own(b"throngs"));
    }
}
