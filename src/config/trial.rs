//! What would become of one event: a configuration tried out, for people.

use super::Config;
use super::explain::{event_limit_in_words, list, policy_in_brief, route_in_words};
use crate::dialect::builtin::{self, TOKEN_EVENT};
use crate::dialect::native::{self, Code, Command, Refusal, check_count, is_too_deep};
use crate::dialect::targets::{self, Bounds, Targets};
use crate::message::user_of;
use crate::permissions::{Act, Actor};
use crate::policy::Policies;
use crate::routes::template::{Data, Name, Values};
use crate::routes::{BuiltIn, Does, Found, Route, Saying, Steps};
use serde_json::value::RawValue;
use smallvec::SmallVec;
use std::borrow::Cow;

/// An event that nobody has sent.
#[derive(Clone, Debug, clap::Args)]
pub struct Trial {
    /// Say what would happen to this event of a client
    #[arg(long)]
    event: Option<String>,
    /// What the event comes with, JSON; several times for several arguments
    #[arg(long, value_name = "JSON", requires = "event")]
    data: Vec<String>,
    /// The user whose event it is
    #[arg(long, requires = "event")]
    user: Option<String>,
    /// A role of that user; may be given several times
    #[arg(long = "role", value_name = "ROLE", requires = "user")]
    roles: Vec<String>,
    /// The namespace that it is in
    #[arg(long, default_value = "/", requires = "event")]
    namespace: String,
}

impl Config {
    /// What would happen to the event of `trial`, in lines of words; `None` when it has none.
    ///
    /// # Errors
    /// When its data is nothing that a client may send: which, and why.
    pub fn try_out(&self, trial: &Trial) -> Result<Option<String>, String> {
        let Some(event) = &trial.event else { return Ok(None) };
        for data in &trial.data {
            // As the server does it: a number may be larger than any that we know.
            serde_json::from_str::<&RawValue>(data)
                .map_err(|error| format!("--data {data}: not JSON: {error}"))?;
        }
        let args = trial.data.join(",");
        // A packet has the arguments in a list.
        if is_too_deep(&format!("[{args}]")) {
            return Err(format!("--data nests deeper than {}", native::DEPTH_MAX - 1));
        }
        let roles: Vec<Box<str>> = trial.roles.iter().map(|role| role.as_str().into()).collect();
        let actor = Actor { name: trial.user.as_deref(), roles: &roles, grants: None };
        let policies = self.policies();
        let namespace = &trial.namespace;
        let who = actor.name.map_or("somebody who is no user".to_owned(), |user| format!("user {user:?}"));
        let mut lines = vec![format!("{event:?} of {who} in {namespace}:")];
        let mut tried =
            Tried { config: self, policies, actor, namespace, event, args: &args, lines: Vec::new() };
        if let Err(refusal) = tried.event() {
            tried.say(format!("It is refused ({}): {}.", refusal.code.as_str(), refusal.message));
        }
        lines.extend(tried.lines.iter().map(|line| format!("  {line}")));
        Ok(Some(lines.join("\n") + "\n"))
    }

    /// True when something can say who a client is.
    pub(super) fn knows_users(&self) -> bool {
        let auth = &self.auth;
        auth.callout || self.has_keys()
    }

    fn has_keys(&self) -> bool {
        !self.auth.secret.is_empty() || !self.auth.jwks.is_empty() || !self.keys.is_empty()
    }
}

/// An event while it is tried out, and what has become of it so far, in lines.
struct Tried<'t> {
    config: &'t Config,
    policies: Policies,
    actor: Actor<'t>,
    namespace: &'t str,
    event: &'t str,
    args: &'t str,
    lines: Vec<String>,
}

