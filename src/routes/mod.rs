//! Routes: what the events of clients do, as a configuration says it.

pub mod arrival;
pub mod channel;
pub mod template;

use crate::permissions::Who;
use crate::rules::Pattern;
use arrival::Arrival;
use std::collections::HashMap;
use template::{Data, Fault, Name, Path, Paths, Source};

/// All routes: those that are configured, then those that are built in. An event that no route is for does nothing.
#[derive(Clone, Debug)]
pub struct Routes {
    /// The first that is for an event counts.
    routes: Vec<Route>,
    /// So many of them are not built in.
    configured: usize,
    /// For each event's name the routes with it, as ascending indices of `routes`.
    by_event: HashMap<String, Vec<usize>>,
    /// The routes for all events that no other configured one is for, likewise.
    for_others: Vec<usize>,
    /// See [`Routes::replaces_built_in`].
    replaces_built_in: bool,
    /// See [`Routes::asks_backend`].
    asks_backend: bool,
    /// What else happens when somebody enters a namespace: the first that is for it counts.
    arrivals: Vec<Arrival>,
}

/// What there is for an event.
#[derive(Clone, Copy, Debug)]
pub enum Found<'r> {
    /// This route.
    Route(&'r Route),
    /// Routes, but for others than who has sent it.
    Forbidden {
        /// True when one of them names the event.
        by_name: bool,
    },
    /// None.
    Nothing,
}

impl Routes {
    /// The most routes that a configuration may have.
    pub const CONFIGURED_MAX: usize = 1000;

    /// `configured`, and behind them `join`, `leave`, `publish` and `presence`, which do what they are called, but for one that `configured`
    /// has for every namespace.
    pub fn new(configured: Vec<Route>) -> Routes {
        let mut routes = configured;
        let configured = routes.len();
        for (on, built_in) in [
            ("join", BuiltIn::Join { room_fields: BuiltIn::room_fields() }),
            ("leave", BuiltIn::Leave { room_fields: BuiltIn::room_fields() }),
            (
                "publish",
                BuiltIn::Publish {
                    room_fields: BuiltIn::room_fields(),
                    event_field: BuiltIn::EVENT_FIELD.to_owned(),
                    data_field: BuiltIn::DATA_FIELD.to_owned(),
                },
            ),
            ("presence", BuiltIn::Presence { room_fields: BuiltIn::room_fields() }),
        ] {
            if !routes.iter().any(|route| route.on == on && route.namespace.is_none()) {
                routes.push(Route::new(on, Does::BuiltIn(built_in)));
            }
        }
        for route in &mut routes {
            if let Does::Steps(steps) = &mut route.does {
                let [id, socket, rooms] =
                    [Source::Id, Source::Socket, Source::Rooms].map(|source| steps.has(source));
                let user = steps.names().any(|name| name.has(Source::User));
                steps.needs = Needs { id, socket, rooms, user };
            }
        }
        let is_for_natives = |route: &Route| route.is_in("/") && BuiltIn::NAMES.contains(&&*route.on);
        let replaces_built_in = routes[..configured].iter().any(is_for_natives);
        let for_others = (0..routes.len()).filter(|at| routes[*at].on == Route::OTHERS).collect();
        let mut by_event: HashMap<String, Vec<usize>> = HashMap::new();
        for (index, route) in routes.iter().enumerate().filter(|(_, route)| route.on != Route::OTHERS) {
            by_event.entry(route.on.clone()).or_default().push(index);
        }
        let asks_backend = routes.iter().any(Route::asks_backend);
        let arrivals = Vec::new();
        Routes { routes, configured, by_event, for_others, replaces_built_in, asks_backend, arrivals }
    }

    /// These, and what happens when somebody enters a namespace.
    pub fn with_arrivals(self, arrivals: Vec<Arrival>) -> Routes {
        // Where nobody joins anything, nothing is to be looked for.
        let is_any = arrivals.iter().any(|arrival| !arrival.join.is_empty());
        Routes { arrivals: if is_any { arrivals } else { Vec::new() }, ..self }
    }

    /// What happens when somebody enters `namespace`, if anything does. Native and plain clients enter `/`.
    pub fn arrival(&self, namespace: &str) -> Option<&Arrival> {
        let found = self.arrivals.iter().find(|arrival| arrival.namespace.matches(namespace));
        found.filter(|arrival| !arrival.join.is_empty())
    }

