//! The bodies of the fuzz targets. `fuzz/` calls them with what a fuzzer makes up; a test here calls them with pseudo-random bytes and
//! with mutations of good ones, so that plain `cargo test` runs each a little.
//!
//! Each panics when what it checks does not hold.

use crate::auth::{Gate, Room, Rules, User, Vouched};
use crate::bus::Bus;
use crate::bus::callouts::{self, Callouts, Question, Verdict};
use crate::bus::mailbox::Mail;
use crate::cluster::{self, Classic, Message, Sharded, throng};
use crate::dialect::coding::{self, Bounds};
use crate::dialect::engineio::{self, Piece, Query, Sid};
use crate::dialect::native::{self, Command};
use crate::dialect::socketio::{self, Body};
use crate::dialect::{Paths, attachments, msgpack, plain};
use crate::message::{Ask, Asker, Draft, Publication, RoomId, SOCKET_ID_CHARS, ShardId, Slot, user_key};
use crate::permissions::{Act, Grant, Permission, Permissions, RoomPattern, Who};
use crate::policy::field::FieldPath;
use crate::policy::{self, Batch, Burst, Changes, Conflate, Dedupe, Merge, Policies, Policy};
use crate::reactor::tls::{CUT_BYTES_MAX, Files, Session, Tls};
use crate::rules::{Coding, EventLimit, EventLimits, Namespaces, Over, Pattern, Per, Unit};
use crate::shard::callouts::Callout;
use crate::shard::turn::Gathered;
use crate::shard::users::{Access, token_in};
use crate::shard::{Farewell, Holdings, OutboxPolicy, Owner, Settings, Shard, SocketIo};
use crate::stats::Stats;
use crate::time::Time;
use crate::token::keys::{Algorithm, KeySource, Place};
use crate::token::{Tokens, claims};
use crate::wire::frame::{self, Header, Opcode, Parsed};
use crate::wire::http::{self, Head};
use crate::wire::proxy::{self, Preface};
use data_encoding::BASE64URL_NOPAD;
use ring::hmac;
use rmp::decode::MessageLen;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, ProtocolVersion, RootCertStore, SupportedProtocolVersion};
use serde_json::Value;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fs;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Request heads: what is accepted is sound, and no beginning of it is taken for the whole.
pub fn http(data: &[u8]) {
    let Ok(Head::Complete(request, used)) = http::parse(data) else { return };
    assert!(used <= data.len());
    assert!(!request.method.is_empty() && !request.path.contains('?'));
    // Empty when some header that is not looked at is not text.
    let text = std::str::from_utf8(&data[..used]).unwrap_or_default();
    if let Some(Ok(upgrade)) = request.upgrade {
        assert!(upgrade.key.len() == 24 && (text.is_empty() || text.contains(upgrade.key)));
        let mut out = Vec::new();
        http::write_switch(&mut out, &upgrade, "");
        assert!(out.ends_with(b"\r\n\r\n"));
    }
    let gate = Gate::new(Rules {
        trusted_proxies: vec!["10.0.0.0/8".parse().expect("a network")],
        ..Rules::default()
    });
    // No address is made of what is none, whatever it says; that it does not panic is the point.
    gate.client(&request.forwarded);
    assert!(gate.check_origin(request.origin).is_ok());
    for cut in 0..used {
        assert!(
            !matches!(http::parse(&data[..cut]), Ok(Head::Complete(..))),
            "{cut} of {used} bytes are no head"
        );
    }
}

/// Headers of the PROXY protocol: what is accepted is bounded, and the same whatever follows; no beginning of it is refused or taken for
/// the whole.
pub fn proxy(data: &[u8]) {
    let parsed = proxy::parse(data);
    let end = match parsed {
        Ok(Preface::Whole { length, .. }) => {
            assert!(length <= data.len() && length <= proxy::PREFACE_BYTES_MAX);
            assert_eq!(proxy::parse(&data[..length]), parsed);
            length
        }
        Ok(Preface::Partial) => {
            assert!(data.len() < proxy::PREFACE_BYTES_MAX);
            data.len()
        }
        Err(proxy::NoPreface) => return,
    };
    for cut in 0..end {
        assert_eq!(proxy::parse(&data[..cut]), Ok(Preface::Partial), "{cut} of {end} bytes");
    }
}

/// Sessions of TLS: bytes that are no client's, or those of a client of rustls, cut, changed and doubled as `data` says. What a session wants
/// back and answers is bounded; one that has failed stays so; where nothing was changed each understands the other, and all comes through.
pub fn tls(data: &[u8]) {
    let Some((kind, script)) = data.split_first() else { return };
    let mut script = script.iter().copied();
    let mut server = Server::new();
    if kind & 1 == 0 {
        while let Some(length) = script.next() {
            let piece: Vec<u8> = script.by_ref().take(length.into()).collect();
            server.hear(&piece);
        }
        return;
    }
    let version = if kind & 2 == 0 { &rustls::version::TLS13 } else { &rustls::version::TLS12 };
    let name = ServerName::try_from("localhost").expect("a name");
    let mut client = ClientConnection::new(tls_client(version), name).expect("a client");
    let (mut wire, mut said, mut is_changed) = (Vec::new(), Vec::new(), false);
    // Since the client last said something, and in all: a session bounds those, and a client of rustls how often it is answered by nothing else.
    let (mut key_changes, mut key_changes_in_all) = (0, 0);
    for op in script.by_ref().take(200).collect::<Vec<_>>() {
        let (op, arg) = (op >> 5, usize::from(op & 0x1f));
        // Most often near the beginning, where records say what they are.
        let at = if arg < 16 { arg } else { wire.len() * (arg - 16) / 16 };
        match op {
            0 | 1 => {
                while client.wants_write() {
                    client.write_tls(&mut wire).expect("a buffer takes it");
                }
                let length = if op == 0 { wire.len() } else { wire.len().min(1 + arg * arg) };
                let piece: Vec<u8> = wire.drain(..length).collect();
                hear_server(&mut client, &server.hear(&piece), is_changed);
            }
            2 if at < wire.len() => {
                wire[at] ^= 1 << (arg % 8);
                is_changed = true;
            }
            3 if at < wire.len() => {
                wire.extend_from_within(at..);
                is_changed = true;
            }
            4 if at < wire.len() => {
                wire.truncate(at);
                is_changed = true;
            }
            5 if !client.is_handshaking() => {
                let bytes = vec![arg as u8; arg * 700];
                // It may have been told that what it said before is not right. What it keeps is bounded: it may take a part.
                if let Ok(taken @ 1..) = client.writer().write(&bytes) {
                    said.extend_from_slice(&bytes[..taken]);
                    key_changes = 0;
                }
            }
            6 if !client.is_handshaking() && key_changes < 8 && key_changes_in_all < 32 => {
                // TLS 1.2 has no such thing.
                let changed = u32::from(client.refresh_traffic_keys().is_ok());
                key_changes += changed;
                key_changes_in_all += changed;
            }
            7 => hear_server(&mut client, &server.say(&vec![0; arg * 700]), is_changed),
            _ => {}
        }
    }
    if !is_changed {
        assert!(!server.has_failed, "the client speaks TLS");
        assert!(said.starts_with(&server.plain), "what came through is what was said");
    }
}

/// A client reads what a session has answered, or said.
fn hear_server(client: &mut ClientConnection, mut bytes: &[u8], is_changed: bool) {
    while !bytes.is_empty() && client.read_tls(&mut bytes).is_ok_and(|count| count > 0) {
        let processed = client.process_new_packets();
        assert!(processed.is_ok() || is_changed, "{processed:?}");
        // What it would keep of them is bounded.
        io::copy(&mut client.reader(), &mut io::sink()).ok();
    }
}

/// A session of TLS, and what belongs to it in a layer.
struct Server {
    session: Session,
    cut: Vec<u8>,
    plain: Vec<u8>,
    has_failed: bool,
}

impl Server {
    fn new() -> Server {
        let session = tls_server().session().expect("a session");
        Server { session, cut: Vec::new(), plain: Vec::new(), has_failed: false }
    }

    /// These bytes have come. Answers what the client gets.
    fn hear(&mut self, piece: &[u8]) -> Vec<u8> {
        let mut bytes = [&self.cut, piece].concat();
        let (before, mut out) = (self.plain.len(), Vec::new());
        let opened = self.session.open(&mut bytes, &mut self.plain, &mut out);
        assert!(self.plain.len() - before <= bytes.len(), "there is no more in records than they are long");
        assert!(out.len() <= 16 << 10, "{} bytes are answered", out.len());
        assert!(opened.is_err() || !self.has_failed, "what is over stays so");
        match opened {
            Ok(opened) => {
                self.cut = bytes.split_off(opened.used);
                // A layer closes the connection then.
                self.has_failed = self.cut.len() > CUT_BYTES_MAX;
                if self.has_failed {
                    self.session = Session::Over;
                }
            }
            Err(_) => self.has_failed = true,
        }
        out
    }

    /// Answers what the client gets.
    fn say(&mut self, plain: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        // Before the end of the handshake, and behind that of the session, it cannot.
        if self.session.is_open() && self.session.seal(plain, &mut self.cut, &mut out).is_ok() {
            assert!(out.len() <= plain.len() + 1024);
        }
        out
    }
}

fn tls_server() -> &'static Tls {
    static SERVER: OnceLock<Tls> = OnceLock::new();
    SERVER.get_or_init(|| {
        let folder = std::env::temp_dir().join(format!("throng-fuzz-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder of ours");
        let files = &Files { certificates: folder.join("cert.pem"), key: folder.join("key.pem") };
        fs::write(&files.certificates, TLS_CERTIFICATE).expect("a file");
        fs::write(&files.key, TLS_KEY).expect("a file");
        let tls = Tls::load(files, false).expect("the files are right");
        fs::remove_dir_all(&folder).expect("it is ours");
        tls
    })
}

fn tls_client(version: &'static SupportedProtocolVersion) -> Arc<ClientConfig> {
    static CLIENTS: Mutex<Vec<(ProtocolVersion, Arc<ClientConfig>)>> = Mutex::new(Vec::new());
    let mut clients = CLIENTS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, config)) = clients.iter().find(|(other, _)| *other == version.version) {
        return config.clone();
    }
    let mut roots = RootCertStore::empty();
    let certificate = CertificateDer::from_pem_slice(TLS_CERTIFICATE.as_bytes()).expect("a certificate");
    roots.add(certificate).expect("a certificate");
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[version])
        .expect("the provider has it")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let config = Arc::new(config);
    clients.push((version.version, config.clone()));
    config
}

