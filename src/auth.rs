//! Who may come in: how many connections in all, per address and per user, which origins, and whose word on a client's address is
//! believed. And how many events those inside may send.

pub mod tally;

use crate::message::Reject;
use crate::permissions::{Actor, Grant};
use crate::rules::EventLimits;
use crate::time::Time;
use crate::wire::http::Forwarded;
use arc_swap::ArcSwap;
use compact_str::CompactString;
use ipnet::IpNet;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tally::{Quota, Tally, Windows};

/// The rules of the door.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Open WebSocket connections in the process.
    pub connections_max: usize,
    /// Sockets in the process, open connections included. Above `connections_max`, so that there is room to say no.
    pub sockets_max: usize,
    /// How many hundredths of the memory that the process may have may be taken, by whomever; 100 for all.
    pub memory_percent_max: u32,
    /// Open connections of one address (of one /64 for IPv6); `None` for no limit.
    pub per_ip_max: Option<u32>,
    /// Sockets of one address, open connections included, but for those of trusted proxies; `None` for no limit. Above `per_ip_max`,
    /// so that there is room for handshakes and to say no.
    pub sockets_per_ip_max: Option<u32>,
    /// Open connections of one user, whose token does not say otherwise; `None` for no limit.
    pub per_user_max: Option<u32>,
    /// New connections of one address in some time; `None` for no limit.
    pub handshakes_per_ip: Option<Quota>,
    /// How often events may come.
    pub events: EventLimits,
    /// Windows of these limits that are counted at a time for addresses and users, and as many again for connections; and of
    /// `handshakes_per_ip` for addresses.
    pub event_windows_max: usize,
    /// Networks of proxies that are believed about their clients' addresses.
    pub trusted_proxies: Vec<IpNet>,
    /// What trusted proxies say it in. The other is passed on as clients write it.
    pub believed: Believed,
    /// Allowed origins as `scheme://host[:port]`, where the host may begin with `*.`; empty for any.
    pub origins: Vec<String>,
}

/// The header in which proxies say who their client is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Believed {
    /// `X-Forwarded-For`, which most proxies write.
    #[default]
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

/// The door of the process, shared by all shards. Its counts are exact; its table holds one entry for each address with a socket and
/// each user with a connection, so it is bounded by twice `sockets_max`, and there are none of a kind that has no limit.
#[derive(Debug)]
pub struct Gate {
    rules: ArcSwap<Rules>,
    sockets: AtomicUsize,
    open: AtomicUsize,
    peak: AtomicUsize,
    draining: AtomicBool,
    /// Open connections there is memory for: any number, or when memory is short, as many as there were then.
    room: AtomicUsize,
    hasher: RandomState,
    subjects: [Mutex<HashMap<Subject, Counted>>; Gate::STRIPES],
    /// Where it is noted whose open connections have changed, when other processes count them as well.
    changed: OnceLock<Mutex<HashSet<Subject>>>,
    /// New connections of addresses, in windows.
    handshakes: Box<[Mutex<Windows<Ip>>]>,
    tally: Tally,
}

/// What there is of one address or user. Users have open connections only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counted {
    open: u32,
    sockets: u32,
    /// Sessions that have dropped out and may come back.
    ghosts: u32,
    /// Open connections of other processes, as far as is known.
    elsewhere: u32,
}

/// An address as limits see it: an IPv4 address, or the /64 that an IPv6 address is in. Eight bytes, kept in each connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ip(u64);

impl fmt::Display for Ip {
    /// An IPv4 address, or the network of an IPv6 address.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match u32::try_from(self.0) {
            Ok(bits) => write!(f, "{}", Ipv4Addr::from_bits(bits)),
            Err(_) => write!(f, "{}/64", Ipv6Addr::from_bits(u128::from(self.0) << 64)),
        }
    }
}

impl From<IpAddr> for Ip {
    fn from(address: IpAddr) -> Ip {
        match address.to_canonical() {
            // In ::/32, which no host's network is in.
            IpAddr::V4(v4) => Ip(u64::from(v4.to_bits())),
            IpAddr::V6(v6) => Ip((v6.to_bits() >> 64) as u64),
        }
    }
}