    /// All of that, from the strongest to the weakest.
    pub fn arrivals(&self) -> impl Iterator<Item = &Arrival> {
        self.arrivals.iter().filter(|arrival| !arrival.join.is_empty())
    }

    /// What there is for `event` in `namespace`, sent by somebody who `is` one of those that a route may be for: the first route with that
    /// name whose pattern matches, or else the first for all others; both are stronger than what is built in. Who has sent native or plain
    /// messages is in namespace `/`. Costs a hash, then a comparison for each route with the name.
    pub fn find(&self, namespace: &str, event: &str, is: impl Fn(&Who) -> bool) -> Found<'_> {
        let (mut by_name, mut is_forbidden) = (false, false);
        let named = self.by_event.get(event).map_or(&[] as &[usize], Vec::as_slice);
        let (configured, built_in) = named.split_at(named.partition_point(|at| *at < self.configured));
        for at in configured.iter().chain(&self.for_others) {
            let route = &self.routes[*at];
            // A route for this event by name keeps those for all others off, even from whom it is not for.
            if by_name && route.on == Route::OTHERS {
                break;
            }
            if route.is_in(namespace) {
                if is(&route.who) {
                    return Found::Route(route);
                }
                is_forbidden = true;
                by_name |= route.on != Route::OTHERS;
            }
        }
        match built_in.first() {
            _ if is_forbidden => Found::Forbidden { by_name },
            Some(at) => Found::Route(&self.routes[*at]),
            None => Found::Nothing,
        }
    }

    /// Those that are not built in, in the order of the configuration.
    pub fn configured(&self) -> &[Route] {
        &self.routes[..self.configured]
    }

    /// True when the backend is asked about an event.
    pub fn asks_backend(&self) -> bool {
        self.asks_backend
    }

    /// True when one of those that are configured is for an event that is built in, where native clients are.
    pub fn replaces_built_in(&self) -> bool {
        self.replaces_built_in
    }

    /// All routes, from the strongest to the weakest.
    pub fn iter(&self) -> impl Iterator<Item = &Route> {
        self.routes.iter()
    }
}

impl Default for Routes {
    fn default() -> Routes {
        Routes::new(Vec::new())
    }
}

/// What one event does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where the route holds; `None` is every namespace, and the native and plain protocols.
    pub namespace: Option<Pattern>,
    /// The event's name, as clients send it, or [`Route::OTHERS`].
    pub on: String,
    /// Whose events it is for.
    pub who: Who,
    /// What it does.
    pub does: Does,
}

impl Route {
    /// What stands in place of a name for all events that no other configured route is for.
    pub const OTHERS: &str = "*";

    /// A route for everybody everywhere.
    pub fn new(on: &str, does: Does) -> Route {
        Route { namespace: None, on: on.to_owned(), who: Who::Anyone, does }
    }

    /// True when the backend is asked about its events.
    pub fn asks_backend(&self) -> bool {
        matches!(&self.does, Does::Steps(steps) if steps.backend)
    }

    fn is_in(&self, namespace: &str) -> bool {
        self.namespace.as_ref().is_none_or(|pattern| pattern.matches(namespace))
    }
}

/// What a route does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Does {
    /// What the client says, who names the rooms.
    BuiltIn(BuiltIn),
    /// What the configuration says.
    Steps(Box<Steps>),
}

impl Does {
    /// Answers with an event of this name and the same arguments.
    pub fn reply(event: &str) -> Does {
        let reply = Saying { event: Some(event.to_owned()), data: Data::Args };
        Does::Steps(Box::new(Steps { reply: Some(reply), ..Steps::default() }))
    }

    /// Acknowledges with the same arguments.
    pub fn ack() -> Does {
        Does::Steps(Box::new(Steps { ack: Some(Data::Args), ..Steps::default() }))
    }

    /// Asks the backend.
    pub fn backend() -> Does {
        Does::Steps(Box::new(Steps { backend: true, ..Steps::default() }))
    }
}

/// What an event does that names its rooms itself. Fields are those of its first argument, an object. Of `room_fields`, the first that is
/// there holds a room's name or a list of names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BuiltIn {
    /// The client joins rooms.
    Join {
        /// Which.
        room_fields: Vec<String>,
    },
    /// The client leaves rooms.
    Leave {
        /// Which.
        room_fields: Vec<String>,
    },
    /// The client publishes an event to rooms.
    Publish {
        /// Which.
        room_fields: Vec<String>,
        /// Holds the name of the event that the members get.
        event_field: String,
        /// Holds the data that they get.
        data_field: String,
    },
    /// The client is told who is in a room.
    Presence {
        /// Which.
        room_fields: Vec<String>,
    },
}

