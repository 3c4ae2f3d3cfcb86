//! The auction of examples/auction, by its document, with the `ws` client that it names: on one shard and on several, and two processes with a
//! Redis between them.

use crate::foreign::{self, NODE};
use crate::harness::redis::{Redis, free_port};
use crate::harness::server::run;
use crate::harness::{Server, eventually};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

pub(crate) const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples");
const KEY: &str = "a-key-of-the-tests-of-applications";
const CHECKS: u32 = 12;

/// What is left of an application behind throng, as a process. It is killed when this is dropped.
pub(crate) struct Application(Child);

impl Application {
    /// A script of the examples, at `port`.
    pub(crate) fn start(script: &str, port: u16, arguments: &[&str], env: &[(&str, &str)]) -> Application {
        let mut command = Command::new("node");
        command.arg(format!("{EXAMPLES}/{script}")).arg(port.to_string()).args(arguments);
        let child = command.envs(env.iter().copied()).stdin(Stdio::null()).spawn();
        let application = Application(child.unwrap_or_else(|error| panic!("node: {error}: {NODE}")));
        eventually("the application listens", || TcpStream::connect(("127.0.0.1", port)).ok());
        application
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A server with the configuration of an example, and its application at `port`.
pub(crate) fn example(name: &str, port: u16, settings: &[&str]) -> Server {
    let config = format!("{EXAMPLES}/{name}/throng.toml");
    let url = format!("backend.url=http://127.0.0.1:{port}");
    let mut flags = vec!["--config", &config, "--set", &url];
    // What the defaults of tests say comes before the file.
    let tests = ["server.listen=127.0.0.1:0", "backend.timeout_ms=10000"];
    flags.extend(tests.iter().chain(settings).flat_map(|setting| ["--set", *setting]));
    Server::with_flags(&flags)
}

/// Has stock clients go through the document at these servers, of which the first has the API that the application publishes by.
fn check(servers: &[&Server], port: u16) {
    let control = format!("http://{}", servers[0].control_address());
    let env = [("THRONG_API_KEY", KEY), ("LOTS_MS", r#"{"9":29000,"10":8000}"#)];
    let _application = Application::start("auction/server.mjs", port, &[&control], &env);
    let mut script = foreign::node("node/app_auction.mjs");
    script.args(servers.iter().map(|server| format!("http://{}", server.address())));
    foreign::check(script, NODE, CHECKS);
    for server in servers {
        server.wait_for_number("connections", 0);
        server.wait_for_number("rooms", 0);
    }
}

const HEARTBEAT: [&str; 2] = ["heartbeat.ping_interval_ms=500", "heartbeat.ping_timeout_ms=4000"];

fn server(port: u16, settings: &[&str]) -> Server {
    let key = format!("api.key={KEY}");
    example("auction", port, &[HEARTBEAT.as_slice(), &[key.as_str()], settings].concat())
}

#[test]
fn the_auctions_document_holds() {
    for shards in ["server.shards=1", "server.shards=4"] {
        let port = free_port();
        check(&[&server(port, &[shards])], port);
    }
}

#[test]
fn the_auctions_document_holds_with_two_processes() {
    let redis = Redis::start();
    let urls = format!(r#"redis.urls=["{}"]"#, redis.url());
    let port = free_port();
    let [one, other] = [server(port, &[&urls]), server(port, &[&urls])];
    check(&[&one, &other], port);
}

#[test]
fn the_configurations_are_sound_and_explained() {
    for (name, says) in [
        ("auction/throng.toml", r#"On "bid" a user"#),
        ("auction/load.toml", r#"On "auctionUpdate" a client"#),
        ("chat/throng.toml", r#"On "authenticated" a client"#),
        ("chat/load.toml", r#"On "send_message" a client"#),
    ] {
        let outcome = run(&[], &["check", &format!("{EXAMPLES}/{name}")]);
        assert_eq!(outcome.code, Some(0), "{name}: {}", outcome.stderr);
        assert!(outcome.stdout.contains(says), "{name}: {}", outcome.stdout);
    }
}
