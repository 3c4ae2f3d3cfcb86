//! The steps of routes: what a configuration makes of an event.

use super::{OVERLOAD_RETRY_MS, Shard};
use crate::bus::Overloaded;
use crate::bus::directory::{namespace_of, room_keys, room_of};
use crate::dialect::attachments;
use crate::dialect::native::{Code, Names, Refusal};
use crate::dialect::targets::{self, Bounds, Targets};
use crate::json::is_one;
use crate::message::{ConnId, Draft, ShardSet, Slot, write_socket_id};
use crate::permissions::{Act, Who};
use crate::routes::template::{Data, Name, Values};
use crate::routes::{Publish, Saying, Steps};
use crate::time::Time;
use smallvec::SmallVec;
use std::borrow::Cow;

/// An event that a client has sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent<'e> {
    /// In which namespace; that of native clients is `/`.
    pub(super) namespace: &'e str,
    /// Its name.
    pub(super) event: &'e str,
    /// Its arguments: JSON values with commas between them.
    pub(super) args: &'e str,
    /// What the placeholders in them stand for.
    pub(super) attachments: &'e [Vec<u8>],
}

/// What a client is told of its event when all steps of the route are taken.
#[derive(Debug, Default)]
pub(super) struct Told<'e> {
    /// The event that it is sent: its name and arguments.
    pub(super) reply: Option<(Cow<'e, str>, Cow<'e, str>)>,
    /// The arguments of its acknowledgement; `None` where it wants none, or the backend answers.
    pub(super) ack: Option<Cow<'e, str>>,
    /// Why the backend, which would answer, can't be asked.
    pub(super) unasked: Option<Refusal<'static>>,
}

/// The most memory that is kept for the data of events between two of them, in bytes.
const KEPT_BYTES: usize = 64 << 10;

impl Shard {
    /// True when a connection is one of those that a route is for.
    pub(super) fn is_one_of(&self, slot: Slot, who: &Who) -> bool {
        *who == Who::Anyone || self.users.of(slot).is_some_and(|user| who.is(&user.actor()))
    }

