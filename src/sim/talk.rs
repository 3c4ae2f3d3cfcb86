//! What clients say in Socket.IO, whichever way it travels: the packets, and what each means.

use super::World;
use super::clients::{Event, quoted};
use super::plan::NAMESPACES;
use super::said::Bytes;
use super::special::Special;
use std::fmt;
use std::rc::Rc;

/// What a client of Socket.IO knows of its session.
#[derive(Clone, Debug, Default)]
pub(super) struct Talk {
    /// The namespaces that it has been let into.
    pub(super) joined: Vec<String>,
    /// Those that it has asked for and not been told about.
    pub(super) asked: Vec<String>,
    /// Questions that it may answer, each with its namespace and its number.
    pub(super) questions: Vec<(String, String)>,
    last_id: u64,
}

impl Talk {
    /// It is in the namespace, or not, and knows it now.
    pub(super) fn hear(&mut self, namespace: &str, is_in: bool) {
        self.asked.retain(|asked| asked != namespace);
        self.joined.retain(|joined| joined != namespace);
        if is_in {
            self.joined.push(namespace.to_owned());
        }
    }
}

/// A packet of Engine.IO, as it is written and as what it means.
#[derive(Clone)]
pub(super) struct Spoken {
    pub(super) raw: Raw,
    pub(super) word: Word,
}

#[derive(Clone)]
pub(super) enum Raw {
    Text(String),
    Binary(Vec<u8>),
}

impl Raw {
    pub(super) fn len(&self) -> usize {
        match self {
            Raw::Text(text) => text.len(),
            Raw::Binary(bytes) => bytes.len(),
        }
    }
}

impl fmt::Debug for Spoken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.word.fmt(f)
    }
}

/// What a packet means.
#[derive(Clone, Debug)]
pub(super) enum Word {
    /// Nothing, but that the client is there.
    Passed,
    /// The end of the session.
    Close,
    /// What Engine.IO does not allow: known to be wrong by its first character, or not.
    Malformed,
    Ping,
    /// What Socket.IO does not allow.
    Broken,
    Connect {
        namespace: String,
        auth: Option<String>,
    },
    Disconnect {
        namespace: String,
    },
    Event {
        namespace: String,
        id: Option<String>,
        deed: Deed,
        attachments: usize,
        text_bytes: usize,
    },
    /// An ack: the number of what it answers and with what, or of what nobody asked.
    Ack {
        namespace: String,
        answer: Option<(u64, String)>,
    },
    Attachment(Bytes),
}

/// What an event is to bring about.
#[derive(Clone, Debug)]
pub(super) enum Deed {
    Join(Vec<String>),
    Leave(Vec<String>),
    /// The payload of a binary event is its attachment.
    Publish {
        event: Rc<Event>,
        echo: bool,
        special: Option<Rc<Special>>,
    },
    /// The arguments come back in an event, or in the ack.
    Echo(String),
    Ask(String),
    /// There is no rule for it.
    Nothing,
    /// It is answered with this error.
    Wrong(&'static str),
}

impl World {
    /// What a client says next, in one packet or a packet and its attachments.
    pub(super) fn talk(&mut self, talk: &mut Talk) -> Vec<Spoken> {
        if talk.joined.is_empty() {
            let text = *self.random.pick(&["40", "40{\"token\":[1, null]}", "40/,"]);
            return if talk.asked.is_empty() { self.ask_in(talk, "/", text) } else { Vec::new() };
        }
        if let Some(answer) = self.answer(talk) {
            return answer;
        }
        let namespace = self.random.pick(&talk.joined).clone();
        match self.random.below(100) {
            0..4 => match NAMESPACES.iter().find(|name| !talk.joined.iter().any(|joined| joined == *name)) {
                Some(other) if !talk.asked.iter().any(|asked| asked == other) => {
                    self.ask_in(talk, other, &format!("40{other},"))
                }
                _ => self.ask_in(talk, "/nowhere", "40/nowhere,"),
            },
            4..6 => {
                talk.joined.retain(|joined| *joined != namespace);
                vec![said(format!("41{}", prefix(&namespace)), Word::Disconnect { namespace })]
            }
            6..9 => {
                let text = *self.random.pick(&["3", "3probe", "6", "5", "0{}"]);
                vec![said(text.to_owned(), Word::Passed)]
            }
            9..11 => {
                let text = format!("43{}7[1,{{}}]", prefix(&namespace));
                vec![said(text, Word::Ack { namespace, answer: None })]
            }
            _ => self.event_of(talk, namespace),
        }
    }

    fn ask_in(&mut self, talk: &mut Talk, namespace: &str, text: &str) -> Vec<Spoken> {
        talk.asked.push(namespace.to_owned());
        let auth = text.find('{').map(|at| text[at..].to_owned());
        vec![said(text.to_owned(), Word::Connect { namespace: namespace.to_owned(), auth })]
    }

