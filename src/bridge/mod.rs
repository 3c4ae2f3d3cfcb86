//! Between processes: what connects this one to others, through Redis.
//!
//! The bridge runs on a thread of its own, beside the data path: shards leave what goes out in [`Outside`] and never wait; what comes in
//! goes to their mailboxes. The [link](link::Link) knows Redis and nothing of rooms or clients; [`Wire`] knows who is told what, and
//! where.

pub mod channels;
pub mod fault;
pub mod link;
pub mod stats;

mod asking;
mod counts;
mod forget;
mod lanes;
pub(crate) mod numbers;
mod presence;
mod publisher;
mod servers;
mod subscriber;
mod used;
mod wire;

use crate::auth::Gate;
use crate::bus::Bus;
use crate::bus::directory::{namespace_of, room_key, room_of};
use crate::bus::mailbox::Mail;
use crate::bus::outside::{ANYWHERE, Deed, Names, Outgoing, Outside};
use crate::bus::presence::Question;
use crate::cluster::{Body, Flags, Limits, Message, Target, Why, throng};
use crate::dialect::attachments;
use crate::message::{Ask, Asker, Draft, Publication, is_reserved_room};
use crate::routes::channel::Channel;
use crate::stats::Counter;
use crate::time::{Clock, Time};
use arc_swap::ArcSwap;
use asking::{Asking, Purpose, TooMuch};
use channels::{Channels, Dropped};
use compact_str::CompactString;
use fault::{Fault, FaultKind};
use link::{Event, Link, Way};
use numbers::{Inbound, Outbound};
use presence::Questions;
use stats::{BridgeStats, LinkStats, Loss};
use std::borrow::Cow;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use std::{io, thread};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use wire::Wire;

pub use wire::Cluster;

/// Who is in this room is told when events of other processes may have been missed, by an event `gap`.
pub const GAPS_ROOM: &str = "throng:gaps";
/// Entries that may be missing before one on the same channel, or have been before the first that is heard of a process.
const SEQUENCE_LEAP_MAX: u64 = 1 << 48;
/// Events from elsewhere that are put into the mailboxes at a time.
const DRAFTS_MAX: usize = 64;
/// How long answers are waited for when the server that asks does not say, in milliseconds. As long as Node waits.
const ASK_MS: u64 = 5_000;
/// How long nothing is logged of refusals after one was, in milliseconds.
const REFUSAL_REST_MS: u64 = 60_000;
/// How often what is waited for is looked through.
const TICK: Duration = Duration::from_millis(250);

/// How a process is connected to others.
#[derive(Clone)]
pub struct Settings {
    /// How Redis is reached.
    pub link: link::Settings,
    /// With whom rooms are shared.
    pub cluster: Cluster,
    /// What the names of all channels begin with.
    pub prefix: String,
    /// How much of what comes is taken.
    pub bounds: Bounds,
    /// What is heard of applications.
    pub channels: Vec<Channel>,
    /// How long others may take to tell who is in a room.
    pub presence_timeout: Duration,
}

/// What others may know of the bridge.
#[derive(Clone, Debug, Default)]
pub struct Bridge {
    /// What it counts.
    pub stats: Arc<BridgeStats>,
    /// What its link counts.
    pub link_stats: Arc<LinkStats>,
    /// Where publications wait for it.
    pub outside: Arc<Outside>,
    /// What it holds, and the runtime of its thread.
    core: Option<(Link, Handle)>,
    bounds: Arc<ArcSwap<Bounds>>,
}

/// How much of what comes is taken. All bounds are inclusive.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bounds {
    /// What others may say.
    pub limits: Limits,
    /// What applications may say on their channels.
    pub channels: channels::Bounds,
}

impl Bridge {
    /// From now on so much is taken.
    pub fn set_bounds(&self, bounds: Bounds) {
        self.bounds.store(Arc::new(bounds));
    }

