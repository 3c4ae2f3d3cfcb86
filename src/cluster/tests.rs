//! Every message that was captured from Node, there and back; then made-up ones, and broken ones.

use super::*;
use data_encoding::HEXLOWER;
use std::fmt::Write as _;

const LIMITS: Limits =
    Limits { message_bytes_max: 100_000, rooms_max: 20, answers_max: 30, attachments_max: 4 };

type Encode<'w> = &'w dyn Fn(&Message<'_>) -> Option<(String, Vec<u8>)>;
type Decode<'w> = &'w dyn Fn(&str, &[u8]) -> Result<Option<Message<'static>>, Malformed>;

/// Calls `check` with what encodes and decodes, for each way.
fn both(mut check: impl FnMut(Encode<'_>, Decode<'_>)) {
    let (classic, sharded) = (classic("socket.io"), sharded());
    check(&|message| classic.encode(message), &|channel, bytes| {
        classic.decode(channel.as_bytes(), bytes, &LIMITS)
    });
    check(&|message| sharded.encode(message), &|channel, bytes| {
        sharded.decode(channel.as_bytes(), bytes, &LIMITS)
    });
}

fn classic(prefix: &str) -> Classic {
    Classic { prefix: prefix.into() }
}

fn sharded() -> Sharded {
    Sharded { prefix: "socket.io".into() }
}

#[test]
fn what_node_says_through_the_classic_adapter_is_understood_and_said_alike() {
    replay(include_str!("golden/classic.txt"), 96, |channel, payload| {
        let classic = classic(channel.split(['#', '-']).next().unwrap_or_default());
        let message = classic.decode(channel.as_bytes(), payload, &LIMITS).expect("well-formed");
        let message = message.expect("a message");
        let (again, said) = classic.encode(&message).expect("it can be said");
        let understood = classic.decode(again.as_bytes(), &said, &LIMITS).expect("well-formed");
        (message, again, said, understood.expect("a message"))
    });
}

#[test]
fn what_node_says_through_the_sharded_adapter_is_understood_and_said_alike() {
    replay(include_str!("golden/sharded.txt"), 53, |channel, payload| {
        let sharded = sharded();
        let message = sharded.decode(channel.as_bytes(), payload, &LIMITS).expect("well-formed");
        let message = message.expect("a message");
        let (again, said) = sharded.encode(&message).expect("it can be said");
        let understood = sharded.decode(again.as_bytes(), &said, &LIMITS).expect("well-formed");
        (message, again, said, understood.expect("a message"))
    });
}

/// Checks a capture; its first lines say what the others are. `there_and_back` answers what a payload was understood as, what is said for
/// that and where, and what that is understood as.
fn replay(
    capture: &str,
    messages: usize,
    there_and_back: impl Fn(&str, &[u8]) -> (Message<'static>, String, Vec<u8>, Message<'static>),
) {
    let (mut label, mut meaning, mut count) = ("", String::new(), 0);
    for line in capture.lines() {
        match line.split_once(' ') {
            Some(("=", what)) => label = what,
            Some((">", rest)) => {
                let mut words = rest.splitn(3, ' ');
                let mut word = || words.next().expect("how it is compared, channel, payload");
                let (compared, channel, shown) = (word(), word(), word());
                let payload = match shown.starts_with('{') {
                    true => shown.as_bytes().to_vec(),
                    false => HEXLOWER.decode(shown.as_bytes()).expect("pairs of digits"),
                };
                let (message, again, said, understood) = there_and_back(channel, &payload);
                let same = again == channel && said == payload;
                assert_eq!(compared, if same { "bytes" } else { "meaning" }, "{label}: {rest}");
                assert_eq!(understood, message, "{label}: {rest}");
                meaning = told(&message);
            }
            Some(("<", expected)) => {
                assert_eq!(meaning, expected, "{label}");
                count += 1;
            }
            _ => {}
        }
    }
    assert_eq!(count, messages, "all are there");
}

/// What a message means, in the words of the captures.
fn told(message: &Message<'_>) -> String {
    let list = |names: &[Cow<'_, str>]| format!("[{}]", names.join(","));
    let to = |target: &Target<'_>| {
        let rooms = target.rooms.as_deref().map_or("all".to_owned(), list);
        match target.except.as_slice() {
            [] => format!("to {rooms}"),
            except => format!("to {rooms} except {}", list(except)),
        }
    };
    let mut out = message.uid.as_deref().unwrap_or("somebody").to_owned();
    if let Some(uid) = &message.to {
        write!(out, " to {uid}").expect("memory");
    }
    write!(out, " in {}: ", message.namespace).expect("memory");
    let request =
        |id: &Option<Cow<'_, str>>| id.as_ref().map_or(String::new(), |id| format!(" request {id}"));
    out += &match &message.body {
        Body::Broadcast { target, event, args, flags, request_id } => {
            let comma = if args.is_empty() { "" } else { "," };
            let volatile = if flags.volatile { " volatile" } else { "" };
            let timeout = flags.timeout_ms.map_or(String::new(), |ms| format!(" timeout {ms}"));
            format!(
                "broadcast {event:?}{comma}{args} {}{volatile}{timeout}{}",
                to(target),
                request(request_id)
            )
        }
        Body::Join { target, rooms } => format!("join {} {}", list(rooms), to(target)),
        Body::Leave { target, rooms } => format!("leave {} {}", list(rooms), to(target)),
        Body::Disconnect { target, close, why } => {
            let told =
                |why: &Why<'_>| format!(" with {} {:?} anywhere {}", why.code, why.reason, why.anywhere);
            let why = why.as_ref().map_or(String::new(), told);
            format!("disconnect {}{}{why}", to(target), if *close { " close" } else { "" })
        }
        Body::Fetch { target, request_id } => format!("fetch {} request {request_id}", to(target)),
        Body::Presence { room, of, who, request_id } => {
            format!("presence of {room} in {of:?}, who: {who}, request {request_id}")
        }
        Body::PresenceAnswer { request_id, node, members, who } => {
            let told = |it: &Member<'_>| format!("{} {:?}", it.id, it.user);
            let who: Vec<String> = who.iter().map(told).collect();
            format!("{members} present at {node}: [{}] request {request_id}", who.join("; "))
        }
        Body::FetchAnswer { request_id, sockets } => {
            let told = |it: &Socket<'_>| format!("{} in {} data {}", it.id, list(&it.rooms), it.data);
            let sockets: Vec<String> = sockets.iter().map(told).collect();
            format!("fetched [{}] request {request_id}", sockets.join("; "))
        }
        Body::Sockets { rooms, request_id } => {
            format!("sockets of {} request {request_id}", list(rooms.as_deref().unwrap_or_default()))
        }
        Body::SocketsAnswer { request_id, ids } => {
            format!("sockets answered {} request {request_id}", list(ids))
        }
        Body::Rooms { request_id } => format!("rooms request {request_id}"),
        Body::RoomsAnswer { request_id, rooms } => {
            format!("rooms answered {} request {request_id}", list(rooms))
        }
        Body::ServerSideEmit { args, request_id } => {
            format!("server side emit {args}{}", request(request_id))
        }
        Body::ServerSideEmitAnswer { request_id, value } => {
            format!("server side emit answered {value} request {request_id}")
        }
        Body::ClientCount { request_id, count } => format!("client count {count} request {request_id}"),
        Body::ClientAck { request_id, value } => format!("client ack {value} request {request_id}"),
        Body::Heartbeat { first } => format!("heartbeat, the first: {first}"),
        Body::Close => "close".to_owned(),
    };
    if !message.attachments.is_empty() {
        let hex: Vec<String> = message.attachments.iter().map(|bytes| HEXLOWER.encode(bytes)).collect();
        write!(out, " with [{}]", hex.join(",")).expect("memory");
    }
    out
}

#[test]
fn channels_are_those_of_node() {
    let classic = classic("socket.io");
    assert_eq!(classic.broadcasts_pattern("/"), "socket.io#/#*");
    assert_eq!(classic.sockets_pattern("/admin"), "socket.io#/admin#????????????????????#");
    assert_eq!(classic.requests("/"), "socket.io-request#/#");
    assert_eq!(classic.answers("/"), "socket.io-response#/#");
    assert_eq!(classic.answers_to("/", "I2zCWC"), "socket.io-response#/#I2zCWC#");
    assert_eq!(classic.broadcasts("/"), "socket.io#/#");
    assert_eq!(classic.broadcasts_to("/", "room1"), "socket.io#/#room1#");
    assert_eq!(classic.broadcasts_pattern("/a*[b]?\\"), "socket.io#/a\\*\\[b\\]\\?\\\\#*");
    let sharded = sharded();
    assert_eq!(sharded.messages("/"), "socket.io#/#");
    assert_eq!(sharded.answers_to("/", "0d433aa5d1fa003f"), "socket.io#/#0d433aa5d1fa003f#");
    assert_eq!(sharded.broadcasts_to("/", "room1"), "socket.io#/#room1#");
    // Twenty UTF-16 units look like a socket, whatever they are.
    for (room, channel) in [
        ("😀".repeat(10), "socket.io#/#".to_owned()),
        ("é".repeat(20), "socket.io#/#".to_owned()),
        ("😀".repeat(20), format!("socket.io#/#{}#", "😀".repeat(20))),
    ] {
        let message = to_room(&room);
        assert_eq!(sharded.encode(&message).map(|(channel, _)| channel), Some(channel));
    }
}

#[test]
fn what_is_for_a_user_is_told_to_all_servers() {
    let room = crate::message::user_key("alice");
    let message = to_room(&room);
    assert_eq!(sharded().encode(&message).map(|(channel, _)| channel), Some("socket.io#/#".to_owned()));
    assert_eq!(
        classic("socket.io").encode(&message).map(|(channel, _)| channel),
        Some("socket.io#/#".to_owned())
    );
}

fn to_room(room: &str) -> Message<'_> {
    let target = Target { rooms: Some(vec![room.into()]), except: Vec::new() };
    let (event, args, flags) = ("e".into(), "".into(), Flags::default());
    let body = Body::Broadcast { target, event, args, flags, request_id: None };
    Message { uid: None, to: None, namespace: "/".into(), attachments: Vec::new(), body }
}