impl BuiltIn {
    /// What they are called, for those who ask for them.
    pub const NAMES: [&str; 4] = ["join", "leave", "publish", "presence"];
    /// The field that holds a published event's name where a route names no other.
    pub const EVENT_FIELD: &str = "event";
    /// The field that holds its data where a route names no other.
    pub const DATA_FIELD: &str = "data";

    /// The fields that may name rooms where a route names no other.
    pub fn room_fields() -> Vec<String> {
        ["room", "rooms"].map(str::to_owned).to_vec()
    }
}

/// The steps of a route, in the order in which they are taken: when one of them is refused, so are those behind it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Steps {
    /// What the event must have.
    pub fields: Vec<Field>,
    /// Why it is refused in any case.
    pub refuse: Option<String>,
    /// The rooms that its client must be in.
    pub member: Vec<Name>,
    /// The rooms that its client joins.
    pub join: Vec<Name>,
    /// The rooms that its client leaves.
    pub leave: Vec<Name>,
    /// What is published, at most [`Steps::PUBLISH_MAX`] events.
    pub publish: Vec<Publish>,
    /// What its client is sent.
    pub reply: Option<Saying>,
    /// What it is acknowledged with, if its client asks for that; without it, with `{}`.
    pub ack: Option<Data>,
    /// True when the backend is asked; then its answer acknowledges it.
    pub backend: bool,
    /// The members of the event that the templates of these steps look at.
    pub paths: Paths,
    /// What else they need. [`Routes::new`] finds out.
    pub needs: Needs,
}

/// What of the server the templates of a route need that is made for each event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// See [`Source::Id`].
    pub id: bool,
    /// See [`Source::Socket`].
    pub socket: bool,
    /// See [`Source::Rooms`].
    pub rooms: bool,
    /// True when a name of a room or user has [`Source::User`]: such an event is for users alone.
    pub user: bool,
}

impl Steps {
    /// The most events that one event may publish.
    pub const PUBLISH_MAX: usize = 8;
    /// The most names in a list, and fields.
    pub const NAMES_MAX: usize = 32;

    /// All names of rooms and users.
    fn names(&self) -> impl Iterator<Item = &Name> {
        fn of_target(target: &Target) -> Option<&Name> {
            match target {
                Target::Room(name) | Target::User(name) => Some(name),
                Target::Everyone => None,
            }
        }
        let of_publish = self
            .publish
            .iter()
            .flat_map(move |publish| publish.to.iter().filter_map(of_target).chain(&publish.except));
        self.member.iter().chain(&self.join).chain(&self.leave).chain(of_publish)
    }

    /// True when one of the templates has `source`.
    fn has(&self, source: Source) -> bool {
        self.names().any(|name| name.has(source))
            || self.publish.iter().any(|publish| publish.saying.data.has(source))
            || self.reply.as_ref().is_some_and(|reply| reply.data.has(source))
            || self.ack.as_ref().is_some_and(|data| data.has(source))
    }

    /// Checks that the event has the fields that it must have.
    ///
    /// # Errors
    /// What is missing or of the wrong kind, in words.
    pub fn check(&self, found: &[Option<&str>]) -> Result<(), Fault> {
        for Field { place, kind, is_optional } in &self.fields {
            let path: &Path = self.paths.at(*place);
            match found[usize::from(*place)] {
                None | Some("null") if *is_optional => {}
                None => return Err(Fault(format!("`{path}` is missing"))),
                Some(json) if kind.is(json) => {}
                Some(_) => return Err(Fault(format!("`{path}` is no {}", kind.word()))),
            }
        }
        Ok(())
    }
}

/// A member that an event must have, or may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its place in the paths of the steps.
    pub place: u8,
    /// What it has to be.
    pub kind: FieldKind,
    /// True when it may be missing, or null.
    pub is_optional: bool,
}

/// What a member of an event may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldKind {
    /// A text.
    String,
    /// A number.
    Number,
    /// True or false.
    Boolean,
    /// An object.
    Object,
    /// A list.
    Array,
    /// Anything.
    Any,
}

