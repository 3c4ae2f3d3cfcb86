//! Channels of an application on Redis: what is made of the messages there, as a configuration says it.

use super::Steps;
use super::template::Source;

/// A channel that is heard, or all that match a pattern. Of its `steps` there are `fields` and `publish`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Channel {
    /// Its name, or the pattern, as Redis has it.
    pub name: String,
    /// True when it is a pattern.
    pub is_pattern: bool,
    /// The namespace whose rooms are meant.
    pub namespace: String,
    /// What is made of a message.
    pub steps: Steps,
}

impl Channel {
    /// The most channels that a configuration may have.
    pub const CONFIGURED_MAX: usize = 100;

    /// Why the steps cannot be taken for a message that no client has sent, if so: in words.
    pub fn fault(&self) -> Option<String> {
        for (source, word, why) in [
            (Source::User, "user", "nobody has sent the message"),
            (Source::Socket, "socket", "nobody has sent the message"),
            (Source::Rooms, "rooms", "nobody has sent the message"),
            (Source::Id, "id", "each process would make another of the same message"),
        ] {
            if self.steps.has(source) {
                return Some(format!(
                    "{{{word}}} is nothing here: {why}; a member that is called so is {{payload.{word}}}"
                ));
            }
        }
        let lacks_name = self.steps.publish.iter().any(|publish| publish.saying.event.is_none());
        if lacks_name {
            return Some("`event` is missing: a message has no name of its own".to_owned());
        }
        let echo = self.steps.publish.iter().any(|publish| publish.echo);
        echo.then(|| "`echo` is nothing here: nobody has sent the message".to_owned())
    }
}

/// What the names of channels begin with that are no application's where rooms are shared under `prefix`.
pub fn own_prefixes(prefix: &str) -> [String; 4] {
    [":", "#", "-request#", "-response#"].map(|end| format!("{prefix}{end}"))
}
