//! RFC 6455 against /echo, byte by byte: what conformance suites ask, apart from compression, which throng does not offer.

use crate::harness::raw::{BINARY, CLOSE, CONTINUATION, FIN, Frame, PING, PONG, TEXT, close_frame, mask};
use crate::harness::{Client, Raw, Server, frame, frame_with};

fn echo_server() -> Server {
    Server::with(&["server.echo=true", "server.shards=1"])
}

/// The next frame is this one.
fn hears(socket: &mut Raw, opcode: u8, payload: impl AsRef<[u8]>) {
    let frame = socket.frame();
    let (got, expected) = (frame.payload.len(), payload.as_ref().len());
    assert_eq!(frame.opcode, opcode, "{}", String::from_utf8_lossy(&frame.payload));
    assert!(frame.payload == payload.as_ref(), "{got} bytes came, not these {expected}");
}

/// What breaks the rules is answered with this code, whether it comes at once or in single bytes, and the connection ends.
fn check_fails(server: &Server, bytes: &[u8], code: u16) {
    let mut at_once = server.socket("/echo");
    at_once.send(bytes);
    let frame = at_once.frame();
    assert_eq!(frame.code().0, code, "{bytes:x?}: {:?}", frame.code());
    assert!(!frame.code().1.is_empty(), "it says why");
    at_once.ended();
    if bytes.len() < 300 {
        let mut in_bytes = server.socket("/echo");
        for byte in bytes {
            if in_bytes.try_send([*byte]).is_err() {
                // It was refused before its end.
                break;
            }
        }
        assert_eq!(in_bytes.closed().0, code, "{bytes:x?}, byte by byte");
    }
    // And a message before the fault is still served.
    let mut later = server.socket("/echo");
    later.send([frame_of_text("first"), bytes.to_vec()].concat());
    hears(&mut later, TEXT, "first");
    assert_eq!(later.closed().0, code, "{bytes:x?}, after a message");
}

fn frame_of_text(text: &str) -> Vec<u8> {
    frame(FIN | TEXT, text)
}

/// The bytes cut into frames of at most `size`.
fn fragments(opcode: u8, payload: &[u8], size: usize) -> Vec<Vec<u8>> {
    let count = payload.len().div_ceil(size);
    let pieces = payload.chunks(size).enumerate();
    pieces
        .map(|(i, piece)| {
            let first = if i == 0 { opcode } else { CONTINUATION };
            frame(if i + 1 == count { FIN | first } else { first }, piece)
        })
        .collect()
}

#[test]
fn messages_of_all_sizes_come_back_as_they_were() {
    let server = Server::with(&["server.echo=true"]);
    for size in [0, 1, 125, 126, 127, 128, 65_535, 65_536, 65_537, 1 << 20] {
        let bytes: Vec<u8> = (0..size).map(|i| (i * 7 + i / 256) as u8).collect();
        let text: String = "añb€c\u{1f642}"
            .chars()
            .cycle()
            .scan(0, |length, letter| {
                *length += letter.len_utf8();
                (*length <= size).then_some(letter)
            })
            .collect();
        let mut socket = server.socket("/echo");
        socket.send(frame(FIN | BINARY, &bytes));
        hears(&mut socket, BINARY, &bytes);
        socket.send(frame(FIN | TEXT, &text));
        hears(&mut socket, TEXT, &text);
    }
}

#[test]
fn messages_may_come_in_segments_of_any_size() {
    let server = echo_server();
    let mut socket = server.socket("/echo");
    for size in [0, 1, 125, 126, 127, 128, 5_000] {
        let payload = "€x".repeat(size / 4 + 1)[..].as_bytes()[..size / 4 * 4].to_vec();
        socket.send_bytewise(frame(FIN | TEXT, &payload));
        hears(&mut socket, TEXT, &payload);
    }
    for size in [65_535, 65_536] {
        let payload = vec![b'*'; size];
        let message = frame(FIN | TEXT, &payload);
        // The header and the beginning byte by byte, the rest in pieces that divide nothing.
        socket.send_bytewise(&message[..1_000]);
        message[1_000..].chunks(997).for_each(|piece| socket.send(piece));
        hears(&mut socket, TEXT, &payload);
    }
}

