//! The screen on terminals of several sizes, with made-up servers, hostile ones among them.

use super::super::scrape::Scrape;
use super::super::source::Ready;
use super::*;
use crate::time::Time;
use ratatui::Terminal;
use ratatui::backend::TestBackend;

/// A server with so many shards, 1,000 connections each, at this time.
fn scrape(shards: u64, at_s: u64) -> Scrape {
    let mut text = String::from("process_start_time_seconds 5\nthrong_build_info{version=\"9.8.7\"} 1\n");
    text += "throng_connections_max 100000\nprocess_resident_memory_bytes 52428800\nprocess_open_fds 1100\n";
    text += "throng_redis_waiting 3\nthrong_redis_published_total 0\nthrong_redis_lost_total{reason=\"down\"} 2\n";
    for shard in 0..shards {
        let label = format!("{{shard=\"{shard}\"}}");
        let busy = at_s * 100 * (shard + 1);
        text += &format!("throng_connections{label} 1000\nthrong_frames_sent_total{label} {busy}\n");
        text +=
            &format!("throng_thread_cpu_seconds_total{{thread=\"shard-{shard}\"}} {}\n", at_s as f64 * 0.42);
        for (bound, count) in [("0.001", at_s), ("0.002", at_s * 2), ("+Inf", at_s * 2)] {
            text +=
                &format!("throng_turn_duration_seconds_bucket{{shard=\"{shard}\",le=\"{bound}\"}} {count}\n");
        }
    }
    Scrape::parse(&text, Time::from_ms(at_s * 1_000))
}

fn view(shards: u64) -> View {
    let (earlier, now) = (scrape(shards, 10), scrape(shards, 20));
    let figures = Figures::new(&now, Some(&earlier));
    let ready =
        Ready { status: "ready".to_owned(), uptime_seconds: 90_061, redis: Some("partly".to_owned()) };
    let room = Room { room: "lobby".to_owned(), namespace: "/".to_owned(), members: 4_321 };
    let slow = Slow {
        id: "abc".to_owned(),
        dialect: "native".to_owned(),
        address: "192.0.2.7".to_owned(),
        user: Some("ann".to_owned()),
        waiting_bytes: 65_536,
        silent_ms: 12_000,
    };
    let reading =
        Reading { scrape: now, ready, rooms: Listing::Rows(vec![room]), slowest: Listing::Rows(vec![slow]) };
    View { url: "http://127.0.0.1:7071".to_owned(), seen: Some((reading, figures)), ..View::default() }
}

fn screen(view: &View, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a screen of memory");
    terminal.draw(|frame| view.draw(frame)).expect("it can be drawn on");
    let buffer = terminal.backend().buffer();
    let rows = buffer.content().chunks(usize::from(width));
    rows.map(|cells| cells.iter().map(|cell| cell.symbol()).collect::<String>() + "\n").collect()
}

#[test]
fn all_of_it_is_on_the_smallest_terminal() {
    let screen = screen(&view(2), 80, 24);
    for part in [
        "throng 9.8.7  up 1d 01:01  http://127.0.0.1:7071  ready",
        "2k of 100k",
        "50M  25.6K a connection",
        "p50 1.0ms p99 2.0ms",
        "redis partly",
        "2 lost",
        "mail outbox",
        "overloads/s",
        "1.1k of 0",
        "shards by number",
        "42%",
        "biggest rooms",
        "lobby",
        "4.3k",
        "slowest clients",
        "ann",
        "192.0.2.7",
        "64K",
        "12.0s",
        "q end",
    ] {
        assert!(screen.contains(part), "{part:?} is not there:\n{screen}");
    }
}

#[test]
fn no_size_and_no_number_of_shards_is_too_much() {
    for (width, height) in [(1, 1), (10, 3), (40, 8), (80, 24), (300, 100)] {
        for shards in [0, 1, 128] {
            let mut view = view(shards);
            for help in [false, true] {
                view.help = help;
                screen(&view, width, height);
            }
        }
    }
    assert!(screen(&view(128), 80, 24).contains("more"), "it says that some are left out");
}

#[test]
fn shards_stand_in_the_order_that_was_asked_for() {
    let mut view = view(3);
    let first = |view: &View| {
        let screen = screen(view, 80, 30);
        let after = screen.lines().skip_while(|line| !line.contains("turn50")).nth(1).expect("a shard");
        after.trim_start().chars().next()
    };
    assert_eq!(first(&view), Some('0'));
    view.sort = Sort::Sent;
    assert_eq!(first(&view), Some('2'), "the busiest");
    let mut sort = Sort::Number;
    (0..5).for_each(|_| sort = sort.next());
    assert_eq!(sort, Sort::Number, "after the last comes the first");
}

#[test]
fn what_a_terminal_might_obey_does_not_reach_it() {
    let mut view = view(1);
    let hostile = "\u{1b}[2J\u{1b}]0;owned\u{7}\u{9b}31m\u{202e}\r\nx\u{7f}";
    let (reading, figures) = view.seen.as_mut().expect("a server");
    reading.rooms =
        Listing::Rows(vec![Room { room: hostile.to_owned(), namespace: hostile.to_owned(), members: 1 }]);
    let Listing::Rows(slowest) = &mut reading.slowest else { panic!("there is one") };
    slowest[0].user = Some(hostile.to_owned());
    (slowest[0].dialect, slowest[0].address) = (hostile.to_owned(), hostile.to_owned());
    (reading.ready.status, reading.ready.redis) = (hostile.to_owned(), Some(hostile.to_owned()));
    figures.version = hostile.to_owned();
    view.fault = Some(hostile.to_owned());
    let screen = screen(&view, 200, 40);
    let bad = screen.chars().find(|letter| (letter.is_control() && *letter != '\n') || *letter == '\u{202e}');
    assert_eq!(bad, None, "{screen}");
    assert!(screen.contains("\\u{1b}[2J"), "it is shown as what it is: {screen}");
}

#[test]
fn who_is_away_is_shown_with_what_was_known() {
    let mut view = view(1);
    view.fault = Some("nobody there".to_owned());
    let shown = screen(&view, 100, 24);
    assert!(shown.contains("AWAY: nobody there") && shown.contains("lobby"), "{shown}");
    let (reading, _) = view.seen.as_mut().expect("a server");
    reading.rooms = Listing::Closed("needs a key");
    assert!(screen(&view, 80, 24).contains("needs a key"));
    let nothing = View { fault: Some("nobody there".to_owned()), ..View::default() };
    assert!(screen(&nothing, 80, 24).contains("AWAY: nobody there"));
}

#[test]
fn numbers_are_short() {
    for (number, shown) in [
        (0.0, "0"),
        (7.0, "7"),
        (0.25, "0.2"),
        (999.4, "999"),
        (999.6, "1.0k"),
        (12_345.0, "12.3k"),
        (1e7, "10M"),
    ] {
        assert_eq!(count(number), shown);
    }
    assert_eq!((bytes(1023.0), bytes(1536.0)), ("1023B".to_owned(), "1.5K".to_owned()));
    for (seconds, shown) in
        [(5e-6, "5us"), (0.0015, "1.5ms"), (0.25, "250ms"), (3.0, "3.0s"), (120.0, "120s")]
    {
        assert_eq!(duration(Some(seconds)), shown);
    }
    assert_eq!((uptime(3_661), uptime(90_061)), ("01:01:01".to_owned(), "1d 01:01".to_owned()));
}
