//! Standard error, which may be a pipe that nobody reads. What is logged must not wait for its reader, so a
//! thread of its own writes it, from a queue with a limit; what finds no room is dropped, counted, and told
//! when there is room again.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::actors::metrics;

/// Bytes that wait to be written: some thousand lines, enough for a reader that pauses.
const MAX_WAITING_BYTES: usize = 1 << 20;
/// How long a command waits for its own lines to be read before it goes on, or ends.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a thread that panics waits for its message to be read.
const PANIC_PATIENCE: Duration = Duration::from_millis(500);
/// Pause before a pipe that does not block, and is full, is tried again.
const FULL_PAUSE: Duration = Duration::from_millis(20);

/// What waits to be written.
struct Queue {
    waiting: Vec<u8>,
    /// Bytes that are being written, or one while there is something to be told.
    writing: usize,
    /// Lines dropped that nobody was told of yet.
    dropped: u64,
    is_started: bool,
}

static QUEUE: Mutex<Queue> =
    Mutex::new(Queue { waiting: Vec::new(), writing: 0, dropped: 0, is_started: false });
static CHANGED: Condvar = Condvar::new();

impl Queue {
    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.writing == 0
    }
}

/// Takes lines, and never waits.
pub(super) struct Writer;

impl Write for Writer {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        push(lines);
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Prints `text` and waits, within reason, until it is written: for what a person is told by a command.
pub(super) fn print(text: &str) {
    push(text.as_bytes());
    flush();
}

/// Waits, within reason, until everything is written.
pub fn flush() {
    wait(PATIENCE);
}

/// Prints what a panic says, and waits for it less.
pub(super) fn print_panic(text: &str) {
    push(text.as_bytes());
    wait(PANIC_PATIENCE);
}

fn wait(most: Duration) {
    drop(CHANGED.wait_timeout_while(queue(), most, |queue| !queue.is_idle()));
}

fn queue() -> MutexGuard<'static, Queue> {
    QUEUE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn push(lines: &[u8]) {
    let mut queue = queue();
    if !queue.is_started {
        let thread = std::thread::Builder::new().name("standard error".into());
        queue.is_started = thread.spawn(write_on).is_ok();
    }
    if !queue.is_started {
        drop(queue);
        io::stderr().write_all(lines).ok();
        return;
    }
    let held = queue.waiting.len() + queue.writing;
    if held > 0 && held + lines.len() > MAX_WAITING_BYTES {
        queue.dropped += 1;
        metrics::count_dropped_log_lines(1);
        return;
    }
    queue.waiting.extend_from_slice(lines);
    drop(queue);
    CHANGED.notify_all();
}

/// What the thread does.
fn write_on() {
    // A handle of its own: whoever else prints must not wait for the lock of the standard one.
    let mut file = io::stderr().as_fd().try_clone_to_owned().map(File::from).ok();
    loop {
        let waited = CHANGED.wait_while(queue(), |queue| queue.waiting.is_empty());
        let mut queue = waited.unwrap_or_else(PoisonError::into_inner);
        let lines = std::mem::take(&mut queue.waiting);
        queue.writing = lines.len();
        drop(queue);
        let unwritten = file.as_mut().map_or(&lines[..], |file| write(file, &lines));
        let lost = unwritten.iter().filter(|byte| **byte == b'\n').count() as u64;
        metrics::count_dropped_log_lines(lost);
        let mut queue = self::queue();
        queue.writing = 1;
        // Where nothing can be written, there is nobody to tell.
        let dropped = std::mem::take(&mut queue.dropped);
        drop(queue);
        if dropped > 0 && lost == 0 {
            log::warn!("{dropped} log lines were dropped, as nobody read them in time");
        }
        self::queue().writing = 0;
        CHANGED.notify_all();
    }
}

/// Writes as much of `bytes` as is possible, however long it takes; returns the rest.
fn write<'b>(file: &mut File, mut bytes: &'b [u8]) -> &'b [u8] {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::park_timeout(FULL_PAUSE),
            Err(_) => break,
        }
    }
    bytes
}
