//! The link to Redis: what it is told, what it tells, and the tasks that hold it.
//!
//! Whoever uses it hands it publications and subscriptions at any time, from any thread, and never waits. What happens is told by one
//! function that is called on the link's thread. There are two connections to each server, one to publish and ask on, one to hear on, so
//! that neither waits for the other.
//!
//! Of a cluster, throng knows the slots itself and holds its own connections. The cluster client of the `redis` crate sends again what
//! it has no answer to, and then a publication may arrive twice.

use super::fault::{Fault, FaultKind};
use super::lanes::{Ends, Shared};
use super::stats::{LinkStats, Loss};
use super::{publisher, subscriber};
use crate::time::{Clock, Time};
use redis::aio::{AsyncPushSender, MultiplexedConnection};
use redis::{Cmd, ConnectionAddr, ErrorKind, RedisError, ServerErrorKind};
use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};

pub use redis::Value;

/// Questions under way on one connection. Others wait for their turn, as long as for an answer, and are then given up. Publications go
/// ahead of those that wait.
pub(super) const QUESTIONS_MAX: usize = 256;

/// How Redis is reached, and how patient the link is with it. Has passwords in it, so it cannot be printed.
#[derive(Clone)]
pub struct Settings {
    /// Where it is.
    pub servers: Servers,
    /// The certificates that a server's certificate has to descend from, as PEM; without, those of the system.
    pub ca_pem: Option<Vec<u8>>,
    /// What the connections are called in `CLIENT LIST`. No spaces.
    pub name: String,
    /// What the names of channels begin with that the link itself uses: `watch:` and a number follow.
    pub prefix: String,
    /// After how much silence TCP asks whether the other side is still there.
    pub keepalive: Duration,
    /// How long it may take to connect and log in.
    pub connect_timeout: Duration,
    /// How long an answer may take.
    pub command_timeout: Duration,
    /// Before the first and before later attempts to connect again. It doubles in between; half of it is random.
    pub backoff_min: Duration,
    /// The longest of these pauses. Delivery is back at most this much, and the time to connect, after Redis.
    pub backoff_max: Duration,
    /// Publications that may wait for one server, those without an answer included. One message may hold several.
    pub waiting_max: usize,
    /// The bytes of these: channel, payload, and 200 more for each message.
    pub waiting_bytes_max: usize,
    /// How often each connection is tried.
    pub watch_interval: Duration,
    /// How long nothing may be heard, longer than the interval. Then the connection is given up.
    pub watch_patience: Duration,
}

impl Settings {
    /// Settings for these servers with which delivery is back within 2 s of Redis.
    pub fn new(servers: Servers) -> Settings {
        Settings {
            servers,
            ca_pem: None,
            name: "throng".into(),
            prefix: "throng:".into(),
            keepalive: Duration::from_secs(30),
            connect_timeout: Duration::from_millis(1500),
            command_timeout: Duration::from_secs(5),
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_millis(500),
            waiting_max: 100_000,
            waiting_bytes_max: 32 << 20,
            watch_interval: Duration::from_secs(1),
            watch_patience: Duration::from_secs(3),
        }
    }
}

/// Where Redis is. URLs are `redis://[user][:password@]host[:port][/database]`, the same with `rediss` for TLS, or
/// `unix:///path[?db=..&user=..&pass=..]`.
#[derive(Clone)]
pub enum Servers {
    /// One server.
    One(String),
    /// The master of this name, which Sentinels know.
    Sentinel {
        /// URLs with the addresses of the Sentinels. User, password and database in them, and TLS, are those of the master.
        sentinels: Vec<String>,
        /// The name of the master.
        master: String,
        /// The password of the Sentinels themselves.
        password: Option<String>,
    },
    /// A cluster, of which these are some servers.
    Cluster(Vec<String>),
}

/// The ways to publish and to subscribe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// A channel, the same on all servers of a cluster.
    Plain,
    /// All channels that match a pattern. To publish, the same as `Plain`.
    Pattern,
    /// A channel of one slot of a cluster.
    Sharded,
}