/// Of `localhost`, from 1975 to 2975. Nobody else believes it.
const TLS_CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\n\
MIIBLzCB16ADAgECAgEBMAoGCCqGSM49BAMCMBQxEjAQBgNVBAMMCWxvY2FsaG9z\n\
dDAgFw03NTAxMDEwMDAwMDBaGA8yOTc1MDEwMTAwMDAwMFowFDESMBAGA1UEAwwJ\n\
bG9jYWxob3N0MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEZqotm88HHXBehQ6r\n\
2gDFqc0RoblE+W6OeMMDaGnBb8l9mGEdJmvYJclnB2tRUz4JNKTyARCCgdcLih0x\n\
1aVqM6MYMBYwFAYDVR0RBA0wC4IJbG9jYWxob3N0MAoGCCqGSM49BAMCA0cAMEQC\n\
IDgE//BondTiiwgfKPSN6ngTLZ0Ne1VyxyydL+tlupQJAiAGKAGEWnpgGT9kicH/\n\
ke7r16AHoSyN62RsvIhbOolY7g==\n\
-----END CERTIFICATE-----";
const TLS_KEY: &str = "-----BEGIN PRIVATE KEY-----\n\
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgCU5WUFJL4w+RxPi/\n\
nymcNjNrfwVtnzabBzSoSbqLggShRANCAARmqi2bzwcdcF6FDqvaAMWpzRGhuUT5\n\
bo54wwNoacFvyX2YYR0ma9glyWcHa1FTPgk0pPIBEIKB1wuKHTHVpWoz\n\
-----END PRIVATE KEY-----";

/// Frames: a header is the same read at once or bit by bit, unmasking in pieces is unmasking at once, and text is judged alike.
pub fn frame(data: &[u8]) {
    let whole = frame::parse(data);
    for cut in 0..data.len().min(frame::HEADER_BYTES_MAX) {
        match (frame::parse(&data[..cut]), &whole) {
            (Ok(Parsed::Need(need)), Ok(Parsed::Header(header))) => {
                assert!(need > cut && need <= header.header_bytes)
            }
            (Ok(Parsed::Need(need)), _) => assert!(need > cut),
            (early, late) => assert_eq!(&early, late, "what was judged stays judged"),
        }
    }
    let Ok(Parsed::Header(Header { header_bytes, mask, payload_bytes, .. })) = whole else { return };
    let payload = &data[header_bytes..];
    let length = payload.len().min(usize::try_from(payload_bytes).unwrap_or(usize::MAX));
    let mut at_once = payload[..length].to_vec();
    frame::unmask(&mut at_once, mask, 0);
    let mut pieces = payload[..length].to_vec();
    let step = usize::from(mask[0]) % 13 + 1;
    let mut validated = Ok(0);
    for start in (0..length).step_by(step) {
        let end = (start + step).min(length);
        frame::unmask(&mut pieces[start..end], mask, start);
        validated = validated.and_then(|validated| frame::validate_text(&pieces[..end], validated));
    }
    assert_eq!(at_once, pieces);
    match (std::str::from_utf8(&at_once), validated) {
        (Ok(_), Ok(validated)) => assert_eq!(validated, length),
        (Err(error), Ok(validated)) => {
            assert!(
                error.error_len().is_none() && validated == error.valid_up_to(),
                "a character is cut short"
            );
        }
        (Err(error), Err(_)) => assert!(error.error_len().is_some()),
        (Ok(_), Err(_)) => panic!("good text was refused"),
    }
}

/// The native dialect: what a publish becomes is JSON again with the data as it was, and every refusal can be told.
pub fn native(data: &[u8]) {
    const ROOM_NAME_BYTES_MAX: usize = 100;
    if let Ok(text) = std::str::from_utf8(data) {
        match native::split(text, 10) {
            Ok(messages) => {
                for message in messages {
                    command(native::decode(message, ROOM_NAME_BYTES_MAX), false);
                    plain(message);
                }
            }
            Err(refusal) => told(&refusal),
        }
    }
    command(native::decode_binary(data, ROOM_NAME_BYTES_MAX), true);
}

/// The plain dialect: a message that becomes an event is the same message again, but for where its type stands. In other encodings it
/// comes back as it was.
fn plain(message: &str) {
    type Members<'a> = BTreeMap<Cow<'a, str>, &'a serde_json::value::RawValue>;
    let plain::Message { event, id } = match plain::decode(message) {
        Ok(read) => read,
        Err(refusal) => return told(&refusal),
    };
    let publication =
        Publication::new(RoomId::NOWHERE, &Draft::new("room", &event, message.as_bytes(), Time::default()));
    let mut out = Vec::new();
    plain::encode_event(&mut out, &publication);
    json(&out);
    let again = str::from_utf8(&out).expect("it is text");
    let read = plain::decode(again).expect("it is a message again");
    assert_eq!(read, plain::Message { event, id });
    // A name with half a surrogate pair in it is JSON, but no text of Rust's.
    if let Ok(members) = serde_json::from_str::<Members<'_>>(message) {
        let other = serde_json::from_str::<Members<'_>>(again).expect("as the message");
        let texts = |members: Members<'_>| -> Vec<(String, String)> {
            let members = members.into_iter().filter(|(name, _)| name != "type");
            members.map(|(name, value)| (name.into_owned(), value.get().to_owned())).collect()
        };
        assert_eq!(texts(members), texts(other));
    }
    let mut ack = Vec::new();
    plain::encode_ack(&mut ack, "1", message, &[]);
    json(&ack);
    let bounds = Bounds { attachments_max: 10, bytes_max: 10 * message.len() + 1_000 };
    for coding in [Coding::Base64, Coding::Msgpack] {
        let (args, attachments) = coding::encode::<&[u8]>(coding, message, &[]).expect("it is encoded");
        json(args.as_bytes());
        let decoded = coding::decode(coding, &args, &attachments, bounds).expect("it is not too much");
        let (args, attachments) = decoded.expect("it was encoded");
        json(args.as_bytes());
        // What looks like a binary value is left as it came.
        let is_same = args.starts_with('"') || args == message.trim_ascii();
        assert!(coding == Coding::Msgpack || (attachments.is_empty() && is_same));
    }
}

/// Tokens: what is refused does no harm, and what is taken keeps to the bounds. `data` is a token, and then the claims of one.
pub fn token(data: &[u8]) {
    const ROOMS_MAX: usize = 2;
    const ROOM_NAME_BYTES_MAX: usize = 20;
    let tokens = tokens(ROOMS_MAX, ROOM_NAME_BYTES_MAX);
    if let Ok(text) = std::str::from_utf8(data) {
        assert!(tokens.check(text, Time::default()).is_err(), "nobody guesses a signature");
        // What stands for a token elsewhere.
        token_in(text).ok();
    }
    let Ok(Vouched { user, rooms }) = tokens.check(&signed(data), Time::default()) else { return };
    assert!(!user.name.is_empty() && user.name.len() <= claims::NAME_BYTES_MAX);
    assert!(!user.name.contains(char::is_control));
    assert!(rooms.len() <= ROOMS_MAX && rooms.iter().all(|room| room.name.len() <= ROOM_NAME_BYTES_MAX));
    let actor = user.actor();
    assert!(actor.grants.is_none_or(|grants| grants.len() <= claims::GRANTS_MAX));
    // It does not panic, whatever the patterns.
    Permissions::default().allow(&actor, "/a", &String::from_utf8_lossy(data), Act::Join);
}

/// Of the tokens here; it is 1970.
const SECRET: &[u8] = b"a secret of thirty-two bytes, ok";

fn tokens(rooms_max: usize, room_name_bytes_max: usize) -> Tokens {
    let key = KeySource {
        kid: None,
        algorithm: Algorithm::Hs256,
        until_s: None,
        place: Place::Secret(SECRET.to_vec()),
    };
    let tokens = Tokens::new(crate::token::Settings {
        token_bytes_max: 1 << 16,
        user_claim: "sub".to_owned(),
        rooms_max,
        room_name_bytes_max,
        ..Default::default()
    });
    tokens.set_named_keys(key.read().into_iter().collect());
    tokens
}

/// A token with these claims.
fn signed(claims: &[u8]) -> String {
    let signed = format!("eyJhbGciOiJIUzI1NiJ9.{}", BASE64URL_NOPAD.encode(claims));
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET);
    let signature = hmac::sign(&key, signed.as_bytes());
    format!("{signed}.{}", BASE64URL_NOPAD.encode(signature.as_ref()))
}

