//! `throng top`: what a server does now, in a terminal. It reads the control port and nothing else.

mod scrape;

mod figures;
mod source;
mod view;

use figures::Figures;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use source::{Reading, Source};
use std::io::{self, IsTerminal, Write};
use std::thread;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep};
use view::View;

/// The size of what `--once` prints: columns, and rows beside those of shards.
const ONCE_COLUMNS: u16 = 120;
const ONCE_ROWS: u16 = 34;
/// Keys that wait to be looked at.
const KEYS_MAX: usize = 64;

/// What to look at.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The control port of the server
    #[arg(default_value = "http://127.0.0.1:7071")]
    url: String,
    /// A key of the API with the scope read, for rooms and clients
    #[arg(long, env = "THRONG_API_KEY", hide_env_values = true)]
    key: Option<String>,
    /// Seconds from one look to the next
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0, value_parser = interval_seconds)]
    interval: f64,
    /// Look twice, print what was seen as text, and end
    #[arg(long)]
    once: bool,
}

fn interval_seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.1..=3_600.0).contains(seconds));
    seconds.ok_or_else(|| "from 0.1 to 3600".to_owned())
}

/// Shows the server until somebody has seen enough.
///
/// # Errors
/// For people: the terminal is none, or with `--once` the server does not answer.
pub fn run(args: &Args) -> Result<(), String> {
    let key = args.key.clone().filter(|key| !key.is_empty());
    let source = Source::new(&args.url, key)?;
    let every = Duration::from_secs_f64(args.interval);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    if args.once {
        let text = runtime.block_on(once(&source, every))?;
        // Whoever has asked may have closed the pipe.
        return io::stdout().write_all(text.as_bytes()).or(Ok(()));
    }
    if !io::stdout().is_terminal() {
        return Err("standard output is no terminal; --once prints what is seen as text".to_owned());
    }
    // From here on a panic puts the terminal back before it says what is wrong.
    let mut terminal = ratatui::try_init().map_err(|error| format!("cannot use the terminal: {error}"))?;
    let outcome = runtime.block_on(watch(&source, every, &mut terminal));
    ratatui::restore();
    // A name that is being looked up, on a thread of its own, must not hold up the end.
    runtime.shutdown_background();
    outcome.map_err(|error| error.to_string())
}

/// Two looks, as text.
async fn once(source: &Source, every: Duration) -> Result<String, String> {
    let away = |why: String| format!("{} is away: {why}", source.url);
    let first = source.read().await.map_err(away)?;
    sleep(every).await;
    let reading = source.read().await.map_err(away)?;
    let figures = Figures::new(&reading.scrape, Some(&first.scrape));
    let rows = ONCE_ROWS + figures.shards.len() as u16 * 2;
    let view = View { url: source.url.clone(), seen: Some((reading, figures)), ..View::default() };
    let mut terminal =
        Terminal::new(TestBackend::new(ONCE_COLUMNS, rows)).map_err(|error| error.to_string())?;
    terminal.draw(|frame| view.draw(frame)).map_err(|error| error.to_string())?;
    Ok(text(terminal.backend().buffer()))
}

/// What stands in a buffer, line by line, without the spaces at their ends and the last lines that are empty or for keys.
fn text(buffer: &Buffer) -> String {
    let rows = usize::from(buffer.area.height).saturating_sub(1);
    let lines = buffer.content().chunks(usize::from(buffer.area.width)).take(rows);
    let lines: Vec<String> = lines
        .map(|cells| cells.iter().map(|cell| cell.symbol()).collect::<String>().trim_end().to_owned())
        .collect();
    let end = lines.iter().rposition(|line| !line.is_empty()).map_or(0, |last| last + 1);
    lines[..end].join("\n") + "\n"
}

/// Looks again and again, and does what keys say, until one says that it is enough, or a signal does.
async fn watch(source: &Source, every: Duration, terminal: &mut ratatui::DefaultTerminal) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut keys = read_keys()?;
    let mut looks = interval(every);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut view = View { url: source.url.clone(), ..View::default() };
    // One look at a time, beside which keys are heard.
    let (seen, mut sees) = mpsc::channel::<Result<Reading, String>>(1);
    let mut is_looking = false;
    loop {
        terminal.draw(|frame| view.draw(frame))?;
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = hang_up.recv() => return Ok(()),
            event = keys.recv() => match event {
                // The terminal has gone.
                None => return Ok(()),
                Some(event) => if obey(&mut view, &event) == Wish::End {
                    return Ok(());
                },
            },
            _ = looks.tick(), if !is_looking && !view.paused => {
                is_looking = true;
                let (source, seen) = (source.clone(), seen.clone());
                tokio::spawn(async move {
                    // Nobody waits for it any more when the program is about to end.
                    seen.send(source.read().await).await.ok();
                });
            }
            Some(reading) = sees.recv() => {
                is_looking = false;
                take(&mut view, reading);
            }
        }
    }
}

/// What was seen is shown; that nothing was, too, with what was seen before it.
fn take(view: &mut View, reading: Result<Reading, String>) {
    match reading {
        Ok(reading) => {
            let earlier = view.seen.as_ref().map(|(earlier, _)| &earlier.scrape);
            let figures = Figures::new(&reading.scrape, earlier);
            (view.seen, view.fault) = (Some((reading, figures)), None);
        }
        Err(why) => view.fault = Some(why),
    }
}

/// What somebody wants who has pressed a key.
#[derive(Debug, PartialEq, Eq)]
enum Wish {
    GoOn,
    End,
}

fn obey(view: &mut View, event: &Event) -> Wish {
    let Event::Key(key) = event else { return Wish::GoOn };
    if key.kind == KeyEventKind::Release {
        return Wish::GoOn;
    }
    match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Wish::End,
        KeyCode::Char('q') | KeyCode::Esc => return Wish::End,
        KeyCode::Char('s') => view.sort = view.sort.next(),
        KeyCode::Char('p' | ' ') => view.paused = !view.paused,
        KeyCode::Char('h' | '?') => view.help = !view.help,
        _ => {}
    }
    Wish::GoOn
}

/// Keys, and other sizes of the terminal, as they come; ends when there is no terminal any more. The thread that waits for them ends with
/// the process.
fn read_keys() -> io::Result<mpsc::Receiver<Event>> {
    let (sender, receiver) = mpsc::channel(KEYS_MAX);
    let read = move || {
        while let Ok(event) = event::read() {
            if sender.blocking_send(event).is_err() {
                return;
            }
        }
    };
    thread::Builder::new().name("keys".to_owned()).spawn(read)?;
    Ok(receiver)
}