/// What the link tells.
#[derive(Debug)]
pub enum Event<'a> {
    /// A message has arrived.
    Message {
        /// By which subscription.
        way: Way,
        /// The pattern, if it was one.
        pattern: Option<&'a [u8]>,
        /// The channel it was published to.
        channel: &'a [u8],
        /// What was published.
        payload: Vec<u8>,
    },
    /// A server can be published to and heard.
    Up {
        /// Its address.
        server: &'a str,
    },
    /// A server cannot be published to, or not be heard, any more.
    Down {
        /// Its address.
        server: &'a str,
        /// Why.
        fault: &'a Fault,
    },
    /// A server that cannot be used still cannot, for a reason of a kind that was not told since it was up last, or ever.
    Away {
        /// Its address, if it is known.
        server: &'a str,
        /// Why.
        fault: &'a Fault,
    },
    /// A server has failed so often that nothing is kept for it, until it can be published to.
    GivenUp {
        /// Its address, if it is known.
        server: &'a str,
        /// Why it failed the last time.
        fault: &'a Fault,
    },
    /// A server that can be used refuses a publication or a subscription, for a reason of a kind that was not told since it was lost.
    Refused {
        /// Its address.
        server: &'a str,
        /// Why.
        fault: &'a Fault,
    },
    /// What was published between these times may not have been heard, on any channel. All subscriptions that Redis takes are made again.
    Gap {
        /// What was published before was heard.
        from: Time,
        /// What is published from now on is heard.
        to: Time,
    },
}

/// The link to Redis. Clones are the same link.
#[derive(Clone)]
pub struct Link {
    shared: Arc<Shared>,
}

