//! What a value of a setting is: as it was given ([`Given`]), what is allowed ([`Kind`]), and what came of it ([`Value`]).

use super::{GIB, MIB, line_column};
use crate::rules::{Namespaces, Pattern, is_event_name};
use hyper::Uri;
use ipnet::IpNet;
use std::fmt::{self, Display};
use std::net::{IpAddr, SocketAddr};
use toml::de::DeValue;

/// What values a setting takes. Bounds are inclusive.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Yes or no.
    Flag,
    /// A whole number.
    Number {
        /// The least.
        min: u64,
        /// The greatest.
        max: u64,
    },
    /// A number of bytes, or a text with a unit.
    Bytes {
        /// The least, in bytes.
        min: u64,
        /// The greatest, in bytes.
        max: u64,
    },
    /// A number of milliseconds, or a text with a unit.
    Ms {
        /// The least, in milliseconds.
        min: u64,
        /// The greatest, in milliseconds.
        max: u64,
    },
    /// One of these words.
    Word(&'static [&'static str]),
    /// An address and a port.
    Address,
    /// An address and a port, or `off`.
    AddressOrOff,
    /// A list of networks and addresses.
    Networks,
    /// A list of origins of web pages.
    Origins,
    /// The same, or `*` for any.
    CorsOrigins,
    /// The path of a URL, with a slash at both ends.
    Path,
    /// The same, or an empty text.
    PathOrNone,
    /// The path of a URL that a WebSocket is opened at, or an empty text.
    SocketPathOrNone,
    /// A list of patterns of namespaces, from one to [`Namespaces::PATTERNS_MAX`].
    Namespaces,
    /// The name of an event, or an empty text.
    EventOrNone,
    /// A list of URLs of Redis servers.
    RedisUrls,
    /// Letters that can stand in the name of a channel, or an empty text.
    NameOrNone,
    /// What nobody is to read in what is printed.
    Secret,
    /// The path of a file, or an empty text. Whether it is there shows when it is read.
    FileOrNone,
    /// A key of the HTTP API, likewise, or an empty text.
    KeyOrNone,
    /// The same, of at least so many bytes, or an empty text.
    LongSecret {
        /// The least, in bytes.
        bytes_min: usize,
    },
    /// Letters without spaces.
    Name,
    /// A list of texts.
    Texts,
    /// A list of these words.
    Words(&'static [&'static str]),
    /// A path or a URL, or an empty text.
    PlaceOrNone,
    /// A URL of http or https, or an empty text.
    UrlOrNone,
}

