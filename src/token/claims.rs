//! What a token says of its bearer: the claims, read in one pass, and what they make of a connection. The backend's answers say the same by
//! nearly the same names.

use super::{Settings, Text};
use crate::auth::{Granted, Room, User, Vouched};
use crate::dialect::native::name_fault;
use crate::message::TokenFault;
use crate::permissions::{Acts, Grant, RoomPattern};
use crate::rules::Pattern;
use crate::wire::close::REASON_BYTES_MAX;
use compact_str::CompactString;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use std::borrow::Cow;
use std::fmt;

/// The longest name of a user or a role, in bytes.
pub const NAME_BYTES_MAX: usize = 200;
/// The longest name of a namespace, in bytes.
const NAMESPACE_BYTES_MAX: usize = 200;
/// The most permissions, and the most roles, of one token.
pub const GRANTS_MAX: usize = 64;

/// What the backend says of a client that it was asked about.
#[derive(Debug)]
pub enum Said {
    /// Who it is, and what it may do.
    User(Vouched),
    /// That it may come in as nobody.
    Nobody,
    /// That it may not come in, and perhaps why: at most [`REASON_BYTES_MAX`] bytes.
    Refused(Option<CompactString>),
}

/// The claims that matter here, as they were written.
#[derive(Debug, Default)]
pub(super) struct Claims<'a> {
    /// `exp`, in seconds from 1970.
    pub(super) expires_s: Option<f64>,
    /// `nbf`, likewise.
    pub(super) begins_s: Option<f64>,
    /// `iss`.
    pub(super) issuer: Option<Text<'a>>,
    /// `aud`.
    pub(super) audience: Option<Audience>,
    user: Option<UserName<'a>>,
    rooms: Option<Vec<RoomClaim<'a>>>,
    permissions: Option<Vec<GrantClaim>>,
    roles: Option<Vec<Box<str>>>,
    limits: Option<LimitsClaim>,
    /// In answers: that the user's name is there, if only as `null`; for how long it is vouched for; why the client is refused.
    names_user: bool,
    expires_in_s: Option<f64>,
    refuse: Option<Text<'a>>,
}