impl From<Ip> for IpAddr {
    /// The address, or the first one of the network: an [`Ip`] of it is the same again.
    fn from(ip: Ip) -> IpAddr {
        match u32::try_from(ip.0) {
            Ok(bits) => Ipv4Addr::from_bits(bits).into(),
            Err(_) => Ipv6Addr::from_bits(u128::from(ip.0) << 64).into(),
        }
    }
}

/// Who a client is, once it has shown that. One for all connections of a user in a shard that came with the same token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The user's name, as whoever vouches for it calls the user. At most 200 bytes, without control characters.
    pub name: CompactString,
    /// When that is no longer vouched for, in seconds from 1970; [`u64::MAX`] for never.
    pub expires_at_s: u64,
    /// What else was said of the user; `None` for nothing.
    pub granted: Option<Box<Granted>>,
}

// With the counts of its `Arc` it fits 64 bytes of the allocator, a name of up to 24 bytes included.
const _: () = assert!(size_of::<User>() <= 40);

/// What few users have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Granted {
    /// What the user is.
    pub roles: Box<[Box<str>]>,
    /// What it may do with rooms; `None` when that was not said.
    pub permissions: Option<Box<[Grant]>>,
    /// Messages a second of each of its connections, in place of what is configured; 0 for no limit.
    pub messages_per_second_max: Option<u32>,
    /// Bytes a second of each of its connections, likewise.
    pub bytes_per_second_max: Option<u32>,
    /// Open connections of this user, in place of what is configured; 0 for no limit.
    pub connections_max: Option<u32>,
}

impl User {
    /// Somebody of whom only the name is known, for ever.
    pub fn named(name: &str) -> User {
        User { name: name.into(), expires_at_s: u64::MAX, granted: None }
    }

    /// How many connections its token allows it, if that says so; 0 for no limit.
    fn connections_max(&self) -> Option<u32> {
        self.granted.as_ref()?.connections_max
    }

    /// The user as permissions see it.
    pub fn actor(&self) -> Actor<'_> {
        let granted = self.granted.as_deref();
        Actor {
            name: Some(&self.name),
            roles: granted.map_or(&[], |granted| &granted.roles),
            grants: granted.and_then(|granted| granted.permissions.as_deref()),
        }
    }
}

/// What is said of a client by whoever may say who it is.
#[derive(Clone, Debug)]
pub struct Vouched {
    /// Who it is.
    pub user: User,
    /// The rooms that it is to join at once: names that are right, at most as many as a connection may join.
    pub rooms: Vec<Room>,
}

/// A room that somebody is to join at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Room {
    /// The namespace that it is in; `/` for the main one, and for native clients.
    pub namespace: CompactString,
    /// Its name there.
    pub name: CompactString,
}

/// Who has a limit for itself: an address, or a user, whatever else is known of that. Sixteen bytes.
#[derive(Clone, Debug)]
pub enum Subject {
    /// All connections of an address.
    Ip(Ip),
    /// All connections of a user.
    User(Arc<User>),
}

impl PartialEq for Subject {
    fn eq(&self, other: &Subject) -> bool {
        match (self, other) {
            (Subject::Ip(one), Subject::Ip(other)) => one == other,
            (Subject::User(one), Subject::User(other)) => one.name == other.name,
            _ => false,
        }
    }
}

impl Eq for Subject {}

impl Hash for Subject {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            Subject::Ip(ip) => ip.hash(state),
            Subject::User(user) => user.name.hash(state),
        }
    }
}

impl fmt::Display for Subject {
    /// What it is called among processes. No address is like a user.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Ip(ip) => ip.fmt(f),
            Subject::User(user) => write!(f, "user:{}", user.name),
        }
    }
}

impl Gate {
    const STRIPES: usize = 16;
    /// Memory is not short any more when this much is left, as a part of what is to stay free.
    const SPARE_AGAIN: f64 = 1.5;
    /// Others have taken what was left when there is less than this.
    const SPARE_LEAST: f64 = 0.5;

    /// A gate with these rules and nobody inside.
    pub fn new(rules: Rules) -> Gate {
        let windows_max = rules.event_windows_max.div_ceil(Gate::STRIPES);
        Gate {
            handshakes: (0..Gate::STRIPES).map(|_| Mutex::new(Windows::new(windows_max))).collect(),
            tally: Tally::new(rules.events.clone(), rules.event_windows_max),
            rules: ArcSwap::from_pointee(rules),
            sockets: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
            room: AtomicUsize::new(usize::MAX),
            hasher: RandomState::new(),
            subjects: Default::default(),
            changed: OnceLock::new(),
        }
    }