impl Link {
    /// A link that does nothing before it is [run](Link::run). `tell` is called on the thread that runs it, between two reads, so it
    /// must not wait; it may use the link.
    ///
    /// # Errors
    /// [`FaultKind::Settings`] when the settings cannot work.
    pub fn new(
        settings: Settings,
        clock: Clock,
        tell: impl Fn(Event<'_>) + Send + Sync + 'static,
    ) -> Result<Link, Fault> {
        if settings.watch_patience <= settings.watch_interval {
            return Err(Fault::new(
                FaultKind::Settings,
                "the watchdog has to be more patient than it is busy",
            ));
        }
        Ok(Link { shared: Arc::new(Shared::new(settings, clock, tell)?) })
    }

    /// Holds the link until this future is dropped; what waits then is not sent any more. Needs a tokio runtime with I/O and time.
    ///
    /// # Panics
    /// When one of its tasks does.
    pub async fn run(&self) {
        let shared = &self.shared;
        let mut tasks = JoinSet::new();
        let mut running: HashMap<u32, [AbortHandle; 2]> = HashMap::new();
        let start = |tasks: &mut JoinSet<()>, lane: Arc<Ends>| {
            [
                tasks.spawn(publisher::publish(shared.clone(), lane.clone())),
                tasks.spawn(subscriber::subscribe(shared.clone(), lane)),
            ]
        };
        let is_cluster = shared.places.are_a_cluster();
        if let Some(lane) = shared.first().filter(|_| !is_cluster) {
            running.insert(lane.id, start(&mut tasks, lane));
        }
        let mut backoff = Backoff::new(&shared.settings);
        loop {
            if is_cluster {
                match shared.places.slots(shared.addresses()).await {
                    Ok(ranges) => {
                        let (added, gone) = shared.rewire(&ranges);
                        for id in gone {
                            running.remove(&id).into_iter().flatten().for_each(|task| task.abort());
                        }
                        for lane in added {
                            running.insert(lane.id, start(&mut tasks, lane));
                        }
                        backoff = Backoff::new(&shared.settings);
                    }
                    Err(fault) => {
                        let too_often = backoff.fail();
                        match shared.first().filter(|lane| lane.address.borrow().is_none()) {
                            // Nothing is known of this cluster yet, so nothing can be published to it.
                            Some(lane) => shared.publisher_is_down(lane.id, &fault, too_often),
                            None => shared.count_fault(&fault),
                        }
                        shared.moved.notify_one();
                    }
                }
                backoff.wait().await;
            }
            tokio::select! {
                () = shared.moved.notified() => {}
                Some(Err(ended)) = tasks.join_next() => {
                    if ended.is_panic() {
                        std::panic::resume_unwind(ended.into_panic());
                    }
                }
            }
        }
    }

    /// Publishes a message. Those to one channel arrive in the order of these calls. For what is counted, and for the bound on what waits, it is
    /// `publications`.
    ///
    /// # Errors
    /// When it was given up at once: [`Loss::Full`] or [`Loss::Down`]. What is lost later is only counted.
    pub fn publish(&self, way: Way, channel: &[u8], payload: &[u8], publications: usize) -> Result<(), Loss> {
        self.shared.publish(way, channel, payload, publications)
    }

    /// Subscribes to channels or patterns. It lasts over all connections until [`Link::unsubscribe`]; twice is once.
    pub fn subscribe(&self, way: Way, names: impl IntoIterator<Item = impl AsRef<[u8]>>) {
        self.shared.want(way, names.into_iter(), true);
    }

    /// Ends subscriptions. Messages that are under way may still arrive.
    pub fn unsubscribe(&self, way: Way, names: impl IntoIterator<Item = impl AsRef<[u8]>>) {
        self.shared.want(way, names.into_iter(), false);
    }

    /// Asks Redis something, a command and its arguments; of a cluster, the server that has the key or channel `near`. It is asked once.
    /// Belongs on the runtime of the link.
    ///
    /// # Errors
    /// What Redis answered, or why there is no answer; after a time-out the command may have been carried out.
    pub async fn ask(&self, near: &[u8], words: &[&[u8]]) -> Result<Value, Fault> {
        self.ask_on(&self.line(near)?, words).await
    }

    /// Asks all servers of a cluster the same, one after the other, or the one server there is.
    ///
    /// # Errors
    /// As [`Link::ask`], each for itself.
    pub async fn ask_each(&self, words: &[&[u8]]) -> Vec<Result<Value, Fault>> {
        let mut answers = Vec::new();
        for line in self.shared.lines() {
            answers.push(match line {
                Some(line) => self.ask_on(&line, words).await,
                None => Err(no_connection()),
            });
        }
        answers
    }

    /// Runs a script on `keys`, at least one, which in a cluster are all in one slot. Its text is sent only when Redis does not have it.
    ///
    /// # Errors
    /// As [`Link::ask`].
    pub async fn run_script(&self, script: &Script, keys: &[&[u8]], args: &[&[u8]]) -> Result<Value, Fault> {
        let near = keys.first().copied().unwrap_or_default();
        let count = keys.len().to_string();
        let words = |command: &'static str, which: &str| {
            let mut words = Cmd::new();
            words.arg(command).arg(which).arg(&count).arg(keys).arg(args);
            words
        };
        // Without a connection it has not failed: that there is none is told anyway.
        let line = self.line(near)?;
        let mut answer = self.put(&line, &words("EVALSHA", &script.hash)).await;
        if answer.as_ref().is_err_and(|error| error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)) {
            answer = self.put(&line, &words("EVAL", script.text)).await;
        }
        answer.map_err(|error| self.fault(error))
    }

    /// Counts what is wrong with something that Redis has answered.
    pub(super) fn count_fault(&self, fault: &Fault) {
        self.shared.count_fault(fault);
    }

    /// What the link counts.
    pub fn stats(&self) -> Arc<LinkStats> {
        self.shared.stats.clone()
    }

    fn line(&self, near: &[u8]) -> Result<Line, Fault> {
        self.shared.line(near).ok_or_else(no_connection)
    }

    async fn ask_on(&self, line: &Line, words: &[&[u8]]) -> Result<Value, Fault> {
        let mut question = Cmd::new();
        question.arg(words);
        self.put(line, &question).await.map_err(|error| self.fault(error))
    }

    /// Puts a question when it is its turn.
    async fn put(&self, line: &Line, question: &Cmd) -> Result<Value, RedisError> {
        let too_late = |_| RedisError::from(io::Error::from(io::ErrorKind::TimedOut));
        let turn = timeout(self.shared.settings.command_timeout, line.turns.acquire()).await;
        // Nobody closes the turns, so there is one in what came in time.
        let _turn = turn.map_err(too_late)?;
        line.conn.clone().send_packed_command(question).await.and_then(Value::extract_error)
    }

    fn fault(&self, error: RedisError) -> Fault {
        let fault = Fault::from(error);
        self.shared.count_fault(&fault);
        fault
    }
}

fn no_connection() -> Fault {
    Fault::new(FaultKind::Unreachable, "there is no connection to Redis")
}

