//! Where Redis is: what the URLs say, what Sentinels know of a master, which server of a cluster has which slots; and how a
//! connection is made.

use super::fault::{Fault, FaultKind};
use super::link::{Servers, Settings};
use super::publisher::QUEUE_MAX;
use redis::aio::{AsyncPushSender, MultiplexedConnection};
use redis::io::tcp::TcpSettings;
use redis::io::tcp::socket2::TcpKeepalive;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion,
    RedisConnectionInfo, TlsCertificates, Value, cmd, pipe,
};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

/// Slots of a cluster.
pub(super) const SLOTS: usize = 16_384;
/// How long other Sentinels are waited for after the first that has named a master.
const SENTINELS_WAIT: Duration = Duration::from_millis(100);

/// The servers that the settings name, checked.
pub(super) struct Places {
    kind: Kind,
    /// What the URLs say, in their order: of Redis, of Sentinels, or of some servers of a cluster.
    infos: Vec<ConnectionInfo>,
    ca_pem: Option<Vec<u8>>,
    name: String,
    connect_timeout: Duration,
    command_timeout: Duration,
}

enum Kind {
    One,
    Sentinel { master: String, password: Option<String> },
    Cluster,
}

/// The slots `first..=last` are those of the server at `address`.
pub(super) struct Range {
    pub(super) first: u16,
    pub(super) last: u16,
    pub(super) address: ConnectionAddr,
}

