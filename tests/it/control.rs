//! The control port from outside: that what it says is what has happened.

use crate::harness::raw::{FIN, TEXT, upgrade_head};
use crate::harness::{Client, Raw, Server, eventually, frame};
use serde_json::{Value, json};
use std::collections::BTreeSet;

#[test]
fn the_numbers_are_those_of_what_was_done() {
    let server = Server::with(&["server.shards=3", "limits.connections_max=8"]);
    let mut clients: Vec<Client> = (0..6).map(|_| server.client()).collect();
    for client in &mut clients {
        client.join(&["lobby", "attic"]);
    }
    for number in 0..10 {
        clients[0].publish("lobby", "n", json!(number));
    }
    for client in &mut clients[1..] {
        for number in 0..10 {
            client.hears("lobby", "n", json!(number));
        }
    }
    clients[1].refused_text("nonsense");
    let others = [server.socket("/ws"), server.socket("/ws")];
    let check_answer = |request: &str, status: u16| {
        let mut raw = server.raw();
        raw.send(request);
        assert_eq!(raw.response().status, status);
    };
    check_answer(&upgrade_head("/ws", ""), 503);
    check_answer("GET /health HTTP/1.1\r\nHost: throng\r\n\r\n", 200);
    check_answer("GET /nowhere HTTP/1.1\r\nHost: throng\r\n\r\n", 404);
    let [mut broken, lost] = others;
    broken.send(frame(FIN | 3, ""));
    broken.closed();
    lost.reset();
    assert_eq!(clients.pop().expect("there are six").close(1000), 1000);
    server.wait_for_number("sockets", 5);

    let stats = server.stats();
    let check = |path: &str, expected: u64| assert_eq!(stats.pointer(path), Some(&json!(expected)), "{path}");
    check("/connections", 5);
    check("/connections_peak", 8);
    check("/connections_max", 8);
    check("/rooms", 2);
    check("/memberships", 10);
    check("/outbox_bytes", 0);
    check("/receive_buffer_bytes", 0);
    check("/totals/accepts", 11);
    check("/totals/upgrades", 8);
    check("/totals/http_requests", 1);
    check("/totals/messages_received", 6 + 10 + 1);
    check("/totals/publications", 10);
    check("/totals/deliveries", 50);
    // Acks, events, the error, and the close frames that answered or refused.
    check("/totals/frames_sent", 6 + 10 + 50 + 1 + 2);
    check("/totals/errors", 1);
    check("/totals/dropped", 0);
    check("/totals/rejects", 2);
    check("/rejects/full", 1);
    check("/rejects/not_found", 1);
    check("/totals/disconnects", 3);
    for reason in ["client", "lost", "protocol"] {
        check(&format!("/disconnects/{reason}"), 1);
    }
    // Each shard with members measures each publication.
    let latencies = stats["publish_latency"]["count"].as_u64().expect("a number");
    assert!((10..=30).contains(&latencies) && latencies.is_multiple_of(10), "{latencies}");

    // What the shards have adds up, and a scrape says the same as /stats.
    let shards = stats["shards"].as_array().expect("an array");
    assert_eq!(shards.len(), 3);
    let metrics = server.metrics();
    for (name, total) in stats["totals"].as_object().expect("an object") {
        let sum: u64 = shards.iter().map(|shard| shard["totals"][name].as_u64().expect("a number")).sum();
        if name != "turns" {
            assert_eq!(total, sum, "{name}");
            assert_eq!(metrics.sum(&format!("throng_{name}_total"), &[]), sum as f64, "{name}");
        }
    }
    for name in ["connections", "sockets", "memberships", "outbox_bytes", "receive_buffer_bytes"] {
        for shard in shards {
            let label = format!("shard=\"{}\"", shard["shard"]);
            let number = shard[name].as_f64().expect("a number");
            assert_eq!(metrics.find(&format!("throng_{name}"), &[&label]), [number], "{name} of {label}");
        }
    }
    assert_eq!(metrics.sum("throng_rooms", &[]), 2.0);
    assert_eq!(metrics.sum("throng_rejects_total", &["reason=\"full\""]), 1.0);
    assert_eq!(
        metrics.sum("throng_publish_latency_seconds_bucket", &["le=\"+Inf\""]),
        metrics.sum("throng_publish_latency_seconds_count", &[])
    );
}