impl Kind {
    /// What it takes, in words.
    pub fn allowed(&self) -> String {
        match *self {
            Kind::Flag => "true or false".to_owned(),
            Kind::Number { min, max } => format!("a whole number from {min} to {max}"),
            Kind::Bytes { min, max } => format!("a size from {} to {}", size(min), size(max)),
            Kind::Ms { min, max } => format!("a time from {min} to {max} ms"),
            Kind::Word(words) => match words.split_last() {
                Some((last, rest)) => format!("\"{}\" or \"{last}\"", rest.join("\", \"")),
                None => String::new(),
            },
            Kind::Address => "an address and a port, like \"0.0.0.0:7070\" or \"[::]:7070\"".to_owned(),
            Kind::AddressOrOff => "an address and a port, like \"127.0.0.1:7071\", or \"off\"".to_owned(),
            Kind::Networks => {
                "a list of networks and addresses, like [\"10.0.0.0/8\", \"192.0.2.1\"]".to_owned()
            }
            Kind::Origins => {
                "a list of \"scheme://host[:port]\", \"scheme://*.host[:port]\" or \"null\"".to_owned()
            }
            Kind::CorsOrigins => {
                "a list of \"scheme://host[:port]\", \"scheme://*.host[:port]\", \"null\", or \"*\" for any"
                    .to_owned()
            }
            Kind::Path => "a path with a slash at both ends, like \"/socket.io/\"".to_owned(),
            Kind::PathOrNone => format!("{}, or \"\"", Kind::Path.allowed()),
            Kind::SocketPathOrNone => {
                "a path like \"/ws\" or \"/\", but not /health or /ready, or \"\"".to_owned()
            }
            Kind::Namespaces => {
                format!(
                    "a list of 1 to {} namespaces, like \"/\" or \"/chat\", where \"*\" stands for any one segment",
                    Namespaces::PATTERNS_MAX
                )
            }
            Kind::EventOrNone => {
                "the name of an event, but not one that Socket.IO reserves, like \"connect\", or \"\""
                    .to_owned()
            }
            Kind::RedisUrls => {
                "a list of \"redis://[user][:password@]host[:port][/database]\", \"rediss://…\" or \"unix:///path\""
                    .to_owned()
            }
            Kind::NameOrNone => "a text of at most 100 letters without spaces, or \"\"".to_owned(),
            Kind::Secret => "a text".to_owned(),
            Kind::FileOrNone => "the path of a file, or \"\"".to_owned(),
            Kind::KeyOrNone => format!("{KEY}, or \"\""),
            Kind::LongSecret { bytes_min } => format!("a text of at least {bytes_min} bytes, or \"\""),
            Kind::Name => "a text of 1 to 100 letters without spaces".to_owned(),
            Kind::Texts => "a list of texts".to_owned(),
            Kind::Words(words) => format!("a list of \"{}\"", words.join("\", \"")),
            Kind::PlaceOrNone => "a path, or a URL of http or https, or \"\"".to_owned(),
            Kind::UrlOrNone => "a URL like \"http://127.0.0.1:3000/throng\", or \"\"".to_owned(),
        }
    }

