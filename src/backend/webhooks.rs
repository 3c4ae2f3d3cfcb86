//! Webhooks: notices on their way out, in batches, to the backend or into a stream of Redis.
//!
//! What shards have left is put into lanes: all notices of one client, and of one room, go to the same, and a lane has one batch under way.
//! So their order is kept, whatever has to be tried again.

use super::caller::{Caller, Problem};
use super::log::{LogPause, brief};
use super::stream::Stream;
use crate::bridge::numbers::random;
use crate::bus::Bus;
use crate::bus::directory::{namespace_of, room_of};
use crate::bus::notices::{Kind, Lost, Notice, Notices, What, Who};
use crate::message::write_socket_id;
use crate::time::Clock;
use data_encoding::BASE64;
use hyper::StatusCode;
use hyper::body::Bytes;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// Where batches are posted, below `backend.url`.
const PATH: &str = "/webhooks";
/// How often it is looked whether something waits that no bell was rung for: what ends while a turn is written is told in the next.
pub(super) const TICK: Duration = Duration::from_millis(100);
/// The first pause before a batch is sent again. It doubles up to `backoff_max`.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// How long nothing is logged of batches that were given up after one was.
const LOG_PAUSE: Duration = Duration::from_secs(60);
/// What says that whoever answers does not look at notices: the signature or the address is wrong. All notices would be refused alike.
const OF_ALL: [StatusCode; 5] = [
    StatusCode::UNAUTHORIZED,
    StatusCode::FORBIDDEN,
    StatusCode::NOT_FOUND,
    StatusCode::METHOD_NOT_ALLOWED,
    StatusCode::GONE,
];
/// What is answered for a backend that is away.
const AWAY: [StatusCode; 3] =
    [StatusCode::BAD_GATEWAY, StatusCode::SERVICE_UNAVAILABLE, StatusCode::GATEWAY_TIMEOUT];
/// Notices that are written down before others on this thread have their turn.
const WRITTEN_MAX: usize = 256;

/// How notices go out. All bounds are inclusive.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What this process is called.
    pub node: String,
    /// Notices in one batch, at least 1.
    pub batch_max: usize,
    /// Bytes of notices in one batch; a longer one goes by itself.
    pub batch_bytes_max: usize,
    /// How long a notice may wait for others.
    pub linger: Duration,
    /// The longest pause before a batch is sent again. Half of each is random.
    pub backoff_max: Duration,
    /// How old the oldest notice of a batch may be when it is sent again.
    pub age_max: Duration,
}

/// Where notices go.
pub(crate) enum Way {
    /// To the backend.
    Post(Arc<Caller>),
    /// Into a stream of Redis.
    Add(Stream),
}

/// Why a batch did not go out.
struct Fault {
    why: String,
    /// True when it may if it is sent again.
    is_passing: bool,
    /// True when it may be about some of the notices, so that the others may go out without them.
    is_about_some: bool,
    /// How long the other side wants to be left in peace.
    rest: Duration,
}

/// Why a batch is not sent again.
struct Loss {
    reason: Lost,
    /// What was wrong the last time.
    fault: Fault,
}

/// Notices that go out together.
pub(crate) struct Batch {
    /// The same each time that it is sent.
    pub(super) id: String,
    /// What the process is called.
    pub(super) node: String,
    /// From 1, ascending in the process.
    pub(super) sequence: u64,
    /// How many notices were lost since the last batch.
    pub(super) lost: u64,
    /// At least one.
    pub(super) notices: Vec<Written>,
}

/// A notice as it goes out.
#[derive(Debug)]
pub(crate) struct Written {
    /// What it is about.
    pub(super) kind: Kind,
    /// A JSON object.
    pub(super) json: Vec<u8>,
    /// When it happened, in milliseconds since 1970.
    pub(super) at_unix_ms: u64,
    /// What it counts for while it waits.
    bytes: usize,
    taken: Instant,
}

