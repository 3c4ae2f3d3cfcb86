//! Joining rooms and having it acknowledged: what every scenario but echo begins with.

use std::collections::VecDeque;

use crate::args::Rooms;
use crate::client::Clients;
use crate::control::Plan;
use crate::frame::Opcode;
use crate::protocol::Said;
use crate::report::{Latency, Tally};

pub(crate) struct Membership {
    rooms: Rooms,
    /// Number of connection 0 among those of all workers.
    first: u32,
    members: Vec<Member>,
    /// Who is to join, in order.
    queue: VecDeque<usize>,
    /// When each join was sent and by whom, oldest first; some are over already.
    begun: VecDeque<(u64, usize)>,
    /// Count of members with `awaited > 0`.
    under_way: usize,
    under_way_max: usize,
    timeout_ns: u64,
    joined: u64,
    join_latency: Latency,
    churns: u64,
    churn_latency: Latency,
    /// Messages the server said it left out.
    dropped: u64,
    out: Vec<u8>,
}

#[derive(Clone, Default)]
struct Member {
    /// Acks still to come.
    awaited: u32,
    /// True exactly when it is in its rooms, or was before the churn under way.
    joined: bool,
    begun_ns: u64,
}

impl Membership {
    pub(crate) fn new(plan: &Plan, rooms: &Rooms) -> Self {
        Self {
            rooms: rooms.clone(),
            first: plan.first,
            members: vec![Member::default(); plan.connections as usize],
            queue: VecDeque::new(),
            begun: VecDeque::new(),
            under_way: 0,
            under_way_max: plan.connecting_max as usize,
            timeout_ns: plan.timeout_ns,
            joined: 0,
            join_latency: Latency::new(),
            churns: 0,
            churn_latency: Latency::new(),
            dropped: 0,
            out: Vec::new(),
        }
    }

    /// Will join with these that are open, so many at a time as handshakes; with `at_once` without such a limit.
    pub(crate) fn join_all(&mut self, ids: impl Iterator<Item = usize>, at_once: bool) {
        if self.rooms.no_join {
            return;
        }
        self.queue.extend(ids);
        if at_once {
            self.under_way_max = usize::MAX;
        }
    }

    /// Leaves the rooms and joins them again, unless the connection is not in them or about to change.
    pub(crate) fn churn(&mut self, clients: &mut Clients, id: usize, now_ns: u64) {
        if self.members[id].joined && self.members[id].awaited == 0 {
            self.ask(clients, id, true, now_ns);
        }
    }

    /// Sends what is due and gives up what took too long. Returns when to be called again.
    pub(crate) fn tend(&mut self, clients: &mut Clients, now_ns: u64) -> u64 {
        while let Some(&(begun_ns, id)) = self.begun.front() {
            let member = &self.members[id];
            let over = member.awaited == 0 || member.begun_ns != begun_ns;
            if !over && now_ns < begun_ns + self.timeout_ns {
                break;
            }
            self.begun.pop_front();
            if !over {
                clients.note_error("join_timeout");
                self.gone(id);
            }
        }
        while self.under_way < self.under_way_max {
            let Some(id) = self.queue.pop_front() else { break };
            if clients.is_open(id) {
                self.ask(clients, id, false, now_ns);
            }
        }
        self.begun.front().map_or(u64::MAX, |(begun_ns, _)| begun_ns + self.timeout_ns)
    }

    /// Looks for answers in a message.
    pub(crate) fn hear(&mut self, clients: &mut Clients, id: usize, message: &[u8], now_ns: u64) {
        clients.protocol.each_said(message, |said| match said {
            Said::Ack => self.acknowledged(id, now_ns),
            Said::Error(code) => {
                clients.note_error(&format!("server_{code}"));
                self.gone(id);
            }
            Said::Dropped(count) => self.dropped += count,
            Said::Other => {}
        });
    }

    /// The connection is no member any more.
    pub(crate) fn gone(&mut self, id: usize) {
        let member = &mut self.members[id];
        self.under_way -= usize::from(member.awaited > 0);
        self.joined -= u64::from(member.joined);
        *member = Member::default();
    }

    /// True when every join that was asked for is acknowledged or has failed.
    pub(crate) fn is_settled(&self) -> bool {
        self.queue.is_empty() && self.under_way == 0
    }

    /// True when it is in its rooms and not about to change that.
    pub(crate) fn is_in(&self, id: usize) -> bool {
        self.members[id].joined && self.members[id].awaited == 0
    }

    pub(crate) fn joined(&self) -> u64 {
        self.joined
    }

    /// Forgets the latencies so far.
    pub(crate) fn forget_latency(&mut self) {
        self.join_latency = Latency::new();
    }

    pub(crate) fn report(&self, tally: &mut Tally) {
        tally.joined = self.joined;
        tally.join_latency = self.join_latency.clone();
        tally.churns = self.churns;
        tally.churn_latency = self.churn_latency.clone();
        tally.dropped = self.dropped;
    }

    fn ask(&mut self, clients: &mut Clients, id: usize, leave_first: bool, now_ns: u64) {
        let rooms = self.rooms.of(self.first + id as u32);
        let leaves = if leave_first { clients.protocol.leaves(&rooms) } else { Vec::new() };
        self.out.clear();
        let mut awaited = 0;
        let joins = match &self.rooms.by {
            Some(by) => rooms.iter().map(|room| by.replace("{}", room).into_bytes()).collect(),
            None => clients.protocol.joins(&rooms),
        };
        for message in leaves.iter().chain(&joins) {
            clients.masker.append_copy(&mut self.out, Opcode::Text, message);
            awaited += 1;
        }
        let member = &mut self.members[id];
        member.awaited = awaited;
        member.begun_ns = now_ns;
        self.under_way += 1;
        self.begun.push_back((now_ns, id));
        clients.send(id, &self.out);
    }

    fn acknowledged(&mut self, id: usize, now_ns: u64) {
        let member = &mut self.members[id];
        if member.awaited == 0 {
            return;
        }
        member.awaited -= 1;
        if member.awaited > 0 {
            return;
        }
        self.under_way -= 1;
        let latency_ns = now_ns.saturating_sub(member.begun_ns);
        if member.joined {
            self.churns += 1;
            self.churn_latency.record(latency_ns);
        } else {
            member.joined = true;
            self.joined += 1;
            self.join_latency.record(latency_ns);
        }
    }
}