    /// How else it may be written, for those that have two ways: the end of a sentence.
    pub(super) fn also(&self) -> &'static str {
        match self {
            Kind::Bytes { .. } => ", in bytes or like \"64KiB\"",
            Kind::Ms { .. } => ", as a number or like \"25s\"",
            _ => "",
        }
    }

    /// Reads what was given.
    ///
    /// # Errors
    /// What of it is not allowed: for a list the elements, else the whole.
    pub(super) fn read(&self, given: &Given) -> Result<Value, Vec<Wrong>> {
        let whole = || vec![Wrong { given: given.to_string(), line: None }];
        match *self {
            Kind::Flag => given.flag().map(Value::Flag).ok_or_else(whole),
            Kind::Number { min, max } => {
                let number = given.number().filter(|number| (min..=max).contains(number));
                number.map(Value::Number).ok_or_else(whole)
            }
            Kind::Bytes { min, max } => {
                let bytes = given.number().or_else(|| with_unit(given.text()?, BYTE_UNITS));
                bytes.filter(|bytes| (min..=max).contains(bytes)).map(Value::Bytes).ok_or_else(whole)
            }
            Kind::Ms { min, max } => {
                let ms = given.number().or_else(|| with_unit(given.text()?, TIME_UNITS));
                ms.filter(|ms| (min..=max).contains(ms)).map(Value::Number).ok_or_else(whole)
            }
            Kind::Word(words) => {
                let word = given.text().and_then(|text| words.iter().find(|word| **word == text));
                word.map(|word| Value::Word(word)).ok_or_else(whole)
            }
            Kind::Address => {
                let address = given.text().and_then(|text| text.parse().ok());
                address.map(|address| Value::Address(Some(address))).ok_or_else(whole)
            }
            Kind::AddressOrOff => match given.text() {
                Some("off") => Ok(Value::Address(None)),
                _ => Kind::Address.read(given),
            },
            Kind::Networks => given.list(network).map(Value::Networks),
            Kind::Origins => given.list(origin).map(Value::Origins),
            Kind::CorsOrigins => {
                let read = |text: &str| if text == "*" { Some(text.to_owned()) } else { origin(text) };
                given.list(read).map(Value::Origins)
            }
            Kind::Path => {
                let path = given.text().filter(|text| is_path(text));
                path.map(|path| Value::Text(path.to_owned())).ok_or_else(whole)
            }
            Kind::PathOrNone => match given.text() {
                Some("") => Ok(Value::Text(String::new())),
                _ => Kind::Path.read(given),
            },
            Kind::SocketPathOrNone => {
                let is_taken = |text: &str| matches!(text, "/health" | "/ready");
                let is_right = |text: &str| {
                    text.is_empty() || text == "/" || is_path(&format!("{text}/")) || is_path(text)
                };
                let path = given.text().filter(|text| is_right(text) && !is_taken(text));
                path.map(|path| Value::Text(path.to_owned())).ok_or_else(whole)
            }
            Kind::Namespaces => {
                let patterns = given.list(Pattern::parse)?;
                match patterns.len() {
                    0 => Err(whole()),
                    1..=Namespaces::PATTERNS_MAX => Ok(Value::Namespaces(Namespaces::new(patterns))),
                    count => Err(vec![Wrong { given: format!("a list of {count}"), line: None }]),
                }
            }
            Kind::EventOrNone => {
                let name = given.text().filter(|text| text.is_empty() || is_event_name(text));
                name.map(|name| Value::Text(name.to_owned())).ok_or_else(whole)
            }
            Kind::RedisUrls => {
                let read = |text: &str| {
                    let known = ["redis://", "rediss://", "unix://"];
                    known.iter().any(|scheme| text.starts_with(scheme)).then(|| text.to_owned())
                };
                // A password may be in what is wrong, too.
                let hide = |wrong: Wrong| Wrong { given: hidden(&wrong.given), ..wrong };
                let urls =
                    given.list(read).map_err(|wrongs| wrongs.into_iter().map(hide).collect::<Vec<_>>());
                urls.map(Value::Urls)
            }
            Kind::NameOrNone => {
                let is_name = |text: &&str| text.len() <= 100 && text.chars().all(|c| c.is_ascii_graphic());
                given.text().filter(is_name).map(|name| Value::Text(name.to_owned())).ok_or_else(whole)
            }
            Kind::Secret => given.text().map(|text| Value::Secret(text.to_owned())).ok_or_else(whole),
            Kind::FileOrNone => {
                let path = given.text().filter(|text| !text.contains('\0'));
                path.map(|path| Value::Text(path.to_owned())).ok_or_else(whole)
            }
            Kind::KeyOrNone => {
                let key = given.text().filter(|text| text.is_empty() || is_key(text));
                let hidden = || vec![Wrong { given: HIDDEN.to_owned(), line: None }];
                key.map(|key| Value::Secret(key.to_owned())).ok_or_else(hidden)
            }
            Kind::LongSecret { bytes_min } => {
                let secret = given.text().filter(|text| text.is_empty() || text.len() >= bytes_min);
                let hidden = || vec![Wrong { given: HIDDEN.to_owned(), line: None }];
                secret.map(|text| Value::Secret(text.to_owned())).ok_or_else(hidden)
            }
            Kind::Name => match given.text() {
                Some("") => Err(whole()),
                _ => Kind::NameOrNone.read(given),
            },
            Kind::Texts => given.list(|text| (!text.is_empty()).then(|| text.to_owned())).map(Value::Origins),
            Kind::Words(words) => {
                let read = |text: &str| words.contains(&text).then(|| text.to_owned());
                given.list(read).map(Value::Origins)
            }
            Kind::PlaceOrNone => {
                let place = given.text().filter(|text| !text.contains(char::is_control));
                place.map(|place| Value::Text(place.to_owned())).ok_or_else(whole)
            }
            Kind::UrlOrNone => {
                let url = given.text().filter(|text| text.is_empty() || is_url(text));
                url.map(|url| Value::Text(url.to_owned())).ok_or_else(whole)
            }
        }
    }
}

/// True for a URL of http or https with a host, and without a query, a password or a fragment.
fn is_url(text: &str) -> bool {
    let Ok(uri) = text.parse::<Uri>() else { return false };
    let has_host = uri.host().is_some_and(|host| !host.is_empty());
    let is_plain = uri.query().is_none() && !text.contains(['@', '#']);
    matches!(uri.scheme_str(), Some("http" | "https")) && has_host && is_plain
}

