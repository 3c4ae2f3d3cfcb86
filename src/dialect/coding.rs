//! The encodings of a namespace: what its clients send and get in place of the JSON of an argument. What is here turns the one into the
//! other, so that nothing else knows of it. `docs/routes.md` is the reference.

use super::{attachments, msgpack, native};
use crate::json;
use crate::rules::Coding;
use data_encoding::BASE64;
use serde_json::value::RawValue;

/// Arguments, JSON values with commas between them, and what their placeholders stand for.
pub type Arguments = (String, Vec<Vec<u8>>);

/// What a client has sent becomes more than is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Excess;

/// What may come of the arguments of one packet. Both are inclusive.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Binary values.
    pub attachments_max: usize,
    /// Bytes of all.
    pub bytes_max: usize,
}

/// The arguments as a client gets them; `None` when that is as they are. A binary value by itself stays what it is, and for base64 so does
/// an argument with one in it, of which there is no JSON.
pub fn encode<A: AsRef<[u8]>>(coding: Coding, args: &str, attachments: &[A]) -> Option<Arguments> {
    let write = match coding {
        Coding::Json => return None,
        Coding::Base64 => encode_base64::<A>,
        Coding::Msgpack => encode_msgpack::<A>,
    };
    let mut out = Packing::new(attachments);
    for arg in json::split(args) {
        write(&mut out, arg);
    }
    Some(out.parts())
}

/// The arguments as they were meant; `None` when that is as they are. One that is not encoded, or not rightly, is taken as it is.
///
/// # Errors
/// When they become more than `bounds` allow.
pub fn decode(
    coding: Coding,
    args: &str,
    attachments: &[Vec<u8>],
    bounds: Bounds,
) -> Result<Option<Arguments>, Excess> {
    if coding == Coding::Json {
        return Ok(None);
    }
    let mut out = Packing::new(attachments);
    for arg in json::split(args) {
        let read = match coding {
            Coding::Json => None,
            Coding::Base64 => from_base64(arg).map(|json| (json, Vec::new())),
            Coding::Msgpack => from_msgpack(arg, attachments, bounds.attachments_max),
        };
        match read {
            Some((json, attachments)) => out.push_with(&json, attachments),
            None => out.push_as_is(arg),
        }
        // After each: the same attachment may be named again and again.
        if out.bytes > bounds.bytes_max || out.packed.len() > bounds.attachments_max {
            return Err(Excess);
        }
    }
    Ok(Some(out.parts()))
}

/// Arguments that are being put together anew, from others with these attachments.
struct Packing<'a, A> {
    attachments: &'a [A],
    args: String,
    packed: Vec<Vec<u8>>,
    /// Where attachments have gone that stay as they are.
    places: Vec<Option<usize>>,
    /// Bytes of the arguments and of what they name.
    bytes: usize,
}