/// One seed, many messages.
struct Random(u64);

impl Random {
    fn below(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % below
    }

    fn name(&mut self) -> Cow<'static, str> {
        const LETTERS: [&str; 8] = ["a", "#", "\"", "\\", "é", "😀", "*", " "];
        (0..=self.below(25)).map(|_| LETTERS[self.below(8)]).collect()
    }

    fn names(&mut self) -> Vec<Cow<'static, str>> {
        (0..self.below(4)).map(|_| self.name()).collect()
    }

    fn target(&mut self) -> Target<'static> {
        let rooms = Some(self.names()).filter(|rooms| !rooms.is_empty());
        Target { rooms, except: self.names() }
    }

    /// A value as it is spelled after a way through msgpack. Bytes are numbered in the order in which they come.
    fn value(&mut self, depth: usize, attachments: &mut Vec<Cow<'static, [u8]>>) -> String {
        match self.below(if depth > 3 { 6 } else { 8 }) {
            0 => "null".into(),
            1 => "true".into(),
            2 => (self.below(1 << 40) as i64 - (1 << 39)).to_string(),
            3 => format!("{}.5", self.below(1000)),
            4 if attachments.len() < LIMITS.attachments_max => {
                attachments.push(vec![self.below(256) as u8; self.below(300)].into());
                placeholder(attachments.len() - 1)
            }
            4 | 5 => serde_json::to_string(&self.name()).expect("text"),
            6 => {
                let items: Vec<String> =
                    (0..self.below(4)).map(|_| self.value(depth + 1, attachments)).collect();
                format!("[{}]", items.join(","))
            }
            _ => {
                let fields: Vec<String> = (0..self.below(20))
                    .map(|at| format!("\"k{at}\":{}", self.value(depth + 1, attachments)))
                    .collect();
                format!("{{{}}}", fields.join(","))
            }
        }
    }

    fn message(&mut self) -> Message<'static> {
        let mut attachments = Vec::new();
        let (target, rooms, request_id) = (self.target(), self.names(), self.name());
        let maybe = (self.below(2) == 0).then(|| request_id.clone());
        let values = &mut attachments;
        let body = match self.below(18) {
            0..=2 => {
                let timeout_ms = (self.below(2) == 0).then(|| self.below(100_000) as u32);
                let flags = Flags { volatile: self.below(2) == 0, timeout_ms };
                let event = self.name();
                let args: Vec<String> = (0..self.below(3)).map(|_| self.value(0, values)).collect();
                Body::Broadcast { target, event, args: args.join(",").into(), flags, request_id: maybe }
            }
            3 => Body::Join { target, rooms },
            4 => Body::Leave { target, rooms },
            5 => {
                let (code, reason) = (4000 + self.below(1000) as u16, self.name());
                let why = Why { code, reason, anywhere: self.below(2) == 0 };
                let close = self.below(2) == 0;
                Body::Disconnect { target, close, why: (self.below(2) == 0).then_some(why) }
            }
            6 => Body::Fetch { target, request_id },
            7 => {
                let socket = |_| {
                    let (id, rooms, data) = (self.name(), self.names(), self.value(0, values).into());
                    Socket { id, handshake: r#"{"a":1}"#.into(), rooms, data }
                };
                Body::FetchAnswer { request_id, sockets: (0..2).map(socket).collect() }
            }
            8 => Body::Sockets { rooms: target.rooms, request_id },
            9 => Body::SocketsAnswer { request_id, ids: vec![self.name(), self.name()] },
            10 => Body::Rooms { request_id },
            11 => Body::RoomsAnswer { request_id, rooms },
            12 => Body::ServerSideEmit { args: self.value(0, values).into(), request_id: maybe },
            13 => Body::ServerSideEmitAnswer { request_id, value: self.value(0, values).into() },
            14 => {
                let of = (self.below(2) == 0).then(|| "/guild/7".into());
                Body::Presence { room: self.name(), of, who: self.below(2) == 0, request_id }
            }
            15 => {
                let member = |_| Member { id: self.name(), user: maybe.clone() };
                let who = (0..2).map(member).collect();
                Body::PresenceAnswer { request_id, node: self.name(), members: 7, who }
            }
            16 => Body::ClientCount { request_id, count: self.below(1 << 30) as u64 },
            _ => Body::ClientAck { request_id, value: self.value(0, values).into() },
        };
        let namespace = ["/", "/admin", "/é"][self.below(3)].into();
        let to = body.is_answer().then(|| "0d433aa5d1fa003f".into());
        let uid = Some(self.name());
        Message { uid, to, namespace, attachments, body }
    }
}

