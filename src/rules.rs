//! Which namespaces there are, how often events may come, and which the backend is told of: rules, as a configuration gives them.

use std::collections::HashMap;
use std::fmt::{self, Display};

/// The main namespace, in which native and plain clients are, too.
const MAIN: &str = "/";

/// A namespace's name, in which `*` for a whole segment stands for any one segment that is not empty. Displayed, it is as it was
/// written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// Reads a pattern: `/`, `/guild`, `/guild/*`. `None` if it does not begin with `/`, if there is a `*` within a segment, or if
    /// no namespace can be called so: a name ends at a comma or a question mark, has no control characters, and no `#`, which on Redis stands
    /// behind it.
    pub fn parse(text: &str) -> Option<Pattern> {
        let is_right = text.starts_with('/')
            && !text.contains(|letter: char| matches!(letter, ',' | '?' | '#') || letter.is_control())
            && text.split('/').all(|segment| segment == "*" || !segment.contains('*'));
        is_right.then(|| Pattern(text.to_owned()))
    }

    /// True when `namespace`, with its leading `/`, is one of those meant.
    pub fn matches(&self, namespace: &str) -> bool {
        let (mut meant, mut found) = (self.0.split('/'), namespace.split('/'));
        loop {
            match (meant.next(), found.next()) {
                (None, None) => return true,
                (Some("*"), Some(segment)) if !segment.is_empty() && !segment.contains('#') => {}
                (Some(segment), Some(other)) if segment == other => {}
                _ => return false,
            }
        }
    }
}

impl Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The namespaces that clients may join: patterns, of which the first that matches counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespaces {
    allowances: Vec<Allowance>,
    /// True when one of them has a coding that is not JSON.
    is_coded: bool,
}

/// The namespaces that one pattern means, and how much of them there may be. Bounds are inclusive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Which namespaces.
    pub pattern: Pattern,
    /// Connections in one of them, in the process; 0 for no limit, `None` for the limit that holds for all namespaces.
    pub connections_max: Option<u32>,
    /// Of them, how many may have a member in the process; `None` for no limit of their own.
    pub namespaces_max: Option<u32>,
    /// What of them concerns the backend.
    pub backend: Concerns,
    /// How what events carry travels in them.
    pub coding: Coding,
}

/// How the arguments of events and of their answers travel between throng and the clients of a namespace. Everywhere else they are JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Coding {
    /// As JSON.
    #[default]
    Json,
    /// Each argument as one attachment that is MessagePack.
    Msgpack,
    /// Each argument as a text that is its JSON in base64.
    Base64,
}

impl Coding {
    /// The words for them in a configuration, in their order.
    pub const WORDS: [&'static str; 3] = ["json", "msgpack", "base64"];

    /// What this word means.
    pub fn of(word: &str) -> Option<Coding> {
        [Coding::Json, Coding::Msgpack, Coding::Base64].into_iter().find(|coding| coding.word() == word)
    }

    /// The word for this one.
    pub fn word(self) -> &'static str {
        Coding::WORDS[self as usize]
    }
}

/// What of a namespace's comings and goings concerns the backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Concerns {
    /// It is asked whether a client may join.
    pub connect: bool,
    /// It is told that a client has joined.
    pub connected: bool,
    /// It is told that a client has left.
    pub disconnected: bool,
}

impl Concerns {
    /// The words for them in a configuration.
    pub const WORDS: [&'static str; 3] = ["connect", "connected", "disconnected"];

    /// Those that `words` name.
    pub fn of(words: &[&str]) -> Concerns {
        let [connect, connected, disconnected] = Concerns::WORDS.map(|word| words.contains(&word));
        Concerns { connect, connected, disconnected }
    }

    /// The words for these.
    pub fn words(self) -> impl Iterator<Item = &'static str> {
        let Concerns { connect, connected, disconnected } = self;
        let named = [connect, connected, disconnected].into_iter().zip(Concerns::WORDS);
        named.filter(|(concerns, _)| *concerns).map(|(_, word)| word)
    }
}

impl Namespaces {
    /// The most patterns that a configuration may have: each costs a comparison at a join, and numbers in the metrics.
    pub const PATTERNS_MAX: usize = 200;

    /// Those that one of `patterns` matches.
    pub fn new(patterns: Vec<Pattern>) -> Namespaces {
        let plain = |pattern| Allowance {
            pattern,
            connections_max: None,
            namespaces_max: None,
            backend: Concerns::default(),
            coding: Coding::default(),
        };
        Namespaces::default().or(patterns.into_iter().map(plain))
    }

