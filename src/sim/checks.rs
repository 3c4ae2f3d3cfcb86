//! What must be true after each turn, at rest, and when everybody has left.

use super::World;
use super::model::{Peer, Stage, live};
use super::plan::MUST_FOLLOW_BYTES;
use crate::message::Reject;
use crate::shard::Holdings;
use crate::shard::conn::Due;
use crate::stats::{Ending, ShardStats};
use crate::time::Time;
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

impl World {
    /// What must be true after a turn that began at `began`.
    pub(super) fn check_turn(&mut self, shard: usize, began: Time) {
        self.hear_notices();
        let seat = &self.seats[shard];
        let peers = || live(&self.model.peers, shard);
        let linger_ns = u64::from(self.plan.settings.linger_ms) * 1_000_000;
        let mut timer_due = None;
        let mut is_due = false;
        let mut kept_bytes = 0;
        for (number, peer) in peers() {
            assert!(!peer.doomed && !peer.abandoned, "{number} was to be closed in this turn: {peer:#?}");
            assert!(
                !(peer.is_finishing() && peer.expected.is_empty()),
                "{number} has been told everything and was to be seen off"
            );
            if !matches!(peer.stage, Stage::Waiting { .. }) {
                timer_due = timer_due.into_iter().chain([peer.due_ms]).min();
            }
            // What follows the end of a WebSocket is taken whatever the bound, as is the rest of a frame that was cut.
            // What lingers for a session that has no outbox yet cannot be told from one.
            let is_apart = peer.has_socket
                || !peer
                    .expected
                    .iter()
                    .any(|expected| expected.origin.is_some() && began < expected.given.plus_ns(linger_ns));
            if peer.refused && is_apart && (peer.is_upgraded() || peer.stage == Stage::Http) {
                kept_bytes += peer.kept_bytes;
                assert!(
                    peer.kept_bytes <= self.plan.settings.outbox_bytes_max + MUST_FOLLOW_BYTES,
                    "{} bytes wait in the outbox of {number}",
                    peer.kept_bytes
                );
            }
            // Who was not asked in this turn is asked in the next.
            let is_put_off = peer.due == Due::Now && seat.shard.has_unflushed();
            if !is_put_off && (!peer.refused || peer.waiting_get().is_some()) {
                for expected in
                    peer.expected.iter().filter(|expected| peer.has_socket || !expected.is_doubtful)
                {
                    let linger_end = expected.given.plus_ns(linger_ns);
                    let lingers = peer.due == Due::Later && expected.origin.is_some();
                    assert!(lingers && began < linger_end, "{number} was to be told by now: {expected:?}");
                    is_due |= linger_end <= self.now;
                    let wake = seat.deadline.expect("something waits for the end of a linger");
                    assert!(
                        wake <= linger_end.max(self.now).plus_ms(1),
                        "shard {shard} would sleep until {wake:?}, after {linger_end:?}"
                    );
                }
            }
        }
        let wake_ms = seat.deadline.map(Time::ms);
        assert!(
            timer_due.is_none_or(|due| wake_ms.is_some_and(|wake| wake <= due.max(self.now.ms()))),
            "shard {shard} would sleep until {wake_ms:?}, beyond its next timer at {timer_due:?}"
        );
        // Once is fine when timers were set: they may have to be sorted.
        let wants_more = seat.deadline == Some(self.now) && self.now.ms() == began.ms() && !is_due;
        let waits = |peer: &Peer| matches!(peer.stage, Stage::Waiting { .. });
        let timers = peers().filter(|(_, peer)| !waits(peer)).map(|(_, peer)| peer.due_ms).sum();
        let seat = &mut self.seats[shard];
        let is_idle = wants_more && std::mem::replace(&mut seat.timers, timers) == timers;
        seat.empty_turns = if is_idle { seat.empty_turns + 1 } else { 0 };
        assert!(seat.empty_turns < 3, "shard {shard} wants turn after turn for nothing");
        let seat = &self.seats[shard];
        let peers = || live(&self.model.peers, shard);

        let told = self.model.told_of_drain(shard);
        for (number, peer) in peers().filter(|(_, peer)| peer.stage == Stage::Open && !peer.is_moving()) {
            let slot = peer.slot.expect("it has a place") as usize;
            assert!(slot >= told, "{number} was to be told that the server shuts down");
        }

        let holdings = seat.shard.holdings();
        let numbers = &self.stats.shards[shard];
        let rooms: BTreeSet<&String> = peers().flat_map(|(_, peer)| &peer.rooms).collect();
        assert_eq!(holdings.conns, peers().count(), "connections of shard {shard}");
        assert_eq!(
            holdings.memberships,
            peers().map(|(_, peer)| peer.rooms.len()).sum::<usize>(),
            "memberships"
        );
        assert_eq!(holdings.rooms, rooms.len(), "rooms of shard {shard}");
        let waiting = peers().filter(|(_, peer)| waits(peer)).count();
        assert_eq!(
            holdings.timers,
            holdings.conns - waiting,
            "each connection of shard {shard} has a timer, but for those whose GET waits"
        );
        let unfinished: Vec<usize> = peers().filter_map(|(_, peer)| peer.unfinished_bytes()).collect();
        assert!(
            (unfinished.len()..=unfinished.len() + holdings.conns).contains(&holdings.leases),
            "shard {shard} has {} leases, of which {} are for packets that lack attachments",
            holdings.leases,
            unfinished.len()
        );
        assert!(holdings.leased_bytes >= unfinished.iter().sum(), "leased bytes of shard {shard}");
        assert!(
            kept_bytes <= self.plan.settings.outbox_total_bytes_max + MUST_FOLLOW_BYTES * holdings.conns,
            "{kept_bytes} bytes wait in the outboxes of shard {shard}"
        );
        assert_eq!(holdings.asks, self.model.asks[shard].len(), "questions of shard {shard}");
        assert!(
            self.model.asks[shard].next_end().is_none_or(|end| {
                seat.deadline.is_some_and(|wake| wake <= end.max(self.now).plus_ms(1)) || seat.stopped
            }),
            "shard {shard} would sleep until {wake_ms:?}, beyond the end of a question"
        );
        assert_eq!(numbers.sockets.value(), peers().filter(|(_, peer)| peer.has_socket).count() as u64);
        assert_eq!(
            numbers.connections.value(),
            peers().filter(|(_, peer)| peer.is_upgraded()).count() as u64
        );
        assert_eq!(numbers.memberships.value(), holdings.memberships as u64);
        assert_eq!(numbers.rooms.value(), holdings.rooms as u64);
        assert_eq!(numbers.receive_bytes.value(), holdings.leased_bytes as u64);
        assert_eq!(self.bus.rooms(), self.model.rooms.len(), "rooms in the directory");
        assert_eq!(self.gate.open(), self.model.open, "open connections at the gate");
        for (other, seat) in self.seats.iter().enumerate() {
            let has_mail = !self.model.mail[other].is_empty() || !seat.handed.is_empty();
            assert!(
                !(seat.asleep && has_mail) || seat.rung.load(Ordering::Relaxed),
                "shard {other} sleeps over its mail"
            );
        }
    }

