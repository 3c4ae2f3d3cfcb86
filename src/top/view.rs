//! What `throng top` shows: one screen, laid out for 80 columns and 24 rows and better for more.

use super::figures::{Figures, Quantiles, Shard};
use super::source::{Listing, Reading, Room, Slow};
use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Clear, Paragraph, Row, Table};
use std::cmp::Ordering;

/// What is to be seen.
#[derive(Debug, Default)]
pub(super) struct View {
    /// Where the server is.
    pub(super) url: String,
    /// The last reading, and what it says beside the one before.
    pub(super) seen: Option<(Reading, Figures)>,
    /// Why there is none now.
    pub(super) fault: Option<String>,
    pub(super) sort: Sort,
    pub(super) paused: bool,
    pub(super) help: bool,
}

/// By what the shards are sorted: by their number ascending, by anything else descending.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sort {
    #[default]
    Number,
    Connections,
    Sent,
    Turn,
    Cpu,
}

impl Sort {
    /// The next one, and after the last the first.
    pub(super) fn next(self) -> Sort {
        match self {
            Sort::Number => Sort::Connections,
            Sort::Connections => Sort::Sent,
            Sort::Sent => Sort::Turn,
            Sort::Turn => Sort::Cpu,
            Sort::Cpu => Sort::Number,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Sort::Number => "number",
            Sort::Connections => "connections",
            Sort::Sent => "frames sent",
            Sort::Turn => "turn p99",
            Sort::Cpu => "cpu",
        }
    }

    fn order(self, one: &Shard, other: &Shard) -> Ordering {
        let key = |shard: &Shard| match self {
            Sort::Number => 0.0,
            Sort::Connections => shard.connections,
            Sort::Sent => shard.frames.unwrap_or_default(),
            Sort::Turn => shard.turn.p99.unwrap_or_default(),
            Sort::Cpu => shard.cpu.unwrap_or_default(),
        };
        key(other).total_cmp(&key(one))
    }
}

const HELP: [&str; 9] = [
    "q, Esc, Ctrl-C   end",
    "s                sort the shards by something else",
    "p, space         pause, go on",
    "h, ?             this",
    "",
    "Rates and times are those of the last interval; cpu is the share of",
    "one processor. Slowest are clients for which bytes wait, since they",
    "do not read, and how long they have given no sign of life.",
    "docs/watching.md has more.",
];

impl View {
    /// Draws it.
    pub(super) fn draw(&self, frame: &mut Frame<'_>) {
        let shards = self.seen.as_ref().map_or(0, |(_, figures)| figures.shards.len()) as u16;
        let height = frame.area().height;
        // Shards get what they need up to two fifths of the screen, so that rooms and clients have a place on a small one.
        let shards_height = (shards + 2).min((height * 2 / 5).max(4));
        let [title, summary, table, lists, keys] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(6),
            Constraint::Length(shards_height),
            Constraint::Min(0),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        frame.render_widget(self.title(), title);
        frame.render_widget(
            Line::from(" q end   s sort   p pause   h help").style(Style::new().fg(Color::DarkGray)),
            keys,
        );
        match &self.seen {
            Some((reading, figures)) => {
                frame.render_widget(Paragraph::new(summary_lines(reading, figures)), summary);
                self.draw_shards(frame, table, figures);
                let [left, right] =
                    Layout::horizontal([Constraint::Percentage(42), Constraint::Percentage(58)]).areas(lists);
                draw_rooms(frame, left, &reading.rooms);
                draw_slowest(frame, right, &reading.slowest);
            }
            None if self.fault.is_none() => {
                frame.render_widget(Line::from(" asking …"), summary);
            }
            None => {}
        }
        if self.help {
            draw_help(frame);
        }
    }

