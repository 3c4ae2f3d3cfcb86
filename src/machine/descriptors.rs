//! What becomes of the limit on open files: the same numbers for the server that goes by them and for the doctor that says them.

use crate::config::Config;
use crate::message::SHARDS_MAX;

/// Descriptors that are not for clients: standard streams, the control port and its connections, files being read.
const KEPT: usize = 112;
/// Descriptors of a shard: epoll, the bell, the listener, and one more socket than it should have taken.
const PER_SHARD: usize = 4;
/// Sockets above `connections_max`, so that there are some to say no with. Where there are few descriptors, an eighth of them.
const SOCKETS_TO_REFUSE: usize = 256;
/// The most sockets of a process, whatever the limit on open files: that of `limits.connections_max`.
const SOCKETS_MAX: usize = 16_000_000;
/// Sockets that there must be, or the server does not start.
const SOCKETS_MIN: usize = 16;

/// How the descriptors of a process are shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptors {
    /// The limit on open files.
    pub limit: usize,
    /// Descriptors that are for no client: `sockets_max + kept <= limit` if there are enough.
    pub kept: usize,
    /// Sockets of clients that there may be.
    pub sockets_max: usize,
    /// Connections that there may be, whatever the configuration says: `ceiling <= sockets_max`.
    pub ceiling: usize,
}

impl Descriptors {
    /// How a process with `shards` shards that may open `limit` files shares them out.
    pub fn new(config: &Config, shards: usize, limit: usize) -> Descriptors {
        let has_api = !config.api.key.is_empty() || !config.api_keys.is_empty();
        let of_api = if has_api { config.api.kept_connections_max as usize } else { 0 };
        let kept = KEPT + of_api + shards * PER_SHARD;
        let sockets_max = limit.saturating_sub(kept).min(SOCKETS_MAX);
        let ceiling = sockets_max - SOCKETS_TO_REFUSE.min(sockets_max / 8);
        Descriptors { limit, kept, sockets_max, ceiling }
    }

    /// True when the server starts with so many.
    pub fn suffice(&self) -> bool {
        self.sockets_max >= SOCKETS_MIN
    }

    /// The limit on open files below which the server does not start.
    pub fn needed_min(&self) -> usize {
        self.kept + SOCKETS_MIN
    }

    /// The limit on open files that `connections` need.
    pub fn needed_for(&self, connections: usize) -> usize {
        connections + SOCKETS_TO_REFUSE + self.kept
    }

    /// Connections that there may be when the configuration wants `wanted` at the most; 0 is as many as can be.
    pub fn connections_max(&self, wanted: usize) -> usize {
        if wanted == 0 { self.ceiling } else { wanted.min(self.ceiling) }
    }

    /// Sockets that there may be beside `connections_max` connections, those to say no with included.
    pub fn sockets_for(&self, connections_max: usize) -> usize {
        (connections_max + SOCKETS_TO_REFUSE).min(self.sockets_max)
    }
}

/// How many shards a process has that may use `cpus` processors.
pub fn shards(config: &Config, cpus: usize) -> usize {
    match config.server.shards as usize {
        0 => cpus.clamp(1, SHARDS_MAX),
        shards => shards,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(limit: usize) -> Descriptors {
        Descriptors::new(&Config::default(), 2, limit)
    }

    #[test]
    fn what_is_not_for_clients_is_taken_off_first() {
        let it = of(20_000);
        assert_eq!((it.kept, it.sockets_max, it.ceiling), (120, 19_880, 19_624));
        assert_eq!((it.connections_max(0), it.connections_max(5_000)), (19_624, 5_000));
        assert_eq!(it.connections_max(1_000_000), 19_624);
    }

    #[test]
    fn what_connections_need_gives_just_so_many() {
        let needed = of(0).needed_for(1_000_000);
        assert_eq!(of(needed).ceiling, 1_000_000);
        assert_eq!(of(needed - 1).ceiling, 999_999);
    }

    #[test]
    fn with_too_few_there_is_no_server() {
        let least = of(0).needed_min();
        assert!(of(least).suffice() && !of(least - 1).suffice());
    }

    #[test]
    fn there_is_a_shard_for_each_processor_unless_the_configuration_says_otherwise() {
        let mut config = Config::default();
        assert_eq!((shards(&config, 0), shards(&config, 3), shards(&config, 4_096)), (1, 3, SHARDS_MAX));
        config.server.shards = 7;
        assert_eq!(shards(&config, 3), 7);
    }
}