/// Delivers notices until the process ends.
pub(crate) async fn deliver(
    way: Way,
    notices: Arc<Notices>,
    bus: Arc<Bus>,
    clock: Clock,
    settings: Settings,
) {
    let bell = Arc::new(Notify::new());
    let ringing = bell.clone();
    notices.hang_bell(Box::new(move || ringing.notify_one()));
    let post = Arc::new(Post {
        way,
        notices: notices.clone(),
        settings,
        sequence: AtomicU64::new(0),
        is_failing: AtomicBool::new(false),
        log_pause: LogPause::new(LOG_PAUSE),
    });
    // What waits in them is bounded by the notices.
    let lanes: Vec<_> = (0..notices.lanes())
        .map(|lane| {
            let (lane_end, waiting) = mpsc::unbounded_channel();
            tokio::spawn(post.clone().serve(lane, waiting));
            lane_end
        })
        .collect();
    loop {
        timeout(TICK, bell.notified()).await.ok();
        let now_unix_ms = notices.unix_ms(clock.now());
        for (at, notice) in notices.take().into_iter().enumerate() {
            let lane = (notice.key() % lanes.len() as u64) as usize;
            if is_hidden(&notice, &bus) {
                notices.release(1, notice.bytes);
                continue;
            }
            let at_unix_ms = notice.at_unix_ms.unwrap_or(now_unix_ms);
            let json = write_down(&notice, notices.life(), at_unix_ms);
            let (kind, bytes, taken) = (notice.kind(), notice.bytes, Instant::now());
            // A lane ends only with the process.
            lanes[lane].send(Written { kind, json, at_unix_ms, bytes, taken }).ok();
            if at % WRITTEN_MAX == WRITTEN_MAX - 1 {
                tokio::task::yield_now().await;
            }
        }
    }
}

/// What the lanes share.
struct Post {
    way: Way,
    notices: Arc<Notices>,
    settings: Settings,
    sequence: AtomicU64,
    /// True from a failure to the next batch that goes out.
    is_failing: AtomicBool,
    /// Between lines about notices that were given up.
    log_pause: LogPause,
}

impl Post {
    /// Sends what comes into a lane, one batch after the other.
    async fn serve(self: Arc<Post>, lane: usize, mut waiting: UnboundedReceiver<Written>) {
        let mut failures = 0;
        let mut held = None;
        loop {
            self.notices.set_oldest(lane, 0);
            let first = match held.take() {
                Some(first) => first,
                None => match waiting.recv().await {
                    Some(first) => first,
                    None => return,
                },
            };
            self.notices.set_oldest(lane, first.at_unix_ms);
            let notices = self.gather(first, &mut waiting, &mut held).await;
            self.send(notices, &mut failures).await;
        }
    }

    /// Waits for more that goes along with the first one. What does not fit is `held` for the next batch.
    async fn gather(
        &self,
        first: Written,
        waiting: &mut UnboundedReceiver<Written>,
        held: &mut Option<Written>,
    ) -> Vec<Written> {
        let linger_end = first.taken + self.settings.linger;
        let mut ending = self.notices.ending();
        let mut bytes = first.json.len();
        let mut notices = vec![first];
        while notices.len() < self.settings.batch_max {
            let next = tokio::select! {
                biased;
                next = waiting.recv() => next,
                () = sleep_until(linger_end) => break,
                _ = ending.wait_for(|is_ending| *is_ending) => break,
            };
            let Some(next) = next else { break };
            bytes += next.json.len();
            if bytes > self.settings.batch_bytes_max {
                *held = Some(next);
                break;
            }
            notices.push(next);
        }
        notices
    }

    /// A batch of these notices, which also tells how many were lost.
    fn batch(&self, notices: Vec<Written>) -> Batch {
        let sequence = self.sequence.fetch_add(1, Relaxed) + 1;
        Batch {
            id: format!("{:016x}-b{sequence}", self.notices.life()),
            node: self.settings.node.clone(),
            sequence,
            lost: self.notices.take_untold(),
            notices,
        }
    }

