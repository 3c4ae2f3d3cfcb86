//! Limits over several processes: how many connections an address or a user has in all of them.
//!
//! Every process counts its own, and tells Redis ten times a second which counts have changed, in one batch; the answer says what the
//! others have. Once a second it asks anew for those that have not changed here, 500 of them in a tenth of a second. So nothing on the
//! data path waits, and a limit is exceeded by what is opened within that time in several processes, at least by one connection in each
//! that has had none of the address or user: until it has asked, it does not know of the others. When Redis is away, each process has the limit
//! for itself. A process that dies is taken out of the sums after [`GONE_MS`].

use super::link::{Link, Script, Value};
use crate::auth::{Gate, Subject};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// How often changes are told.
const INTERVAL: Duration = Duration::from_millis(100);
/// How often a process is heard of and asks anew, when nothing changes.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// After how many milliseconds of silence a process counts as gone.
const GONE_MS: u64 = 5_000;
/// Addresses and users in one call, which keeps Redis busy for about a millisecond.
const BATCH_MAX: usize = 500;

/// Counts as long as the process lives. The keys of Redis begin with `prefix`.
pub(super) async fn run(link: Link, gate: Arc<Gate>, prefix: String, uid: String) {
    // In a cluster they are all in one slot, as a script needs them.
    let key = |name: &str| format!("{{{prefix}}}:connections:{name}");
    let (nodes, sums, counts, own) = (key("processes"), key("sums"), key("of:"), key(&format!("of:{uid}")));
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = Instant::now();
    let mut waiting: Vec<(Subject, u32)> = Vec::new();
    let gone_ms = GONE_MS.to_string();
    let script = Script::new(include_str!("counts.lua"));
    loop {
        ticks.tick().await;
        waiting.extend(gate.take_changed());
        if told.elapsed() >= HEARTBEAT {
            told = Instant::now();
            if waiting.is_empty() {
                waiting = gate.take_all();
            }
        } else if waiting.is_empty() {
            continue;
        }
        let batch: Vec<(Subject, u32)> = waiting.drain(..waiting.len().min(BATCH_MAX)).collect();
        let texts: Vec<String> =
            batch.iter().flat_map(|(subject, open)| [subject.to_string(), open.to_string()]).collect();
        let keys = [&nodes, &sums, &own].map(|key| key.as_bytes());
        let mut args = [&uid, &gone_ms, &counts].map(|word| word.as_bytes()).to_vec();
        args.extend(texts.iter().map(|text| text.as_bytes()));
        match link.run_script(&script, &keys, &args).await {
            Ok(Value::Array(answer)) => {
                let mut numbers = answer.iter().map(|value| match value {
                    Value::Int(number) => u32::try_from(*number).unwrap_or(u32::MAX),
                    _ => 0,
                });
                let is_new = numbers.next() == Some(1);
                for ((subject, _), elsewhere) in batch.iter().zip(numbers) {
                    gate.set_elsewhere(subject, elsewhere);
                }
                if is_new {
                    // Redis has forgotten this process, or never knew it.
                    waiting = gate.take_all();
                }
            }
            Ok(_) | Err(_) => {
                // The link has counted the fault. All is told when Redis is back, since it may have missed something.
                gate.forget_elsewhere();
                waiting = gate.take_all();
            }
        }
    }
}
