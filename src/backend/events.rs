//! What clients' events, their joins of namespaces and their leaving make us ask the backend: `/event`, `/connect`,
//! `/connected` and `/disconnected`.
//!
//! Calls of one connection are made one after the other, so that what they make happen comes in order; those of different
//! connections side by side. What is answered is read and checked here, and carried out by the shard of the connection.

use super::caller::Caller;
use super::log::{LogPause, brief};
use super::said::{Bounds, Fault, Text, Whom, check_close, check_event, check_namespace, keys};
use super::stats::{BackendStats, CallOutcome};
use super::webhooks::TICK;
use crate::bus::Bus;
use crate::bus::calls::{Answer, Answered, Asked, Call, Calls, Client, Emit, End, Refusal, What};
use crate::bus::mailbox::Mail;
use crate::dialect::attachments;
use crate::dialect::native::{DEPTH_MAX, is_too_deep};
use crate::dialect::socketio::elements;
use crate::json;
use crate::message::{ShardId, write_socket_id};
use arc_swap::ArcSwap;
use compact_str::CompactString;
use data_encoding::BASE64;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::timeout;

/// The most events that one answer may send.
const EMITS_MAX: usize = 1_000;
/// How often the log says what is wrong with answers.
const LOG_PAUSE: Duration = Duration::from_secs(1);

/// How much an answer may say.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings {
    /// What holds for names of rooms.
    pub bounds: Bounds,
    /// Bytes of one event with its attachments, and of the values of an ack with theirs.
    pub message_bytes_max: usize,
    /// Attachments of one event or ack.
    pub attachments_max: usize,
}

/// Asks for clients, for as long as the process lives. The calls that wait are bounded by what [`Calls`] takes.
pub(super) struct Asking {
    settings: Arc<ArcSwap<Settings>>,
    calls: Arc<Calls>,
    caller: Arc<Caller>,
    bus: Arc<Bus>,
    stats: Arc<BackendStats>,
    /// By shard and stamp, what connections wait to have asked behind the call that is under way.
    lanes: Mutex<HashMap<(ShardId, u32), VecDeque<Call>>>,
    log_pause: LogPause,
}

impl Asking {
    /// Nobody waits yet.
    pub(super) fn new(
        settings: Arc<ArcSwap<Settings>>,
        calls: Arc<Calls>,
        caller: Arc<Caller>,
        bus: Arc<Bus>,
        stats: Arc<BackendStats>,
    ) -> Arc<Asking> {
        let (lanes, log_pause) = (Mutex::default(), LogPause::new(LOG_PAUSE));
        Arc::new(Asking { settings, calls, caller, bus, stats, lanes, log_pause })
    }

    /// Makes all calls that come.
    pub(super) async fn run(self: Arc<Asking>) {
        let news = Arc::new(Notify::new());
        let bell = news.clone();
        self.calls.hang_bell(Box::new(move || bell.notify_one()));
        loop {
            for call in self.calls.take() {
                let lane = (call.client.conn.shard, call.client.conn.stamp);
                match self.lanes().entry(lane) {
                    Entry::Occupied(mut waiting) => waiting.get_mut().push_back(call),
                    Entry::Vacant(free) => {
                        free.insert(VecDeque::new());
                        tokio::spawn(self.clone().follow(lane, call));
                    }
                }
            }
            // No bell is rung for what ends while a turn is written: nobody may come by for a long time, or ever.
            timeout(TICK, news.notified()).await.ok();
        }
    }

    /// Makes one call, and those that come behind it on its lane.
    async fn follow(self: Arc<Asking>, lane: (ShardId, u32), first: Call) {
        let mut next = Some(first);
        while let Some(call) = next {
            let kind = call.what.kind();
            let answered = self.ask(call).await;
            self.calls.note_answer(kind);
            self.bus.post(lane.0, Mail::Answered(Box::new(answered)));
            let mut lanes = self.lanes();
            next = lanes.get_mut(&lane).and_then(VecDeque::pop_front);
            if next.is_none() {
                lanes.remove(&lane);
            }
        }
    }

