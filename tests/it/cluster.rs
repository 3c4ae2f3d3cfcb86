//! Several processes on one Redis are one server to their clients: throngs among themselves, and throngs with Node's servers of
//! Socket.IO. While Redis is away, each goes on by itself.

use crate::foreign;
use crate::harness::Server;
use crate::harness::redis::{Cluster, Redis};

#[test]
fn a_node_server_with_the_classic_adapter_and_throngs_are_one() {
    let redis = Redis::start();
    mix_with_node(&[redis.url()], "server", "classic", 11);
}

#[test]
fn a_node_server_with_the_sharded_adapter_and_throngs_are_one() {
    let redis = Redis::start();
    mix_with_node(&[redis.url()], "server", "sharded", 10);
}

#[test]
fn a_node_server_and_throngs_are_one_on_a_cluster_of_redis() {
    let redis = Cluster::start();
    mix_with_node(&redis.urls(), "cluster", "sharded", 10);
}

/// Runs the checks of Node on a server of its own and two throngs of two shards each.
fn mix_with_node(urls: &[String], kind: &str, adapter: &str, checks_min: u32) {
    let cluster = if adapter == "classic" { "socketio" } else { "socketio-sharded" };
    let settings = [
        foreign::PATIENT.to_owned(),
        r#"socketio.namespaces=["/","/guild/*"]"#.to_owned(),
        format!("redis.urls={urls:?}"),
        format!("redis.kind={kind}"),
        format!("redis.cluster={cluster}"),
    ];
    let flags: Vec<&str> = ["--config", foreign::SOCKETIO]
        .into_iter()
        .chain(settings.iter().flat_map(|setting| ["--set", setting.as_str()]))
        .collect();
    let throngs = [Server::with_flags(&flags), Server::with_flags(&flags)];
    let mut script = foreign::node("node/cluster.mjs");
    script.args(throngs.iter().map(|throng| format!("http://{}", throng.address())));
    script.args([format!("--redis={}", urls.join(",")), format!("--adapter={adapter}")]);
    foreign::check(script, foreign::NODE, checks_min);
    for throng in &throngs {
        throng.wait_for_number("sockets", 0);
        throng.wait_for_number("rooms", 0);
    }
}
