//! Where log lines go, how they are written, and how much is logged: the last can change while the server runs.

use crate::config::{self, LogFormat, LogLevel};
use std::fmt::{Debug, Write as _};
use std::io::{self, IsTerminal as _, Write};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixDatagram;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, Layered, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, Registry, fmt, reload};

/// What the journal knows our entries by.
const IDENTIFIER: &str = "throng";
/// Where it takes them, each in a datagram.
const JOURNAL: &str = "/run/systemd/journal/socket";
/// How long whoever logs waits for it. Then the line goes to standard error.
const JOURNAL_WAIT: Duration = Duration::from_millis(100);
/// The longest value of a field of an entry, in bytes: all of an entry fits into a datagram.
const VALUE_BYTES_MAX: usize = 16 << 10;

/// The log of the process.
#[derive(Debug)]
pub struct Log {
    filter: reload::Handle<LevelFilter, Registry>,
    depth: Mutex<Depth>,
}

/// How much is logged.
#[derive(Clone, Copy, Debug)]
struct Depth {
    configured: LogLevel,
    /// True while at least [`LogLevel::Debug`] is logged, whatever is configured.
    is_verbose: bool,
}

/// What stands behind the filter.
type Filtered = Layered<reload::Layer<LevelFilter, Registry>, Registry>;

impl Log {
    /// Begins to log as `settings` say. Once in a process.
    pub fn start(settings: &config::Log) -> Log {
        let depth = Depth { configured: settings.level, is_verbose: false };
        let (filter, handle) = reload::Layer::new(depth.filter());
        let leads_there = leads_to_the_journal();
        let format = match settings.format {
            LogFormat::Auto if leads_there => LogFormat::Journald,
            LogFormat::Auto => LogFormat::Text,
            format => format,
        };
        let mut away = None;
        let lines: Box<dyn Layer<Filtered> + Send + Sync> = match format {
            LogFormat::Json => Box::new(fmt::layer().json().with_writer(io::stderr).with_target(false)),
            LogFormat::Journald => match Journal::open() {
                Ok(journal) => Box::new(journal),
                Err(error) => {
                    away = Some(error);
                    // The journal has times of its own.
                    Box::new(plain().with_writer(Prioritized).with_ansi(false).without_time())
                }
            },
            LogFormat::Auto | LogFormat::Text => {
                Box::new(plain().with_writer(io::stderr).with_ansi(io::stderr().is_terminal()))
            }
        };
        tracing_subscriber::registry().with(filter).with(lines).init();
        if let Some(error) = away {
            tracing::warn!(
                %error,
                "cannot reach the journal: lines go to standard error, with their priority in front"
            );
        }
        Log { filter: handle, depth: Mutex::new(depth) }
    }

    /// From now on this level is configured.
    pub fn set_level(&self, level: LogLevel) {
        let mut depth = self.depth();
        depth.configured = level;
        self.apply(*depth);
    }

    /// Logs at least what explains the fate of each connection, or again what is configured, and says so.
    pub fn toggle_verbose(&self) {
        let mut depth = self.depth();
        let level = depth.configured.word();
        if depth.is_verbose {
            // Said while it is certain to be heard.
            tracing::info!(level, "verbose logs are off");
        }
        depth.is_verbose = !depth.is_verbose;
        self.apply(*depth);
        if depth.is_verbose {
            tracing::info!(level = depth.filter().to_string(), "verbose logs are on");
        }
    }

    fn apply(&self, depth: Depth) {
        if let Err(error) = self.filter.modify(|filter| *filter = depth.filter()) {
            tracing::warn!(%error, "cannot change how much is logged");
        }
    }