    async fn ask(&self, call: Call) -> Answered {
        let kind = call.what.kind();
        let (path, body) = (kind.path(), body(&call));
        let posted = self.caller.post(&path, body).await;
        let outcome = |outcome: CallOutcome| self.stats.calls[kind as usize][outcome as usize].add(1);
        let answer = match posted {
            Ok(json) => match read(&json, &call, &self.settings.load()) {
                Ok(answer) => {
                    outcome(CallOutcome::Answered);
                    Some(answer)
                }
                Err(fault) => {
                    outcome(CallOutcome::Bad);
                    self.log(&path, &fault.message);
                    None
                }
            },
            Err(problem) => {
                outcome(CallOutcome::Failed);
                self.log(&path, &problem.to_string());
                None
            }
        };
        let Call { client, auth, what, .. } = call;
        let what = match what {
            What::Event { ack, .. } => Asked::Event { ack },
            What::Connect => Asked::Connect { auth },
            What::Connected { .. } | What::Disconnected { .. } => Asked::Nothing,
        };
        Answered { client, what, answer, is_rest: false }
    }

    /// Says what went wrong, at most once in a while: the metrics tell how often it did.
    fn log(&self, path: &str, what: &str) {
        if self.log_pause.is_over() {
            let what = brief(what);
            tracing::warn!(path, %what, "a call to the backend failed");
        }
    }

    fn lanes(&self) -> MutexGuard<'_, HashMap<(ShardId, u32), VecDeque<Call>>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the backend is sent.
fn body(call: &Call) -> String {
    let Client { id, namespace, user, address, .. } = &call.client;
    let (namespace, user) = (quoted(namespace), user.as_ref().map_or("null".to_owned(), |user| quoted(user)));
    let mut json =
        format!("{{\"connection\":\"{}\",\"namespace\":{namespace},\"user\":{user}", write_socket_id(id));
    match &call.what {
        What::Event { event, args, attachments, ack } => {
            let (event, wants_ack) = (quoted(event), ack.is_some());
            let attachments: Vec<String> =
                attachments.iter().map(|bytes| format!("\"{}\"", BASE64.encode(bytes))).collect();
            let attachments = attachments.join(",");
            json.push_str(&format!(",\"event\":{event},\"args\":[{args}],\"attachments\":[{attachments}]"));
            json.push_str(&format!(",\"wants_ack\":{wants_ack}"));
        }
        What::Connect => {}
        What::Connected { recovered } => json.push_str(&format!(",\"recovered\":{recovered}")),
        What::Disconnected { reason } => json.push_str(&format!(",\"reason\":{}", quoted(reason))),
    }
    let query = call.query.as_ref().map_or("null".to_owned(), |query| pairs(query).to_string());
    let (auth, address) = (call.auth.as_deref().unwrap_or("null"), quoted(address));
    json.push_str(&format!(",\"handshake\":{{\"auth\":{auth},\"query\":{query},\"address\":{address}}}}}"));
    json
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// The pairs of a query, as Node reads them: what comes several times is a list.
fn pairs(query: &str) -> Value {
    let decode = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    let mut pairs = Map::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = Value::from(decode(value));
        match pairs.entry(decode(name)) {
            serde_json::map::Entry::Vacant(free) => {
                free.insert(value);
            }
            serde_json::map::Entry::Occupied(mut there) => match there.get_mut() {
                Value::Array(values) => values.push(value),
                one => *one = json!([one.take(), value]),
            },
        }
    }
    Value::Object(pairs)
}

/// All fields that an answer may have. A field may be `null`, which is as if it were not there.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "an object")]
struct Said<'a> {
    #[serde(borrow)]
    refuse: Option<SaidRefusal<'a>>,
    #[serde(borrow)]
    join: Option<Vec<Text<'a>>>,
    #[serde(borrow)]
    leave: Option<Vec<Text<'a>>>,
    #[serde(borrow)]
    emit: Option<Vec<SaidEmit<'a>>>,
    #[serde(borrow)]
    ack: Option<&'a RawValue>,
    #[serde(borrow)]
    attachments: Option<Vec<Text<'a>>>,
    #[serde(borrow)]
    disconnect: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
struct SaidRefusal<'a> {
    #[serde(borrow)]
    message: Text<'a>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "an object")]
struct SaidEmit<'a> {
    #[serde(borrow)]
    event: Option<Text<'a>>,
    #[serde(borrow)]
    args: Option<&'a RawValue>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    attachments: Option<Vec<Text<'a>>>,
    #[serde(borrow)]
    room: Option<Text<'a>>,
    #[serde(borrow)]
    rooms: Option<Vec<Text<'a>>>,
    #[serde(borrow)]
    user: Option<Text<'a>>,
    all: Option<bool>,
    #[serde(borrow)]
    namespace: Option<Text<'a>>,
    #[serde(borrow)]
    except: Option<Vec<Text<'a>>>,
    volatile: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "an object")]
