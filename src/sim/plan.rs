//! What a seed decides before anything happens, and the numbers that it is drawn with.

use crate::auth::Rules;
use crate::dialect::Paths;
use crate::rules::{self, Action, Namespaces, Over, Pattern, Rule};
use crate::shard::engineio::Cors;
use crate::shard::{OutboxPolicy, Settings, SocketIo};
use crate::time::Time;
use std::sync::Arc;

/// A source of numbers (splitmix64). Its own, so that a seed means the same in every version of every crate.
#[derive(Debug)]
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Less than `bound`, which is at least 1.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(super) fn up_to(&mut self, most: usize) -> usize {
        self.below(most as u64 + 1) as usize
    }

    pub(super) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(super) fn pick<'a, T>(&mut self, among: &'a [T]) -> &'a T {
        &among[self.below(among.len() as u64) as usize]
    }

    pub(super) fn shuffle<T>(&mut self, among: &mut [T]) {
        for at in (1..among.len()).rev() {
            among.swap(at, self.up_to(at));
        }
    }
}

pub(super) fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// How long a peer has to end its side, in milliseconds.
pub(super) const CLOSE_TIMEOUT_MS: u64 = 5_000;
/// Pings, closes and words about losses may stand in an outbox beyond its bound, in bytes.
pub(super) const MUST_FOLLOW_BYTES: usize = 200;
/// The close codes of throng's own.
pub(super) const SILENT: u16 = 4000;
pub(super) const SLOW: u16 = 4001;
/// A timer fires at most this much late, in milliseconds: the wheel counts whole ones.
pub(super) const TIMER_TICK_MS: u64 = 1;
/// After how many milliseconds a reactor asks again whether it may accept.
pub(super) const ACCEPT_REST_MS: u64 = 50;
/// The most connections of one run, and in one with clients that poll, each of which has several.
pub(super) const CONNECTIONS_MAX: usize = 48;
pub(super) const CONNECTIONS_MAX_POLLED: usize = 160;
/// Rounds within which everything must come to rest while time stands still.
pub(super) const ROUNDS_MAX: usize = 30_000;
/// Sleeps within which everybody must be gone at the end.
pub(super) const SLEEPS_MAX: usize = 20_000;

/// What a seed decides before anything happens.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) shards: usize,
    pub(super) settings: Settings,
    pub(super) rules: Rules,
    pub(super) rooms_max: usize,
    /// What rooms are called.
    pub(super) rooms: &'static [&'static str],
    /// Bytes of one read.
    pub(super) scratch_bytes: usize,
    pub(super) steps: u64,
    /// Of a hundred steps, how many are turns of shards: the fewer, the more waits for each.
    pub(super) turns_percent: u64,
    /// Of a hundred writes to a client that does not behave, how many the kernel refuses for a moment.
    pub(super) refusals_percent: u64,
    pub(super) clients_max: usize,
    /// Large payloads, so that the arena fills.
    pub(super) heavy: bool,
    /// True when turns end before all has been written.
    pub(super) stops_early: bool,
    /// Clients that poll at once; `None` when nobody speaks Socket.IO.
    pub(super) pollers_max: Option<usize>,
    /// True when they and the others publish to several rooms, and ask.
    pub(super) special: bool,
    /// Of the orders that others give about clients, what they are drawn with; `None` when nobody gives any.
    pub(super) orders: Option<u64>,
    /// The step at which the shards are told to drain, with the spread and the timeout.
    pub(super) drain: Option<(u64, u32, u32)>,
    pub(super) start: Time,
}

impl Plan {
    pub(super) fn draw(seed: u64, random: &mut Random) -> Plan {
        let mut plan = Plan::draw_native(seed, random);
        // From numbers of its own, and only in some seeds, so that the others mean what they did before.
        plan.special = matches!(seed % 20, 9 | 14);
        if plan.special || matches!(seed % 5, 2 | 3) {
            plan.draw_socketio(&mut Random(mix(seed ^ 0x696f)));
        }
        // Likewise, in some that speak Socket.IO and are none of those that are kept.
        plan.orders = matches!((seed % 15, seed % 20), (8, _) | (_, 14)).then(|| mix(seed ^ 0x6f72));
        plan
    }

    fn draw_socketio(&mut self, random: &mut Random) {
        self.pollers_max = Some(1 + random.up_to(if self.heavy { 1 } else { 5 }));
        self.steps += self.steps / 2;
        self.settings.paths.socketio = Some("/socket.io/".to_owned());
        let does = |on: &str, action| Rule { namespace: None, on: on.to_owned(), action };
        self.settings.socketio = Arc::new(SocketIo {
            cors: Cors {
                origins: if random.chance(30) { vec!["*".to_owned()] } else { Vec::new() },
                credentials: random.chance(50),
            },
            connect_timeout_ms: *random.pick(&[300, 45_000]),
            upgrade_timeout_ms: *random.pick(&[200, 10_000]),
            compression_bytes_min: *random.pick(&[0, 100, 1_024]),
            namespaces: Namespaces::new(NAMESPACES.into_iter().filter_map(Pattern::parse).collect()),
            namespaces_per_connection_max: *random.pick(&[1, 16]),
            connections_per_namespace_max: *random.pick(&[0, 0, 3]),
            attachments_max: *random.pick(&[2, 10]),
            connect_event: if random.chance(30) { "hello".to_owned() } else { String::new() },
            rules: rules::Rules::new(vec![
                does("echo", Action::Reply { event: "echoed".to_owned() }),
                does("ask", Action::Ack),
            ]),
            ..SocketIo::default()
        });
    }