#[test]
fn metrics_have_their_names_and_labels_from_the_start() {
    let server = Server::with(&["server.shards=3"]);
    let response = server.control("/metrics");
    assert!(
        response.header("content-type").is_some_and(|kind| kind.starts_with("application/openmetrics-text"))
    );
    let metrics = server.metrics();
    let names: BTreeSet<&str> = metrics.names().collect();
    for name in [
        "throng_connections",
        "throng_connections_max",
        "throng_sockets",
        "throng_memberships",
        "throng_rooms",
        "throng_shard_rooms",
        "throng_outbox_bytes",
        "throng_receive_buffer_bytes",
        "throng_accepts_total",
        "throng_upgrades_total",
        "throng_http_requests_total",
        "throng_rejects_total",
        "throng_disconnects_total",
        "throng_messages_received_total",
        "throng_received_bytes_total",
        "throng_frames_sent_total",
        "throng_sent_bytes_total",
        "throng_sends_total",
        "throng_publications_total",
        "throng_deliveries_total",
        "throng_dropped_total",
        "throng_errors_total",
        "throng_rate_limited_total",
        "throng_overloads_total",
        "throng_pings_sent_total",
        "throng_turn_duration_seconds_bucket",
        "throng_publish_latency_seconds_count",
        "process_resident_memory_bytes",
        "process_cpu_seconds_total",
        "process_start_time_seconds",
        "throng_build_info",
    ] {
        assert!(names.contains(name), "{name}");
    }
    assert_eq!(metrics.types["throng_connections"], "gauge");
    assert_eq!(metrics.types["throng_sends"], "counter");
    assert_eq!(metrics.types["throng_publish_latency_seconds"], "histogram");
    for shard in ["shard=\"0\"", "shard=\"1\"", "shard=\"2\""] {
        assert_eq!(metrics.find("throng_connections", &[shard]), [0.0]);
        assert_eq!(metrics.find("throng_rejects_total", &[shard, "reason=\"per_ip\""]), [0.0]);
    }
    assert_eq!(metrics.find("throng_connections", &[]).len(), 3, "there are no others");
    assert_eq!(
        metrics.sum("throng_build_info", &[concat!("version=\"", env!("CARGO_PKG_VERSION"), "\"")]),
        1.0
    );
    let resident = metrics.sum("process_resident_memory_bytes", &[]);
    assert!(resident > 1e6 && resident < 1e9, "{resident}");
}

#[test]
fn probes_and_errors_are_as_on_any_port() {
    let server = Server::start();
    let _client = server.client();
    for (path, status) in [("/health", "ok"), ("/ready", "ready")] {
        let response = server.control(path);
        assert_eq!(response.status, 200);
        let body = response.json();
        assert_eq!((&body["status"], &body["connections"]), (&json!(status), &json!(1)));
        assert!(body["uptime_seconds"].is_u64());
    }
    assert_eq!(server.control("/ws").status, 404, "clients connect elsewhere");
    assert_eq!(server.control("/nowhere").json()["error"], "not_found");
    let mut raw = Raw::connect(server.control_address());
    raw.send("POST /stats HTTP/1.1\r\nHost: throng\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(raw.response().status, 405);
    eventually("memory is measured", || (server.number("memory_bytes") > 1 << 20).then_some(()));
}

#[test]
fn it_answers_while_the_shards_are_busy() {
    let server = Server::start();
    let mut storm = server.socket("/ws");
    let publish = json!({"type": "publish", "room": "lobby", "event": "e"});
    let array = frame(FIN | TEXT, Value::Array(vec![publish; 1000]).to_string());
    for round in 1..=20 {
        storm.send(&array);
        assert_eq!(server.control("/health").status, 200);
        let publications = server.metrics().sum("throng_publications_total", &[]);
        assert!(publications <= f64::from(round) * 1000.0);
    }
    server.wait_for_number("totals/publications", 20_000);
}
