//! `lunar keys`: files, words and exit codes.

use std::path::Path;
use std::process::Command;

use lunar_control_channel::{Identity, Role};

fn lunar(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_lunar")).args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn keys_are_made_told_of_and_not_replaced_unasked() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("keys");
    let name = directory.to_str().unwrap();
    let (code, text, _) = lunar(&["keys", name]);
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains(&format!("lunar-agent --control ADDRESS:PORT --tls {name}/agent")),
        "{text}"
    );
    Identity::load(&directory.join("agent"), Role::Agent).unwrap();
    Identity::load(&directory.join("card"), Role::Card).unwrap();

    let (code, _, text) = lunar(&["keys", name]);
    assert_eq!(code, Some(5), "{text}");
    assert!(text.starts_with("lunar: ") && text.contains("is there already"), "{text}");

    let (code, text, _) = lunar(&["keys", name, "--force", "--json", "--days", "1"]);
    assert_eq!(code, Some(0), "{text}");
    let made: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(made["authority"].as_str().unwrap().starts_with("Lunar CA "));
    assert_eq!(made["valid_until"].as_str().unwrap().len(), "2026-11-22".len());
    let card = made["card"].as_str().unwrap();
    Identity::load(Path::new(card), Role::Card).unwrap();
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();
    let directory = folder.path().join("file/keys");
    let (code, _, text) = lunar(&["keys", directory.to_str().unwrap()]);
    assert_eq!(code, Some(5));
    assert!(
        text.contains(directory.to_str().unwrap()) && text.contains("Not a directory"),
        "{text}"
    );
    assert_eq!(lunar(&["keys", "/nonexistent", "--days", "0"]).0, Some(2));
}
