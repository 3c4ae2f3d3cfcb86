//! What no compiler checks: that imports point down, that `unsafe` stays on its island, that files say what they are for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Imports that the table of ARCHITECTURE.md does not list, with what they are for.
const BESIDES: &[(&str, &[&str])] = &[
    // What makes up a world for the shards to run in also makes the door and reads what is said there.
    ("sim", &["auth", "dialect", "routes", "rules", "permissions", "policy"]),
    (
        "fuzzing",
        &[
            "shard",
            "reactor",
            "dialect",
            "rules",
            "wire",
            "auth",
            "token",
            "permissions",
            "policy",
            "bus",
            "cluster",
            "stats",
            "message",
            "time",
        ],
    ),
];

/// The only files that may have `unsafe` in them.
const UNSAFE: &[&str] = &["src/reactor/sys.rs"];

#[test]
fn imports_point_down_the_table_of_the_architecture() {
    let table = table();
    let mut wrong = Vec::new();
    for file in rust_files("src") {
        let module = top_module(&file);
        if module == "lib" {
            continue;
        }
        let Some(allowed) = table.get(&module) else {
            wrong.push(format!("{}: ARCHITECTURE.md has no module {module} in its table", file.display()));
            continue;
        };
        for import in imports(&file) {
            if import != module && !allowed.contains(&import) {
                wrong.push(format!("{}: {module} must not import {import}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_table_of_the_architecture_has_no_cycles_and_names_what_there_is() {
    let mut table = table();
    let modules: BTreeSet<String> = rust_files("src").iter().map(|file| top_module(file)).collect();
    for module in table.keys() {
        assert!(modules.contains(module), "the table has {module}, src has not");
    }
    // Take away what imports nothing, until nothing is left.
    while !table.is_empty() {
        let before = table.len();
        let free: BTreeSet<String> = table
            .iter()
            .filter(|(_, imports)| imports.is_empty())
            .map(|(module, _)| module.clone())
            .collect();
        table.retain(|module, _| !free.contains(module));
        table.values_mut().for_each(|imports| imports.retain(|import| !free.contains(import)));
        assert!(table.len() < before, "these import each other: {table:?}");
    }
}

/// What each module may import, from ARCHITECTURE.md.
fn table() -> BTreeMap<String, BTreeSet<String>> {
    let page = read(Path::new("ARCHITECTURE.md"));
    let (_, after) = page.split_once("Imports point down this table").expect("the table is there");
    let lines = after.split("```").nth(1).expect("in a block of its own").lines();
    let names = |list: &str| words(list).map(str::to_owned).collect::<BTreeSet<String>>();
    // Level, modules and what they may import, as the lines say it.
    let mut rows: Vec<(u32, BTreeSet<String>, String)> = Vec::new();
    for line in lines.filter(|line| !line.is_empty()) {
        let (level, rest) = line.split_once(' ').expect("a level, then modules");
        let level = level.parse().unwrap_or_else(|_| panic!("no level: {line}"));
        let mut rest = rest.to_owned();
        while rest.contains("  →") {
            rest = rest.replace("  →", " →");
        }
        for row in rest.split("   ").map(str::trim).filter(|row| !row.is_empty()) {
            let (modules, imports) = row.split_once('→').unwrap_or((row, ""));
            rows.push((level, names(modules), imports.trim().to_owned()));
        }
    }
    let mut table: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (level, modules, imports) in &rows {
        let imports: BTreeSet<String> = match imports.as_str() {
            "everything below" => rows
                .iter()
                .filter(|(other, ..)| other < level)
                .flat_map(|(_, modules, _)| modules.clone())
                .collect(),
            "the same, as another reactor" => table["reactor"].clone(),
            list => names(list),
        };
        for module in modules {
            table.insert(module.clone(), imports.clone());
        }
    }
    for (module, imports) in BESIDES {
        table
            .entry((*module).to_owned())
            .or_default()
            .extend(imports.iter().map(|import| (*import).to_owned()));
    }
    for (module, imports) in &table {
        for import in imports {
            assert!(
                table.contains_key(import),
                "the table says that {module} may import {import}, and does not have it"
            );
        }
    }
    table
}

#[test]
fn unsafe_stays_on_its_island() {
    for folder in ["src", "loadgen", "tests", "benches"] {
        for file in rust_files(folder) {
            let path = file.to_str().expect("a path of ours");
            if UNSAFE.contains(&path) {
                continue;
            }
            let text = read(&file);
            for (number, line) in text.lines().enumerate() {
                // The lint's name is no use of it, nor is this test.
                let bare = line.split("//").next().unwrap_or_default().replace("unsafe_code", "");
                let found = words(&bare).any(|word| word == "unsafe") && path != "tests/it/tidy.rs";
                assert!(!found, "{path}:{}: {line}", number + 1);
            }
        }
    }
}

#[test]
fn every_file_says_what_it_is_for() {
    for folder in ["src", "loadgen", "tests", "benches"] {
        for file in rust_files(folder) {
            assert!(read(&file).starts_with("//! "), "{} does not open with its purpose", file.display());
        }
    }
}

#[test]
fn no_test_is_switched_off() {
    let attribute = ["#[", "ignore"].concat();
    for folder in ["src", "loadgen", "tests", "benches", "fuzz"] {
        for file in rust_files(folder) {
            assert!(!read(&file).contains(&attribute), "{} switches a test off", file.display());
        }
    }
}

#[test]
fn the_changelog_has_an_entry_for_this_version() {
    let changelog = read(Path::new("CHANGELOG.md"));
    let version = env!("CARGO_PKG_VERSION");
    let entry = changelog
        .lines()
        .any(|line| line.starts_with("## ") && words_of_version(line).any(|word| word == version));
    assert!(entry, "CHANGELOG.md has no heading for {version}");
}

/// What `file` imports from the crate: the module behind each `crate::`, wherever it stands in code that is not a test.
fn imports(file: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    if file.ends_with("tests.rs") {
        return found;
    }
    let text = read(file);
    let (code, tests) = text.split_once("#[cfg(test)]\nmod tests").unwrap_or((&text, "\n}\n"));
    // Tests stand last, or what follows them would not be looked at here.
    let (_, after) = tests.split_once("\n}\n").unwrap_or_default();
    assert!(after.is_empty(), "{} goes on after its tests", file.display());
    let code: String =
        code.lines().map(|line| line.split("//").next().unwrap_or_default().to_owned() + "\n").collect();
    let root = if top_module(file) == "main" { "throng::" } else { "crate::" };
    let mut rest = code.as_str();
    while let Some(at) = rest.find(root) {
        let preceded = rest[..at].ends_with(|last: char| last.is_alphanumeric() || last == '_');
        rest = &rest[at + root.len()..];
        if preceded {
            continue;
        }
        if let Some(list) = rest.strip_prefix('{') {
            // Of a list, the first word of each item; what is nested deeper belongs to that.
            let mut depth = 0;
            let item = |depth: &mut i32, letter: char| {
                *depth += match letter {
                    '{' => 1,
                    '}' => -1,
                    _ => 0,
                };
                *depth >= 0
            };
            let list: String = list.chars().take_while(|letter| item(&mut depth, *letter)).collect();
            let mut depth = 0;
            for piece in list.split_inclusive([',', '{', '}']) {
                if depth == 0 {
                    found.extend(words(piece).next().map(str::to_owned));
                }
                depth += i32::from(piece.ends_with('{')) - i32::from(piece.ends_with('}'));
            }
        } else {
            found.extend(words(rest).next().map(str::to_owned));
        }
    }
    // `super` of a module's own file is the crate, and must be called that.
    let parts = file.components().count();
    let leaves = if parts == 2 || file.ends_with("mod.rs") { "super::" } else { "super::super::" };
    assert!(!code.contains(leaves), "{} reaches the crate by {leaves}", file.display());
    found
}

/// The names and keywords in `text`.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|letter: char| !letter.is_alphanumeric() && letter != '_').filter(|word| !word.is_empty())
}

/// The same where a dot is part of a word.
fn words_of_version(text: &str) -> impl Iterator<Item = &str> {
    text.split(|letter: char| !letter.is_alphanumeric() && letter != '.')
}

/// The module below the crate that `file` belongs to.
fn top_module(file: &Path) -> String {
    let first = file.components().nth(1).expect("a file in src").as_os_str();
    Path::new(first).file_stem().expect("a name").to_str().expect("a path of ours").to_owned()
}

/// All Rust files below a folder of the repository, as paths from its root.
fn rust_files(folder: &str) -> Vec<PathBuf> {
    let (mut files, mut folders) = (Vec::new(), vec![PathBuf::from(folder)]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(Path::new(ROOT).join(&folder)).expect("a folder of the repository") {
            let name = entry.expect("an entry").file_name();
            let path = folder.join(&name);
            if Path::new(ROOT).join(&path).is_dir() {
                if name != "target" && name != "node_modules" {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    assert!(!files.is_empty(), "{folder} has no Rust files");
    files.sort();
    files
}

fn read(file: &Path) -> String {
    fs::read_to_string(Path::new(ROOT).join(file))
        .unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}