#[test]
fn many_messages_in_one_segment_come_back_in_order() {
    let server = echo_server();
    let mut socket = server.socket("/echo");
    let messages: Vec<String> = (0..2_000).map(|number| format!("message {number}")).collect();
    socket.send(messages.iter().map(|text| frame_of_text(text)).collect::<Vec<_>>().concat());
    for text in &messages {
        hears(&mut socket, TEXT, text);
    }
}

#[test]
fn any_mask_will_do() {
    let server = echo_server();
    let mut socket = server.socket("/echo");
    for key in [[0, 0, 0, 0], [0xff; 4], [1, 2, 3, 4]] {
        let payload = b"a payload of 24 octets !";
        let mut bytes = vec![FIN | TEXT, 0x80 | payload.len() as u8];
        bytes.extend(key);
        bytes.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
        socket.send(&bytes);
        hears(&mut socket, TEXT, payload);
    }
}

#[test]
fn pings_of_every_size_are_answered_with_their_payload() {
    let server = echo_server();
    let mut socket = server.socket("/echo");
    for size in 0..=125 {
        let payload: Vec<u8> = (0..size).map(|i| 0xff - i).collect();
        socket.send(frame(FIN | PING, &payload));
        hears(&mut socket, PONG, &payload);
    }
    for size in [0, 1, 124, 125] {
        let payload = vec![0; size];
        socket.send_bytewise(frame(FIN | PING, &payload));
        hears(&mut socket, PONG, &payload);
    }
}

#[test]
fn ten_pings_get_ten_pongs_in_order() {
    let server = echo_server();
    let mut socket = server.socket("/echo");
    socket.send((0..10_u8).flat_map(|number| frame(FIN | PING, [number])).collect::<Vec<_>>());
    for number in 0..10 {
        hears(&mut socket, PONG, [number]);
    }
    let pings: Vec<u8> = (0..10_u8).flat_map(|number| frame(FIN | PING, [number; 20])).collect();
    socket.send_bytewise(pings);
    for number in 0..10 {
        hears(&mut socket, PONG, [number; 20]);
    }
}

#[test]
fn pongs_that_nobody_asked_for_are_taken_in_silence() {
    let server = echo_server();
    let mut socket = server.socket("/echo");
    socket.send([frame(FIN | PONG, ""), frame(FIN | PONG, [0xee; 125]), frame(FIN | PING, "now")].concat());
    hears(&mut socket, PONG, "now");
}

#[test]
fn long_or_fragmented_control_frames_break_the_rules() {
    let server = echo_server();
    for opcode in [PING, PONG, CLOSE] {
        check_fails(&server, &frame(FIN | opcode, [0; 126]), 1002);
        check_fails(&server, &frame(FIN | opcode, vec![0; 65_536]), 1002);
        check_fails(&server, &frame(opcode, "half"), 1002);
        check_fails(&server, &frame(opcode, ""), 1002);
    }
    // The length alone is enough: nobody waits for the payload.
    check_fails(&server, &[FIN | PING, 0x80 | 126], 1002);
}

#[test]
fn reserved_bits_break_the_rules() {
    let server = echo_server();
    for bits in 1..8_u8 {
        for opcode in [TEXT, BINARY, PING, PONG, CLOSE] {
            check_fails(&server, &frame(FIN | bits << 4 | opcode, ""), 1002);
        }
        check_fails(&server, &frame(FIN | bits << 4 | TEXT, "payload"), 1002);
    }
    let inside = [frame(TEXT, "a"), frame(FIN | 0x40 | CONTINUATION, "b")].concat();
    check_fails(&server, &inside, 1002);
}

#[test]
fn reserved_opcodes_break_the_rules() {
    let server = echo_server();
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        check_fails(&server, &frame(FIN | opcode, ""), 1002);
        check_fails(&server, &frame(FIN | opcode, "payload"), 1002);
    }
}

#[test]
fn frames_without_a_mask_break_the_rules() {
    let server = echo_server();
    check_fails(&server, b"\x81\x05hello", 1002);
    check_fails(&server, &[FIN | TEXT, 0], 1002);
    check_fails(&server, &[FIN | BINARY, 126, 0, 200], 1002);
    check_fails(&server, &[FIN | PING, 0], 1002);
    check_fails(&server, &[FIN | CLOSE, 2, 3, 0xe8], 1002);
}

