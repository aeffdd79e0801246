//! Reads the sources and keeps the house rules true: the dependency table, file sizes, and no panics in the engine.

use std::fs;
use std::path::{Path, PathBuf};

/// Path prefix of a room, and what its code must never name. From the dependency table in `src/lib.rs`.
const FORBIDDEN: &[(&str, &[&str])] = &[
    (
        "src/engine/",
        &[
            "ratatui",
            "crossterm",
            "clap",
            "tui_input",
            "color_eyre",
            "crate::ui",
            "crate::cli",
            "crate::config",
        ],
    ),
    (
        "src/engine/ids.rs",
        &["engine::format", "engine::meta", "engine::model", "tokio"],
    ),
    (
        "src/engine/error.rs",
        &["engine::format", "engine::meta", "engine::model", "tokio"],
    ),
    (
        "src/engine/format/",
        &[
            "tokio",
            "engine::meta",
            "engine::objects",
            "engine::model",
            "engine::plan",
            "engine::jobs",
            "engine::wal",
            "engine::broadcast",
            "engine::coordinator",
            "engine::clock",
            "etcd_client",
            "object_store",
            "redb",
            "std::fs",
            "std::net",
        ],
    ),
    (
        "src/engine/model/",
        &[
            "tokio",
            "async fn",
            "engine::objects",
            "engine::plan",
            "engine::jobs",
            "engine::wal",
            "engine::broadcast",
            "engine::coordinator",
            "engine::clock",
            "etcd_client",
            "object_store",
            "redb",
            "std::fs",
            "std::net",
            "MetaRead",
            "MetaWrite",
        ],
    ),
    (
        "src/engine/meta/",
        &[
            "engine::format",
            "engine::model",
            "engine::plan",
            "engine::jobs",
            "object_store",
        ],
    ),
    (
        "src/engine/objects",
        &[
            "engine::format",
            "engine::model",
            "engine::plan",
            "engine::jobs",
            "etcd_client",
            "redb",
        ],
    ),
    (
        "src/engine/plan/",
        &[
            "etcd_client",
            "redb",
            "object_store",
            "engine::jobs",
            "engine::wal",
            "engine::broadcast",
            "engine::coordinator",
        ],
    ),
    (
        "src/engine/wal/",
        &[
            "etcd_client",
            "redb",
            "object_store",
            "engine::jobs",
            "engine::broadcast",
            "engine::coordinator",
            "MetaWrite",
            "ObjectWrite",
        ],
    ),
    (
        "src/engine/broadcast/",
        &[
            "etcd_client",
            "redb",
            "object_store",
            "engine::jobs",
            "engine::objects",
            "engine::coordinator",
            "MetaWrite",
            "ObjectWrite",
        ],
    ),
    (
        "src/engine/coordinator/",
        &[
            "etcd_client",
            "redb",
            "object_store",
            "engine::jobs",
            "engine::objects",
            "MetaWrite",
            "ObjectWrite",
        ],
    ),
    (
        "src/engine/data/",
        &[
            "etcd_client",
            "redb",
            "object_store",
            "engine::jobs",
            "engine::objects",
            "MetaWrite",
            "ObjectWrite",
        ],
    ),
    (
        "src/engine/jobs/",
        &["etcd_client", "redb", "MetaWrite", "ObjectWrite"],
    ),
    (
        "src/ui/",
        &[
            "engine::meta",
            "engine::objects",
            "plan::execute",
            "engine::jobs",
            "engine::wal",
            "engine::broadcast",
            "engine::coordinator",
            "engine::data",
            "etcd_client",
            "object_store",
            "redb",
            "std::fs",
            "crate::cli",
            "MetaWrite",
            "ObjectWrite",
        ],
    ),
    ("src/ui/screens/", &["tokio", "super::super::app::update"]),
    (
        "src/cli",
        &[
            "ratatui",
            "crossterm",
            "crate::ui",
            "etcd_client",
            "object_store",
            "redb",
            "MetaWrite",
            "ObjectWrite",
        ],
    ),
];

/// Production lines a file may have; tests at its end are not counted.
const HARD_LIMIT: usize = 700;

struct Source {
    path: String,
    /// Lines before the test module, comments removed.
    code: Vec<(usize, String)>,
    lines: usize,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    collect(&root.join("src"), &mut files);
    files.sort();
    assert!(files.len() > 10, "only {} source files found", files.len());
    files.iter().map(|file| read(root, file)).collect()
}