    /// Has something done with the link, on the bridge's thread.
    pub fn spawn<F>(&self, work: impl FnOnce(Link) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        if let Some((link, runtime)) = &self.core {
            runtime.spawn(work(link.clone()));
        }
    }

    /// `up` when all servers of Redis can be published to and heard, `down` when none can, `partly` when only some can.
    pub fn status(&self) -> &'static str {
        match (self.link_stats.servers_up.value(), self.link_stats.servers.value()) {
            (0, _) => "down",
            (up, all) if up < all => "partly",
            _ => "up",
        }
    }

    /// Publications that others did not get, or may not have got, by the reason: those of [`Loss`], and `behind` where the bridge itself
    /// was too slow.
    pub fn lost(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let by_link = Loss::LABELS.into_iter().zip(self.link_stats.lost.iter().map(Counter::value));
        by_link.chain([("behind", self.outside.lost.value())])
    }

    /// What was to be made of messages of applications and was not, by the reason.
    pub fn dropped(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Dropped::LABELS.into_iter().zip(self.stats.channel_dropped.iter().map(Counter::value))
    }

    /// Faults by their kind.
    pub fn faults(&self) -> impl Iterator<Item = (&'static str, u64)> {
        FaultKind::LABELS.into_iter().zip(self.link_stats.faults.iter().map(Counter::value))
    }
}

/// What the thread of the bridge holds.
struct Core {
    bus: Arc<Bus>,
    outside: Arc<Outside>,
    clock: Clock,
    wire: Wire,
    channels: Channels,
    bounds: Arc<ArcSwap<Bounds>>,
    presence_timeout: Duration,
    /// Microseconds from 1970 to the clock's origin.
    origin_us: u64,
    stats: Arc<BridgeStats>,
    link: OnceLock<Link>,
    state: Mutex<State>,
}

/// Locked for moments only, and only ever by the thread of the bridge once it runs.
#[derive(Debug)]
struct State {
    outbound: Outbound,
    inbound: Inbound,
    asking: Asking,
    questions: Questions,
    /// When what is waited for is looked through next.
    look_through_at: Time,
    /// When a refusal may be logged again.
    refusal_logged_until: Time,
    /// When a message of an application that is dropped may be.
    drop_logged_until: Time,
}

impl State {
    fn new() -> State {
        State {
            outbound: Outbound::new(),
            inbound: Inbound::default(),
            asking: Asking::default(),
            questions: Questions::default(),
            look_through_at: Time::default(),
            refusal_logged_until: Time::default(),
            drop_logged_until: Time::default(),
        }
    }
}

/// Starts the bridge. It holds until the process ends.
///
/// # Errors
/// When the settings cannot work. That Redis is away is none.
pub fn spawn(
    settings: Settings,
    bus: Arc<Bus>,
    outside: Arc<Outside>,
    gate: Arc<Gate>,
    clock: Clock,
    origin_us: u64,
) -> Result<Bridge, Fault> {
    let uid = format!("{:016x}", numbers::random());
    // Node's classic adapter has names of six characters, and nobody counts them.
    let on_cluster = matches!(settings.link.servers, link::Servers::Cluster(_));
    let wire = Wire::new(settings.cluster, &settings.prefix, uid, on_cluster);
    let bounds = Arc::new(ArcSwap::from_pointee(settings.bounds));
    let core = Arc::new(Core {
        bus,
        outside,
        clock,
        wire,
        channels: Channels::new(settings.channels, &settings.prefix),
        bounds: bounds.clone(),
        presence_timeout: settings.presence_timeout,
        origin_us,
        stats: Arc::default(),
        link: OnceLock::new(),
        state: Mutex::new(State::new()),
    });
    let hearing = core.clone();
    let link = Link::new(settings.link, clock, move |event| hearing.hear(event))?;
    core.link.set(link.clone()).ok();
    for (way, channel) in core.wire.channels_of_namespace("/") {
        link.subscribe(way, [channel]);
    }
    link.subscribe(Way::Plain, core.channels.names(false));
    link.subscribe(Way::Pattern, core.channels.names(true));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(no_thread)?;
    let bridge = Bridge {
        stats: core.stats.clone(),
        link_stats: link.stats(),
        outside: core.outside.clone(),
        core: Some((link.clone(), runtime.handle().clone())),
        bounds,
    };
    core.outside.set_pen(core.wire.pen(origin_us));
    let bell = Arc::new(Notify::new());
    let ringing = bell.clone();
    core.outside.hang_bell(Box::new(move || ringing.notify_one()));
    let (uid, own_stats) = (core.wire.uid().to_owned(), core.stats.clone());
    let work = move || {
        runtime.block_on(async move {
            let names = (settings.prefix.clone(), uid.clone());
            tokio::spawn(used::run(link.clone(), gate.clone(), names, clock, own_stats));
            if gate.share() {
                tokio::spawn(counts::run(link.clone(), gate, settings.prefix, uid));
            }
            tokio::spawn(async move { link.run().await });
            loop {
                // What is waited for ends in time though nothing happens.
                tokio::time::timeout(TICK, bell.notified()).await.ok();
                core.pump();
            }
        });
    };
    thread::Builder::new().name("bridge".into()).spawn(work).map_err(no_thread)?;
    Ok(bridge)
}