    /// Those of `allowances`, and behind them these.
    pub fn behind(self, allowances: Vec<Allowance>) -> Namespaces {
        Namespaces::default().or(allowances).or(self.allowances)
    }

    /// Adds what is not there yet: each pattern has its place once, so that it can be told by that.
    fn or(mut self, weaker: impl IntoIterator<Item = Allowance>) -> Namespaces {
        for allowance in weaker {
            if self.allowances.iter().all(|other| other.pattern != allowance.pattern) {
                self.is_coded |= allowance.coding != Coding::Json;
                self.allowances.push(allowance);
            }
        }
        self
    }

    /// What is said about `namespace`, and the place of that among all; `None` when clients may not join it. Costs a comparison for
    /// each pattern up to the one that matches.
    pub fn find(&self, namespace: &str) -> Option<(u16, &Allowance)> {
        let place = self.allowances.iter().position(|allowance| allowance.pattern.matches(namespace))?;
        Some((u16::try_from(place).ok()?, &self.allowances[place]))
    }

    /// How what events carry travels in a namespace. One branch where it is JSON in all.
    #[inline]
    pub fn coding(&self, namespace: &str) -> Coding {
        let found = if self.is_coded { self.find(namespace) } else { None };
        found.map_or(Coding::Json, |(_, allowance)| allowance.coding)
    }

    /// All of them, in the order of their places.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Allowance> {
        self.allowances.iter()
    }
}

/// How often clients may send events: all limits that are configured. An event counts against each that is for it.
#[derive(Clone, Debug, Default)]
pub struct EventLimits {
    limits: Vec<EventLimit>,
    /// For each event's name that a limit has, those for it, as ascending indices of `limits`; with those for all events.
    by_event: HashMap<String, Vec<u16>>,
    /// Those for all events.
    for_all: Vec<u16>,
    /// The length of the longest name in `by_event`, in bytes.
    name_bytes_max: usize,
    /// For each of `limits` what it is known by to those who count: its place. No two are the same.
    places: Vec<u16>,
}

impl EventLimits {
    /// The most limits that a configuration may have.
    pub const CONFIGURED_MAX: usize = 500;
    /// Places are below this: there are as many that are free as may be taken.
    pub const PLACES: u16 = 2 * EventLimits::CONFIGURED_MAX as u16;

    /// These, of which those beyond [`EventLimits::CONFIGURED_MAX`] are left out.
    pub fn new(mut limits: Vec<EventLimit>) -> EventLimits {
        limits.truncate(EventLimits::CONFIGURED_MAX);
        let numbered = || (0..).zip(&limits);
        let for_all = numbered().filter(|(_, limit)| limit.event.is_none()).map(|(index, _)| index).collect();
        let names = limits.iter().filter_map(|limit| limit.event.clone());
        let with_all = |name: String| {
            let is_for = |limit: &EventLimit| limit.event.as_ref().is_none_or(|event| *event == name);
            let indices = numbered().filter(|(_, limit)| is_for(limit)).map(|(index, _)| index).collect();
            (name, indices)
        };
        let by_event: HashMap<String, Vec<u16>> = names.map(with_all).collect();
        let name_bytes_max = by_event.keys().map(String::len).max().unwrap_or(0);
        let places = (0..).zip(&limits).map(|(place, _)| place).collect();
        EventLimits { limits, by_event, for_all, name_bytes_max, places }
    }

    /// These after `earlier`: a limit that was there has the place that it had, so that what has been counted counts on, and those that
    /// are new have places that none had.
    pub fn after(mut self, earlier: &EventLimits) -> EventLimits {
        let mut known: Vec<(u16, &EventLimit)> = earlier.numbered().collect();
        let mut free = (0..EventLimits::PLACES).filter(|place| !earlier.places.contains(place));
        for (limit, place) in self.limits.iter().zip(&mut self.places) {
            *place = match known.iter().position(|(_, other)| *other == limit) {
                Some(at) => known.remove(at).0,
                None => free.next().expect("there are twice as many places as limits"),
            };
        }
        self
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.limits.is_empty()
    }

    /// The limits for an event in `namespace`, with their places; `None`, of native and plain clients, is `/`. Costs a hash of the name, if a
    /// limit could have one that long, then a comparison for each limit with the name.
    pub fn find(&self, namespace: Option<&str>, event: &str) -> impl Iterator<Item = (u16, &EventLimit)> {
        let named = if event.len() <= self.name_bytes_max { self.by_event.get(event) } else { None };
        let indices = named.unwrap_or(&self.for_all).iter();
        let at = |index: &u16| usize::from(*index);
        let limits = indices.map(move |index| (self.places[at(index)], &self.limits[at(index)]));
        limits.filter(move |(_, limit)| {
            limit.namespace.as_ref().is_none_or(|pattern| pattern.matches(namespace.unwrap_or(MAIN)))
        })
    }

