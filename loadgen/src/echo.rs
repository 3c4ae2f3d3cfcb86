//! The echo scenario: each connection keeps some messages under way and sends the next when one comes back.

use crate::args::{Common, Echo};
use crate::client::{Clients, Listener};
use crate::clock::{self, MILLISECOND_NS, SECOND_NS};
use crate::control::{Command, Done, Plan, Window};
use crate::frame::Opcode;
use crate::order::Order;
use crate::parent::Phases;
use crate::phases::{Measured, Run};
use crate::protocol::Protocol;
use crate::report::{Figures, Latency, Tally, ratio};
use crate::worker::Load;

/// Bytes of a message that carry its number.
const NUMBER_BYTES: usize = 8;
/// How long what is under way at the end of the run may take to come back.
const STRAGGLERS_NS: u64 = 2 * SECOND_NS;

/// The parent's half. There is nothing to join.
pub(crate) fn run(common: &Common, args: &Echo) -> impl Phases + use<> {
    let args = args.clone();
    Run::new(common, args.warmup, 0.0, move |measured, tally| figures(&args, measured, tally))
}

fn figures(args: &Echo, measured: &Measured, tally: &Tally) -> Figures {
    let received = tally.received as f64;
    let mut figures = measured.begin("echo", tally);
    figures.put("size_bytes", args.size);
    figures.put("in_flight", args.in_flight);
    measured.put_time(&mut figures, tally);
    figures.put("messages", tally.received);
    let per_second = measured.used.and_then(|used| ratio(Some(received), used.seconds));
    figures.number("messages_per_second", per_second);
    let per_cpu_second = measured.cpu_seconds().and_then(|seconds| ratio(Some(received), seconds));
    figures.number("messages_per_cpu_second", per_cpu_second);
    figures.number("cpu_us_per_message", ratio(measured.cpu_us(), received));
    figures.latency("latency", &tally.latency);
    figures.put("messages_sent_total", tally.sent_total);
    figures.put("messages_total", tally.received_total);
    figures.number("reads_per_message", ratio(Some(tally.reads as f64), received));
    measured.end(figures, tally)
}

/// A worker's half.
pub(crate) struct EchoLoad {
    connections: usize,
    size: usize,
    in_flight: u64,
    opcode: Opcode,
    order: Order,
    /// Messages sent on each connection: `0 <= sent - order.next <= in_flight`.
    sent: Vec<u64>,
    /// When the last `in_flight` messages of each connection were sent; message `n` at `n % in_flight`.
    sent_ns: Vec<u64>,
    run: Window,
    running: bool,
    received_total: u64,
    received: u64,
    latency: Latency,
    out: Vec<u8>,
}

impl EchoLoad {
    pub(crate) fn new(plan: &Plan, args: &Echo) -> Self {
        let connections = plan.connections as usize;
        Self {
            connections,
            size: args.size as usize,
            in_flight: args.in_flight.into(),
            opcode: match plan.protocol {
                Protocol::Native if !args.text => Opcode::Binary,
                _ => Opcode::Text,
            },
            order: Order::new(connections),
            sent: vec![0; connections],
            sent_ns: vec![0; connections * args.in_flight as usize],
            run: Window::default(),
            running: false,
            received_total: 0,
            received: 0,
            latency: Latency::new(),
            out: Vec::new(),
        }
    }

    /// Sends as many messages as may be under way, all at once.
    fn fill(&mut self, clients: &mut Clients, id: usize, now_ns: u64) {
        let until = self.order.next(id) + self.in_flight;
        if self.sent[id] >= until {
            return;
        }
        self.out.clear();
        let message_head = clients.protocol.message_head();
        for number in self.sent[id]..until {
            let text = self.opcode == Opcode::Text;
            clients.masker.append(&mut self.out, self.opcode, message_head.len() + self.size, |payload| {
                let (head, payload) = payload.split_at_mut(message_head.len());
                head.copy_from_slice(message_head);
                let (head, rest) = payload.split_at_mut(NUMBER_BYTES);
                head.copy_from_slice(&if text { to_text(number) } else { number.to_be_bytes() });
                rest.fill(b'x');
            });
            self.sent_ns[id * self.in_flight as usize + (number % self.in_flight) as usize] = now_ns;
        }
        self.sent[id] = until;
        clients.send(id, &self.out);
    }
}

