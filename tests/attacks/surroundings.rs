//! Whoever may write to a directory above the working directory must not decide how the program runs.

use std::path::Path;
use std::process::Command;

/// What `posthaste serve` says in `directory`, without any variable.
fn said(directory: &Path) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_posthaste"));
    let output = command.env_clear().current_dir(directory).arg("serve").output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn only_the_env_file_of_the_working_directory_is_read_and_all_of_it() {
    let above = tempfile::tempdir().unwrap();
    let here = above.path().join("here");
    std::fs::create_dir(&here).unwrap();
    std::fs::write(above.path().join(".env"), "POSTHASTE_ADMIN_TOKEN=short\n").unwrap();
    let (code, text) = said(&here);
    assert!(code == Some(2) && text.contains("DATABASE_URL") && !text.contains("--admin-token"), "{text}");
    let (code, text) = said(above.path());
    assert!(code == Some(2) && text.contains("--admin-token"), "{text}");
    // A line that cannot be read must not hide those after it.
    std::fs::write(here.join(".env"), "APP=1\nAPP_NAME=My secret Shop\nPOSTHASTE_HTTPS_ONLY=true\n").unwrap();
    let (code, text) = said(&here);
    assert!(code == Some(2) && text.contains("after APP:") && !text.contains("secret"), "{text}");
}
