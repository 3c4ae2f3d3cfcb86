//! Events that plain clients could not tell from what throng itself says to them.

use super::{Config, Fault, Problem, Source, redis_channels, routes};
use crate::routes::channel::Channel;
use crate::routes::{Does, Route, Saying};

/// The types of what throng says itself. What anybody else says has the name of its event as its type.
const OWN_TYPES: [&str; 5] = ["ack", "batch", "dropped", "error", "presence"];

/// What is wrong with routes and channels where there are plain clients: those of namespace `/` that say such an event.
pub(super) fn for_plain_clients(
    config: &Config,
    routes: &[(Route, Source)],
    channels: &[(Channel, Source)],
) -> Vec<Problem> {
    if config.plain.path.is_empty() {
        return Vec::new();
    }
    let mut problems = Vec::new();
    let mut tell = |list: &str, key: &str, saying: &Saying, otherwise: &str, source: &Source| {
        let event = saying.event.as_deref().unwrap_or(otherwise);
        if OWN_TYPES.contains(&event) {
            let why = format!(
                "plain clients (plain.path) would take an event {event:?} for what throng itself says: give it another name"
            );
            let key = format!("{list}.{key}");
            problems.push(Problem { key, source: source.clone(), fault: Fault::Wrong { why } });
        }
    };
    let list = routes::TABLES.name;
    for (Route { namespace, on, does, .. }, source) in routes {
        let is_here = namespace.as_ref().is_none_or(|pattern| pattern.matches("/"));
        let Does::Steps(steps) = does else { continue };
        if !is_here {
            continue;
        }
        steps.publish.iter().for_each(|publish| tell(list, "publish", &publish.saying, on, source));
        steps.reply.iter().for_each(|reply| tell(list, "reply", reply, on, source));
    }
    let list = redis_channels::TABLES.name;
    for (channel, source) in channels.iter().filter(|(channel, _)| channel.namespace == "/") {
        channel.steps.publish.iter().for_each(|publish| tell(list, "publish", &publish.saying, "", source));
    }
    problems
}