struct SaidClose<'a> {
    code: Option<f64>,
    #[serde(borrow)]
    reason: Option<Text<'a>>,
}

/// Reads what the backend has answered to a call. Nothing at all means that nothing is to be done.
///
/// # Errors
/// What is wrong with it; nothing of it is carried out then.
fn read(json: &[u8], call: &Call, settings: &Settings) -> Result<Answer, Fault> {
    let json = json.trim_ascii();
    if json.is_empty() {
        return Ok(Answer::default());
    }
    if !json.starts_with(b"{") {
        return Err(Fault::value("the answer is not an object of JSON"));
    }
    let said: Said<'_> = serde_json::from_slice(json)
        .map_err(|error| Fault::value(format!("the answer is not what it should be: {error}")))?;
    if said.refuse.is_some() && !matches!(call.what, What::Connect) {
        return Err(Fault::value("`refuse` is an answer to /connect alone"));
    }
    let namespace = &call.client.namespace;
    let rooms = |names: &Option<Vec<Text<'_>>>| {
        keys(namespace, names.as_deref().unwrap_or_default(), &settings.bounds).map(|keys| owned(&keys))
    };
    let emits = said.emit.as_deref().unwrap_or_default();
    if emits.len() > EMITS_MAX {
        return Err(Fault::value(format!("`emit` has {} entries; it takes {EMITS_MAX}", emits.len())));
    }
    let Payload { values: ack, attachments } = payload("ack", said.ack, &said.attachments, settings)?;
    Ok(Answer {
        refusal: said.refuse.map(|refusal| read_refusal(&refusal, settings)).transpose()?,
        join: rooms(&said.join)?,
        leave: rooms(&said.leave)?,
        emit: emits.iter().map(|emit| read_emit(emit, namespace, settings)).collect::<Result<_, _>>()?,
        ack: ack.into(),
        attachments,
        end: said.disconnect.map(read_end).transpose()?.flatten(),
    })
}

fn read_refusal(said: &SaidRefusal<'_>, settings: &Settings) -> Result<Refusal, Fault> {
    let SaidRefusal { message: Text(message), data } = said;
    let data = data.map_or("", RawValue::get);
    if message.len() + data.len() > settings.message_bytes_max || is_too_deep(data) {
        return Err(Fault::value("`refuse` is too long, or nests too deep"));
    }
    let data = (!data.is_empty()).then(|| data.into());
    Ok(Refusal { message: message.as_ref().into(), data })
}

fn read_emit(said: &SaidEmit<'_>, namespace: &str, settings: &Settings) -> Result<Emit, Fault> {
    let SaidEmit { event, args, data, room, rooms, user, all, except, .. } = said;
    let Some(Text(event)) = event else { return Err(Fault::value("`event` is missing")) };
    check_event(event)?;
    let own = namespace;
    let namespace = said.namespace.as_ref().map_or(own, |Text(name)| name);
    check_namespace(namespace)?;
    let whom = Whom { room: room.as_ref(), rooms: rooms.as_deref(), user: user.as_ref(), all: *all };
    let rooms = whom.keys(namespace, &settings.bounds)?;
    if rooms.is_none() && (namespace != own || except.is_some()) {
        return Err(Fault::value("an event for the client alone is in its namespace, and without `except`"));
    }
    let Payload { values, mut attachments } = match (args, data) {
        (Some(_), Some(_)) => return Err(Fault::value("say one of `args` and `data`")),
        (args, None) => payload("args", *args, &said.attachments, settings)?,
        (None, Some(data)) => {
            let list = format!("[{}]", data.get());
            let list: &RawValue =
                serde_json::from_str(&list).map_err(|_| Fault::value("`data` is no JSON"))?;
            payload("data", Some(list), &said.attachments, settings)?
        }
    };
    // Binary data alone is bytes for everybody, without a text around it.
    let binary = attachments.len() == 1 && attachments::is_placeholder(&values);
    let payload = match attachments.pop_if(|_| binary) {
        Some(only) => only,
        None => values.into_bytes(),
    };
    let is_list = !binary && json::split(str::from_utf8(&payload).unwrap_or_default()).len() != 1;
    Ok(Emit {
        natives: all.is_some() && namespace == "/",
        rooms: owned(&rooms.unwrap_or_default()),
        except: owned(&keys(namespace, except.as_deref().unwrap_or_default(), &settings.bounds)?),
        event: event.as_ref().into(),
        payload,
        binary,
        is_list,
        attachments,
        volatile: said.volatile.unwrap_or(false),
    })
}

