//! What throngs say to each other: `docs/cluster-wire.md` in code. An envelope has what one process published on one channel, in order;
//! it is cheap to write and to read, and nothing is copied but the names and payloads themselves.

use super::Malformed;
use crate::dialect::native::is_too_deep;
use serde_json::value::RawValue;

/// The version that is written, and the only one that is read.
const VERSION: u8 = 1;
/// Version, process, sequence number.
const HEAD_BYTES: usize = 1 + 8 + 8;
/// The kinds of entries that there are.
const PUBLICATION: u8 = 1;
const MESSAGE: u8 = 2;
/// Bits of a publication's flags.
const BINARY: u8 = 1;
const VOLATILE: u8 = 2;

const CUT_SHORT: Malformed = Malformed("an envelope is cut short");

/// The channels below a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Throng {
    /// So that several clusters can use one Redis; `throng` unless told otherwise.
    pub prefix: String,
}

impl Throng {
    /// Where publications to a room are published. A process subscribes while the room has members there.
    pub fn room(&self, room: &str) -> String {
        format!("{}:room:{room}", self.prefix)
    }
}

/// Who sends an envelope.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// A random number that a process takes when it starts. It knows its own envelopes by it.
    pub process: u64,
    /// The number of the first entry among those that the process has published on the channel. Others follow one by one, those of
    /// unknown kinds as well, so that gaps and doubles are seen.
    pub sequence: u64,
}

/// One event on its way to the members of a room in other processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publication<'a> {
    /// The room's name, with its namespace where that is not the main one.
    pub room: &'a str,
    /// The event's name.
    pub event: &'a str,
    /// One JSON value, or bytes when `binary`.
    pub payload: &'a [u8],
    /// True exactly when the payload is bytes.
    pub binary: bool,
    /// True when who is not ready to take it need not get it.
    pub volatile: bool,
    /// The id of the session that must not get it.
    pub except: Option<&'a str>,
    /// When the server had read it, by its own clock: microseconds since 1970 in UTC. For how long it took, as far as clocks agree.
    pub published_at_us: u64,
}

/// One of the things that an envelope says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// See [`Head::sequence`].
    pub sequence: u64,
    /// What it says.
    pub said: Said<'a>,
}

/// What an entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said<'a> {
    /// An event.
    Publication(Publication<'a>),
    /// A message as [`Sharded`](super::Sharded) says it, for what a publication cannot say.
    Message(&'a [u8]),
    /// Something of a kind that a later throng knows. It is passed over.
    Unknown(u8),
}

/// Begins an envelope. Entries follow, all for one channel.
pub fn encode_head(out: &mut Vec<u8>, head: Head) {
    out.extend_from_slice(&[0; HEAD_BYTES]);
    let begin = out.len() - HEAD_BYTES;
    set_head(&mut out[begin..], head);
}

/// Changes the head of an envelope, so that it can be numbered when all of its entries are there.
///
/// # Panics
/// When it has not been begun.
pub fn set_head(envelope: &mut [u8], head: Head) {
    envelope[0] = VERSION;
    envelope[1..9].copy_from_slice(&head.process.to_be_bytes());
    envelope[9..HEAD_BYTES].copy_from_slice(&head.sequence.to_be_bytes());
}

/// Adds an entry to an envelope. Names of more than 65,535 bytes and payloads of 4 GiB are a fault of the caller: the dialects refuse them
/// far earlier.
pub fn encode_publication(out: &mut Vec<u8>, publication: &Publication<'_>) {
    let Publication { room, event, payload, binary, volatile, except, published_at_us } = *publication;
    let names = [room, event, except.unwrap_or_default()];
    out.push(PUBLICATION);
    let length_at = out.len();
    out.extend_from_slice(&[0; 4]);
    out.push(if binary { BINARY } else { 0 } | if volatile { VOLATILE } else { 0 });
    out.extend_from_slice(&published_at_us.to_be_bytes());
    for name in names {
        let length = u16::try_from(name.len()).expect("a name is at most 64 KiB");
        out.extend_from_slice(&length.to_be_bytes());
    }
    names.iter().for_each(|name| out.extend_from_slice(name.as_bytes()));
    out.extend_from_slice(payload);
    let length = u32::try_from(out.len() - length_at - 4).expect("a payload is less than 4 GiB");
    out[length_at..length_at + 4].copy_from_slice(&length.to_be_bytes());
}

/// Adds a message, as [`Sharded`](super::Sharded) says it, to an envelope.
///
/// # Panics
/// When it has 4 GiB, which no limit allows.
pub fn encode_message(out: &mut Vec<u8>, message: &[u8]) {
    out.push(MESSAGE);
    out.extend_from_slice(&u32::try_from(message.len()).expect("a message is less than 4 GiB").to_be_bytes());
    out.extend_from_slice(message);
}

/// Reads an envelope of at most `bytes_max`. What is wrong with one entry is no fault of those that follow.
///
/// # Errors
/// What is wrong with the head.
pub fn decode(envelope: &[u8], bytes_max: usize) -> Result<(Head, Entries<'_>), Malformed> {
    if envelope.len() > bytes_max {
        return Err(Malformed("an envelope is larger than is taken"));
    }
    let (head, rest) = envelope.split_first_chunk::<HEAD_BYTES>().ok_or(CUT_SHORT)?;
    let [VERSION, a, b, c, d, e, f, g, h, sequence @ ..] = *head else {
        return Err(Malformed("an envelope is of another version"));
    };
    let process = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
    let sequence = u64::from_be_bytes(sequence);
    Ok((Head { process, sequence }, Entries { rest, sequence }))
}

/// The entries of an envelope, in order.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    rest: &'a [u8],
    /// The number of the next one.
    sequence: u64,
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut rest = self.rest;
        if rest.is_empty() {
            return None;
        }
        let Some((kind, body)) = take_entry(&mut rest) else {
            self.rest = &[];
            return Some(Err(CUT_SHORT));
        };
        self.rest = rest;
        let sequence = self.sequence;
        self.sequence = sequence.wrapping_add(1);
        let said = match kind {
            PUBLICATION => match read_publication(body) {
                Ok(publication) => Said::Publication(publication),
                Err(why) => return Some(Err(why)),
            },
            MESSAGE => Said::Message(body),
            unknown => Said::Unknown(unknown),
        };
        Some(Ok(Entry { sequence, said }))
    }
}