    fn draw_native(seed: u64, random: &mut Random) -> Plan {
        let heavy = seed % 16 == 15;
        let steps = if heavy { 1_000 } else { 1_500 + random.below(2_500) };
        let ping_interval_ms = *random.pick(&[200, 1_000, 5_000, 25_000]);
        let outbox_bytes_max = if heavy { 2_000_000 } else { *random.pick(&[150, 600, 3_000, 20_000]) };
        let settings = Settings {
            process: 0,
            connections_reserved: 8,
            paths: Paths { echo: random.chance(70), ..Paths::default() },
            socketio: Arc::default(),
            access: Arc::default(),
            linger_ms: if random.chance(50) { 0 } else { 1 + random.below(20) as u32 },
            accepts_per_second_max: *random.pick(&[0, 0, 0, 5, 100]),
            handshake_timeout_ms: *random.pick(&[500, 10_000]),
            head_bytes_max: *random.pick(&[600, 8192]),
            refuse_with_close: random.chance(30),
            message_bytes_max: if heavy { 1 << 20 } else { *random.pick(&[700, 4_000, 70_000]) },
            frames_per_message_max: *random.pick(&[3, 8, 4_096]),
            // Clients leave messages unfinished when they fall silent, and then end for that.
            message_timeout_ms: 1 << 30,
            messages_per_frame_max: *random.pick(&[2, 1_024]),
            messages_per_second_max: *random.pick(&[0, 0, 0, 20, 200]),
            messages_burst_max: *random.pick(&[5, 40]),
            bytes_per_second_max: 0,
            bytes_burst_max: 0,
            over: Over::Error,
            rooms_per_connection_max: *random.pick(&[2, 4, 1_024]),
            room_name_bytes_max: *random.pick(&[40, 200]),
            // Whom a full pool hits depends on how the pool grows; the fuzzer tries small ones.
            receive_bytes_max: 256 << 20,
            ping_interval_ms,
            ping_timeout_ms: *random.pick(&[150, 800, 20_000]),
            outbox_bytes_max,
            outbox_total_bytes_max: *random.pick(&[1 << 30, 1 << 30, 2 * outbox_bytes_max, outbox_bytes_max]),
            outbox_policy: if random.chance(50) { OutboxPolicy::Disconnect } else { OutboxPolicy::Drop },
        };
        let connections_max = *random.pick(&[1_000, 1_000, 12]);
        let per_ip_max = random.chance(25).then(|| 2 + random.below(4) as u32);
        let rules = Rules {
            connections_max,
            sockets_max: connections_max + 4,
            per_ip_max,
            sockets_per_ip_max: per_ip_max.map(|max| max + 1),
            origins: if random.chance(30) { vec!["https://*.good.example".to_owned()] } else { Vec::new() },
            ..Rules::default()
        };
        let drain_step = steps * 3 / 4 + random.below(steps / 4);
        // Now and then a clock that is about to pass 2^32 ms, where the short forms of times wrap.
        let wrap = Time::from_ms((1 << 32) - random.below(20_000));
        let start = if random.chance(30) { wrap } else { Time::from_ns(random.below(1 << 50)) };
        Plan {
            shards: 1 + random.below(4) as usize,
            settings,
            rules,
            rooms_max: *random.pick(&[3, 100, 100]),
            rooms: if heavy { &ROOMS[..1] } else { &ROOMS },
            scratch_bytes: if heavy { 4 << 20 } else { *random.pick(&[24, 200, 2_048, 65_536]) },
            steps,
            turns_percent: if heavy { 5 } else { *random.pick(&[12, 25, 40]) },
            refusals_percent: *random.pick(&[0, 2, 10]),
            clients_max: if heavy { 6 } else { 2 + random.below(23) as usize },
            heavy,
            stops_early: seed % 8 == 5,
            pollers_max: None,
            special: false,
            orders: None,
            drain: random.chance(30).then(|| {
                let spread_ms = if random.chance(50) { 0 } else { random.below(2_000) as u32 };
                (drain_step, spread_ms, spread_ms + *random.pick(&[100, 8_000]))
            }),
            start,
        }
    }
}

/// Names that clients join. One needs escapes in JSON, one is not ASCII, one does not fit a short string.
const ROOMS: [&str; 5] = ["a", "auction:7", "q\"\\/q", "räume/漢字", "a-room-with-a-rather-long-name-0001"];
/// The namespaces that there are.
pub(super) const NAMESPACES: [&str; 2] = ["/", "/other"];