    /// From now on these are the rules. Nobody who is inside goes for that. How many windows of events there may be stays what it was, and
    /// so must, for those who are inside, whether there is a limit for an address and for a user.
    pub fn set_rules(&self, rules: Rules) {
        let earlier = self.rules.load();
        let counts = |rules: &Rules| (rules.per_ip_max.is_some(), rules.per_user_max.is_some());
        assert_eq!(counts(&earlier), counts(&rules), "who is inside was counted, or was not");
        self.tally.set_limits(rules.events.clone());
        self.rules.store(Arc::new(rules));
    }

    /// From now on the connections of addresses and users are counted over several processes: what changes here is noted for
    /// [`Gate::take_changed`], and what is elsewhere counts here. False when neither has a limit, so that nothing is counted.
    pub fn share(&self) -> bool {
        let rules = self.rules.load();
        let has_limit = rules.per_ip_max.is_some() || rules.per_user_max.is_some();
        has_limit && self.changed.set(Mutex::default()).is_ok()
    }

    /// The addresses and users whose open connections have changed since the last time. As many as may have changed meanwhile, each once.
    pub fn take_changed(&self) -> Vec<Subject> {
        let changed = self
            .changed
            .get()
            .map(|changed| mem::take(&mut *changed.lock().unwrap_or_else(PoisonError::into_inner)));
        changed.into_iter().flatten().collect()
    }

    /// All addresses and users with open connections.
    pub fn inside(&self) -> Vec<Subject> {
        let mut inside = Vec::new();
        for stripe in &self.subjects {
            let table = stripe.lock().unwrap_or_else(PoisonError::into_inner);
            let open = table.iter().filter(|(_, counted)| counted.open > 0);
            inside.extend(open.map(|(subject, _)| subject.clone()));
        }
        inside
    }

    /// Open connections of an address or user in this process.
    pub fn open_of(&self, subject: &Subject) -> u32 {
        self.table(subject).get(subject).map_or(0, |counted| counted.open)
    }

    /// An address or user has so many open connections in other processes.
    pub fn set_elsewhere(&self, subject: &Subject, elsewhere: u32) {
        if let Some(counted) = self.table(subject).get_mut(subject) {
            counted.elsewhere = elsewhere;
        }
    }

    /// Nobody knows of other processes: what is open here is all that counts.
    pub fn forget_elsewhere(&self) {
        for stripe in &self.subjects {
            let mut table = stripe.lock().unwrap_or_else(PoisonError::into_inner);
            table.values_mut().for_each(|counted| counted.elsewhere = 0);
        }
    }

    fn note_changed(&self, subject: Subject) {
        if let Some(changed) = self.changed.get() {
            changed.lock().unwrap_or_else(PoisonError::into_inner).insert(subject);
        }
    }

    /// Counts a socket. Shards that race for the last place each get one, so there may be one more than `sockets_max` for each shard.
    /// `from_proxy` when it comes from a proxy that is trusted, whose address says nothing.
    ///
    /// # Errors
    /// [`Reject::PerIp`] when there are too many of this address. It is counted all the same, until [`Gate::leave_socket`].
    pub fn enter_socket(&self, ip: Ip, from_proxy: bool) -> Result<(), Reject> {
        self.sockets.fetch_add(1, Relaxed);
        match self.rules.load().sockets_per_ip_max.filter(|_| !from_proxy) {
            Some(max) => {
                let subject = Subject::Ip(ip);
                let mut table = self.table(&subject);
                let counted = table.entry(subject).or_default();
                counted.sockets += 1;
                if counted.sockets > max { Err(Reject::PerIp) } else { Ok(()) }
            }
            None => Ok(()),
        }
    }

    /// True when there is a place for a socket; otherwise it must wait in the kernel's queue.
    pub fn has_place(&self) -> bool {
        self.sockets.load(Relaxed) < self.rules.load().sockets_max
    }

