//! Redis for the tests: real servers on ports of their own, behind Sentinels and in clusters, and false ones that misbehave.

use super::WAIT;
use super::clock::{Deadline, LOOK_AGAIN, eventually, rest};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// A `redis-server` in a directory of its own. It is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Redis {
    child: Child,
    port: u16,
    folder: PathBuf,
    args: Vec<String>,
}

impl Redis {
    pub(crate) fn start() -> Redis {
        Redis::with(&[])
    }

    /// One with these flags of its command line. `{folder}` and `{port}` in them stand for its own, `{bus}` for another port.
    pub(crate) fn with(flags: &[&str]) -> Redis {
        let folder = folder();
        // Another test may take the port before Redis does.
        for _ in 0..8 {
            let port = free_port();
            let own = ["--port {port}", "--bind 127.0.0.1", "--dir {folder}", "--save ", "--appendonly no"];
            let args = own.iter().chain(flags).flat_map(|flag| {
                let words = flag.split(' ').map(|word| {
                    word.replace("{folder}", &folder.display().to_string())
                        .replace("{port}", &port.to_string())
                        .replace("{bus}", &free_port().to_string())
                });
                words.collect::<Vec<String>>()
            });
            let mut redis = Redis { child: spawn(&[]), port, folder: folder.clone(), args: args.collect() };
            if redis.run() {
                return redis;
            }
        }
        panic!(
            "no Redis starts in {}: {}",
            folder.display(),
            fs::read_to_string(folder.join("log")).unwrap_or_default()
        );
    }

    /// A Sentinel that watches the master `main` on this port. Two have to agree.
    pub(crate) fn sentinel(master: u16) -> Redis {
        let folder = folder();
        let port = free_port();
        let config = format!(
            "port {port}\nbind 127.0.0.1\ndir {folder}\nsentinel monitor main 127.0.0.1 {master} 2\n\
             sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 3000\n",
            folder = folder.display()
        );
        fs::write(folder.join("sentinel.conf"), config).expect("the folder is ours");
        let args = vec![folder.join("sentinel.conf").display().to_string(), "--sentinel".to_owned()];
        let mut sentinel = Redis { child: spawn(&[]), port, folder, args };
        assert!(sentinel.run(), "the Sentinel does not start");
        sentinel
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// What `redis-cli` answers to a command.
    pub(crate) fn cli(&self, words: &[&str]) -> String {
        cli(&[&["-p", &self.port.to_string()], words].concat())
    }

    /// Ends it as `kill -9` does.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("it is our child");
        self.child.wait().expect("it is our child");
    }

    /// Ends it in order, with nothing kept.
    pub(crate) fn stop(&mut self) {
        self.cli(&["SHUTDOWN", "NOSAVE"]);
        self.child.wait().expect("it is our child");
    }

    /// Starts it again, empty.
    pub(crate) fn start_again(&mut self) {
        eventually("Redis starts again", || self.run().then_some(()));
    }

    /// Stops it in its tracks: its connections stay open.
    pub(crate) fn pause(&self) {
        self.signal(Signal::STOP);
    }

    pub(crate) fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it runs and is ours");
    }

    /// Starts the program, and answers whether it serves.
    fn run(&mut self) -> bool {
        self.child.wait().ok();
        self.child = spawn(&[&self.args[..], &["--logfile".to_owned(), "log".to_owned()]].concat());
        let deadline = Deadline::after(WAIT);
        while !deadline.is_over() {
            if TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return self.child.try_wait().expect("it is our child").is_none();
            }
            if self.child.try_wait().expect("it is our child").is_some() {
                return false;
            }
            rest(LOOK_AGAIN);
        }
        false
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // An error means that it has ended, which is what is wanted.
        self.child.kill().ok();
        self.child.wait().ok();
        if !std::thread::panicking() {
            fs::remove_dir_all(&self.folder).ok();
        }
    }
}

/// A master `main` with a replica, and three Sentinels that know them.
pub(crate) struct Trio {
    pub(crate) master: Redis,
    pub(crate) replica: Redis,
    pub(crate) sentinels: Vec<Redis>,
}

impl Trio {
    pub(crate) fn start() -> Trio {
        let master = Redis::start();
        let replica = Redis::with(&[&format!("--replicaof 127.0.0.1 {}", master.port())]);
        let sentinels: Vec<Redis> = (0..3).map(|_| Redis::sentinel(master.port())).collect();
        eventually("the replica follows", || {
            replica.cli(&["INFO", "replication"]).contains("master_link_status:up").then_some(())
        });
        for sentinel in &sentinels {
            eventually("the Sentinels know each other and the replica", || {
                let known = sentinel.cli(&["SENTINEL", "MASTER", "main"]);
                let lines: Vec<&str> = known.lines().collect();
                let has = |name, value| lines.windows(2).any(|pair| pair == [name, value]);
                (has("num-other-sentinels", "2") && has("num-slaves", "1")).then_some(())
            });
        }
        Trio { master, replica, sentinels }
    }