impl Places {
    /// # Errors
    /// [`FaultKind::Settings`] when a URL is none, or there are too few or too many of them.
    pub(super) fn new(settings: &Settings) -> Result<Places, Fault> {
        let (kind, urls) = match &settings.servers {
            Servers::One(url) => (Kind::One, std::slice::from_ref(url)),
            Servers::Sentinel { sentinels, master, password } => {
                (Kind::Sentinel { master: master.clone(), password: password.clone() }, sentinels.as_slice())
            }
            Servers::Cluster(urls) => (Kind::Cluster, urls.as_slice()),
        };
        // An error means that the process has chosen before, which is as good.
        rustls::crypto::ring::default_provider().install_default().ok();
        let keepalive = TcpKeepalive::new().with_time(settings.keepalive).with_interval(settings.keepalive);
        let tcp = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive);
        let mut infos = Vec::new();
        for url in urls {
            let info = url.as_str().into_connection_info()?;
            let redis = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
            let redis = redis.set_lib_name("throng", env!("CARGO_PKG_VERSION"));
            infos.push(info.set_redis_settings(redis).set_tcp_settings(tcp.clone()));
        }
        if infos.is_empty() {
            return Err(Fault::new(FaultKind::Settings, "no server is named"));
        }
        Ok(Places {
            kind,
            infos,
            ca_pem: settings.ca_pem.clone(),
            name: settings.name.clone(),
            connect_timeout: settings.connect_timeout,
            command_timeout: settings.command_timeout,
        })
    }

    pub(super) fn are_a_cluster(&self) -> bool {
        matches!(self.kind, Kind::Cluster)
    }

    /// Where the one Redis is now, or the master that the Sentinels know. All are asked at once, and whoever names a server that is away or
    /// no master is not heard. Where others disagree, as after a partition, most of those that tell within [`SENTINELS_WAIT`] are right.
    ///
    /// # Errors
    /// [`FaultKind::NoMaster`] when no Sentinel knows one, else what is wrong with the server that they name.
    pub(super) async fn locate(self: &Arc<Places>) -> Result<ConnectionAddr, Fault> {
        let Kind::Sentinel { master, password } = &self.kind else {
            return Ok(self.infos[0].addr().clone());
        };
        let mut own = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3);
        if let Some(password) = password {
            own = own.set_password(password);
        }
        let mut asked = JoinSet::new();
        for info in &self.infos {
            let (places, master) = (self.clone(), master.clone());
            let sentinel = info.clone().set_redis_settings(own.clone());
            asked.spawn(async move { places.master_by(sentinel, &master).await });
        }
        let mut votes: Vec<(ConnectionAddr, usize)> = Vec::new();
        let mut until = None;
        let mut fault = Fault::new(FaultKind::NoMaster, format!("no master {master:?} is found"));
        loop {
            let next = match until {
                Some(until) => timeout_at(until, asked.join_next()).await.ok().flatten(),
                None => asked.join_next().await,
            };
            match next {
                Some(Ok(Ok(address))) => {
                    until.get_or_insert_with(|| Instant::now() + SENTINELS_WAIT);
                    let place = votes.iter().position(|(named, _)| *named == address);
                    let place = place.unwrap_or_else(|| {
                        votes.push((address, 0));
                        votes.len() - 1
                    });
                    votes[place].1 += 1;
                    if votes[place].1 > self.infos.len() / 2 {
                        return Ok(votes.swap_remove(place).0);
                    }
                }
                Some(Ok(Err(other))) => {
                    let kind = if other.kind == FaultKind::NoMaster { fault.kind } else { other.kind };
                    fault = Fault::new(kind, format!("{}; {}", fault.text, other.text));
                }
                Some(Err(ended)) => fault = Fault::new(FaultKind::Garbage, ended.to_string()),
                // The first of those that have the most.
                None => {
                    let most = votes.into_iter().rev().max_by_key(|(_, votes)| *votes);
                    return most.map(|(address, _)| address).ok_or(fault);
                }
            }
        }
    }

    /// The master that one Sentinel names, which has said itself that it is one.
    async fn master_by(&self, sentinel: ConnectionInfo, master: &str) -> Result<ConnectionAddr, Fault> {
        let asked = sentinel.addr().clone();
        let unknown = |what: String| Fault::new(FaultKind::NoMaster, format!("Sentinel {asked}: {what}"));
        let question = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", master];
        let answer = self.ask_once(sentinel, &question).await.map_err(|fault| unknown(fault.to_string()))?;
        let address = match &answer {
            Value::Array(words) => match words.as_slice() {
                [Value::BulkString(host), Value::BulkString(port)] => {
                    let port = str::from_utf8(port).ok().and_then(|port| port.parse().ok());
                    port.map(|port| at(&asked, String::from_utf8_lossy(host).into_owned(), port))
                }
                _ => None,
            },
            _ => None,
        };
        let address = address.ok_or_else(|| unknown(format!("it answered {answer:?}")))?;
        let server = self.infos[0].clone().set_addr(address.clone());
        let role = self.ask_once(server, &["ROLE"]).await;
        role.and_then(|role| self.check_probe(&role)).map_err(|fault| {
            Fault::new(fault.kind, format!("Sentinel {asked} names {address}: {}", fault.text))
        })?;
        Ok(address)
    }

    /// Which server of the cluster has which slots, by the first that answers of `known` and those of the settings. All are asked at once,
    /// so that one that hangs holds nobody up.
    ///
    /// # Errors
    /// What the last of them said.
    pub(super) async fn slots(self: &Arc<Places>, known: Vec<ConnectionAddr>) -> Result<Vec<Range>, Fault> {
        let mut asked = JoinSet::new();
        for address in self.infos.iter().map(|info| info.addr().clone()).chain(known) {
            let places = self.clone();
            asked.spawn(async move {
                let info = places.infos[0].clone().set_addr(address.clone());
                let answer = places.ask_once(info, &["CLUSTER", "SLOTS"]).await?;
                let garbage =
                    || Fault::new(FaultKind::Garbage, "CLUSTER SLOTS is answered by something else");
                ranges(&answer, &address).ok_or_else(garbage)
            });
        }
        let mut fault = Fault::new(FaultKind::Cluster, "no server knows the slots");
        while let Some(answer) = asked.join_next().await {
            match answer {
                Ok(Ok(ranges)) if !ranges.is_empty() => return Ok(ranges),
                Ok(Ok(_)) => {}
                Ok(Err(other)) => fault = other,
                Err(ended) => fault = Fault::new(FaultKind::Garbage, ended.to_string()),
            }
        }
        Err(fault)
    }

    /// A connection to the server at `address` that is named, logged in and, behind Sentinels, a master's. `pushes` gets what
    /// arrives unasked, and the end of the connection.
    pub(super) async fn open(
        &self,
        address: ConnectionAddr,
        pushes: impl AsyncPushSender,
    ) -> Result<MultiplexedConnection, Fault> {
        let config = self.config().set_push_sender(pushes);
        let mut conn = self.connect(self.infos[0].clone().set_addr(address), config).await?;
        let mut greeting = pipe();
        greeting.cmd("CLIENT").arg("SETNAME").arg(&self.name).add_command(self.probe());
        let answers = conn.send_packed_commands(&greeting, 0, 2).await?;
        for answer in &answers {
            self.check_probe(answer)?;
        }
        Ok(conn)
    }

    /// What a connection is asked for a sign of life.
    pub(super) fn probe(&self) -> redis::Cmd {
        cmd(if matches!(self.kind, Kind::Sentinel { .. }) { "ROLE" } else { "PING" })
    }

    /// Whether this answer to [`Places::probe`] is one of the server we want.
    pub(super) fn check_probe(&self, answer: &Value) -> Result<(), Fault> {
        match answer {
            Value::ServerError(error) => Err(redis::RedisError::from(error.clone()).into()),
            Value::Array(role) if role.first() != Some(&Value::BulkString(b"master".to_vec())) => {
                Err(Fault::new(FaultKind::ReadOnly, "this server is no master"))
            }
            _ => Ok(()),
        }
    }

    async fn ask_once(&self, info: ConnectionInfo, words: &[&str]) -> Result<Value, Fault> {
        let mut conn = self.connect(info, self.config()).await?;
        let mut question = cmd(words[0]);
        question.arg(&words[1..]);
        Ok(conn.send_packed_command(&question).await?.extract_error()?)
    }

    async fn connect(
        &self,
        info: ConnectionInfo,
        config: AsyncConnectionConfig,
    ) -> Result<MultiplexedConnection, Fault> {
        let client = match &self.ca_pem {
            Some(pem) => {
                let certificates = TlsCertificates { client_tls: None, root_cert: Some(pem.clone()) };
                Client::build_with_tls(info, certificates)?
            }
            None => Client::open(info)?,
        };
        Ok(client.get_multiplexed_async_connection_with_config(&config).await?)
    }

    fn config(&self) -> AsyncConnectionConfig {
        AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_timeout))
            .set_response_timeout(Some(self.command_timeout))
            .set_pipeline_buffer_size(QUEUE_MAX)
    }
}

