//! What a release consists of: one version in every file, and workflows that call what exists.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// All files below a folder whose names end in `suffix`.
fn files(folder: &str, suffix: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_str().unwrap().ends_with(suffix) {
                found.push(path);
            }
        }
    }
    found
}

/// The values of `key: value` lines, without quotes and comments.
fn values<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
    let lines = text.lines().map(|line| line.trim_start().trim_start_matches("- "));
    let values = lines.filter_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    values.map(|value| value.split(" #").next().unwrap().trim().trim_matches('"')).collect()
}

#[test]
fn version_is_the_same_everywhere() {
    let version = env!("CARGO_PKG_VERSION");
    let chart = read("deploy/helm/handoff/Chart.yaml");
    assert_eq!(values(&chart, "version"), [version], "version in Chart.yaml");
    assert_eq!(values(&chart, "appVersion"), [version], "appVersion in Chart.yaml");

    let mut tags = 0;
    for path in files("deploy/kubernetes", "kustomization.yaml") {
        for tag in values(&fs::read_to_string(&path).unwrap(), "newTag") {
            assert_eq!(tag, version, "{}", path.display());
            tags += 1;
        }
    }
    assert!(tags > 0, "no overlay names a tag of the image");

    let compose = read("docker-compose.yml");
    let image = compose.split("{HANDOFF_IMAGE:-").nth(1).and_then(|rest| rest.split('}').next());
    assert!(
        image.is_some_and(|image| image.ends_with(&format!(":{version}"))),
        "docker-compose.yml: {image:?}"
    );

    let changelog = read("CHANGELOG.md");
    let mut sections = changelog.lines().filter_map(|line| line.strip_prefix("## "));
    let newest = sections.find(|heading| *heading != "Unreleased").unwrap();
    let (newest, date) = newest.split_once(" - ").expect("a section has a version and a date");
    assert_eq!(newest, version, "the newest section of CHANGELOG.md");
    let digits = date.chars().filter(char::is_ascii_digit).count();
    assert!(
        digits == 8 && date.len() == 10,
        "CHANGELOG.md: {date} is not a date such as 2026-11-30"
    );
}

#[test]
fn actions_are_pinned_by_commit() {
    let mut pinned = 0;
    for path in files(".github", ".yml") {
        let text = fs::read_to_string(&path).unwrap();
        for line in
            text.lines().filter(|line| line.trim_start_matches([' ', '-']).starts_with("uses:"))
        {
            let action = line.split_once("uses:").unwrap().1.trim();
            if action.starts_with("./") {
                continue;
            }
            let (reference, version) = action.split_once(" # ").unwrap_or((action, ""));
            let commit = reference.split_once('@').map_or("", |(_, commit)| commit);
            let hexadecimal = commit.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            let path = path.display();
            assert!(
                commit.len() == 40 && hexadecimal,
                "{path}: {action} is not pinned by a commit"
            );
            assert!(version.starts_with('v'), "{path}: {action} has no comment with its version");
            pinned += 1;
        }
    }
    assert!(pinned > 10, "only {pinned} actions found");
}

#[test]
fn workflows_call_targets_and_scripts_that_exist() {
    let makefile = read("Makefile");
    let targets: BTreeSet<_> =
        makefile.lines().filter_map(|line| line.strip_prefix(".PHONY: ")).collect();
    let mut called = BTreeSet::new();
    for path in files(".github/workflows", ".yml") {
        let text = fs::read_to_string(&path).unwrap();
        let path = path.display();
        for command in values(&text, "run").iter().filter_map(|run| run.strip_prefix("make ")) {
            let words = command.split(' ').take_while(|word| !word.contains('='));
            called.extend(words.map(|word| (format!("{path}"), word.to_owned())));
        }
        // Of a matrix, where a target may also be one of Rust.
        let named = text.split("target: ").skip(1);
        let named = named.filter_map(|rest| rest.split([' ', ',', '\n']).next());
        let named = named.filter(|target| !target.contains("-linux-"));
        called.extend(named.map(|target| (format!("{path}"), target.to_owned())));
        for script in text.split([' ', '\n']).filter(|word| word.starts_with("scripts/")) {
            assert!(root().join(script).is_file(), "{path}: there is no {script}");
        }
    }
    for (path, target) in &called {
        assert!(targets.contains(target.as_str()), "{path}: the Makefile has no target {target}");
    }
    assert!(called.len() > 10, "only {} targets found", called.len());
}