    /// Sends notices until each is taken, refused or too old. `failures` is how often in a row something in this lane was not taken.
    ///
    /// What is not taken though the backend is there may be so for one notice alone: the batch goes in halves then, in their order, and
    /// what does not go in halves of these, down to single ones. For each notice that is lost in the end that is at most two requests more for each
    /// time that the batch can be halved. A backend that takes nothing is asked for no more than one such
    /// notice.
    async fn send(&self, notices: Vec<Written>, failures: &mut u32) {
        let halvings = notices.len().next_power_of_two().ilog2();
        let begun = notices.first().map_or_else(Instant::now, |notice| notice.taken);
        // Parts in a row that were not taken, and how often something had not been before they were too old.
        let (mut missed, mut failures_before) = (0, 0);
        // The first one last.
        let mut parts = vec![notices];
        while let Some(part) = parts.pop() {
            let batch = self.batch(part);
            let Err(Loss { reason, fault }) = self.send_batch(&batch, begun, failures).await else {
                self.release(&batch.notices);
                (missed, failures_before) = (0, 0);
                continue;
            };
            self.notices.put_untold(batch.lost);
            let mut notices = batch.notices;
            missed += 1;
            if reason == Lost::Expired {
                failures_before = failures_before.max(*failures);
                // The backend is there, and has been left in peace long enough.
                *failures = 1;
            }
            if fault.is_about_some && notices.len() > 1 && missed <= 2 * halvings {
                let second = notices.split_off(notices.len() / 2);
                parts.extend([second, notices]);
                self.notices.retries.add(1);
                continue;
            }
            if self.log_pause.is_over() {
                let (count, reason) = (notices.len(), Lost::LABELS[reason as usize]);
                let why = brief(&fault.why);
                tracing::warn!(%why, count, reason, "notices were given up; for a minute others are only counted");
            }
            notices.iter().for_each(|notice| self.notices.lose(notice.kind, reason));
            self.release(&notices);
        }
        *failures = failures_before.max(*failures);
    }

    /// Sends a batch until it is taken, refused or too old, which is by when it has `begun`: when the first notice was taken of what it is a part of.
    async fn send_batch(&self, batch: &Batch, begun: Instant, failures: &mut u32) -> Result<(), Loss> {
        let body = batch.json();
        let mut ending = self.notices.ending();
        let mut rest = Duration::ZERO;
        loop {
            if *failures > 0 {
                tokio::select! {
                    () = sleep(self.pause(*failures).max(rest)) => {}
                    // Once at once, then as ever.
                    Ok(()) = ending.changed() => {}
                }
            }
            let sent = match &self.way {
                Way::Post(caller) => caller.post(PATH, body.clone()).await.map(drop).map_err(Fault::from),
                Way::Add(stream) => stream.add(batch).await.map_err(|fault| Fault::passing(&fault)),
            };
            let Err(fault) = sent else {
                *failures = 0;
                if self.is_failing.swap(false, Relaxed) {
                    tracing::info!("notices go out again");
                }
                self.notices.batches.add(1);
                return Ok(());
            };
            if !fault.is_passing {
                *failures = 0;
                return Err(Loss { reason: Lost::Refused, fault });
            }
            *failures += 1;
            if !self.is_failing.swap(true, Relaxed) {
                let why = brief(&fault.why);
                tracing::warn!(%why, "notices do not go out: they wait and are sent again");
            }
            if begun.elapsed() >= self.settings.age_max {
                return Err(Loss { reason: Lost::Expired, fault });
            }
            rest = fault.rest.min(self.settings.backoff_max);
            self.notices.retries.add(1);
        }
    }

    fn release(&self, notices: &[Written]) {
        let bytes = notices.iter().map(|notice| notice.bytes).sum();
        self.notices.release(notices.len(), bytes);
    }

    /// The pause after so many failures: it doubles, up to the longest, and half of it is random.
    fn pause(&self, failures: u32) -> Duration {
        let longest = self.settings.backoff_max;
        let whole = BACKOFF_MIN.saturating_mul(1 << failures.min(20).saturating_sub(1)).min(longest);
        let share = random() % 1024;
        whole / 2 + whole.mul_f64(share as f64 / 2048.0)
    }
}

impl Batch {
    /// The batch as the backend gets it.
    fn json(&self) -> Bytes {
        let texts: usize = self.notices.iter().map(|notice| notice.json.len() + 1).sum();
        let mut out = Vec::with_capacity(texts + self.node.len() + 128);
        let Batch { id, node, sequence, lost, notices } = self;
        out.extend_from_slice(b"{\"id\":");
        write_text(&mut out, id);
        out.extend_from_slice(b",\"node\":");
        write_text(&mut out, node);
        write!(out, ",\"sequence\":{sequence},\"lost\":{lost},\"notices\":[").expect(MEMORY);
        for (at, notice) in notices.iter().enumerate() {
            if at > 0 {
                out.push(b',');
            }
            out.extend_from_slice(&notice.json);
        }
        out.extend_from_slice(b"]}");
        out.into()
    }
}