    fn depth(&self) -> MutexGuard<'_, Depth> {
        self.depth.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Depth {
    fn filter(self) -> LevelFilter {
        let configured = match self.configured {
            LogLevel::Error => LevelFilter::ERROR,
            LogLevel::Warn => LevelFilter::WARN,
            LogLevel::Info => LevelFilter::INFO,
            LogLevel::Debug => LevelFilter::DEBUG,
            LogLevel::Trace => LevelFilter::TRACE,
        };
        if self.is_verbose { configured.max(LevelFilter::DEBUG) } else { configured }
    }
}

fn plain<S>() -> fmt::Layer<S> {
    fmt::layer().with_target(false)
}

/// Entries of the journal, by its own protocol. The message has the fields in it as text has them, since `journalctl` shows nothing else, and
/// each stands by itself as well. That is why the crate `tracing-journald` is not used: its messages are bare.
struct Journal {
    socket: UnixDatagram,
}

impl Journal {
    fn open() -> io::Result<Journal> {
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(JOURNAL_WAIT))?;
        // Not for good: the journal may be started again, and the name leads to the new one.
        UnixDatagram::unbound()?.connect(JOURNAL)?;
        Ok(Journal { socket })
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let mut entry = Entry::default();
        event.record(&mut entry);
        let priority = priority(*metadata.level());
        let text = format!("{}{}", entry.message, entry.behind);
        let line = metadata.line().map(|line| line.to_string());
        let (path, line) = (metadata.file().unwrap_or_default(), line.unwrap_or_default());
        for (name, value) in [
            ("MESSAGE", text.as_str()),
            ("PRIORITY", char::from(priority).encode_utf8(&mut [0; 4])),
            ("SYSLOG_IDENTIFIER", IDENTIFIER),
            ("THRONG_MESSAGE", &entry.message),
            ("CODE_FILE", path),
            ("CODE_LINE", &line),
        ] {
            push_field(&mut entry.bytes, name, value);
        }
        if self.socket.send_to(&entry.bytes, JOURNAL).is_err() {
            // If standard error takes it no more than the journal, there is nobody to tell.
            Line(priority).write_all(format!("{text}\n").as_bytes()).ok();
        }
    }
}

/// What an event says.
#[derive(Default)]
struct Entry {
    message: String,
    /// The fields, to stand behind the message.
    behind: String,
    /// The same, as the journal takes them.
    bytes: Vec<u8>,
}

impl Visit for Entry {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.push(field.name(), value, &format!("{value:?}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let value = format!("{value:?}");
        self.push(field.name(), &value, &value);
    }
}

impl Entry {
    /// `shown` is how the value stands behind the message.
    fn push(&mut self, name: &str, value: &str, shown: &str) {
        if name == "message" {
            return self.message = value.to_owned();
        }
        // What libraries that do not use `tracing` say of themselves.
        if name.starts_with("log.") {
            return;
        }
        write!(self.behind, " {name}={shown}").expect("a string takes all that memory holds");
        let letters = name.bytes().map(|byte| if byte.is_ascii_alphanumeric() { byte } else { b'_' });
        let name = letters.map(|byte| char::from(byte.to_ascii_uppercase())).collect::<String>();
        push_field(&mut self.bytes, &format!("THRONG_{name}"), value);
    }
}

/// A name, the length of the value in eight bytes, and the value, in which there may be anything.
fn push_field(bytes: &mut Vec<u8>, name: &str, value: &str) {
    let value = &value.as_bytes()[..value.floor_char_boundary(VALUE_BYTES_MAX)];
    bytes.extend_from_slice(name.as_bytes());
    bytes.push(b'\n');
    bytes.extend_from_slice(&(value.len() as u64).to_le_bytes());
    bytes.extend_from_slice(value);
    bytes.push(b'\n');
}

/// True when standard error is a stream of the journal, which systemd.exec(5) tells by its device and inode: `$JOURNAL_STREAM` alone may
/// be inherited, and standard error be something else.
fn leads_to_the_journal() -> bool {
    let Ok(told) = std::env::var("JOURNAL_STREAM") else { return false };
    let stderr = io::stderr().as_fd().try_clone_to_owned().map(std::fs::File::from);
    let metadata = stderr.and_then(|stderr| stderr.metadata());
    metadata.is_ok_and(|metadata| told == format!("{}:{}", metadata.dev(), metadata.ino()))
}

/// Standard error, with the priority in front of each line as sd-daemon(3) has it.
struct Prioritized;

/// One line of it.
struct Line(u8);

impl<'w> MakeWriter<'w> for Prioritized {
    type Writer = Line;

    fn make_writer(&'w self) -> Line {
        Line(priority(Level::INFO))
    }

    fn make_writer_for(&'w self, metadata: &Metadata<'_>) -> Line {
        Line(priority(*metadata.level()))
    }
}

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // In one piece, so that no other thread's line comes between.
        let whole = [b"<", &[self.0][..], b">", line].concat();
        io::stderr().write_all(&whole).map(|()| line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// A digit of syslog(3).
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => b'3',
        Level::WARN => b'4',
        Level::INFO => b'6',
        _ => b'7',
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbose_logs_are_never_less_than_what_is_configured() {
        let check = |configured, is_verbose, expected| {
            assert_eq!(Depth { configured, is_verbose }.filter(), expected, "{configured:?} {is_verbose}");
        };
        check(LogLevel::Warn, false, LevelFilter::WARN);
        check(LogLevel::Warn, true, LevelFilter::DEBUG);
        check(LogLevel::Debug, true, LevelFilter::DEBUG);
        check(LogLevel::Trace, true, LevelFilter::TRACE);
    }
}
