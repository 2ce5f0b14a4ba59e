//! Checks the documentation: every link and anchor leads somewhere, and every page is in the summary.
//!
//! Anchors are those that GitHub and mdBook give to headings.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

/// Longer pages are hard to read, and should be split. Generated lists and the changelog do not count.
const MAX_LINES: usize = 300;

/// The front page fits on two screens.
const MAX_LINES_OF_README: usize = 120;

const SUMMARY: &str = "docs/SUMMARY.md";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// All Markdown files below a folder, as paths from the root of the repository.
fn below(folder: &str) -> Vec<PathBuf> {
    let (mut pages, mut folders) = (Vec::new(), vec![root().join(folder)]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path.strip_prefix(root()).unwrap().to_owned());
            }
        }
    }
    pages
}

/// Every page that a reader may open.
fn pages() -> Vec<PathBuf> {
    let mut pages: Vec<_> = [
        "README.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "CHANGELOG.md",
        "benches/README.md",
        "tests/README.md",
    ]
    .map(PathBuf::from)
    .into();
    let readmes = below("envoy").into_iter().filter(|page| page.ends_with("README.md"));
    pages.extend(readmes.chain(below("docs")).chain(below(".github")));
    pages
}

/// The lines outside of code blocks.
fn prose(page: &str) -> impl Iterator<Item = &str> {
    let mut code = false;
    page.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        code ^= fence;
        !code && !fence
    })
}

/// The targets of all links, without those in code.
fn links(page: &str) -> Vec<String> {
    let mut links = Vec::new();
    for line in prose(page) {
        let text: String = line.split('`').step_by(2).collect();
        let targets = text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap().to_owned());
        links.extend(targets);
    }
    links
}

/// The text of a heading: of a link only what is between its brackets.
fn text_of(heading: &str) -> String {
    let mut parts = heading.split("](");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.split_once(')').map_or("", |(_, rest)| rest))
}

/// The anchor of each heading; the second of two equal ones ends in `-1`.
fn anchors(page: &str) -> BTreeSet<String> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut anchors = BTreeSet::new();
    for line in prose(page).filter(|line| line.starts_with('#')) {
        let heading = text_of(line.trim_start_matches('#').trim());
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        let anchor = kept.collect::<String>().to_lowercase().replace(' ', "-");
        let times = seen.entry(anchor.clone()).or_default();
        anchors.insert(if *times == 0 { anchor } else { format!("{anchor}-{times}") });
        *times += 1;
    }
    anchors
}

/// A path without `..`.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        if part == Component::ParentDir {
            assert!(plain.pop(), "{} is outside of the repository", path.display());
        } else {
            plain.push(part);
        }
    }
    plain
}

/// What is wrong with a link on a page; `None` if it leads somewhere.
fn broken(page: &Path, link: &str) -> Option<String> {
    if link.starts_with("https://") {
        return None;
    }
    let (path, anchor) = link.split_once('#').map_or((link, None), |(path, anchor)| (path, Some(anchor)));
    let target = if path.is_empty() { page.to_owned() } else { plain(&page.parent().unwrap().join(path)) };
    if !root().join(&target).exists() {
        return Some(format!("{}: {link}: there is no {}", page.display(), target.display()));
    }
    let lost = anchor.filter(|anchor| !anchors(&read(&target)).contains(*anchor))?;
    Some(format!("{}: {link}: {} has no heading #{lost}", page.display(), target.display()))
}

#[test]
fn every_link_and_every_anchor_leads_somewhere() {
    let pages = pages();
    assert!(pages.len() > 40, "{pages:?}");
    let mut wrong = Vec::new();
    for page in pages {
        wrong.extend(links(&read(&page)).iter().filter_map(|link| broken(&page, link)));
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn every_page_is_in_the_summary_once_and_every_entry_is_a_page() {
    let summary = links(&read(Path::new(SUMMARY)));
    let listed: BTreeSet<_> = summary.iter().map(|link| Path::new("docs").join(link)).collect();
    let mut there: BTreeSet<_> = below("docs").into_iter().collect();
    there.remove(Path::new(SUMMARY));
    assert_eq!(listed.difference(&there).collect::<Vec<_>>(), Vec::<&PathBuf>::new(), "listed, but missing");
    assert_eq!(
        there.difference(&listed).collect::<Vec<_>>(),
        Vec::<&PathBuf>::new(),
        "existing, but not listed"
    );
    assert_eq!(summary.len(), listed.len(), "a page is listed twice");
}

/// The number of hand-written lines.
fn length(page: &str) -> usize {
    let mut generated = false;
    let written = page.lines().filter(|line| {
        generated = (generated || line.starts_with("<!-- generated")) && *line != "<!-- end -->";
        !generated
    });
    written.count()
}

#[test]
fn no_page_is_too_long() {
    let long = |page: &PathBuf| {
        let lines = length(&read(page));
        let limit = if page == Path::new("README.md") { MAX_LINES_OF_README } else { MAX_LINES };
        (lines > limit && page != Path::new("CHANGELOG.md"))
            .then(|| format!("{} has {lines} lines, at most {limit} are allowed", page.display()))
    };
    assert_eq!(pages().iter().filter_map(long).collect::<Vec<_>>(), Vec::<String>::new());
}

#[test]
fn anchors_are_made_as_github_and_mdbook_make_them() {
    let page = "# 4. Envoy\n## `a_b`, [Links](x.md)!\n## Same\n## Same\n```sh\n# code\n```\n";
    let expected = ["4-envoy", "a_b-links", "same", "same-1"].map(str::to_owned);
    assert_eq!(anchors(page), BTreeSet::from(expected));
    assert_eq!(links("[a](b.md#c) `[no](code)` [d](e)\n```\n[no](code)\n```\n"), ["b.md#c", "e"]);
}

#[test]
fn every_outcome_is_described_for_operators_and_for_users_of_the_api() {
    use tenantgate::decision::{Fault, Reason};
    let (outcomes, users) = ("docs/reference/outcomes.md", "docs/guides/api-users.md");
    let (outcomes, users) = (read(Path::new(outcomes)), read(Path::new(users)));
    for name in Reason::ALL.map(Reason::as_str).into_iter().chain(Fault::ALL.map(Fault::as_str)) {
        assert!(outcomes.contains(&format!("`{name}`")), "outcomes.md: {name}");
    }
    let bodies: BTreeSet<_> = outcomes.split('`').filter(|text| text.starts_with("{\"detail\":")).collect();
    assert!(bodies.len() > 7, "{bodies:?}");
    for body in bodies {
        assert!(users.contains(body), "api-users.md: {body}");
    }
}