fn take_entry<'a>(rest: &mut &'a [u8]) -> Option<(u8, &'a [u8])> {
    let [kind] = take(rest)?;
    let length = u32::from_be_bytes(take(rest)?);
    Some((kind, take_bytes(rest, usize::try_from(length).ok()?)?))
}

fn read_publication(mut body: &[u8]) -> Result<Publication<'_>, Malformed> {
    let rest = &mut body;
    let [flags] = take(rest).ok_or(CUT_SHORT)?;
    let published_at_us = u64::from_be_bytes(take(rest).ok_or(CUT_SHORT)?);
    let mut lengths = [0; 3];
    for length in &mut lengths {
        *length = usize::from(u16::from_be_bytes(take(rest).ok_or(CUT_SHORT)?));
    }
    let mut names = [""; 3];
    for (name, length) in names.iter_mut().zip(lengths) {
        let bytes = take_bytes(rest, length).ok_or(CUT_SHORT)?;
        *name = std::str::from_utf8(bytes).map_err(|_| Malformed("a name is not UTF-8"))?;
    }
    let ([room, event, except], payload) = (names, *rest);
    let (binary, volatile) = (flags & BINARY != 0, flags & VOLATILE != 0);
    // It goes into the frames of clients as it is.
    if !binary {
        let json: &RawValue =
            serde_json::from_slice(payload).map_err(|_| Malformed("a payload is not JSON"))?;
        if is_too_deep(json.get()) {
            return Err(Malformed("a payload nests too deep"));
        }
    }
    let except = (!except.is_empty()).then_some(except);
    Ok(Publication { room, event, payload, binary, volatile, except, published_at_us })
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(*taken)
}

