//! The signals of a program that runs until it is told to end.

use std::fs;
use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that end the program in order: SIGTERM, SIGINT, and SIGHUP of a terminal that closes. Those
/// that mean nothing to it, and would kill it, are told and change nothing.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Option<Signal>,
    users: [Signal; 2],
}

impl Signals {
    /// From now on they are heard.
    pub(super) fn new() -> io::Result<Signals> {
        // nohup, and whoever else has it ignored, wants the program to outlive its terminal.
        let hangup = SignalKind::hangup();
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: if is_ignored(hangup) { None } else { Some(signal(hangup)?) },
            users: [signal(SignalKind::user_defined1())?, signal(SignalKind::user_defined2())?],
        })
    }

    /// The name of the next one that ends the program.
    pub(super) async fn next(&mut self) -> &'static str {
        let Signals { terminate, interrupt, hangup, users: [one, two] } = self;
        let hung_up = async {
            match hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(hung_up);
        loop {
            let name = tokio::select! {
                _ = terminate.recv() => return "SIGTERM",
                _ = interrupt.recv() => return "SIGINT",
                _ = &mut hung_up => return "SIGHUP",
                _ = one.recv() => "SIGUSR1",
                _ = two.recv() => "SIGUSR2",
            };
            log::warn!("{name} means nothing here: SIGTERM ends the program");
        }
    }
}

/// Whether a signal was being ignored when the program started: proc(5) has the bits.
fn is_ignored(kind: SignalKind) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or_default();
    ignored & (1 << (kind.as_raw_value() - 1)) != 0
}