/// What stands for a secret that is wrong where it is spoken of.
pub(super) const HIDDEN: &str = "what was given";

/// What a key of the HTTP API is, to stand behind "it takes". Letters as RFC 6750 has them for what follows `Bearer`.
pub(super) const KEY: &str = "a text of 16 to 256 letters, digits and -._~+/=";

/// True for such a text.
pub(super) fn is_key(text: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
    (16..=256).contains(&text.len()) && text.bytes().all(is_letter)
}

/// A URL without its password, which stands before the host, or as `pass` behind a path.
pub(super) fn hidden(url: &str) -> String {
    let url = match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if scheme + 3 <= at => format!("{}***{}", &url[..scheme + 3], &url[at..]),
        _ => url.to_owned(),
    };
    let Some((before, pass)) = url.split_once("pass=") else { return url };
    let after = pass.find('&').map_or("", |end| &pass[end..]);
    format!("{before}pass=***{after}")
}

/// A value, or an element of one, that is not allowed.
#[derive(Debug)]
pub(super) struct Wrong {
    pub(super) given: String,
    /// Where it differs from the statement's.
    pub(super) line: Option<usize>,
}

/// A value as it was written, before anybody knows what it is for. Displayed, it is TOML, or what stood in its place.
#[derive(Clone, Debug)]
pub(super) enum Given {
    Flag(bool),
    Number(i128),
    Text(String),
    /// Text without quotes, from the environment or the command line. For a list it is the elements, with commas between.
    Bare(String),
    /// Elements with their lines.
    List(Vec<(Given, usize)>),
    /// What no setting takes: a date, a fraction, a table.
    Other(String),
}

impl Given {
    /// A value from the environment or the command line: TOML if it can be read as such, else bare text.
    pub(super) fn bare(text: &str) -> Given {
        let text = text.trim();
        match DeValue::parse(text) {
            Ok(value) => match Given::from_toml(value.get_ref(), text) {
                Given::Other(_) => Given::Bare(text.to_owned()),
                given => given,
            },
            Err(_) => Given::Bare(text.to_owned()),
        }
    }

    /// A value of a TOML document, whose text is for the lines of list elements.
    pub(super) fn from_toml(value: &DeValue<'_>, text: &str) -> Given {
        match value {
            DeValue::Boolean(flag) => Given::Flag(*flag),
            DeValue::Integer(number) => match i128::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => Given::Number(number),
                Err(_) => Given::Other(number.to_string()),
            },
            DeValue::String(string) => Given::Text(string.clone().into_owned()),
            DeValue::Array(items) => {
                let item = |item: &toml::Spanned<DeValue<'_>>| {
                    (Given::from_toml(item.get_ref(), text), line_column(text, item.span().start).0)
                };
                Given::List(items.iter().map(item).collect())
            }
            DeValue::Float(number) => Given::Other(number.to_string()),
            DeValue::Datetime(date) => Given::Other(date.to_string()),
            DeValue::Table(_) => Given::Other("a table".to_owned()),
        }
    }

    pub(super) fn flag(&self) -> Option<bool> {
        if let Given::Flag(flag) = self { Some(*flag) } else { None }
    }

    pub(super) fn number(&self) -> Option<u64> {
        if let Given::Number(number) = self { u64::try_from(*number).ok() } else { None }
    }

    pub(super) fn text(&self) -> Option<&str> {
        if let Given::Text(text) | Given::Bare(text) = self { Some(text) } else { None }
    }

    /// The elements, each read by `read`.
    pub(super) fn list<T>(&self, read: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, Vec<Wrong>> {
        let items: Vec<(Given, Option<usize>)> = match self {
            Given::List(items) => items.iter().map(|(item, line)| (item.clone(), Some(*line))).collect(),
            Given::Bare(text) => {
                let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
                words.map(|word| (Given::Bare(word.to_owned()), None)).collect()
            }
            _ => return Err(vec![Wrong { given: self.to_string(), line: None }]),
        };
        let mut values = Vec::with_capacity(items.len());
        let mut wrong = Vec::new();
        for (item, line) in items {
            match item.text().and_then(&read) {
                Some(value) => values.push(value),
                None => wrong.push(Wrong { given: item.to_string(), line }),
            }
        }
        if wrong.is_empty() { Ok(values) } else { Err(wrong) }
    }
}

