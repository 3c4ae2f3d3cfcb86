//! The rooms that clients join by entering a namespace, as a configuration says it.

use super::template::{Fault, Name, Paths, Source, Values};
use crate::rules::Pattern;
use smallvec::SmallVec;
use std::borrow::Cow;

/// What the members are called that these templates may name: segments of the namespace, and roles.
const PATH: &str = "path";
const ROLE: &str = "role";

/// The rooms that clients join who enter one of some namespaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Which namespaces.
    pub namespace: Pattern,
    /// As they were written.
    pub join: Vec<Name>,
    /// For each of `join`, true when there is such a room for users alone.
    of_user: Vec<bool>,
    paths: Paths,
}

/// Who enters.
#[derive(Clone, Copy, Debug)]
pub struct Entrant<'a> {
    /// The namespace's name.
    pub namespace: &'a str,
    /// The user's name; `None` for nobody.
    pub user: Option<&'a str>,
    /// The user's roles.
    pub roles: &'a [Box<str>],
    /// The id by which others know the client there.
    pub socket: &'a str,
}

impl Arrival {
    /// Whoever enters one of these namespaces joins the rooms of these templates.
    ///
    /// # Errors
    /// What is wrong with them, in words.
    pub fn new(namespace: Pattern, templates: &[String]) -> Result<Arrival, String> {
        let mut paths = Paths::default();
        let join: Vec<Name> =
            templates.iter().map(|text| Name::parse(text, &mut paths)).collect::<Result<_, _>>()?;
        let pattern = namespace.to_string();
        let segments: Vec<&str> = segments(&pattern).collect();
        for path in paths.iter() {
            let is_segment = |at: &str| {
                at.parse::<usize>().is_ok_and(|at| segments.get(at).is_some_and(|it| !it.is_empty()))
            };
            match path.keys().collect::<Vec<_>>().as_slice() {
                [ROLE] => {}
                [PATH, at] if is_segment(at) => {}
                [PATH, _] => {
                    return Err(format!(
                        "{{{path}}}: {pattern} has no such segment; the first is {{path.0}}"
                    ));
                }
                _ => {
                    return Err(format!(
                        "{{{path}}} is nothing that is known of who enters: there are {{user}}, {{role}}, {{socket}}, {{namespace}} and {{path.0}}"
                    ));
                }
            }
        }
        for (source, word) in [(Source::NowMs, "now_ms"), (Source::Id, "id"), (Source::Event, "event")] {
            if join.iter().any(|name| name.has(source)) {
                return Err(format!("{{{word}}} is of events, and nobody has sent one"));
            }
        }
        let is_of_user = |name: &Name| {
            name.has(Source::User)
                || (0..).zip(paths.iter()).any(|(at, path)| path.name() == ROLE && name.has(Source::Path(at)))
        };
        let of_user = join.iter().map(is_of_user).collect();
        Ok(Arrival { namespace, join, of_user, paths })
    }

    /// The rooms that this client joins, at most `most`; `again` when it was there before and is a user only now: then those that there are for
    /// users alone. Without a user there are none of these.
    ///
    /// # Errors
    /// When one of them cannot be called so.
    pub fn rooms(
        &self,
        entrant: &Entrant<'_>,
        again: bool,
        most: usize,
    ) -> Result<SmallVec<[Cow<'_, str>; 4]>, Fault> {
        let path: serde_json::Map<_, _> = (0..)
            .zip(segments(entrant.namespace))
            .map(|(at, segment): (usize, _)| (at.to_string(), segment.into()))
            .collect();
        let known = serde_json::json!({ PATH: path, ROLE: entrant.roles }).to_string();
        let found = self.paths.find(&known);
        let values = Values {
            found: &found,
            args: &known,
            event: "",
            namespace: entrant.namespace,
            user: entrant.user,
            now_ms: 0,
            id: "",
            socket: entrant.socket,
            rooms: "",
        };
        let mut rooms = SmallVec::new();
        for (name, of_user) in self.join.iter().zip(&self.of_user) {
            if if *of_user { entrant.user.is_some() } else { !again } {
                name.fill(&values, &self.paths, most, &mut rooms)?;
            }
        }
        Ok(rooms)
    }
}

/// The segments of a namespace's name, or of a pattern.
fn segments(namespace: &str) -> impl Iterator<Item = &str> {
    namespace.split('/').skip(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrival(namespace: &str, templates: &[&str]) -> Result<Arrival, String> {
        let templates: Vec<String> = templates.iter().map(|text| (*text).to_owned()).collect();
        Arrival::new(Pattern::parse(namespace).expect("a pattern"), &templates)
    }

    #[test]
    fn rooms_are_named_by_what_is_known_of_who_enters() {
        let arrival = arrival(
            "/guild/*",
            &["hall", "guild:{path.1}", "user:{user}", "{path.0}:{role}", "own:{socket}"],
        );
        let arrival = arrival.expect("right templates");
        let nobody = Entrant { namespace: "/guild/7", user: None, roles: &[], socket: "s" };
        let roles = ["admin".into(), "dj".into()];
        let ann = Entrant { user: Some("ann"), roles: &roles, ..nobody };
        let rooms = |entrant, again| arrival.rooms(entrant, again, 10).expect("names").join(" ");
        assert_eq!(rooms(&nobody, false), "hall guild:7 own:s");
        assert_eq!(rooms(&nobody, true), "");
        assert_eq!(rooms(&ann, false), "hall guild:7 user:ann guild:admin guild:dj own:s");
        assert_eq!(rooms(&ann, true), "user:ann guild:admin guild:dj");
        let strange = Entrant { namespace: "/guild/a b", ..nobody };
        assert!(arrival.rooms(&strange, false, 10).is_err(), "a client chooses the segment");
        assert!(arrival.rooms(&ann, false, 3).is_err(), "a list names as many as it may");
    }

    #[test]
    fn templates_name_nothing_else() {
        for (namespace, template, says) in [
            ("/guild/*", "x:{path.2}", "no such segment"),
            ("/", "x:{path.0}", "no such segment"),
            ("/a", "x:{path}", "nothing that is known"),
            ("/a", "x:{channelId}", "nothing that is known"),
            ("/a", "x:{role.a}", "nothing that is known"),
            ("/a", "x:{args.1}", "nothing that is known"),
            ("/a", "x:{now_ms}", "of events"),
            ("/a", "x:{id}", "of events"),
            ("/a", "x:{event}", "of events"),
            ("/a", "x:{rooms}", "list of names"),
            ("/a", "", "empty"),
        ] {
            let error = arrival(namespace, &[template]).expect_err(template);
            assert!(error.contains(says), "{template}: {error}");
        }
        assert!(arrival("/", &["all"]).is_ok());
    }
}