    fn title(&self) -> Line<'_> {
        let bold = Style::new().add_modifier(Modifier::BOLD);
        let mut spans = vec![Span::styled(" throng", bold)];
        if let Some((reading, figures)) = &self.seen {
            spans.push(Span::raw(format!(
                " {}  up {}",
                shown(&figures.version),
                uptime(reading.ready.uptime_seconds)
            )));
        }
        spans.push(Span::raw(format!("  {}  ", shown(&self.url))));
        spans.push(match (&self.fault, &self.seen) {
            (Some(fault), _) => Span::styled(format!("AWAY: {}", shown(fault)), bold.fg(Color::Red)),
            (None, Some((reading, _))) if reading.ready.status == "ready" => {
                Span::styled("ready", Style::new().fg(Color::Green))
            }
            (None, Some((reading, _))) => {
                Span::styled(shown(&reading.ready.status).to_uppercase(), bold.fg(Color::Yellow))
            }
            (None, None) => Span::raw(""),
        });
        if self.paused {
            spans.push(Span::styled("  PAUSED", bold));
        }
        Line::from(spans)
    }

    fn draw_shards(&self, frame: &mut Frame<'_>, area: Rect, figures: &Figures) {
        let mut shards: Vec<&Shard> = figures.shards.iter().collect();
        // A stable sort: equals stay in the order of their numbers.
        shards.sort_by(|one, other| self.sort.order(one, other));
        let places = usize::from(area.height.saturating_sub(2));
        let left_out = shards.len().saturating_sub(places);
        let rows = shards.iter().take(places).map(|shard| {
            Row::new(
                [
                    shown(&shard.name),
                    count(shard.connections),
                    count(shard.rooms),
                    rate(shard.messages),
                    rate(shard.frames),
                    rate(shard.deliveries),
                    duration(shard.turn.p50),
                    duration(shard.turn.p99),
                    duration(shard.publish.p99),
                    shard.cpu.map_or_else(|| "-".to_owned(), |cpu| format!("{:.0}%", cpu * 100.0)),
                    count(shard.mail),
                    bytes(shard.outbox_bytes),
                ]
                .map(right),
            )
        });
        let more = if left_out > 0 { format!(", {left_out} more") } else { String::new() };
        let head = [
            "shard", "conns", "rooms", "in/s", "out/s", "dlv/s", "turn50", "turn99", "publ99", "cpu", "mail",
            "outbox",
        ];
        let table = Table::new(rows, [5, 6, 6, 6, 6, 6, 6, 6, 6, 4, 5, 6].map(Constraint::Length))
            .column_spacing(1)
            .header(Row::new(head.map(|name| right(name.to_owned()))).style(dim()))
            .block(titled(format!(" shards by {}{more} ", self.sort.word())));
        frame.render_widget(table, area);
    }
}