fn placeholder(num: usize) -> String {
    format!(r#"{{"_placeholder":true,"num":{num}}}"#)
}

#[test]
fn what_is_said_is_understood() {
    let mut random = Random(0x5eed_5eed_5eed_5eed);
    let mut said = [0, 0];
    for _ in 0..5_000 {
        let message = random.message();
        let mut way = 0;
        both(|encode, decode| {
            if let Some((channel, payload)) = encode(&message) {
                let mut expected = message.clone();
                // Classic answers do not say whose they are.
                if way == 0 && message.body.is_answer() {
                    expected.uid = None;
                }
                assert_eq!(decode(&channel, &payload), Ok(Some(expected)), "{channel}");
                said[way] += 1;
            }
            way += 1;
        });
    }
    assert!(said[0] == 5_000 && said[1] > 3_000, "{said:?}");
    for body in [Body::Heartbeat { first: true }, Body::Heartbeat { first: false }, Body::Close] {
        let message = Message { body, uid: Some("a".into()), ..to_room("") };
        assert_eq!(classic("socket.io").encode(&message), None);
        let (channel, payload) = sharded().encode(&message).expect("it can be said");
        assert_eq!(sharded().decode(channel.as_bytes(), &payload, &LIMITS), Ok(Some(message)));
    }
}

#[test]
fn what_would_be_misunderstood_is_not_said() {
    let nobody = Target { rooms: Some(Vec::new()), except: Vec::new() };
    let for_nobody =
        Message { body: Body::Disconnect { target: nobody, close: true, why: None }, ..to_room("") };
    both(|encode, _| assert_eq!(encode(&for_nobody), None));
    let body = Body::ClientCount { request_id: "a".into(), count: 1 };
    assert_eq!(sharded().encode(&Message { body, ..to_room("") }), None);
}

/// What the classic adapter makes of a request.
fn request(json: &str) -> Result<Option<Body<'static>>, Malformed> {
    let message = classic("socket.io").decode(b"socket.io-request#/#", json.as_bytes(), &LIMITS)?;
    Ok(message.map(|message| message.body))
}

