//! What a WebSocket frame costs to read and to write: header in, mask off, header out. Beside them what others do with the same
//! bytes.
//!
//! ```text
//! cargo bench --bench frame                    all, a minute and a half
//! cargo bench --bench frame -- unmask
//! ```
//!
//! `parse` and `encode` are compared with `FrameHeader` of tungstenite; `encode` appends to a buffer that is there already. Its
//! mask is not public, so `unmask` is compared with `bytewise`, the loop as RFC 6455 section 5.3 writes it, and with `copy`, a
//! copy of as many bytes to another buffer.

#[allow(dead_code, reason = "every bench takes from it what it needs")]
mod measure;

use criterion::{BenchmarkId, Criterion, Throughput};
use std::hint::black_box;
use std::io::Cursor;
use throng::wire::frame::{self, Opcode, Parsed};
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Data, OpCode};

const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

fn main() {
    let mut criterion = measure::criterion();
    parse(&mut criterion);
    unmask(&mut criterion);
    encode(&mut criterion);
    criterion.final_summary();
}

/// Headers of 6, 8 and 14 bytes: one for each form of the length.
fn parse(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("parse");
    for payload_bytes in [100, 1 << 10, 64 << 10] {
        let mut bytes = Vec::new();
        foreign(Some(MASK)).format(payload_bytes, &mut bytes).expect("writing to memory does not fail");
        let Ok(Parsed::Header(header)) = frame::parse(&bytes) else { panic!("a whole header") };
        assert_eq!((header.payload_bytes, header.header_bytes), (payload_bytes, bytes.len()));

        let name = format!("{} bytes", bytes.len());
        group.bench_function(BenchmarkId::new("throng", &name), |bencher| {
            bencher.iter(|| frame::parse(black_box(&bytes)));
        });
        group.bench_function(BenchmarkId::new("tungstenite", &name), |bencher| {
            bencher.iter(|| FrameHeader::parse(&mut Cursor::new(black_box(&bytes))));
        });
    }
    group.finish();
}

fn unmask(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("unmask");
    for size in [16, 100, 1 << 10, 64 << 10] {
        let plain: Vec<u8> = (0..size).map(|at| at as u8).collect();
        let (mut ours, mut theirs) = (plain.clone(), plain.clone());
        frame::unmask(&mut ours, MASK, 0);
        bytewise(&mut theirs, MASK);
        assert_eq!(ours, theirs);
        assert_ne!(ours, plain);

        group.throughput(Throughput::Bytes(size as u64));
        let name = format!("{size} bytes");
        group.bench_function(BenchmarkId::new("throng", &name), |bencher| {
            bencher.iter(|| frame::unmask(black_box(&mut ours), black_box(MASK), 0));
        });
        group.bench_function(BenchmarkId::new("bytewise", &name), |bencher| {
            bencher.iter(|| bytewise(black_box(&mut theirs), black_box(MASK)));
        });
        group.bench_function(BenchmarkId::new("copy", &name), |bencher| {
            let mut target = vec![0; size];
            bencher.iter(|| black_box(&mut target).copy_from_slice(black_box(&plain)));
        });
    }
    group.finish();
}

/// Headers of 2, 4 and 10 bytes.
fn encode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode");
    for payload_bytes in [100_usize, 1 << 10, 64 << 10] {
        let mut expected = Vec::new();
        foreign(None).format(payload_bytes as u64, &mut expected).expect("writing to memory does not fail");
        let (header, used) = frame::header(Opcode::Text, payload_bytes);
        assert_eq!(header[..used], expected);

        let name = format!("{used} bytes");
        let mut out = Vec::with_capacity(16);
        group.bench_function(BenchmarkId::new("throng", &name), |bencher| {
            bencher.iter(|| {
                out.clear();
                let (header, used) = frame::header(Opcode::Text, black_box(payload_bytes));
                out.extend_from_slice(&header[..used]);
                black_box(out.as_slice());
            });
        });
        group.bench_function(BenchmarkId::new("tungstenite", &name), |bencher| {
            let header = foreign(None);
            bencher.iter(|| {
                out.clear();
                let result = black_box(&header).format(black_box(payload_bytes as u64), &mut out);
                black_box(out.as_slice());
                result
            });
        });
    }
    group.finish();
}

fn foreign(mask: Option<[u8; 4]>) -> FrameHeader {
    FrameHeader { opcode: OpCode::Data(Data::Text), mask, ..FrameHeader::default() }
}

fn bytewise(payload: &mut [u8], mask: [u8; 4]) {
    for (at, byte) in payload.iter_mut().enumerate() {
        *byte ^= mask[at % 4];
    }
}
