//! Printing. In the modules of the command line, `println!` and `eprintln!` are these: they obey nothing that
//! comes from outside, and they do not panic.
//!
//! A reader of standard output that goes away, as `head` does, ends a command quietly with the exit code of
//! `git` in the same place, 141; a disk that is full is an error, exit code 1. The command itself goes on to
//! its end: it may be in the middle of its work.

use std::borrow::Cow;
use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::sync::Notify;

use super::stderr;

/// Exit code of a program that SIGPIPE ended, as shells have it.
const EXIT_READER_GONE: u8 = 141;

const INTACT: u8 = 0;
const READER_GONE: u8 = 1;
const FAILED: u8 = 2;

/// What has become of standard output.
static STATE: AtomicU8 = AtomicU8::new(INTACT);
static BROKEN: Notify = Notify::const_new();

macro_rules! println {
    () => { $crate::cli::output::line("") };
    ($($text:tt)*) => { $crate::cli::output::line(&format!($($text)*)) };
}

macro_rules! eprintln {
    ($($text:tt)*) => { $crate::cli::output::complain(&format!($($text)*)) };
}

macro_rules! eprint {
    ($($text:tt)*) => { $crate::cli::output::ask(&format!($($text)*)) };
}

/// Prints a line, or several.
pub(super) fn line(text: &str) {
    print(&format!("{}\n", lines(text)));
}

/// Prints a line whose parts have been made [`visible`], and coloured.
pub(super) fn coloured_line(text: &str) {
    print(&format!("{text}\n"));
}

/// Prints a line, or several, to standard error.
pub fn complain(text: &str) {
    stderr::print(&format!("{}\n", lines(text)));
}

/// Prints to standard error what somebody is to answer in the same line.
pub(super) fn ask(text: &str) {
    stderr::print(&lines(text));
}

/// Prints what clap has to say: help, or what is wrong with the arguments.
pub(super) fn print_clap(error: &clap::Error) {
    let plain = error.render().to_string();
    let shown = lines(&plain);
    let is_ours = matches!(shown, Cow::Borrowed(_));
    if error.use_stderr() {
        match is_ours && console::colors_enabled_stderr() && io::stderr().is_terminal() {
            true => stderr::print(&error.render().ansi().to_string()),
            false => stderr::print(&shown),
        }
    } else {
        match is_ours && console::colors_enabled() && io::stdout().is_terminal() {
            true => print(&error.render().ansi().to_string()),
            false => print(&shown),
        }
    }
}

/// Prints `text` as it is.
pub(super) fn print(text: &str) {
    if STATE.load(Ordering::SeqCst) != INTACT {
        return;
    }
    let mut out = io::stdout().lock();
    let printed = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    drop(out);
    let Err(error) = printed else { return };
    if error.kind() == io::ErrorKind::BrokenPipe {
        STATE.store(READER_GONE, Ordering::SeqCst);
    } else {
        STATE.store(FAILED, Ordering::SeqCst);
        complain(&format!("posthaste: cannot write to standard output: {error}"));
    }
    BROKEN.notify_one();
}

/// Waits until nothing can be printed any more: for a command that is there to be watched.
pub(super) async fn broken() {
    while STATE.load(Ordering::SeqCst) == INTACT {
        BROKEN.notified().await;
    }
}

/// The exit code of a command that ends with `code`, once everything is printed that can be.
pub fn end(code: ExitCode) -> ExitCode {
    stderr::flush();
    match STATE.load(Ordering::SeqCst) {
        INTACT => code,
        READER_GONE => ExitCode::from(EXIT_READER_GONE),
        _ => ExitCode::FAILURE,
    }
}

/// `text` without what a terminal would obey: receivers and tenants have a say in it. It is shown as JSON
/// writes it.
pub(super) fn visible(text: &str) -> Cow<'_, str> {
    escaped(text, |_| false)
}

/// The same for text of several lines.
pub(super) fn lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| matches!(c, '\n' | '\t'))
}

fn escaped(text: &str, is_kept: fn(char) -> bool) -> Cow<'_, str> {
    let is_obeyed = |c: char| (c.is_control() || turns(c)) && !is_kept(c);
    if !text.contains(is_obeyed) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            c if !is_obeyed(c) => shown.push(c),
            '\n' => shown.push_str("\\n"),
            '\r' => shown.push_str("\\r"),
            '\t' => shown.push_str("\\t"),
            c => shown.push_str(&format!("\\u{:04x}", u32::from(c))),
        }
    }
    Cow::Owned(shown)
}

/// Whether `c` changes the direction of the text around it.
fn turns(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_obeys_nothing() {
        for (text, shown) in [
            ("plain é 日本", "plain é 日本"),
            ("\u{1b}[32mdelivered\u{1b}[0m", "\\u001b[32mdelivered\\u001b[0m"),
            ("\u{1b}]0;title\u{7}", "\\u001b]0;title\\u0007"),
            ("\u{1b}[2J\u{1b}[1;1H", "\\u001b[2J\\u001b[1;1H"),
            ("one\r\ntwo\u{9b}2J", "one\\r\\ntwo\\u009b2J"),
            ("\u{202e}desrever", "\\u202edesrever"),
            ("\u{1b}", "\\u001b"),
        ] {
            assert_eq!(visible(text), shown);
        }
        assert_eq!(lines("one\n\ttwo\r"), "one\n\ttwo\\r");
        // What stands in JSON stays the same value.
        let json = format!("{{\"a\": {}}}", serde_json::Value::from("\u{202e}\u{7f}"));
        let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("JSON");
        assert_ne!(lines(&json), json);
        assert_eq!(value(&lines(&json)), value(&json));
    }
}