impl<'a, A: AsRef<[u8]>> Packing<'a, A> {
    fn new(attachments: &'a [A]) -> Packing<'a, A> {
        let places = vec![None; attachments.len()];
        Packing { attachments, args: String::new(), packed: Vec::new(), places, bytes: 0 }
    }

    /// Adds an argument that names no attachments.
    fn push(&mut self, json: &str) {
        if !self.args.is_empty() {
            self.args.push(',');
        }
        self.args.push_str(json);
        self.bytes += json.len();
    }

    /// Adds one that names attachments of its own.
    fn push_with(&mut self, json: &str, attachments: Vec<Vec<u8>>) {
        match attachments.is_empty() {
            true => self.push(json),
            false => self.push(&attachments::shift(json, self.packed.len())),
        }
        self.bytes += attachments.iter().map(Vec::len).sum::<usize>();
        self.packed.extend(attachments);
    }

    /// Adds an argument with those of the attachments that it names.
    fn push_as_is(&mut self, arg: &str) {
        if self.attachments.is_empty() {
            return self.push(arg);
        }
        let Packing { attachments, packed, places, bytes, .. } = self;
        let arg = attachments::renumber(arg, |num| {
            let place = places.get_mut(num)?;
            Some(*place.get_or_insert_with(|| {
                *bytes += attachments[num].as_ref().len();
                packed.push(attachments[num].as_ref().to_vec());
                packed.len() - 1
            }))
        });
        self.push(&arg);
    }

    fn has_attachments(&self, arg: &str) -> bool {
        !self.attachments.is_empty() && attachments::is_any_in(arg)
    }

    fn parts(self) -> Arguments {
        (self.args, self.packed)
    }
}

fn encode_base64<A: AsRef<[u8]>>(out: &mut Packing<'_, A>, arg: &str) {
    if out.has_attachments(arg) {
        return out.push_as_is(arg);
    }
    out.push(&format!("\"{}\"", BASE64.encode(arg.as_bytes())));
}

fn encode_msgpack<A: AsRef<[u8]>>(out: &mut Packing<'_, A>, arg: &str) {
    if !out.attachments.is_empty() && attachments::number(arg).is_some() {
        return out.push_as_is(arg);
    }
    let mut bytes = Vec::new();
    msgpack::encode_value(&mut bytes, arg, out.attachments);
    out.push_with(attachments::PLACEHOLDER, vec![bytes]);
}

/// The JSON that a text is in base64, if it is.
fn from_base64(arg: &str) -> Option<String> {
    let text = arg.starts_with('"').then(|| attachments::unescape(arg))??;
    let json = String::from_utf8(BASE64.decode(text.as_bytes()).ok()?).ok()?;
    let checked: &RawValue = serde_json::from_str(&json).ok()?;
    let json = checked.get();
    // What looks like a binary value would be taken for one.
    (!native::is_too_deep(json) && !attachments::is_any_in(json)).then(|| json.to_owned())
}

/// The JSON that a binary argument is in MessagePack, if it is, with the binary values in it.
fn from_msgpack(arg: &str, attachments: &[Vec<u8>], attachments_max: usize) -> Option<Arguments> {
    if attachments.is_empty() {
        return None;
    }
    let bytes = attachments.get(attachments::number(arg)?)?;
    let (json, attachments) = msgpack::decode_value(bytes, attachments_max).ok()?;
    let looks_binary = || attachments.is_empty() && attachments::is_any_in(&json);
    (!native::is_too_deep(&json) && !looks_binary()).then_some((json, attachments))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { attachments_max: 3, bytes_max: 1_000 };

    fn base64(json: &str) -> String {
        format!("\"{}\"", BASE64.encode(json.as_bytes()))
    }

    fn msgpack(json: &str, attachments: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        msgpack::encode_value(&mut bytes, json, attachments);
        bytes
    }

    fn placeholder(num: usize) -> String {
        format!("{{\"_placeholder\":true,\"num\":{num}}}")
    }

    fn read(coding: Coding, args: &str, attachments: &[Vec<u8>]) -> Arguments {
        decode(coding, args, attachments, BOUNDS).expect("it is not too much").expect("it is encoded")
    }

    #[test]
    fn json_stays_as_it_is() {
        assert_eq!(encode::<&[u8]>(Coding::Json, "1", &[]), None);
        assert_eq!(decode(Coding::Json, "1", &[], BOUNDS), Ok(None));
    }

    #[test]
    fn each_argument_is_a_text_in_base64() {
        let track = r#"{"name":"é","position":1.50}"#;
        let args = format!("{track}, null,\"x\"");
        let (sent, attachments) = encode::<&[u8]>(Coding::Base64, &args, &[]).expect("encoded");
        assert_eq!(sent, [track, "null", "\"x\""].map(base64).join(","));
        assert!(attachments.is_empty());
        assert_eq!(read(Coding::Base64, &sent, &[]).0, format!("{track},null,\"x\""));
        assert_eq!(encode::<&[u8]>(Coding::Base64, "", &[]), Some(Arguments::default()));
    }

    #[test]
    fn what_is_not_json_in_base64_is_taken_as_it_is() {
        let deep = format!("{}{}", "[".repeat(121), "]".repeat(121));
        for arg in [
            r#""room""#,
            r#""""#,
            r#""abcd""#,
            r#""\ud800""#,
            "7",
            "null",
            r#"{"a":"MQ=="}"#,
            r#""MQ""#,
            &base64("{\"a\":"),
            &base64("1 2"),
            &base64(&placeholder(0)),
            &base64(&deep),
            "\"/w==\"",
        ] {
            assert_eq!(read(Coding::Base64, arg, &[]), (arg.to_owned(), vec![]), "{arg}");
        }
        assert_eq!(read(Coding::Base64, r#""MQ\u003d=""#, &[]).0, "1");
        assert_eq!(read(Coding::Base64, &base64(" [1] "), &[]).0, "[1]");
    }

    #[test]
    fn each_argument_is_an_attachment_in_message_pack() {
        let args = r#"{"a":[1,2.5]},null,"é""#;
        let (sent, attachments) = encode::<&[u8]>(Coding::Msgpack, args, &[]).expect("encoded");
        assert_eq!(sent, [placeholder(0), placeholder(1), placeholder(2)].join(","));
        assert_eq!(attachments, ["{\"a\":[1,2.5]}", "null", "\"é\""].map(|json| msgpack(json, &[])));
        assert_eq!(read(Coding::Msgpack, &sent, &attachments), (args.to_owned(), vec![]));
    }

    #[test]
    fn binary_values_pass_untouched() {
        let bytes = [b"\xc1one".to_vec(), b"\xc1two".to_vec()];
        let (one, two) = (placeholder(0), placeholder(1));
        for coding in [Coding::Base64, Coding::Msgpack] {
            // In another order, and one of them twice.
            let args = format!("{two},{one},{two}");
            let (sent, attachments) = encode(coding, &args, &bytes).expect("encoded");
            assert_eq!((sent.as_str(), attachments.len()), (&*format!("{one},{two},{one}"), 2));
            assert_eq!(attachments, [bytes[1].clone(), bytes[0].clone()]);
            assert_eq!(read(coding, &args, &bytes), (sent, attachments));
        }
        let args = format!("1,{{\"tile\":{two}}},{one}");
        let (sent, attachments) = encode(Coding::Base64, &args, &bytes).expect("encoded");
        assert_eq!(sent, format!("{},{{\"tile\":{one}}},{two}", base64("1")));
        assert_eq!(attachments, [bytes[1].clone(), bytes[0].clone()]);
        // MessagePack has binary values itself.
        let (sent, attachments) = encode(Coding::Msgpack, &args, &bytes).expect("encoded");
        assert_eq!(sent, [placeholder(0), placeholder(1), placeholder(2)].join(","));
        let tile = msgpack(&format!("{{\"tile\":{one}}}"), &bytes[1..]);
        assert_eq!(attachments, [msgpack("1", &[]), tile, bytes[0].clone()]);
        let (args, back) = read(Coding::Msgpack, &sent, &attachments);
        assert_eq!(args, format!("1,{{\"tile\":{one}}},{two}"));
        assert_eq!(back, [bytes[1].clone(), bytes[0].clone()]);
    }

    #[test]
    fn what_becomes_too_much_is_refused() {
        let too_much = |args: &str, attachments: &[Vec<u8>]| {
            assert_eq!(decode(Coding::Msgpack, args, attachments, BOUNDS), Err(Excess), "{args}");
        };
        // One attachment that is named again and again.
        let text = msgpack(&format!("\"{}\"", "x".repeat(100)), &[]);
        too_much(&vec![placeholder(0); 20].join(","), &[text]);
        let parts: Vec<Vec<u8>> = vec![msgpack(&format!("[{}]", placeholder(0)), &[b"b".to_vec()]); 4];
        too_much(&(0..4).map(placeholder).collect::<Vec<_>>().join(","), &parts);
        // Many binary values in one: it is no argument that is taken apart.
        let four = format!("[{}]", (0..4).map(placeholder).collect::<Vec<_>>().join(","));
        let one = [msgpack(&four, &vec![b"b".to_vec(); 4])];
        assert_eq!(read(Coding::Msgpack, &placeholder(0), &one), (placeholder(0), one.to_vec()));
    }
}
