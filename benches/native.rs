//! What the native dialect costs: reading a join and a publish, writing an event. Beside each, serde_json building a `Value` of the
//! same text, or writing one, which is what a server does that does not think about it.
//!
//! ```text
//! cargo bench --bench native                   all, half a minute
//! cargo bench --bench native -- publish
//! ```
//!
//! The time grows with the data of a publish although it is never looked into: it must be checked to be JSON, and its end
//! found. Throughput is in bytes of the message.

#[allow(dead_code, reason = "every bench takes from it what it needs")]
mod measure;

use criterion::{BenchmarkId, Criterion, Throughput};
use serde_json::Value;
use std::hint::black_box;
use std::num::NonZeroU32;
use throng::dialect::native::{self, Command, Publish};
use throng::message::{Draft, Publication, RoomId};
use throng::time::Time;

/// The server's default for `limits.room_name_bytes_max`.
const ROOM_NAME_BYTES_MAX: usize = 200;

fn main() {
    let mut criterion = measure::criterion();
    decode(&mut criterion);
    encode_event(&mut criterion);
    criterion.final_summary();
}

fn decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    let join = r#"{"type":"join","rooms":["auction:7","auction:8"],"id":1}"#.to_owned();
    let publish = |bytes| {
        let data = data(bytes);
        format!(r#"{{"type":"publish","room":"auction:7","event":"bid","data":{data},"id":2}}"#)
    };
    let messages =
        [("join", join), ("publish of 100 bytes", publish(100)), ("publish of 1 KiB", publish(1 << 10))];
    for (name, message) in &messages {
        match native::decode(message, ROOM_NAME_BYTES_MAX).expect("a good message") {
            Command::Join { rooms, .. } => assert_eq!(rooms, ["auction:7", "auction:8"]),
            Command::Publish(Publish { rooms, event, payload, .. }) => {
                assert_eq!((rooms.as_slice(), &*event), (&["auction:7".into()] as &[_], "bid"));
                assert!(message.as_bytes().windows(payload.len()).any(|window| window == payload));
            }
            other => panic!("{other:?}"),
        }
        group.throughput(Throughput::Bytes(message.len() as u64));
        group.bench_function(BenchmarkId::new(*name, "throng"), |bencher| {
            bencher.iter(|| native::decode(black_box(message), ROOM_NAME_BYTES_MAX));
        });
        group.bench_function(BenchmarkId::new(*name, "Value"), |bencher| {
            bencher.iter(|| serde_json::from_str::<Value>(black_box(message)));
        });
    }
    group.finish();
}

fn encode_event(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode");
    for bytes in [100, 1 << 10] {
        let data = data(bytes);
        let draft = Draft::new("auction:7", "bid", data.as_bytes(), Time::default());
        let publication = Publication::new(RoomId { index: 1, stamp: NonZeroU32::MIN }, &draft);
        let mut out = Vec::new();
        native::encode_event(&mut out, publication.room_name(), &publication);
        let value: Value = serde_json::from_slice(&out).expect("JSON");
        assert_eq!(value["data"], serde_json::from_str::<Value>(&data).expect("JSON"));

        group.throughput(Throughput::Bytes(out.len() as u64));
        let name = format!("event of {bytes} bytes");
        group.bench_function(BenchmarkId::new(&name, "throng"), |bencher| {
            bencher.iter(|| {
                out.clear();
                native::encode_event(&mut out, publication.room_name(), black_box(&publication));
                black_box(out.as_slice());
            });
        });
        group.bench_function(BenchmarkId::new(&name, "Value"), |bencher| {
            bencher.iter(|| {
                out.clear();
                let result = serde_json::to_writer(&mut out, black_box(&value));
                black_box(out.as_slice());
                result
            });
        });
    }
    group.finish();
}

/// An object of `bytes` bytes, as applications send them: short fields, some numbers, one longer text.
fn data(bytes: usize) -> String {
    let bid = r#"{"amount":120.5,"bidder":"user-4711","at":1767225600,"final":false}"#;
    let mut bids = bid.to_owned();
    while bids.len() + bid.len() + 40 <= bytes {
        bids.push(',');
        bids.push_str(bid);
    }
    let rest = bytes - bids.len() - r#"{"bids":[],"note":""}"#.len();
    let data = format!(r#"{{"bids":[{bids}],"note":"{}"}}"#, "x".repeat(rest));
    assert_eq!(data.len(), bytes);
    data
}