fn command(result: Result<Command<'_>, native::Refusal<'_>>, binary: bool) {
    let publish = match result {
        Err(refusal) => return told(&refusal),
        Ok(Command::Join { rooms, id }) => {
            let mut out = Vec::new();
            native::encode_joined(&mut out, id.unwrap_or("0"), rooms.iter().map(|name| (&**name, 1)));
            return json(&out);
        }
        Ok(Command::Leave { id, .. } | Command::Ping { id } | Command::Auth { id, .. }) => {
            let mut out = Vec::new();
            native::encode_pong(&mut out, id);
            return json(&out);
        }
        Ok(Command::Call { payload, id, .. }) => {
            let mut out = Vec::new();
            let data = if binary { "null" } else { str::from_utf8(payload).expect("it is JSON") };
            native::encode_result(&mut out, id.unwrap_or("0"), 1, data);
            return json(&out);
        }
        Ok(Command::Presence { id, .. }) => {
            let mut out = Vec::new();
            native::encode_presence(&mut out, id.expect("there is one"), r#""members":0"#, 0);
            return json(&out);
        }
        Ok(Command::Publish(publish)) => publish,
    };
    let native::Publish { rooms, event, payload, id, .. } = publish;
    let [room, ..] = rooms.as_slice() else { panic!("no room") };
    let draft = Draft { binary, ..Draft::new(room, &event, payload, Time::default()) };
    let publication = Publication::new(RoomId { index: 0, stamp: NonZeroU32::MIN }, &draft);
    assert_eq!(
        (publication.room_name(), publication.event(), publication.payload()),
        (&**room, &*event, payload)
    );
    let mut out = Vec::new();
    native::encode_event(&mut out, room, &publication);
    if binary {
        let newline = out.iter().position(|byte| *byte == b'\n').expect("the head ends");
        assert_eq!(&out[newline + 1..], payload);
        out.truncate(newline);
    }
    json(&out);
    if let Some(id) = id {
        out.clear();
        native::encode_ack(&mut out, id);
        json(&out);
    }
}

fn told(refusal: &native::Refusal<'_>) {
    let mut out = Vec::new();
    native::encode_error(&mut out, refusal);
    assert!(out.len() < 2_000, "an error is short");
    json(&out);
}

fn json(bytes: &[u8]) {
    // Without a look at the values: numbers like 1e999 are JSON, but no number of Rust's.
    let parsed: Result<&serde_json::value::RawValue, _> = serde_json::from_slice(bytes);
    assert!(parsed.is_ok(), "what the server says is JSON: {}", String::from_utf8_lossy(bytes));
}

/// Engine.IO: what is read is part of what was said, ids are the same after they were written, and the packets of a polling body come
/// back out of the bodies that their frames are joined to.
pub fn engineio(data: &[u8]) {
    if let Some([shard, a, b, c, d, e, f, secret @ ..]) = data.first_chunk::<15>() {
        let process = u16::from_le_bytes([*e, *f]);
        let sid = Sid::new(process, *shard, u32::from_le_bytes([*a, *b, *c, *d]), *secret);
        assert_eq!(Sid::parse(&sid.to_string()), Some(sid));
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    match engineio::decode(text) {
        Ok(
            engineio::Packet::Open(said)
            | engineio::Packet::Ping(said)
            | engineio::Packet::Pong(said)
            | engineio::Packet::Message(said),
        ) => assert_eq!(said, &text[1..]),
        Ok(engineio::Packet::Close | engineio::Packet::Upgrade | engineio::Packet::Noop) => {
            assert!(text.starts_with(['1', '5', '6']));
        }
        Err(_) => assert!(!text.starts_with(|first| ('0'..='6').contains(&first))),
    }
    let query = Query::parse(text);
    for value in [query.eio, query.transport, query.sid].into_iter().flatten() {
        assert!(text.contains(value) && !value.contains('&'));
    }
    for claim in [Some(text), query.sid].into_iter().flatten() {
        if let Some(sid) = Sid::parse(claim) {
            assert_eq!(sid.to_string(), claim);
        }
    }
    if let Ok(pieces) = engineio::pieces(text).collect::<Result<Vec<_>, _>>() {
        rejoined(&pieces, text.len() / 3);
    }
}

/// Sends `pieces` as frames, with pings among them, and joins these to bodies of at most `bytes_max`.
fn rejoined(pieces: &[Piece<'_>], bytes_max: usize) {
    let mut frames = Vec::new();
    for piece in pieces {
        let (opcode, payload) = match piece {
            Piece::Text(text) => (Opcode::Text, text.as_bytes()),
            Piece::Binary(bytes) => (Opcode::Binary, &bytes[..]),
        };
        for (opcode, payload) in [(opcode, payload), (Opcode::Ping, b"hello")] {
            let (header, used) = frame::header(opcode, payload.len());
            frames.extend_from_slice(&header[..used]);
            frames.extend_from_slice(payload);
        }
    }
    let mut expected = pieces.iter();
    let mut rest = &frames[..];
    while !rest.is_empty() {
        let mut body = Vec::new();
        let used = engineio::join(&mut body, rest, bytes_max);
        rest = &rest[used..];
        let body = String::from_utf8(body).expect("a body is text");
        let mut count = 0;
        for piece in engineio::pieces(&body) {
            assert_eq!(piece.as_ref().ok(), expected.next());
            count += 1;
        }
        assert!(used > 0 && (body.len() <= bytes_max || count == 1));
    }
    assert_eq!(expected.next(), None);
}

const LIMITS: socketio::Limits = socketio::Limits { attachments_max: 10, namespace_bytes_max: 40 };

/// Socket.IO: what was decoded is the same after it was encoded, with arguments that are JSON, and placeholders are judged alike by way
/// of serde's values.
pub fn socketio(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // It need not be JSON for that not to panic.
    assert!(attachments::check(text, 1).is_ok() || text.contains(['}', ']']));
    let Ok(packet) = socketio::decode(text, &LIMITS) else { return };
    assert!(packet.namespace.starts_with('/') && packet.namespace.len() <= LIMITS.namespace_bytes_max);
    assert!(packet.attachments <= LIMITS.attachments_max);
    let number = |id: Option<&str>| id.map(|id| id.parse::<u64>().expect("at most 15 digits"));
    let (namespace, attachments, id) = (packet.namespace, packet.attachments, number(packet.id));
    let mut out = Vec::new();
    match &packet.body {
        Body::Connect(auth) => {
            socketio::encode_connect_error(&mut out, "/", text, *auth);
            json(out.strip_prefix(b"44").expect("a refusal"));
            out.clear();
            socketio::encode_connect(&mut out, namespace, text, *auth);
        }
        Body::Disconnect => socketio::encode_disconnect(&mut out, namespace),
        Body::Event { name, args } => {
            assert!(name.len() <= socketio::EVENT_BYTES_MAX);
            placeholders(args);
            socketio::encode_event(&mut out, "/", name, args, 0, None, Some("offset"));
            json(out.strip_prefix(b"42").expect("an event"));
            out.clear();
            socketio::encode_event(&mut out, namespace, name, args, attachments, id, None);
        }
        Body::Ack { args } => {
            placeholders(args);
            socketio::encode_ack(&mut out, namespace, packet.id.unwrap_or_default(), args, attachments);
        }
    }
    let message = String::from_utf8(out).expect("text");
    let message = message.strip_prefix('4').expect("a message");
    let again = socketio::decode(message, &LIMITS).expect("what the server says is well-formed");
    assert_eq!((again.namespace, again.attachments), (namespace, attachments));
    match (&again.body, &packet.body) {
        (Body::Connect(Some(said)), Body::Connect(_)) => json(said.as_bytes()),
        (Body::Disconnect, Body::Disconnect) => {}
        (one, other) => assert_eq!((one, number(again.id)), (other, id)),
    }
}

fn placeholders(args: &str) {
    fn good(value: &Value, attachments: u64, named: &mut HashSet<u64>) -> bool {
        match value {
            Value::Array(items) => items.iter().all(|item| good(item, attachments, named)),
            Value::Object(fields) => {
                let placeholder = fields.get("_placeholder") == Some(&Value::Bool(true));
                let num = fields.get("num").and_then(Value::as_u64);
                (!placeholder || num.is_some_and(|num| num < attachments && named.insert(num)))
                    && fields.values().all(|value| good(value, attachments, named))
            }
            _ => true,
        }
    }
    // Not all JSON is a value of serde's: see `json`.
    let Ok(values) = serde_json::from_str::<Value>(&format!("[{args}]")) else { return };
    let text = values.to_string();
    for attachments in 0..3 {
        let judged = |args| attachments::check(args, attachments).is_ok();
        let expected = good(&values, attachments as u64, &mut HashSet::new());
        assert_eq!(judged(&text[1..text.len() - 1]), expected);
        // The values have lost what stood under a key that comes twice; there, too, nothing may name what there is not.
        assert!(!judged(args) || expected);
    }
}

/// The msgpack parser: a packet becomes text of the JSON parser and comes back from that as it was, and whatever is taken for text becomes
/// one value of msgpack that is not much longer.
pub fn msgpack(data: &[u8]) {
    let encoded = |text: &[u8], attachments: &[Vec<u8>]| {
        let mut out = Vec::new();
        msgpack::encode(&mut out, text, attachments);
        assert_eq!(MessageLen::len_of(&out).ok(), Some(out.len()));
        let attached: usize = attachments.iter().map(|bytes| bytes.len() + 5).sum();
        assert!(out.len() <= 3 * text.len() + attached + 40);
        out
    };
    encoded(data, &[data.to_vec()]);
    encoded(&[b"42", data].concat(), &[]);
    let Ok((text, attachments)) = msgpack::decode(data, LIMITS.attachments_max) else { return };
    assert!(text.len() <= 6 * data.len() + 40 * (1 + attachments.len()));
    let Ok(packet) = socketio::decode(&text, &LIMITS) else { return };
    assert_eq!(packet.attachments, attachments.len());
    let frame = encoded(format!("4{text}").as_bytes(), &attachments);
    let (again, same) = msgpack::decode(&frame, LIMITS.attachments_max).expect("what was text is a packet");
    assert_eq!(same, attachments);
    // Numbers may be spelled in another way, but no second time.
    assert_eq!(frame, encoded(format!("4{again}").as_bytes(), &attachments));
}

/// What servers tell each other: the first byte says which way it came, the rest is the payload. What was understood is understood
/// again after it was said again, which takes not much more than what came. It may be spelled in another way, but no second time.
pub fn cluster(data: &[u8]) {
    let Some((way, payload)) = data.split_first() else { return };
    let message_bytes_max = 12 * payload.len() + 1_000;
    let limits = cluster::Limits { message_bytes_max, rooms_max: 100, answers_max: 200, attachments_max: 10 };
    let (classic, sharded) = (Classic { prefix: "p".into() }, Sharded { prefix: "p".into() });
    let understood = |channel: &str, payload: &[u8]| match way % 5 {
        0..=2 => classic.decode(channel.as_bytes(), payload, &limits),
        _ => sharded.decode(channel.as_bytes(), payload, &limits),
    };
    let again = |message: &Message<'_>| {
        let (channel, said) = match way % 5 {
            0..=2 => classic.encode(message)?,
            _ => sharded.encode(message)?,
        };
        Some(
            understood(&channel, &said).expect("what is said is well-formed").expect("what is said is known"),
        )
    };
    match way % 5 {
        4 => envelope(payload),
        _ => {
            let channel = ["p#/#", "p-request#/#", "p-response#/#", "p#/#abc#"][usize::from(way % 5)];
            let Ok(Some(message)) = understood(channel, payload) else { return };
            assert!(format!("{message:?}").len() <= 60 * payload.len() + 1_000);
            if let Some(message) = again(&message) {
                assert_eq!(again(&message).as_ref(), Some(&message));
            }
        }
    }
}

fn envelope(payload: &[u8]) {
    let Ok((head, entries)) = throng::decode(payload, 10_000) else { return };
    let mut count = 0;
    for (at, entry) in entries.enumerate() {
        count += 1;
        let Ok(entry) = entry else { continue };
        assert_eq!(entry.sequence, head.sequence.wrapping_add(at as u64));
        let throng::Said::Publication(publication) = entry.said else { continue };
        let mut out = Vec::new();
        throng::encode_head(&mut out, head);
        throng::encode_publication(&mut out, &publication);
        let (same, mut entries) = throng::decode(&out, out.len()).expect("a head");
        let entry = throng::Entry { sequence: head.sequence, said: entry.said };
        assert_eq!((same, entries.next(), entries.next()), (head, Some(Ok(entry)), None));
    }
    assert!(count <= payload.len() / 5 + 1);
}

/// The shard: the bytes are a script of reactor calls on two shards, in legal order, which also hand each other sockets. Nothing panics, and
/// when all sockets have been released and all sessions have fallen silent nothing is left.
pub fn shard(data: &[u8]) {
    let mut world = World::new(data.first().copied().unwrap_or_default());
    let mut script = data.get(1..).unwrap_or_default();
    while let [op, rest @ ..] = script {
        script = world.step(*op, rest);
    }
    world.end();
}

struct World {
    bus: Arc<Bus>,
    gate: Arc<Gate>,
    stats: Arc<Stats>,
    shards: Vec<(Shard, Vec<Slot>)>,
    /// By shard, what came with the sockets that the other one has given away.
    handed: [Vec<Vec<u8>>; 2],
    /// The last ids of sessions that clients were told.
    sids: VecDeque<String>,
    /// The last ids in namespaces, the private ones too, and the last offsets.
    told: VecDeque<Told>,
    now: Time,
    /// Tokens of two users, of which the first runs out.
    tokens: [String; 2],
    /// What the backend was asked and has not answered, where it is asked.
    asked: VecDeque<Box<Question>>,
}

/// What a client knows with which it can come back, or be sent something alone.
#[derive(Clone, Debug, Default)]
struct Told {
    sid: String,
    pid: String,
    /// The last one that anybody was told before. As good as any other, or not.
    offset: String,
}

/// How many of these the world remembers.
const TOLD_MAX: usize = 8;
/// How long it takes until all that can be over is over: sessions fall silent, nobody can be recovered, questions are over, and the
/// history is forgotten.
const OVER_MS: u64 = 16_000;

const UPGRADE: &[u8] = b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const ECHO: &[u8] = b"GET /echo HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const MESSAGES: [&[u8]; 8] = [
    br#"{"type":"join","rooms":["a","b","c"],"id":1}"#,
    br#"{"type":"publish","room":"a","event":"e","data":[1,2,3],"id":2}"#,
    br#"{"type":"publish","room":"b","event":"e","echo":true}"#,
    br#"{"type":"leave","rooms":["a","c"]}"#,
    br#"[{"type":"join","rooms":["d"]},{"type":"publish","room":"d","event":"x","echo":true},{"type":"leave","rooms":["d"]}]"#,
    br#"{"type":"nonsense"}"#,
    br#"{"type":"auth","token":"TOKEN0","id":1}"#,
    br#"[{"type":"auth","token":"TOKEN1"},{"type":"publish","room":"b","event":"e","echo":true}]"#,
];

/// Whose tokens there are.
const USERS: [&str; 2] = ["u", "a user with a name that is rather long"];

/// Tokens are taken, perhaps required, perhaps users may do more than others, and perhaps it is the backend that knows tokens.
fn access(required: bool, ruled: bool, is_asked: bool) -> Access {
    let grant = |text: &str| Grant::parse(text).expect("a grant");
    let rule = |who: Who, text: &str| Permission { who, grant: grant(text) };
    let rules = vec![rule(Who::User, "*:*"), rule(Who::Anyone, "*:a"), rule(Who::Anyone, "join:*")];
    Access {
        tokens: Some(Arc::new(tokens(3, 20))),
        required,
        timeout_ms: 2_000,
        query_parameter: "token".to_owned(),
        permissions: if ruled { Permissions::new(rules) } else { Permissions::default() },
        callout: is_asked.then(Callout::default),
    }
}

/// Rooms with all that may happen to their events, and little place for it.
fn policies() -> Policies {
    let room = |name| Policy { window_ms: 300, ..Policy::new(RoomPattern::parse(name).expect("a pattern")) };
    let field = |name| FieldPath::parse(name).expect("a path");
    let burst = |disconnects| Some(Burst { bytes: 300, disconnects });
    let a = Policy {
        batch: Some(Batch { most: 3, event: "batch".into(), data_only: false, lone: false }),
        conflate: Some(Conflate { field: field("a"), events: None }),
        changes: Some(Changes { event: "e".into(), always: Box::default() }),
        burst: burst(false),
        ..room("a")
    };
    let merge = Merge { event: "both".into(), fields: Box::new([("e".into(), "x".into())]) };
    let b = Policy { merge: Some(merge), burst: burst(true), ..room("b") };
    let d = Policy { dedupe: Some(Dedupe { field: field("a"), window_ms: 500 }), ..room("*") };
    let settings = policy::Settings {
        states_max: 1,
        state_bytes_max: 10,
        state_idle_ms: 1_000,
        waiting_bytes_max: 2_000,
        dedupe_ids_max: 2,
        ..policy::Settings::default()
    };
    Policies::new(vec![a, b, d], settings)
}

/// A request that is to begin something, with a token in its query where `arg` says so.
fn with_token(request: Vec<u8>, arg: u8, tokens: &[String; 2]) -> Vec<u8> {
    if arg & 8 == 0 || !request.starts_with(b"GET ") {
        return request;
    }
    let token = &tokens[usize::from(arg & 1)];
    let text = String::from_utf8_lossy(&request);
    text.replace("/ws ", &format!("/ws?token={token} "))
        .replace("EIO=4&", &format!("EIO=4&token={token}&"))
        .into()
}

/// Frames of Engine.IO's clients: text, and behind it binary if there is some.
const PACKETS: [(&[u8], Option<&[u8]>); 5] = [
    (b"2probe", None),
    (b"5", None),
    (b"40", None),
    (br#"420["join",["a","b"]]"#, None),
    (br#"451-["publish","a","e",{"_placeholder":true,"num":0}]"#, Some(b"\x01\x02\x03")),
];
/// Bodies of their POSTs.
const BODIES: [&[u8]; 6] = [
    b"40",
    b"42[\"join\",\"a\"]\x1e421[\"publish\",\"a\",\"e\",1]",
    b"451-[\"publish\",\"a\",\"e\",{\"_placeholder\":true,\"num\":0}]\x1ebAQID",
    b"3",
    b"1",
    b"4\x1e",
];

/// Events of a namespace, or of native clients, that are not simply for the members of one room, and the answers to those that ask. `SID`
/// stands for the id of somebody in a namespace, `PID` and `OFFSET` for the rest of it, `ASK` for the number of a question.
const SPECIAL: [&str; 16] = [
    r#"{"type":"publish","rooms":["a","b","d"],"event":"e","data":1,"except":["c"],"echo":true,"id":"x"}"#,
    r#"{"type":"publish","rooms":["b","SID"],"event":"e","ask_ms":4000,"id":7}"#,
    r#"[{"type":"publish","room":"a","event":"e","volatile":true},{"type":"publish","room":"SID","event":"e"}]"#,
    r#"{"type":"publish","room":"a","event":"e","except":"SID","ask_ms":1,"id":8}"#,
    r#"40{"pid":"PID","offset":"OFFSET"}"#,
    r#"40/b,{"pid":"PID"}"#,
    r#"40/b,{"pid":"PID","offset":"OFFSET"}"#,
    r#"4212["publish",{"rooms":["a","SID"],"event":"e","data":[1],"ask_ms":3000}]"#,
    r#"4213["publish",{"room":["a","b"],"event":"e","except":["c","SID"],"volatile":true,"echo":true,"ask_ms":500}]"#,
    r#"42/b,14["publish",{"rooms":["a","SID"],"event":"e","echo":true,"ask_ms":60}]"#,
    r#"42/b,15["join",["a","SID"]]"#,
    r#"42/b,["publish",{"room":"a","event":"e","data":{"a":1},"echo":true}]"#,
    r#"43ASK["yes",{}]"#,
    r#"43/b,ASK[]"#,
    "3",
    "41/b,",
];

impl World {
    fn new(kind: u8) -> World {
        let per_ip_max = Some(6);
        // Some of those that may say much may say little of a kind.
        let limit = |event: &str, per, most, over| EventLimit {
            event: (event != "*").then(|| event.to_owned()),
            namespace: None,
            per,
            most,
            unit: Unit::Events,
            window_ms: 2_000,
            over,
        };
        let limits = match kind >> 6 {
            2 => vec![limit("e", Per::Ip, 2, Over::Drop), limit("*", Per::Connection, 9, Over::Error)],
            3 => vec![limit("join", Per::User, 1, Over::Error), limit("e", Per::Connection, 1, Over::Close)],
            _ => Vec::new(),
        };
        let (events, event_windows_max) = (EventLimits::new(limits), 3);
        let (connections_max, sockets_max) = (8, 12);
        let rules =
            Rules { connections_max, sockets_max, per_ip_max, events, event_windows_max, ..Rules::default() };
        World::with_rules(kind, rules)
    }

    fn with_rules(kind: u8, rules: Rules) -> World {
        let namespaces = || Namespaces::new(["/", "/b"].into_iter().filter_map(Pattern::parse).collect());
        // Less than the heartbeat asks for, so that some come back before and some after a ghost has gone.
        let socketio = SocketIo {
            namespaces: namespaces(),
            namespaces_per_connection_max: 2,
            recovery_ms: if kind & 8 == 0 { 0 } else { 3_000 },
            recovery_bytes_max: 20_000,
            recovery_session_bytes_max: 3_000,
            recovery_sessions_max: rules.connections_max / 2,
            ..SocketIo::default()
        };
        let settings = Settings {
            process: if kind & 4 == 0 { 0 } else { 1 },
            origin_unix_ms: 0,
            connections_reserved: 0,
            paths: Paths {
                echo: true,
                plain: Some("/".to_owned()),
                socketio: Some("/socket.io/".to_owned()),
                engineio: Some("/engine.io/".to_owned()),
                ..Paths::default()
            },
            socketio: Arc::new(socketio),
            access: Arc::new(access(kind & 2 != 0, kind & 4 != 0, kind & 0x30 == 0x20)),
            linger_ms: u32::from(kind & 1) * 10,
            accepts_per_second_max: 0,
            handshake_timeout_ms: 10_000,
            head_bytes_max: 1024,
            refuse_with_close: kind & 2 != 0,
            message_bytes_max: 2_000,
            frames_per_message_max: 4,
            message_timeout_ms: 5_000,
            messages_per_frame_max: 8,
            messages_per_second_max: u32::from(kind >> 4),
            messages_burst_max: u32::from(kind >> 4),
            bytes_per_second_max: u32::from(kind >> 4) * 20,
            bytes_burst_max: 2_000,
            over: [Over::Error, Over::Drop, Over::Close][usize::from(kind) % 3],
            rooms_per_connection_max: 3,
            room_name_bytes_max: 20,
            receive_bytes_max: 20_000,
            ping_interval_ms: 1_000,
            ping_timeout_ms: 500,
            outbox_bytes_max: 4_000,
            outbox_total_bytes_max: 10_000,
            outbox_policy: if kind & 4 == 0 { OutboxPolicy::Disconnect } else { OutboxPolicy::Drop },
        };
        let mut bus = Bus::new(2, 6).with_namespaces(namespaces());
        if kind & 0x30 == 0x20 {
            bus = bus.with_callouts(Arc::new(Callouts::new(5)));
        }
        if kind & 0x30 == 0x10 {
            bus = bus.with_policies(Arc::new(policies()));
        }
        let bus = Arc::new(bus);
        let gate = Arc::new(Gate::new(rules));
        let stats = Arc::new(Stats::new(2));
        let now = Time::from_ms(1);
        let shards = (0..2)
            .map(|id| {
                let (bus, gate, stats) = (bus.clone(), gate.clone(), stats.clone());
                (Shard::new(id, settings.clone(), bus, gate, stats, now), Vec::new())
            })
            .collect();
        let (handed, sids, told) = Default::default();
        let tokens = [0, 1].map(|user| {
            signed(
                format!(r#"{{"sub":"{}","exp":{},"rooms":["a"]}}"#, USERS[user], [4, 4_000][user]).as_bytes(),
            )
        });
        World { bus, gate, stats, shards, handed, sids, told, tokens, now, asked: VecDeque::new() }
    }

    /// Carries out one operation and answers what is left of the script.
    fn step<'s>(&mut self, op: u8, rest: &'s [u8]) -> &'s [u8] {
        let (arg, rest) = rest.split_first().map_or((0, rest), |(arg, rest)| (*arg, rest));
        let shard = usize::from(op >> 7);
        let (it, slots) = &mut self.shards[shard];
        let now = self.now;
        it.begin_turn(now);
        let slot = slots.get(usize::from(arg & 15) % slots.len().max(1)).copied();
        let mut rest = rest;
        match (op & 7, slot) {
            (0, _) if it.may_accept(now) => {
                slots.push(it.accept(IpAddr::V4(Ipv4Addr::new(10, 0, 0, arg & 1)), now));
            }
            (1, Some(slot)) => {
                let request = if arg & 16 == 0 { UPGRADE } else { ECHO }.to_vec();
                it.receive(slot, &mut with_token(request, arg, &self.tokens), now)
            }
            (2, Some(slot)) => {
                // An event for a user, or a canned message as a proper frame.
                if arg >> 4 == 15 {
                    let (room, except) = (user_key(USERS[usize::from(arg & 1)]), [Cow::Borrowed("a")]);
                    let except_rooms = if arg & 2 == 0 { &except[..0] } else { &except };
                    let draft = Draft { except_rooms, ..Draft::new(&room, "e", b"1", now) };
                    // A mailbox may be full.
                    self.bus.publish(&draft).ok();
                } else {
                    let message = MESSAGES[usize::from(arg >> 4) % MESSAGES.len()];
                    let message = String::from_utf8_lossy(message);
                    let [one, other] = &self.tokens;
                    let message = message.replace("TOKEN0", one).replace("TOKEN1", other);
                    it.receive(slot, &mut text_frame(message.as_bytes()), now);
                }
            }
            (3, Some(slot)) => {
                // What is said may be filled in, and a client that polls says it in a POST.
                let which;
                (which, rest) = rest.split_first().map_or((0, rest), |(which, rest)| (*which, rest));
                let told = self.told.get(usize::from(which & 7)).cloned().unwrap_or_default();
                let ask = Ask::number(u64::from(which >> 4) + 1, Asker::Shard(which >> 3 & 1));
                let mut text = SPECIAL[usize::from(arg >> 4)]
                    .replace("SID", &told.sid)
                    .replace("PID", &told.pid)
                    .replace("OFFSET", &told.offset)
                    .replace("ASK", &ask.to_string());
                if self.bus.callouts().is_some() && text.starts_with("40") {
                    // Who joins a namespace says who it is.
                    let token = if which & 1 == 0 { &self.tokens[0] } else { "x" };
                    text = text.replace("\"}", &format!("\",\"token\":\"{token}\"}}"));
                }
                let sid = self.sids.get(usize::from(op >> 5 & 1)).filter(|_| op & 0x40 != 0);
                let mut bytes =
                    sid.map_or_else(|| text_frame(text.as_bytes()), |sid| post(sid, text.as_bytes()));
                it.receive(slot, &mut bytes, now);
            }
            (4, Some(slot)) => {
                // Bytes of the script as they are.
                let count = rest.len().min(usize::from(arg >> 4) * 9 + 1);
                it.receive(slot, &mut rest[..count].to_vec(), now);
                rest = &rest[count..];
            }
            (5, Some(slot)) if arg & 32 == 0 => it.writable(slot),
            (5, Some(slot)) => it.hang_up(slot),
            (6, _) => {
                self.now =
                    now.plus_ms([1, 7, 100, 500, 1_001, 12_000, 70_000, 5_000_000][usize::from(arg & 7)])
            }
            (7, _) if arg > 250 => {
                self.bus.post(shard as ShardId, Mail::Drain { spread_ms: 50, away_ms: 0, timeout_ms: 500 })
            }
            (7, Some(slot)) => {
                let sid = self.sids.get(usize::from(op >> 5 & 1)).map_or("", String::as_str);
                let mut bytes = with_token(engine_bytes(usize::from(arg >> 4), sid), arg, &self.tokens);
                if op & 0x40 != 0 {
                    bytes.truncate(bytes.len() * 3 / 4);
                }
                it.receive(slot, &mut bytes, now);
            }
            _ => {}
        }
        self.finish_turn(shard, op, arg);
        rest
    }

    fn finish_turn(&mut self, shard: usize, op: u8, arg: u8) {
        self.answer_as_backend(arg);
        let (it, slots) = &mut self.shards[shard];
        let now = self.now;
        for mut bytes in std::mem::take(&mut self.handed[shard]) {
            let slot = it.adopt(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)), now);
            slots.push(slot);
            it.receive(slot, &mut bytes, now);
        }
        it.deliver(now);
        it.advance(now);
        self.bus.ring(it.take_bells());
        while let Some(slot) = it.next_dirty() {
            loop {
                let bytes = match it.gather(slot) {
                    Gathered::Nothing => break,
                    Gathered::One(bytes) => bytes.to_vec(),
                    Gathered::Many(slices) => slices.iter().flat_map(|slice| slice.to_vec()).collect(),
                };
                let offered = bytes.len();
                if let Some(sid) = sid_in(&bytes) {
                    self.sids.push_front(sid);
                    self.sids.truncate(2);
                }
                let offset = offset_in(&bytes);
                if let Some((sid, pid)) = ids_in(&bytes) {
                    let known = || self.told.front().map_or_else(String::new, |told| told.offset.clone());
                    let offset = offset.unwrap_or_else(known);
                    self.told.push_front(Told { sid, pid, offset });
                    self.told.truncate(TOLD_MAX);
                } else if let (Some(offset), Some(told)) = (offset, self.told.front_mut()) {
                    told.offset = offset;
                }
                assert!(offered > 0, "there is no write of nothing");
                // All of it, some of it, or none.
                let count = match op & 0x18 {
                    0 => 0,
                    8 => offered.min(usize::from(arg)),
                    _ => offered,
                };
                if !it.sent(slot, offered, count) {
                    break;
                }
            }
        }
        while let Some(farewell) = it.next_farewell() {
            match farewell {
                // Of a session that is polled there is no stream.
                Farewell::EndStream(_) => {}
                Farewell::Close(slot) => {
                    slots.retain(|other| *other != slot);
                    it.release(slot);
                }
                Farewell::HandOver { slot, owner: Owner::Process { tag, .. }, bytes } => {
                    assert!(tag > 1 && !bytes.is_empty());
                    // One process takes it, another is not there.
                    if tag & 1 == 0 {
                        slots.retain(|other| *other != slot);
                        it.release(slot);
                    } else {
                        it.stay(slot, &bytes, now);
                    }
                }
                Farewell::HandOver { slot, owner: Owner::Shard(other), bytes } => {
                    assert!(usize::from(other) != shard && !bytes.is_empty());
                    slots.retain(|other| *other != slot);
                    self.handed[usize::from(other)].push(bytes.into());
                    it.release(slot);
                }
            }
        }
        it.end_turn(now);
    }

    /// Answers all, one or none of the questions that wait.
    fn answer_as_backend(&mut self, arg: u8) {
        let Some(callouts) = self.bus.callouts() else { return };
        self.asked.extend(callouts.take().questions);
        let count = [self.asked.len(), 1, 1, 0][usize::from(arg & 3)].min(self.asked.len());
        for question in self.asked.drain(..count) {
            callouts.settle(question.size());
            let of_user = |token: &String| question.about.token.as_deref() == Some(token);
            let verdict = match (self.tokens.iter().position(of_user), arg >> 6) {
                (Some(user), 0..=2) => Verdict::User(Arc::new(Vouched {
                    user: User { expires_at_s: [4, 4_000][user], ..User::named(USERS[user]) },
                    rooms: vec![Room { namespace: "/".into(), name: "a".into() }],
                })),
                (None, 0) => Verdict::Nobody,
                (None, 1) => Verdict::Refused(None),
                (None, 2) => Verdict::Refused(Some("no".into())),
                _ => Verdict::Unavailable,
            };
            let answer = callouts::Answer { to: question.from, number: question.number, verdict };
            self.bus.post(question.from.shard, Mail::Callout(Box::new(answer)));
        }
    }

    /// Everybody goes, and nothing is left.
    fn end(mut self) {
        // Those that are on their way arrive.
        (0..2).for_each(|shard| self.turn(shard));
        for shard in 0..2 {
            let (it, slots) = &mut self.shards[shard];
            it.begin_turn(self.now);
            for slot in slots.clone() {
                it.hang_up(slot);
            }
            self.finish_turn(shard, 0x18, 0);
            assert!(self.shards[shard].1.is_empty(), "who has hung up is seen off in the same turn");
        }
        // Nobody answers for the sessions, or comes back.
        for _ in 0..OVER_MS / 2_000 {
            self.now = self.now.plus_ms(2_000);
            (0..2).for_each(|shard| self.turn(shard));
        }
        for ((it, _), stats) in self.shards.iter().zip(&self.stats.shards) {
            assert_eq!(it.holdings(), Holdings::default());
            for gauge in [&stats.open_asks, &stats.recoverable, &stats.recovery_bytes] {
                assert_eq!(gauge.value(), 0, "nothing that was to be answered or missed is left");
            }
            for gauge in [&stats.policy_waiting_bytes, &stats.room_states, &stats.dedupe_ids] {
                assert_eq!(gauge.value(), 0, "nothing waits, and nothing is known");
            }
        }
        assert_eq!((self.bus.rooms(), self.gate.open()), (0, 0));
        assert!(self.gate.has_place());
    }

    /// A turn in which nothing comes.
    fn turn(&mut self, shard: usize) {
        self.shards[shard].0.begin_turn(self.now);
        self.finish_turn(shard, 0x18, 0);
    }
}

