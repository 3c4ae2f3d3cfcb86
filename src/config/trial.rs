//! What would become of one event: a configuration tried out, for people.

use super::Config;
use super::explain::{event_limit_in_words, list, route_in_words};
use crate::permissions::{Actor, Permissions};
use crate::routes::template::{Data, Name, Values};
use crate::routes::{Does, Found, Publish, Saying, Steps, Target};
use serde_json::Value;
use smallvec::SmallVec;
use std::borrow::Cow;
use std::fmt::Write as _;

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
    /// When its data is not JSON: which.
    pub fn try_out(&self, trial: &Trial) -> Result<Option<String>, String> {
        let Some(event) = &trial.event else { return Ok(None) };
        for data in &trial.data {
            serde_json::from_str::<Value>(data)
                .map_err(|error| format!("--data {data}: not JSON: {error}"))?;
        }
        let args = trial.data.join(",");
        let roles: Vec<Box<str>> = trial.roles.iter().map(|role| role.as_str().into()).collect();
        let actor = Actor { name: trial.user.as_deref(), roles: &roles, grants: None };
        let mut text = String::new();
        let mut say = |line: &str| writeln!(text, "{line}").expect("a string takes all that memory holds");
        let who =
            trial.user.as_ref().map_or("somebody who is no user".to_owned(), |user| format!("user {user:?}"));
        say(&format!("{event:?} of {who} in {}:", trial.namespace));
        for (_, limit) in self.event_limits.find(Some(&trial.namespace), event) {
            say(&format!("  {}", event_limit_in_words(limit)));
        }
        match self.routes.find(&trial.namespace, event, |who| who.is(&actor)) {
            Found::Nothing => say("  No route is for it: nothing happens."),
            Found::Forbidden { .. } => say("  It is refused (forbidden): its routes are for others."),
            Found::Route(route) => {
                say(&format!("  {}", route_in_words(route)));
                if let Does::Steps(steps) = &route.does {
                    for line in happenings(trial, event, &args, steps, (&actor, &self.permissions)) {
                        say(&format!("  {line}"));
                    }
                }
            }
        }
        Ok(Some(text))
    }
}

/// What the steps of a route come to.
fn happenings(
    trial: &Trial,
    event: &str,
    args: &str,
    steps: &Steps,
    (actor, permissions): (&Actor<'_>, &Permissions),
) -> Vec<String> {
    let found = steps.paths.find(args);
    let values = Values {
        found: &found,
        args,
        event,
        namespace: &trial.namespace,
        user: trial.user.as_deref(),
        now_ms: crate::token::refresh::unix_ms(),
        id: "AN-ID-OF-THE-SERVER",
        socket: "THE-ID-OF-THE-CLIENT",
        rooms: "[\"the rooms of the client\"]",
    };
    let mut lines = Vec::new();
    let happened = take(steps, &values, (actor, permissions), &mut lines);
    if let Err(refusal) = happened {
        lines.push(format!("It is refused: {refusal}."));
    }
    lines
}

fn take(
    steps: &Steps,
    values: &Values<'_>,
    (actor, permissions): (&Actor<'_>, &Permissions),
    lines: &mut Vec<String>,
) -> Result<(), String> {
    let names = |names: &[Name]| -> Result<Vec<String>, String> {
        let mut filled: SmallVec<[Cow<'_, str>; 4]> = SmallVec::new();
        for name in names {
            name.fill(values, &steps.paths, usize::MAX, &mut filled).map_err(|fault| fault.0)?;
        }
        Ok(filled.into_iter().map(Cow::into_owned).collect())
    };
    let json = |data: &Data| {
        let mut out = Vec::new();
        if data.fill(values, &mut out) {
            String::from_utf8(out).unwrap_or_default()
        } else {
            "null".to_owned()
        }
    };
    let said = |Saying { event, data }: &Saying| {
        format!("{:?} {}", event.as_deref().unwrap_or(values.event), json(data)).trim_end().to_owned()
    };
    if let Some(reason) = &steps.refuse {
        return Err(reason.clone());
    }
    steps.check(values.found).map_err(|fault| fault.0)?;
    if !steps.member.is_empty() {
        lines.push(format!("It is refused unless its client is in {}.", list(&names(&steps.member)?)));
    }
    if !steps.join.is_empty() {
        let rooms = names(&steps.join)?;
        let allowed =
            |room: &&String| !permissions.allow(actor, values.namespace, room, crate::permissions::Act::Join);
        if let Some(room) = rooms.iter().find(allowed) {
            return Err(format!("this client may not join {room}"));
        }
        lines.push(format!("Its client joins {}.", list(&rooms)));
    }
    if !steps.leave.is_empty() {
        lines.push(format!("Its client leaves {}.", list(&names(&steps.leave)?)));
    }
    for Publish { to, except, saying, echo, .. } in &steps.publish {
        let mut whom = Vec::new();
        for target in to {
            match target {
                Target::Room(name) => {
                    let rooms = names(std::slice::from_ref(name))?;
                    whom.extend(rooms.into_iter().map(|room| format!("members of {room}")));
                }
                Target::User(name) => {
                    let users = names(std::slice::from_ref(name))?;
                    whom.extend(users.into_iter().map(|user| format!("user {user}")));
                }
                Target::Everyone => whom.push("everyone".to_owned()),
            }
        }
        let except = names(except)?;
        let but =
            if except.is_empty() { String::new() } else { format!(", but no member of {},", list(&except)) };
        let own = if *echo { "its client too" } else { "not its client" };
        lines.push(format!("Published to {}{but} ({own}): {}", list(&whom), said(saying)));
    }
    if steps.backend {
        lines.push("The backend is asked about it, and answers.".to_owned());
    }
    if let Some(reply) = &steps.reply {
        lines.push(format!("Its client gets {}", said(reply)));
    }
    if !steps.backend {
        let ack = steps.ack.as_ref().map_or("{}".to_owned(), json);
        lines.push(format!("It is acknowledged, if its client asks for that, with {ack}"));
    }
    Ok(())
}
