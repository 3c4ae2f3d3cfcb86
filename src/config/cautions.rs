//! What is right in a configuration and yet may not be what was meant: routes and policies that do not come into play.

use super::Config;
use crate::permissions::RoomPattern;
use crate::permissions::Who;
use crate::policy::Policy;
use crate::routes::{Does, Publish, Route, Steps, Target};
use crate::rules::Pattern;

impl Config {
    /// Each as a line for people.
    pub(super) fn cautions(&self) -> Vec<String> {
        let mut lines = self.routes_without_effect();
        lines.extend(self.rooms_without_effect());
        lines.extend(self.states_passed_by());
        lines.extend(self.ways_past_routes());
        lines.into_iter().map(|line| format!("CAUTION: {line}.")).collect()
    }

    /// Routes whose events are all those of one before.
    fn routes_without_effect(&self) -> Vec<String> {
        let routes: Vec<&Route> = self.routes.configured().iter().collect();
        let takes_all = |first: &Route, later: &Route| {
            first.on == later.on
                && has_all_of(&first.who, &later.who)
                && is_wider(&first.namespace, &later.namespace)
        };
        let shadowed = shadowed(&routes, takes_all);
        let line = |(at, by): (usize, usize)| {
            format!(
                "[[routes]] number {}, for {:?}, never counts: number {} has all of its events",
                at + 1,
                routes[at].on,
                by + 1
            )
        };
        shadowed.into_iter().map(line).collect()
    }

    /// Policies that do nothing, or for rooms that are all those of one before.
    fn rooms_without_effect(&self) -> Vec<String> {
        let rooms: Vec<&Policy> = self.rooms.iter().collect();
        let has_all = |first: &Policy, later: &Policy| {
            is_wider(&first.namespace, &later.namespace) && covers(&first.name, &later.name.to_string())
        };
        let line = |(at, by): (usize, usize)| {
            format!(
                "[[rooms]] number {}, for {}, never counts: number {} has all of its rooms",
                at + 1,
                rooms[at].name,
                by + 1
            )
        };
        let mut lines: Vec<String> = shadowed(&rooms, has_all).into_iter().map(line).collect();
        // One that does nothing can still keep rooms from those behind it.
        let idle = rooms.iter().enumerate().filter(|(at, policy)| {
            !does_something(policy) && !rooms[at + 1..].iter().any(|later| does_something(later))
        });
        lines.extend(
            idle.map(|(at, policy)| {
                format!("[[rooms]] number {}, for {}, does nothing", at + 1, policy.name)
            }),
        );
        lines
    }

    /// Routes whose events go by the state of a room.
    fn states_passed_by(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (route, steps) in
            self.routes.configured().iter().filter_map(|route| Some((route, steps_of(route)?)))
        {
            for Publish { to, except, saying, .. } in &steps.publish {
                let to_natives = to.contains(&Target::Everyone) && is_for_natives(route);
                if except.is_empty() && !to_natives {
                    continue;
                }
                let event = saying.event.as_ref().unwrap_or(&route.on);
                let has_state = |room: &str| {
                    let policy = self.rooms.iter().find(|policy| {
                        covers(&policy.name, room) && is_wider(&policy.namespace, &route.namespace)
                    });
                    let changes = policy.and_then(|policy| policy.changes.as_ref());
                    changes.is_some_and(|changes| changes.event == *event)
                };
                let names = to.iter().filter_map(|target| match target {
                    Target::Room(name) => Some(name.to_string()),
                    Target::User(_) | Target::Everyone => None,
                });
                lines.extend(names.filter(|name| has_state(name)).map(|name| {
                    format!("what the route for {:?} publishes to {name} is not in its state: `changes` do not see events with `except`, or for everyone", route.on)
                }));
            }
        }
        lines
    }

    /// Clients that need no route to say something to others.
    fn ways_past_routes(&self) -> Vec<String> {
        let does_more =
            |steps: &Steps| !(steps.member.is_empty() && steps.join.is_empty() && steps.publish.is_empty());
        let has_routes = self.routes.configured().iter().filter_map(steps_of).any(does_more);
        let is_held = self.permissions.iter().any(|permission| permission.grant.acts.has_rooms());
        if is_held || !(has_routes || self.knows_users()) {
            return Vec::new();
        }
        // A route for all other events is not asked about what native clients do.
        let stays = |word: &&str| {
            let mut named = self.routes.iter().filter(|route| route.on == *word && is_for_natives(route));
            named.next().is_some_and(|route| steps_of(route).is_none())
        };
        let words: Vec<&str> = ["join", "publish"].into_iter().filter(stays).collect();
        if self.native.path.is_empty() || words.is_empty() {
            return Vec::new();
        }
        let past = if has_routes { ", whatever the routes say" } else { "" };
        let words = words.join(" and ");
        vec![format!(
            "there are no [[permissions]] about rooms: native clients, at {}, {words} as they like{past}",
            self.native.path
        )]
    }
}

/// Of `items` those of which one before, the first, `has_all`: the place of each, and of that.
fn shadowed<T>(items: &[&T], has_all: impl Fn(&T, &T) -> bool) -> Vec<(usize, usize)> {
    let by = |at: usize| Some((at, items[..at].iter().position(|first| has_all(first, items[at]))?));
    (0..items.len()).filter_map(by).collect()
}

fn has_all_of(first: &Who, later: &Who) -> bool {
    match first {
        Who::Anyone => true,
        Who::User => *later != Who::Anyone,
        Who::Role(_) => first == later,
    }
}

/// True when one is for every namespace that the other is for. A star in that stands for what only a star can match.
fn is_wider(first: &Option<Pattern>, later: &Option<Pattern>) -> bool {
    match (first, later) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(first), Some(later)) => first.matches(&later.to_string()),
    }
}

/// True when a pattern is for every room that `names` means, which is another pattern, or a template: what is not known of a name stands in
/// it as a star or in braces, and only a star of the pattern can match that.
fn covers(pattern: &RoomPattern, names: &str) -> bool {
    pattern.matches(names, "")
}

fn does_something(policy: &Policy) -> bool {
    policy.has_home() || policy.burst.is_some()
}

fn is_for_natives(route: &Route) -> bool {
    route.namespace.as_ref().is_none_or(|pattern| pattern.matches("/"))
}

fn steps_of(route: &Route) -> Option<&Steps> {
    match &route.does {
        Does::Steps(steps) => Some(steps),
        Does::BuiltIn(_) => None,
    }
}