    /// At rest, nobody who reads is owed anything.
    pub(super) fn check_everybody_was_told(&self) {
        for (number, peer) in self.model.peers.iter().enumerate() {
            let client = &self.clients[number];
            if client.reads && peer.is_live() {
                assert!(peer.expected.is_empty(), "{number} has not been told {:?}", peer.expected);
                assert!(!peer.is_told_losses() || peer.lost == 0, "{number} has not been told of its losses");
                assert!(peer.owed.is_empty(), "{number} has not got the events {:?}", peer.owed);
            }
        }
    }

    /// When everybody has left, nothing is held and all has been counted.
    pub(super) fn check_empty(&mut self) {
        self.check_stories_have_ended();
        for (number, link) in self.links.iter().enumerate() {
            assert!(link.closed, "{number} is still there");
        }
        for (shard, seat) in self.seats.iter().enumerate() {
            // Questions that are open when a shard stops end with the process.
            let asks = if seat.stopped { self.model.asks[shard].len() } else { 0 };
            let nothing = Holdings { asks, ..Holdings::default() };
            assert_eq!(seat.shard.holdings(), nothing, "shard {shard} holds something");
            let ShardStats { connections, sockets, memberships, rooms, outbox_bytes, receive_bytes, .. } =
                &self.stats.shards[shard];
            for gauge in [connections, sockets, memberships, rooms, outbox_bytes, receive_bytes] {
                assert_eq!(gauge.value(), 0, "a gauge of shard {shard}");
            }
            assert_eq!(seat.stopped, self.plan.drain.is_some(), "whether shard {shard} has been drained");
        }
        assert_eq!((self.bus.rooms(), self.gate.open()), (0, 0), "rooms and open connections");
        assert!(self.gate.has_place());
        let counts = &self.model.counts;
        let sum = |number: fn(&ShardStats) -> u64| self.stats.sum(number);
        assert_eq!(sum(|shard| shard.accepts.value()), counts.accepts, "accepts");
        assert_eq!(sum(|shard| shard.upgrades.value()), counts.upgrades, "upgrades");
        assert_eq!(sum(|shard| shard.requests.value()), counts.requests, "requests");
        assert_eq!(sum(|shard| shard.messages_in.value()), counts.messages_in, "messages in");
        assert_eq!(sum(|shard| shard.publications.value()), counts.publications, "publications");
        assert_eq!(sum(|shard| shard.deliveries.value()), counts.deliveries, "deliveries");
        assert_eq!(sum(|shard| shard.errors.value()), counts.errors, "errors");
        assert_eq!(sum(|shard| shard.rate_limited.value()), counts.rate_limited, "rate limited");
        assert_eq!(sum(|shard| shard.pings.value()), counts.pings, "pings");
        assert_eq!(
            sum(|shard| shard.bytes_in.value()),
            self.links.iter().map(|link| link.handed).sum::<u64>() + counts.bytes_handed,
            "bytes in"
        );
        assert_eq!(
            sum(|shard| shard.bytes_out.value()),
            self.links.iter().map(|link| link.written).sum::<u64>(),
            "bytes out"
        );
        assert!(sum(|shard| shard.drops.value()) >= counts.lost, "drops");
        for (index, label) in Ending::LABELS.iter().enumerate() {
            let ended = self.stats.sum(|shard| shard.endings[index].value());
            if !self.model.is_unsure_who_was_slow {
                assert_eq!(ended, counts.endings[index], "connections that ended: {label}");
            }
        }
        let ended = self.stats.sum(|shard| shard.endings.iter().map(|endings| endings.value()).sum());
        assert_eq!(ended, counts.endings.iter().sum::<u64>(), "connections that ended");
        for (index, label) in Reject::LABELS.iter().enumerate() {
            let rejected = self.stats.sum(|shard| shard.rejects[index].value());
            assert_eq!(rejected, counts.rejects[index], "requests refused: {label}");
        }
        assert_eq!(sum(|shard| shard.namespace_joins.value()), counts.namespace_joins, "namespaces joined");
        assert_eq!(
            sum(|shard| shard.namespace_refusals.value()),
            counts.namespace_refusals,
            "namespaces refused"
        );
        assert_eq!(sum(|shard| shard.volatile_drops.value()), counts.volatile_drops, "volatile drops");
        let came = counts.upgrades + counts.handshakes;
        assert_eq!(counts.endings.iter().sum::<u64>(), came, "who came has left");
    }
}