impl<'t> Tried<'t> {
    /// All that becomes of it.
    fn event(&mut self) -> Result<(), Refusal<'static>> {
        if let Some(why) = self.bar() {
            self.say(why);
            return Ok(());
        }
        if self.actor.name.is_some() && !self.config.knows_users() {
            self.say(
                "CAUTION: no client is a user here: there are no keys for tokens, and no auth.callout."
                    .to_owned(),
            );
        }
        let config = self.config;
        for (_, limit) in config.event_limits.find(Some(self.namespace), self.event) {
            self.say(event_limit_in_words(limit));
        }
        let brings_token = self.event == TOKEN_EVENT && config.has_keys();
        let route = match config.routes.find(self.namespace, self.event, |who| who.is(&self.actor)) {
            Found::Route(route) if !brings_token || route.on != Route::OTHERS => route,
            Found::Forbidden { by_name } if !brings_token || by_name => {
                return Err(Refusal::new(Code::Forbidden, "its routes are for others"));
            }
            _ if brings_token => {
                self.say("It brings a token, which says who its client is.".to_owned());
                return Ok(());
            }
            _ => {
                self.say("No route is for it: nothing happens.".to_owned());
                return Ok(());
            }
        };
        self.say(route_in_words(route));
        match &route.does {
            Does::BuiltIn(built_in) => self.built_in(built_in),
            Does::Steps(steps) => self.steps(steps),
        }
    }

    /// Why no such client is there to send it, if so.
    fn bar(&mut self) -> Option<String> {
        let Config { socketio, native, plain, auth, permissions, .. } = self.config;
        let namespace = self.namespace;
        if auth.required && self.actor.name.is_none() {
            return Some("Nobody gets in without a user: auth.required.".to_owned());
        }
        // Native and plain clients are in this one without joining it.
        let is_direct = namespace == "/" && !(native.path.is_empty() && plain.path.is_empty());
        let has_namespace = socketio.enabled && socketio.namespaces.find(namespace).is_some();
        let is_admitted = permissions.admit(&self.actor, namespace);
        match (is_direct, has_namespace) {
            (false, _) if !socketio.enabled => {
                Some(format!("No client can be in {namespace}: socketio.enabled is false."))
            }
            (false, false) => Some(format!(
                "No client can be in {namespace}: neither socketio.namespaces nor [[namespaces]] have it."
            )),
            (false, true) if !is_admitted => {
                Some(format!("This client may not be in {namespace}: no [[permissions]] let it in."))
            }
            (true, true) if !is_admitted => {
                self.say(format!(
                    "With Socket.IO this client may not be in {namespace}: no [[permissions]] let it in."
                ));
                None
            }
            _ => None,
        }
    }

    /// What a built-in event comes to.
    fn built_in(&mut self, built_in: &BuiltIn) -> Result<(), Refusal<'static>> {
        let Bounds { rooms_max, room_name_bytes_max } = self.bounds();
        let command = builtin::decode(built_in, self.args, room_name_bytes_max)
            .map_err(|refusal| Refusal::new(refusal.code, refusal.message))?;
        match command {
            Command::Join { rooms, .. } => {
                self.join(&rooms)?;
                self.say(acknowledged("how many members each had"));
            }
            Command::Leave { rooms, .. } => {
                self.say(format!("Its client leaves {}.", list(&rooms)));
                self.say(acknowledged("{}"));
            }
            Command::Publish(publish) => {
                let config = self.config;
                if publish.event != self.event {
                    let limits = config.event_limits.find(Some(self.namespace), &publish.event);
                    for (_, limit) in limits.filter(|(_, limit)| limit.event.is_some()) {
                        self.say(event_limit_in_words(limit));
                    }
                }
                check_count(publish.rooms.len().max(publish.except.len()), rooms_max)?;
                self.permit(&publish.rooms, Act::Publish)?;
                if publish.ask_ms.is_some() {
                    self.say(
                        "It is refused (bad_message) unless its client asks for an acknowledgement."
                            .to_owned(),
                    );
                }
                let said = format!("{:?} {}", publish.event, String::from_utf8_lossy(publish.payload));
                let whom: Vec<String> =
                    publish.rooms.iter().map(|room| format!("members of {room}")).collect();
                self.published(&whom, &publish.except, publish.echo, &said);
                self.policies(
                    &publish.rooms,
                    &publish.event,
                    publish.rooms.len() > 1 || !publish.except.is_empty(),
                );
                self.say(acknowledged(if publish.ask_ms.is_some() { "what they answer" } else { "{}" }));
            }
            Command::Presence { room, who, .. } => {
                self.permit(std::slice::from_ref(&room), Act::Presence)?;
                self.say(
                    "It is refused (bad_message) unless its client asks for an acknowledgement.".to_owned(),
                );
                self.say(format!("It is refused (not_member) unless its client is in {room}."));
                let what = if who { "who is" } else { "how many are" };
                self.say(format!("It is acknowledged with {what} in {room}"));
            }
            // No event is decoded into these.
            Command::Call { .. } | Command::Ping { .. } | Command::Auth { .. } => {}
        }
        Ok(())
    }

    /// What the steps of a route come to.
    fn steps(&mut self, steps: &Steps) -> Result<(), Refusal<'static>> {
        let found = targets::find(steps, self.args, || self.actor.name.is_some())?;
        let values = Values {
            found: &found,
            args: self.args,
            event: self.event,
            namespace: self.namespace,
            user: self.actor.name,
            now_ms: crate::token::refresh::unix_ms(),
            id: "AN-ID-OF-THE-SERVER",
            socket: "THE-ID-OF-THE-CLIENT",
            rooms: "[\"the rooms of the client\"]",
        };
        let bounds = self.bounds();
        let names = |names: &[Name]| -> Result<Vec<Cow<'static, str>>, Refusal<'static>> {
            let mut filled: SmallVec<[Cow<'_, str>; 4]> = SmallVec::new();
            for name in names {
                targets::fill(name, &values, &steps.paths, bounds, &mut filled)?;
            }
            Ok(filled.into_iter().map(|name| Cow::Owned(name.into_owned())).collect())
        };
        let said = |Saying { event, data }: &Saying| {
            format!("{:?} {}", event.as_deref().unwrap_or(values.event), json(data, &values))
        };
        for name in &steps.member {
            let rooms = names(std::slice::from_ref(name))?;
            if rooms.is_empty() {
                return Err(Refusal::new(
                    Code::Forbidden,
                    "this client is not in this room: the list is empty",
                ));
            }
            self.say(format!("It is refused (forbidden) unless its client is in {}.", list(&rooms)));
        }
        if !steps.join.is_empty() {
            self.join(&names(&steps.join)?)?;
        }
        if !steps.leave.is_empty() {
            self.say(format!("Its client leaves {}.", list(&names(&steps.leave)?)));
        }
        for publish in &steps.publish {
            let Targets { mut rooms, except, natives } = Targets::of(publish, &values, &steps.paths, bounds)?;
            let whom = |room: &Cow<'_, str>| match user_of(room) {
                Some(user) => format!("user {user}"),
                None if room.is_empty() => "everyone".to_owned(),
                None => format!("members of {room}"),
            };
            let whom: Vec<String> = rooms.iter().map(whom).collect();
            self.published(&whom, &except, publish.echo, &said(&publish.saying));
            let event = publish.saying.event.as_deref().unwrap_or(self.event);
            // The others have no policy.
            rooms.retain(|room| !room.is_empty() && user_of(room).is_none());
            let passes = natives || publish.to.len() > 1 || rooms.len() > 1 || !except.is_empty();
            self.policies(&rooms, event, passes);
        }
        if steps.backend {
            self.say("The backend is asked about it, and answers.".to_owned());
        }
        if let Some(reply) = &steps.reply {
            self.say(format!("Its client gets {}", said(reply).trim_end()));
        }
        if !steps.backend {
            let ack = steps.ack.as_ref().map_or("{}".to_owned(), |ack| json(ack, &values));
            self.say(acknowledged(&ack));
        }
        Ok(())
    }

    fn join(&mut self, rooms: &[Cow<'_, str>]) -> Result<(), Refusal<'static>> {
        self.permit(rooms, Act::Join)?;
        let (rooms_max, mut each) = (self.bounds().rooms_max, rooms.to_vec());
        each.sort_unstable();
        each.dedup();
        if each.len() > rooms_max {
            let message = format!("a connection is in at most {rooms_max} rooms");
            return Err(Refusal::new(Code::TooManyRooms, message));
        }
        if rooms.is_empty() {
            self.say("Its client joins nothing: the list is empty.".to_owned());
        } else {
            self.say(format!("Its client joins {}.", list(rooms)));
        }
        Ok(())
    }

    /// Refuses what the client may not do with one of these rooms.
    fn permit(&self, rooms: &[Cow<'_, str>], act: Act) -> Result<(), Refusal<'static>> {
        let may = match act {
            Act::Join => "join",
            Act::Publish => "publish to",
            Act::Presence => "see who is in",
            Act::Connect => "be in",
        };
        let permissions = &self.config.permissions;
        match rooms.iter().find(|room| !permissions.allow(&self.actor, self.namespace, room, act)) {
            Some(room) => Err(Refusal::new(Code::Forbidden, format!("this client may not {may} {room}"))),
            None => Ok(()),
        }
    }

    fn published(&mut self, whom: &[String], except: &[Cow<'_, str>], echo: bool, said: &str) {
        if whom.is_empty() {
            return self.say("Published to nobody: the list of rooms is empty.".to_owned());
        }
        let but =
            if except.is_empty() { String::new() } else { format!(", but no member of {},", list(except)) };
        let own = if echo { "its client too" } else { "not its client" };
        self.say(format!("Published to {}{but} ({own}): {}", list(whom), said.trim_end()));
    }

    /// What `[[rooms]]` make of an event on its way to these rooms; some events pass them by.
    fn policies(&mut self, rooms: &[Cow<'_, str>], event: &str, passes: bool) {
        let place = |room: &&Cow<'_, str>| self.policies.find(self.namespace, room).map(|(place, _)| place);
        let mut places: Vec<u16> = rooms.iter().filter_map(|room| place(&room)).collect();
        places.sort_unstable();
        places.dedup();
        for at in places {
            let policy = self.policies.at(at);
            let brief = policy_in_brief(policy, event);
            if brief.is_empty() {
                continue;
            }
            let theirs: Vec<_> = rooms.iter().filter(|room| place(room) == Some(at)).collect();
            let but =
                if passes { ", but not of this: it has `except`, or is not for one room alone" } else { "" };
            let line =
                format!("[[rooms]] {:?} for {}: {brief}{but}.", policy.name.to_string(), list(&theirs));
            self.lines.push(line);
        }
    }

    fn bounds(&self) -> Bounds {
        let limits = &self.config.limits;
        Bounds {
            rooms_max: limits.rooms_per_connection_max as usize,
            room_name_bytes_max: limits.room_name_bytes_max as usize,
        }
    }

    fn say(&mut self, line: String) {
        self.lines.push(line);
    }
}

/// The JSON that a template stands for.
fn json(data: &Data, values: &Values<'_>) -> String {
    let mut out = Vec::new();
    data.fill_or_null(values, &mut out);
    String::from_utf8(out).unwrap_or_default()
}

fn acknowledged(with: &str) -> String {
    format!("It is acknowledged, if its client asks for that, with {with}")
}