/// What a client of Engine.IO sends: a request for the session `sid` or for a new one, or frames.
fn engine_bytes(kind: usize, sid: &str) -> Vec<u8> {
    let upgrade = &UPGRADE["GET /ws HTTP/1.1\r\n".len()..];
    let get = |transport: &str, query: &str| {
        format!("GET /socket.io/?EIO=4&transport={transport}{query} HTTP/1.1\r\n")
    };
    match kind {
        0 => [get("polling", "").as_bytes(), b"Host: a\r\n\r\n"].concat(),
        1 => [get("websocket", "").as_bytes(), upgrade].concat(),
        2 => [get("polling", &format!("&sid={sid}")).as_bytes(), b"Host: a\r\n\r\n"].concat(),
        3 => [get("websocket", &format!("&sid={sid}")).as_bytes(), upgrade].concat(),
        4..10 => post(sid, BODIES[kind - 4]),
        10..15 => {
            let (text, binary) = PACKETS[kind - 10];
            let frame = |opcode: u8, payload: &[u8]| {
                [&[0x80 | opcode, 0x80 | payload.len() as u8, 0, 0, 0, 0][..], payload].concat()
            };
            [frame(1, text), binary.map_or(Vec::new(), |payload| frame(2, payload))].concat()
        }
        _ => b"GET /engine.io/?EIO=4&transport=polling HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
    }
}