fn summary_lines<'a>(reading: &Reading, figures: &Figures) -> Vec<Line<'a>> {
    let rates = figures.rates.clone();
    let of_rates = |number: fn(&super::figures::Rates) -> f64| rate(rates.as_ref().map(number));
    let bytes_a_second = |number: fn(&super::figures::Rates) -> f64| {
        rates.as_ref().map_or("-".to_owned(), |it| bytes(number(it)))
    };
    let quantiles = |of: Quantiles| format!("p50 {} p99 {}", duration(of.p50), duration(of.p99));
    let per_connection = figures.memory_bytes / figures.connections.max(1.0);
    let mut ways = Vec::new();
    if let Some(redis) = &figures.redis {
        ways.push(format!(
            "redis {}: out {}/s in {}/s, {} wait, {} lost, {} gaps",
            shown(reading.ready.redis.as_deref().unwrap_or("?")),
            rate(redis.published),
            rate(redis.received),
            count(redis.waiting),
            count(redis.lost),
            count(redis.gaps)
        ));
    }
    if let Some((breaker, waiting)) = figures.backend {
        let breaker = ["up", "trying", "AWAY"].get(breaker as usize).copied().unwrap_or("?");
        ways.push(format!("backend {breaker}: {} wait", count(waiting)));
    }
    if let Some((waiting, oldest, lost)) = figures.webhooks {
        let lost = if lost >= 0.5 { format!(", {} LOST", count(lost)) } else { String::new() };
        ways.push(format!("webhooks: {} wait, oldest {oldest:.0} s{lost}", count(waiting)));
    }
    vec![
        labelled(
            "conns",
            format!(
                "{} of {}  peak {}  sockets {}  polling {}  rooms {}  members {}",
                count(figures.connections),
                count(figures.connections_max),
                count(figures.connections_peak),
                count(figures.sockets),
                count(figures.polling),
                count(figures.rooms),
                count(figures.memberships)
            ),
        ),
        labelled(
            "in/s",
            format!(
                "{} messages  {} bytes  {} published  {} opened  {} refused  {} limited",
                of_rates(|rates| rates.messages),
                bytes_a_second(|rates| rates.received_bytes),
                of_rates(|rates| rates.publications),
                of_rates(|rates| rates.opened),
                of_rates(|rates| rates.rejected),
                of_rates(|rates| rates.limited)
            ),
        ),
        labelled(
            "out/s",
            format!(
                "{} frames  {} bytes  {} delivered  {} ended  {} too slow  {} dropped",
                of_rates(|rates| rates.frames),
                bytes_a_second(|rates| rates.sent_bytes),
                of_rates(|rates| rates.deliveries),
                of_rates(|rates| rates.ended),
                of_rates(|rates| rates.slow),
                of_rates(|rates| rates.dropped)
            ),
        ),
        labelled(
            "times",
            format!(
                "turn {}  publish {}  {} overloads/s",
                quantiles(figures.turn),
                quantiles(figures.publish),
                of_rates(|rates| rates.overloads)
            ),
        ),
        labelled(
            "memory",
            format!(
                "{}  {} a connection  outboxes {}  cpu {}  files {} of {}",
                bytes(figures.memory_bytes),
                bytes(per_connection),
                bytes(figures.outbox_bytes),
                figures.cpu.map_or_else(|| "-".to_owned(), |cpu| format!("{:.0}%", cpu * 100.0)),
                count(figures.open_fds),
                count(figures.max_fds)
            ),
        ),
        labelled("others", if ways.is_empty() { "none configured".to_owned() } else { ways.join("  ") }),
    ]
}

fn draw_rooms(frame: &mut Frame<'_>, area: Rect, rooms: &Listing<Room>) {
    let block = titled(" biggest rooms ".to_owned());
    match rooms {
        Listing::Closed(why) => frame.render_widget(Paragraph::new(format!(" {why}")).block(block), area),
        Listing::Rows(rooms) => {
            let rows = rooms.iter().take(usize::from(area.height)).map(|room| {
                let namespace = if room.namespace == "/" {
                    String::new()
                } else {
                    format!("{} ", shown(&room.namespace))
                };
                Row::new([right(count(room.members as f64)), Cell::from(namespace + &shown(&room.room))])
            });
            let table = Table::new(rows, [Constraint::Length(7), Constraint::Min(8)])
                .header(Row::new([right("members".to_owned()), Cell::from("room")]).style(dim()))
                .block(block);
            frame.render_widget(table, area);
        }
    }
}

