//! Pona's music (`examples/pona`): its document, section by section, with the client that it names, against two processes on one Redis.

use crate::foreign::{NODE, check, node};
use crate::harness::redis::{Redis, free_port};
use crate::harness::{Server, eventually};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/pona");

/// The backend of the example. It is killed when this is dropped.
struct Backend(Child);

impl Drop for Backend {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn stock_clients_find_what_the_document_of_pona_says() {
    let redis = Redis::start();
    let port = free_port();
    let backend = format!("http://127.0.0.1:{port}");
    let (config, url) = (format!("{EXAMPLE}/throng.toml"), format!("backend.url={backend}"));
    let urls = format!("redis.urls={:?}", [redis.url()]);
    let servers = [(); 2].map(|()| {
        let mut flags = vec!["--config", config.as_str()];
        for setting in ["server.listen=127.0.0.1:0", "server.shards=2", "server.pin=false", &url, &urls] {
            flags.extend(["--set", setting]);
        }
        let mut server = Server::with_flags(&flags);
        server.wait_for_log("connected to Redis");
        server
    });
    let controls = servers.each_ref().map(|server| format!("http://{}", server.control_address()));
    let mut command = Command::new("node");
    command.args([&format!("{EXAMPLE}/backend.mjs"), &port.to_string(), &controls[0]]).stdin(Stdio::null());
    let _backend = Backend(command.spawn().expect(NODE));
    eventually("the backend listens", || TcpStream::connect(("127.0.0.1", port)).ok());
    let mut script = node("node/app_pona.mjs");
    script.args(servers.each_ref().map(|server| format!("http://{}", server.address())));
    script.args([format!("--control={}", controls.join(",")), format!("--backend={backend}")]);
    check(script, NODE, 14);
    for server in &servers {
        server.wait_for_number("connections", 0);
        server.wait_for_number("rooms", 0);
    }
}