/// A POST to a session.
fn post(sid: &str, body: &[u8]) -> Vec<u8> {
    let target = format!("/socket.io/?EIO=4&transport=polling&sid={sid}");
    let head = format!("POST {target} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// A text in one frame, at most 255 bytes of it.
fn text_frame(text: &[u8]) -> Vec<u8> {
    let length = u8::try_from(text.len()).expect("what is said here is short");
    let header = match length {
        0..126 => vec![0x81, 0x80 | length, 0, 0, 0, 0],
        _ => vec![0x81, 0x80 | 126, 0, length, 0, 0, 0, 0],
    };
    [&header, text].concat()
}

/// The ids in a namespace that these bytes tell a client, the public and the private one. Without recovery there are no private ones, and
/// the public one stands for both.
fn ids_in(bytes: &[u8]) -> Option<(String, String)> {
    let text = String::from_utf8_lossy(bytes);
    let start = |said: &str| text.find(said).map(|at| at + said.len());
    let at = start("40{\"sid\":\"").or_else(|| start("40/b,{\"sid\":\""))?;
    let mut quoted = text[at..].split('"');
    let sid = quoted.next()?;
    let pid = quoted.nth(1).filter(|name| *name == "pid").and_then(|_| quoted.nth(1)).unwrap_or(sid);
    let is_id = |id: &str| id.len() == SOCKET_ID_CHARS;
    (is_id(sid) && is_id(pid)).then(|| (sid.to_owned(), pid.to_owned()))
}

/// The offset of the last event in these bytes.
fn offset_in(bytes: &[u8]) -> Option<String> {
    let is_offset = |text: &&str| {
        let mut parts = text.split('.');
        let is_hex = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_hexdigit());
        parts.by_ref().take(3).filter(|part| is_hex(part)).count() == 3 && parts.next().is_none()
    };
    String::from_utf8_lossy(bytes).rsplit('"').find(is_offset).map(str::to_owned)
}

/// The id of a session that these bytes tell its client.
fn sid_in(bytes: &[u8]) -> Option<String> {
    const BEFORE: &[u8] = b"0{\"sid\":\"";
    let at = bytes.windows(BEFORE.len()).position(|window| window == BEFORE)?;
    // With a 4 before it, it is the id of a namespace's connection.
    let is_session = at == 0 || bytes[at - 1] != b'4';
    let sid = bytes.get(at + BEFORE.len()..at + BEFORE.len() + Sid::TEXT_BYTES).filter(|_| is_session)?;
    String::from_utf8(sid.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::{Ending, Recovered};
    use data_encoding::HEXLOWER;

    /// A connection whose stream was to end was closed in the same turn: its end was asked for after its slot had been released.
    #[test]
    fn a_script_that_once_failed_is_kept() {
        shard(&[
            0x00, 0x18, 0x01, 0x98, 0x01, 0x98, 0x01, 0x18, 0x01, 0x04, 0x18, 0x01, 0x98, 0x01, 0x18, 0x01,
            0x98, 0x01, 0x19, 0x00, 0x99, 0x00, 0x19, 0x01, 0x98, 0x9d, 0x81, 0x19, 0x00, 0x99, 0x00, 0x19,
            0x01, 0x99, 0x01, 0x1a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
            0x00, 0x2f, 0xff, 0xff, 0x11, 0xff, 0xff, 0xff, 0xff, 0x3e, 0x1a, 0x00, 0x00, 0x00, 0x2f, 0xff,
            0xff, 0x11, 0xff, 0x00, 0x00, 0x2f, 0xff, 0xff, 0x11, 0xff, 0xff, 0xff, 0xff, 0x3e, 0x12, 0x20,
            0x0a, 0x40, 0x92, 0x51, 0x02, 0x00, 0x92, 0x51, 0x01, 0x99, 0x01, 0x1a, 0x00, 0x9a, 0x00, 0x1a,
            0x01, 0x9a, 0x01, 0x02, 0x00, 0x8a, 0x11, 0x12, 0x20, 0x82, 0x31, 0x0a, 0x40, 0x92, 0x31, 0x0a,
            0x40, 0xff, 0xff, 0x40, 0x92, 0x11, 0x00, 0x18, 0xff, 0x5e, 0x01, 0x18, 0x01, 0x98, 0x01, 0x18,
            0x01, 0x98, 0x01, 0xf0, 0xff, 0x66, 0xff, 0x19, 0x01, 0x40, 0x99, 0x01, 0x1a, 0x00, 0x9a, 0x00,
            0x12, 0x20, 0x82, 0x31, 0x1a, 0x2c, 0x9a, 0x01, 0x02, 0x19, 0x00, 0x99, 0x00, 0x19, 0x01, 0x99,
            0x01, 0x1a, 0x00, 0x0a, 0x8a, 0x00, 0x01, 0x00, 0x1a, 0x01, 0x9a, 0x01, 0x02,
        ]);
    }

    /// A client came back with the id that it had had in another namespace: that namespace's socket was left where it could be found, and
    /// the rooms of the wrong one were left.
    #[test]
    fn who_comes_back_in_another_namespace_than_it_was_in_leaves_nothing() {
        shard(&[
            0x08, 0x98, 0x00, 0x9f, 0x10, 0x9b, 0x40, 0x04, 0x9b, 0x60, 0x9e, 0x9d, 0x20, 0x98, 0x00, 0x9f,
            0x10, 0x9b, 0x40, 0x00,
        ]);
    }

    /// Some thousand inputs from one seed: random bytes, and good ones with some bytes changed, left out or doubled.
    fn smoke(target: fn(&[u8]), good: &[&[u8]]) {
        smoke_rounds(4_000, target, good);
    }

    fn smoke_rounds(rounds: usize, target: fn(&[u8]), good: &[&[u8]]) {
        let mut random = 0x5eed_5eed_5eed_5eed_u64;
        let mut next = move |below: usize| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random >> 11) as usize % below.max(1)
        };
        for round in 0..rounds {
            let mut input: Vec<u8> = match good.get(round % (good.len() + 1)) {
                Some(good) => good.to_vec(),
                None => (0..next(200)).map(|_| next(256) as u8).collect(),
            };
            for _ in 0..next(4) {
                let at = next(input.len());
                match next(4) {
                    0 if !input.is_empty() => input[at] = next(256) as u8,
                    1 if !input.is_empty() => drop(input.remove(at)),
                    2 => input.insert(at, b"\"{}[],:\r\n \xff\x00"[next(12)]),
                    _ => input.extend_from_within(at..),
                }
            }
            target(&input);
        }
    }

    #[test]
    fn tls_smoke() {
        // A handshake, data both ways, keys that change, in whole and in pieces; the eleven bytes that once stopped a server.
        let session = [0, 0, 0xa3, 0, 0xe5, 0xc0, 0xa7, 0, 0x3f, 0x25, 0];
        let [whole, old] = [1, 3].map(|kind| [&[kind][..], &session].concat());
        let pieces: Vec<u8> = [&[1][..], &[0x23; 100], &session].concat();
        let first = [0, 11, 0x16, 3, 1, 0, 6, 1, 0, 0, 2, 3, 3];
        // Wants our key changed in the same read as its handshake ends: what came then could not be read.
        let hasty = [1, 0, 0xc0, 0, 0xe5, 0xa7, 0];
        // Fewer: each has a handshake, whose signatures take their time.
        smoke_rounds(600, tls, &[&whole, &old, &pieces, &first, &hasty]);
    }

    #[test]
    fn http_smoke() {
        smoke(
            http,
            &[
                UPGRADE,
                ECHO,
                b"GET /health HTTP/1.1\r\nHost: a\r\nForwarded: for=1.2.3.4, for=\"[::1]:3\"\r\n\r\n",
            ],
        );
    }

    #[test]
    fn proxy_smoke() {
        let binary = [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0e"[..], &[1; 14]].concat();
        smoke(proxy, &[&binary, b"PROXY TCP6 2001:db8::7 ::1 5 6\r\n", b"PROXY UNKNOWN\r\n"]);
    }

    #[test]
    fn frame_smoke() {
        let text = [&[0x81, 0x8d, 1, 2, 3, 4][..], "\u{10ffff}κόσμε".as_bytes()].concat();
        smoke(frame, &[&text, &[0x82, 0xfe, 0, 200, 9, 9, 9, 9], &[0x88, 0x82, 0, 0, 0, 0, 3, 232]]);
    }

    #[test]
    fn native_smoke() {
        let mut good = MESSAGES.to_vec();
        good.push(b"{\"type\":\"publish\",\"room\":\"a\",\"event\":\"e\"}\n\x00\xff");
        good.push(
            br#"{"auctionId":3,"type":"b\u0069d","id":1,"x":[{"type":"a,}]"}],"_placeholder":true,"num":0}"#,
        );
        smoke(native, &good);
    }

    #[test]
    fn engineio_smoke() {
        smoke(
            engineio,
            &[
                "451-[\"bin\",{\"_placeholder\":true,\"num\":0}]\x1ebAQIDBA==\x1e421[\"é\"]\x1eb\x1e2probe"
                    .as_bytes(),
                b"EIO=4&transport=polling&sid=98PtAQsDJeJ0nYJWAAAA&j=0&t=x",
                b"98PtAQsDJeJ0nYJWAAAA",
                b"2probe",
            ],
        );
    }

    #[test]
    fn socketio_smoke() {
        smoke(
            socketio,
            &[
                b"0/admin?x=1,{\"token\":\"z\"}",
                b"1/admin,",
                "2/\u{e9},12[\"m\\u0073g\",1, {\"a\" : [null, \"x\\\"\"]}]".as_bytes(),
                b"52-[\"bin\",{\"_placeholder\":true,\"num\":0},{\"a\":[{\"num\":1,\"_placeholder\":true}]}]",
                b"61-007[{\"_placeholder\":true,\"num\":0}]",
                b"2[7,{\"_placeholder\":true,\"num\":2}]",
            ],
        );
    }

    #[test]
    fn token_smoke() {
        smoke(
            super::token,
            &[
                br#"{"sub":"7","exp":60,"nbf":0,"iss":"i","rooms":["a","b"],"roles":["r"]}"#,
                br#"{"sub":7,"permissions":["join:a*b","*:{user}:*",{"rooms":"*x*","allow":["join"],"namespace":"/a"}]}"#,
                br#"{"sub":"7","limits":{"messages_per_second_max":3,"connections_max":null},"x":[{"y":1}]}"#,
                b"{\"token\":\"eyJhbGciOiJIUzI1NiJ9.e30.AAAA\"}",
                b"eyJhbGciOiJIUzI1NiJ9.e30.AAAA",
            ],
        );
    }

    #[test]
    fn msgpack_smoke() {
        let mut good = Vec::new();
        for (text, attachments) in [
            ("40/admin,{\"token\":\"t\"}", &[][..]),
            ("41/admin,", &[]),
            ("423[\"e\",[null,true,-1,300,1.5,1e99,\"\u{e9}\\\"\\u0001\"],{\"a\":{}}]", &[]),
            (
                "452-[\"e\",{\"_placeholder\":true,\"num\":1},{\"a\":[{\"num\":0,\"_placeholder\":true}]}]",
                &[&b"12"[..], b""],
            ),
        ] {
            let mut frame = Vec::new();
            msgpack::encode(&mut frame, text.as_bytes(), attachments);
            good.extend([frame, text.as_bytes().to_vec()]);
        }
        // What only a client says: undefined, dates, buffers, extensions, other numbers.
        good.push(b"\x83\xa4type\x02\xa3nsp\xa1/\xa4data\x97\xa1e\xd4\0\0\xd7\0\0\0\x01\x8b\xcf\xe5h\x7b\xc7\x01\0a\xd5\xff12\xca\x3d\xcc\xcc\xcd\xcb\x7f\xf8\0\0\0\0\0\0".to_vec());
        let good: Vec<&[u8]> = good.iter().map(Vec::as_slice).collect();
        smoke(super::msgpack, &good);
    }

    #[test]
    fn cluster_smoke() {
        let mut good = Vec::new();
        // Whatever Node was heard to say, on a channel of the same kind.
        for line in
            concat!(include_str!("cluster/golden/classic.txt"), include_str!("cluster/golden/sharded.txt"))
                .lines()
                .filter_map(|line| line.strip_prefix("> "))
        {
            let mut words = line.splitn(3, ' ').skip(1);
            let (channel, shown) = (words.next().expect("a channel"), words.next().expect("a payload"));
            let payload = HEXLOWER.decode(shown.as_bytes()).unwrap_or_else(|_| shown.as_bytes().to_vec());
            let way = match (channel.contains("-request"), channel.contains("-response")) {
                (true, _) => 1,
                (_, true) => 2,
                _ if payload[0] == 0x93 => 0,
                _ => 3,
            };
            good.push([&[way][..], &payload].concat());
        }
        let mut envelope = vec![4];
        throng::encode_head(&mut envelope, throng::Head { process: 7, sequence: u64::MAX });
        for (binary, except) in [(false, None), (true, Some("98PtAQsDJeJ0nYJWAAAA"))] {
            let publication = throng::Publication {
                room: "/admin\0é",
                event: "e",
                payload: b"[1]",
                binary,
                volatile: !binary,
                except,
                published_at_us: 1,
            };
            throng::encode_publication(&mut envelope, &publication);
        }
        good.push(envelope);
        let good: Vec<&[u8]> = good.iter().map(Vec::as_slice).collect();
        smoke(super::cluster, &good);
    }

    #[test]
    fn shard_smoke() {
        // Two connections on each shard upgrade and join; events go back and forth, with writes refused now and then.
        let script: Vec<u8> = [0x18, 0x98, 0x18, 0x98]
            .into_iter()
            .flat_map(|op| [op, 1])
            .chain([0x19, 0, 0x99, 0, 0x19, 1, 0x99, 1, 0x1a, 0, 0x9a, 0, 0x1a, 1, 0x9a, 1])
            .chain((0..60).flat_map(|i| [0x02 | (i % 3) << 3 | (i & 1) << 7, (i % 6) << 4 | i & 1]))
            .collect();
        // A session is polled on both shards, moves to a WebSocket, and joins and publishes before and after.
        let session: Vec<u8> = [[0x18, 1], [0x18, 1], [0x98, 1], [0x98, 1], [0x98, 1]]
            .into_iter()
            .chain([
                [0x1f, 0x00],
                [0x1f, 0x41],
                [0x1f, 0x20],
                [0x1f, 0x51],
                [0x1f, 0x20],
                [0x9f, 0x60],
                [0x1e, 0],
            ])
            .chain([
                [0x9f, 0x30],
                [0x1e, 0],
                [0x1f, 0xa3],
                [0x1f, 0xb3],
                [0x1f, 0xd3],
                [0x1f, 0xe3],
                [0x9f, 0x20],
            ])
            .chain([[0x9f, 0x10], [0x9f, 0xc0], [0x9f, 0xd0], [0x9f, 0xe0], [0x1e, 4], [0x9e, 4], [0x1e, 3]])
            .flatten()
            .collect();
        let with_kind = |kind: u8| [&[kind][..], &script].concat();
        let returning = |kind: u8| [&[kind][..], &dropping_out(), &SPECIAL_STEPS.concat()].concat();
        let polled = |kind: u8| [&[kind][..], &session].concat();
        // Two of each user, on both shards and in both dialects; events for them; a token that is renewed and one that runs out.
        let users: Vec<u8> = [0x18, 0x18, 0x98, 0x98]
            .into_iter()
            .flat_map(|op| [op, 1])
            .chain([0x19, 8, 0x99, 9, 0x1f, 0x09, 0x9f, 0x09, 0x19, 1, 0x1a, 0x61, 0x1a, 0x71])
            .chain([
                0x1a, 0xf0, 0x9a, 0xf1, 0x1a, 0xf3, 0x9a, 0x00, 0x1e, 4, 0x1a, 0xf0, 0x9e, 5, 0x9a, 0xf1,
                0x1e, 3,
            ])
            .collect();
        let known = |kind: u8| [&[kind][..], &users].concat();
        smoke(
            shard,
            &[
                &with_kind(0),
                &with_kind(1),
                &with_kind(4),
                &with_kind(7),
                &with_kind(0xf5),
                &polled(0),
                &polled(1),
                &polled(4),
                &polled(8),
                &known(0),
                &known(3),
                &known(6),
                &known(8),
                &returning(8),
                &returning(9),
                &returning(12),
                &returning(0),
                &known(0x20),
                &known(0x22),
                &known(0x26),
                &polled(0x22),
                &returning(0x28),
                &with_kind(0xa0),
            ],
        );
    }

    /// Somebody joins rooms on the first shard and drops out; an event follows; somebody else is there on each shard.
    fn dropping_out() -> Vec<u8> {
        let (mut script, one, other) = (Vec::new(), 0x18, 0x98);
        for shard in [one, one, other, other] {
            script.extend([shard, 1]);
        }
        for (shard, slot) in [(one, 0), (one, 1), (other, 0)] {
            // A WebSocket, "40", and rooms.
            script.extend([shard | 7, 0x10 | slot, shard | 7, 0xc0 | slot, shard | 7, 0xd0 | slot]);
        }
        script.extend([one | 7, 0xe1, one | 5, 0x20, one | 7, 0xe0, other | 6, 0]);
        script
    }

    /// Who has dropped out comes back on the other shard, is asked there, and answers; others ask, too, and one is polled.
    const SPECIAL_STEPS: [&[u8]; 9] = [
        &[0x9f, 0x11, 0x9b, 0x41, 2, 0x1e, 0, 0x9e, 0, 0x1e, 0, 0x9e, 0],
        &[0x1b, 0x70, 0, 0x9e, 0, 0x9b, 0xc0, 0, 0x9b, 0xc1, 0, 0x9b, 0xc1, 0, 0x1e, 0],
        &[0x9b, 0x80, 1, 0x1e, 0, 0x9e, 0, 0x1b, 0xc0, 0x18],
        &[0x18, 1, 0x1f, 0x01, 0x5b, 0x51, 7, 0x5b, 0xa1, 0, 0x5b, 0x91, 0, 0x5b, 0xb1, 0],
        &[0x19, 1, 0x1a, 1, 0x1b, 0x01, 0, 0x1b, 0x11, 0, 0x1b, 0x21, 0, 0x1b, 0x31, 1],
        &[0x1f, 0x21, 0x1e, 2, 0x5b, 0xd1, 0x20, 0x5b, 0xe1, 0],
        &[0x9d, 0x21, 0x9d, 0x20, 0x1e, 3, 0x98, 0, 0x9f, 0x10, 0x9b, 0x40, 0, 0x9b, 0x60, 2],
        &[0x1e, 0, 0x9e, 0, 0x1e, 0, 0x9e, 0, 0x1e, 4, 0x9e, 4, 0x9b, 0xf0, 0],
        &[0x1b, 0x40, 1, 0x1e, 4, 0x1e, 4, 0x1e, 4, 0x9b, 0x60, 3],
    ];

    #[test]
    fn the_script_of_those_who_come_back_gets_where_it_should() {
        let mut world = World::new(8);
        let mut step = |script: &[u8]| {
            let mut rest = script;
            while let [op, args @ ..] = rest {
                rest = world.step(*op, args);
            }
            let sum = |number: fn(&crate::stats::ShardStats) -> u64| world.stats.sum(number);
            (
                sum(|shard| shard.recoverable.value()),
                sum(|shard| shard.recoveries[Recovered::Yes as usize].value()),
                sum(|shard| shard.open_asks.value()),
            )
        };
        assert_eq!(step(&dropping_out()), (1, 0, 0), "one has dropped out");
        assert_eq!(step(SPECIAL_STEPS[0]), (0, 1, 0), "and is back on the other shard");
        assert_eq!(step(&SPECIAL_STEPS[1][..5]), (0, 1, 2), "and is asked, one question on two shards");
        assert_eq!(step(&SPECIAL_STEPS[1][5..]), (0, 1, 0), "who has answered is not waited for");
        world.end();
    }

    /// Who came back in one namespace was let into the next one while the mail was carried out, looked at the mail again for that, and found
    /// the next one who did: each on top of the one before, until the stack was full.
    #[test]
    fn many_who_come_back_in_two_namespaces_at_once_do_not_nest() {
        const CLIENTS: usize = 2_000;
        let rules = Rules { connections_max: 3 * CLIENTS, sockets_max: 3 * CLIENTS, ..Rules::default() };
        let mut world = World::with_rules(8, rules);
        let upgrade = engine_bytes(1, "");
        let say = |world: &mut World, said: &[Vec<u8>]| {
            let (it, slots) = &mut world.shards[0];
            it.begin_turn(world.now);
            let slot = it.accept(IpAddr::V4(Ipv4Addr::LOCALHOST), world.now);
            slots.push(slot);
            std::iter::once(&upgrade)
                .chain(said)
                .for_each(|bytes| it.receive(slot, &mut bytes.clone(), world.now));
            world.finish_turn(0, 0x18, 0);
            slot
        };
        let mut pids = Vec::new();
        for _ in 0..CLIENTS {
            let slot = say(&mut world, &[text_frame(b"40/b,")]);
            pids.push(world.told[0].pid.clone());
            world.shards[0].0.hang_up(slot);
            world.turn(0);
        }
        let come_back =
            |stats: &Stats, what: Recovered| stats.sum(|shard| shard.recoveries[what as usize].value());
        for pid in &pids {
            // One that is nobody's any more: the other shard is asked, and the second namespace waits until it has answered.
            let gone = &world.told[0].sid;
            let both = ["40", "40/b,"].map(|start| {
                let pid = if start == "40" { gone } else { pid };
                text_frame(format!(r#"{start}{{"pid":"{pid}"}}"#).as_bytes())
            });
            say(&mut world, &both);
        }
        assert_eq!(come_back(&world.stats, Recovered::Yes), 0, "all wait for the other shard");
        world.turn(1);
        world.turn(0);
        assert_eq!(come_back(&world.stats, Recovered::Unknown), CLIENTS as u64);
        assert_eq!(come_back(&world.stats, Recovered::Yes), CLIENTS as u64);
        world.end();
    }

    #[test]
    fn the_script_of_users_gets_where_it_should() {
        let mut world = World::new(0);
        let mut step = |op: u8, arg: u8| {
            world.step(op, &[arg]);
            let users: usize = world.shards.iter().map(|(it, _)| it.holdings().users).sum();
            let ended = world.stats.sum(|shard| shard.endings[Ending::Token.index()].value());
            (users, world.stats.sum(|shard| shard.deliveries.value()), ended)
        };
        for op in [0x18, 0x18, 0x98, 0x98] {
            step(op, 1);
        }
        assert_eq!(step(0x19, 8), (1, 0, 0), "the first of the one user");
        step(0x99, 8);
        assert_eq!(step(0x99, 9), (3, 0, 0), "the other user");
        step(0x1f, 0x0b);
        assert_eq!(step(0x1f, 0x43), (4, 0, 0), "who polls, in the main namespace");
        step(0x1a, 0xf0);
        assert_eq!(step(0x9e, 0), (4, 2, 0), "an event for the one user, on both shards");
        step(0x1a, 0xf1);
        assert_eq!(step(0x9e, 0), (4, 4, 0), "and for the other, in both dialects");
        step(0x1a, 0xf3);
        assert_eq!(step(0x9e, 0), (4, 4, 0), "but for who is in a room, which their tokens have them join");
        assert_eq!(step(0x1a, 0x60), (4, 4, 0), "a token comes again");
        assert_eq!(step(0x1e, 5), (3, 4, 0), "one is over, and its connection closed");
        assert_eq!(step(0x9e, 5), (2, 4, 0), "on both shards");
        step(0x1e, 5);
        assert_eq!(step(0x9e, 5).2, 2, "they did not answer");
        world.end();
    }

    #[test]
    fn the_script_of_those_whom_the_backend_knows_gets_where_it_should() {
        let mut world = World::new(0x20);
        let mut step = |op: u8, arg: u8| {
            world.step(op, &[arg]);
            let sum = |number: fn(Holdings) -> usize| -> usize {
                world.shards.iter().map(|(it, _)| number(it.holdings())).sum()
            };
            (sum(|held| held.users), sum(|held| held.waits), sum(|held| held.leases))
        };
        for op in [0x18, 0x18, 0x98, 0x98, 0x98] {
            step(op, 1);
        }
        assert_eq!(step(0x19, 8), (1, 0, 0), "answered at once");
        assert_eq!(step(0x19, 11), (1, 1, 1), "a request waits in its buffer");
        assert_eq!(step(0x1e, 0), (2, 0, 0), "and is answered");
        step(0x99, 0);
        assert_eq!(step(0x9a, 0x73), (2, 1, 1), "an event waits behind a token");
        assert_eq!(step(0x9e, 0), (3, 0, 0), "and is carried out");
        step(0x9f, 1);
        assert_eq!(step(0xdb, 0x47), (3, 1, 0), "who polls joins a namespace");
        assert_eq!(step(0xdb, 0x67), (3, 1, 1), "and another one behind it");
        assert_eq!(step(0x9e, 0), (4, 1, 0), "one after the other");
        assert_eq!(step(0x9e, 0), (4, 0, 0));
        world.end();
    }

    #[test]
    fn the_script_of_a_session_gets_where_it_should() {
        let mut world = World::new(0);
        let mut step = |op: u8, arg: u8| {
            world.step(op, &[arg]);
            let (it, slots) = &world.shards[0];
            (it.holdings(), slots.len(), world.sids.len())
        };
        for (op, arg) in
            [(0x18, 1), (0x18, 1), (0x98, 1), (0x98, 1), (0x1f, 0x00), (0x1f, 0x41), (0x1f, 0x51)]
        {
            step(op, arg);
        }
        let (holdings, sockets, sids) = step(0x1f, 0x20);
        assert_eq!(
            (holdings.conns, sockets, holdings.memberships, sids),
            (3, 2, 2, 1),
            "a session is a third"
        );
        step(0x9f, 0x30);
        assert_eq!(step(0x1e, 0).1, 3, "a socket of the other shard has come");
        step(0x1f, 0xa2);
        let (holdings, sockets, _) = step(0x1f, 0xb2);
        assert_eq!((holdings.conns, sockets, holdings.memberships), (3, 3, 2), "the session has moved there");
        world.end();
    }

    #[test]
    fn a_session_does_not_keep_a_message_unfinished_for_ever() {
        let mut world = World::new(0);
        world.step(0x18, &[1]);
        world.step(0x1f, &[0x10]);
        let mut receive = |bytes: &[u8]| {
            let (it, slots) = &mut world.shards[0];
            world.now = world.now.plus_ms(900);
            it.begin_turn(world.now);
            it.receive(slots[0], &mut bytes.to_vec(), world.now);
            world.finish_turn(0, 0x18, 0);
            world.shards[0].0.holdings().leases
        };
        // The beginning of a text, then signs of life.
        assert_eq!(receive(b"\x01\x82\0\0\0\x0040"), 1);
        let kept = (0..8).map(|_| receive(b"\x89\x80\0\0\0\0")).collect::<Vec<_>>();
        assert_eq!((kept[3], kept[7]), (1, 0), "it has five seconds");
        world.end();
    }

    #[test]
    fn a_session_that_moves_behind_a_drain_is_told_of_it() {
        let mut world = World::new(0);
        // On the first shard somebody, and the client of a session; on the second a socket that goes over to it.
        for (op, arg) in [(0x18, 1), (0x18, 1), (0x98, 1), (0x1f, 0x00)] {
            world.step(op, &[arg]);
        }
        let slots = world.shards[0].1.clone();
        assert_eq!((slots.len(), world.sids.len()), (2, 1));
        world.bus.post(0, Mail::Drain { spread_ms: 3_000, away_ms: 0, timeout_ms: 60_000 });
        world.turn(0);
        world.now = world.now.plus_ms(1_200);
        world.turn(0);
        assert_eq!(world.shards[0].1, slots[1..], "the first place has been told");
        world.step(0x9f, &[0x30]);
        world.step(0x1e, &[0]);
        assert_eq!(world.shards[0].1.last(), Some(&slots[0]), "it is taken again");
        let mut said = [(b'\x86', &b"2probe"[..]), (b'\x81', b"5")]
            .map(|(length, text)| [&[0x81, length, 0, 0, 0, 0], text].concat())
            .concat();
        let (it, _) = &mut world.shards[0];
        it.begin_turn(world.now);
        it.receive(slots[0], &mut said, world.now);
        assert_eq!(it.next_dirty(), Some(slots[0]));
        let bytes = match it.gather(slots[0]) {
            Gathered::Nothing => Vec::new(),
            Gathered::One(bytes) => bytes.to_vec(),
            Gathered::Many(slices) => slices.iter().flat_map(|slice| slice.to_vec()).collect(),
        };
        assert!(bytes.windows(2).any(|code| code == 1001_u16.to_be_bytes()), "{bytes:?}");
        world.end();
    }
}