impl Core {
    /// Sends out what waits.
    fn pump(self: &Arc<Core>) {
        let changed = self.outside.take_changed();
        if !changed.is_empty() {
            self.follow(changed.iter().map(|(name, begun)| (name.as_str(), *begun)));
        }
        for outgoing in self.outside.take() {
            match outgoing {
                Outgoing::Publication { publication, names } => {
                    self.broadcast(&publication, names.as_deref());
                }
                Outgoing::Envelope { room, entries, bytes } => self.send(&room, entries, bytes),
                Outgoing::Asked { number, sockets } => {
                    let counted = self.asking(|asking| asking.asked(number, sockets));
                    counted.into_iter().for_each(|message| self.say(&message));
                }
                Outgoing::Answer(answer) => {
                    let passed = self.asking(|asking| asking.answered(*answer));
                    passed.into_iter().for_each(|message| self.say(&message));
                }
                Outgoing::Order { namespace, rooms, deed } => {
                    self.pass_on(&namespace, &rooms, &deed);
                }
                Outgoing::Found { number, sockets } => {
                    match self.asking(|asking| asking.found(number, sockets)) {
                        Ok(found) => found.into_iter().for_each(|message| self.say(&message)),
                        Err(TooMuch) => self.refuse("which sockets there are: the list is too long"),
                    }
                }
                Outgoing::Presence { number, question } => self.ask_elsewhere(number, &question),
                Outgoing::Forget(forget) => {
                    let args = forget::encode(&forget);
                    let body = Body::ServerSideEmit { args: args.into(), request_id: None };
                    self.say(&self.message("/", body));
                }
            }
        }
        let now = self.clock.now();
        self.state(|state| {
            // Not each time: there may be thousands, and this is called with each publication.
            if now >= state.look_through_at {
                state.asking.forget(now);
                state.look_through_at = now.plus_ms(TICK.as_millis() as u64);
            }
        });
    }

