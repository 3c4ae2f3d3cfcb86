//! Throngs behind load balancers, set up as `tuning/nginx.conf` and `tuning/haproxy.cfg` say: stock clients that poll and clients of
//! WebSocket get through, their addresses arrive, and a throng that drains gets nobody new.

use crate::foreign;
use crate::harness::proxy::Proxy;
use crate::harness::raw::upgrade_head;
use crate::harness::redis::Redis;
use crate::harness::{Client, Raw, Server, eventually};
use rustix::process::Signal;
use serde_json::json;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Two throngs on one Redis that believe a load balancer on this machine, and let one connection of each address in.
fn pair(redis: &Redis) -> [Server; 2] {
    let urls = format!("redis.urls={:?}", [redis.url()]);
    [(); 2].map(|()| {
        let mut throng = Server::with(&[
            &urls,
            foreign::PATIENT,
            r#"limits.trusted_proxies=["127.0.0.1"]"#,
            "limits.connections_per_ip_max=1",
            "drain.notice_ms=1500",
            "drain.spread_ms=4000",
        ]);
        throng.wait_for_log("connected to Redis");
        throng
    })
}

/// Clients of many addresses all get in, and hear each other.
fn all_get_through(proxy: &Proxy, throngs: &[Server; 2], flag: &str) {
    let mut script = foreign::node("node/fleet.mjs");
    script.args([&format!("http://{}", proxy.address()), "--sources", flag]);
    foreign::check(script, foreign::NODE, 3);
    for throng in throngs {
        assert!(throng.number("totals/session_upgrades") > 0, "some came to each");
        assert_eq!(throng.metrics().sum("throng_rejects_total", &["reason=\"engine_io\""]), 0.0);
        throng.wait_for_number("connections", 0);
    }
}

fn from(source: [u8; 4], proxy: &Proxy) -> Raw {
    Raw::connect_from(IpAddr::from(source), proxy.address())
}

/// The load balancer has one address, and its clients theirs.
fn addresses_arrive(proxy: &Proxy) {
    let mut one = Client::over(from([127, 0, 2, 1], proxy), "/ws", &[]);
    let mut two = Client::over(from([127, 0, 2, 2], proxy), "/ws", &[]);
    let status = |forged: &str| {
        let mut raw = from([127, 0, 2, 1], proxy);
        raw.send(upgrade_head("/ws", forged));
        raw.response_to_head().status
    };
    // A process that has had none of an address lets one in, since it has not asked the others.
    for forged in ["", "X-Forwarded-For: 127.0.9.9\r\n", "Forwarded: for=127.0.9.9\r\n"] {
        eventually("a second one is refused, whatever it says", || (status(forged) == 429).then_some(()));
    }
    one.join(&["a"]);
    two.join(&["a"]);
    eventually("both hear each other", || {
        one.publish("a", "e", json!(1));
        two.hear_within(std::time::Duration::from_millis(100))
    });
}

/// Clients come one after the other while `act` lasts, each from an address of its own, and every one is let in. How many there were.
fn while_clients_come(proxy: &Proxy, act: impl FnOnce()) -> u32 {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let coming = scope.spawn(|| {
            let mut count = 0;
            while !is_over.load(Relaxed) {
                let [.., high, low] = u32::to_be_bytes(count);
                from([127, 4, high, low], proxy).upgrade("/ws");
                count += 1;
            }
            count
        });
        act();
        is_over.store(true, Relaxed);
        coming.join().expect("all are let in")
    })
}

#[test]
fn nginx_is_set_up_as_shipped() {
    let redis = Redis::start();
    let throngs = pair(&redis);
    let proxy = Proxy::nginx(&throngs);
    all_get_through(&proxy, &throngs, "");
    addresses_arrive(&proxy);
    // Who hashes to one that is gone comes to the other.
    let [mut one, two] = throngs;
    let come = while_clients_come(&proxy, || {
        one.signal(Signal::TERM);
        one.wait_for_exit();
    });
    assert!(come > 10, "{come}");
    let crowd: Vec<Client> =
        (1..=16).map(|host| Client::over(from([127, 0, 3, host], &proxy), "/ws", &[])).collect();
    two.wait_for("connections", "16 and more", |count| count >= 16);
    drop(crowd);
}

#[test]
fn haproxy_is_set_up_as_shipped() {
    let redis = Redis::start();
    let throngs = pair(&redis);
    let proxy = Proxy::haproxy(&throngs);
    for name in ["one", "two"] {
        eventually("both are up", || proxy.status_of(name).starts_with("UP").then_some(()));
    }
    all_get_through(&proxy, &throngs, "--sticky");
    addresses_arrive(&proxy);
    // One that drains is out before it has closed all its connections.
    let mut crowd: Vec<Client> =
        (1..=16).map(|host| Client::over(from([127, 0, 3, host], &proxy), "/ws", &[])).collect();
    let [mut one, two] = throngs;
    let come = while_clients_come(&proxy, || {
        one.signal(Signal::TERM);
        eventually("HAProxy has noticed", || proxy.status_of("one").starts_with("DOWN").then_some(()));
        assert!(!one.has_ended(), "it learned it from /ready");
        one.wait_for_log("draining");
    });
    assert!(come > 10, "{come}");
    crowd.extend((17..=32).map(|host| Client::over(from([127, 0, 3, host], &proxy), "/ws", &[])));
    two.wait_for("connections", "at least those that came last", |count| count >= 16);
    one.wait_for_exit();
    drop(crowd);
}