/// JSON values with commas between them, and what the placeholders in them stand for.
struct Payload {
    values: String,
    attachments: Vec<Vec<u8>>,
}

/// Reads a list of values with its attachments, in base64.
fn payload(
    field: &str,
    list: Option<&RawValue>,
    said: &Option<Vec<Text<'_>>>,
    settings: &Settings,
) -> Result<Payload, Fault> {
    let said = said.as_deref().unwrap_or_default();
    let list = list.map_or("[]", RawValue::get);
    let values = elements(list).map_err(|_| Fault::value(format!("`{field}` is not a list")))?;
    if is_too_deep(list) {
        return Err(Fault::value(format!("`{field}` nests deeper than {DEPTH_MAX}")));
    }
    let Settings { message_bytes_max, attachments_max, .. } = *settings;
    if said.len() > attachments_max {
        let message =
            format!("{} attachments; there may be {attachments_max} (socketio.attachments_max)", said.len());
        return Err(Fault::value(message));
    }
    let decode = |Text(text): &Text<'_>| BASE64.decode(text.as_bytes());
    let attachments: Vec<Vec<u8>> = said
        .iter()
        .map(decode)
        .collect::<Result<_, _>>()
        .map_err(|error| Fault::value(format!("an attachment is not base64: {error}")))?;
    let bytes = values.len() + attachments.iter().map(Vec::len).sum::<usize>();
    if bytes > message_bytes_max {
        let message = format!(
            "`{field}` has {bytes} bytes; there may be {message_bytes_max} (limits.message_bytes_max)"
        );
        return Err(Fault::value(message));
    }
    if !attachments.is_empty() {
        attachments::check(values, attachments.len()).map_err(|malformed| Fault::value(malformed.0))?;
    }
    Ok(Payload { values: values.to_owned(), attachments })
}

fn read_end(said: &RawValue) -> Result<Option<End>, Fault> {
    match said.get() {
        "true" => Ok(Some(End::Namespace)),
        "false" => Ok(None),
        json if json.starts_with('{') => {
            let SaidClose { code, reason } =
                serde_json::from_str(json).map_err(|error| Fault::value(format!("`disconnect`: {error}")))?;
            let (code, reason) = check_close(code, reason.as_ref().map(|Text(reason)| &**reason))?;
            Ok(Some(End::Connection { code, reason }))
        }
        _ => Err(Fault::value("`disconnect` is true, or an object with `code` and `reason`")),
    }
}

