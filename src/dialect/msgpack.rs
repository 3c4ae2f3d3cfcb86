//! The msgpack parser of Socket.IO: the same packets in another spelling. Each is one binary message, a map of `type`, `data`, `nsp` and
//! `id`, with bytes where they belong. Here they are turned into the text of the JSON parser with its attachments, and back, so that
//! nothing else tells the two apart.

use super::attachments::{split_digits, string_bytes, unescape};
use super::engineio::Malformed;
use super::native::{DEPTH_MAX, encode_str};
use rmp::encode::ValueWriteError;
use rmp::{Marker, decode as read, encode as write};
use serde::Deserialize;
use smallvec::SmallVec;
use std::borrow::Cow;
use std::io::Write;

/// Where [`encode`] stops to follow arrays and objects into each other: beyond anything that is let in, with a packet around it.
const WRITTEN_DEPTH_MAX: usize = 2 * DEPTH_MAX;

/// Reads a packet, and answers its text as [`socketio::decode`](super::socketio::decode) reads it, with its attachments. The text is at
/// most six times as long as `frame`, and some 40 bytes for each attachment.
///
/// Values are judged as Node's decoder does, and spelled as JSON spells them: an undefined one is left out of an object and `null` in an
/// array, a date is its ISO 8601 text, an extension that Node does not know is an array of its type and its bytes, and what is no number
/// is `null`. But strings are UTF-8, and an object's keys are strings.
///
/// # Errors
/// What is wrong with it: it is cut short or goes on, nests deeper than [`DEPTH_MAX`], has more than `attachments_max` binary values,
/// or is no packet. An object with the key `_placeholder` beside binary values is refused, too: in the text it could not be told from
/// what stands for those.
pub fn decode(frame: &[u8], attachments_max: usize) -> Result<(String, Vec<Vec<u8>>), Malformed> {
    let mut reader = Reader::new(frame, attachments_max);
    let (mut kind, mut namespace, mut id, mut data) = (None, None, None, None);
    for _ in 0..reader.read(read::read_map_len)? {
        let key = reader.string()?;
        if reader.skip_undefined() {
            continue;
        }
        match key {
            "type" => kind = Some(reader.read(read::read_int::<u64, _>)?),
            "nsp" => namespace = Some(reader.string()?),
            "id" => id = Some(reader.read(read::read_int::<u64, _>)?),
            "data" => data = Some(reader.document()?),
            // `options`, which is for the other side's own transport, or what a newer client has to say.
            _ => drop(reader.document()?),
        }
    }
    if !reader.rest.is_empty() {
        return Err(Malformed("something follows the packet"));
    }
    let (json, attachments) = data.unwrap_or_default();
    if !json.is_empty() && !json.starts_with(b"[") && !json.starts_with(b"{") {
        return Err(Malformed("the payload does not go with the packet's type"));
    }
    let kind = match (kind, attachments.len()) {
        (Some(kind @ 0..=4), 0) => kind,
        // 5 and 6 are 2 and 3 with attachments.
        (Some(kind @ 2..=3), _) => kind + 3,
        (Some(0..=4), _) => return Err(Malformed("only events and their answers have binary values")),
        _ => return Err(Malformed("no Socket.IO packet has this type")),
    };
    let Some(namespace) = namespace.filter(|name| name.starts_with('/') && !name.contains(',')) else {
        return Err(Malformed("no namespace has this name"));
    };
    let mut text = Vec::with_capacity(json.len() + namespace.len() + 32);
    write!(text, "{kind}").expect(MEMORY);
    if !attachments.is_empty() {
        write!(text, "{}-", attachments.len()).expect(MEMORY);
    }
    if namespace != "/" {
        write!(text, "{namespace},").expect(MEMORY);
    }
    if let Some(id) = id {
        write!(text, "{id}").expect(MEMORY);
    }
    text.extend_from_slice(&json);
    let text = String::from_utf8(text).map_err(|_| NOT_UTF8)?;
    Ok((text, attachments))
}

/// Reads what one server wrote to another: a value of any kind, as JSON with its attachments. It is judged as the values in a packet
/// are, but that it may nest `ENVELOPE_DEPTH` deeper, and that a date is msgpack's own: notepack writes that since version 3.
///
/// # Errors
/// As with [`decode`].
pub(crate) fn decode_value(
    payload: &[u8],
    attachments_max: usize,
) -> Result<(String, Vec<Vec<u8>>), Malformed> {
    let depth_max = DEPTH_MAX + ENVELOPE_DEPTH;
    let mut reader = Reader { depth_max, has_timestamps: true, ..Reader::new(payload, attachments_max) };
    let (json, attachments) = reader.document()?;
    if !reader.rest.is_empty() {
        return Err(Malformed("something follows the value"));
    }
    Ok((String::from_utf8(json).map_err(|_| NOT_UTF8)?, attachments))
}

/// Arrays and objects that servers put around the data of an event.
const ENVELOPE_DEPTH: usize = 4;

/// Why nothing that is written here can fail.
const MEMORY: &str = "writing to memory does not fail";
const CUT_SHORT: Malformed = Malformed("a packet is cut short, or a part of it is of the wrong kind");
const NOT_UTF8: Malformed = Malformed("a string is not UTF-8");
const TOO_DEEP: Malformed = Malformed("the payload nests too deep");

/// A packet as far as it has been read.
struct Reader<'a> {
    rest: &'a [u8],
    attachments_max: usize,
    /// Arrays and objects in each other, at most.
    depth_max: usize,
    /// True where extension −1 is a date, as msgpack has it.
    has_timestamps: bool,
    /// The value that is being read, as JSON.
    json: Vec<u8>,
    /// Its binary values.
    attachments: Vec<Vec<u8>>,
    /// True exactly when an object in it has the key that stands for one.
    has_placeholder: bool,
}

