//! What clients may do with rooms: the rules of a configuration, and what a token grants to its user.

use crate::rules::Pattern;
use std::fmt::{self, Display};

/// The rules of a configuration. What one of them allows is allowed; without any, everything is, unless a token says otherwise.
#[derive(Clone, Debug, Default)]
pub struct Permissions {
    rules: Vec<Permission>,
    /// True exactly when one of them is about rooms.
    about_rooms: bool,
    /// True exactly when one of them is about namespaces.
    about_namespaces: bool,
}

impl Permissions {
    /// The most rules that a configuration may have: each may cost a comparison at a join.
    pub const RULES_MAX: usize = 500;

    /// These rules.
    pub fn new(rules: Vec<Permission>) -> Permissions {
        let any = |is_about: fn(Acts) -> bool| rules.iter().any(|rule| is_about(rule.grant.acts));
        let (about_rooms, about_namespaces) = (any(Acts::has_rooms), any(|acts| acts.has(Act::Connect)));
        Permissions { rules, about_rooms, about_namespaces }
    }

    /// True when there are no rules.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// True when `actor` may be in `namespace`. Whoever may, unless one of the rules lets somebody into that one, or its own grants let it
    /// into some: then one of them has to let it in.
    pub fn admit(&self, actor: &Actor<'_>, namespace: &str) -> bool {
        if !self.about_namespaces && actor.grants.is_none() {
            return true;
        }
        let mut of_rules = self.rules.iter().filter(|rule| rule.grant.admits(namespace)).peekable();
        let mut of_token =
            actor.grants.into_iter().flatten().filter(|grant| grant.acts.has(Act::Connect)).peekable();
        (of_rules.peek().is_none() && of_token.peek().is_none())
            || of_rules.any(|rule| rule.who.is(actor))
            || of_token.any(|grant| grant.admits(namespace))
    }

    /// True when `actor` may `act` on `room` of `namespace`: by one of the rules, or by one of its own grants. A client whose
    /// token grants something, if only nothing, is held to that where no rules are about rooms. Costs a comparison for each rule, and
    /// makes no text.
    pub fn allow(&self, actor: &Actor<'_>, namespace: &str, room: &str, act: Act) -> bool {
        if !self.about_rooms && actor.grants.is_none() {
            return true;
        }
        let by_rule = |rule: &Permission| {
            rule.who.is(actor) && rule.grant.covers(namespace, room, act, actor.name.unwrap_or_default())
        };
        let by_token = |grant: &Grant| grant.covers(namespace, room, act, actor.name.unwrap_or_default());
        self.rules.iter().any(by_rule) || actor.grants.is_some_and(|grants| grants.iter().any(by_token))
    }

    /// All rules, in the order of the configuration.
    pub fn iter(&self) -> impl Iterator<Item = &Permission> {
        self.rules.iter()
    }
}

/// Who wants something.
#[derive(Clone, Copy, Debug, Default)]
pub struct Actor<'a> {
    /// The user's name; `None` for somebody whom nobody vouches for.
    pub name: Option<&'a str>,
    /// What its token calls it.
    pub roles: &'a [Box<str>],
    /// What its token grants; `None` when that does not speak of permissions.
    pub grants: Option<&'a [Grant]>,
}

/// A rule of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permission {
    /// Whom it is for.
    pub who: Who,
    /// What it allows.
    pub grant: Grant,
}

/// Whom a rule is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// Everybody.
    Anyone,
    /// Whoever has a user's name.
    User,
    /// Users whose token gives them this role.
    Role(Box<str>),
}

impl Who {
    /// Reads `anyone`, `user` or `role:NAME`.
    pub fn parse(text: &str) -> Option<Who> {
        match text {
            "anyone" => Some(Who::Anyone),
            "user" => Some(Who::User),
            _ => {
                text.strip_prefix("role:").filter(|role| !role.is_empty()).map(|role| Who::Role(role.into()))
            }
        }
    }

    /// True when `actor` is meant.
    pub fn is(&self, actor: &Actor<'_>) -> bool {
        match self {
            Who::Anyone => true,
            Who::User => actor.name.is_some(),
            Who::Role(role) => actor.roles.contains(role),
        }
    }
}

/// Acts on rooms that are allowed, and namespaces that may be joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// In which namespaces; `None` for all.
    pub namespace: Option<Pattern>,
    /// On which rooms; for [`Act::Connect`] it does not matter.
    pub rooms: RoomPattern,
    /// Which.
    pub acts: Acts,
}