impl Display for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Given::Flag(flag) => write!(f, "{flag}"),
            Given::Number(number) => write!(f, "{number}"),
            Given::Text(text) | Given::Bare(text) => write!(f, "{text:?}"),
            Given::List(items) => {
                let items: Vec<String> = items.iter().map(|(item, _)| item.to_string()).collect();
                write!(f, "[{}]", items.join(", "))
            }
            Given::Other(text) => write!(f, "{text}"),
        }
    }
}

/// A value that is allowed, in the shape of its [`Kind`]. Displayed, it is TOML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Flag(bool),
    /// Of things or of milliseconds.
    Number(u64),
    Bytes(u64),
    Word(&'static str),
    Address(Option<SocketAddr>),
    Networks(Vec<IpNet>),
    Origins(Vec<String>),
    Text(String),
    Namespaces(Namespaces),
    Urls(Vec<String>),
    Secret(String),
}

impl Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Flag(flag) => write!(f, "{flag}"),
            Value::Number(number) => write!(f, "{number}"),
            Value::Bytes(bytes) => match exact_unit(*bytes) {
                Some((count, unit)) => write!(f, "\"{count}{unit}\""),
                None => write!(f, "{bytes}"),
            },
            Value::Word(word) => write!(f, "\"{word}\""),
            Value::Address(Some(address)) => write!(f, "\"{address}\""),
            Value::Address(None) => write!(f, "\"off\""),
            Value::Networks(networks) => {
                let networks: Vec<String> = networks.iter().map(|network| format!("\"{network}\"")).collect();
                write!(f, "[{}]", networks.join(", "))
            }
            Value::Origins(origins) => {
                let origins: Vec<String> = origins.iter().map(|origin| format!("{origin:?}")).collect();
                write!(f, "[{}]", origins.join(", "))
            }
            Value::Text(text) => write!(f, "{text:?}"),
            Value::Secret(text) => write!(f, "{:?}", if text.is_empty() { "" } else { "***" }),
            Value::Urls(urls) => {
                let urls: Vec<String> = urls.iter().map(|url| format!("{:?}", hidden(url))).collect();
                write!(f, "[{}]", urls.join(", "))
            }
            Value::Namespaces(namespaces) => {
                let patterns: Vec<String> = namespaces
                    .iter()
                    .map(|allowance| format!("{:?}", allowance.pattern.to_string()))
                    .collect();
                write!(f, "[{}]", patterns.join(", "))
            }
        }
    }
}

/// A field's type. The table pairs each with a kind that yields its values; defaults pass through here on every start, so a row
/// that pairs them wrongly does not survive its first test.
pub(super) trait FromValue {
    fn from_value(value: Value) -> Self;
}

macro_rules! from_value {
    ($($type:ty: $pattern:pat => $field:expr,)+) => { $(
        impl FromValue for $type {
            fn from_value(value: Value) -> $type {
                match value {
                    $pattern => $field,
                    other => mismatch(&other),
                }
            }
        }
    )+ };
}

from_value! {
    bool: Value::Flag(flag) => flag,
    u32: Value::Number(n) | Value::Bytes(n) => u32::try_from(n).expect("a row's range fits its field"),
    u64: Value::Number(n) | Value::Bytes(n) => n,
    SocketAddr: Value::Address(Some(address)) => address,
    Option<SocketAddr>: Value::Address(address) => address,
    Vec<IpNet>: Value::Networks(networks) => networks,
    Vec<String>: Value::Origins(texts) | Value::Urls(texts) => texts,
    String: Value::Text(text) | Value::Secret(text) => text,
    Namespaces: Value::Namespaces(namespaces) => namespaces,
}

