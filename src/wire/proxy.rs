//! The PROXY protocol, versions 1 and 2: the header in which a proxy says whose connection it passes on, before any other byte.
//!
//! What is read here is its specification of 2020 (`proxy-protocol.txt` of HAProxy), section 2.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What the beginning of a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preface {
    /// A header that has not come whole.
    Partial,
    /// A whole header.
    Whole {
        /// Whose connection it is; `None` when it is the proxy's own, or of a kind that has no address of the internet.
        client: Option<IpAddr>,
        /// Bytes of the header. What follows is the client's.
        length: usize,
    },
}

/// It begins with no header of the PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoPreface;

/// A header may have this many bytes: the addresses need 52, the rest is room for what proxies add, which is skipped.
pub const PREFACE_BYTES_MAX: usize = 1024;
/// A line of version 1 may have this many, its end included.
const LINE_BYTES_MAX: usize = 107;
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family, length.
const FIXED_BYTES: usize = 16;

/// Reads the header at the beginning of `bytes`.
///
/// # Errors
/// [`NoPreface`], as soon as that is certain: at the first wrong byte, or when the header would have more than [`PREFACE_BYTES_MAX`].
pub fn parse(bytes: &[u8]) -> Result<Preface, NoPreface> {
    if starts_alike(bytes, &SIGNATURE) {
        return parse_binary(bytes);
    }
    if starts_alike(bytes, b"PROXY ") { parse_line(bytes) } else { Err(NoPreface) }
}

/// True when `bytes` begin with `expected`, or are the beginning of it.
fn starts_alike(bytes: &[u8], expected: &[u8]) -> bool {
    let compared = bytes.len().min(expected.len());
    bytes[..compared] == expected[..compared]
}

fn parse_binary(bytes: &[u8]) -> Result<Preface, NoPreface> {
    let Some(fixed) = bytes.first_chunk::<FIXED_BYTES>() else { return Ok(Preface::Partial) };
    let [.., command, kind, high, low] = *fixed;
    let length = FIXED_BYTES + usize::from(u16::from_be_bytes([high, low]));
    // Two commands of version 2; four families of addresses, three ways of transport.
    if !matches!(command, 0x20 | 0x21) || kind >> 4 > 3 || kind & 0xf > 2 || length > PREFACE_BYTES_MAX {
        return Err(NoPreface);
    }
    let Some(body) = bytes.get(FIXED_BYTES..length) else { return Ok(Preface::Partial) };
    let client: Option<IpAddr> = match (command, kind >> 4) {
        (0x21, 1) if body.len() >= 12 => body.first_chunk::<4>().map(|bits| Ipv4Addr::from(*bits).into()),
        (0x21, 2) if body.len() >= 36 => body.first_chunk::<16>().map(|bits| Ipv6Addr::from(*bits).into()),
        // Addresses that are not there.
        (0x21, 1 | 2) => return Err(NoPreface),
        // The proxy asks for itself whether we are well, or its client is none of the internet.
        _ => None,
    };
    Ok(Preface::Whole { client, length })
}

fn parse_line(bytes: &[u8]) -> Result<Preface, NoPreface> {
    let line = &bytes[..bytes.len().min(LINE_BYTES_MAX)];
    let Some(end) = line.windows(2).position(|pair| pair == b"\r\n") else {
        return if bytes.len() < LINE_BYTES_MAX { Ok(Preface::Partial) } else { Err(NoPreface) };
    };
    let line = std::str::from_utf8(&line[..end]).map_err(|_| NoPreface)?;
    let mut words = line.split(' ').skip(1);
    let length = end + 2;
    let (family, source, target) = (words.next(), words.next(), words.next());
    let client = match family {
        Some("UNKNOWN") => return Ok(Preface::Whole { client: None, length }),
        Some("TCP4") => address::<Ipv4Addr>(source).zip(address::<Ipv4Addr>(target)).map(|(ip, _)| ip.into()),
        Some("TCP6") => address::<Ipv6Addr>(source).zip(address::<Ipv6Addr>(target)).map(|(ip, _)| ip.into()),
        _ => None,
    };
    let mut port = || words.next().and_then(|word| word.parse::<u16>().ok());
    let ports = (port(), port());
    match (client, ports, words.next()) {
        (Some(client), (Some(_), Some(_)), None) => Ok(Preface::Whole { client: Some(client), length }),
        _ => Err(NoPreface),
    }
}