    /// Frees the place of a socket.
    pub fn leave_socket(&self, ip: Ip, from_proxy: bool) {
        self.sockets.fetch_sub(1, Relaxed);
        if self.rules.load().sockets_per_ip_max.is_some() && !from_proxy {
            self.uncount(&Subject::Ip(ip), |counted| counted.sockets -= 1);
        }
    }

    /// Counts that somebody at `ip` wants to open a connection, whatever becomes of that.
    ///
    /// # Errors
    /// [`Reject::IpRate`] when too many of this address have wanted to, and [`Reject::Full`] when memory is short: before anybody is asked
    /// who this is.
    pub fn knock(&self, ip: Ip, now: Time) -> Result<(), Reject> {
        if self.open() >= self.room.load(Relaxed) {
            return Err(Reject::Full);
        }
        let Some(quota) = self.rules.load().handshakes_per_ip else { return Ok(()) };
        let stripe = self.hasher.hash_one(ip) as usize % Gate::STRIPES;
        let mut windows = self.handshakes[stripe].lock().unwrap_or_else(PoisonError::into_inner);
        let knocked = windows.take(ip, quota, 1, now).map(|_| ());
        knocked.map_err(|retry_ms| Reject::IpRate(retry_ms.div_ceil(1000)))
    }

    /// Takes a place for an open connection from `ip`.
    ///
    /// # Errors
    /// [`Reject::Full`] or [`Reject::PerIp`]; then nothing was taken.
    pub fn admit(&self, ip: Ip) -> Result<(), Reject> {
        let max = self.rules.load().connections_max.min(self.room.load(Relaxed));
        if !take_place(&self.open, max) {
            return Err(Reject::Full);
        }
        if let Some(max) = self.rules.load().per_ip_max
            && !self.take_one(Subject::Ip(ip), max)
        {
            self.open.fetch_sub(1, Relaxed);
            return Err(Reject::PerIp);
        }
        self.peak.fetch_max(self.open(), Relaxed);
        Ok(())
    }

    /// Frees the place of an open connection from `ip`.
    pub fn dismiss(&self, ip: Ip) {
        self.open.fetch_sub(1, Relaxed);
        if self.rules.load().per_ip_max.is_some() {
            self.give_one_back(Subject::Ip(ip));
        }
    }

    /// Counts an open connection as one of `user`, once it is known to be.
    ///
    /// # Errors
    /// [`Reject::PerUser`]; then nothing was counted.
    pub fn admit_user(&self, user: &Arc<User>) -> Result<(), Reject> {
        if !self.counts(user) || self.take_one(Subject::User(user.clone()), self.most_of(user)) {
            Ok(())
        } else {
            Err(Reject::PerUser)
        }
    }

    /// A user has shown a newer token, on a connection that was counted by an `older` one.
    pub fn renew_user(&self, older: &Arc<User>, newer: &Arc<User>) {
        match (self.counts(older), self.counts(newer)) {
            // It is here already, and stays.
            (false, true) => _ = self.take_one(Subject::User(newer.clone()), u32::MAX),
            (true, false) => self.give_one_back(Subject::User(older.clone())),
            _ => {}
        }
    }

    /// True when the connections of a user that came with such a token are counted.
    fn counts(&self, user: &User) -> bool {
        self.rules.load().per_user_max.is_some() || user.connections_max().is_some()
    }

    fn most_of(&self, user: &User) -> u32 {
        match user.connections_max().or(self.rules.load().per_user_max) {
            None | Some(0) => u32::MAX,
            Some(most) => most,
        }
    }

    /// A connection that was counted as one of `user` has ended.
    pub fn dismiss_user(&self, user: &Arc<User>) {
        if self.counts(user) {
            self.give_one_back(Subject::User(user.clone()));
        }
    }

    /// Counts an open connection. False when there are `max` already, here and elsewhere.
    fn take_one(&self, subject: Subject, max: u32) -> bool {
        let mut table = self.table(&subject);
        let before = table.get(&subject).copied().unwrap_or_default();
        let has_place = before.open.saturating_add(before.elsewhere) < max;
        if has_place {
            table.entry(subject.clone()).or_default().open += 1;
        }
        drop(table);
        // Also when there is no place: perhaps some of those elsewhere are gone.
        self.note_changed(subject);
        has_place
    }

