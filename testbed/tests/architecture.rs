//! The layout that `docs/architecture.md` describes.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn manifest(directory: &Path) -> toml::Table {
    fs::read_to_string(directory.join("Cargo.toml")).unwrap().parse().unwrap()
}

/// Returns the members of the workspace.
fn crates() -> BTreeSet<String> {
    let members = manifest(&workspace())["workspace"]["members"].as_array().unwrap().clone();
    members.iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

/// Returns which members of the workspace each member imports.
fn imports() -> BTreeMap<String, BTreeSet<String>> {
    let crates = crates();
    let of = |name: &String| {
        let manifest = manifest(&workspace().join(name));
        let dependencies = manifest.get("dependencies").and_then(|table| table.as_table());
        let names = dependencies.into_iter().flatten().map(|(name, _)| name.clone());
        (name.clone(), names.filter(|name| crates.contains(name)).collect())
    };
    crates.iter().map(of).collect()
}

/// Returns the table of the page: a crate, and the crates that it may import.
fn table() -> BTreeMap<String, BTreeSet<String>> {
    let page = fs::read_to_string(workspace().join("docs/architecture.md")).unwrap();
    let rows = page.lines().skip_while(|line| !line.starts_with("| crate | imports |")).skip(2);
    let code = |cell: &str| -> BTreeSet<String> {
        cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    };
    rows.take_while(|line| line.starts_with('|'))
        .flat_map(|line| {
            let cells: Vec<&str> = line.split('|').collect();
            let imports = code(cells[2]);
            code(cells[1]).into_iter().map(move |name| (name, imports.clone()))
        })
        .collect()
}

#[test]
fn each_crate_imports_what_the_page_says() {
    assert_eq!(imports(), table());
}

/// Returns all source files of a directory.
fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            all.extend(sources(&entry));
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            all.push(entry);
        }
    }
    all
}

#[test]
fn only_the_crate_engine_names_an_engine() {
    // What the agents tell people may speak of podman; code may not.
    let named = ["podman::", "use podman", "Podman"];
    for name in crates().iter().filter(|name| !["engine", "testbed"].contains(&name.as_str())) {
        for path in sources(&workspace().join(name).join("src")) {
            let text = fs::read_to_string(&path).unwrap();
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            let found = code.filter(|line| named.iter().any(|word| line.contains(word)));
            let found: Vec<&str> = found.collect();
            assert!(found.is_empty(), "{}: {found:?}", path.display());
        }
    }
}

#[test]
fn no_source_file_is_longer_than_400_lines() {
    let long = crates()
        .iter()
        .flat_map(|name| sources(&workspace().join(name)))
        .map(|path| (fs::read_to_string(&path).unwrap().lines().count(), path))
        .filter(|(lines, _)| *lines > 400)
        .collect::<Vec<_>>();
    assert!(long.is_empty(), "split these by what they do: {long:?}");
}