#[test]
fn a_length_must_be_in_its_shortest_form() {
    let server = echo_server();
    let with_length = |length: &[u8], payload: &[u8]| {
        let mut bytes = [&[FIN | BINARY], length].concat();
        mask(&mut bytes, payload);
        bytes
    };
    check_fails(&server, &with_length(&[0x80 | 126, 0, 5], b"hello"), 1002);
    check_fails(&server, &with_length(&[0x80 | 126, 0, 125], &[0; 125]), 1002);
    check_fails(&server, &with_length(&[0x80 | 127, 0, 0, 0, 0, 0, 0, 0, 5], b"hello"), 1002);
    check_fails(&server, &with_length(&[0x80 | 127, 0, 0, 0, 0, 0, 0, 0xff, 0xff], &[0; 65_535]), 1002);
    check_fails(&server, &with_length(&[0x80 | 127, 0x80, 0, 0, 0, 0, 0, 0, 0], b""), 1002);
}

#[test]
fn a_message_may_come_in_fragments() {
    let server = echo_server();
    let mut socket = server.socket("/echo");
    let text = "The quick brown fox: \u{1f98a}, \u{3b1}\u{3b2}\u{3b3}, €";
    for opcode in [TEXT, BINARY] {
        for size in 1..text.len() {
            socket.send(fragments(opcode, text.as_bytes(), size).concat());
            hears(&mut socket, opcode, text);
        }
        for fragment in fragments(opcode, text.as_bytes(), 1) {
            socket.send_bytewise(fragment);
        }
        hears(&mut socket, opcode, text);
    }
    let large = vec![0x5a; 1 << 20];
    socket.send(fragments(BINARY, &large, 256).concat());
    hears(&mut socket, BINARY, &large);
}

#[test]
fn fragments_may_be_empty() {
    let server = echo_server();
    let mut socket = server.socket("/echo");
    let empty = |first: u8| frame(first, "");
    socket.send([empty(TEXT), empty(CONTINUATION), empty(FIN | CONTINUATION)].concat());
    hears(&mut socket, TEXT, "");
    socket.send([empty(TEXT), frame(CONTINUATION, "middle"), empty(FIN | CONTINUATION)].concat());
    hears(&mut socket, TEXT, "middle");
    socket.send_bytewise([empty(BINARY), empty(CONTINUATION), frame(FIN | CONTINUATION, "end")].concat());
    hears(&mut socket, BINARY, "end");
}

#[test]
fn control_frames_may_stand_between_fragments_and_are_answered_at_once() {
    let server = echo_server();
    let mut socket = server.socket("/echo");
    socket.send([frame(TEXT, "one "), frame(FIN | PING, "between")].concat());
    hears(&mut socket, PONG, "between");
    socket.send([frame(FIN | PONG, "nobody asked"), frame(CONTINUATION, "message")].concat());
    for number in 0..5 {
        socket.send_bytewise(frame(FIN | PING, [number]));
        hears(&mut socket, PONG, [number]);
    }
    socket.send(frame(FIN | CONTINUATION, "."));
    hears(&mut socket, TEXT, "one message.");
}

#[test]
fn a_continuation_needs_a_beginning() {
    let server = echo_server();
    check_fails(&server, &frame(FIN | CONTINUATION, "alone"), 1002);
    check_fails(&server, &frame(CONTINUATION, ""), 1002);
    // After a whole message there is none to continue either.
    let whole = [fragments(TEXT, b"whole", 3).concat(), frame(FIN | CONTINUATION, "more")].concat();
    let mut socket = server.socket("/echo");
    socket.send(whole);
    hears(&mut socket, TEXT, "whole");
    assert_eq!(socket.closed().0, 1002);
}

#[test]
fn a_message_must_end_before_the_next_begins() {
    let server = echo_server();
    for opcode in [TEXT, BINARY] {
        check_fails(&server, &[frame(TEXT, "one"), frame(FIN | opcode, "two")].concat(), 1002);
        check_fails(&server, &[frame(BINARY, "one"), frame(opcode, "two")].concat(), 1002);
        check_fails(&server, &[frame(BINARY, ""), frame(FIN | opcode, "")].concat(), 1002);
    }
}

