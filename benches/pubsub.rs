//! A bare Redis: what publishing and hearing costs with nothing of throng in between, so that what the bridge adds is measured beside
//! it instead of being guessed.
//!
//! ```text
//! cargo bench --bench pubsub -- latency 127.0.0.1:6379 [--rate 1000] [--seconds 5]
//! cargo bench --bench pubsub -- throughput 127.0.0.1:6379 [--pipeline 256] [--subscribers 1] [--seconds 5]
//! ```
//!
//! One connection publishes 100 bytes at a time, another is subscribed. `latency` publishes at fixed times and reports the time from when each was due
//! until it was heard; `throughput` sends pipelines, the next when the last one is answered, and reports what was published and heard. Both print one JSON object.
//! [`bridge`](bridge) starts the Redis and compares. Without a command it checks that it reads what Redis sends, without one.

// It measures from outside, so it has a clock of its own and waits for moments.
#![allow(clippy::disallowed_methods)]

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};

const SIZE: usize = 100;
/// What comes before and after the payload where a message is heard. All messages have one length.
const HEARD_HEAD: &[u8] = b"*3\r\n$7\r\nmessage\r\n$5\r\nbench\r\n$100\r\n";
const HEARD_BYTES: usize = HEARD_HEAD.len() + SIZE + 2;
const SUBSCRIBED: &[u8] = b"*3\r\n$9\r\nsubscribe\r\n$5\r\nbench\r\n:1\r\n";
/// The answer to a publication that one connection has heard.
const ANSWER: &[u8] = b":1\r\n";
/// A Redis that says nothing for so long has failed.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Parser)]
#[command(bin_name = "pubsub --")]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// What `cargo bench` appends.
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum Command {
    /// From when a publication was due until it was heard.
    Latency {
        redis: SocketAddr,
        /// Publications a second.
        #[arg(long, default_value_t = 1000)]
        rate: u32,
        #[arg(long, default_value_t = 5)]
        seconds: u32,
    },
    /// How many publications are heard a second.
    Throughput {
        redis: SocketAddr,
        /// Publications in one write.
        #[arg(long, default_value_t = 256)]
        pipeline: usize,
        /// Connections that hear them.
        #[arg(long, default_value_t = 1)]
        subscribers: usize,
        #[arg(long, default_value_t = 5)]
        seconds: u64,
    },
}

fn main() -> io::Result<()> {
    match Args::parse().command {
        Some(Command::Latency { redis, rate, seconds }) => latency(redis, rate, seconds),
        Some(Command::Throughput { redis, pipeline, subscribers, seconds }) => {
            throughput(redis, pipeline, subscribers, seconds)
        }
        None => {
            check_itself();
            Ok(())
        }
    }
}

fn latency(redis: SocketAddr, rate: u32, seconds: u32) -> io::Result<()> {
    let origin = Instant::now();
    let (mut publisher, mut subscriber) = (connect(redis)?, subscribe(redis)?);
    let count = (rate * seconds) as usize;
    let hearing = thread::spawn(move || {
        let mut heard = [0; HEARD_BYTES];
        let mut late_ns: Vec<u64> = Vec::with_capacity(count);
        while late_ns.len() < count {
            subscriber.read_exact(&mut heard)?;
            late_ns.push(origin.elapsed().as_nanos() as u64 - due_ns(&heard));
        }
        io::Result::Ok(late_ns)
    });
    let begin = Instant::now();
    for number in 0..count as u32 {
        let due = begin + Duration::from_secs(1) / rate * number;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        publisher.write_all(&publication(due.duration_since(origin).as_nanos() as u64))?;
        expect(&mut publisher, ANSWER)?;
    }
    let mut late_ns = hearing.join().expect("it does not panic")?;
    late_ns.sort_unstable();
    let us = |share: f64| late_ns[((late_ns.len() - 1) as f64 * share) as usize] as f64 / 1000.0;
    let (p50, p90, p99, max) = (us(0.5), us(0.9), us(0.99), us(1.0));
    println!(
        r#"{{"heard":{count},"latency_us_p50":{p50},"latency_us_p90":{p90},"latency_us_p99":{p99},"latency_us_max":{max}}}"#
    );
    Ok(())
}

fn throughput(redis: SocketAddr, pipeline: usize, subscribers: usize, seconds: u64) -> io::Result<()> {
    let mut publisher = connect(redis)?;
    let mut hearing = (0..subscribers).map(|_| subscribe(redis)).collect::<io::Result<Vec<_>>>()?;
    let hearing = thread::spawn(move || {
        let (mut bytes, mut scratch) = (0, vec![0; 256 << 10]);
        // All get the same, so that none waits long for its turn.
        while !hearing.is_empty() {
            for at in (0..hearing.len()).rev() {
                let count = hearing[at].read(&mut scratch)?;
                bytes += count;
                // The last message is one that says so.
                if count == 0 || scratch[..count].ends_with(b"last\r\n") {
                    hearing.swap_remove(at);
                }
            }
        }
        io::Result::Ok(bytes / HEARD_BYTES - subscribers)
    });
    let pipelined = publication(0).repeat(pipeline);
    let answers = format!(":{subscribers}\r\n").into_bytes().repeat(pipeline);
    let begin = Instant::now();
    let mut published = 0;
    while begin.elapsed() < Duration::from_secs(seconds) {
        publisher.write_all(&pipelined)?;
        expect(&mut publisher, &answers)?;
        published += pipeline;
    }
    let mut last = publication(0);
    let end = last.len() - 6;
    last[end..end + 4].copy_from_slice(b"last");
    publisher.write_all(&last)?;
    let heard = hearing.join().expect("it does not panic")?;
    let seconds = begin.elapsed().as_secs_f64();
    let (published, heard) = (published as f64 / seconds, heard as f64 / seconds);
    println!(r#"{{"seconds":{seconds},"published_per_second":{published},"heard_per_second":{heard}}}"#);
    Ok(())
}

fn connect(redis: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(redis)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn subscribe(redis: SocketAddr) -> io::Result<TcpStream> {
    let mut stream = connect(redis)?;
    stream.write_all(b"*2\r\n$9\r\nSUBSCRIBE\r\n$5\r\nbench\r\n")?;
    expect(&mut stream, SUBSCRIBED)?;
    Ok(stream)
}

/// A command that publishes [`SIZE`] bytes which begin with when it is due.
fn publication(due_ns: u64) -> Vec<u8> {
    format!("*3\r\n$7\r\nPUBLISH\r\n$5\r\nbench\r\n$100\r\n{due_ns:0>20}{:x<80}\r\n", "").into_bytes()
}

fn due_ns(heard: &[u8; HEARD_BYTES]) -> u64 {
    let digits = &heard[HEARD_HEAD.len()..][..20];
    str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()).expect("a message of this bench")
}

fn expect(stream: &mut TcpStream, expected: &[u8]) -> io::Result<()> {
    let mut answer = vec![0; expected.len()];
    stream.read_exact(&mut answer)?;
    if answer != expected {
        let what = format!("Redis answers {}", answer.escape_ascii());
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    Ok(())
}

fn check_itself() {
    let said = publication(1234);
    let at = said.windows(4).position(|four| four == b"$100").expect("a length");
    let mut heard = [HEARD_HEAD, &said[at + 6..]].concat();
    assert_eq!(due_ns(&heard.clone().try_into().expect("of the length of all")), 1234);
    assert_eq!(heard.len(), HEARD_BYTES);
    heard.truncate(heard.len() - 2);
    assert!(heard.ends_with(b"xx"), "100 bytes, padded");
    println!("what is published is what is heard");
}