    fn give_one_back(&self, subject: Subject) {
        self.uncount(&subject, |counted| counted.open -= 1);
        self.note_changed(subject);
    }

    /// Counts a session that drops out and may come back. False when `ip` has as many of them as it may have connections: then it may
    /// not.
    pub fn haunt(&self, ip: Ip) -> bool {
        let Some(max) = self.rules.load().per_ip_max else { return true };
        let subject = Subject::Ip(ip);
        let mut table = self.table(&subject);
        let counted = table.entry(subject).or_default();
        let has_place = counted.ghosts < max;
        counted.ghosts += u32::from(has_place);
        has_place
    }

    /// Such a session has come back, or will not.
    pub fn exorcise(&self, ip: Ip) {
        if self.rules.load().per_ip_max.is_some() {
            self.uncount(&Subject::Ip(ip), |counted| counted.ghosts -= 1);
        }
    }

    /// Takes one away of what is counted for `subject`, which is forgotten when nothing is left.
    fn uncount(&self, subject: &Subject, take: impl FnOnce(&mut Counted)) {
        let mut table = self.table(subject);
        if let Some(counted) = table.get_mut(subject) {
            take(counted);
            if (Counted { elsewhere: 0, ..*counted }) == Counted::default() {
                table.remove(subject);
                if table.is_empty() {
                    table.shrink_to_fit();
                }
            }
        }
    }

    /// A connection that was counted for one address is now of another.
    pub fn transfer(&self, from: Ip, to: Ip) {
        if self.rules.load().per_ip_max.is_some() {
            let to = Subject::Ip(to);
            self.give_one_back(Subject::Ip(from));
            self.table(&to).entry(to.clone()).or_default().open += 1;
            self.note_changed(to);
        }
    }

    /// Open connections now.
    pub fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    /// The most open connections at once so far.
    pub fn peak(&self) -> usize {
        self.peak.load(Relaxed)
    }

    /// What those inside have used of the limits on events.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// How many there may be.
    pub fn connections_max(&self) -> usize {
        self.rules.load().connections_max
    }

    /// Sockets there may be in the process, open connections included.
    pub fn sockets_max(&self) -> usize {
        self.rules.load().sockets_max
    }

    /// So much memory is left, as a part of what is to stay free. When it is not all of that, memory is short, until it is half as much again:
    /// as many connections may be open as there are. They can be others, since what one that ends has taken is not given back
    /// by the kernel but used for the next. When only half is left, there may be fewer from then on, as others have taken it.
    /// Answers, when that changes, whether memory is short now.
    pub fn weigh(&self, spare: f64) -> Option<bool> {
        let was_short = self.is_short_of_memory();
        let is_short = spare <= if was_short { Gate::SPARE_AGAIN } else { 1.0 };
        if !is_short {
            self.room.store(usize::MAX, Relaxed);
        } else if !was_short || spare < Gate::SPARE_LEAST {
            self.room.fetch_min(self.open(), Relaxed);
        }
        (is_short != was_short).then_some(is_short)
    }

    /// How many hundredths of the memory may be taken.
    pub fn memory_percent_max(&self) -> u32 {
        self.rules.load().memory_percent_max
    }

    /// True while there may be no more connections because of the memory that is taken.
    pub fn is_short_of_memory(&self) -> bool {
        self.room.load(Relaxed) != usize::MAX
    }

    /// From now on nobody should be sent here any more. Who comes all the same is admitted, as long as the shard that it comes to does not drain.
    pub fn drain(&self) {
        self.draining.store(true, Relaxed);
    }

    /// True exactly when [`Gate::drain`] was called.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }

    /// Whether a page of `origin` may connect. A client that sends none is no browser and may.
    ///
    /// # Errors
    /// [`Reject::Origin`].
    pub fn check_origin(&self, origin: Option<&str>) -> Result<(), Reject> {
        let Some(origin) = origin else { return Ok(()) };
        let origins = &self.rules.load().origins;
        let allowed = origins.is_empty() || origins.iter().any(|rule| origin_matches(rule, origin));
        if allowed { Ok(()) } else { Err(Reject::Origin) }
    }