fn owned(names: &[Cow<'_, str>]) -> Vec<CompactString> {
    names.iter().map(|name| CompactString::from(&**name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::calls::{self, Failure};
    use crate::message::{ConnId, SocketId};

    const SETTINGS: Settings = Settings {
        bounds: Bounds { rooms_max: 3, room_name_bytes_max: 10 },
        message_bytes_max: 200,
        attachments_max: 2,
    };

    fn client(namespace: &str) -> Client {
        Client {
            conn: ConnId { shard: 0, slot: 1, stamp: 2 },
            id: SocketId::default(),
            namespace: namespace.into(),
            user: Some("an\"na".into()),
            address: "127.0.0.1".into(),
            bytes: 0,
        }
    }

    fn call(what: What) -> Call {
        Call { client: client("/chat"), query: None, auth: None, what }
    }

    fn right(json: &str) -> Answer {
        read(json.as_bytes(), &call(What::Connect), &SETTINGS)
            .unwrap_or_else(|fault| panic!("{json}: {fault:?}"))
    }

    fn check_wrong(json: &str, says: &str) {
        match read(json.as_bytes(), &call(What::Connected { recovered: false }), &SETTINGS) {
            Err(fault) => assert!(fault.message.contains(says), "{json}: {}", fault.message),
            Ok(answer) => panic!("{json}: {answer:?}"),
        }
    }

    #[test]
    fn a_call_that_no_bell_is_rung_for_is_made() {
        let calls = Arc::new(Calls::new(calls::Settings {
            waiting_max: 1,
            waiting_bytes_max: 10_000,
            waiting_per_connection_max: 1,
            handshake_bytes_max: 0,
            failure: Failure::Error,
        }));
        let (bus, stats) = (Arc::new(Bus::new(1, 10)), Arc::<BackendStats>::default());
        let nobody = crate::backend::Settings {
            url: "http://127.0.0.1:1".into(),
            secret: String::new(),
            timeout: Duration::from_secs(1),
            requests_max: 1,
            answer_bytes_max: 1_000,
            failures_max: 1,
            rest: Duration::from_secs(1),
            answers: Arc::new(ArcSwap::from_pointee(SETTINGS)),
        };
        let caller = Arc::new(Caller::new(nobody, false, stats.clone()));
        let asking =
            Asking::new(Arc::new(ArcSwap::from_pointee(SETTINGS)), calls.clone(), caller, bus.clone(), stats);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            tokio::spawn(asking.run());
            tokio::task::yield_now().await;
            calls.push(call(What::Disconnected { reason: "gone" })).expect("there is room");
            let answered = async {
                while calls.untold() > 0 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            timeout(Duration::from_secs(10), answered).await.expect("it is made");
        });
        assert!(!bus.mailbox(0).is_empty(), "that nobody answered is told");
    }

    #[test]
    fn what_is_asked_is_json_whatever_clients_say() {
        let what = What::Event {
            event: "a\"b\n".into(),
            args: r#"1,{"_placeholder":true,"num":0}"#.into(),
            attachments: vec![vec![0, 255]],
            ack: Some("7".into()),
        };
        let call = Call {
            client: client("/\u{e9}"),
            query: Some("EIO=4&t=a+b%21&x=1&x=2&x=3&%ff".into()),
            auth: Some(r#"{"token":"t"}"#.into()),
            what,
        };
        let json: Value = serde_json::from_str(&body(&call)).expect("JSON");
        let expected = json!({
            "connection": "AAAAAAAAAAAAAAAAAAAA", "namespace": "/\u{e9}", "user": "an\"na", "event": "a\"b\n",
            "args": [1, {"_placeholder": true, "num": 0}], "attachments": ["AP8="], "wants_ack": true,
            "handshake": {
                "auth": {"token": "t"}, "address": "127.0.0.1",
                "query": {"EIO": "4", "t": "a b!", "x": ["1", "2", "3"], "\u{fffd}": ""},
            },
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn an_answer_may_be_empty_and_each_part_of_it_too() {
        for json in ["", " \n", "{}", r#"{"join":null,"emit":[],"ack":[],"disconnect":false}"#] {
            let Answer { refusal, join, leave, emit, ack, attachments, end } = right(json);
            assert!(refusal.is_none() && join.is_empty() && leave.is_empty() && emit.is_empty(), "{json}");
            assert!(ack.is_empty() && attachments.is_empty() && end.is_none(), "{json}");
        }
    }

    #[test]
    fn an_answer_says_what_happens() {
        let answer = right(
            r#"{"join":["b","a","b"],"leave":["c"],"ack":[1,{"_placeholder":true,"num":0}],"attachments":["AP8="],
                "disconnect":{"code":4000,"reason":"bye"}}"#,
        );
        assert_eq!(answer.join, ["/chat\0a", "/chat\0b"]);
        assert_eq!(answer.leave, ["/chat\0c"]);
        assert_eq!(
            (&*answer.ack, answer.attachments),
            (r#"1,{"_placeholder":true,"num":0}"#, vec![vec![0, 255]])
        );
        assert_eq!(answer.end, Some(End::Connection { code: 4000, reason: "bye".into() }));
        assert_eq!(right(r#"{"disconnect":true}"#).end, Some(End::Namespace));
        let refusal = right(r#"{"refuse":{"message":"no","data":{"a":1}}}"#).refusal;
        assert_eq!(refusal, Some(Refusal { message: "no".into(), data: Some(r#"{"a":1}"#.into()) }));
    }

    #[test]
    fn an_event_is_for_the_client_unless_it_says_for_whom() {
        let emit = |json: &str| right(&format!("{{\"emit\":[{json}]}}")).emit.remove(0);
        let own = emit(r#"{"event":"e","args":[1,"2"]}"#);
        let expected =
            Emit { event: "e".into(), payload: br#"1,"2""#.to_vec(), is_list: true, ..Emit::default() };
        assert_eq!(own, expected);
        let one = emit(r#"{"event":"e","args":[ [1] ],"rooms":["a","b"],"except":["c"],"volatile":true}"#);
        assert_eq!((&*one.payload, one.is_list), (&b"[1]"[..], false));
        assert_eq!(
            (one.rooms, one.except, one.volatile),
            (vec!["/chat\0a".into(), "/chat\0b".into()], vec!["/chat\0c".into()], true)
        );
        let all = emit(r#"{"event":"e","data":{"x":1},"all":true,"namespace":"/"}"#);
        assert_eq!((&*all.payload, all.natives, all.rooms), (&br#"{"x":1}"#[..], true, vec!["/\0".into()]));
        let nothing = emit(r#"{"event":"e","user":"anna"}"#);
        assert_eq!((nothing.payload, nothing.is_list), (Vec::new(), true));
        assert_eq!(nothing.rooms, ["/chat\0\u{1}anna"]);
        let bytes =
            emit(r#"{"event":"e","args":[{"_placeholder":true,"num":0}],"attachments":["AP8="],"room":"a"}"#);
        assert_eq!((bytes.payload, bytes.binary, bytes.attachments), (vec![0, 255], true, Vec::new()));
    }

    #[test]
    fn an_answer_that_means_nothing_is_refused_whole() {
        let long = "1".repeat(300);
        let deep = format!("{}{}", "[".repeat(130), "]".repeat(130));
        for (json, says) in [
            ("<html>", "not an object"),
            ("[]", "not an object"),
            ("{", "EOF"),
            ("{\"ack\":[\u{1}]}", "not what it should be"),
            (r#"{"emits":[]}"#, "unknown field `emits`"),
            (r#"{"ack":1}"#, "`ack` is not a list"),
            (&format!("{{\"ack\":[{long}]}}"), "300 bytes"),
            (&format!("{{\"ack\":{deep}}}"), "nests deeper"),
            (r#"{"join":[""]}"#, "must not be empty"),
            (r#"{"join":["a","b","c","d"]}"#, "4 rooms"),
            (r#"{"leave":["01234567890"]}"#, "11 bytes"),
            (r#"{"emit":[{"args":[]}]}"#, "`event` is missing"),
            (r#"{"emit":[{"event":"connect"}]}"#, "must not be connect"),
            (r#"{"emit":[{"event":"e","args":[],"data":1}]}"#, "say one of `args` and `data`"),
            (r#"{"emit":[{"event":"e","room":"a","all":true}]}"#, "say one of `room`"),
            (r#"{"emit":[{"event":"e","all":false}]}"#, "say one of `room`"),
            (r#"{"emit":[{"event":"e","namespace":"/x"}]}"#, "for the client alone"),
            (r#"{"emit":[{"event":"e","except":["x"]}]}"#, "for the client alone"),
            (r#"{"emit":[{"event":"e","room":"a","namespace":"x"}]}"#, "begins with a slash"),
            (r#"{"attachments":["?"]}"#, "not base64"),
            (r#"{"attachments":["","",""]}"#, "3 attachments"),
            (r#"{"ack":[{"_placeholder":true,"num":1}],"attachments":["AA=="]}"#, "names no attachment"),
            (r#"{"disconnect":"yes"}"#, "`disconnect` is true"),
            (r#"{"disconnect":{"code":1001}}"#, "`code` is 1000"),
            (r#"{"refuse":{}}"#, "missing field `message`"),
            (r#"{"refuse":{"message":"no"}}"#, "to /connect alone"),
        ] {
            check_wrong(json, says);
        }
        let many = vec![r#"{"event":"e"}"#; EMITS_MAX + 1].join(",");
        check_wrong(&format!("{{\"emit\":[{many}]}}"), "1001 entries");
    }
}