    /// All limits, in the order of the configuration.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &EventLimit> {
        self.limits.iter()
    }

    /// The same, with their places.
    pub fn numbered(&self) -> impl Iterator<Item = (u16, &EventLimit)> {
        self.places.iter().copied().zip(&self.limits)
    }

    /// True when a limit has this place.
    pub fn has(&self, place: u16) -> bool {
        self.places.contains(&place)
    }
}

/// One limit on events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventLimit {
    /// The event's name; `None` for all events together.
    pub event: Option<String>,
    /// Where the limit holds; `None` is every namespace.
    pub namespace: Option<Pattern>,
    /// Who has as many for itself.
    pub per: Per,
    /// How much there may be in a window, at least 1.
    pub most: u32,
    /// Of what.
    pub unit: Unit,
    /// How long a window lasts, in milliseconds, from its first event.
    pub window_ms: u32,
    /// What happens to one too many.
    pub over: Over,
}

/// What a limit on events counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Events.
    Events,
    /// Bytes of their data.
    Bytes,
}

impl Unit {
    /// What an event with so many `bytes` counts.
    pub fn weight(self, bytes: usize) -> u32 {
        match self {
            Unit::Events => 1,
            Unit::Bytes => u32::try_from(bytes).unwrap_or(u32::MAX),
        }
    }
}

/// Who a limit on events is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Per {
    /// Each connection.
    Connection,
    /// All connections of one address, for IPv6 of one /64.
    Ip,
    /// All connections of one user. Who is no user counts by its address.
    User,
}

impl Per {
    /// The words for them in a configuration, in their order.
    pub const WORDS: [&'static str; 3] = ["connection", "ip", "user"];

    /// The word for this one.
    pub fn word(self) -> &'static str {
        Per::WORDS[self as usize]
    }
}

/// What happens to an event over a limit. It is not carried out in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// The client is told.
    Error,
    /// The client is told only if it has asked for an answer.
    Drop,
    /// The client is closed with 1008.
    Close,
}

impl Over {
    /// The words for them in a configuration, in their order.
    pub const WORDS: [&'static str; 3] = ["error", "drop", "close"];

    /// The word for this one.
    pub fn word(self) -> &'static str {
        Over::WORDS[self as usize]
    }
}

/// Events of clients that the backend is told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventChoice {
    /// The event's name; `None` for all events.
    pub event: Option<String>,
    /// Where; `None` is every namespace.
    pub namespace: Option<Pattern>,
}

impl EventChoice {
    /// The most of them that a configuration may have: each costs a comparison for each event.
    pub const CONFIGURED_MAX: usize = 100;

    /// True when it means this event in `namespace`; `None`, of native and plain clients, is `/`.
    pub fn is_for(&self, namespace: Option<&str>, event: &str) -> bool {
        self.event.as_ref().is_none_or(|name| name == event)
            && self.namespace.as_ref().is_none_or(|pattern| pattern.matches(namespace.unwrap_or(MAIN)))
    }
}

/// Names of events that the libraries of Socket.IO raise themselves, so that nobody may send them.
pub const RESERVED_EVENTS: [&str; 6] =
    ["connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"];