/// A connection to ask on, at most [`QUESTIONS_MAX`] at a time: publications use it, too, and must never have to wait for a place in its
/// queue.
#[derive(Clone)]
pub(super) struct Line {
    conn: MultiplexedConnection,
    turns: Arc<Semaphore>,
}

impl Line {
    pub(super) fn new(conn: MultiplexedConnection) -> Line {
        Line { conn, turns: Arc::new(Semaphore::new(QUESTIONS_MAX)) }
    }
}

/// A script for Redis, and what Redis calls it.
#[derive(Debug)]
pub struct Script {
    text: &'static str,
    hash: String,
}

impl Script {
    /// The script with this text.
    pub fn new(text: &'static str) -> Script {
        Script { text, hash: redis::Script::new(text).get_hash().to_owned() }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("settings", &self.shared.settings.name).finish_non_exhaustive()
    }
}

impl Way {
    pub(super) const COUNT: usize = 3;
    pub(super) const ALL: [Way; Way::COUNT] = [Way::Plain, Way::Pattern, Way::Sharded];

    pub(super) fn command(self, wanted: bool) -> &'static str {
        match (self, wanted) {
            (Way::Plain, true) => "SUBSCRIBE",
            (Way::Plain, false) => "UNSUBSCRIBE",
            (Way::Pattern, true) => "PSUBSCRIBE",
            (Way::Pattern, false) => "PUNSUBSCRIBE",
            (Way::Sharded, true) => "SSUBSCRIBE",
            (Way::Sharded, false) => "SUNSUBSCRIBE",
        }
    }
}

impl Shared {
    /// A connection to the server of a lane, and where that is. Waits for Sentinels to know.
    pub(super) async fn connect(
        &self,
        lane: &Ends,
        pushes: impl AsyncPushSender,
    ) -> Result<(MultiplexedConnection, Option<ConnectionAddr>), Fault> {
        let mut address = lane.address.borrow().clone();
        if !self.places.are_a_cluster() {
            address = Some(self.places.locate().await?);
            lane.address.send_if_modified(|known| {
                let differs = *known != address;
                known.clone_from(&address);
                differs
            });
        }
        let Some(there) = address.clone() else {
            return Err(Fault::new(FaultKind::Cluster, "this server is nowhere"));
        };
        Ok((self.places.open(there, pushes).await?, address))
    }
}

/// Ends when the server of a lane is not at `address` any more.
pub(super) async fn wait_for_change(lane: &Ends, address: &Option<ConnectionAddr>) -> Fault {
    let mut addresses = lane.address.subscribe();
    // An error means that the lane is gone; then so is this task.
    addresses.wait_for(|now| now != address).await.ok();
    Fault::new(FaultKind::ReadOnly, "the master is another now")
}

/// Pauses between attempts: they double from the shortest to the longest, and half of each is random, so that many processes do not come
/// back at one moment.
pub(super) struct Backoff {
    min: Duration,
    max: Duration,
    failures: u32,
    ever: bool,
    /// When the connection was made that is there.
    since: Option<Instant>,
}

impl Backoff {
    /// How many connections in a row may not be made, or be lost at once, before the breaker opens.
    const FAILURES_MAX: u32 = 2;

    pub(super) fn new(settings: &Settings) -> Backoff {
        let (min, max) = (settings.backoff_min, settings.backoff_max);
        Backoff { min, max, failures: 0, ever: false, since: None }
    }

    /// A connection is there.
    pub(super) fn begin(&mut self) {
        self.since = Some(Instant::now());
    }

    /// Whether there has been an attempt before.
    pub(super) fn is_again(&self) -> bool {
        self.ever
    }

    /// There is none, or none any more. Answers whether that was too often in a row, so that the breaker opens. One that lasted longer
    /// than the longest pause was no failure.
    pub(super) fn fail(&mut self) -> bool {
        self.ever = true;
        if self.since.take().is_some_and(|since| since.elapsed() > self.max) {
            self.failures = 0;
        }
        self.failures = self.failures.saturating_add(1);
        self.failures > Backoff::FAILURES_MAX
    }

    pub(super) async fn wait(&self) {
        let doublings = self.failures.saturating_sub(1).min(16);
        let ceiling = (self.min * (1 << doublings)).min(self.max);
        let random = (RandomState::new().hash_one(doublings) % 1024) as u32;
        sleep(ceiling / 2 + ceiling / 2 * random / 1024).await;
    }
}