    /// Listens for the rooms that have begun, and no longer for those that have ended.
    fn follow<'n>(&self, changed: impl Iterator<Item = (&'n str, bool)>) {
        let Some(link) = self.link.get() else { return };
        let mut channels: [[Vec<String>; 3]; 2] = Default::default();
        for (name, begun) in changed {
            for (way, channel) in self.wire.channels_of(name) {
                self.state(|state| state.inbound.follow(&channel, begun));
                channels[usize::from(begun)][way as usize].push(channel);
            }
        }
        let [ended, begun] = channels;
        for (way, (ended, begun)) in
            [Way::Plain, Way::Pattern, Way::Sharded].into_iter().zip(ended.into_iter().zip(begun))
        {
            link.unsubscribe(way, ended);
            link.subscribe(way, begun);
        }
    }

    /// Numbers an envelope for a room and sends it.
    fn send(&self, room: &str, entries: u64, mut envelope: Vec<u8>) {
        let (way, channel) = self.wire.room(room);
        throng::set_head(&mut envelope, self.state(|state| state.outbound.count(&channel, entries)));
        self.publish(way, &channel, &envelope, usize::try_from(entries).unwrap_or(usize::MAX));
    }

    /// Tells others of an event that takes more words.
    fn broadcast(self: &Arc<Core>, publication: &Publication, names: Option<&Names>) {
        let namespace = namespace_of(publication.room_name());
        let everybody = room_key(namespace, "");
        let short = |name: &str| -> Cow<'_, str> {
            let prefix = if namespace == "/" { "" } else { &*everybody };
            name.strip_prefix(prefix).unwrap_or(name).to_owned().into()
        };
        let own = [publication.room_name().into()];
        let rooms = names.map_or(&own[..], |names| &names.rooms);
        let is_for_all = rooms.iter().any(|room| *room == *everybody);
        let target = Target {
            rooms: (!is_for_all).then(|| rooms.iter().map(|room| short(room)).collect()),
            except: names.map_or(&[][..], |names| &names.except).iter().map(|room| short(room)).collect(),
        };
        let payload = publication.payload();
        let (args, attachments): (&str, Vec<Cow<'_, [u8]>>) = if publication.binary {
            (attachments::PLACEHOLDER, vec![payload.into()])
        } else {
            let attachments = publication.attachments().iter().map(|bytes| bytes.as_slice().into()).collect();
            (str::from_utf8(payload).unwrap_or("null"), attachments)
        };
        let special = publication.special.as_deref();
        let now = self.clock.now();
        let ask = special.and_then(|special| special.ask).filter(|ask| ask.until > now);
        let timeout_ms = ask.map(|ask| (ask.until.since_ns(now) / 1_000_000) as u32);
        let flags = Flags { volatile: special.is_some_and(|special| special.volatile), timeout_ms };
        let request_id = ask.map(|ask| format!("{}:{:x}", self.wire.uid(), ask.number));
        let body = Body::Broadcast {
            target,
            event: publication.event().into(),
            args: args.into(),
            flags,
            request_id: request_id.as_deref().map(Cow::from),
        };
        let message = Message { attachments, ..self.message(namespace, body) };
        match self.wire.enclosed(&message) {
            Some((room, payload)) => {
                let mut bytes = Vec::new();
                throng::encode_head(&mut bytes, throng::Head::default());
                throng::encode_message(&mut bytes, &payload);
                self.send(&room, 1, bytes);
            }
            None => self.say(&message),
        }
        if let (Some(ask), Some(request_id)) = (ask, request_id) {
            self.asking(|asking| asking.open(request_id.clone(), ask));
            tokio::spawn(self.clone().count_servers(namespace.to_owned(), request_id, ask.number));
        }
    }

    /// Tells others what is to be done to their sockets.
    fn pass_on(&self, namespace: &str, rooms: &[CompactString], deed: &Deed) {
        let short = |rooms: &[CompactString]| -> Vec<Cow<'static, str>> {
            rooms.iter().map(|room| room_of(room).to_owned().into()).collect()
        };
        let target = Target { rooms: Some(short(rooms)), except: Vec::new() };
        let body = match deed {
            Deed::Join(rooms) => Body::Join { target, rooms: short(rooms) },
            Deed::Leave(rooms) => Body::Leave { target, rooms: short(rooms) },
            Deed::Disconnect { close } => Body::Disconnect { target, close: *close, why: None },
            Deed::Close { code, reason } => {
                let (reason, anywhere) = (reason.as_str().into(), namespace == ANYWHERE);
                Body::Disconnect { target, close: true, why: Some(Why { code: *code, reason, anywhere }) }
            }
            Deed::Find(_) => return,
        };
        // All listen for the main one.
        let namespace = if namespace == ANYWHERE { "/" } else { namespace };
        self.say(&self.message(namespace, body));
    }

    /// Tells a shard how many other processes its question has gone to, and what came from them in the meantime.
    async fn count_servers(self: Arc<Core>, namespace: String, request_id: String, number: u64) {
        let processes = self.servers(&namespace).await.saturating_sub(1);
        let Asker::Shard(shard) = Ask::asker(number) else { return };
        self.bus.post(shard, Mail::AskedOutside { number, processes });
        for mail in self.asking(|asking| asking.counted(&request_id)) {
            self.bus.post(shard, mail);
        }
    }

    /// How many processes listen for requests in a namespace, this one included; 0 when Redis does not say.
    async fn servers(&self, namespace: &str) -> usize {
        let Some(link) = self.link.get() else { return 0 };
        let (command, channel) = self.wire.count(namespace);
        let words: [&[u8]; 3] = [b"PUBSUB", command.as_bytes(), channel.as_bytes()];
        // A channel of one slot has its subscribers on one server; others may be on any.
        let answers = match self.wire.way() {
            Way::Sharded => vec![link.ask(channel.as_bytes(), &words).await],
            Way::Plain | Way::Pattern => link.ask_each(&words).await,
        };
        let counts = answers.into_iter().flatten().filter_map(|answer| match answer {
            link::Value::Array(pair) => match pair.as_slice() {
                [_, link::Value::Int(count)] => usize::try_from(*count).ok(),
                _ => None,
            },
            _ => None,
        });
        counts.sum()
    }

    /// What the link tells.
    fn hear(self: &Arc<Core>, event: Event<'_>) {
        match event {
            Event::Message { pattern, channel, payload, .. }
                if let places @ [_, ..] = self.channels.find(pattern, channel) =>
            {
                self.hear_channel(places, channel, &payload);
            }
            Event::Message { channel, payload, .. } => match self.wire.room_of(channel) {
                Some(room) => self.hear_envelope(channel, room, &payload),
                None => match self.wire.decode(channel, &payload, &self.bounds.load().limits) {
                    Ok(Some(message)) => self.hear_message(message),
                    Ok(None) => {}
                    Err(_) => self.stats.malformed.add(1),
                },
            },
            Event::Gap { from, to } => self.tell_of_gap(from, to),
            Event::Up { server } => tracing::info!(server, "connected to Redis"),
            Event::Down { server, fault } => tracing::warn!(server, %fault, "lost Redis"),
            Event::Away { server, fault } => tracing::warn!(server, %fault, "cannot connect to Redis"),
            Event::GivenUp { server, fault } => {
                tracing::warn!(server, %fault, "nothing is published to Redis until it is back");
            }
            Event::Refused { server, fault } => {
                tracing::warn!(server, %fault, "Redis refuses publications or subscriptions");
            }
        }
    }

    fn hear_envelope(self: &Arc<Core>, channel: &[u8], room: &str, payload: &[u8]) {
        let Ok((head, entries)) = throng::decode(payload, self.bounds.load().limits.message_bytes_max) else {
            return self.stats.malformed.add(1);
        };
        if self.state(|state| state.outbound.is_own(head)) {
            return;
        }
        let expected = self.state(|state| state.inbound.expected(channel, head.process));
        // What no process can have counted to would make all that follows seem to have come already.
        if head.sequence > expected.unwrap_or_default().saturating_add(SEQUENCE_LEAP_MAX) {
            return self.stats.malformed.add(1);
        }
        self.stats.missed.add(expected.map_or(0, |expected| head.sequence.saturating_sub(expected)));
        let now = self.clock.now();
        // One that cannot be read has its number, too.
        let mut sequence = head.sequence;
        let mut drafts = Vec::new();
        for entry in entries {
            let is_again = expected.is_some_and(|expected| sequence < expected);
            sequence = sequence.wrapping_add(1);
            if is_again {
                self.stats.repeated.add(1);
                continue;
            }
            let said = entry.map(|entry| entry.said);
            if let Ok(throng::Said::Publication(publication)) = &said
                && publication.except.is_none()
            {
                let throng::Publication { event, payload, binary, volatile, .. } = *publication;
                drafts.push(Draft { binary, volatile, ..Draft::new(room, event, payload, now) });
                continue;
            }
            self.deliver_all(&drafts);
            drafts.clear();
            match said {
                Ok(throng::Said::Publication(publication)) => {
                    let throng::Publication { event, payload, binary, volatile, except, .. } = publication;
                    let except: Vec<Cow<'_, str>> =
                        except.iter().map(|id| room_key(namespace_of(room), id)).collect();
                    let draft = Draft::new(room, event, payload, now);
                    self.deliver(&Draft { binary, volatile, except_rooms: &except, ..draft });
                }
                Ok(throng::Said::Message(message)) => {
                    match self.wire.open(room, message, &self.bounds.load().limits) {
                        Ok(Some(message)) => self.hear_message(message),
                        Ok(None) => {}
                        Err(_) => self.stats.malformed.add(1),
                    }
                }
                Ok(throng::Said::Unknown(_)) => self.stats.unknown.add(1),
                Err(_) => self.stats.malformed.add(1),
            }
        }
        self.deliver_all(&drafts);
        self.state(|state| state.inbound.heard(channel, head.process, sequence));
    }

    /// Delivers events from elsewhere that are for the members of one room.
    fn deliver_all(&self, drafts: &[Draft<'_>]) {
        for drafts in drafts.chunks(DRAFTS_MAX) {
            match self.bus.publish_all_here(drafts) {
                Ok(shards) => {
                    self.stats.events.add(if shards.is_empty() { 0 } else { drafts.len() as u64 });
                    self.bus.ring(shards);
                }
                Err(crate::bus::Overloaded) => self.stats.overloads.add(drafts.len() as u64),
            }
        }
    }

    /// Delivers an event from elsewhere. Answers how many shards have got it.
    fn deliver(&self, draft: &Draft<'_>) -> usize {
        match self.bus.publish_here(draft) {
            Ok(shards) => {
                self.stats.events.add(u64::from(!shards.is_empty()));
                self.bus.ring(shards);
                shards.iter().count()
            }
            Err(crate::bus::Overloaded) => {
                self.stats.overloads.add(1);
                0
            }
        }
    }

    fn hear_message(self: &Arc<Core>, message: Message<'static>) {
        let Message { uid, to, namespace, attachments, body } = message;
        let uid = uid.as_deref();
        if uid == Some(self.wire.uid()) || to.as_deref().is_some_and(|to| to != self.wire.uid()) {
            return;
        }
        let now = self.clock.now();
        let keys = |names: &[Cow<'_, str>]| -> Vec<String> {
            names.iter().map(|room| room_key(&namespace, room).into_owned()).collect()
        };
        let rooms_of = |target: &Target<'_>| match &target.rooms {
            Some(rooms) => keys(rooms),
            None => vec![room_key(&namespace, "").into_owned()],
        };
        let order = |target: &Target<'_>, deed| {
            self.order(&namespace, &rooms_of(target), &keys(&target.except), deed)
        };
        let compact = |names: Vec<String>| names.into_iter().map(Into::into).collect();
        let find = |target: &Target<'_>, request_id: &str, purpose| {
            let members = |room: &String| self.bus.look_up(room).map_or(1, |(_, _, members)| members.into());
            let sought = rooms_of(target).iter().map(members).sum();
            let number = self.asking(|asking| asking.find(request_id, uid, &namespace, purpose, sought, now));
            let Ok(number) = number else {
                return self.refuse("which sockets there are: too many questions are open");
            };
            let shards = order(target, Deed::Find(number));
            let found = self.asking(|asking| match shards {
                Some(shards) => asking.find_in(number, shards),
                None => {
                    asking.give_up(number);
                    None
                }
            });
            found.into_iter().for_each(|message| self.say(&message));
        };
        match body {
            Body::Broadcast { target, event, args, flags, request_id } => {
                let (mut rooms, except) = (rooms_of(&target), keys(&target.except));
                rooms.retain(|room| !is_reserved_room(room));
                let Some((room, more)) = rooms.split_first() else { return };
                let (more, except): (Vec<_>, Vec<_>) =
                    (more.iter().map(Cow::from).collect(), except.iter().map(Cow::from).collect());
                let attachments: Vec<Vec<u8>> = attachments.into_iter().map(Cow::into_owned).collect();
                // One binary value alone is bytes for everybody, as it was where it came from.
                let (binary, payload, attachments) = match attachments.as_slice() {
                    [only] if attachments::is_placeholder(&args) => (true, only.as_slice(), &[][..]),
                    all => (false, args.as_bytes(), all),
                };
                let ask = request_id.as_deref().map(|request_id| {
                    let wait_ms = flags.timeout_ms.map_or(ASK_MS, u64::from).clamp(1, 60_000);
                    let until = now.plus_ms(wait_ms);
                    self.asking(|asking| asking.ask(request_id, uid, &namespace, until))
                });
                let Ok(ask) = ask.transpose() else {
                    // Without its question it would be another event.
                    return self.refuse("an event that asks clients: too many are open");
                };
                let draft = Draft {
                    more_rooms: &more,
                    except_rooms: &except,
                    binary,
                    attachments,
                    volatile: flags.volatile,
                    ask,
                    natives: target.rooms.is_none() && namespace == "/",
                    is_list: !binary,
                    ..Draft::new(room, &event, payload, now)
                };
                let shards = self.deliver(&draft);
                if let Some(ask) = ask {
                    let counted = self.asking(|asking| asking.ask_in(ask.number, shards));
                    counted.into_iter().for_each(|message| self.say(&message));
                }
            }
            // What was refused is counted, and nobody waits for it.
            Body::Join { target, rooms } => _ = order(&target, Deed::Join(compact(keys(&rooms)))),
            Body::Leave { target, rooms } => _ = order(&target, Deed::Leave(compact(keys(&rooms)))),
            Body::Disconnect { target, close, why: None } => _ = order(&target, Deed::Disconnect { close }),
            Body::Disconnect { target, why: Some(Why { code, reason, anywhere }), .. } => {
                let deed = Deed::Close { code, reason: reason.as_ref().into() };
                let of = if anywhere { ANYWHERE } else { &namespace };
                self.order(of, &rooms_of(&target), &keys(&target.except), deed);
            }
            Body::Fetch { target, request_id } => find(&target, &request_id, Purpose::Sockets),
            Body::Presence { room, of, who, request_id } => {
                let room = room_key(of.as_deref().unwrap_or(&namespace), &room).as_ref().into();
                self.tell_elsewhere(&namespace, uid, &Question { room, who }, &request_id);
            }
            Body::PresenceAnswer { request_id, node, members, who } => {
                self.heard_part(&request_id, presence::of_throng(&node, members, who));
            }
            Body::FetchAnswer { request_id, sockets } => {
                self.heard_part(&request_id, presence::of_node(uid, sockets));
            }
            Body::Sockets { rooms, request_id } => {
                find(&Target { rooms, except: Vec::new() }, &request_id, Purpose::Ids);
            }
            Body::Rooms { request_id } => find(&Target::default(), &request_id, Purpose::Rooms),
            Body::ServerSideEmit { request_id: Some(request_id), .. } => {
                // There is no code here that could answer; but who asks must not wait for that.
                let body = Body::ServerSideEmitAnswer { request_id, value: "null".into() };
                self.say(&Message { to: uid.map(Cow::from), ..self.message(&namespace, body) });
            }
            Body::ClientCount { request_id, count } => {
                let sockets = u32::try_from(count).unwrap_or(u32::MAX);
                let told = self.asking(|asking| asking.heard_count(&request_id, sockets));
                told.into_iter().for_each(|(shard, mail)| self.bus.post(shard, mail));
            }
            Body::ClientAck { request_id, value } => {
                let attachments = attachments.into_iter().map(Cow::into_owned).collect();
                let told =
                    self.asking(|asking| asking.heard_answer(&request_id, value.into_owned(), attachments));
                told.into_iter().for_each(|(shard, mail)| self.bus.post(shard, mail));
            }
            Body::ServerSideEmit { args, request_id: None } => {
                if forget::decode(&args).is_some_and(|forget| self.bus.forget_here(forget).is_err()) {
                    self.refuse("an order to sign a user out: too many wait");
                }
            }
            // Answers to what this process never asks, and signs of life.
            Body::ServerSideEmitAnswer { .. }
            | Body::SocketsAnswer { .. }
            | Body::RoomsAnswer { .. }
            | Body::Heartbeat { .. }
            | Body::Close => {}
        }
    }

    /// Has something done to sockets here. Answers how many shards were told; `None` when too many orders wait, and none was.
    fn order(&self, namespace: &str, rooms: &[String], except: &[String], deed: Deed) -> Option<usize> {
        let rooms: Vec<&str> = rooms.iter().map(String::as_str).collect();
        let except: Vec<&str> = except.iter().map(String::as_str).collect();
        match self.bus.order(namespace, &rooms, &except, deed) {
            Ok(shards) => Some(shards.iter().count()),
            Err(crate::bus::Overloaded) => {
                self.refuse("an order about sockets: too many wait");
                None
            }
        }
    }

    /// Something that another process wants is not done. That is counted each time and logged now and then, since it comes in floods.
    fn refuse(&self, what: &str) {
        self.stats.refused.add(1);
        let now = self.clock.now();
        let is_logged = self.state(|state| {
            let is_logged = now >= state.refusal_logged_until;
            if is_logged {
                state.refusal_logged_until = now.plus_ms(REFUSAL_REST_MS);
            }
            is_logged
        });
        if is_logged {
            tracing::warn!(what, "something that another process wants was refused");
        }
    }

    fn tell_of_gap(&self, from: Time, to: Time) {
        let ms = |time: Time| self.origin_us / 1_000 + time.ms();
        let data = format!(r#"{{"from_ms":{},"to_ms":{}}}"#, ms(from), ms(to));
        self.stats.gaps.add(1);
        tracing::warn!(from_ms = ms(from), to_ms = ms(to), "events of other processes may have been missed");
        let draft = Draft::new(GAPS_ROOM, "gap", data.as_bytes(), self.clock.now());
        match self.bus.publish_here(&draft) {
            Ok(shards) => self.bus.ring(shards),
            Err(crate::bus::Overloaded) => self.stats.overloads.add(1),
        }
    }

    fn message<'m>(&self, namespace: &'m str, body: Body<'m>) -> Message<'m> {
        let uid = Some(self.wire.uid().to_owned().into());
        Message { uid, to: None, namespace: namespace.into(), attachments: Vec::new(), body }
    }

    fn say(&self, message: &Message<'_>) {
        let own;
        let message = match message.uid {
            Some(_) => message,
            None => {
                own = Message { uid: Some(self.wire.uid().to_owned().into()), ..message.clone() };
                &own
            }
        };
        if let Some((channel, payload)) = self.wire.encode(message) {
            self.publish(self.wire.way(), &channel, &payload, 1);
        }
    }

    fn publish(&self, way: Way, channel: &str, payload: &[u8], publications: usize) {
        if let Some(link) = self.link.get() {
            // What is lost is counted there.
            link.publish(way, channel.as_bytes(), payload, publications).ok();
        }
    }

    fn asking<R>(&self, act: impl FnOnce(&mut Asking) -> R) -> R {
        self.state(|state| act(&mut state.asking))
    }

    fn state<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn no_thread(error: io::Error) -> Fault {
    Fault::new(FaultKind::Settings, format!("the thread of the bridge cannot be had: {error}"))
}