#[test]
fn rooms_that_nobody_here_can_be_in_are_nobody_and_numbers_are_names() {
    let long = "x".repeat(NAME_BYTES_MAX + 1);
    for (rooms, expected) in [
        ("[]".to_owned(), None),
        ("null".to_owned(), None),
        ("[null,true,{},[1],\"\",\"\\u0000a\",\"\\ud800\"]".to_owned(), Some(vec![])),
        (format!("[\"{long}\"]"), Some(vec![])),
        ("[7,-1,\"a\\u00e9\",null]".to_owned(), Some(vec!["7".into(), "-1".into(), "aé".into()])),
    ] {
        let fetch = format!(r#"{{"type":5,"requestId":"r","opts":{{"rooms":{rooms},"except":[null,7]}}}}"#);
        let target = Target { rooms: expected, except: vec!["7".into()] };
        let expected = Body::Fetch { target, request_id: "r".into() };
        assert_eq!(request(&fetch), Ok(Some(expected)), "{rooms}");
    }
}

#[test]
fn what_is_not_known_is_passed_over() {
    for channel in [
        "socket.ioo#/#",
        "socket.io",
        "socket.io#",
        "socket.io#/",
        "socket.io#admin#",
        "socket.io#/#room",
        "socket.io-requests#/#",
    ] {
        both(|_, decode| assert_eq!(decode(channel, b""), Ok(None), "{channel}"));
    }
    assert_eq!(classic("socket.io").decode(b"socket.io#/#\xff#", b"", &LIMITS), Ok(None));
    for json in
        [r#"{"type":99}"#, r#"{"type":8,"requestId":"a"}"#, r#"{}"#, r#"{"type":null,"x":{"y":[1e999]}}"#]
    {
        assert_eq!(request(json), Ok(None), "{json}");
    }
    assert_eq!(
        request(r#"{"type":1,"requestId":"a","more":[]}"#),
        Ok(Some(Body::Rooms { request_id: "a".into() }))
    );
    // Of another namespace than its channel.
    let answer = |channel: &[u8], json: &str| sharded().decode(channel, json.as_bytes(), &LIMITS);
    assert_eq!(answer(b"socket.io#/#", r#"{"type":2,"uid":"a","nsp":"/b"}"#), Ok(None));
    assert_eq!(answer(b"socket.io#/#", r#"{"type":14,"uid":"a","nsp":"/","data":{}}"#), Ok(None));
    let (_, payload) = classic("socket.io").encode(&to_room("a")).expect("it can be said");
    assert_eq!(classic("socket.io").decode(b"socket.io#/admin#", &payload, &LIMITS), Ok(None));
}

#[test]
fn what_is_malformed_or_too_much_is_refused() {
    let check = |json: &str, says: &str| match request(json) {
        Err(Malformed(why)) => assert!(why.contains(says), "{json}: {why}"),
        other => panic!("{json}: {other:?}"),
    };
    for json in [
        "",
        "{",
        "{}}",
        "\u{0}",
        "[1]",
        r#"{"type":"5"}"#,
        r#"{"type":5,"requestId":"a"}"#,
        r#"{"type":5,"opts":{}}"#,
        r#"{"type":5,"requestId":7,"opts":{}}"#,
        r#"{"type":5,"requestId":"a","opts":{"rooms":"a"}}"#,
        r#"{"type":2,"opts":{}}"#,
        r#"{"type":2,"rooms":["a"]}"#,
        r#"{"type":6}"#,
        r#"{"type":6,"data":{}}"#,
        r#"{"type":7,"packet":{"type":2,"data":["a"]}}"#,
        r#"{"type":7,"opts":{}}"#,
    ] {
        check(json, "");
    }
    let packet = |packet: &str| format!(r#"{{"type":7,"requestId":"a","opts":{{}},"packet":{packet}}}"#);
    check(&packet(r#"{"type":5,"data":["a"]}"#), "only events");
    check(&packet(r#"{"type":2,"data":[]}"#), "no name");
    check(&packet(r#"{"type":2,"data":["connect"]}"#), "reserved");
    check(&packet(r#"{"type":2,"data":"a"}"#), "not an array");
    let deep = format!("[\"a\",{}{}]", "[".repeat(200), "]".repeat(200));
    check(&packet(&format!(r#"{{"type":2,"data":{deep}}}"#)), "too deep");
    check(&format!(r#"{{"type":6,"data":{deep}}}"#), "too deep");
    // Nothing recurses on what is passed over, however deep it is.
    let deep = format!(r#"{{"x":{}{}}}"#, "[".repeat(40_000), "]".repeat(40_000));
    assert_eq!(request(&deep), Ok(None));
    let rooms = vec!["\"a\""; LIMITS.rooms_max + 1].join(",");
    check(&format!(r#"{{"type":2,"opts":{{}},"rooms":[{rooms}]}}"#), "more rooms");
    check(&format!(r#"{{"type":2,"opts":{{"except":[{rooms}]}},"rooms":[]}}"#), "more rooms");
    check(&format!(r#"{{"type":0,"requestId":"a","rooms":[{rooms}]}}"#), "more rooms");
    let answer =
        |json: String| classic("socket.io").decode(b"socket.io-response#/#", json.as_bytes(), &LIMITS);
    for (item, list) in [("\"a\"", "rooms"), ("\"a\"", "sockets"), ("{\"id\":\"a\"}", "sockets")] {
        let json = |count| format!(r#"{{"requestId":"a","{list}":[{}]}}"#, vec![item; count].join(","));
        assert!(matches!(answer(json(LIMITS.answers_max)), Ok(Some(_))));
        assert_eq!(answer(json(LIMITS.answers_max + 1)), Err(TOO_MANY));
    }
    check(&format!(r#"{{"type":1,"requestId":"{}"}}"#, "a".repeat(NAME_BYTES_MAX + 1)), "too long");
    check(&" ".repeat(LIMITS.message_bytes_max + 1), "larger");
    // Binary values: as many as are taken, and one more.
    let bins = |count: u8| {
        let head = [&[0x93, 0xc0, 0x82][..], b"\xa4type\x02\xa4data", &[0x91 + count], b"\xa1e"].concat();
        [head, b"\xc4\x01\x07".repeat(count.into()), b"\x80".to_vec()].concat()
    };
    let decode = |bytes: &[u8]| classic("socket.io").decode(b"socket.io#/#", bytes, &LIMITS);
    let message = decode(&bins(4)).expect("not too many").expect("a message");
    assert_eq!((message.uid, message.attachments.len()), (None, 4));
    assert_eq!(decode(&bins(5)), Err(Malformed("a packet has more attachments than are taken")));
    // What is claimed need not be there.
    for claim in [
        b"\xdd\xff\xff\xff\xff".as_slice(),
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xc1",
        b"\xc0",
    ] {
        assert!(decode(claim).is_err());
    }
}