    pub(crate) fn urls(&self) -> Vec<String> {
        self.sentinels.iter().map(Redis::url).collect()
    }
}

/// A cluster of three masters.
pub(crate) struct Cluster {
    pub(crate) masters: Vec<Redis>,
}

impl Cluster {
    pub(crate) fn start() -> Cluster {
        let masters: Vec<Redis> = (0..3)
            .map(|_| {
                Redis::with(&["--cluster-enabled yes", "--cluster-node-timeout 1000", "--cluster-port {bus}"])
            })
            .collect();
        let addresses: Vec<String> =
            masters.iter().map(|redis| format!("127.0.0.1:{}", redis.port())).collect();
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        cli(&[&["--cluster", "create"], &addresses[..], &["--cluster-yes"]].concat());
        for redis in &masters {
            eventually("the cluster is whole", || {
                redis.cli(&["CLUSTER", "INFO"]).contains("cluster_state:ok").then_some(())
            });
        }
        Cluster { masters }
    }

    pub(crate) fn urls(&self) -> Vec<String> {
        self.masters.iter().map(Redis::url).collect()
    }

    /// The master that has the slot of `key`, by its place.
    pub(crate) fn owner(&self, key: &str) -> usize {
        let slot = self.masters[0].cli(&["CLUSTER", "KEYSLOT", key]);
        let slot: usize = slot.trim().parse().expect("a slot");
        // As `redis-cli --cluster create` deals them out.
        [0..=5460, 5461..=10922, 10923..=16383]
            .iter()
            .position(|slots| slots.contains(&slot))
            .expect("a slot")
    }

    /// Moves the slot of `key` to another master.
    pub(crate) fn move_slot(&self, key: &str, target: usize) {
        let slot = self.masters[0].cli(&["CLUSTER", "KEYSLOT", key]);
        let id = self.masters[target].cli(&["CLUSTER", "MYID"]);
        let order = [target, (target + 1) % 3, (target + 2) % 3];
        for place in order {
            let answer = self.masters[place].cli(&["CLUSTER", "SETSLOT", slot.trim(), "NODE", id.trim()]);
            assert_eq!(answer.trim(), "OK");
        }
        // The first to be told has to win over what the others say of it.
        self.masters[target].cli(&["CLUSTER", "BUMPEPOCH"]);
    }
}

/// Something on a port that is not quite Redis. It ends with the process.
pub(crate) struct Fake {
    port: u16,
    /// Connections that were made to it.
    pub(crate) connections: Arc<AtomicUsize>,
}

impl Fake {
    /// One that answers each command, its words in capitals, as `answer` says; without an answer, it closes the connection.
    pub(crate) fn start(answer: impl Fn(&[String]) -> Option<Vec<u8>> + Send + Sync + 'static) -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("it is bound").port();
        let connections = Arc::new(AtomicUsize::new(0));
        let (count, answer) = (connections.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                count.fetch_add(1, Relaxed);
                let answer = answer.clone();
                std::thread::spawn(move || {
                    let mut reader = BufReader::new(stream.try_clone().expect("a descriptor"));
                    while let Some(answer) = command(&mut reader).and_then(|words| answer(&words)) {
                        // An error means that the other side is gone, which shows at the next read.
                        stream.write_all(&answer).ok();
                    }
                });
            }
        });
        Fake { port, connections }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}

/// The next command, or nothing at the end of the connection.
fn command(reader: &mut BufReader<TcpStream>) -> Option<Vec<String>> {
    let number = |reader: &mut BufReader<TcpStream>| {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        line.trim().get(1..)?.parse::<usize>().ok()
    };
    let count = number(reader)?;
    (0..count)
        .map(|_| {
            let mut word = vec![0; number(reader)? + 2];
            reader.read_exact(&mut word).ok()?;
            Some(String::from_utf8_lossy(&word).trim_end().to_ascii_uppercase())
        })
        .collect()
}

fn cli(words: &[&str]) -> String {
    let output = Command::new("redis-cli").args(words).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("redis-cli: {error}; {INSTALL}"));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

const INSTALL: &str = "install it with: apt-get install redis-server (.ci/setup does)";

/// Without arguments, something that has ended already.
fn spawn(args: &[String]) -> Child {
    let mut command = Command::new("redis-server");
    if args.is_empty() {
        command.arg("--version");
    }
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap_or_else(|error| panic!("redis-server: {error}; {INSTALL}"))
}

/// A port that nobody has right now.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("it is bound").port()
}

/// A directory for a server of a test.
pub(crate) fn folder() -> PathBuf {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let name = format!("throng-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
    let folder = std::env::temp_dir().join(name);
    fs::create_dir_all(&folder).expect("there is room for temporary files");
    folder
}