    /// True when `address` is a proxy whose word on its clients is believed.
    pub fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.rules.load().trusted_proxies.iter().any(|network| network.contains(&address))
    }

    /// The client behind a trusted proxy: going back from the nearest, the first address that is no trusted proxy. `None` when the
    /// proxies do not say, or say nothing that is an address.
    pub fn client(&self, forwarded: &Forwarded<'_>) -> Option<IpAddr> {
        let hops: Vec<Option<IpAddr>> = match self.rules.load().believed {
            Believed::Forwarded => {
                forwarded.standard.iter().flat_map(|line| line.split(',')).map(forwarded_for).collect()
            }
            Believed::XForwardedFor => {
                forwarded.customary.iter().flat_map(|line| line.split(',')).map(host).collect()
            }
        };
        let mut client = None;
        for hop in hops.into_iter().rev() {
            // What stands behind something that is no address was written by nobody we know.
            let Some(address) = hop else { break };
            client = Some(address);
            if !self.trusts(address) {
                break;
            }
        }
        client
    }

    fn table(&self, subject: &Subject) -> MutexGuard<'_, HashMap<Subject, Counted>> {
        let stripe = self.hasher.hash_one(subject) as usize % Gate::STRIPES;
        self.subjects[stripe].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn take_place(places: &AtomicUsize, max: usize) -> bool {
    if places.fetch_add(1, Relaxed) < max {
        return true;
    }
    places.fetch_sub(1, Relaxed);
    false
}

/// True when `origin` is what `rule` allows. Schemes and hosts are compared in any case (RFC 6454 section 4).
pub fn origin_matches(rule: &str, origin: &str) -> bool {
    let Some((scheme, domain)) = rule.split_once("://*.") else { return rule.eq_ignore_ascii_case(origin) };
    let Some((origin_scheme, host)) = origin.split_once("://") else { return false };
    let Some(cut) = host.len().checked_sub(domain.len()) else { return false };
    origin_scheme.eq_ignore_ascii_case(scheme)
        && host.is_char_boundary(cut)
        && host[cut..].eq_ignore_ascii_case(domain)
        && host[..cut].len() > 1
        && host[..cut].ends_with('.')
}

/// The address in one element of a `Forwarded` header (RFC 7239 section 4).
fn forwarded_for(element: &str) -> Option<IpAddr> {
    element.split(';').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.trim().eq_ignore_ascii_case("for").then(|| host(value.trim().trim_matches('"')))?
    })
}

