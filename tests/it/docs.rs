//! The documentation: its links lead somewhere, and its pages stay short enough to read.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// The longest page of the reference, in lines.
const LONGEST_PAGE: usize = 250;

/// Every Markdown file that a reader may open, with its text.
fn pages() -> BTreeMap<PathBuf, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = ["README.md", "CHANGELOG.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md"];
    let mut pages: Vec<_> = files.map(|name| root.join(name)).into();
    let mut folders = vec![root.join("docs"), root.join("deploy")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    pages.into_iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

/// The lines outside code blocks.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut code = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        code ^= fence;
        !code && !fence
    })
}

/// The anchor that GitHub gives to a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// The headings of a page below its title.
fn headings(text: &str) -> impl Iterator<Item = &str> {
    prose(text)
        .filter(|line| line.starts_with("##"))
        .map(|line| line.trim_start_matches('#').trim())
}

fn anchors(text: &str) -> BTreeSet<String> {
    let title = prose(text).filter_map(|line| line.strip_prefix("# "));
    let written = prose(text).flat_map(|line| line.split("<a id=\"").skip(1));
    let written = written.filter_map(|rest| rest.split('"').next()).map(str::to_owned);
    title.chain(headings(text)).map(anchor).chain(written).collect()
}

/// The targets of a page's links.
fn links(text: &str) -> Vec<String> {
    let text = prose(text).collect::<Vec<_>>().join("\n");
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.map(str::to_owned).collect()
}

#[test]
fn links_between_documents_lead_to_files_and_headings() {
    let pages = pages();
    let mut checked = 0;
    for (path, text) in &pages {
        for link in links(text).iter().filter(|link| !link.contains("://")) {
            let (file, fragment) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => path.clone(),
                file => path.parent().unwrap().join(file).canonicalize().unwrap_or_else(|_| {
                    panic!("{}: no file for the link {link}", path.display());
                }),
            };
            checked += 1;
            if !fragment.is_empty() {
                let page = pages.get(&target).unwrap_or_else(|| {
                    panic!("{}: {link} has a fragment, but leads to no page", path.display());
                });
                let found = anchors(page).contains(fragment);
                assert!(found, "{}: no heading for the link {link}", path.display());
            }
        }
    }
    assert!(checked > 50, "only {checked} links found");
}

/// `make pictures` makes them.
#[test]
fn each_picture_is_shown_and_small() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/pictures");
    let pages = pages();
    let shown = |picture: &Path| {
        pages.iter().any(|(page, text)| {
            let folder = page.parent().unwrap();
            links(text).iter().any(|link| folder.join(link) == picture)
        })
    };
    for picture in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        let bytes = fs::metadata(&picture).unwrap().len();
        assert!(bytes <= 300 * 1024, "{}: {bytes} bytes", picture.display());
        assert!(shown(&picture), "no page shows {}", picture.display());
    }
}

#[test]
fn pages_of_the_reference_are_short_and_begin_with_their_contents() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference");
    let pages = pages();
    let index = &pages[&folder.join("README.md")];
    for (path, text) in pages.iter().filter(|(path, _)| path.parent() == Some(&folder)) {
        let lines = text.lines().count();
        let path = path.strip_prefix(&folder).unwrap().to_str().unwrap();
        assert!(lines <= LONGEST_PAGE, "docs/reference/{path} has {lines} lines");
        if path == "README.md" {
            continue;
        }
        assert!(index.contains(&format!("]({path})")), "the index lacks docs/reference/{path}");
        let contents = text.split("\n## ").next().unwrap();
        for heading in headings(text) {
            let link = format!("](#{})", anchor(heading));
            assert!(contents.contains(&link), "the contents of {path} lack {heading:?}");
        }
    }
}

/// Words that readers stumbled over. Plain terms are report, log, return, fix, the caller, a user.
const PRIVATE_WORDS: [&str; 10] =
    ["told", "tell", "tells", "whoever", "nobody", "somebody", "mend", "mends", "heed", "lest"];

#[test]
fn documents_for_users_are_in_plain_terms() {
    let mut found = Vec::new();
    for (path, text) in pages() {
        if path.ends_with("ARCHITECTURE.md") {
            continue;
        }
        for word in text.split(|c: char| !c.is_alphanumeric()) {
            if PRIVATE_WORDS.contains(&word.to_lowercase().as_str()) {
                found.push(format!("{}: {word}", path.display()));
            }
        }
    }
    assert!(found.len() <= 10, "{found:#?}");
    let readme =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let words = readme.split_whitespace().count();
    assert!(words <= 1200, "README.md has {words} words");
}