pub(super) fn mismatch(value: &Value) -> ! {
    panic!("the table of settings pairs a field with a kind that yields {value}")
}

/// A network, or an address as the network of only itself.
fn network(text: &str) -> Option<IpNet> {
    match text.parse::<IpNet>() {
        Ok(network) => Some(network.trunc()),
        Err(_) => text.parse::<IpAddr>().ok().map(IpNet::from),
    }
}

/// An origin in the form that browsers send: lower case, and no port where it is the scheme's own.
fn origin(text: &str) -> Option<String> {
    let text = text.to_ascii_lowercase();
    if text == "null" {
        return Some(text);
    }
    let (scheme, authority) = text.split_once("://")?;
    let is_scheme = scheme.starts_with(|first: char| first.is_ascii_lowercase())
        && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    // The colons of an IPv6 address stand in brackets.
    let (host, port) = match authority.rfind(':').filter(|colon| !authority[*colon..].contains(']')) {
        Some(colon) => (&authority[..colon], Some(authority[colon + 1..].parse::<u16>().ok()?)),
        None => (authority, None),
    };
    if !is_scheme || !is_host(host) {
        return None;
    }
    let own = match scheme {
        "http" | "ws" => Some(80),
        "https" | "wss" => Some(443),
        _ => None,
    };
    Some(match port.filter(|port| Some(*port) != own) {
        Some(port) => format!("{scheme}://{host}:{port}"),
        None => format!("{scheme}://{host}"),
    })
}

/// True for a name, `*.` before a name, or an address, an IPv6 address in brackets.
fn is_host(host: &str) -> bool {
    if let Some(address) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return address.parse::<std::net::Ipv6Addr>().is_ok();
    }
    let is_label = |label: &str| {
        !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    host.strip_prefix("*.").unwrap_or(host).split('.').all(is_label)
}

/// True for a path with a slash at both ends, and letters that a URL has unescaped between them.
fn is_path(text: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let is_segment = |segment: &str| !segment.is_empty() && segment.bytes().all(is_letter);
    let inner = text.strip_prefix('/').and_then(|rest| rest.strip_suffix('/'));
    inner.is_some_and(|inner| inner.split('/').all(is_segment))
}

/// Units and what they are worth, in lower case.
type Units = &'static [(&'static str, u64)];

const BYTE_UNITS: Units = &[
    ("", 1),
    ("b", 1),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
];

const TIME_UNITS: Units =
    &[("", 1), ("ms", 1), ("s", 1_000), ("m", 60_000), ("min", 60_000), ("h", 3_600_000)];

/// A whole number with one of `units` behind it, in the unit worth 1.
fn with_unit(text: &str, units: Units) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start().to_ascii_lowercase();
    let (_, worth) = units.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*worth)
}

/// `bytes` as a whole number of the largest unit that divides it, if that is more than a byte.
fn exact_unit(bytes: u64) -> Option<(u64, &'static str)> {
    [(30, "GiB"), (20, "MiB"), (10, "KiB")]
        .into_iter()
        .find(|(shift, _)| bytes != 0 && bytes.trailing_zeros() >= *shift)
        .map(|(shift, unit)| (bytes >> shift, unit))
}

/// `bytes` for people: exact where that is short, else to a tenth.
pub(super) fn size(bytes: u64) -> String {
    if let Some((count, unit)) = exact_unit(bytes).filter(|(count, _)| *count < 10_000) {
        return format!("{count} {unit}");
    }
    match bytes {
        1 => "1 byte".to_owned(),
        0..10_240 => format!("{bytes} bytes"),
        10_240..MIB => format!("{:.1} KiB", bytes as f64 / 1024.0),
        MIB..GIB => format!("{:.1} MiB", bytes as f64 / MIB as f64),
        _ => format!("{:.1} GiB", bytes as f64 / GIB as f64),
    }
}