fn address<Address: std::str::FromStr>(word: Option<&str>) -> Option<Address> {
    word.and_then(|word| word.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header of version 2.
    fn binary(command: u8, kind: u8, body: &[u8]) -> Vec<u8> {
        let length = (body.len() as u16).to_be_bytes();
        [&SIGNATURE[..], &[command, kind], &length, body].concat()
    }

    /// What a header says, when it comes whole with something behind it; before its last byte it has to be partial.
    #[track_caller]
    fn check(header: &[u8], expected: Option<&str>) {
        for cut in 0..header.len() {
            assert_eq!(parse(&header[..cut]), Ok(Preface::Partial), "after {cut} bytes");
        }
        let client = expected.map(|text| text.parse().expect("an address"));
        let whole = Ok(Preface::Whole { client, length: header.len() });
        assert_eq!(parse(header), whole);
        assert_eq!(parse(&[header, b"GET / HTTP/1.1\r\n"].concat()), whole);
    }

    #[test]
    fn a_header_says_whose_connection_it_is() {
        let four = [203, 0, 113, 9, 10, 0, 0, 1, 0x30, 0x39, 0x1f, 0x90];
        check(&binary(0x21, 0x11, &four), Some("203.0.113.9"));
        let more = [&four[..], &[0xee, 0, 3, 1, 2, 3], &[0xee; 300]].concat();
        check(&binary(0x21, 0x11, &more), Some("203.0.113.9"));
        let six = ["2001:db8::7", "2001:db8::1"]
            .map(|text| text.parse::<Ipv6Addr>().expect("an address").octets())
            .concat();
        check(&binary(0x21, 0x21, &[&six[..], &[0, 1, 0, 2]].concat()), Some("2001:db8::7"));
        check(b"PROXY TCP4 203.0.113.9 10.0.0.1 12345 8080\r\n", Some("203.0.113.9"));
        check(b"PROXY TCP6 2001:db8::7 2001:db8::1 12345 8080\r\n", Some("2001:db8::7"));
    }

    #[test]
    fn a_header_may_say_nothing_about_the_client() {
        check(&binary(0x20, 0x00, b""), None);
        check(&binary(0x20, 0x11, &[1; 12]), None);
        check(&binary(0x21, 0x00, b"whatever"), None);
        check(&binary(0x21, 0x31, &[0; 216]), None);
        check(b"PROXY UNKNOWN\r\n", None);
        check(b"PROXY UNKNOWN ffff:f::1 ffff:f::1 65535 65535\r\n", None);
    }

    #[test]
    fn what_is_no_header_is_told_at_once() {
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"\x16\x03\x01\x02\x00",
            b"PROXX",
            b"\r\n\r\n\0\r\nQUIX",
            b"PROXY TCP4 203.0.113.9 10.0.0.1 12345\r\n",
            b"PROXY TCP4 2001:db8::7 10.0.0.1 1 2\r\n",
            b"PROXY TCP4 1.2.3.4 10.0.0.1 1 2 3\r\n",
            b"PROXY TCP4 1.2.3.4 10.0.0.1 1 65536\r\n",
            b"PROXY UDP4 1.2.3.4 10.0.0.1 1 2\r\n",
            b"PROXY TCP4 \xff\r\n",
            &[&b"PROXY UNKNOWN "[..], &[b'x'; 100]].concat(),
            // A version, a command, a family and a transport that do not exist, and addresses that are not there.
            &binary(0x31, 0x11, &[1; 12]),
            &binary(0x22, 0x11, &[1; 12]),
            &binary(0x21, 0x41, &[1; 12]),
            &binary(0x21, 0x13, &[1; 12]),
            &binary(0x21, 0x11, &[1; 11]),
            &binary(0x21, 0x21, &[1; 35]),
            &binary(0x21, 0x11, &[1; 2000]),
        ] {
            assert_eq!(parse(bytes), Err(NoPreface), "{:?}", String::from_utf8_lossy(bytes));
        }
        let longest = binary(0x21, 0x11, &[1; PREFACE_BYTES_MAX - FIXED_BYTES]);
        assert!(matches!(parse(&longest), Ok(Preface::Whole { length: PREFACE_BYTES_MAX, .. })));
    }
}
