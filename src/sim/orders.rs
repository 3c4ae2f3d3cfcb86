//! Orders: what others want done to clients of Socket.IO, whatever those are doing. What is given, and what the model makes of it.

use super::World;
use super::model::{Letter, Model};
use super::pollers::Poller;
use super::said::{Packet, Said};
use super::sessions::namespace_of;
use super::special::Socket;
use crate::bus::outside::Deed;
use crate::stats::Ending;
use crate::time::Time;

/// Of a hundred steps, after how many an order is given about anybody.
const ORDERS_PERCENT: u64 = 1;
/// And of those in which a POST is about to be read, about its client.
const IN_POSTS_PERCENT: u64 = 20;
/// The close code of one that names it.
const CODE: u16 = 4444;

impl World {
    /// Now and then somebody wants a client put out: most often one that has said something, so that it is over in the middle of that.
    pub(super) fn give_orders(&mut self) {
        if self.orders.is_none() {
            return;
        }
        // Those of whom the shard will read a POST in its next turn, behind this order.
        let is_unread =
            |link: &usize| self.clients[*link].outgoing.is_empty() && !self.links[*link].to_server.is_empty();
        let is_posting = |poller: &&Poller| poller.post().is_some_and(|link| is_unread(&link));
        let posting: Vec<usize> =
            self.pollers.iter().filter(is_posting).filter_map(|poller| poller.session).collect();
        let Some(random) = &mut self.orders else { return };
        let is_to_one_of_these = !posting.is_empty() && random.chance(IN_POSTS_PERCENT);
        if !is_to_one_of_these && !random.chance(ORDERS_PERCENT) {
            return;
        }
        let told = self.model.sockets_told.iter().enumerate();
        let is_meant =
            |socket: &Socket| socket.is_in && (!is_to_one_of_these || posting.contains(&socket.peer));
        let sockets: Vec<usize> =
            told.filter(|(_, socket)| is_meant(socket)).map(|(socket, _)| socket).collect();
        if sockets.is_empty() {
            return;
        }
        let socket = *random.pick(&sockets);
        let deed = match random.below(3) {
            0 => Deed::Close { code: CODE, reason: "somebody wants it".into() },
            1 => Deed::Disconnect { close: true },
            _ => Deed::Disconnect { close: false },
        };
        let (key, peer) = (&self.model.sockets_told[socket].key, self.model.sockets_told[socket].peer);
        let shard = self.model.peers[peer].shard;
        if self.seats[shard].stopped {
            return;
        }
        self.note(|| format!("{peer} is to be put out: {deed:?}"));
        let shards = self.bus.order(namespace_of(key), &[key], &[], deed.clone()).expect("few orders wait");
        assert!(shards.iter().map(usize::from).eq([shard]), "who is told of {key}");
        self.model.mail[shard].push_back(Letter::Order { socket, deed });
    }
}

impl Model {
    /// An order has come to the shard of the client that it is about.
    pub(super) fn carry_out(&mut self, socket: usize, deed: &Deed, now: Time) {
        let Some(number) = self.owner(socket) else { return };
        self.counts.orders += 1;
        let namespace = namespace_of(&self.sockets_told[socket].key).to_owned();
        match deed {
            Deed::Close { code, .. } => {
                let session = self.peers[number].session.as_ref().expect("it is a session");
                for namespace in session.namespaces.clone() {
                    self.put_out(number, &namespace, now);
                }
                self.dismiss(number, *code, now);
            }
            Deed::Disconnect { close } => {
                self.put_out(number, &namespace, now);
                if *close {
                    self.dismiss(number, 1000, now);
                }
            }
            Deed::Join(_) | Deed::Leave(_) | Deed::Find(_) => unreachable!("nobody orders that"),
        }
    }

    fn put_out(&mut self, number: usize, namespace: &str, now: Time) {
        let packet = Packet::PutOut { namespace: namespace.to_owned() };
        self.peers[number].expect(Said::Packet(packet), now);
        self.leave_namespace(number, namespace);
    }

    fn dismiss(&mut self, number: usize, code: u16, now: Time) {
        if self.peers[number].is_polled() {
            return self.end(number, Ending::Server, now);
        }
        self.close_socket(number, code, Ending::Server, now);
    }
}