/// Some applications number their users.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum UserName<'a> {
    Text(#[serde(borrow)] Cow<'a, str>),
    Number(u64),
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum GrantClaim {
    /// As in `join,publish:auction:*`.
    Short(String),
    Long {
        namespace: Option<String>,
        rooms: Option<String>,
        allow: Vec<String>,
    },
}

#[derive(Debug, Default, Deserialize)]
struct LimitsClaim {
    messages_per_second_max: Option<u32>,
    bytes_per_second_max: Option<u32>,
    connections_max: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum RoomClaim<'a> {
    /// A room of the main namespace.
    Main(#[serde(borrow)] Text<'a>),
    /// Rooms of another.
    Of {
        #[serde(borrow)]
        namespace: Text<'a>,
        #[serde(borrow)]
        rooms: Vec<Text<'a>>,
    },
}

/// Whom a token is for.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Audience {
    One(String),
    More(Vec<String>),
}

impl Audience {
    /// All that are named.
    pub(super) fn names(&self) -> &[String] {
        match self {
            Audience::One(one) => std::slice::from_ref(one),
            Audience::More(more) => more,
        }
    }
}

impl<'a> Claims<'a> {
    /// Reads the payload of a token. `None` when it is no object of JSON, when one of the claims is of another type than it has to be, or
    /// comes twice.
    pub(super) fn read(payload: &'a [u8], settings: &Settings) -> Option<Claims<'a>> {
        let mut json = serde_json::Deserializer::from_slice(payload);
        let claims =
            json.deserialize_map(Reader { user_claim: &settings.user_claim, is_answer: false }).ok()?;
        json.end().ok().map(|()| claims)
    }

    /// What comes of them, once they have been found to be good.
    pub(super) fn vouch(self, settings: &Settings) -> Result<Vouched, TokenFault> {
        let user = match self.user {
            Some(UserName::Text(text)) => CompactString::from(text),
            Some(UserName::Number(number)) => compact_str::format_compact!("{number}"),
            None => return Err(TokenFault::Claims),
        };
        let rooms = self.rooms.unwrap_or_default().into_iter().map(RoomClaim::meaning);
        let rooms = rooms.collect::<Option<Vec<_>>>().ok_or(TokenFault::Claims)?.concat();
        let is_name = |name: &str| name_fault(name, NAME_BYTES_MAX).is_none();
        let are_rooms = rooms.len() <= settings.rooms_max
            && rooms.iter().all(|room| name_fault(&room.name, settings.room_name_bytes_max).is_none());
        let roles = self.roles.unwrap_or_default();
        let are_roles = roles.len() <= GRANTS_MAX && roles.iter().all(|role| is_name(role));
        let permissions = self
            .permissions
            .map(|grants| {
                let grants = (grants.len() <= GRANTS_MAX).then_some(grants)?;
                grants.into_iter().map(GrantClaim::meaning).collect::<Option<Box<[Grant]>>>()
            })
            .map(|meant| meant.ok_or(TokenFault::Claims))
            .transpose()?;
        if !is_name(&user) || !are_rooms || !are_roles {
            return Err(TokenFault::Claims);
        }
        let LimitsClaim { messages_per_second_max, bytes_per_second_max, connections_max } =
            self.limits.unwrap_or_default();
        let roles = roles.into();
        let granted =
            Granted { roles, permissions, messages_per_second_max, bytes_per_second_max, connections_max };
        // Rounded up: it is good until then. What lies beyond any date is never.
        let expires_at_s = self.expires_s.map(|expires_s| expires_s.ceil() as u64);
        let granted = (granted != Granted::default()).then(|| Box::new(granted));
        Ok(Vouched {
            user: User { name: user, expires_at_s: expires_at_s.unwrap_or(u64::MAX), granted },
            rooms,
        })
    }
}

impl RoomClaim<'_> {
    fn meaning(self) -> Option<Vec<Room>> {
        let (namespace, rooms) = match self {
            RoomClaim::Main(room) => (CompactString::const_new("/"), vec![room]),
            RoomClaim::Of { namespace: Text(namespace), rooms } => (namespace.into(), rooms),
        };
        let is_one = namespace.len() <= NAMESPACE_BYTES_MAX
            && !namespace.contains('*')
            && Pattern::parse(&namespace).is_some();
        let room = |Text(name): Text<'_>| Room { namespace: namespace.clone(), name: name.into() };
        is_one.then(|| rooms.into_iter().map(room).collect())
    }
}

impl GrantClaim {
    fn meaning(self) -> Option<Grant> {
        match self {
            GrantClaim::Short(text) => Grant::parse(&text),
            GrantClaim::Long { namespace, rooms, allow } => {
                let namespace = match namespace {
                    Some(text) => Some(Pattern::parse(&text)?),
                    None => None,
                };
                let acts = Acts::parse(allow.iter().map(String::as_str))?;
                let rooms = match rooms {
                    Some(text) => Some(RoomPattern::parse(&text)?),
                    None => None,
                };
                Grant::new(namespace, rooms, acts)
            }
        }
    }
}

/// Reads what the backend says at `unix_ms` of a client.
pub(super) fn read_answer(json: &[u8], settings: &Settings, unix_ms: u64) -> Result<Said, &'static str> {
    let mut json = serde_json::Deserializer::from_slice(json);
    let claims = json.deserialize_map(Reader { user_claim: "user", is_answer: true });
    let (Ok(mut claims), Ok(())) = (claims, json.end()) else {
        return Err("it is no object of JSON, or a field is of another type than it has to be");
    };
    if let Some(Text(reason)) = claims.refuse {
        let fits = reason.floor_char_boundary(REASON_BYTES_MAX);
        return Ok(Said::Refused((fits > 0).then(|| reason[..fits].into())));
    }
    if claims.user.is_none() {
        let Claims { rooms: None, permissions: None, roles: None, limits: None, .. } = claims else {
            return Err("rooms, permissions, roles and limits are a user's, and `user` is not there or null");
        };
        return if claims.names_user { Ok(Said::Nobody) } else { Err("it has neither `user` nor `refuse`") };
    }
    if let Some(expires_in_s) = claims.expires_in_s {
        if expires_in_s <= 0.0 {
            return Err("`expires_in_s` is not more than 0");
        }
        claims.expires_s = Some(unix_ms as f64 / 1e3 + expires_in_s);
    }
    let vouched = claims.vouch(settings);
    vouched.map(Said::User).map_err(|_| "`user`, `rooms`, `permissions` or `roles` is not as in a token")
}

struct Reader<'s> {
    user_claim: &'s str,
    is_answer: bool,
}

impl<'a> Visitor<'a> for Reader<'_> {
    type Value = Claims<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of claims")
    }

    fn visit_map<M: MapAccess<'a>>(self, mut map: M) -> Result<Claims<'a>, M::Error> {
        /// Reads a claim that may come once, and may be `null`.
        fn once<'a, T: Deserialize<'a>, M: MapAccess<'a>>(
            map: &mut M,
            place: &mut Option<T>,
        ) -> Result<(), M::Error> {
            if place.is_some() {
                return Err(serde::de::Error::custom("a claim comes twice"));
            }
            *place = map.next_value()?;
            Ok(())
        }
        let mut claims = Claims::default();
        while let Some(Text(name)) = map.next_key()? {
            match &*name {
                name if name == self.user_claim => {
                    claims.names_user = true;
                    once(&mut map, &mut claims.user)?;
                }
                "expires_in_s" if self.is_answer => once(&mut map, &mut claims.expires_in_s)?,
                "refuse" if self.is_answer => once(&mut map, &mut claims.refuse)?,
                "exp" | "nbf" | "iss" | "aud" if self.is_answer => {
                    map.next_value::<IgnoredAny>()?;
                }
                "exp" => once(&mut map, &mut claims.expires_s)?,
                "nbf" => once(&mut map, &mut claims.begins_s)?,
                "iss" => once(&mut map, &mut claims.issuer)?,
                "aud" => once(&mut map, &mut claims.audience)?,
                "rooms" => once(&mut map, &mut claims.rooms)?,
                "permissions" => once(&mut map, &mut claims.permissions)?,
                "roles" => once(&mut map, &mut claims.roles)?,
                "limits" => once(&mut map, &mut claims.limits)?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(claims)
    }
}