fn take_bytes<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use data_encoding::HEXLOWER;

    const BYTES_MAX: usize = 200_000;
    /// Kind and length.
    const HEAD_BYTES_OF_ENTRY: usize = 5;
    const HEAD: Head = Head { process: 0x0102_0304_0506_0708, sequence: 41 };
    const BID: Publication<'_> = Publication {
        room: "auction:7",
        event: "bid",
        payload: br#"{"amount":120}"#,
        binary: false,
        volatile: true,
        except: Some("98PtAQsDJeJ0nYJWAAAA"),
        published_at_us: 1_700_000_000_123_456,
    };

    fn envelope(publications: &[Publication<'_>]) -> Vec<u8> {
        let mut out = Vec::new();
        encode_head(&mut out, HEAD);
        publications.iter().for_each(|publication| encode_publication(&mut out, publication));
        out
    }

    fn decoded(envelope: &[u8]) -> Vec<Result<Entry<'_>, Malformed>> {
        let (head, entries) = decode(envelope, BYTES_MAX).expect("a good head");
        assert_eq!(head, HEAD);
        entries.collect()
    }

    fn entry(sequence: u64, publication: Publication<'_>) -> Result<Entry<'_>, Malformed> {
        Ok(Entry { sequence, said: Said::Publication(publication) })
    }

    #[test]
    fn the_example_of_the_documentation_is_what_is_written() {
        let page = include_str!("../../docs/cluster-wire.md");
        let hex: String = page
            .lines()
            .filter_map(|line| line.strip_prefix("    "))
            .flat_map(|line| line.split("  ").next())
            .flat_map(str::split_whitespace)
            .collect();
        assert_eq!(HEXLOWER.encode(&envelope(&[BID])), hex);
    }

    #[test]
    fn entries_come_back_in_order_with_their_numbers() {
        let bytes = Publication { payload: b"\x00\xff", binary: true, volatile: false, except: None, ..BID };
        let empty = Publication { room: "", event: "", payload: b"", published_at_us: u64::MAX, ..bytes };
        let large = vec![7; 150_000];
        let name = "é".repeat(30_000);
        let large = Publication { room: &name, payload: &large, ..bytes };
        assert_eq!(
            decoded(&envelope(&[BID, bytes, empty, BID])),
            [entry(41, BID), entry(42, bytes), entry(43, empty), entry(44, BID)]
        );
        let mut out = Vec::new();
        encode_head(&mut out, Head { sequence: u64::MAX, ..HEAD });
        encode_publication(&mut out, &large);
        encode_publication(&mut out, &BID);
        let (_, entries) = decode(&out, 300_000).expect("a good head");
        assert_eq!(entries.collect::<Vec<_>>(), [entry(u64::MAX, large), entry(0, BID)]);
        assert_eq!(decoded(&envelope(&[])), []);
        let mut out = envelope(&[BID]);
        encode_message(&mut out, b"{}");
        encode_publication(&mut out, &BID);
        let message = Ok(Entry { sequence: 42, said: Said::Message(b"{}") });
        assert_eq!(decoded(&out), [entry(41, BID), message, entry(43, BID)]);
        assert_eq!(Throng { prefix: "throng".into() }.room("auction:7"), "throng:room:auction:7");
    }

    #[test]
    fn what_later_versions_say_is_passed_over() {
        let mut out = envelope(&[BID]);
        out.extend_from_slice(b"\xc8\x00\x00\x00\x03new");
        let flags_at = out.len() + HEAD_BYTES_OF_ENTRY;
        encode_publication(&mut out, &BID);
        out[flags_at] |= 0x80;
        let unknown = Ok(Entry { sequence: 42, said: Said::Unknown(200) });
        assert_eq!(decoded(&out), [entry(41, BID), unknown, entry(43, BID)]);
        out[0] = 2;
        assert_eq!(decode(&out, BYTES_MAX).err(), Some(Malformed("an envelope is of another version")));
    }

    #[test]
    fn what_is_cut_short_or_wrong_is_refused_and_what_follows_is_not() {
        let whole = envelope(&[BID]);
        for end in 0..whole.len() {
            match decode(&whole[..end], BYTES_MAX) {
                Err(why) => assert!(end < HEAD_BYTES && why == CUT_SHORT),
                Ok((_, mut entries)) if end == HEAD_BYTES => assert_eq!(entries.next(), None),
                Ok((_, entries)) => assert_eq!(entries.collect::<Vec<_>>(), [Err(CUT_SHORT)], "{end}"),
            }
        }
        assert!(decode(&whole, whole.len()).is_ok() && decode(&whole, whole.len() - 1).is_err());
        // A length that is claimed.
        let mut claimed = whole.clone();
        claimed[HEAD_BYTES + 1] = 0xff;
        assert_eq!(decoded(&claimed), [Err(CUT_SHORT)]);
        // An entry that ends within its names, one whose names are none, one whose payload is none.
        let deep = "[".repeat(1_000) + &"]".repeat(1_000);
        for (payload, says) in
            [("", "JSON"), ("{", "JSON"), ("1 2", "JSON"), ("\u{0}", "JSON"), (&deep, "too deep")]
        {
            let wrong = envelope(&[Publication { payload: payload.as_bytes(), ..BID }, BID]);
            let entries = decoded(&wrong);
            assert!(matches!(entries[0], Err(Malformed(why)) if why.contains(says)), "{payload}");
            assert_eq!(entries[1..], [entry(42, BID)]);
        }
        let mut names = envelope(&[BID, BID]);
        names[HEAD_BYTES + HEAD_BYTES_OF_ENTRY + 15] = 0xff;
        assert_eq!(decoded(&names), [Err(Malformed("a name is not UTF-8")), entry(42, BID)]);
        names[HEAD_BYTES + HEAD_BYTES_OF_ENTRY + 9] = 0xff;
        assert_eq!(decoded(&names), [Err(CUT_SHORT), entry(42, BID)]);
    }
}
