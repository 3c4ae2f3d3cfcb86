//! AdStack's events (`examples/adstack`): its document, line by line, with the client that it names, against two processes on one port.

use crate::foreign::{NODE, check, node};
use crate::harness::Server;
use crate::harness::redis::Redis;

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/adstack");

#[test]
fn stock_clients_find_what_the_document_of_adstack_says() {
    let redis = Redis::start();
    let config = format!("{EXAMPLE}/throng.toml");
    let urls = format!("redis.urls={:?}", [redis.url()]);
    let start = |listen: &str| {
        let listen = format!("server.listen={listen}");
        let mut flags = vec!["--config", config.as_str()];
        for setting in [listen.as_str(), "server.shards=2", "server.pin=false", &urls] {
            flags.extend(["--set", setting]);
        }
        let mut server = Server::with_flags(&flags);
        server.wait_for_log("connected to Redis");
        server
    };
    let one = start("127.0.0.1:0");
    let other = start(&one.address().to_string());
    let controls = [&one, &other].map(|server| format!("http://{}", server.control_address()));
    let mut script = node("node/app_adstack.mjs");
    script.arg(format!("http://{}", one.address()));
    script.arg(format!("--control={}", controls.join(",")));
    script.arg(format!("--redis={}", redis.url()));
    script.args(["--key=change-me-0123456789", "--secret=change me: 32 letters at the least"]);
    check(script, NODE, 16);
    for server in [&one, &other] {
        server.wait_for_number("connections", 0);
        server.wait_for_number("rooms", 0);
    }
}