fn draw_slowest(frame: &mut Frame<'_>, area: Rect, slowest: &Listing<Slow>) {
    let block = titled(" slowest clients ".to_owned());
    match slowest {
        Listing::Closed(why) => frame.render_widget(Paragraph::new(format!(" {why}")).block(block), area),
        Listing::Rows(slowest) => {
            let rows = slowest.iter().take(usize::from(area.height)).map(|slow| {
                let who = slow.user.as_deref().unwrap_or(&slow.id);
                Row::new([
                    right(bytes(slow.waiting_bytes as f64)),
                    right(duration(Some(slow.silent_ms as f64 / 1e3))),
                    Cell::from(shown(&slow.dialect)),
                    Cell::from(shown(who)),
                    Cell::from(shown(&slow.address)),
                ])
            });
            let widths = [
                Constraint::Length(7),
                Constraint::Length(7),
                Constraint::Length(8),
                Constraint::Min(8),
                Constraint::Length(15),
            ];
            let head = [right("waiting".to_owned()), right("silent".to_owned())]
                .into_iter()
                .chain(["speaks", "who", "address"].map(Cell::from));
            let table = Table::new(rows, widths).header(Row::new(head).style(dim())).block(block);
            frame.render_widget(table, area);
        }
    }
}

fn draw_help(frame: &mut Frame<'_>) {
    let area = frame.area();
    let (width, height) = (area.width.min(72), area.height.min(HELP.len() as u16 + 2));
    let place = Rect { x: (area.width - width) / 2, y: (area.height - height) / 2, width, height };
    frame.render_widget(Clear, place);
    let text: Vec<Line<'_>> = HELP.iter().map(|line| Line::from(format!(" {line}"))).collect();
    frame.render_widget(Paragraph::new(text).block(Block::bordered().title(" throng top ")), place);
}

fn labelled<'a>(label: &'static str, text: String) -> Line<'a> {
    Line::from(vec![Span::styled(format!(" {label:<8}"), dim()), Span::raw(text)])
}

fn titled<'a>(title: String) -> Block<'a> {
    Block::new().borders(Borders::TOP).title(title).border_style(dim())
}

fn dim() -> Style {
    Style::new().fg(Color::Cyan)
}

fn right<'a>(text: String) -> Cell<'a> {
    Cell::from(Line::from(text).alignment(Alignment::Right))
}

/// What came from a server, or who connects to it, as it may be shown: what a terminal might obey, and what would turn the text around or
/// hide some of it, stands there by its number.
pub(super) fn shown(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        let is_hidden = matches!(
            letter,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}'
        );
        if letter.is_control() || is_hidden {
            shown.extend(letter.escape_unicode());
        } else {
            shown.push(letter);
        }
    }
    shown
}

/// A number in at most five letters.
fn count(number: f64) -> String {
    scaled(number, 1_000.0, &["", "k", "M", "G", "T"])
}

fn rate(number: Option<f64>) -> String {
    number.map_or_else(|| "-".to_owned(), count)
}

/// Bytes, in powers of 1024.
fn bytes(number: f64) -> String {
    scaled(number, 1_024.0, &["B", "K", "M", "G", "T"])
}

fn scaled(number: f64, step: f64, units: &[&str]) -> String {
    let mut number = number;
    let mut units = units.iter();
    let mut unit = units.next();
    // What would be rounded to the next step is shown as that.
    while number >= step - 0.5 && units.len() > 0 {
        number /= step;
        unit = units.next();
    }
    let unit = unit.copied().unwrap_or_default();
    let is_whole = number.fract() == 0.0 || number >= 99.95;
    if is_whole { format!("{number:.0}{unit}") } else { format!("{number:.1}{unit}") }
}

fn duration(seconds: Option<f64>) -> String {
    match seconds {
        None => "-".to_owned(),
        Some(seconds) if seconds < 9.995e-4 => format!("{:.0}us", seconds * 1e6),
        Some(seconds) if seconds < 9.995e-2 => format!("{:.1}ms", seconds * 1e3),
        Some(seconds) if seconds < 0.9995 => format!("{:.0}ms", seconds * 1e3),
        Some(seconds) if seconds < 99.95 => format!("{seconds:.1}s"),
        Some(seconds) => format!("{seconds:.0}s"),
    }
}

fn uptime(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match days {
        0 => format!("{hours:02}:{minutes:02}:{:02}", seconds % 60),
        _ => format!("{days}d {hours:02}:{minutes:02}"),
    }
}

#[cfg(test)]
mod tests;