/// True when an event may be called `text`. Socket.IO keeps [some names](RESERVED_EVENTS) for itself, and its clients refuse events with them.
pub fn is_event_name(text: &str) -> bool {
    !text.is_empty() && !text.contains(char::is_control) && !RESERVED_EVENTS.contains(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text).expect("a pattern")
    }

    #[test]
    fn a_pattern_matches_segment_by_segment() {
        for (text, yes, no) in [
            ("/", &["/"][..], &["", "/a", "//"][..]),
            ("/a", &["/a"], &["/", "/a/", "/ab", "/A", "a"]),
            ("/a/", &["/a/"], &["/a", "/a/b"]),
            ("/*", &["/a", "/*", "/ä"], &["/", "/a/", "/a/b", ""]),
            ("/a/*", &["/a/b", "/a/1"], &["/a", "/a/", "/a/b/c", "/b/b"]),
            ("/*/b", &["/a/b", "/b/b"], &["//b", "/a/c", "/b"]),
            ("/*/*", &["/a/b"], &["/a", "/a/", "//", "/a/b/c"]),
        ] {
            for namespace in yes {
                assert!(pattern(text).matches(namespace), "{text} {namespace}");
            }
            for namespace in no {
                assert!(!pattern(text).matches(namespace), "{text} {namespace}");
            }
            assert_eq!(pattern(text).to_string(), text);
        }
    }

    #[test]
    fn what_names_no_namespace_is_no_pattern() {
        for text in ["", "a", "*", "a/b", "/a*", "/*a", "/a/**", "/a,b", "/a?b=1", "/a\n", " /"] {
            assert_eq!(Pattern::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_namespace_is_allowed_by_any_of_the_patterns() {
        let namespaces = Namespaces::new(["/", "/guild/*"].map(pattern).to_vec());
        for (namespace, allowed) in
            [("/", true), ("/guild/7", true), ("/guild", false), ("/guild/", false), ("/nope", false)]
        {
            assert_eq!(namespaces.find(namespace).is_some(), allowed, "{namespace}");
        }
        assert_eq!(Namespaces::new(Vec::new()).find("/"), None);
    }

    #[test]
    fn the_first_pattern_that_matches_says_what_holds_for_a_namespace() {
        let limited = |text, most| Allowance {
            pattern: pattern(text),
            connections_max: Some(most),
            namespaces_max: None,
            backend: Concerns::default(),
            coding: Coding::default(),
        };
        let namespaces = Namespaces::new(["/", "/guild/*", "/*/*", "/"].map(pattern).to_vec()).behind(vec![
            limited("/guild/7", 1),
            limited("/guild/*", 2),
            limited("/guild/7", 3),
        ]);
        let patterns: Vec<String> =
            namespaces.iter().map(|allowance| allowance.pattern.to_string()).collect();
        assert_eq!(patterns, ["/guild/7", "/guild/*", "/", "/*/*"], "each once");
        for (namespace, place, most) in
            [("/guild/7", 0, Some(1)), ("/guild/8", 1, Some(2)), ("/", 2, None), ("/team/8", 3, None)]
        {
            let (found, allowance) = namespaces.find(namespace).expect("it is allowed");
            assert_eq!((found, allowance.connections_max), (place, most), "{namespace}");
        }
    }

    #[test]
    fn names_that_socket_io_reserves_are_no_names_of_events() {
        for (text, is_name) in [
            ("message", true),
            ("Connect", true),
            ("größe 2", true),
            ("", false),
            ("connect", false),
            ("disconnecting", false),
            ("removeListener", false),
            ("a\nb", false),
        ] {
            assert_eq!(is_event_name(text), is_name, "{text:?}");
        }
    }
    fn limit(event: Option<&str>, namespace: Option<&str>) -> EventLimit {
        EventLimit {
            event: event.map(str::to_owned),
            namespace: namespace.map(pattern),
            per: Per::Connection,
            most: 1,
            unit: Unit::Events,
            window_ms: 1000,
            over: Over::Error,
        }
    }

    #[test]
    fn a_choice_of_events_goes_by_name_and_namespace() {
        let choice = |event: Option<&str>, namespace: Option<&str>| EventChoice {
            event: event.map(str::to_owned),
            namespace: namespace.map(pattern),
        };
        let all = choice(None, None);
        assert!(all.is_for(None, "a") && all.is_for(Some("/x"), "b"));
        let chat = choice(Some("say"), Some("/chat/*"));
        assert!(chat.is_for(Some("/chat/1"), "say"));
        for (namespace, event) in [(None, "say"), (Some("/chat"), "say"), (Some("/chat/1"), "sing")] {
            assert!(!chat.is_for(namespace, event), "{namespace:?} {event}");
        }
    }

    #[test]
    fn an_event_counts_against_every_limit_that_is_for_it() {
        let limits = EventLimits::new(vec![
            limit(Some("bid"), None),
            limit(None, None),
            limit(Some("bid"), Some("/lots/*")),
            limit(Some("join"), Some("/")),
            limit(None, Some("/")),
        ]);
        let found = |namespace, event: &str| {
            limits.find(namespace, event).map(|(place, _)| place).collect::<Vec<u16>>()
        };
        assert_eq!(found(None, "bid"), [0, 1, 4], "native and plain clients are in the main one");
        assert_eq!(found(Some("/lots/7"), "bid"), [0, 1, 2]);
        assert_eq!(found(Some("/"), "bid"), [0, 1, 4]);
        assert_eq!(found(Some("/"), "join"), [1, 3, 4]);
        assert_eq!(found(Some("/lots/7"), "join"), [1]);
        assert_eq!(found(None, "*"), [1, 4], "which is no name");
        assert_eq!(found(None, &"bid".repeat(400_000)), [1, 4]);
        assert!(!limits.is_empty() && EventLimits::default().is_empty());
        assert_eq!(EventLimits::default().find(None, "").count(), 0);
    }
}
