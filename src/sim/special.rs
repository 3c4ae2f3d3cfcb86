//! Publications that are not simply for the members of one room: for several, for all but some, volatile ones, and those that ask. What clients
//! say, and what the model makes of it, the answers included.

use super::World;
use super::clients::{Event, quoted};
use super::model::{Letter, Model, Origin, Peer, Stage};
use super::said::{Packet, Said};
use super::sessions::{namespace_of, told_of};
use super::talk::{Spoken, Talk, Word, prefix, said};
use crate::bus::mailbox::Answer;
use crate::dialect::Dialect;
use crate::message::{self, Asker, ShardId};
use crate::time::Time;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// What is special about a publication.
#[derive(Clone, Debug)]
pub(super) struct Special {
    /// The rooms and those whose members do not get it, by what the directory calls them: each once, in order, and at least one room.
    rooms: Vec<String>,
    except: Vec<String>,
    volatile: bool,
    ask_ms: Option<u32>,
}

/// A client in a namespace, whose id there is a room with it alone.
#[derive(Clone, Debug)]
pub(super) struct Socket {
    /// What the directory would call that room.
    pub(super) key: String,
    /// Whose it is.
    pub(super) peer: usize,
    /// True until it has left the namespace.
    pub(super) is_in: bool,
}

/// A room with its incarnation.
type Found = (String, u64);

/// Such a publication on its way.
#[derive(Clone, Debug)]
pub(super) struct Flight {
    pub(super) origin: Origin,
    echo: bool,
    /// Those that there were when it was published.
    rooms: Vec<Found>,
    except: Vec<Found>,
    /// By their places among those that there are.
    sockets: Vec<usize>,
    except_sockets: Vec<usize>,
    volatile: bool,
    ask: Option<Ask>,
}

/// A question: its number, and until when answers count.
#[derive(Clone, Copy, Debug)]
struct Ask {
    number: u64,
    until: Time,
}

/// The questions that one shard has to do with, by number.
#[derive(Clone, Debug, Default)]
pub(super) struct Asks {
    count: u64,
    /// Those of its own clients.
    open: BTreeMap<u64, Open>,
    /// Whose answers it waits for.
    asked: BTreeMap<u64, (Time, BTreeSet<usize>)>,
}

#[derive(Clone, Debug)]
struct Open {
    asker: usize,
    namespace: Option<String>,
    id: String,
    until: Time,
    /// Shards that have not told how many they have asked.
    shards: usize,
    awaited: u64,
    left_out: u64,
    answers: Vec<String>,
    bytes: usize,
}

impl Asks {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.open.keys().chain(self.asked.keys()).collect::<BTreeSet<_>>().len()
    }

    /// When the next one is over.
    pub(super) fn next_end(&self) -> Option<Time> {
        let open = self.open.values().map(|open| open.until);
        open.chain(self.asked.values().map(|(until, _)| *until)).min()
    }
}

impl World {
    /// Now and then, what is special about an event.
    pub(super) fn special(&mut self, event: &Event) -> Option<Rc<Special>> {
        if !self.plan.special || self.random.chance(50) {
            return None;
        }
        let namespace = namespace_of(&event.room);
        let key = |room: &str| match namespace {
            "/" => room.to_owned(),
            _ => format!("{namespace}\0{room}"),
        };
        let mut some = |most: usize| -> Vec<String> {
            (0..self.random.up_to(most)).map(|_| key(self.random.pick::<&str>(self.plan.rooms))).collect()
        };
        let (mut rooms, mut except) = (some(2), some(2));
        if self.random.chance(60) {
            except.clear();
        }
        rooms.push(event.room.clone());
        let told = &self.model.sockets_told;
        let sockets: Vec<&Socket> =
            told.iter().filter(|socket| namespace_of(&socket.key) == namespace).collect();
        if !sockets.is_empty() && self.random.chance(40) {
            let key = self.random.pick(&sockets).key.clone();
            match self.random.below(3) {
                0 => except.push(key),
                1 => rooms.push(key),
                _ => rooms = vec![key],
            }
        }
        for names in [&mut rooms, &mut except] {
            names.sort_unstable();
            names.dedup();
        }
        let ask_ms = self.random.chance(35).then(|| *self.random.pick(&[1, 50, 400, 3_000, 60_000]));
        let volatile = self.random.chance(30);
        Some(Rc::new(Special { rooms, except, volatile, ask_ms }))
    }