/// An address that may have a port behind it, and brackets around it if it is IPv6.
fn host(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    if let Some(inner) = text.strip_prefix('[') {
        return inner.split(']').next()?.parse().ok();
    }
    text.parse().ok().or_else(|| text.rsplit_once(':')?.0.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use smallvec::SmallVec;

    fn gate(rules: Rules) -> Gate {
        Gate::new(Rules { connections_max: 10, sockets_max: 12, ..rules })
    }

    fn ip(text: &str) -> Ip {
        text.parse::<IpAddr>().expect("an address").into()
    }

    #[test]
    fn there_are_no_more_than_there_were_while_memory_is_short() {
        let (gate, ip) = (gate(Rules::default()), Ip::default());
        (0..4).for_each(|_| gate.admit(ip).expect("there is room"));
        assert_eq!(
            [2.0, 1.1, 1.0, 0.6, 1.4].map(|spare| gate.weigh(spare)),
            [None, None, Some(true), None, None]
        );
        assert!(gate.is_short_of_memory());
        assert_eq!((gate.knock(ip, Time::default()), gate.admit(ip)), (Err(Reject::Full), Err(Reject::Full)));
        // Who goes makes room for another.
        gate.dismiss(ip);
        assert_eq!((gate.knock(ip, Time::default()), gate.admit(ip)), (Ok(()), Ok(())));
        assert_eq!(gate.admit(ip), Err(Reject::Full));
        // Unless somebody else has taken it.
        gate.dismiss(ip);
        assert_eq!((gate.weigh(0.4), gate.weigh(0.9)), (None, None));
        assert_eq!((gate.admit(ip), gate.open()), (Err(Reject::Full), 3));
        assert_eq!(gate.weigh(1.6), Some(false));
        assert_eq!((gate.knock(ip, Time::default()), gate.admit(ip)), (Ok(()), Ok(())));
        assert_eq!(gate.weigh(f64::INFINITY), None);
    }

    #[test]
    fn places_are_counted_in_all_and_per_address() {
        let gate = gate(Rules { per_ip_max: Some(2), ..Rules::default() });
        for _ in 0..2 {
            gate.admit(ip("10.0.0.1")).expect("two may");
        }
        assert_eq!(
            gate.admit(ip("::ffff:10.0.0.1")),
            Err(Reject::PerIp),
            "the same address, written as IPv6"
        );
        gate.dismiss(ip("10.0.0.1"));
        gate.admit(ip("10.0.0.1")).expect("a place was freed");
        gate.admit(ip("2001:db8:1:2::1")).expect("another address");
        gate.admit(ip("2001:db8:1:2::2")).expect("the same /64");
        assert_eq!(gate.admit(ip("2001:db8:1:2:ffff::3")), Err(Reject::PerIp));
        for host in 1..=6 {
            gate.admit(ip(&format!("10.1.0.{host}"))).expect("up to ten");
        }
        assert_eq!((gate.open(), gate.admit(ip("10.2.0.1"))), (10, Err(Reject::Full)));
    }

    #[test]
    fn an_address_can_be_had_back() {
        for text in ["10.0.0.1", "0.0.0.0", "2001:db8:1:2::"] {
            assert_eq!(IpAddr::from(ip(text)).to_string(), text);
        }
        let network = IpAddr::from(ip("2001:db8:1:2:3::4"));
        assert_eq!(
            (network.to_string().as_str(), Ip::from(network)),
            ("2001:db8:1:2::", ip("2001:db8:1:2:3::4"))
        );
    }

    #[test]
    fn sockets_have_a_ceiling_of_their_own() {
        let gate = gate(Rules::default());
        let enter = || gate.enter_socket(ip("10.0.0.1"), false).expect("no limit per address");
        let taken = std::iter::repeat_with(enter).take_while(|()| gate.has_place()).count();
        assert_eq!(taken, 11, "after the twelfth there is no place");
        gate.leave_socket(ip("10.0.0.1"), false);
        assert!(gate.has_place());
    }

    #[test]
    fn sockets_of_one_address_have_one_too() {
        let gate = gate(Rules { sockets_per_ip_max: Some(2), ..Rules::default() });
        let enter = |from_proxy| gate.enter_socket(ip("10.0.0.1"), from_proxy);
        assert_eq!([enter(false), enter(false), enter(false)], [Ok(()), Ok(()), Err(Reject::PerIp)]);
        assert_eq!(enter(true), Ok(()), "behind a proxy there are many");
        gate.leave_socket(ip("10.0.0.1"), true);
        assert_eq!(enter(false), Err(Reject::PerIp), "the one that was refused is counted until it is gone");
        (0..4).for_each(|_| gate.leave_socket(ip("10.0.0.1"), false));
        assert!(
            gate.table(&Subject::Ip(ip("10.0.0.1"))).is_empty(),
            "an address without sockets is forgotten"
        );
    }

    fn user(name: &str) -> Arc<User> {
        Arc::new(User::named(name))
    }

    #[test]
    fn connections_of_a_user_have_a_limit_of_their_own() {
        let gate = gate(Rules { per_user_max: Some(2), ..Rules::default() });
        // Two that are told apart by nothing but where they are known.
        let (here, there) = (user("7"), user("7"));
        assert_eq!((gate.admit_user(&here), gate.admit_user(&there)), (Ok(()), Ok(())));
        assert_eq!(gate.admit_user(&there), Err(Reject::PerUser));
        gate.admit_user(&user("8")).expect("somebody else");
        gate.dismiss_user(&here);
        gate.admit_user(&there).expect("a place was freed");
        (0..2).for_each(|_| gate.dismiss_user(&there));
        gate.dismiss_user(&user("8"));
        assert!(gate.subjects.iter().all(|table| table.lock().expect("nobody panicked").is_empty()));

        let unlimited = Gate::new(Rules::default());
        (0..100).for_each(|_| unlimited.admit_user(&here).expect("there is no limit"));
    }

    #[test]
    fn what_other_processes_have_counts_for_users_and_addresses() {
        let rules = Rules { per_user_max: Some(3), per_ip_max: Some(3), ..Rules::default() };
        let (gate, anna, address) = (gate(rules), user("anna"), ip("10.0.0.1"));
        assert!(gate.share(), "there is something to share");
        gate.admit_user(&anna).expect("the first");
        gate.admit(address).expect("the first");
        let mut changed = gate.take_changed();
        changed.sort_by_key(ToString::to_string);
        let names = changed.iter().map(|subject| format!("{subject} {}", gate.open_of(subject)));
        assert_eq!(names.collect::<Vec<String>>(), ["10.0.0.1 1", "user:anna 1"]);
        changed.iter().for_each(|subject| gate.set_elsewhere(subject, 2));
        assert_eq!((gate.admit_user(&anna), gate.admit(address)), (Err(Reject::PerUser), Err(Reject::PerIp)));
        assert_eq!(gate.take_changed().len(), 2, "who was refused is asked about again");
        gate.forget_elsewhere();
        assert_eq!((gate.admit_user(&anna), gate.admit(address)), (Ok(()), Ok(())));
        assert_eq!(gate.inside().len(), 2);
        assert!(!Gate::new(Rules::default()).share(), "there is nothing");
    }

    #[test]
    fn origins_match_by_rule() {
        let origins = ["https://a.example", "https://*.b.example:8443", "null"].map(str::to_owned).to_vec();
        let gate = gate(Rules { origins, ..Rules::default() });
        let allows = |origin: &str| gate.check_origin(Some(origin)).is_ok();
        assert!(gate.check_origin(None).is_ok(), "no browser");
        assert!(allows("https://a.example") && allows("HTTPS://A.example") && allows("null"));
        assert!(allows("https://x.b.example:8443") && allows("https://x.y.b.example:8443"));
        for origin in [
            "http://a.example",
            "https://a.example:444",
            "https://xa.example",
            "https://b.example:8443",
            "https://.b.example:8443",
            "https://x.b.example",
            "https://xb.example:8443",
            "https://ü.example",
            "",
        ] {
            assert!(!allows(origin), "{origin}");
        }
    }

    #[test]
    fn only_the_words_of_trusted_proxies_are_followed() {
        let trusted_proxies =
            vec!["10.0.0.0/8".parse().expect("a network"), "2001:db8::/32".parse().expect("a network")];
        let believed = Believed::Forwarded;
        let other =
            Gate::new(Rules { trusted_proxies: trusted_proxies.clone(), believed, ..Rules::default() });
        let gate = gate(Rules { trusted_proxies, ..Rules::default() });
        let customary = |lines: &[&'static str]| {
            let forwarded = Forwarded { customary: lines.into(), standard: SmallVec::new() };
            gate.client(&forwarded).map(|address| address.to_string())
        };
        assert_eq!(customary(&["1.2.3.4"]).as_deref(), Some("1.2.3.4"));
        assert_eq!(
            customary(&["6.6.6.6, 1.2.3.4, 10.0.0.9"]).as_deref(),
            Some("1.2.3.4"),
            "what a client adds is not"
        );
        assert_eq!(customary(&["6.6.6.6", "1.2.3.4:555"]).as_deref(), Some("1.2.3.4"), "lines are one list");
        assert_eq!(customary(&["1.2.3.4, unknown"]), None);
        assert_eq!(customary(&["6.6.6.6, junk, 10.0.0.9"]).as_deref(), Some("10.0.0.9"));
        assert_eq!(customary(&[]), None);
        let standard = |line: &'static str| {
            let forwarded =
                Forwarded { standard: [line].as_slice().into(), customary: ["9.9.9.9"].as_slice().into() };
            assert_eq!(
                gate.client(&forwarded).map(|address| address.to_string()).as_deref(),
                Some("9.9.9.9")
            );
            other.client(&forwarded).map(|address| address.to_string())
        };
        assert_eq!(standard("for=192.0.2.60;proto=http;by=203.0.113.43").as_deref(), Some("192.0.2.60"));
        assert_eq!(standard("for=1.1.1.1, For=\"[2001:db9::17]:4711\"").as_deref(), Some("2001:db9::17"));
        assert_eq!(standard("for=_hidden"), None);
        assert!(gate.trusts("::ffff:10.1.2.3".parse().expect("an address")));
    }
}
