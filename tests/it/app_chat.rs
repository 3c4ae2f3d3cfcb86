//! The chat of examples/chat, by its document, with the stock `socket.io-client`: on one shard and on several, and two processes with a Redis
//! between them.

use crate::app_auction::{Application, example};
use crate::foreign::{self, NODE};
use crate::harness::Server;
use crate::harness::redis::{Redis, free_port};

const CHECKS: u32 = 15;

/// Has stock clients go through the document at these servers.
fn check(servers: &[&Server], port: u16) {
    let _application = Application::start("chat/server.mjs", port, &[], &[]);
    let mut script = foreign::node("node/app_chat.mjs");
    script.args(servers.iter().map(|server| format!("http://{}", server.address())));
    foreign::check(script, NODE, CHECKS);
    for server in servers {
        server.wait_for_number("connections", 0);
    }
}

#[test]
fn the_chats_document_holds() {
    for shards in ["server.shards=1", "server.shards=4"] {
        let port = free_port();
        check(&[&example("chat", port, &[shards])], port);
    }
}

#[test]
fn the_chats_document_holds_with_two_processes() {
    let redis = Redis::start();
    let urls = format!(r#"redis.urls=["{}"]"#, redis.url());
    let port = free_port();
    let [one, other] = [(), ()].map(|()| example("chat", port, &[&urls]));
    check(&[&one, &other], port);
}
