//! Milvus's own configuration files, flattened to dotted keys with line numbers. Scalars keep their text: `0123` is a
//! password, not 83.

use std::path::{Path, PathBuf};

use serde_saphyr::granit_parser::{Event, Parser};

use super::keys;
use super::origin::{Layer, Origin, Value};
use crate::engine::error::{Error, ErrorKind, Result};

/// Milvus's files of one folder, lowest priority first (`spec/layout.md` §10.1).
const FILES: [&str; 4] = ["milvus.yaml", "_test.yaml", "default.yaml", "user.yaml"];

/// Sections that hold keys we read.
const SECTIONS: [&str; 6] = [
    "etcd",
    "metastore",
    "common",
    "localStorage",
    "minio",
    "dataCoord",
];

/// Deepest nesting that is read.
const DEPTH: usize = 64;

/// Reads a folder as Milvus does, or one file; a file called `milvus.yaml` brings the others of its folder along,
/// because that is what the Milvus beside it runs with (Helm and Docker write to `user.yaml`).
pub(super) fn layer(place: &Path, named_by: &Origin) -> Result<Layer> {
    let folder = if place.is_dir() {
        Some(place)
    } else if place.file_name().is_some_and(|n| n == FILES[0]) && place.is_file() {
        place.parent()
    } else {
        None
    };
    let mut layer = Layer::new();
    let Some(folder) = folder else {
        read(place, named_by, &mut layer)?;
        return Ok(layer);
    };
    let there: Vec<PathBuf> = FILES
        .iter()
        .map(|name| folder.join(name))
        .filter(|file| file.is_file())
        .collect();
    if there.is_empty() {
        return Err(Error::new(
            ErrorKind::Config,
            format!(
                "{named_by}: folder {} has none of {}",
                folder.display(),
                FILES.join(", ")
            ),
        ));
    }
    for file in there {
        read(&file, named_by, &mut layer)?;
    }
    Ok(layer)
}

fn read(file: &Path, named_by: &Origin, layer: &mut Layer) -> Result<()> {
    let text = std::fs::read_to_string(file).map_err(|e| {
        Error::new(
            ErrorKind::Config,
            format!("{named_by}: {} cannot be read: {e}", file.display()),
        )
    })?;
    flatten(file, &text, &mut |key, line, text| {
        if let Some(key) = keys::by_spelling(key) {
            let origin = Origin::MilvusYaml {
                path: file.to_owned(),
                line,
            };
            layer.insert(key.name, Value { text, origin });
        }
    })
}

/// One open collection while events are read.
enum Open {
    /// A map; holds the key whose value comes next, with its line.
    Map(Option<(String, usize)>),
    /// A list of scalars, joined by commas as Milvus does, with the line of its key.
    List(Vec<String>, usize),
}

/// Calls `found(dotted key, line of the key, text)` for each value.
fn flatten(file: &Path, text: &str, found: &mut dyn FnMut(&str, usize, String)) -> Result<()> {
    let at = |line: usize, why: &str| {
        Error::new(
            ErrorKind::Config,
            format!("{}:{line}: {why}", file.display()),
        )
    };
    let mut open: Vec<Open> = Vec::new();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|e| at(e.marker().line(), &one_line(&e.info())))?;
        let line = span.start.line();
        match event {
            Event::Scalar(value, style, ..) => {
                // An unquoted `~`, `null` or nothing is no value.
                let plain = matches!(style, serde_saphyr::granit_parser::ScalarStyle::Plain);
                let value = if plain && matches!(&*value, "~" | "null" | "Null" | "NULL") {
                    String::new()
                } else {
                    value.into_owned()
                };
                if let Some((text, line)) = scalar(&mut open, value, line) {
                    found(&dotted(&open), line, text);
                    close_value(&mut open);
                }
            }
            Event::MappingStart(..) => {
                if matches!(open.last(), Some(Open::Map(None))) {
                    return Err(at(line, "a key must be a word, not a map"));
                }
                if open.len() >= DEPTH {
                    return Err(at(line, "nested too deep"));
                }
                open.push(Open::Map(None));
            }
            Event::SequenceStart(..) => {
                let key_line = match open.last() {
                    Some(Open::Map(Some((_, line)))) => *line,
                    None => return Err(at(line, "a list where keys are expected")),
                    _ => line,
                };
                if open.len() >= DEPTH {
                    return Err(at(line, "nested too deep"));
                }
                open.push(Open::List(Vec::new(), key_line));
            }
            Event::SequenceEnd => {
                if let Some(Open::List(items, line)) = open.pop() {
                    found(&dotted(&open), line, items.join(","));
                    close_value(&mut open);
                }
            }
            Event::MappingEnd => {
                open.pop();
                close_value(&mut open);
            }
            Event::Alias(..) => {
                // What an alias stands for is not followed; where it could hide one of our keys, that must be said.
                let path = dotted(&open);
                let section = path.split('.').next().unwrap_or_default();
                if SECTIONS.contains(&section) || section == "<<" {
                    return Err(at(
                        line,
                        &format!(
                            "{path} is an alias (*name), which is not followed; write the value"
                        ),
                    ));
                }
                close_value(&mut open);
            }
            _ => {}
        }
    }
    Ok(())
}

/// Takes a scalar as key, list item or value; a value is handed back with its key's line.
fn scalar(open: &mut [Open], text: String, line: usize) -> Option<(String, usize)> {
    match open.last_mut()? {
        Open::Map(Some((_, key_line))) => Some((text, *key_line)),
        Open::Map(slot) => {
            *slot = Some((text, line));
            None
        }
        Open::List(items, _) => {
            items.push(text);
            None
        }
    }
}

fn close_value(open: &mut [Open]) {
    if let Some(Open::Map(slot)) = open.last_mut() {
        *slot = None;
    }
}

fn dotted(open: &[Open]) -> String {
    open.iter()
        .filter_map(|o| match o {
            Open::Map(Some((key, _))) => Some(key.as_str()),
            _ => None,
        })
        .collect::<Vec<_>>()
        .join(".")
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
