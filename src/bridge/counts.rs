//! Limits over several processes: how many connections an address or a user has in all of them.
//!
//! Every process counts its own, and tells Redis ten times a second which counts have changed, all of them, whatever else there is to tell;
//! the answer says what the others have. Once a second, or as soon as it is through with them, it begins to ask anew for those that have not
//! changed here, at most 500 of them in a tenth of a second. So nothing on the data path waits, and a limit is exceeded by what is opened
//! within a tenth of a second in several processes, and by one connection in each that has had none of the address or user: until it has
//! asked, it does not know of the others. When Redis is away, each process has the limit for itself. A process that dies is taken out of the
//! sums after [`GONE_MS`].

use super::fault::{Fault, FaultKind};
use super::link::{Link, Script, Value};
use crate::auth::{Gate, Subject};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// How often changes are told.
const INTERVAL: Duration = Duration::from_millis(100);
/// How often a process is heard of and asks anew, when nothing changes, and how often it tries when Redis is away.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// After how many milliseconds of silence a process counts as gone.
const GONE_MS: u64 = 5_000;
/// Addresses and users in one call, which keeps Redis busy for about a millisecond.
const BATCH_MAX: usize = 500;
/// Addresses and users in a tick, beside those that have changed, when Redis has to be told all.
const RESTORED_MAX: usize = 16 * BATCH_MAX;

/// Counts as long as the process lives. The keys of Redis begin with `prefix`.
pub(super) async fn run(link: Link, gate: Arc<Gate>, prefix: String, uid: String) {
    // In a cluster they are all in one slot, as a script needs them.
    let key = |name: &str| format!("{{{prefix}}}:connections:{name}");
    let mut counts = Counts {
        keys: [key("processes"), key("sums"), key(&format!("of:{uid}"))],
        who: [uid, GONE_MS.to_string(), key("of:")],
        script: Script::new(include_str!("counts.lua")),
        link,
        gate,
        told: HashSet::new(),
        again: Vec::new(),
        is_behind: false,
        is_away: false,
        heard_at: Instant::now(),
    };
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        counts.tick().await;
    }
}

/// What one process tells of its connections.
struct Counts {
    keys: [String; 3],
    who: [String; 3],
    script: Script,
    link: Link,
    gate: Arc<Gate>,
    /// Those that Redis has a count of, under our name, or may have. As many as have open connections, and those of the last tick; of
    /// batches that nobody has answered, at most one a second.
    told: HashSet<Subject>,
    /// Who is asked about anew though nothing has changed here. At most as many as there are inside and told.
    again: Vec<Subject>,
    /// True exactly while Redis does not know all that is in `again`.
    is_behind: bool,
    /// True from a call that failed to one that did not. Meanwhile others count as if they had nothing.
    is_away: bool,
    /// When we were last heard of for sure.
    heard_at: Instant,
}

impl Counts {
    async fn tick(&mut self) {
        // Also while Redis is away, so that it is not kept for whom has long gone.
        let mut due = self.gate.take_changed();
        let is_time = self.heard_at.elapsed() >= HEARTBEAT;
        if is_time {
            self.heard_at = Instant::now();
        }
        if self.is_away {
            if !is_time || !self.tell(&[]).await {
                return;
            }
            tracing::info!("limits on connections are counted over all processes again");
            // Redis may have missed anything.
            self.is_away = false;
            self.mark_all();
        } else if is_time && self.again.is_empty() {
            self.again = self.told.iter().cloned().collect();
        }
        // Changes first. What is asked anew costs no call of its own when there are some.
        let room = if self.is_behind { RESTORED_MAX } else { BATCH_MAX - due.len() % BATCH_MAX };
        due.extend(self.again.drain(self.again.len().saturating_sub(room)..));
        self.is_behind &= !self.again.is_empty();
        if due.is_empty() && is_time {
            self.tell(&[]).await;
        }
        for batch in due.chunks(BATCH_MAX) {
            if !self.tell(batch).await {
                return;
            }
        }
    }

    /// Redis is to be told of all whom it may have a count of and of all who are inside.
    fn mark_all(&mut self) {
        let inside: HashSet<Subject> = self.gate.inside().into_iter().collect();
        self.again = self.told.difference(&inside).cloned().collect();
        self.again.extend(inside);
        self.is_behind = true;
    }

    /// Tells what they have now and hears what they have elsewhere. False when that failed, which has been counted as a fault.
    async fn tell(&mut self, batch: &[Subject]) -> bool {
        // Read now, since a count of before would be told after the change.
        let batch: Vec<(&Subject, u32)> =
            batch.iter().map(|subject| (subject, self.gate.open_of(subject))).collect();
        let texts: Vec<String> =
            batch.iter().flat_map(|(subject, open)| [subject.to_string(), open.to_string()]).collect();
        let keys = self.keys.each_ref().map(|key| key.as_bytes());
        let mut args = self.who.each_ref().map(|word| word.as_bytes()).to_vec();
        args.extend(texts.iter().map(|text| text.as_bytes()));
        let answer = self.link.run_script(&self.script, &keys, &args).await;
        // After no answer it may have been done.
        let may_be_told = match &answer {
            Ok(_) => true,
            Err(fault) => matches!(fault.kind, FaultKind::Timeout | FaultKind::Closed),
        };
        let answer = answer.and_then(|answer| match answer {
            Value::Array(answer) => Ok(answer),
            _ => Err(Fault::new(FaultKind::Garbage, "a script answered something else")),
        });
        for (subject, open) in &batch {
            if *open > 0 && may_be_told {
                self.told.insert((*subject).clone());
            } else if *open == 0 && answer.is_ok() {
                self.told.remove(*subject);
            }
        }
        let answer = match answer {
            Ok(answer) => answer,
            Err(fault) => {
                if !self.is_away {
                    tracing::warn!(%fault, "limits on connections are those of this process alone");
                    self.is_away = true;
                    self.gate.forget_elsewhere();
                    self.again = Vec::new();
                }
                return false;
            }
        };
        let mut numbers = answer.iter().map(|value| match value {
            Value::Int(number) => u32::try_from(*number).unwrap_or(u32::MAX),
            _ => 0,
        });
        let is_new = numbers.next() == Some(1);
        for ((subject, _), elsewhere) in batch.iter().zip(numbers) {
            self.gate.set_elsewhere(subject, elsewhere);
        }
        if is_new {
            // Redis has forgotten this process, or never knew it.
            self.mark_all();
        }
        true
    }
}
