//! What the steps of a route need of an event, checked, and the rooms and users that its templates stand for: the same for a shard that
//! takes the steps as for who tries them out.

use super::native::{Code, Names, Refusal, check_targets, name_fault};
use crate::message::user_key;
use crate::routes::template::{Fault, Name, Paths, Values};
use crate::routes::{Publish, Steps, Target};
use smallvec::SmallVec;
use std::borrow::Cow;

/// How many rooms an event may name, and how long the name of each may be.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bounds {
    /// As many as a connection may be in.
    pub rooms_max: usize,
    /// In bytes.
    pub room_name_bytes_max: usize,
}

/// Whom an event that is published goes to. Rooms go by their names within the namespace: that of all who are in it is empty, and that of
/// a user's own room is the [key](user_key) of the user.
#[derive(Debug)]
pub struct Targets<'n> {
    /// The rooms whose members get it; none where a list in the event has none.
    pub rooms: Names<'n>,
    /// Those whose members do not get it.
    pub except: Names<'n>,
    /// True when native clients get it for being there.
    pub natives: bool,
}

impl<'n> Targets<'n> {
    /// Whom `publish` means with these values, `paths` being those of its route.
    ///
    /// # Errors
    /// As [`fill`], and when one of the rooms is one that only the server publishes to.
    pub fn of(
        publish: &'n Publish,
        values: &Values<'_>,
        paths: &Paths,
        bounds: Bounds,
    ) -> Result<Targets<'n>, Refusal<'static>> {
        let mut rooms = Names::new();
        let mut natives = false;
        for target in &publish.to {
            let mut names = SmallVec::new();
            match target {
                Target::Room(name) => {
                    fill(name, values, paths, bounds, &mut names)?;
                    check_targets(&names)?;
                    rooms.extend(names);
                }
                Target::User(name) => {
                    name.fill(values, paths, bounds.rooms_max, &mut names).map_err(bad_room)?;
                    rooms.extend(names.iter().map(|name| Cow::Owned(user_key(name))));
                }
                Target::Everyone => {
                    rooms.push(Cow::Borrowed(""));
                    natives |= values.namespace == "/";
                }
            }
        }
        let mut except = SmallVec::new();
        for name in &publish.except {
            fill(name, values, paths, bounds, &mut except)?;
        }
        Ok(Targets { rooms, except: except.into_iter().collect(), natives })
    }
}

/// Finds what the templates of a route look at in the arguments of an event, which it has to be for.
///
/// # Errors
/// When the event is refused before any step is taken.
pub fn find<'a>(
    steps: &Steps,
    args: &'a str,
    is_user: impl FnOnce() -> bool,
) -> Result<SmallVec<[Option<&'a str>; 8]>, Refusal<'static>> {
    if let Some(reason) = &steps.refuse {
        return Err(Refusal::new(Code::Forbidden, reason.clone()));
    }
    if steps.needs.user && !is_user() {
        return Err(Refusal::new(Code::Forbidden, "only users may do this"));
    }
    let found = steps.paths.find(args);
    steps.check(&found).map_err(|Fault(message)| Refusal::new(Code::BadMessage, message))?;
    Ok(found)
}

/// Adds the names that a template stands for to `names`. One that is the same for every event is the
/// configuration's own, and stands as it is.
///
/// # Errors
/// When a place can't be filled, there are too many names, or one of them is none of a room.
pub fn fill<'n>(
    name: &'n Name,
    values: &Values<'_>,
    paths: &Paths,
    bounds: Bounds,
    names: &mut SmallVec<[Cow<'n, str>; 4]>,
) -> Result<(), Refusal<'static>> {
    let before = names.len();
    name.fill(values, paths, bounds.rooms_max, names).map_err(bad_room)?;
    if name.is_static() {
        return Ok(());
    }
    match names[before..].iter().find_map(|name| name_fault(name, bounds.room_name_bytes_max)) {
        Some(fault) => Err(Refusal::new(Code::BadRoom, format!("a room name {fault}"))),
        None => Ok(()),
    }
}

fn bad_room(Fault(message): Fault) -> Refusal<'static> {
    Refusal::new(Code::BadRoom, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routes::Saying;
    use crate::routes::template::Data;

    const ARGS: &str = r#"{"to":["a","b"],"none":[],"ann":"ann","long":"abcdefghij"}"#;

    /// Whom an event with [`ARGS`] goes to, published to these targets but not to these rooms.
    fn check(to: &[(&str, &str)], except: &[&str], expected: Result<(&[&str], &[&str], bool), &str>) {
        let mut paths = Paths::default();
        let mut name = |template: &str| Name::parse(template, &mut paths).expect("a template");
        let target = |(kind, template): &(&str, &str)| match *kind {
            "room" => Target::Room(name(template)),
            "user" => Target::User(name(template)),
            _ => Target::Everyone,
        };
        let to = to.iter().map(target).collect();
        let except = except.iter().map(|template| name(template)).collect();
        let saying = Saying { event: None, data: Data::Args };
        let publish = Publish { to, except, saying, echo: false, volatile: false };
        let found = paths.find(ARGS);
        let values = Values {
            found: &found,
            args: ARGS,
            event: "e",
            namespace: "/",
            user: None,
            now_ms: 0,
            id: "",
            socket: "",
            rooms: "",
        };
        let bounds = Bounds { rooms_max: 2, room_name_bytes_max: 8 };
        let targets = Targets::of(&publish, &values, &paths, bounds);
        let targets = targets.as_ref().map(|it| (&*it.rooms, &*it.except, it.natives));
        let plain =
            |names: &[&str]| names.iter().map(|name| Cow::Owned((*name).to_owned())).collect::<Vec<_>>();
        let expected = expected.map(|(rooms, except, natives)| (plain(rooms), plain(except), natives));
        match (targets, expected) {
            (Ok((rooms, except, natives)), Ok(expected)) => {
                assert_eq!((rooms.to_vec(), except.to_vec(), natives), expected);
            }
            (Err(refusal), Err(why)) => assert_eq!(refusal.message, why),
            (targets, expected) => panic!("{targets:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn all_whom_an_event_goes_to_have_a_room() {
        check(&[("room", "{to}"), ("room", "c")], &["{none}", "d"], Ok((&["a", "b", "c"], &["d"], false)));
        check(&[("user", "{ann}"), ("everyone", "")], &[], Ok((&["\u{1}ann", ""], &[], true)));
        check(&[("room", "{none}")], &["{to}"], Ok((&[], &["a", "b"], false)));
        // How long a name of a room may be says nothing of users.
        check(&[("user", "{long}")], &[], Ok((&["\u{1}abcdefghij"], &[], false)));
        let long = "a room name has 10 bytes; at most 8 are allowed";
        check(&[("room", "{long}")], &[], Err(long));
        check(&[("room", "a")], &["{long}"], Err(long));
        check(&[("room", "throng:x")], &[], Err("only the server publishes to throng:x"));
        check(&[("room", "a")], &["{to}", "{to}"], Err("`to` names more than 2 rooms"));
    }
}