impl Grant {
    /// Reads the short form: acts with commas between them, or `*`, then a colon and the rooms, as in `join,publish:auction:*`. It has no
    /// place for a namespace.
    pub fn parse(text: &str) -> Option<Grant> {
        let (acts, rooms) = text.split_once(':')?;
        let acts = if acts == "*" { Acts::OF_ROOMS } else { Acts::parse(acts.split(','))? };
        (!acts.has(Act::Connect)).then_some(Grant {
            namespace: None,
            rooms: RoomPattern::parse(rooms)?,
            acts,
        })
    }

    /// Reads the long form. Rooms have to be named but where `acts` are about none.
    pub fn new(namespace: Option<Pattern>, rooms: Option<RoomPattern>, acts: Acts) -> Option<Grant> {
        let rooms =
            if acts.has_rooms() { rooms } else { RoomPattern::parse("*").filter(|_| rooms.is_none()) };
        Some(Grant { namespace, rooms: rooms?, acts })
    }

    fn admits(&self, namespace: &str) -> bool {
        self.acts.has(Act::Connect)
            && self.namespace.as_ref().is_none_or(|pattern| pattern.matches(namespace))
    }

    fn covers(&self, namespace: &str, room: &str, act: Act, user: &str) -> bool {
        self.acts.has(act)
            && self.namespace.as_ref().is_none_or(|pattern| pattern.matches(namespace))
            && self.rooms.matches(room, user)
    }
}

/// What one may do with a room, or a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Act {
    /// To be a member.
    Join = 1,
    /// To publish to its members.
    Publish = 2,
    /// To see who is in it.
    Presence = 4,
    /// To be in the namespace.
    Connect = 8,
}

impl Act {
    /// All of them, as they are written.
    pub const WORDS: [(&'static str, Act); 4] = [
        ("join", Act::Join),
        ("publish", Act::Publish),
        ("presence", Act::Presence),
        ("connect", Act::Connect),
    ];
}

/// Some acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acts(u8);

impl Acts {
    /// All that can be done with rooms.
    pub const OF_ROOMS: Acts = Acts(7);

    /// Reads the words of acts, at least one.
    pub fn parse<'a>(words: impl IntoIterator<Item = &'a str>) -> Option<Acts> {
        let mut acts = 0;
        for word in words {
            acts |= Act::WORDS.iter().find(|(known, _)| *known == word)?.1 as u8;
        }
        (acts != 0).then_some(Acts(acts))
    }

    /// True when one of them is about rooms.
    pub fn has_rooms(self) -> bool {
        self.0 & Acts::OF_ROOMS.0 != 0
    }

    /// True when `act` is one of them.
    pub fn has(self, act: Act) -> bool {
        self.0 & act as u8 != 0
    }
}

impl Display for Acts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<&str> =
            Act::WORDS.iter().filter(|(_, act)| self.has(*act)).map(|(word, _)| *word).collect();
        f.write_str(&words.join(", "))
    }
}

/// Names of rooms, in which `*` stands for any letters, or none, and `{user}` for the name of the user who asks. Displayed, it is as
/// it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoomPattern {
    text: Box<str>,
    /// Between them stand the stars: one piece for a pattern without.
    pieces: Box<[Piece]>,
}

/// What stands between two stars: a text, and the user's name and another text behind it, if it has that.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Piece {
    before: Box<str>,
    after_user: Option<Box<str>>,
}

const USER: &str = "{user}";

impl RoomPattern {
    /// The longest pattern, in bytes.
    pub const BYTES_MAX: usize = 200;
    /// The most stars in one.
    const STARS_MAX: usize = 4;

    /// Reads a pattern: `auction:*`, `user:{user}`, `*`. `None` if it is empty, too long, has more than four stars, `{user}` twice
    /// between two stars, or a control character.
    pub fn parse(text: &str) -> Option<RoomPattern> {
        let is_right = (1..=RoomPattern::BYTES_MAX).contains(&text.len()) && !text.contains(char::is_control);
        let pieces: Vec<Piece> = text.split('*').map(Piece::parse).collect::<Option<_>>()?;
        (is_right && pieces.len() <= RoomPattern::STARS_MAX + 1)
            .then(|| RoomPattern { text: text.into(), pieces: pieces.into() })
    }

    /// True when the room called `room` is one of those meant, `user` being who asks; empty for nobody, who has no rooms of a user.
    pub fn matches(&self, room: &str, user: &str) -> bool {
        let (Some((first, others)), true) =
            (self.pieces.split_first(), !user.is_empty() || !self.pieces.iter().any(Piece::has_user))
        else {
            return false;
        };
        let Some(mut rest) = first.strip_from(room, user) else { return false };
        let Some((last, between)) = others.split_last() else { return rest.is_empty() };
        // The first place where a piece stands leaves the most to those behind it.
        for piece in between {
            match piece.find_in(rest, user) {
                Some(behind) => rest = behind,
                None => return false,
            }
        }
        last.ends(rest, user)
    }
}

