//! Who watches the performance service of Inked Draw (`examples/inked`): its metrics, reports and alerts come to every dashboard, and whole to
//! those that come later.

use crate::foreign::PYTHON;
use crate::harness::redis::Redis;
use crate::harness::{Client, Server, eventually};
use serde_json::{Map, Value, json};
use std::process::{Child, Command, Stdio};

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/inked");

/// `service.py`, which collects so often, in seconds. It is killed when this is dropped.
struct Service(Child);

impl Service {
    fn start(server: &Server, seconds: &str) -> Service {
        let mut command = Command::new("python3");
        command.args([
            &format!("{EXAMPLE}/service.py"),
            &format!("http://{}", server.control_address()),
            seconds,
        ]);
        Service(command.stdin(Stdio::null()).spawn().expect(PYTHON))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn server(settings: &[&str]) -> Server {
    let config = format!("{EXAMPLE}/throng.toml");
    let mut flags = vec!["--config", config.as_str()];
    for setting in ["server.listen=127.0.0.1:0", "server.shards=4", "server.pin=false"].iter().chain(settings)
    {
        flags.extend(["--set", *setting]);
    }
    Server::with_flags(&flags)
}

/// What a dashboard shows: the metrics, with what has changed merged into them, and how often it heard of what.
#[derive(Default)]
struct Dashboard {
    metrics: Map<String, Value>,
    heard: Vec<String>,
}

impl Dashboard {
    fn hear(&mut self, client: &mut Client) {
        let (event, data) = client.event();
        if event == "metrics" {
            for (name, value) in data.as_object().expect("metrics are an object") {
                match value {
                    Value::Null => self.metrics.remove(name),
                    value => self.metrics.insert(name.clone(), value.clone()),
                };
            }
        }
        self.heard.push(event);
    }

    fn count(&self, event: &str) -> usize {
        self.heard.iter().filter(|heard| *heard == event).count()
    }
}

/// "Performance Metrics Tracked", and when.
const METRICS: [&str; 9] = [
    "responseTime",
    "throughput",
    "errorRate",
    "cacheHitRate",
    "memoryUsage",
    "cpuUsage",
    "activeConnections",
    "queueLength",
    "timestamp",
];

#[test]
fn dashboards_are_told_metrics_and_reports() {
    let server = server(&[]);
    let mut early = server.client();
    early.join(&["performance"]);
    let _service = Service::start(&server, "0.1");
    let mut dashboard = Dashboard::default();
    while dashboard.count("metrics") < 12 {
        dashboard.hear(&mut early);
    }
    for name in METRICS {
        assert!(dashboard.metrics[name].is_number(), "{name} in {:?}", dashboard.metrics);
    }
    assert_eq!(
        dashboard.count("report"),
        2,
        "one at the start and one with the tenth: {:?}",
        dashboard.heard
    );
    assert_eq!(dashboard.count("optimization"), 1, "with the first, and every thirtieth");

    // Who comes later has all of them at once, and is one of `activeConnections` soon.
    let mut late: Vec<Client> = (0..20).map(|_| server.client()).collect();
    for client in &mut late {
        client.join(&["performance"]);
        let mut dashboard = Dashboard::default();
        while dashboard.metrics.len() < METRICS.len() {
            dashboard.hear(client);
        }
    }
    while dashboard.metrics["activeConnections"] != json!(21) {
        dashboard.hear(&mut early);
    }
}

#[test]
fn alerts_reach_every_dashboard_in_every_process() {
    let redis = Redis::start();
    let urls = format!("redis.urls={:?}", [redis.url()]);
    let servers = [(); 2].map(|()| {
        let mut server = server(&[&urls]);
        server.wait_for_log("connected to Redis");
        server
    });
    let mut dashboards: Vec<Client> = servers.iter().flat_map(|server| server.crowd(10)).collect();
    for client in &mut dashboards {
        client.join(&["performance"]);
    }
    let publish = |alert: &Value| {
        let mut raw = crate::harness::Raw::connect(servers[0].control_address());
        let body = json!({"room": "performance", "event": "alert", "data": alert}).to_string();
        raw.send(format!(
            "POST /v1/publish HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer change-me-0123456789\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ));
        assert_eq!(raw.response().status, 200);
    };
    // Once both processes have asked Redis for the room, all hear everything.
    let subscribed =
        || redis.cli(&["PUBSUB", "NUMSUB", "throng:room:performance"]).trim_end().ends_with("\n2");
    eventually("both processes listen", || subscribed().then_some(()));
    for number in 0..20 {
        publish(&json!({"metric": "errorRate", "value": number, "threshold": 0.05, "severity": "critical"}));
    }
    for client in &mut dashboards {
        for number in 0..20 {
            let (event, data) = client.event();
            assert_eq!((event.as_str(), &data["value"]), ("alert", &json!(number)));
        }
    }
}

#[test]
fn dashboards_only_watch_and_there_are_a_thousand_at_the_most() {
    let server = server(&[]);
    let mut client = server.client();
    assert_eq!(client.refused(json!({"type": "join", "rooms": ["elsewhere"]})), "forbidden");
    let publish = json!({"type": "publish", "room": "performance", "event": "alert", "data": 1});
    assert_eq!(client.refused(publish), "forbidden");
    assert_eq!(server.number("connections_max"), 1000);
    // "Health check"
    assert_eq!(server.control("/health").json()["status"], "ok");
}
