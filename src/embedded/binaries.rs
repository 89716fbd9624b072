//! Where this machine keeps `initdb` and `postgres`.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::EmbeddedError;

/// The oldest PostgreSQL that Posthaste works with.
pub(super) const OLDEST: u32 = 14;

/// Directories that hold one directory per installed version: (parent, start of the name, where the programs are).
const PLACES: [(&str, &str, &str); 5] = [
    ("/usr/lib/postgresql", "", "bin"),
    ("/usr", "pgsql-", "bin"),
    ("/usr/libexec", "postgresql", "."),
    ("/opt/homebrew/opt", "postgresql", "bin"),
    ("/usr/local/opt", "postgresql", "bin"),
];

/// One installed PostgreSQL server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Binaries {
    /// Its major version.
    pub major: u32,
    directory: PathBuf,
}

impl Binaries {
    /// A command for one of its programs. Messages come in English, so that logs can be searched for them.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.directory.join(program));
        command.env("LC_ALL", "C").env_remove("PGDATA");
        command
    }
}

/// All servers installed on this machine, the best first.
pub(super) fn installed() -> Vec<Binaries> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = std::env::split_paths(&path).collect();
    for (parent, start, programs) in PLACES {
        let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
        let versions =
            entries.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(start.as_bytes()));
        directories.extend(versions.map(|entry| entry.path().join(programs)));
    }
    if let Ok(output) = Command::new("pg_config").arg("--bindir").output() {
        directories.push(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    }
    let mut found: Vec<Binaries> = directories.iter().filter_map(|directory| look_into(directory)).collect();
    found.sort_by_key(|binaries| std::cmp::Reverse(binaries.major));
    found
}

/// The server to use for a data directory of version `data`, or for a new one.
///
/// # Errors
/// [`EmbeddedError::Missing`] or [`EmbeddedError::Version`], each with its remedy.
pub(super) fn choose(
    installed: Vec<Binaries>,
    data: Option<u32>,
    directory: &Path,
) -> Result<Binaries, EmbeddedError> {
    let newest = installed.first().map(|binaries| binaries.major).filter(|major| *major >= OLDEST);
    let Some(newest) = newest else {
        return Err(EmbeddedError::Missing);
    };
    let wanted = data.unwrap_or(newest);
    installed.into_iter().find(|binaries| binaries.major == wanted).ok_or_else(|| EmbeddedError::Version {
        directory: directory.to_owned(),
        data: wanted,
        newest,
    })
}

fn look_into(directory: &Path) -> Option<Binaries> {
    let programs = ["initdb", "postgres"].map(|program| directory.join(program));
    if !programs.iter().all(|program| program.is_file()) {
        return None;
    }
    let output = Command::new(&programs[1]).arg("--version").output().ok()?;
    let major = major(&String::from_utf8_lossy(&output.stdout))?;
    Some(Binaries { major, directory: directory.to_owned() })
}

/// `postgres (PostgreSQL) 15.8 (Debian 15.8-1)` is 15; so is `postgres (PostgreSQL) 15beta1`.
fn major(version: &str) -> Option<u32> {
    let number = version.split("(PostgreSQL)").nth(1)?.trim_start();
    let digits = number.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

/// The command that installs the missing programs on the system that `os_release` describes.
pub(super) fn install_command(os: &str, os_release: &str) -> &'static str {
    let family = |name: &str| {
        let mut lines = os_release.lines().filter_map(|line| line.split_once('='));
        lines.any(|(key, value)| {
            matches!(key, "ID" | "ID_LIKE") && value.trim_matches('"').split(' ').any(|id| id == name)
        })
    };
    match () {
        () if os == "macos" => "brew install postgresql@17",
        () if family("debian") || family("ubuntu") => "apt-get install postgresql",
        () if family("fedora") || family("rhel") => "dnf install postgresql-server",
        () if family("suse") || family("opensuse") => "zypper install postgresql-server",
        () if family("alpine") => "apk add postgresql",
        () if family("arch") => "pacman -S postgresql",
        () => {
            "apt-get install postgresql (Debian, Ubuntu; elsewhere the package that has initdb and postgres)"
        }
    }
}

/// [`install_command`] for this machine.
pub(super) fn install_command_here() -> &'static str {
    let os_release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    install_command(std::env::consts::OS, &os_release)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(major: u32) -> Binaries {
        Binaries { major, directory: PathBuf::from(format!("/pg/{major}")) }
    }

    #[test]
    fn the_major_version_is_read_from_what_postgres_says() {
        for (said, expected) in [
            ("postgres (PostgreSQL) 15.8 (Debian 15.8-1.pgdg120+1)\n", Some(15)),
            ("postgres (PostgreSQL) 17beta1", Some(17)),
            ("postgres (PostgreSQL) 9.6.24", Some(9)),
            ("postgres: command not found", None),
        ] {
            assert_eq!(major(said), expected, "{said}");
        }
    }

    #[test]
    fn the_newest_server_is_taken_and_existing_data_keep_their_version() {
        let dir = Path::new("/data");
        let installed = || vec![server(17), server(15)];
        assert_eq!(choose(installed(), None, dir).unwrap(), server(17));
        assert_eq!(choose(installed(), Some(15), dir).unwrap(), server(15));
        let error = choose(installed(), Some(16), dir).unwrap_err().to_string();
        assert!(error.contains("/data") && error.contains("16") && error.contains("17"), "{error}");
    }

    #[test]
    fn without_programs_the_message_is_one_line_with_the_command_that_installs_them() {
        for installed in [vec![], vec![server(13)]] {
            let error = choose(installed, None, Path::new("/data")).unwrap_err();
            assert!(matches!(error, EmbeddedError::Missing), "{error:?}");
            let said = error.to_string();
            assert!(
                said.contains(" install") || said.contains("apk add") || said.contains("pacman"),
                "{said}"
            );
            assert_eq!(said.lines().count(), 1, "{said}");
        }
    }

    #[test]
    fn the_command_suits_the_system() {
        for (os, release, expected) in [
            ("linux", "ID=debian\n", "apt-get"),
            ("linux", "NAME=\"Linux Mint\"\nID=linuxmint\nID_LIKE=\"ubuntu debian\"\n", "apt-get"),
            ("linux", "ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n", "dnf"),
            ("linux", "ID=alpine\n", "apk"),
            ("linux", "", "elsewhere"),
            ("macos", "", "brew"),
        ] {
            assert!(install_command(os, release).contains(expected), "{os} {release}");
        }
    }
}