    /// The fields that say so; the one that names the room or rooms is first.
    pub(super) fn special_fields(&mut self, special: &Special, is_native: bool) -> Vec<String> {
        let names = |keys: &[String]| -> Vec<String> {
            keys.iter()
                .map(|key| key.split_once('\0').map_or(key.as_str(), |(_, room)| room).to_owned())
                .collect()
        };
        let (rooms, except) = (names(&special.rooms), names(&special.except));
        let mut fields = vec![match rooms.as_slice() {
            [only] if self.random.chance(50) => format!(r#""room":{}"#, quoted(only)),
            _ if !is_native && self.random.chance(30) => format!(r#""room":{}"#, quoted(&rooms)),
            _ => format!(r#""rooms":{}"#, quoted(&rooms)),
        }];
        match except.as_slice() {
            [] => {}
            [only] if !is_native && self.random.chance(50) => {
                fields.push(format!(r#""except":{}"#, quoted(only)));
            }
            _ => fields.push(format!(r#""except":{}"#, quoted(&except))),
        }
        if special.volatile {
            fields.push(r#""volatile":true"#.to_owned());
        }
        fields.extend(special.ask_ms.map(|ask_ms| format!(r#""ask_ms":{ask_ms}"#)));
        fields
    }

    /// A client has heard a question: it may answer once it talks again, or twice, or not at all. Most do.
    pub(super) fn ponder(&mut self, namespace: &str, id: &str) -> Vec<(String, String)> {
        let times = *self.random.pick(&[1, 1, 1, 2, 0]);
        vec![(namespace.to_owned(), id.to_owned()); times]
    }

    /// An answer to a question that a client has heard.
    pub(super) fn answer(&mut self, talk: &mut Talk) -> Option<Vec<Spoken>> {
        if talk.questions.is_empty() || self.random.chance(30) {
            return None;
        }
        let at = self.random.up_to(talk.questions.len() - 1);
        let (namespace, id) = talk.questions.swap_remove(at);
        if !talk.joined.contains(&namespace) {
            return None;
        }
        let (args, value) = *self.random.pick(&[
            ("", "null"),
            ("\"yes\"", "\"yes\""),
            ("{\"a\" : [1,2]},true", "{\"a\" : [1,2]}"),
            (" 7 , 8", "7"),
        ]);
        let text = format!("43{}{id}[{args}]", prefix(&namespace));
        let answer = id.parse().ok().map(|number| (number, value.to_owned()));
        Some(vec![said(text, Word::Ack { namespace, answer })])
    }
}

impl Model {
    /// Answers whether somebody is asked, or with which code that is refused.
    pub(super) fn publish_special(
        &mut self,
        number: usize,
        (event, echo): (&Rc<Event>, bool),
        special: &Special,
        (namespace, id): (Option<&str>, Option<&str>),
        now: Time,
    ) -> Result<bool, &'static str> {
        let Special { rooms, except, volatile, ask_ms } = special;
        if rooms.len().max(except.len()) > self.settings.rooms_per_connection_max {
            return Err("too_many_rooms");
        }
        let shard = self.peers[number].shard;
        let ask = match (ask_ms, id) {
            (None, _) => None,
            (Some(_), None) => return Err("bad_message"),
            (Some(ask_ms), Some(id)) => {
                let asks = &mut self.asks[shard];
                asks.count += 1;
                let number = message::Ask::number(asks.count, Asker::Shard(shard as ShardId));
                Some((Ask { number, until: now.plus_ms((*ask_ms).into()) }, id))
            }
        };
        self.counts.publications += 1;
        let origin = self.new_origin(number, event.clone());
        let find = |names: &[String]| -> Vec<Found> {
            let found = |name: &String| Some((name.clone(), self.rooms.get(name)?.incarnation));
            names.iter().filter_map(found).collect()
        };
        let (found, except_found) = (find(rooms), find(except));
        let (sockets, except_sockets) = (self.find_sockets(rooms), self.find_sockets(except));
        let members = found.iter().flat_map(|(name, _)| &self.rooms[name].members).copied();
        // Who has an id is looked for on its shard, also when it is gone.
        let owners = sockets.iter().map(|socket| self.sockets_told[*socket].peer);
        let shards: BTreeSet<usize> = members.chain(owners).map(|peer| self.peers[peer].shard).collect();
        let ask_of = ask.map(|(ask, _)| ask);
        let flight = Flight {
            origin,
            echo,
            rooms: found,
            except: except_found,
            sockets,
            except_sockets,
            volatile: *volatile,
            ask: ask_of,
        };
        for to in &shards {
            self.mail[*to].push_back(Letter::Special(Box::new(flight.clone())));
            if *to != shard {
                self.bells.insert(*to);
            }
        }
        let Some((ask, id)) = ask else { return Ok(false) };
        let open = Open {
            asker: number,
            namespace: namespace.map(str::to_owned),
            id: id.to_owned(),
            until: ask.until,
            shards: shards.len(),
            awaited: 0,
            left_out: 0,
            answers: Vec::new(),
            bytes: 0,
        };
        self.asks[shard].open.insert(ask.number, open);
        self.close_if_answered(ask.number, now);
        self.counts.asks += 1;
        Ok(true)
    }

    /// Such a publication has come to a shard.
    pub(super) fn deliver_special(&mut self, shard: usize, flight: Flight, now: Time) {
        let Flight { origin, echo, rooms, except, sockets, except_sockets, volatile, ask } = flight;
        let ask = ask.filter(|ask| ask.until > now);
        let members = |model: &Model, (name, incarnation): &Found| -> BTreeSet<usize> {
            let room = model.rooms.get(name).filter(|room| room.incarnation == *incarnation);
            room.map(|room| room.members.clone()).unwrap_or_default()
        };
        let mut done: BTreeSet<usize> = except.iter().flat_map(|found| members(self, found)).collect();
        done.extend(except_sockets.iter().filter_map(|socket| self.owner(*socket)));
        if !echo {
            done.insert(origin.publisher);
        }
        let mut asked = BTreeSet::new();
        let owners = sockets.iter().filter_map(|socket| self.owner(*socket)).collect();
        let of_rooms = rooms.iter().map(|found| (&found.0, members(self, found)));
        let recipients: Vec<(&String, BTreeSet<usize>)> =
            of_rooms.chain([(&origin.event.room, owners)]).collect();
        for (room, members) in recipients {
            for member in members {
                let peer = &self.peers[member];
                if peer.shard != shard || !done.insert(member) {
                    continue;
                }
                if volatile && !takes_at_once(peer) {
                    self.counts.volatile_drops += 1;
                    continue;
                }
                let event = Rc::new(Event { room: room.clone(), ..origin.event.as_ref().clone() });
                let said = match peer.dialect {
                    Some(Dialect::SocketIo) => {
                        let mut packet = told_of(&event);
                        if let (Packet::Event { id, .. }, Some(ask)) = (&mut packet, ask) {
                            *id = Some(ask.number.to_string());
                            asked.insert(member);
                        }
                        Said::Packet(packet)
                    }
                    _ => Said::Event(event.clone()),
                };
                let mut origin = origin.clone();
                origin.event = event;
                self.give(member, said, origin, now);
            }
        }
        let Some(Ask { number, until }) = ask else { return };
        let sockets = asked.len() as u64;
        if !asked.is_empty() {
            self.asks[shard].asked.insert(number, (until, asked));
        }
        self.mail[asker_of(number)].push_back(Letter::Asked { number, sockets });
    }

    /// A client has answered a question, or what it took for one.
    pub(super) fn hear_answer(&mut self, member: usize, number: u64, value: &str) {
        let asks = &mut self.asks[self.peers[member].shard];
        let Some((_, asked)) = asks.asked.get_mut(&number) else { return };
        if !asked.remove(&member) {
            return;
        }
        if asked.is_empty() {
            asks.asked.remove(&number);
        }
        self.counts.answers += 1;
        self.mail[asker_of(number)].push_back(Letter::Answer { number, value: value.to_owned() });
    }

    /// A shard has told how many it has asked.
    pub(super) fn note_asked(&mut self, number: u64, sockets: u64, now: Time) {
        if let Some(open) = self.asks[asker_of(number)].open.get_mut(&number) {
            open.shards -= 1;
            open.awaited += sockets;
            self.close_if_answered(number, now);
        }
    }

    pub(super) fn note_answer(&mut self, number: u64, value: String, now: Time) {
        let bytes_max = self.settings.message_bytes_max;
        let Some(open) = self.asks[asker_of(number)].open.get_mut(&number) else { return };
        open.awaited -= 1;
        let bytes = size_of::<Answer>() + value.len();
        if open.bytes + bytes <= bytes_max {
            open.bytes += bytes;
            open.answers.push(value);
        } else {
            open.left_out += 1;
        }
        self.close_if_answered(number, now);
    }

    /// Time has come this far.
    pub(super) fn end_asks(&mut self, shard: usize, now: Time) {
        let asks = &mut self.asks[shard];
        asks.asked.retain(|_, (until, _)| *until > now);
        let mut over: Vec<(Time, u64)> =
            asks.open.iter().map(|(number, open)| (open.until, *number)).collect();
        over.retain(|(until, _)| *until <= now);
        over.sort_unstable();
        for (_, number) in over {
            self.close_ask(number, now);
        }
    }

    /// A client is told that it is in a namespace, and by which id.
    pub(super) fn learn(&mut self, peer: usize, packet: &Packet) {
        let Packet::Joined { namespace, sid } = packet else { return };
        let key = if namespace == "/" { sid.0.clone() } else { format!("{namespace}\0{}", sid.0) };
        // It may have left meanwhile, and does not know.
        let is_in = self.peers[peer].is_in(namespace);
        self.sockets_told.push(Socket { key, peer, is_in });
    }

    /// A client has left a namespace.
    pub(super) fn forget_socket(&mut self, peer: usize, namespace: &str) {
        let of_it = |socket: &&mut Socket| socket.peer == peer && namespace_of(&socket.key) == namespace;
        self.sockets_told.iter_mut().filter(of_it).for_each(|socket| socket.is_in = false);
    }

    /// Whose an id is, if that is still there.
    pub(super) fn owner(&self, socket: usize) -> Option<usize> {
        let Socket { peer, is_in, .. } = self.sockets_told[socket];
        (is_in && self.peers[peer].stage == Stage::Open).then_some(peer)
    }

    /// Those of the names that are ids.
    fn find_sockets(&self, names: &[String]) -> Vec<usize> {
        let place = |name: &String| self.sockets_told.iter().position(|socket| socket.key == *name);
        names.iter().filter_map(place).collect()
    }

    /// The client of a session is another connection now.
    pub(super) fn move_asks(&mut self, shard: usize, from: usize, to: usize) {
        let own = |socket: &&mut Socket| socket.peer == from;
        self.sockets_told.iter_mut().filter(own).for_each(|socket| socket.peer = to);
        let Asks { open, asked, .. } = &mut self.asks[shard];
        open.values_mut().filter(|open| open.asker == from).for_each(|open| open.asker = to);
        for (_, asked) in asked.values_mut() {
            if asked.remove(&from) {
                asked.insert(to);
            }
        }
    }

    fn close_if_answered(&mut self, number: u64, now: Time) {
        let open = self.asks[asker_of(number)].open.get(&number);
        if open.is_some_and(|open| open.shards == 0 && open.awaited == 0) {
            self.close_ask(number, now);
        }
    }

    /// Who has asked is told.
    fn close_ask(&mut self, number: u64, now: Time) {
        let Some(open) = self.asks[asker_of(number)].open.remove(&number) else { return };
        let Open { asker, namespace, id, awaited, left_out, answers, .. } = open;
        let missing = awaited + left_out;
        self.counts.missing += missing;
        if self.peers[asker].stage != Stage::Open {
            return;
        }
        let Some(namespace) = namespace else {
            return self.peers[asker].expect(Said::Answers { id, answers, missing }, now);
        };
        if self.peers[asker].is_in(&namespace) {
            let args = format!(r#"{{"answers":[{}],"missing":{missing}}}"#, answers.join(","));
            let packet = Packet::Ack { namespace, id, args, attachments: Vec::new() };
            self.peers[asker].expect(Said::Packet(packet), now);
        }
    }
}

/// True when what is said to it now leaves now: nothing waits for it, or a GET waits for what is said.
fn takes_at_once(peer: &Peer) -> bool {
    if peer.is_polled() { peer.waiting_get().is_some() } else { !peer.refused }
}

/// The shard whose client asks.
fn asker_of(number: u64) -> usize {
    match message::Ask::asker(number) {
        Asker::Shard(shard) => shard.into(),
        Asker::Outside => unreachable!("nobody else asks"),
    }
}