impl<'a> Reader<'a> {
    fn new(frame: &'a [u8], attachments_max: usize) -> Reader<'a> {
        let (json, attachments) = (Vec::new(), Vec::new());
        let (depth_max, has_timestamps, has_placeholder) = (DEPTH_MAX, false, false);
        Reader { rest: frame, attachments_max, depth_max, has_timestamps, json, attachments, has_placeholder }
    }

    /// One value by itself.
    fn document(&mut self) -> Result<(Vec<u8>, Vec<Vec<u8>>), Malformed> {
        self.value(1)?;
        if std::mem::take(&mut self.has_placeholder) && !self.attachments.is_empty() {
            return Err(Malformed("an object looks like a placeholder of the JSON parser"));
        }
        Ok((std::mem::take(&mut self.json), std::mem::take(&mut self.attachments)))
    }

    /// Appends the next value to the JSON. An array or object would be the `depth`th around what is in it.
    fn value(&mut self, depth: usize) -> Result<(), Malformed> {
        let marker = Marker::from_u8(*self.rest.first().ok_or(CUT_SHORT)?);
        match marker {
            Marker::Null => self.constant(b"null"),
            Marker::True => self.constant(b"true"),
            Marker::False => self.constant(b"false"),
            Marker::FixPos(_)
            | Marker::FixNeg(_)
            | Marker::U8
            | Marker::U16
            | Marker::U32
            | Marker::U64
            | Marker::I8
            | Marker::I16
            | Marker::I32
            | Marker::I64 => {
                let number: i128 = self.read(read::read_int)?;
                write!(self.json, "{number}").expect(MEMORY);
            }
            Marker::F32 => {
                let number = self.read(read::read_f32)?;
                self.float(number.into());
            }
            Marker::F64 => {
                let number = self.read(read::read_f64)?;
                self.float(number);
            }
            Marker::FixStr(_) | Marker::Str8 | Marker::Str16 | Marker::Str32 => {
                let text = self.string()?;
                encode_str(&mut self.json, text);
            }
            Marker::Bin8 | Marker::Bin16 | Marker::Bin32 => {
                let length = self.read(read::read_bin_len)?;
                let bytes = self.take(length)?;
                self.attach(bytes)?;
            }
            Marker::FixArray(_) | Marker::Array16 | Marker::Array32 => self.array(depth)?,
            Marker::FixMap(_) | Marker::Map16 | Marker::Map32 => self.map(depth)?,
            Marker::FixExt1
            | Marker::FixExt2
            | Marker::FixExt4
            | Marker::FixExt8
            | Marker::FixExt16
            | Marker::Ext8
            | Marker::Ext16
            | Marker::Ext32 => self.extension(marker)?,
            Marker::Reserved => return Err(Malformed("a value is of no type that there is")),
        }
        Ok(())
    }

    /// A value that is its marker.
    fn constant(&mut self, json: &[u8]) {
        self.rest = &self.rest[1..];
        self.json.extend_from_slice(json);
    }

    fn float(&mut self, number: f64) {
        // Infinities and what is no number become null, as in JavaScript.
        serde_json::to_writer(&mut self.json, &number).expect(MEMORY);
    }

    fn array(&mut self, depth: usize) -> Result<(), Malformed> {
        let length = self.open(depth, read::read_array_len, b'[')?;
        for at in 0..length {
            if at > 0 {
                self.json.push(b',');
            }
            self.value(depth + 1)?;
        }
        self.json.push(b']');
        Ok(())
    }

    fn map(&mut self, depth: usize) -> Result<(), Malformed> {
        let length = self.open(depth, read::read_map_len, b'{')?;
        let start = self.json.len();
        for _ in 0..length {
            let key = self.string()?;
            if self.skip_undefined() {
                continue;
            }
            if self.json.len() > start {
                self.json.push(b',');
            }
            self.has_placeholder |= key == "_placeholder";
            encode_str(&mut self.json, key);
            self.json.push(b':');
            self.value(depth + 1)?;
        }
        self.json.push(b'}');
        Ok(())
    }

    /// Begins an array or object, and answers its length. That is what the peer claims: nothing is reserved for it.
    fn open<E>(
        &mut self,
        depth: usize,
        length: impl FnOnce(&mut &'a [u8]) -> Result<u32, E>,
        bracket: u8,
    ) -> Result<u32, Malformed> {
        if depth > self.depth_max {
            return Err(TOO_DEEP);
        }
        self.json.push(bracket);
        self.read(length)
    }

    /// What notepack has no plain type for.
    fn extension(&mut self, marker: Marker) -> Result<(), Malformed> {
        let meta = self.read(read::read_ext_meta)?;
        let bytes = self.take(meta.size)?;
        match (meta.typeid, marker) {
            (0, Marker::FixExt1) => self.json.extend_from_slice(b"null"),
            (0, Marker::FixExt8) => {
                let ms = bytes.try_into().map(i64::from_be_bytes).map_err(|_| CUT_SHORT)?;
                encode_date(&mut self.json, ms);
            }
            (-1, Marker::FixExt4 | Marker::FixExt8 | Marker::Ext8) if self.has_timestamps => {
                encode_date(&mut self.json, timestamp_ms(bytes).ok_or(CUT_SHORT)?);
            }
            // An ArrayBuffer.
            (0, Marker::Ext8 | Marker::Ext16 | Marker::Ext32) => self.attach(bytes)?,
            (kind, _) => {
                write!(self.json, "[{kind},").expect(MEMORY);
                self.attach(bytes)?;
                self.json.push(b']');
            }
        }
        Ok(())
    }

    fn attach(&mut self, bytes: &[u8]) -> Result<(), Malformed> {
        let num = self.attachments.len();
        if num == self.attachments_max {
            return Err(Malformed("a packet has more attachments than are taken"));
        }
        write!(self.json, r#"{{"_placeholder":true,"num":{num}}}"#).expect(MEMORY);
        self.attachments.push(bytes.to_vec());
        Ok(())
    }

    /// Passes over an undefined value, if that comes next.
    fn skip_undefined(&mut self) -> bool {
        match self.rest {
            [0xd4, 0, _, rest @ ..] => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    fn string(&mut self) -> Result<&'a str, Malformed> {
        let length = self.read(read::read_str_len)?;
        std::str::from_utf8(self.take(length)?).map_err(|_| NOT_UTF8)
    }

    fn take(&mut self, length: u32) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(length as usize).ok_or(CUT_SHORT)?;
        self.rest = rest;
        Ok(taken)
    }

    fn read<T, E>(&mut self, read: impl FnOnce(&mut &'a [u8]) -> Result<T, E>) -> Result<T, Malformed> {
        read(&mut self.rest).map_err(|_| CUT_SHORT)
    }
}

/// The milliseconds after 1970 that a date of msgpack says: seconds, nanoseconds and seconds in 64 bits, or in 96. Parts of a
/// millisecond are cut off, as JavaScript does.
fn timestamp_ms(bytes: &[u8]) -> Option<i64> {
    let (seconds, ns) = match *bytes {
        [a, b, c, d] => (u32::from_be_bytes([a, b, c, d]).into(), 0),
        [_, _, _, _, _, _, _, _] => {
            let both = u64::from_be_bytes(bytes.try_into().ok()?);
            (i64::try_from(both & 0x3_ffff_ffff).ok()?, (both >> 34) as u32)
        }
        [a, b, c, d, ref seconds @ ..] => {
            (i64::from_be_bytes(seconds.try_into().ok()?), u32::from_be_bytes([a, b, c, d]))
        }
        _ => return None,
    };
    let ns = i128::from(seconds) * 1_000_000_000 + i128::from(ns);
    // What does not fit is no date.
    Some(i64::try_from(ns / 1_000_000).unwrap_or(i64::MAX))
}

/// Writes the moment `ms` milliseconds after 1970 in UTC, as JavaScript's `toJSON` does: `null` for what is no date there.
fn encode_date(json: &mut Vec<u8>, ms: i64) {
    const DAY_MS: i64 = 86_400_000;
    if ms.unsigned_abs() > 100_000_000 * DAY_MS as u64 {
        return json.extend_from_slice(b"null");
    }
    let (day, ms) = (ms.div_euclid(DAY_MS), ms.rem_euclid(DAY_MS));
    // Counted from a 1st of March at the begin of 400 years, so that a leap day is the last of its year, and of its 4 and its 400 years.
    let day = day + 719_468;
    let (era, day) = (day.div_euclid(146_097), day.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    // Five months from March on, and again from August on, have 153 days.
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let year = 400 * era + year + i64::from(month >= 10);
    let month = (month + 2) % 12 + 1;
    match year {
        0..=9_999 => write!(json, "\"{year:04}"),
        _ => write!(json, "\"{year:+07}"),
    }
    .expect(MEMORY);
    let (hour, minute, second) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1_000 % 60);
    write!(json, "-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z\"", ms % 1_000)
        .expect(MEMORY);
}

/// Writes a packet. `text` is what one of the functions of [`socketio`](super::socketio) wrote, Engine.IO's type and all, and
/// `attachments` are those that it names; of one that is named twice, the second is nil. Numbers are as notepack writes them: whole ones
/// as integers, others as 64-bit floats. Half a surrogate pair, which msgpack has no way to say, becomes U+FFFD.
pub fn encode<A: AsRef<[u8]>>(out: &mut Vec<u8>, text: &[u8], attachments: &[A]) {
    let text = std::str::from_utf8(text).unwrap_or_default();
    let text = text.strip_prefix('4').unwrap_or_default();
    let (kind, rest) = match text.bytes().next() {
        Some(kind @ b'0'..=b'4') => (kind - b'0', &text[1..]),
        // 5 and 6 are 2 and 3 with attachments.
        Some(kind @ b'5'..=b'6') => (kind - b'3', text.split_once('-').unwrap_or_default().1),
        _ => (0, ""),
    };
    let (namespace, rest) = match rest.starts_with('/') {
        true => rest.split_once(',').unwrap_or((rest, "")),
        false => ("/", rest),
    };
    let (id, json) = split_digits(rest);
    let attachments = attachments.iter().map(|bytes| Some(bytes.as_ref())).collect();
    let mut writer = Writer { out, rest: json, attachments };
    writer.packet(kind, namespace, id).expect(MEMORY);
}

/// Writes `json`, as [`encode`] writes the data of a packet.
pub(crate) fn encode_value<A: AsRef<[u8]>>(out: &mut Vec<u8>, json: &str, attachments: &[A]) {
    let attachments = attachments.iter().map(|bytes| Some(bytes.as_ref())).collect();
    Writer { out, rest: json, attachments }.value(1).expect(MEMORY);
}

/// JSON as far as it has been written. What is well-formed becomes what it says; of what is not, something well-formed.
struct Writer<'a, 'o> {
    out: &'o mut Vec<u8>,
    rest: &'a str,
    /// Those that have not been written.
    attachments: SmallVec<[Option<&'a [u8]>; 4]>,
}

type Written = std::io::Result<()>;
type WriteLength = fn(&mut Vec<u8>, u32) -> Result<Marker, ValueWriteError>;

impl<'a> Writer<'a, '_> {
    fn packet(&mut self, kind: u8, namespace: &str, id: &str) -> Written {
        let (has_data, id) = (!self.rest.is_empty(), id.parse().ok());
        write::write_map_len(self.out, 2 + u32::from(has_data) + u32::from(id.is_some()))?;
        write::write_str(self.out, "type")?;
        write::write_uint(self.out, kind.into())?;
        if has_data {
            write::write_str(self.out, "data")?;
            self.value(1)?;
        }
        if let Some(id) = id {
            write::write_str(self.out, "id")?;
            write::write_uint(self.out, id)?;
        }
        write::write_str(self.out, "nsp")?;
        Ok(write::write_str(self.out, namespace)?)
    }

    /// Writes the next value, whatever comes: exactly one.
    fn value(&mut self, depth: usize) -> Written {
        self.rest = self.rest.trim_ascii_start();
        match self.rest.bytes().next() {
            Some(b'"') => {
                let text = self.string();
                Ok(write::write_str(self.out, &text)?)
            }
            Some(b'[') if depth <= WRITTEN_DEPTH_MAX => self.array(depth),
            Some(b'{') if depth <= WRITTEN_DEPTH_MAX => self.object(depth),
            _ => self.scalar(),
        }
    }

    fn array(&mut self, depth: usize) -> Written {
        let start = self.open();
        let mut length = 0;
        while self.has_more(']') {
            self.value(depth + 1)?;
            length += 1;
        }
        self.close(start, length, write::write_array_len)
    }

    /// An object, or the attachment that it stands for.
    fn object(&mut self, depth: usize) -> Written {
        let start = self.open();
        let (mut is_placeholder, mut num, mut length) = (false, None, 0);
        while self.has_more('}') {
            let key = self.string();
            self.rest = self.rest.trim_ascii_start().strip_prefix(':').unwrap_or_default().trim_ascii_start();
            match &*key {
                "_placeholder" => is_placeholder = self.rest.starts_with("true"),
                "num" => num = split_digits(self.rest).0.parse::<usize>().ok(),
                _ => {}
            }
            write::write_str(self.out, &key)?;
            self.value(depth + 1)?;
            length += 1;
        }
        if let Some(attachment) = num.filter(|_| is_placeholder).and_then(|num| self.attachments.get_mut(num))
        {
            self.out.truncate(start);
            // Once: an attachment that many places name would make much of little.
            return match attachment.take() {
                Some(bytes) => Ok(write::write_bin(self.out, bytes)?),
                None => self.constant(Marker::Null),
            };
        }
        self.close(start, length, write::write_map_len)
    }

    /// Begins an array or object whose length is not known, and answers where. Most have a header of one byte.
    fn open(&mut self) -> usize {
        self.rest = &self.rest[1..];
        self.out.push(0);
        self.out.len() - 1
    }

    /// Writes the header of the array or object that began at `start`. One longer than a byte moves what is in it: a large value is moved
    /// once for each array or object of 16 or more that is around it.
    fn close(&mut self, start: usize, length: u32, header: WriteLength) -> Written {
        let end = self.out.len();
        header(self.out, length)?;
        let header = SmallVec::<[u8; 5]>::from_slice(&self.out[end..]);
        self.out.truncate(end);
        self.out.splice(start..=start, header);
        Ok(())
    }

    /// True when there is another element before `end`, which otherwise is passed over.
    fn has_more(&mut self, end: char) -> bool {
        let rest = self.rest.trim_ascii_start();
        let rest = rest.strip_prefix(',').unwrap_or(rest).trim_ascii_start();
        let ended = rest.strip_prefix(end);
        self.rest = ended.unwrap_or(rest);
        ended.is_none() && !rest.is_empty()
    }

    /// The text of the JSON string that comes next.
    fn string(&mut self) -> Cow<'a, str> {
        let (string, rest) = self.rest.split_at(string_bytes(self.rest));
        self.rest = rest;
        unescape(string).unwrap_or_else(|| without_halves(string).into())
    }

    fn scalar(&mut self) -> Written {
        let is_end = |letter: char| matches!(letter, ',' | ']' | '}') || letter.is_ascii_whitespace();
        let (token, rest) = self.rest.split_at(self.rest.find(is_end).unwrap_or(self.rest.len()));
        // Without a token this is no JSON, and nothing could be made of the rest.
        self.rest = if token.is_empty() { "" } else { rest };
        match (token, token.parse()) {
            ("true", _) => self.constant(Marker::True),
            ("false", _) => self.constant(Marker::False),
            (number, Ok(float)) => self.number(number, float),
            _ => self.constant(Marker::Null),
        }
    }

    fn constant(&mut self, marker: Marker) -> Written {
        self.out.push(marker.to_u8());
        Ok(())
    }

    /// Writes a number whose nearest float is `float`.
    fn number(&mut self, number: &str, float: f64) -> Written {
        let whole: Option<i128> = number.parse().ok();
        let whole = whole.or_else(|| (float.fract() == 0.0).then_some(float as i128));
        if let Some(whole) = whole.and_then(|whole| u64::try_from(whole).ok()) {
            write::write_uint(self.out, whole)?;
        } else if let Some(whole) = whole.and_then(|whole| i64::try_from(whole).ok()) {
            write::write_sint(self.out, whole)?;
        } else {
            write::write_f64(self.out, float)?;
        }
        Ok(())
    }
}

/// The text of a JSON string, with U+FFFD for each half of a surrogate pair.
fn without_halves(string: &str) -> String {
    #[derive(Deserialize)]
    #[serde(transparent)]
    struct Bytes<'a>(#[serde(borrow)] Cow<'a, [u8]>);
    let Ok(Bytes(bytes)) = serde_json::from_str(string) else { return String::new() };
    let mut bytes = bytes.into_owned();
    // As bytes, serde_json writes a half as UTF-8 would if there were one: 0xed, a byte from 0xa0 on, and one more.
    for at in 0..bytes.len().saturating_sub(2) {
        if bytes[at] == 0xed && bytes[at + 1] >= 0xa0 {
            bytes[at..at + 3].copy_from_slice("\u{fffd}".as_bytes());
        }
    }
    String::from_utf8(bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::socketio::{self, Body, Limits, Packet};
    use super::*;
    use data_encoding::HEXLOWER;

    const ATTACHMENTS_MAX: usize = 3;

    /// The bytes of a dump; spaces are for the eye.
    fn bytes(hex: &str) -> Vec<u8> {
        HEXLOWER.decode(hex.replace(' ', "").as_bytes()).expect("pairs of digits")
    }

    fn decoded(frame: &[u8]) -> Result<(String, Vec<Vec<u8>>), Malformed> {
        decode(frame, ATTACHMENTS_MAX)
    }

    fn check(hex: &str, text: &str, attachments: &[&str]) {
        let attachments = attachments.iter().map(|hex| bytes(hex)).collect();
        assert_eq!(decoded(&bytes(hex)), Ok((text.to_owned(), attachments)), "{hex}");
    }

    fn check_malformed(hex: &str, says: &str) {
        match decoded(&bytes(hex)) {
            Err(Malformed(what)) => assert!(what.contains(says), "{hex}: {what}"),
            Ok(packet) => panic!("{hex}: {packet:?}"),
        }
    }

    /// An event `e` whose only argument are these bytes.
    fn event(argument: &[u8]) -> Vec<u8> {
        [&bytes("83 a474797065 02 a3 6e7370 a12f a464617461 92 a165")[..], argument].concat()
    }

    /// Checks what becomes of an argument.
    fn check_value(hex: &str, json: &str) {
        let (text, _) = decoded(&event(&bytes(hex))).unwrap_or_else(|why| panic!("{hex}: {why:?}"));
        let (_, after) = text.split_once(r#"["e","#).expect("an event");
        assert_eq!(after, format!("{json}]"), "{hex}");
    }

    fn check_malformed_value(hex: &str, says: &str) {
        check_malformed(&HEXLOWER.encode(&event(&bytes(hex))), says);
    }

    fn encoded(text: &str, attachments: &[&[u8]]) -> String {
        let mut out = Vec::new();
        encode(&mut out, text.as_bytes(), attachments);
        HEXLOWER.encode(&out)
    }

    /// Checks how a value is written.
    fn check_written(json: &str, hex: &str) {
        let expected = HEXLOWER.encode(&bytes("83 a474797065 02 a464617461 92 a165"));
        let packet = encoded(&format!(r#"42["e",{json}]"#), &[]);
        let value = packet.strip_prefix(&expected).and_then(|rest| rest.strip_suffix("a36e7370a12f"));
        assert_eq!(value, Some(&*hex.replace(' ', "")), "{json}");
    }

    #[test]
    fn what_clients_were_seen_to_send_is_understood() {
        check("83a47479706500a46461746181a5746f6b656ea174a36e7370a12f", r#"0{"token":"t"}"#, &[]);
        check("83a47479706500a464617461d40000a36e7370a62f61646d696e", "0/admin,", &[]);
        check("82a47479706501a36e7370a62f61646d696e", "1/admin,", &[]);
        check(
            "84a47479706502a46461746191a361736ba76f7074696f6e7381a8636f6d7072657373c3a36e7370a12f",
            r#"2["ask"]"#,
            &[],
        );
        // emit("echo", "x", -1, undefined, {u: undefined, n: null, d: new Date(1700000000123)})
        check(
            "84a47479706502a46461746195a46563686fa178ffd4000083a175d40000a16ec0a164d7000000018bcfe5687ba76f7074696f6e7381a8\
             636f6d7072657373c3a36e7370a12f",
            r#"2["echo","x",-1,null,{"n":null,"d":"2023-11-14T22:13:20.123Z"}]"#,
            &[],
        );
        // A Buffer, a typed array and an ArrayBuffer, to be answered.
        check(
            "85a47479706502a46461746194a46563686fc403010203c702000405c7010009a76f7074696f6e7381a8636f6d7072657373c3a2696400a36e\
             7370a12f",
            "53-0[\"echo\",{\"_placeholder\":true,\"num\":0},{\"_placeholder\":true,\"num\":1},{\"_placeholder\":true,\"num\":2}]",
            &["010203", "0405", "09"],
        );
        check("84a47479706503a2696400a4646174619102a36e7370a12f", "30[2]", &[]);
    }

    #[test]
    fn what_is_understood_is_a_packet_of_the_json_parser() {
        let (text, attachments) =
            decoded(&bytes("84 a36e7370 a22f61 a464617461 92a16ec40107 a26964 ccff a474797065 02"))
                .expect("a packet");
        let limits = Limits { attachments_max: ATTACHMENTS_MAX, namespace_bytes_max: 20 };
        let args = r#"{"_placeholder":true,"num":0}"#;
        let body = Body::Event { name: "n".into(), args };
        let expected = Packet { namespace: "/a", id: Some("255"), attachments: 1, body };
        assert_eq!((socketio::decode(&text, &limits), attachments), (Ok(expected), vec![vec![7]]));
        // Of a key that comes twice the last value counts, as in JavaScript.
        check("84 a474797065 00 a36e7370 a22f61 a36e7370 a12f a474797065 01", "1", &[]);
        check("84 a474797065 02 a36e7370 a12f a464617461 91c400 a464617461 91a161", r#"2["a"]"#, &[]);
        check("84 a474797065 02 a36e7370 a12f a464617461 91a161 a178 c400", r#"2["a"]"#, &[]);
        check("83 a474797065 cd0001 a36e7370 a12f a26964 d40000", "1", &[]);
    }

    #[test]
    fn what_is_no_packet_is_refused() {
        for hex in ["", "80", "00", "90", "a0", "c0", "c1", "82", "8100", "df00000000", "d40000"] {
            assert!(decoded(&bytes(hex)).is_err(), "{hex}");
        }
        let whole = "84a47479706502a46461746192a165c40107a36e7370a12fa2696407";
        check(whole, r#"51-7["e",{"_placeholder":true,"num":0}]"#, &["07"]);
        for end in (0..whole.len()).step_by(2) {
            check_malformed(&whole[..end], "cut short");
        }
        check_malformed(&format!("{whole}c0"), "follows");
        check_malformed("82 a474797065 05 a36e7370 a12f", "type");
        check_malformed("82 a474797065 ff a36e7370 a12f", "wrong kind");
        check_malformed("82 a474797065 a132 a36e7370 a12f", "wrong kind");
        check_malformed("81 a36e7370 a12f", "type");
        check_malformed("82 a474797065 d40000 a36e7370 a12f", "type");
        check_malformed("83 a474797065 02 a36e7370 a12f 01 02", "wrong kind");
        check_malformed("83 a474797065 01 a36e7370 a12f a26964 c0", "wrong kind");
        check_malformed("83 a474797065 01 a36e7370 a12f a26964 ff", "wrong kind");
        for name in ["a0", "a161", "a42f612c62"] {
            check_malformed(&format!("82 a474797065 00 a36e7370 {name}"), "namespace");
        }
        check_malformed("81 a474797065 00", "namespace");
        check_malformed("82 a474797065 00 a36e7370 c0", "wrong kind");
        for data in ["c0", "c3", "07", "a16b", "ca00000000", "d7000000000000000000"] {
            check_malformed(&format!("83 a474797065 02 a36e7370 a12f a464617461 {data}"), "payload");
        }
        for kind in ["00", "01", "04"] {
            check_malformed(&format!("83 a474797065 {kind} a36e7370 a12f a464617461 91c400"), "binary");
        }
    }

    #[test]
    fn values_are_spelled_as_json_spells_them() {
        for (hex, json) in [
            ("c0", "null"),
            ("c2", "false"),
            ("c3", "true"),
            ("00", "0"),
            ("7f", "127"),
            ("e0", "-32"),
            ("ccff", "255"),
            ("cdffff", "65535"),
            ("ceffffffff", "4294967295"),
            ("cfffffffffffffffff", "18446744073709551615"),
            ("d080", "-128"),
            ("d18000", "-32768"),
            ("d280000000", "-2147483648"),
            ("d38000000000000000", "-9223372036854775808"),
            ("ca3dcccccd", "0.10000000149011612"),
            ("cb3ff8000000000000", "1.5"),
            ("cb7ff8000000000000", "null"),
            ("cbfff0000000000000", "null"),
            ("a0", r#""""#),
            ("a7220a5c00c3a97f", r#""\"\n\\\u0000é\u007f""#),
            ("d9026869", r#""hi""#),
            ("da00026869", r#""hi""#),
            ("db000000026869", r#""hi""#),
            ("90", "[]"),
            ("93c0d4000001", "[null,null,1]"),
            ("dc0001c3", "[true]"),
            ("dd00000001c3", "[true]"),
            ("80", "{}"),
            ("82a161d40001a162c2", r#"{"b":false}"#),
            ("de0001a16191c3", r#"{"a":[true]}"#),
            ("df00000001a12203", r#"{"\"":3}"#),
            ("d40000", "null"),
        ] {
            check_value(hex, &json.replace("\\u007f", "\x7f"));
        }
    }

    #[test]
    fn dates_are_those_of_javascript() {
        for (ms, date) in [
            (0_i64, "1970-01-01T00:00:00.000"),
            (-1, "1969-12-31T23:59:59.999"),
            (1_700_000_000_123, "2023-11-14T22:13:20.123"),
            (68_169_600_000, "1972-02-29T00:00:00.000"),
            (951_782_400_000, "2000-02-29T00:00:00.000"),
            (951_868_800_000, "2000-03-01T00:00:00.000"),
            (1_709_164_800_000, "2024-02-29T00:00:00.000"),
            (1_735_603_200_000, "2024-12-31T00:00:00.000"),
            (4_107_456_000_000, "2100-02-28T00:00:00.000"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000"),
            (-62_135_596_800_000, "0001-01-01T00:00:00.000"),
            (-62_167_219_200_000, "0000-01-01T00:00:00.000"),
            (-62_167_219_200_001, "-000001-12-31T23:59:59.999"),
            (-62_198_755_200_000, "-000001-01-01T00:00:00.000"),
            (253_402_300_799_999, "9999-12-31T23:59:59.999"),
            (253_402_300_800_000, "+010000-01-01T00:00:00.000"),
            (8_640_000_000_000_000, "+275760-09-13T00:00:00.000"),
            (-8_640_000_000_000_000, "-271821-04-20T00:00:00.000"),
        ] {
            check_value(&format!("d700{ms:016x}"), &format!("\"{date}Z\""));
        }
        for none in [8_640_000_000_000_001, -8_640_000_000_000_001, i64::MAX, i64::MIN] {
            check_value(&format!("d700{none:016x}"), "null");
        }
    }

    #[test]
    fn dates_of_servers_are_those_of_msgpack() {
        for (hex, json) in [
            ("d6ff00000000", r#""1970-01-01T00:00:00.000Z""#),
            ("d6ff3b9aca00", r#""2001-09-09T01:46:40.000Z""#),
            ("d6ffffffffff", r#""2106-02-07T06:28:15.000Z""#),
            ("d7ff1d5353006553f100", r#""2023-11-14T22:13:20.123Z""#),
            ("c70cff000f42400000000400000000", r#""2514-05-30T01:53:04.001Z""#),
            ("c70cff3b8b87c0ffffffffffffffff", r#""1969-12-31T23:59:59.999Z""#),
            // Half a millisecond before 1970 is 1970 in JavaScript.
            ("c70cff3b9328e0ffffffffffffffff", r#""1970-01-01T00:00:00.000Z""#),
            ("c70cff000000007fffffffffffffff", "null"),
            // What was written before version 3.
            ("d70000000000000003e8", r#""1970-01-01T00:00:01.000Z""#),
            ("d40000", "null"),
        ] {
            assert_eq!(decode_value(&bytes(hex), 0), Ok((json.to_owned(), Vec::new())), "{hex}");
        }
        let extension = (r#"[-1,{"_placeholder":true,"num":0}]"#.to_owned(), vec![vec![7]]);
        assert_eq!(decode_value(&bytes("d4ff07"), 1), Ok(extension));
        for hex in ["", "c703ff000000", "c70bff0000000000000000000000", "c0c0", "d6ff0000"] {
            assert!(decode_value(&bytes(hex), 0).is_err(), "{hex}");
        }
    }

    #[test]
    fn bytes_and_unknown_extensions_are_attachments() {
        let placeholder = r#"{"_placeholder":true,"num":0}"#;
        for (hex, json, attachment) in [
            ("c400", placeholder.to_owned(), ""),
            ("c403010203", placeholder.to_owned(), "010203"),
            ("c5000101", placeholder.to_owned(), "01"),
            ("c60000000101", placeholder.to_owned(), "01"),
            ("c7010007", placeholder.to_owned(), "07"),
            ("c80001 0007", placeholder.to_owned(), "07"),
            ("c900000001 0007", placeholder.to_owned(), "07"),
            ("d40107", format!("[1,{placeholder}]"), "07"),
            ("d5000102", format!("[0,{placeholder}]"), "0102"),
            ("d6ff01020304", format!("[-1,{placeholder}]"), "01020304"),
            ("d7ff0102030405060708", format!("[-1,{placeholder}]"), "0102030405060708"),
            ("c701ff07", format!("[-1,{placeholder}]"), "07"),
        ] {
            let text = format!(r#"51-["e",{json}]"#);
            check(&HEXLOWER.encode(&event(&bytes(hex))), &text, &[attachment]);
        }
        check_value(
            "93c400c400c400",
            &format!("[{placeholder},{},{}]", placeholder.replace('0', "1"), placeholder.replace('0', "2")),
        );
        check_malformed_value("94c400c400c400c400", "more attachments");
    }

    #[test]
    fn values_that_cannot_be_passed_on_are_refused() {
        check_malformed_value("c1", "no type");
        check_malformed_value("a1ff", "UTF-8");
        check_malformed_value("a3eda080", "UTF-8");
        check_malformed_value("81a1ff01", "UTF-8");
        for key in ["01", "c0", "c40161", "90"] {
            check_malformed_value(&format!("81{key}01"), "wrong kind");
        }
        // What is claimed need not be there.
        for hex in ["dbffffffff", "c6ffffffff", "ddffffffff", "dfffffffff", "c9ffffffff00", "ddffffffffc0c0"]
        {
            check_malformed_value(hex, "cut short");
        }
        // A packet with attachments must not have what stands for them in the text; in any other it is data.
        let lookalike = "82ac5f706c616365686f6c646572c3a36e756d00";
        check_value(lookalike, r#"{"_placeholder":true,"num":0}"#);
        check_malformed_value(&format!("92{lookalike}c400"), "placeholder");
        check_malformed_value(&format!("92c400{lookalike}"), "placeholder");
        // Elsewhere it does not matter.
        check(
            &format!("84 a474797065 02 a36e7370 a12f a178 {lookalike} a464617461 92a165c400"),
            r#"51-["e",{"_placeholder":true,"num":0}]"#,
            &[""],
        );
    }

    #[test]
    fn depth_is_bounded() {
        // The payload is an array itself.
        let arrays = |depth: usize| event(&[vec![0x91; depth], vec![0xc0]].concat());
        let maps = |depth: usize| event(&[b"\x81\xa1a".repeat(depth), vec![0xc0]].concat());
        for nested in [arrays, maps] {
            let (text, _) = decoded(&nested(DEPTH_MAX - 1)).expect("not too deep");
            let again = encoded(&format!("4{text}"), &[]);
            assert_eq!(decoded(&bytes(&again)), Ok((text, Vec::new())));
            assert_eq!(decoded(&nested(DEPTH_MAX)), Err(TOO_DEEP));
            assert_eq!(decoded(&nested(500_000)), Err(TOO_DEEP));
        }
        // Nothing so deep is let in; it is cut off where it is.
        let deep = format!(r#"42["e",{}1{}]"#, "[".repeat(500_000), "]".repeat(500_000));
        assert!(encoded(&deep, &[]).len() < 2_000);
    }

    #[test]
    fn what_the_server_says_is_what_node_says() {
        let said = |write: &dyn Fn(&mut Vec<u8>), attachments: &[&[u8]], hex: &str| {
            let mut text = Vec::new();
            write(&mut text);
            let text = String::from_utf8(text).expect("text");
            assert_eq!(encoded(&text, attachments), hex.replace(' ', ""), "{text}");
        };
        said(
            &|out| socketio::encode_connect(out, "/", "Fn7iADYeo9-RKmAAAAAA", None),
            &[],
            "83 a47479706500 a464617461 81a3736964b4466e376941445965 6f392d524b6d414141414141 a36e7370a12f",
        );
        said(
            &|out| socketio::encode_connect_error(out, "/nope", "Invalid namespace", None),
            &[],
            "83a47479706504a46461746181a76d657373616765b1496e76616c6964206e616d657370616365a36e7370a52f6e6f7065",
        );
        said(
            &|out| socketio::encode_connect_error(out, "/admin", "no", Some(r#"{"code":7}"#)),
            &[],
            "83a47479706504a46461746182a76d657373616765a26e6fa46461746181a4636f646507a36e7370a62f61646d696e",
        );
        said(&|out| socketio::encode_disconnect(out, "/"), &[], "82a47479706501a36e7370a12f");
        said(
            &|out| socketio::encode_event(out, "/", "q", "1", 0, Some(0), None),
            &[],
            "84a47479706502a46461746192a17101a2696400a36e7370a12f",
        );
        said(
            &|out| {
                let args = r#"{"a":1.5},{"_placeholder":true,"num":0}"#;
                socketio::encode_event(out, "/", "m", args, 1, None, None);
            },
            &[&[1, 2]],
            "83a47479706502a46461746193a16d81a161cb3ff8000000000000c4020102a36e7370a12f",
        );
        // Node puts the id of an answer first.
        said(
            &|out| socketio::encode_ack(out, "/a", "300", r#"{"_placeholder":true,"num":0}"#, 1),
            &[&[7]],
            "84 a47479706503 a46461746191c40107 a26964cd012c a36e7370a22f61",
        );
        said(
            &|out| socketio::encode_event(out, "/", "m", "1", 0, None, Some("Q7x")),
            &[],
            "83a47479706502 a46461746193a16d01a3513778 a36e7370a12f",
        );
    }

    #[test]
    fn values_are_written_as_notepack_writes_them() {
        for (json, hex) in [
            ("null", "c0"),
            ("true", "c3"),
            ("false", "c2"),
            ("0", "00"),
            ("-0", "00"),
            ("127", "7f"),
            ("128", "cc80"),
            ("255", "ccff"),
            ("256", "cd0100"),
            ("65535", "cdffff"),
            ("65536", "ce00010000"),
            ("4294967295", "ceffffffff"),
            ("4294967296", "cf0000000100000000"),
            ("9007199254740991", "cf001fffffffffffff"),
            ("-1", "ff"),
            ("-32", "e0"),
            ("-33", "d0df"),
            ("-128", "d080"),
            ("-129", "d1ff7f"),
            ("-32768", "d18000"),
            ("-32769", "d2ffff7fff"),
            ("-2147483648", "d280000000"),
            ("-2147483649", "d3ffffffff7fffffff"),
            ("-9007199254740991", "d3ffe0000000000001"),
            ("1.0", "01"),
            ("1e3", "cd03e8"),
            ("1.25E+2", "7d"),
            ("1.5", "cb3ff8000000000000"),
            ("-0.25", "cbbfd0000000000000"),
            ("0.1", "cb3fb999999999999a"),
            ("1e17", "cf016345785d8a0000"),
            ("1e19", "cf8ac7230489e80000"),
            ("1e999", "cb7ff0000000000000"),
            ("-1e999", "cbfff0000000000000"),
            ("1e-400", "00"),
            (r#""""#, "a0"),
            (r#""é漢😀""#, "a9c3a9e6bca2f09f9880"),
            (r#""\u00e9\u6f22\ud83d\ude00""#, "a9c3a9e6bca2f09f9880"),
            (r#""\"\\\/\n\u0000""#, "a5225c2f0a00"),
            ("[]", "90"),
            (" [ 1 , [ ] , { } ] ", "93019080"),
            (r#"{"a":1,"b":{"c":[null]}}"#, "82a16101a16281a16391c0"),
            (" { \"a\" : 1 } ", "81a16101"),
        ] {
            check_written(json, hex);
        }
        // Whole numbers that JavaScript would round, or that notepack would cut.
        check_written("9007199254740993", "cf0020000000000001");
        check_written("18446744073709551615", "cfffffffffffffffff");
        check_written("-9223372036854775808", "d38000000000000000");
        check_written("18446744073709551616", "cb43f0000000000000");
        check_written("1e300", "cb7e37e43c8800759c");
        // Halves of pairs, beside whole ones.
        check_written(r#""\ud800x""#, "a4efbfbd78");
        check_written(r#""\ude00\ud83d\ud83d\ude00\uD83D""#, "adefbfbdefbfbdf09f9880efbfbd");
        check_written(r#"{"\udfff":1}"#, "81a3efbfbd01");
    }

    #[test]
    fn lengths_have_the_shortest_header() {
        let list = |count: usize| format!("[{}]", vec!["7"; count].join(","));
        let object = |count: usize| {
            let fields: Vec<String> = (0..count).map(|at| format!(r#""{at:05}":7"#)).collect();
            format!("{{{}}}", fields.join(","))
        };
        let fields = |count: usize| -> String {
            (0..count).map(|at| format!("a5{}07", HEXLOWER.encode(format!("{at:05}").as_bytes()))).collect()
        };
        for (count, array, map) in [
            (15, "9f", "8f"),
            (16, "dc0010", "de0010"),
            (65_535, "dcffff", "deffff"),
            (65_536, "dd00010000", "df00010000"),
        ] {
            check_written(&list(count), &format!("{array}{}", "07".repeat(count)));
            check_written(&object(count), &format!("{map}{}", fields(count)));
        }
        check_written(
            &format!("[{0},{0}]", list(16)),
            &format!("92{0}{0}", format!("dc0010{}", "07".repeat(16))),
        );
        for (length, header) in [(31, "bf"), (32, "d920"), (256, "da0100"), (65_536, "db00010000")] {
            check_written(
                &format!("\"{}\"", "a".repeat(length)),
                &format!("{header}{}", "61".repeat(length)),
            );
        }
    }

    #[test]
    fn attachments_stand_where_they_are_named() {
        let check = |args: &str, attachments: &[&[u8]], hex: &str| {
            let mut text = Vec::new();
            socketio::encode_ack(&mut text, "/", "1", args, attachments.len());
            let text = String::from_utf8(text).expect("text");
            let expected = format!("84a47479706503a464617461{}a2696401a36e7370a12f", hex.replace(' ', ""));
            assert_eq!(encoded(&text, attachments), expected, "{args}");
        };
        check(
            r#"{"_placeholder":true,"num":1},{"_placeholder":true,"num":0}"#,
            &[b"a", b"b"],
            "92c40162c40161",
        );
        check(r#"{"x":[ { "num" : 0 , "more" : [1] , "_placeholder" : true } ]}"#, &[b""], "9181a17891c400");
        // Once each: a large one that many places name would become many large ones.
        check(r#"{"_placeholder":true,"num":0},{"_placeholder":true,"num":0}"#, &[b"a"], "92c40161c0");
        let data = "82ac5f706c616365686f6c646572c3a36e756d09";
        check(r#"{"_placeholder":true,"num":9}"#, &[], &format!("91{data}"));
        check(r#"{"_placeholder":true,"num":9}"#, &[b"a"], &format!("91{data}"));
        check(r#"{"_placeholder":false,"num":0}"#, &[b"a"], "9182ac5f706c616365686f6c646572c2a36e756d00");
    }

    #[test]
    fn what_is_not_json_panics_not_and_becomes_msgpack() {
        for text in [
            "",
            "4",
            "9",
            "42",
            "42[",
            "42[\"",
            "42[\"\\",
            "42[\"e\",",
            "42[\"e\" 1 2",
            "42{\"a",
            "42{1:2}",
            "42{\"a\"}",
            "42]",
            "42[}",
            "42[[}]",
            "42{,",
            "42[,,",
            "42[é",
            "42[\"é\\",
            "45",
            "451",
            "451-",
            "46/",
            "42/a",
            "42/é,é",
            "4299999999999999999999[]",
            "42[nan,-inf,+,tru",
        ] {
            let packet = bytes(&encoded(text, &[b"a"]));
            assert_eq!(read::MessageLen::len_of(&packet).ok(), Some(packet.len()), "{text}");
        }
    }
}