impl Piece {
    fn parse(text: &str) -> Option<Piece> {
        match text.split_once(USER) {
            Some((_, after)) if after.contains(USER) => None,
            Some((before, after)) => Some(Piece { before: before.into(), after_user: Some(after.into()) }),
            None => Some(Piece { before: text.into(), after_user: None }),
        }
    }

    fn has_user(&self) -> bool {
        self.after_user.is_some()
    }

    /// What stands in `text` behind this piece, which it begins with.
    fn strip_from<'t>(&self, text: &'t str, user: &str) -> Option<&'t str> {
        let rest = text.strip_prefix(&*self.before)?;
        match &self.after_user {
            Some(after) => rest.strip_prefix(user)?.strip_prefix(&**after),
            None => Some(rest),
        }
    }

    /// What stands in `text` behind this piece, which is somewhere in it.
    fn find_in<'t>(&self, text: &'t str, user: &str) -> Option<&'t str> {
        let first_bytes = if self.before.is_empty() && self.has_user() { user } else { &*self.before };
        text.match_indices(first_bytes).find_map(|(at, _)| self.strip_from(&text[at..], user))
    }

    fn ends(&self, text: &str, user: &str) -> bool {
        let length = self.before.len() + self.after_user.as_ref().map_or(0, |after| user.len() + after.len());
        let start = text.len().checked_sub(length).filter(|start| text.is_char_boundary(*start));
        start.is_some_and(|start| self.strip_from(&text[start..], user) == Some(""))
    }
}