impl FieldKind {
    /// The words for them in a configuration, in their order.
    pub const WORDS: [&'static str; 6] = ["string", "number", "boolean", "object", "array", "any"];

    /// The one that `word` stands for.
    pub fn parse(word: &str) -> Option<FieldKind> {
        use FieldKind::{Any, Array, Boolean, Number, Object, String};
        let kinds = [String, Number, Boolean, Object, Array, Any];
        kinds.into_iter().find(|kind| kind.word() == word)
    }

    /// The word for this one.
    pub fn word(self) -> &'static str {
        FieldKind::WORDS[self as usize]
    }

    /// True when this JSON is one.
    pub fn is(self, json: &str) -> bool {
        let first = json.as_bytes().first().copied().unwrap_or_default();
        match self {
            FieldKind::String => first == b'"',
            // What is too large for a double is infinite for JavaScript.
            FieldKind::Number => {
                (first == b'-' || first.is_ascii_digit())
                    && (json.len() < 300 && !json.contains(['e', 'E'])
                        || json.parse::<f64>().is_ok_and(f64::is_finite))
            }
            FieldKind::Boolean => matches!(json, "true" | "false"),
            FieldKind::Object => first == b'{',
            FieldKind::Array => first == b'[',
            FieldKind::Any => true,
        }
    }
}

/// An event that a route publishes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    /// To whom, at least one.
    pub to: Vec<Target>,
    /// The rooms whose members do not get it.
    pub except: Vec<Name>,
    /// What they get.
    pub saying: Saying,
    /// True when the client whose event it was gets it, too.
    pub echo: bool,
    /// True when it is better lost than late.
    pub volatile: bool,
}

/// Who gets what a route publishes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The members of a room.
    Room(Name),
    /// The connections of a user in the namespace.
    User(Name),
    /// All connections in the namespace.
    Everyone,
}