    /// Takes the steps of a route for an event of a client, but for telling it.
    ///
    /// # Errors
    /// When one of them is refused. Those before it have been taken.
    pub(super) fn take_steps<'e>(
        &mut self,
        slot: Slot,
        sent: &Sent<'e>,
        steps: &'e Steps,
        ack: Option<&str>,
        now: Time,
    ) -> Result<Told<'e>, Refusal<'static>> {
        let found = targets::find(steps, sent.args, || self.users.of(slot).is_some())?;
        let id = if steps.needs.id { write_socket_id(&self.new_id()) } else { String::new() };
        let socket = match steps.needs.socket {
            true => write_socket_id(&self.id_in(slot, sent.namespace)),
            false => String::new(),
        };
        let user = self.users.of(slot).cloned();
        let values = Values {
            found: &found,
            args: sent.args,
            event: sent.event,
            namespace: sent.namespace,
            user: user.as_ref().map(|user| user.name.as_str()),
            now_ms: self.settings.origin_unix_ms + now.ms(),
            id: &id,
            socket: &socket,
            rooms: "",
        };
        for name in &steps.member {
            let rooms = self.keys(sent, std::slice::from_ref(name), &values, steps)?;
            let is_in =
                |room: &str| self.bus.find(room).is_some_and(|room| self.rooms.has(&self.conns, slot, room));
            // Of an empty list there is no room that it could be in.
            if rooms.is_empty() || !rooms.iter().all(|room| is_in(room)) {
                return Err(Refusal::new(Code::Forbidden, "this client is not in this room"));
            }
        }
        if !steps.join.is_empty() {
            let keys = self.keys(sent, &steps.join, &values, steps)?;
            if !self.catch_up_in(slot, sent.namespace, now) {
                return Ok(Told::default());
            }
            if let Some(refusal) = self.forbid(slot, &keys, Act::Join) {
                return Err(refusal);
            }
            self.join(slot, &keys)?;
        }
        if !steps.leave.is_empty() {
            let keys = self.keys(sent, &steps.leave, &values, steps)?;
            if !self.catch_up_in(slot, sent.namespace, now) {
                return Ok(Told::default());
            }
            for room in keys.iter().filter_map(|key| self.bus.find(key)).collect::<SmallVec<[_; 8]>>() {
                self.leave(slot, room);
            }
        }
        let rooms = if steps.needs.rooms { self.room_names(slot, sent.namespace) } else { String::new() };
        let values = Values { rooms: &rooms, ..values };
        for publish in &steps.publish {
            self.publish_step(slot, sent, (publish, steps), &values, now)?;
        }
        let unasked = match steps.backend {
            true => {
                self.ask_about(slot, sent.namespace, (sent.event, sent.args), ack, sent.attachments).err()
            }
            false => None,
        };
        let filled = |data: &'e Data| match data {
            Data::Args => Cow::Borrowed(sent.args),
            Data::Fixed(json) => Cow::Borrowed(&**json),
            data => {
                let mut out = Vec::new();
                data.fill(&values, &mut out);
                Cow::Owned(String::from_utf8(out).unwrap_or_default())
            }
        };
        let reply = steps.reply.as_ref().filter(|_| unasked.is_none()).map(|Saying { event, data }| {
            (event.as_deref().map_or(Cow::Borrowed(sent.event), Cow::Borrowed), filled(data))
        });
        let ack =
            (ack.is_some() && !steps.backend).then(|| steps.ack.as_ref().map_or(Cow::Borrowed("{}"), filled));
        Ok(Told { reply, ack, unasked })
    }

    /// Publishes what one step says.
    fn publish_step(
        &mut self,
        slot: Slot,
        sent: &Sent<'_>,
        (publish, steps): (&Publish, &Steps),
        values: &Values<'_>,
        now: Time,
    ) -> Result<(), Refusal<'static>> {
        let Targets { rooms, except, natives } = Targets::of(publish, values, &steps.paths, self.bounds())?;
        let rooms: Names<'_> = room_keys(sent.namespace, rooms).collect();
        let except: Names<'_> = room_keys(sent.namespace, except).collect();
        let Some((room, more_rooms)) = rooms.split_first() else { return Ok(()) };
        let event = publish.saying.event.as_deref().unwrap_or(sent.event);
        let sender = ConnId { shard: self.id, slot, stamp: self.conns[slot as usize].stamp };
        let mut payload = std::mem::take(&mut self.payload);
        payload.clear();
        publish.saying.data.fill_or_null(values, &mut payload);
        let draft = Draft {
            more_rooms,
            except_rooms: &except,
            volatile: publish.volatile,
            natives,
            except: (!publish.echo).then_some(sender),
            ..Draft::new(room, event, &payload, now)
        };
        let is_args = publish.saying.data == Data::Args;
        // What the data does not name stays behind.
        let (text, attachments) =
            attachments::named(str::from_utf8(&payload).unwrap_or("null"), sent.attachments);
        let published = match &*attachments {
            // Binary data alone is bytes for everybody, without a text around it.
            [only] if is_args && attachments::is_placeholder(&text) => {
                self.send(&Draft { binary: true, payload: only, ..draft })
            }
            attachments => {
                let is_list = is_args && !is_one(sent.args);
                self.send(&Draft { payload: text.as_bytes(), attachments, is_list, ..draft })
            }
        };
        payload.shrink_to(KEPT_BYTES);
        self.payload = payload;
        published?;
        if let Some(stats) = self.namespace_stats(slot, sent.namespace) {
            stats.publications.add(1);
        }
        Ok(())
    }

    /// Puts what a client publishes on its way. Answers the shards it goes to.
    ///
    /// # Errors
    /// When too much is on its way already.
    pub(super) fn send(&mut self, draft: &Draft<'_>) -> Result<ShardSet, Refusal<'static>> {
        let published = self.bus.publish(draft);
        self.see_off(published).map_err(|Overloaded| {
            Refusal::new(Code::Overloaded, "too many events are on their way").with_retry(OVERLOAD_RETRY_MS)
        })
    }

    /// Counts what was published, or was not, and wakes the other shards that it goes to.
    pub(super) fn see_off(
        &mut self,
        published: Result<ShardSet, Overloaded>,
    ) -> Result<ShardSet, Overloaded> {
        match published {
            Ok(shards) => {
                self.bells.extend(shards);
                self.bells.remove(self.id);
                self.stats().publications.add(1);
            }
            Err(Overloaded) => self.stats().overloads.add(1),
        }
        published
    }

    /// The rooms that templates stand for, as the directory calls them.
    fn keys<'n>(
        &self,
        sent: &Sent<'_>,
        names: &'n [Name],
        values: &Values<'_>,
        steps: &Steps,
    ) -> Result<Names<'n>, Refusal<'static>> {
        let mut filled: SmallVec<[Cow<'n, str>; 4]> = SmallVec::new();
        for name in names {
            targets::fill(name, values, &steps.paths, self.bounds(), &mut filled)?;
        }
        Ok(room_keys(sent.namespace, filled).collect())
    }

    fn bounds(&self) -> Bounds {
        Bounds {
            rooms_max: self.settings.rooms_per_connection_max,
            room_name_bytes_max: self.settings.room_name_bytes_max,
        }
    }

    /// The names of the rooms of a namespace that a connection is in, as a JSON list.
    fn room_names(&self, slot: Slot, namespace: &str) -> String {
        let own = self.id_in(slot, namespace);
        let keys = self.rooms.of(&self.conns, slot).into_iter().filter_map(|room| self.bus.name(room));
        let keys: Vec<_> = keys.filter(|key| namespace_of(key) == namespace).collect();
        let own = write_socket_id(&own);
        let names = keys.iter().map(|key| room_of(key)).filter(|name| !name.is_empty() && *name != own);
        serde_json::to_string(&names.collect::<Vec<_>>()).unwrap_or_default()
    }
}