impl Listener for EchoLoad {
    #[inline]
    fn message(&mut self, clients: &mut Clients, id: usize, message: &[u8], now_ns: u64) {
        let Some(head) = message.first_chunk::<NUMBER_BYTES>().filter(|_| message.len() == self.size) else {
            return clients.note_error("wrong_length");
        };
        let number = match self.opcode {
            Opcode::Text => from_text(*head, self.order.next(id)),
            _ => Some(u64::from_be_bytes(*head)),
        };
        let Some(number) = number.filter(|number| *number < self.sent[id]) else {
            return clients.note_error("wrong_content");
        };
        self.received_total += 1;
        self.order.note(id, number);
        if self.run.measures(now_ns) {
            self.received += 1;
            // An older one was doubled or comes very late; its time is forgotten.
            if number + self.in_flight >= self.sent[id] {
                let sent_ns = self.sent_ns[id * self.in_flight as usize + (number % self.in_flight) as usize];
                self.latency.record(now_ns - sent_ns);
            }
        }
    }

    fn read_done(&mut self, clients: &mut Clients, id: usize, now_ns: u64) {
        if self.running {
            self.fill(clients, id, now_ns);
        }
    }
}

impl Load for EchoLoad {
    fn begin(&mut self, _clients: &mut Clients, command: &Command, _now_ns: u64) {
        if let Command::Run(window) = command {
            self.run = *window;
        }
    }

    fn tick(&mut self, clients: &mut Clients, now_ns: u64) -> u64 {
        if now_ns < self.run.start_ns {
            return self.run.start_ns;
        }
        if now_ns >= self.run.to_ns {
            self.running = false;
            return if now_ns < self.run.to_ns + STRAGGLERS_NS { now_ns + MILLISECOND_NS } else { u64::MAX };
        }
        if !self.running {
            self.running = true;
            for id in (0..self.connections).filter(|id| clients.is_open(*id)).collect::<Vec<_>>() {
                self.fill(clients, id, clock::now_ns());
            }
        }
        self.run.to_ns
    }

    fn over(&self, clients: &Clients, now_ns: u64) -> Option<Done> {
        let all_back = |id: usize| !clients.is_open(id) || self.order.next(id) == self.sent[id];
        let over = now_ns >= self.run.to_ns + STRAGGLERS_NS
            || now_ns >= self.run.to_ns && (0..self.connections).all(all_back);
        over.then(|| Done { at_ns: now_ns, ..Done::default() })
    }

    fn count(&self) -> u64 {
        self.received_total
    }

    fn report(&mut self, tally: &mut Tally) {
        // A run that was interrupted has messages under way which are not lost.
        if !self.running {
            for id in 0..self.connections {
                self.order.end(id, self.sent[id]);
            }
        }
        tally.sent_total = self.sent.iter().sum();
        tally.received_total = self.received_total;
        tally.received = self.received;
        tally.latency = self.latency.clone();
        tally.faults = self.order.faults();
    }
}

/// The number's lower 32 bits in hexadecimal: eight bytes that are text.
fn to_text(number: u64) -> [u8; NUMBER_BYTES] {
    let digit = |index: usize| b"0123456789abcdef"[(number >> (28 - 4 * index) & 0xF) as usize];
    std::array::from_fn(digit)
}

/// The number nearest to `near` with these lower 32 bits, if these are any.
fn from_text(text: [u8; NUMBER_BYTES], near: u64) -> Option<u64> {
    let low = u32::from_str_radix(str::from_utf8(&text).ok()?, 16).ok()?;
    let ahead = low.wrapping_sub(near as u32) as i32;
    near.checked_add_signed(ahead.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_in_text_survives_running_over() {
        for number in [0u64, 1, 0xFFFF_FFFF, 0x1_0000_0000, 0x1_0000_0001, 0x5_1234_5678] {
            for near in [number, number + 3, number.saturating_sub(3)] {
                assert_eq!(from_text(to_text(number), near), Some(number), "{number:#x} near {near:#x}");
            }
        }
        assert_eq!(from_text(*b"xxxxxxxx", 0), None);
        assert_eq!(from_text(to_text(0xFFFF_FFFF), 3), None);
    }
}