/// The slot of a name in a cluster: what stands between the first braces counts, if anything does.
pub(super) fn slot_of(name: &[u8]) -> usize {
    let tag = name.iter().position(|byte| *byte == b'{').and_then(|open| {
        let inside = &name[open + 1..];
        let close = inside.iter().position(|byte| *byte == b'}')?;
        (close > 0).then_some(&inside[..close])
    });
    let crc = tag.unwrap_or(name).iter().fold(0_u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| {
            (crc << 1) ^ if crc >> 15 == 1 { 0x1021 } else { 0 }
        })
    });
    usize::from(crc) % SLOTS
}

/// Another server that is reached as `like` is, with TLS or without.
fn at(like: &ConnectionAddr, host: String, port: u16) -> ConnectionAddr {
    match like {
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
            ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: tls_params.clone() }
        }
        _ => ConnectionAddr::Tcp(host, port),
    }
}

/// What `CLUSTER SLOTS` says when `asked` answers it, or nothing when it is something else.
fn ranges(answer: &Value, asked: &ConnectionAddr) -> Option<Vec<Range>> {
    let Value::Array(rows) = answer else { return None };
    let slot = |value: &Value| match value {
        Value::Int(slot) if (0..SLOTS as i64).contains(slot) => Some(*slot as u16),
        _ => None,
    };
    rows.iter()
        .map(|row| {
            let Value::Array(row) = row else { return None };
            let [first, last, Value::Array(master), ..] = row.as_slice() else { return None };
            let [host, Value::Int(port), ..] = master.as_slice() else { return None };
            let host = match host {
                Value::BulkString(host) if !host.is_empty() => String::from_utf8(host.clone()).ok()?,
                // A server that does not know its own name is where we asked.
                _ => match asked {
                    ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => host.clone(),
                    _ => return None,
                },
            };
            let address = at(asked, host, u16::try_from(*port).ok()?);
            Some(Range { first: slot(first)?, last: slot(last)?, address })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_redis() {
        // What CLUSTER KEYSLOT answers.
        let examples: [(&[u8], usize); 6] = [
            (b"123456789", 12_739),
            (b"foo", 12_182),
            (b"{foo}bar", 12_182),
            (b"a{foo}{bar}", 12_182),
            (b"", 0),
            (b"foo{}", 5_542),
        ];
        for (name, slot) in examples {
            assert_eq!(slot_of(name), slot, "{}", name.escape_ascii());
        }
    }
}