impl Display for RoomPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rooms(text: &str) -> RoomPattern {
        RoomPattern::parse(text).expect("a pattern")
    }

    #[test]
    fn a_pattern_means_rooms() {
        for (pattern, user, yes, no) in [
            ("a", "", &["a"][..], &["", "ab", "ba", "*"][..]),
            ("*", "", &["", "a", "漢字"], &[]),
            ("auction:*", "", &["auction:", "auction:7", "auction:*"], &["auction", "xauction:7"]),
            ("*:log", "", &[":log", "a:log", "a:log:log"], &["log", "a:log:b", "é"]),
            ("a*b*c", "", &["abc", "axbyc", "abbcc", "abcbc"], &["ac", "acb", "abcd"]),
            ("user:{user}", "7", &["user:7"], &["user:", "user:77", "user:{user}", "user:*"]),
            ("user:{user}:*", "7", &["user:7:", "user:7:a"], &["user:7", "user:77:a"]),
            ("*/{user}/*", "7", &["a/7/b", "//7//", "a/77/7/b"], &["a/77/b", "7"]),
            ("{user}*{user}", "ab", &["abab", "abxab"], &["ab", "aba"]),
            ("user:{user}", "*", &["user:*"], &["user:7"]),
            ("user:{user}", "", &[], &["user:", "user:7"]),
            ("é*é", "", &["éé"], &["é", "éè"]),
        ] {
            for name in yes {
                assert!(rooms(pattern).matches(name, user), "{pattern} means {name}");
            }
            for name in no {
                assert!(!rooms(pattern).matches(name, user), "{pattern} does not mean {name}");
            }
        }
        for wrong in ["", "a\nb", "*****", "{user}{user}", &"a".repeat(201)] {
            assert_eq!(RoomPattern::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn it_agrees_with_a_plain_matcher() {
        /// As the definition says it, in exponential time.
        fn plain(pattern: &str, room: &str, user: &str) -> bool {
            match pattern.chars().next() {
                None => room.is_empty(),
                Some('*') => {
                    let rest = &pattern[1..];
                    room.char_indices().any(|(at, _)| plain(rest, &room[at..], user)) || plain(rest, "", user)
                }
                Some('{') => room.strip_prefix(user).is_some_and(|room| plain(&pattern[6..], room, user)),
                Some(letter) => room
                    .strip_prefix(letter)
                    .is_some_and(|room| plain(&pattern[letter.len_utf8()..], room, user)),
            }
        }
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut draw = |of: &[&str], most: u64| -> String {
            let mut next = || {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random
            };
            (0..next() % most).map(|_| of[next() as usize % of.len()]).collect()
        };
        let mut tried = 0;
        for _ in 0..100_000 {
            let pattern = draw(&["a", "b", "é", "*", "{user}"], 8);
            let (room, user) = (draw(&["a", "b", "é"], 8), draw(&["a", "b"], 3) + "a");
            if let Some(compiled) = RoomPattern::parse(&pattern) {
                tried += 1;
                assert_eq!(
                    compiled.matches(&room, &user),
                    plain(&pattern, &room, &user),
                    "{pattern} {room} {user}"
                );
            }
        }
        assert!(tried > 50_000, "most patterns are right");
    }

    #[test]
    fn what_a_rule_or_the_token_allows_is_allowed() {
        let rule = |who: &str, namespace: Option<&str>, grant: &str| {
            let grant = Grant {
                namespace: namespace.map(|text| Pattern::parse(text).expect("a pattern")),
                ..Grant::parse(grant).expect("a grant")
            };
            Permission { who: Who::parse(who).expect("somebody"), grant }
        };
        let none = Permissions::default();
        let some = Permissions::new(vec![
            rule("anyone", None, "join:lobby"),
            rule("user", Some("/"), "*:user:{user}"),
            rule("role:admin", Some("/guild/*"), "join,presence:*"),
        ]);
        let nobody = Actor::default();
        let user = Actor { name: Some("7"), ..nobody };
        let admin = Actor { roles: &["admin".into()], ..user };
        let grants = [Grant::parse("publish:news:*").expect("a grant")];
        let granted = Actor { grants: Some(&grants), ..user };
        assert!(none.allow(&nobody, "/", "a", Act::Publish) && none.allow(&user, "/x", "a", Act::Join));
        assert!(none.allow(&granted, "/", "news:1", Act::Publish), "by its token");
        assert!(!none.allow(&granted, "/", "a", Act::Publish), "its token says what it may");
        assert!(
            !none.allow(&Actor { grants: Some(&[]), ..user }, "/", "a", Act::Join),
            "which may be nothing"
        );
        assert!(
            some.allow(&nobody, "/", "lobby", Act::Join) && some.allow(&nobody, "/x", "lobby", Act::Join)
        );
        assert!(!some.allow(&nobody, "/", "lobby", Act::Publish));
        assert!(
            some.allow(&user, "/", "user:7", Act::Presence) && !some.allow(&user, "/x", "user:7", Act::Join)
        );
        assert!(!some.allow(&nobody, "/", "user:", Act::Join), "nobody has no room of a user");
        assert!(
            some.allow(&admin, "/guild/1", "a", Act::Join)
                && !some.allow(&admin, "/guild/1", "a", Act::Publish)
        );
        assert!(
            some.allow(&granted, "/", "news:1", Act::Publish)
                && some.allow(&granted, "/", "lobby", Act::Join)
        );
        for wrong in ["join", "fly:a", ":a", "join,:a", "join:", "join *", "connect:a", "join,connect:*"] {
            assert_eq!(Grant::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn who_may_be_in_a_namespace_is_said_of_that_one_alone() {
        let connect = |namespace: &str| {
            let acts = Acts::parse(["connect"]).expect("an act");
            Grant::new(Pattern::parse(namespace), None, acts).expect("a grant")
        };
        let rule = |who: &str, grant: Grant| Permission { who: Who::parse(who).expect("somebody"), grant };
        let rules =
            Permissions::new(vec![rule("role:staff", connect("/staff/*")), rule("user", connect("/club"))]);
        let nobody = Actor::default();
        let user = Actor { name: Some("7"), ..nobody };
        let staff = Actor { roles: &["staff".into()], ..user };
        let may = |actor: &Actor<'_>| ["/", "/club", "/staff/1"].map(|name| rules.admit(actor, name));
        assert_eq!(may(&nobody), [true, false, false]);
        assert_eq!(may(&user), [true, true, false]);
        assert_eq!(may(&staff), [true; 3]);
        assert_eq!(may(&Actor { grants: Some(&[connect("/staff/*")]), ..user }), [false, true, true]);
        let of_rooms = [Grant::parse("*:a").expect("a grant")];
        assert_eq!(
            may(&Actor { grants: Some(&of_rooms), ..user }),
            [true, true, false],
            "it says nothing of them"
        );
        assert!(rules.allow(&nobody, "/", "a", Act::Join), "nor do the rules of rooms");
        assert!(Permissions::default().admit(&nobody, "/") && Permissions::default().admit(&user, "/x"));
        let join = Acts::parse(["join"]).expect("an act");
        assert_eq!(Grant::new(None, None, join), None);
        assert_eq!(Grant::new(None, RoomPattern::parse("a"), connect("/").acts), None, "rooms of no use");
    }
}