    fn event_of(&mut self, talk: &mut Talk, namespace: String) -> Vec<Spoken> {
        talk.last_id += 1;
        let id = self.random.chance(60).then(|| talk.last_id.to_string());
        // Most begin with a room or two.
        let kind = if talk.last_id == 1 { 0 } else { self.random.below(100) };
        let echo = self.random.chance(30);
        let mut attachments = Vec::new();
        let (args, deed) = match kind {
            0..14 => {
                let (args, rooms) = self.rooms_as_args();
                (format!(r#""join",{args}"#), Deed::Join(rooms))
            }
            14..20 => {
                let (args, rooms) = self.rooms_as_args();
                (format!(r#""leave",{args}"#), Deed::Leave(rooms))
            }
            20..45 => {
                let length = self.payload_length();
                attachments.push(self.bytes(length));
                let event = self.event_in(&namespace, attachments[0].clone(), true);
                let special = self.special(&event);
                let args = self.publish_args(&event, Some(PLACEHOLDER), echo, special.as_deref());
                (args, Deed::Publish { event, echo, special })
            }
            45..52 => {
                let count = self.random.up_to(2);
                let lengths: Vec<usize> = (0..count).map(|_| self.payload_length().min(300)).collect();
                attachments.extend(lengths.into_iter().map(|length| self.bytes(length)));
                let args = match count {
                    0 => r#"1,"two" , [3]"#.to_owned(),
                    _ => format!(r#"{{"a":{PLACEHOLDER}}},null"#),
                };
                match echo {
                    true => (format!(r#""echo",{args}"#), Deed::Echo(args)),
                    false => (format!(r#""ask",{args}"#), Deed::Ask(args)),
                }
            }
            52..55 => (r#""dance",{"with":"me"}"#.to_owned(), Deed::Nothing),
            55..62 => self.wrong_event(&mut attachments),
            _ => {
                let data = self.data().filter(|data| !data.starts_with("[["));
                let payload = data.clone().unwrap_or("null".to_owned()).into_bytes();
                let event = self.event_in(&namespace, payload, false);
                let special = self.special(&event);
                let args = self.publish_args(&event, data.as_deref(), echo, special.as_deref());
                (args, Deed::Publish { event, echo, special })
            }
        };
        self.packet_of(namespace, id, &args, deed, attachments)
    }

    fn packet_of(
        &mut self,
        namespace: String,
        id: Option<String>,
        args: &str,
        deed: Deed,
        attachments: Vec<Vec<u8>>,
    ) -> Vec<Spoken> {
        let kind = match attachments.len() {
            0 => "2".to_owned(),
            count => format!("5{count}-"),
        };
        let text = format!("4{kind}{}{}[{args}]", prefix(&namespace), id.as_deref().unwrap_or_default());
        let (attachments_max, text_bytes) = (self.plan.settings.socketio.attachments_max, text.len() - 1);
        assert!(attachments.len() <= attachments_max, "nobody says more than is taken by accident");
        let word = Word::Event { namespace, id, deed, attachments: attachments.len(), text_bytes };
        let attached = attachments
            .into_iter()
            .map(|bytes| Spoken { raw: Raw::Binary(bytes.clone()), word: Word::Attachment(Bytes(bytes)) });
        std::iter::once(said(text, word)).chain(attached).collect()
    }

    /// Rooms in one of the forms that the built-in events take, and which they are: each once, in order.
    fn rooms_as_args(&mut self) -> (String, Vec<String>) {
        let mut rooms = self.rooms();
        let form = self.random.below(4);
        let args = match (form, rooms.as_slice()) {
            (0, [only]) => quoted(only),
            (1, [only]) => format!(r#"{{"room":{}}}"#, quoted(only)),
            (2, _) => quoted(&rooms),
            _ => format!(r#"{{ "rooms" : {} }}"#, quoted(&rooms)),
        };
        rooms.sort_unstable();
        rooms.dedup();
        (args, rooms)
    }

    fn event_in(&mut self, namespace: &str, payload: Vec<u8>, binary: bool) -> Rc<Event> {
        let event = self.event(payload, binary);
        if namespace == "/" {
            return event;
        }
        let Event { room, name, payload, .. } = &*event;
        let room = format!("{namespace}\0{room}");
        Rc::new(Event { room, name: name.clone(), payload: payload.clone(), binary })
    }

    fn publish_args(
        &mut self,
        event: &Event,
        data: Option<&str>,
        echo: bool,
        special: Option<&Special>,
    ) -> String {
        let (room, name) = (quoted(event.room_in_namespace()), quoted(&event.name));
        if special.is_none() && !echo && self.random.chance(30) {
            let data = data.map_or(String::new(), |data| format!(",{data}"));
            return format!(r#""publish",{room},{name}{data}"#);
        }
        let mut fields = special
            .map_or_else(|| vec![format!(r#""room":{room}"#)], |special| self.special_fields(special, false));
        fields.insert(1, format!(r#""event":{name}"#));
        fields.extend(data.map(|data| format!(r#""data":{data}"#)));
        fields.extend(echo.then(|| r#""echo":true"#.to_owned()));
        let object = self.object(fields.into_iter());
        format!(r#""publish",{object}"#)
    }

    fn wrong_event(&mut self, attachments: &mut Vec<Vec<u8>>) -> (String, Deed) {
        let long_room =
            format!(r#""publish","{}","e",1"#, "x".repeat(self.plan.settings.room_name_bytes_max + 1));
        let two = format!(r#""publish",{{"rooms":[],"event":"e","data":{PLACEHOLDER}}}"#);
        let wrong: [(&str, usize, &'static str); 10] = [
            (r#""join""#, 0, "bad_message"),
            (r#""join",{"channel":"a"}"#, 0, "bad_message"),
            (r#""join",["a",null]"#, 0, "bad_message"),
            (r#""leave","""#, 0, "bad_room"),
            (r#""join",["a","\u0000"]"#, 0, "bad_room"),
            (&long_room, 0, "bad_room"),
            (r#""publish",{"room":"a","data":1}"#, 0, "bad_message"),
            (r#""publish","a","""#, 0, "bad_event"),
            (
                r#""publish",{"room":"a","event":"e","data":{"_placeholder":true,"num":0},"ask_ms":0}"#,
                1,
                "bad_message",
            ),
            (&two, 2, "bad_message"),
        ];
        let (args, count, code) = *self.random.pick(&wrong);
        attachments.extend((0..count).map(|at| vec![at as u8; 3]));
        (args.to_owned(), Deed::Wrong(code))
    }

    /// What the protocols do not allow. What follows it is not heard.
    pub(super) fn break_a_rule_of_socketio(&mut self, talk: &mut Talk) -> Vec<Spoken> {
        let broken = |text: &str| vec![said(text.to_owned(), Word::Broken)];
        let attachments_max = self.plan.settings.socketio.attachments_max;
        match self.random.below(9) {
            0 => {
                let text = *self.random.pick(&["", "9", "x4", "b??", "€"]);
                vec![said(text.to_owned(), Word::Malformed)]
            }
            1 => vec![said("2".to_owned(), Word::Ping)],
            2 => {
                let text = *self.random.pick(&[
                    "4",
                    "47",
                    "42",
                    "42{}",
                    "42[]",
                    "42[\"connect\"]",
                    "42[1",
                    "44{}",
                    "40[]",
                    "451-[\"x\",{\"_placeholder\":true,\"num\":1}]",
                ]);
                broken(text)
            }
            3 => broken(&format!("45{}-[\"x\"]", attachments_max + 1)),
            4 => vec![said("41/nowhere,".to_owned(), Word::Disconnect { namespace: "/nowhere".to_owned() })],
            5 => vec![Spoken { raw: Raw::Binary(vec![7; 9]), word: Word::Attachment(Bytes(vec![7; 9])) }],
            6 => {
                // Attachments that do not come.
                let deed = Deed::Ask("1".to_owned());
                let mut spoken = self.packet_of("/".to_owned(), None, "\"ask\",1", deed, vec![Vec::new()]);
                spoken.truncate(1);
                spoken.extend(self.packet_of("/".to_owned(), None, "\"ask\",1", Deed::Nothing, Vec::new()));
                spoken
            }
            7 => {
                // Each is small enough, and all together are not.
                let most = self.plan.settings.message_bytes_max;
                let payload = vec![1; most - most / 10];
                let deed = Deed::Ask(PLACEHOLDER.to_owned());
                let args = format!("\"ask\",{PLACEHOLDER}");
                self.packet_of("/".to_owned(), None, &args, deed, vec![payload.clone(), payload])
            }
            _ => {
                // Once too often.
                let mut spoken = self.ask_in(talk, "/", "40");
                spoken.extend(self.ask_in(talk, "/", "40"));
                spoken
            }
        }
    }
}

/// What stands for the first attachment.
pub(super) const PLACEHOLDER: &str = r#"{"_placeholder":true,"num":0}"#;

pub(super) fn said(text: String, word: Word) -> Spoken {
    Spoken { raw: Raw::Text(text), word }
}

/// How a packet says which namespace it is for.
pub(super) fn prefix(namespace: &str) -> String {
    if namespace == "/" { String::new() } else { format!("{namespace},") }
}