impl Fault {
    fn passing(why: &impl ToString) -> Fault {
        Fault { why: why.to_string(), is_passing: true, is_about_some: false, rest: Duration::ZERO }
    }
}

impl From<Problem> for Fault {
    fn from(problem: Problem) -> Fault {
        let fault = Fault::passing(&problem);
        match problem {
            Problem::Status(status) if status.is_client_error() && !problem.is_passing() => {
                Fault { is_passing: false, is_about_some: !OF_ALL.contains(&status), ..fault }
            }
            Problem::Status(status) => {
                Fault { is_about_some: status.is_server_error() && !AWAY.contains(&status), ..fault }
            }
            Problem::NotNow(_, rest) => Fault { rest, ..fault },
            // What is too long, or a redirection, may be something that stands in for the backend while it is away.
            Problem::Open
            | Problem::Late
            | Problem::Unreachable(_)
            | Problem::TooLong
            | Problem::Unwanted => fault,
        }
    }
}

/// True for what nobody outside knows of: the room that stands for a socket which has come back on another shard.
fn is_hidden(notice: &Notice, bus: &Bus) -> bool {
    matches!(&notice.what, What::Room { name, .. } if bus.socket_of(name).is_some())
}

const MEMORY: &str = "writing to memory does not fail";

/// A notice as JSON.
fn write_down(notice: &Notice, life: u64, at_unix_ms: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(notice.bytes + notice.bytes / 3);
    let (number, kind) = (notice.number, notice.kind().label());
    write!(out, "{{\"id\":\"{life:016x}-{number}\",\"kind\":\"{kind}\",\"at_ms\":{at_unix_ms}")
        .expect(MEMORY);
    match &notice.what {
        What::Connected { who, address, recovered } => {
            write_who(&mut out, who);
            write_field(&mut out, "address", address);
            if *recovered {
                out.extend_from_slice(b",\"recovered\":true");
            }
        }
        What::Disconnected { who, reason, code, duration_ms } => {
            write_who(&mut out, who);
            write_field(&mut out, "reason", reason);
            if let Some(code) = code {
                write!(out, ",\"code\":{code}").expect(MEMORY);
            }
            write!(out, ",\"duration_ms\":{duration_ms}").expect(MEMORY);
        }
        What::Room { name, .. } => {
            write_field(&mut out, "namespace", namespace_of(name));
            write_field(&mut out, "room", room_of(name));
        }
        What::Event { who, event, rooms, args, attachments } => {
            write_who(&mut out, who);
            write_field(&mut out, "event", event);
            if !rooms.is_empty() {
                write_list(&mut out, "rooms", rooms.iter().map(|room| room.as_str()));
            }
            write!(out, ",\"args\":[{args}]").expect(MEMORY);
            if !attachments.is_empty() {
                write_list(&mut out, "attachments", attachments.iter().map(|bytes| BASE64.encode(bytes)));
            }
        }
    }
    out.push(b'}');
    out
}

fn write_who(out: &mut Vec<u8>, who: &Who) {
    write_field(out, "connection", &write_socket_id(&who.id));
    write_field(out, "dialect", who.dialect);
    if let Some(namespace) = &who.namespace {
        write_field(out, "namespace", namespace);
    }
    if let Some(user) = &who.user {
        write_field(out, "user", user);
    }
}

fn write_field(out: &mut Vec<u8>, name: &str, text: &str) {
    write!(out, ",\"{name}\":").expect(MEMORY);
    write_text(out, text);
}

fn write_list(out: &mut Vec<u8>, name: &str, texts: impl Iterator<Item = impl AsRef<str>>) {
    write!(out, ",\"{name}\":[").expect(MEMORY);
    for (at, text) in texts.enumerate() {
        if at > 0 {
            out.push(b',');
        }
        write_text(out, text.as_ref());
    }
    out.push(b']');
}

fn write_text(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect(MEMORY);
}