fn collect(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

fn read(root: &Path, file: &Path) -> Source {
    let text = fs::read_to_string(file).unwrap();
    let production: Vec<&str> = text
        .lines()
        .take_while(|l| l.trim() != "#[cfg(test)]")
        .collect();
    let lines = production.len();
    let code = production
        .iter()
        .enumerate()
        .map(|(i, l)| (i + 1, strip_comment(l)))
        .filter(|(_, l)| !l.trim().is_empty())
        .collect();
    Source {
        path: file
            .strip_prefix(root)
            .unwrap()
            .to_string_lossy()
            .into_owned(),
        code,
        lines,
    }
}

/// Cuts a line comment; a `//` inside a string literal is left alone.
fn strip_comment(line: &str) -> String {
    let mut in_string = false;
    let bytes = line.as_bytes();
    for i in 0..bytes.len() {
        match bytes[i] {
            b'"' if i == 0 || bytes[i - 1] != b'\\' => in_string = !in_string,
            b'/' if !in_string && bytes.get(i + 1) == Some(&b'/') => return line[..i].to_owned(),
            _ => {}
        }
    }
    line.to_owned()
}

/// `use super::…` inside a room is a path too: spell it from the crate's root.
fn absolute(path: &str, line: &str) -> String {
    let mut dir: Vec<&str> = path
        .trim_start_matches("src/")
        .trim_end_matches(".rs")
        .split('/')
        .collect();
    if dir.last() == Some(&"mod") {
        dir.pop();
    }
    let mut out = line.to_owned();
    while let Some(at) = out.find("super::") {
        let mut up = 0;
        let mut rest = &out[at..];
        while let Some(tail) = rest.strip_prefix("super::") {
            up += 1;
            rest = tail;
        }
        let base = dir[..dir.len().saturating_sub(up)].join("::");
        let base = if base.is_empty() {
            String::new()
        } else {
            format!("{base}::")
        };
        out = format!("{}crate::{base}{rest}", &out[..at]);
    }
    out
}

#[test]
fn dependencies_point_one_way() {
    let mut broken = Vec::new();
    for source in sources() {
        for (room, names) in FORBIDDEN
            .iter()
            .filter(|(room, _)| source.path.starts_with(room))
        {
            for (number, line) in &source.code {
                let spelled = absolute(&source.path, line);
                for name in names.iter().filter(|n| spelled.contains(**n)) {
                    broken.push(format!(
                        "{}:{number}: {room} must not name {name}: {}",
                        source.path,
                        line.trim()
                    ));
                }
            }
        }
    }
    assert!(
        broken.is_empty(),
        "the dependency table is broken:\n{}",
        broken.join("\n")
    );
}

/// A bare store can be asked without a scope (`spec/lifecycle.md` §7 rule 1), so it is named only where stores are made and where they
/// are bound; and only the engine makes a scope that nobody else ends.
#[test]
fn bare_stores_are_bound_where_they_are_opened() {
    const BARE: &[&str] = &[
        "MetaRead",
        "MetaWrite",
        "EtcdStore",
        "EmbeddedStore",
        "EmbeddedReader",
    ];
    const ROOT: &[&str] = &[
        "Scope::root",
        "Scoped::new",
        "MetaReader::new",
        "MetaWriter::new",
    ];
    let opens = |path: &str| {
        path.starts_with("src/engine/meta/")
            || ["src/engine/attach.rs", "src/engine/dynamic.rs"].contains(&path)
    };
    let mut broken = Vec::new();
    for source in sources()
        .iter()
        .filter(|s| s.path.starts_with("src/") && !opens(&s.path))
    {
        for (number, line) in &source.code {
            let root = ROOT.iter().filter(|_| source.path != "src/engine/mod.rs");
            for name in BARE.iter().chain(root) {
                if named(line, name) {
                    broken.push(format!("{}:{number}: {name}: {}", source.path, line.trim()));
                }
            }
        }
    }
    assert!(
        broken.is_empty(),
        "hold a MetaReader or a MetaWriter, bound to a scope of the caller:\n{}",
        broken.join("\n")
    );
}

/// Whether `name` stands there as a word of its own.
fn named(line: &str, name: &str) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(name)
        .any(|(at, _)| !line[..at].ends_with(word) && !line[at + name.len()..].starts_with(word))
}

#[test]
fn screens_do_not_import_each_other() {
    let mut broken = Vec::new();
    let screens = sources()
        .into_iter()
        .filter(|s| s.path.starts_with("src/ui/screens/"));
    for source in screens {
        let own = source
            .path
            .trim_start_matches("src/ui/screens/")
            .trim_end_matches(".rs")
            .to_owned();
        for (number, line) in &source.code {
            let spelled = absolute(&source.path, line);
            if let Some(at) = spelled.find("ui::screens::") {
                let named: String = spelled[at + "ui::screens::".len()..]
                    .chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect();
                if !named.is_empty() && named != own && !own.starts_with(&format!("{named}/")) {
                    broken.push(format!("{}:{number}: {}", source.path, line.trim()));
                }
            }
        }
    }
    assert!(
        broken.is_empty(),
        "screens import each other:\n{}",
        broken.join("\n")
    );
}

#[test]
fn files_stay_small() {
    let long: Vec<String> = sources()
        .iter()
        .filter(|s| s.lines > HARD_LIMIT)
        .map(|s| format!("{}: {} lines", s.path, s.lines))
        .collect();
    assert!(
        long.is_empty(),
        "over {HARD_LIMIT} lines of production code, split by concept:\n{}",
        long.join("\n")
    );
}

#[test]
fn the_engine_has_no_panics() {
    const BANNED: &[&str] = &[
        ".unwrap()",
        ".expect(",
        "panic!(",
        "todo!(",
        "unimplemented!(",
        "unreachable!(",
        "println!(",
    ];
    let mut found = Vec::new();
    for source in sources()
        .iter()
        .filter(|s| s.path.starts_with("src/engine/"))
    {
        for (number, line) in &source.code {
            for name in BANNED.iter().filter(|n| line.contains(**n)) {
                found.push(format!("{}:{number}: {name}", source.path));
            }
        }
    }
    assert!(
        found.is_empty(),
        "the engine must not panic or print:\n{}",
        found.join("\n")
    );
}

#[test]
fn the_rules_can_fail() {
    let line = "    use super::super::meta::MetaRead;";
    assert!(absolute("src/engine/format/keys.rs", line).contains("crate::engine::meta::MetaRead"));
    assert!(
        absolute("src/engine/model/mod.rs", "use super::objects::ObjectRead;")
            .contains("crate::engine::objects")
    );
    assert!(named("meta: Arc<dyn MetaRead>,", "MetaRead"));
    assert!(!named("meta: MetaReader,", "MetaRead"));
    assert_eq!(strip_comment("let a = 1; // unwrap()"), "let a = 1; ");
    assert_eq!(
        strip_comment("let a = \"http://x\";"),
        "let a = \"http://x\";"
    );
}