#[test]
fn text_is_whatever_utf_8_can_say() {
    let server = echo_server();
    let mut socket = server.socket("/echo");
    for text in [
        "κόσμε",
        "\0",
        "\u{7f}\u{80}\u{7ff}\u{800}\u{ffff}\u{10000}\u{10ffff}",
        "\u{d7ff}\u{e000}\u{fffd}\u{fffe}\u{feff}",
        "\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467}",
    ] {
        socket.send(frame_of_text(text));
        hears(&mut socket, TEXT, text);
        socket.send(fragments(TEXT, text.as_bytes(), 1).concat());
        hears(&mut socket, TEXT, text);
        socket.send_bytewise(frame_of_text(text));
        hears(&mut socket, TEXT, text);
    }
}

/// What is not UTF-8, and how many of its bytes it takes to know. Lone and missing continuations, overlong forms, surrogates,
/// what is above U+10FFFF, bytes that never occur.
const NOT_UTF_8: &[(&[u8], usize)] = &[
    (b"\x80", 1),
    (b"\xbf", 1),
    (b"ok\xc0\xaf", 3),
    (b"\xc1\xbf", 1),
    (b"\xc3(", 2),
    (b"\xe0\x80\x80", 2),
    (b"\xe0\x9f\xbf", 2),
    (b"\xe2\x82(", 3),
    (b"\xed\xa0\x80", 2),
    (b"\xed\xbf\xbf", 2),
    (b"\xf0\x80\x80\x80", 2),
    (b"\xf0\x8f\xbf\xbf", 2),
    (b"\xf0\x9f\x99(", 4),
    (b"\xf4\x90\x80\x80", 2),
    (b"\xf5\x80\x80\x80", 1),
    (b"\xf8\x88\x80\x80\x80", 1),
    (b"\xfe", 1),
    (b"\xff", 1),
    (b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited", 13),
];

#[test]
fn text_that_is_not_utf_8_is_refused() {
    let server = echo_server();
    for (bytes, _) in NOT_UTF_8 {
        check_fails(&server, &frame(FIN | TEXT, bytes), 1007);
        check_fails(&server, &fragments(TEXT, &[bytes, &b"more"[..]].concat(), 1).concat(), 1007);
    }
    for cut_short in [&b"\xe2\x82"[..], b"\xc3", b"\xf0\x9f\x99", b"fine until \xf0"] {
        check_fails(&server, &frame(FIN | TEXT, cut_short), 1007);
        check_fails(&server, &[frame(TEXT, cut_short), frame(FIN | CONTINUATION, "")].concat(), 1007);
        check_fails(&server, &[frame(TEXT, cut_short), frame(FIN | CONTINUATION, "x")].concat(), 1007);
    }
}

#[test]
fn bad_text_is_refused_at_its_first_wrong_byte_within_a_frame() {
    let server = echo_server();
    for (bytes, needed) in NOT_UTF_8 {
        let mut socket = server.socket("/echo");
        let good = "good \u{20ac}".as_bytes();
        // The frame claims a thousand bytes, and what would follow never comes.
        let beginning = [good, &bytes[..needed - 1]].concat();
        let whole = frame_with(FIN | TEXT, 1_000, [good, &bytes[..*needed]].concat());
        let (most, last) = whole.split_at(whole.len() - 1);
        socket.send(frame_with(FIN | TEXT, 1_000, &beginning));
        assert_eq!(most, frame_with(FIN | TEXT, 1_000, &beginning));
        socket.send(last);
        assert_eq!(socket.closed().0, 1007, "{bytes:x?} after {needed} bytes");
    }
}

#[test]
fn bad_text_is_refused_at_its_first_wrong_byte_across_frames() {
    let server = echo_server();
    for (bytes, needed) in NOT_UTF_8 {
        let mut socket = server.socket("/echo");
        socket.send(frame(TEXT, "good \u{20ac}"));
        for byte in &bytes[..needed - 1] {
            // As long as it could become right, the connection lives.
            socket.send([frame(CONTINUATION, [*byte]), frame(FIN | PING, "still there?")].concat());
            hears(&mut socket, PONG, "still there?");
        }
        socket.send(frame(CONTINUATION, [bytes[needed - 1]]));
        assert_eq!(socket.closed().0, 1007, "{bytes:x?} after {needed} bytes");
    }
}

#[test]
fn bytes_need_not_be_text() {
    let server = echo_server();
    let mut socket = server.socket("/echo");
    for (bytes, _) in NOT_UTF_8 {
        socket.send(frame(FIN | BINARY, bytes));
        hears(&mut socket, BINARY, bytes);
        socket.send(fragments(BINARY, bytes, 1).concat());
        hears(&mut socket, BINARY, bytes);
    }
}

#[test]
fn a_close_is_answered_with_its_own_code_and_the_end() {
    let server = echo_server();
    let codes = (1000..=1003).chain(1007..=1014).chain([3000, 3001, 3999, 4000, 4001, 4999]);
    for code in codes {
        for reason in ["", "see you", "\u{1f44b}", &"x".repeat(123)] {
            let mut socket = server.socket("/echo");
            socket.send(close_frame(code, reason));
            assert_eq!(socket.closed().0, code);
        }
        let mut socket = server.socket("/echo");
        socket.send_bytewise(close_frame(code, "byte by byte"));
        assert_eq!(socket.closed().0, code);
    }
    server.wait_for_number("sockets", 0);
}

#[test]
fn a_close_without_a_code_is_answered_without_one() {
    let server = echo_server();
    let mut socket = server.socket("/echo");
    socket.send(frame(FIN | CLOSE, ""));
    hears(&mut socket, CLOSE, "");
    socket.ended();
}

#[test]
fn a_close_that_is_not_a_proper_one_is_refused() {
    let server = echo_server();
    let never_sent =
        (0..1000).step_by(333).chain([999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535]);
    for code in never_sent {
        check_fails(&server, &close_frame(code, ""), 1002);
        check_fails(&server, &close_frame(code, "because"), 1002);
    }
    check_fails(&server, &frame(FIN | CLOSE, [3]), 1002);
    check_fails(&server, &close_frame(1000, "x".repeat(124)), 1002);
    check_fails(&server, &close_frame(1000, b"\xce\xba\xe1\xbd\xb9\xcf\x83\xed\xa0\x80"), 1007);
    check_fails(&server, &close_frame(1000, b"cut short \xe2\x82"), 1007);
}

#[test]
fn after_a_close_nothing_is_heard() {
    let server = echo_server();
    for after in [
        frame_of_text("too late"),
        frame(FIN | PING, "too late"),
        close_frame(1001, "again"),
        frame(FIN | 0x70 | TEXT, "nonsense"),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
    ] {
        let mut socket = server.socket("/echo");
        socket.send([frame_of_text("in time"), close_frame(1000, ""), after].concat());
        hears(&mut socket, TEXT, "in time");
        assert_eq!(socket.frame(), Frame { opcode: CLOSE, payload: vec![3, 0xe8] });
        socket.ended();
    }
}

#[test]
fn after_a_fault_nothing_is_heard() {
    let server = echo_server();
    let mut socket = server.socket("/echo");
    socket.send([frame(FIN | 3, ""), frame_of_text("too late"), close_frame(1000, "")].concat());
    assert_eq!(socket.frame().code().0, 1002);
    socket.ended();
}

#[test]
fn a_close_may_come_in_the_middle_of_a_message() {
    let server = echo_server();
    let mut socket = server.socket("/echo");
    socket
        .send([frame(TEXT, "never "), close_frame(1000, ""), frame(FIN | CONTINUATION, "finished")].concat());
    assert_eq!(socket.frame().code().0, 1000);
    socket.ended();
    server.wait_for_number("receive_buffer_bytes", 0);
    server.wait_for_number("sockets", 0);
}

#[test]
fn what_was_asked_before_the_client_ended_its_side_is_still_answered() {
    let server = echo_server();
    let mut socket = server.socket("/echo");
    socket.send(frame_of_text("last words"));
    socket.end_sending();
    hears(&mut socket, TEXT, "last words");
    socket.ended();
    server.wait_for_number("sockets", 0);
    assert_eq!(server.number("disconnects/lost"), 1);
}

#[test]
fn a_library_sees_the_code_it_closed_with() {
    let server = echo_server();
    for code in [1000, 1001, 3000, 4999] {
        assert_eq!(Client::over(server.raw(), "/echo", &[]).close(code), code);
    }
    server.wait_for_number("disconnects/client", 4);
}
