//! The commands that print the definitions and their reference.

use std::fs;
use std::process::Command;

fn run(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_sluice-operator")).args(args).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("it prints text")
}

#[test]
fn prints_and_writes_the_committed_definitions() {
    let committed = concat!(env!("CARGO_MANIFEST_DIR"), "/../crds/yaml/sluice.dev_moedeployments.yaml");
    let committed = fs::read_to_string(committed).unwrap();
    assert!(run(&["crds"]).contains(&format!("---\n{committed}")));

    let dir = concat!(env!("CARGO_TARGET_TMPDIR"), "/crds/new");
    assert_eq!(run(&["crds", "--out", dir]), "");
    assert_eq!(fs::read_to_string(format!("{dir}/sluice.dev_moedeployments.yaml")).unwrap(), committed);
}

#[test]
fn prints_and_writes_the_committed_reference() {
    let committed = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/api.md")).unwrap();
    assert_eq!(run(&["api"]), committed);

    let file = concat!(env!("CARGO_TARGET_TMPDIR"), "/api.md");
    assert_eq!(run(&["api", "--out", file]), "");
    assert_eq!(fs::read_to_string(file).unwrap(), committed);
}

#[test]
fn says_why_it_cannot_write() {
    let output = Command::new(env!("CARGO_BIN_EXE_sluice-operator"))
        .args(["crds", "--out", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml/x")])
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot make the directory"));
}
