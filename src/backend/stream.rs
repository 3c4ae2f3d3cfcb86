//! Notices into a stream of Redis, for backends that read as a consumer group.

use super::webhooks::Batch;
use crate::bridge::fault::Fault;
use crate::bridge::link::{Link, Script};

/// Adds all of a batch, in order: to each entry the fields `kind`, `node` and `notice`. A script, so that one batch is one question.
const ADD: &str = "
for at = 3, #ARGV, 2 do
    if ARGV[1] == '0' then
        redis.call('XADD', KEYS[1], '*', 'kind', ARGV[at], 'node', ARGV[2], 'notice', ARGV[at + 1])
    else
        redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'kind', ARGV[at], 'node', ARGV[2], 'notice', ARGV[at + 1])
    end
end
return (#ARGV - 2) / 2
";

/// A stream that notices are added to.
pub(crate) struct Stream {
    link: Link,
    script: Script,
    key: String,
    /// About how many entries are kept, in words for Redis; 0 for all.
    entries_max: String,
}

impl Stream {
    /// The stream at `key`, which keeps about `entries_max` entries, 0 for all.
    pub(crate) fn new(link: Link, key: String, entries_max: u32) -> Stream {
        Stream { link, script: Script::new(ADD), key, entries_max: entries_max.to_string() }
    }

    /// Adds a batch, before it that notices were lost if some were. Belongs on the thread of the link.
    ///
    /// # Errors
    /// Why Redis has not said that all is there. Some or all of it may be.
    pub(super) async fn add(&self, batch: &Batch) -> Result<(), Fault> {
        let Batch { id, lost, notices, node, .. } = batch;
        let at_unix_ms = notices.last().map_or(0, |notice| notice.at_unix_ms);
        let told = (*lost > 0).then(|| {
            format!("{{\"id\":\"{id}-lost\",\"kind\":\"lost\",\"at_ms\":{at_unix_ms},\"lost\":{lost}}}")
        });
        let mut words: Vec<&[u8]> = vec![self.entries_max.as_bytes(), node.as_bytes()];
        if let Some(told) = &told {
            words.extend([b"lost".as_slice(), told.as_bytes()]);
        }
        for notice in notices {
            words.extend([notice.kind.label().as_bytes(), notice.json.as_slice()]);
        }
        self.link.run_script(&self.script, &[self.key.as_bytes()], &words).await.map(drop)
    }
}