/// An event that a route makes of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saying {
    /// Its name; `None` is that of the other.
    pub event: Option<String>,
    /// Its data.
    pub data: Data,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text).expect("a pattern")
    }

    fn reply(namespace: Option<&str>, on: &str, event: &str) -> Route {
        Route { namespace: namespace.map(pattern), ..Route::new(on, Does::reply(event)) }
    }

    /// The event that answers `on` in `namespace`; for a built-in route, its own name.
    fn found<'r>(routes: &'r Routes, namespace: &str, on: &'r str) -> Option<&'r str> {
        match routes.find(namespace, on, |who| *who == Who::Anyone) {
            Found::Route(Route { does: Does::BuiltIn(_), on, .. }) => Some(on),
            Found::Route(Route { does: Does::Steps(steps), .. }) => {
                Some(steps.reply.as_ref().and_then(|reply| reply.event.as_deref()).unwrap_or("backend"))
            }
            Found::Forbidden { .. } => Some("forbidden"),
            Found::Nothing => None,
        }
    }

    #[test]
    fn four_routes_are_built_in() {
        let routes = Routes::default();
        for name in ["join", "leave", "publish", "presence"] {
            assert_eq!(found(&routes, "/", name), Some(name));
            assert_eq!(found(&routes, "/guild/7", name), Some(name));
        }
        assert_eq!(found(&routes, "/", "message"), None);
        assert_eq!(found(&routes, "/", ""), None);
        assert_eq!(BuiltIn::room_fields(), ["room", "rooms"]);
        assert_eq!(routes.iter().count(), 4);
    }

    #[test]
    fn of_several_for_all_others_the_first_for_its_sender_counts() {
        let only = |event: &str| Route { who: Who::User, ..reply(None, "*", event) };
        let routes = Routes::new(vec![only("users"), reply(None, "*", "all")]);
        assert_eq!(found(&routes, "/", "anything"), Some("all"));
        let routes = Routes::new(vec![only("users")]);
        let find = |name| routes.find("/", name, |who| *who == Who::Anyone);
        assert!(matches!(find("anything"), Found::Forbidden { by_name: false }));
        let named = Route { who: Who::User, ..reply(None, "kick", "kicked") };
        let routes = Routes::new(vec![named, reply(None, "*", "all")]);
        let find = |name| routes.find("/", name, |who| *who == Who::Anyone);
        assert!(matches!(find("kick"), Found::Forbidden { by_name: true }));
        assert!(!routes.replaces_built_in());
        assert!(Routes::new(vec![reply(Some("/"), "publish", "no")]).replaces_built_in());
        assert!(!Routes::new(vec![reply(Some("/a"), "publish", "no")]).replaces_built_in());
    }

    #[test]
    fn numbers_are_those_that_javascript_has() {
        for (json, is) in
            [("1", true), ("-0.5e3", true), ("1e400", false), ("-1E999", false), ("\"1\"", false)]
        {
            assert_eq!(FieldKind::Number.is(json), is, "{json}");
        }
        assert!(!FieldKind::Number.is(&"9".repeat(400)));
    }

    #[test]
    fn the_first_route_whose_pattern_matches_counts() {
        let routes = Routes::new(vec![
            reply(Some("/a"), "message", "one"),
            reply(None, "other", "two"),
            reply(Some("/*"), "message", "three"),
            reply(None, "message", "four"),
            reply(Some("/a"), "message", "never"),
        ]);
        for (namespace, answer) in [("/a", "one"), ("/b", "three"), ("/", "four"), ("/a/b", "four")] {
            assert_eq!(found(&routes, namespace, "message"), Some(answer), "{namespace}");
        }
    }

    #[test]
    fn a_built_in_route_stays_where_none_is_configured() {
        let routes = Routes::new(vec![reply(Some("/a"), "join", "no"), reply(None, "leave", "never")]);
        assert_eq!(found(&routes, "/a", "join"), Some("no"));
        assert_eq!(found(&routes, "/", "join"), Some("join"));
        assert_eq!(found(&routes, "/", "leave"), Some("never"));
        assert_eq!(found(&routes, "/a", "publish"), Some("publish"));
        let order: Vec<&str> = routes.iter().map(|route| route.on.as_str()).collect();
        assert_eq!(
            order,
            ["join", "leave", "join", "publish", "presence"],
            "what can never count is left out"
        );
    }

    #[test]
    fn a_route_for_all_others_is_weaker_than_those_for_one_event_and_stronger_than_what_is_built_in() {
        let others = Route { namespace: Some(pattern("/a")), ..Route::new(Route::OTHERS, Does::backend()) };
        let routes = Routes::new(vec![others, reply(None, "hello", "welcome")]);
        for (namespace, on, does) in [
            ("/a", "hello", Some("welcome")),
            ("/a", "anything", Some("backend")),
            ("/a", "*", Some("backend")),
            ("/a", "join", Some("backend")),
            ("/", "join", Some("join")),
            ("/", "anything", None),
        ] {
            assert_eq!(found(&routes, namespace, on), does, "{on} in {namespace}");
        }
    }

    #[test]
    fn who_a_route_is_not_for_gets_the_next_or_nothing() {
        let admins =
            |on: &str, event: &str| Route { who: Who::Role("admin".into()), ..reply(None, on, event) };
        let routes = Routes::new(vec![
            admins("hello", "sir"),
            reply(None, "hello", "you"),
            admins("join", "no"),
            reply(None, "*", "others"),
        ]);
        for (on, does) in
            [("hello", "you"), ("join", "forbidden"), ("leave", "others"), ("anything", "others")]
        {
            assert_eq!(found(&routes, "/", on), Some(does), "{on}");
        }
    }

    #[test]
    fn fields_are_checked_by_their_kind() {
        let mut paths = Paths::default();
        let mut field = |text: &str, kind, is_optional| Field {
            place: paths.place(Path::parse(text).expect("a path")).expect("a place"),
            kind,
            is_optional,
        };
        let fields = vec![
            field("amount", FieldKind::Number, false),
            field("by.name", FieldKind::String, true),
            field("tags", FieldKind::Array, true),
        ];
        let steps = Steps { fields, paths, ..Steps::default() };
        let check = |args: &str| steps.check(&steps.paths.find(args)).map_err(|Fault(words)| words);
        for good in [r#"{"amount":1}"#, r#"{"amount":-0.5,"by":{"name":"x"},"tags":null}"#] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for (bad, fault) in [
            ("{}", "`amount` is missing"),
            (r#"{"amount":null}"#, "`amount` is no number"),
            (r#"{"amount":"1"}"#, "`amount` is no number"),
            (r#"{"amount":1,"by":{"name":[]}}"#, "`by.name` is no string"),
            (r#"{"amount":1,"tags":{}}"#, "`tags` is no array"),
        ] {
            assert_eq!(check(bad), Err(fault.to_owned()), "{bad}");
        }
    }
}
