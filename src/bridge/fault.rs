//! What can go wrong between throng and Redis, in kinds that can be counted.

use redis::{ErrorKind, RedisError, ServerErrorKind};
use std::fmt;

/// Something went wrong between throng and Redis.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Of which kind it is.
    pub kind: FaultKind,
    /// What was said about it. Never has a password in it.
    pub text: String,
}

/// The kinds of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// No connection could be made.
    Unreachable,
    /// A connection or an answer took too long.
    Timeout,
    /// Redis closed the connection, or the network did.
    Closed,
    /// Redis does not let us in, or not do what we asked: `NOAUTH`, `WRONGPASS`, `NOPERM`, or what its ACL forbids a script.
    Denied,
    /// Redis is reading its data and does not serve yet: `LOADING`.
    Loading,
    /// This Redis is a replica, or has lost its master: `READONLY`, `MASTERDOWN`, a role that is not `master`.
    ReadOnly,
    /// Redis has no memory left: `OOM`.
    OutOfMemory,
    /// The cluster moved a slot, or does not serve it: `MOVED`, `ASK`, `TRYAGAIN`, `CLUSTERDOWN`, `CROSSSLOT`.
    Cluster,
    /// Another error that Redis answered.
    Answer,
    /// What arrived is not the protocol of Redis, or not what was asked for.
    Garbage,
    /// The connection for messages is open, and messages do not arrive.
    Deaf,
    /// No Sentinel that answers knows the master.
    NoMaster,
    /// The settings cannot work.
    Settings,
}

impl FaultKind {
    /// The labels of all kinds, in the order of the numbers.
    pub const LABELS: [&'static str; 13] = [
        "unreachable",
        "timeout",
        "closed",
        "denied",
        "loading",
        "read_only",
        "out_of_memory",
        "cluster",
        "answer",
        "garbage",
        "deaf",
        "no_master",
        "settings",
    ];

    /// The place of this kind in [`FaultKind::LABELS`].
    pub fn index(self) -> usize {
        self as usize
    }

    /// True when whoever answered this cannot take publications, whichever they are, until something changes.
    pub(super) fn is_of_the_server(self) -> bool {
        !matches!(self, FaultKind::Denied | FaultKind::Answer | FaultKind::Cluster)
    }
}

impl Fault {
    /// A fault of this kind.
    pub fn new(kind: FaultKind, text: impl Into<String>) -> Fault {
        Fault { kind, text: text.into() }
    }
}

impl From<RedisError> for Fault {
    fn from(error: RedisError) -> Fault {
        let kind = match (error.kind(), error.code().unwrap_or_default()) {
            (_, "NOAUTH" | "WRONGPASS" | "NOPERM") | (ErrorKind::AuthenticationFailed, _) => {
                FaultKind::Denied
            }
            // So it is called inside a script, by Redis 7.0 and by later ones.
            _ if DENIED_IN_SCRIPTS
                .iter()
                .any(|words| error.detail().is_some_and(|said| said.contains(words))) =>
            {
                FaultKind::Denied
            }
            (_, "OOM") => FaultKind::OutOfMemory,
            (ErrorKind::Server(kind), _) => match kind {
                ServerErrorKind::BusyLoading => FaultKind::Loading,
                ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown => FaultKind::ReadOnly,
                ServerErrorKind::Moved
                | ServerErrorKind::Ask
                | ServerErrorKind::TryAgain
                | ServerErrorKind::CrossSlot
                | ServerErrorKind::ClusterDown => FaultKind::Cluster,
                _ => FaultKind::Answer,
            },
            (ErrorKind::Parse | ErrorKind::UnexpectedReturnType, _) => FaultKind::Garbage,
            (ErrorKind::InvalidClientConfig | ErrorKind::Client, _) => FaultKind::Settings,
            (ErrorKind::Io, _) if error.is_timeout() => FaultKind::Timeout,
            (ErrorKind::Io, _) if error.is_connection_refusal() => FaultKind::Unreachable,
            (ErrorKind::Io, _) if error.is_connection_dropped() => FaultKind::Closed,
            (ErrorKind::Io, _) => FaultKind::Unreachable,
            _ => FaultKind::Answer,
        };
        Fault { kind, text: error.to_string() }
    }
}

/// What Redis says when its ACL forbids a script something, with the code `ERR`.
const DENIED_IN_SCRIPTS: [&str; 2] = ["The user executing the script can't", "ACL failure in script"];

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", FaultKind::LABELS[self.kind.index()], self.text)
    }
}

impl std::error::Error for Fault {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_acl_forbids_a_script_is_denied() {
        let kind = |line: &str| {
            let value = redis::parse_redis_value(line.as_bytes()).expect("an answer");
            Fault::from(value.extract_error().expect_err("an error")).kind
        };
        let of_script = "script: fd1f, on @user_script:1.\r\n";
        for said in [
            "The user executing the script can't run this command or subcommand",
            "The user executing the script can't access at least one of the keys mentioned in the command arguments",
            "ACL failure in script: User throng has no permissions to run the 'zadd' command",
        ] {
            assert_eq!(kind(&format!("-ERR {said} {of_script}")), FaultKind::Denied);
        }
        assert_eq!(kind("-NOPERM this user has no permissions\r\n"), FaultKind::Denied);
        assert_eq!(kind(&format!("-ERR wrong number of arguments {of_script}")), FaultKind::Answer);
    }
}
