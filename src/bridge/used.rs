//! Limits over several processes: how many events addresses and users have sent in all of them.
//!
//! Every process counts its own, and tells Redis ten times a second what has changed; the answer says what others have used and when the
//! window ends for all. What brings a subject to half of its limit is told at once, at most a hundred times a second. So nothing on the
//! data path waits, and a limit is exceeded by what comes to several processes before they have heard of each other. When Redis is away,
//! each has the limits for itself; what could not be told is told when it is back. A window expires in Redis when it ends, whoever has died.

use super::fault::{Fault, FaultKind};
use super::link::{Link, Script, Value};
use super::stats::BridgeStats;
use crate::auth::Gate;
use crate::auth::tally::Used;
use crate::rules::{EventLimit, Unit};
use crate::time::{Clock, Time};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// How often changes are told.
const INTERVAL: Duration = Duration::from_millis(100);
/// The shortest pause between two times.
const PAUSE: Duration = Duration::from_millis(10);
/// The pause when something could not be told.
const RETRY: Duration = Duration::from_secs(1);
/// Windows in one call, which keeps Redis busy for about two milliseconds.
const BATCH_MAX: usize = 500;
/// Slots of a cluster that windows are spread over. All processes have to agree on it.
const SLOTS: u64 = 16;
/// Windows told at a time, in all slots. Others wait, and are told after a pause with what they have used by then.
const ROUND_MAX: usize = BATCH_MAX * SLOTS as usize;

/// Tells and hears as long as the process lives. The keys of Redis begin with `prefix`.
pub(super) async fn run(
    link: Link,
    gate: Arc<Gate>,
    (prefix, uid): (String, String),
    clock: Clock,
    stats: Arc<BridgeStats>,
) {
    let tally = gate.tally();
    let bell = Arc::new(Notify::new());
    let ringing = bell.clone();
    tally.share(Box::new(move || ringing.notify_one()));
    let script = Arc::new(Script::new(include_str!("used.lua")));
    let uid: Arc<str> = uid.into();
    let mut more = false;
    let mut is_away = false;
    loop {
        if tally.is_unlimited() {
            // There may be limits later.
            sleep(RETRY).await;
            continue;
        }
        sleep(PAUSE).await;
        if !more {
            // Changes that nobody is in a hurry for are told when the time is up.
            timeout(INTERVAL - PAUSE, bell.notified()).await.ok();
        }
        let mut slots: [Vec<(String, Used)>; SLOTS as usize] = Default::default();
        let (changed, is_more) = tally.take_changed(ROUND_MAX, clock.now());
        more = is_more;
        // What each limit is called, and how long its windows last, by its place.
        let known: Arc<HashMap<u16, (String, u32)>> = Arc::new(if changed.is_empty() {
            HashMap::new()
        } else {
            let known = |(place, limit): (u16, &EventLimit)| (place, (name(limit), limit.window_ms));
            tally.limits().numbered().map(known).collect()
        });
        for used in changed {
            let (place, subject) = &used.key;
            // A limit that there is no more was changed in this moment.
            let Some((name, _)) = known.get(place) else { continue };
            let what = format!("{name}:{subject}");
            let slot = hash(&what) % SLOTS;
            slots[slot as usize].push((format!("{{{prefix}:{slot}}}:events:{what}"), used));
        }
        let mut calls = JoinSet::new();
        for mut slot in slots {
            while !slot.is_empty() {
                let batch = slot.split_off(slot.len().saturating_sub(BATCH_MAX));
                let (link, script, uid) = (link.clone(), script.clone(), uid.clone());
                let (known, now) = (known.clone(), clock.now());
                calls.spawn(async move {
                    let answer = tell(&link, &script, &uid, &batch, &known, now).await;
                    (batch, answer)
                });
            }
        }
        let mut failure = None;
        let mut has_answered = false;
        while let Some(done) = calls.join_next().await {
            // A task that panicked has told so, and what it had is told when it changes again.
            let Ok((batch, answer)) = done else { continue };
            stats.limit_batches.add(1);
            match answer {
                Ok(answer) => {
                    has_answered = true;
                    let now = clock.now();
                    for ((_, used), heard) in batch.iter().zip(answer) {
                        if let Some((elsewhere, left_ms)) = heard {
                            tally.set_elsewhere(used, elsewhere, now.plus_ms(left_ms.into()));
                        }
                    }
                }
                Err(fault) => {
                    failure = Some(fault);
                    stats.limit_batches_failed.add(1);
                    tally.note_again(batch.into_iter().map(|(_, used)| used));
                }
            }
        }
        // Told once, not each time.
        if let Some(fault) = failure {
            if !is_away {
                tracing::warn!(%fault, "limits on events are those of this process alone");
            }
            is_away = true;
            sleep(RETRY).await;
        } else if is_away && has_answered {
            tracing::info!("limits on events are counted over all processes again");
            is_away = false;
        }
    }
}

/// Tells Redis of windows, by their keys, where what is `known` of limits stands by their places: what they are called, and how long windows last. Answers for each what others have used, and the
/// milliseconds to its end, or nothing when something else has its key: then this process has the limit for itself, which has been
/// counted as a fault.
///
/// # Errors
/// When Redis did not answer.
async fn tell(
    link: &Link,
    script: &Script,
    uid: &str,
    batch: &[(String, Used)],
    known: &HashMap<u16, (String, u32)>,
    now: Time,
) -> Result<Vec<Option<(u32, u32)>>, Fault> {
    let keys: Vec<&[u8]> = batch.iter().map(|(key, _)| key.as_bytes()).collect();
    let numbers = batch.iter().flat_map(|(_, used)| {
        let left_ms = used.until.since_ns(now).div_ceil(1_000_000).max(1);
        let whole_ms = known[&used.key.0].1;
        [used.used.to_string(), left_ms.to_string(), whole_ms.to_string()]
    });
    let args: Vec<String> = std::iter::once(uid.to_owned()).chain(numbers).collect();
    let args: Vec<&[u8]> = args.iter().map(|arg| arg.as_bytes()).collect();
    let answer = match link.run_script(script, &keys, &args).await? {
        Value::Array(answer) if answer.len() == 2 * batch.len() => answer,
        _ => return Err(Fault::new(FaultKind::Garbage, "a script answered something else")),
    };
    let number = |value: &Value| match value {
        Value::Int(number) => u32::try_from(*number).ok(),
        _ => None,
    };
    let heard: Vec<Option<(u32, u32)>> =
        answer.chunks_exact(2).map(|pair| number(&pair[0]).zip(number(&pair[1]))).collect();
    if let Some(place) = heard.iter().position(Option::is_none) {
        let text = format!("{} is no window of a limit", batch[place].0);
        link.count_fault(&Fault::new(FaultKind::Answer, text));
    }
    Ok(heard)
}

/// What a limit is called among processes, where those that say the same are the same.
fn name(limit: &EventLimit) -> String {
    let EventLimit { event, namespace, per, most, unit, window_ms, over } = limit;
    let namespace = namespace.as_ref().map(ToString::to_string);
    let words = (event, namespace, per.word(), most, window_ms, over.word());
    let unit = match unit {
        // As in versions that counted nothing else.
        Unit::Events => "",
        Unit::Bytes => "bytes",
    };
    format!("{:016x}", hash(&format!("{words:?}{unit}")))
}

/// FNV-1a: the same in every process and version. It spreads load and protects nothing.
fn hash(text: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    text.bytes().fold(0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_what_other_versions_have() {
        assert_eq!(hash(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(hash("foobar"), 0x8594_4171_f739_67e8);
    }
}
