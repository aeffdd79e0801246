//! A strict reader of Avro object containers with one record: a storage V3 segment's own manifest (`spec/layout.md` §7.5).
//!
//! `apache-avro` reads text that is missing at the end as null, ignores what is left in a block, and reserves half a gigabyte
//! when thirty bytes ask for it. Here each is an error with its offset, and memory is bounded by the file's length: no list has
//! more items than the file has bytes, and no file more values than `VALUES` allows.

use std::collections::HashMap;
use std::io::Read as _;

use serde_json::Value as Json;

use super::cursor::Cursor;
use crate::engine::error::{Error, ErrorKind, Result, line};

/// First bytes of a container.
pub const MAGIC: &[u8] = b"Obj\x01";

/// Values a file may hold for each of its bytes, and beside them: records without a byte of their own can be nested so that
/// they double with each level.
const VALUES: (usize, usize) = (4, 1024);
/// Deepest nesting of a value.
const DEPTH: usize = 32;
/// Bytes that a compressed block may become for each of its own, and beside them.
const UNPACKED: (usize, usize) = (64, 64 * 1024);

/// A value, borrowed from the file and its schema.
#[derive(Clone, Debug, PartialEq)]
pub enum Datum<'a> {
    /// Null, and what nobody here asks for: numbers, booleans, enums.
    Plain,
    /// Text.
    Text(&'a str),
    /// An array.
    List(Vec<Datum<'a>>),
    /// A map, in the file's order.
    Map(Vec<(&'a str, Datum<'a>)>),
    /// A record.
    Record(Vec<(&'a str, Datum<'a>)>),
}

impl<'a> Datum<'a> {
    /// A record's member, or a map's entry.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Datum<'a>> {
        match self {
            Self::Record(members) | Self::Map(members) => {
                members.iter().find(|(n, _)| *n == name).map(|(_, v)| v)
            }
            _ => None,
        }
    }

    /// The items of a list; none for anything else.
    #[must_use]
    pub fn items(&self) -> &[Datum<'a>] {
        match self {
            Self::List(items) => items,
            _ => &[],
        }
    }

    /// Text.
    #[must_use]
    pub fn text(&self) -> Option<&'a str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// The parts of a container, its block unpacked.
pub struct Container {
    file: String,
    schema: Json,
    block: Vec<u8>,
}

impl Container {
    /// Takes `file` apart: header, exactly one block of exactly one record, nothing behind it.
    pub fn read(file: &str, bytes: &[u8]) -> Result<Self> {
        let mut c = Cursor::new(file, bytes);
        if c.raw(MAGIC.len(), "magic")? != MAGIC {
            return Err(c.fail(0, "magic", "not an Avro container"));
        }
        let (mut schema, mut codec) = (None, None);
        c.array("header", |c| {
            match (c.text("header")?, c.slice("header")?) {
                ("avro.schema", text) => schema = Some(text),
                ("avro.codec", name) => codec = Some(name),
                _ => {}
            }
            Ok(())
        })?;
        let schema = schema
            .and_then(|text| serde_json::from_slice(text).ok())
            .ok_or_else(|| {
                c.fail(
                    MAGIC.len(),
                    "avro.schema",
                    "the schema is missing or not JSON",
                )
            })?;
        let marker = c.raw(16, "marker")?;
        let at = c.at();
        if c.long("block")? != 1 {
            return Err(c.fail(at, "block", "not one record"));
        }
        let block = c.slice("block")?;
        if c.raw(16, "marker")? != marker {
            return Err(c.fail(at, "marker", "the block does not end where its length says"));
        }
        c.end()?;
        let block = match codec {
            None | Some(b"null") => block.to_vec(),
            Some(b"deflate") => inflate(block).map_err(|why| c.fail(at, "block", why))?,
            Some(other) => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!(
                        "the manifest is packed with {}, which this build does not read",
                        line(&String::from_utf8_lossy(other), 40)
                    ),
                )
                .with("file", file)
                .fix("compact the segment with a newer Milvus, then take a new snapshot"));
            }
        };
        Ok(Self {
            file: file.to_owned(),
            schema,
            block,
        })
    }

    /// Its record.
    pub fn record(&self) -> Result<Datum<'_>> {
        let mut names = HashMap::new();
        name(&self.schema, &mut names);
        let mut walk = Walk {
            c: Cursor::new(&self.file, &self.block),
            names,
            left: self.block.len() * VALUES.0 + VALUES.1,
        };
        let value = walk.value(&self.schema, 0)?;
        walk.c.end()?;
        Ok(value)
    }
}

fn inflate(block: &[u8]) -> Result<Vec<u8>, &'static str> {
    let limit = block.len() * UNPACKED.0 + UNPACKED.1;
    let mut out = Vec::new();
    flate2::read::DeflateDecoder::new(block)
        .take(limit as u64 + 1)
        .read_to_end(&mut out)
        .map_err(|_| "a packed block that cannot be unpacked")?;
    if out.len() > limit {
        return Err("a packed block that unpacks to far more than a manifest");
    }
    Ok(out)
}

/// Named types by their name, with and without the namespace. JSON is at most 128 levels deep, and so is this.
fn name<'a>(schema: &'a Json, names: &mut HashMap<&'a str, &'a Json>) {
    match schema {
        Json::Array(parts) => parts.iter().for_each(|part| name(part, names)),
        Json::Object(members) => {
            if let (Some(Json::String(own)), Some("record" | "enum" | "fixed")) = (
                members.get("name"),
                members.get("type").and_then(Json::as_str),
            ) {
                names.insert(own, schema);
                names.insert(own.rsplit('.').next().unwrap_or(own), schema);
            }
            for part in ["type", "items", "values"] {
                members
                    .get(part)
                    .into_iter()
                    .for_each(|part| name(part, names));
            }
            for field in members
                .get("fields")
                .and_then(Json::as_array)
                .into_iter()
                .flatten()
            {
                field
                    .get("type")
                    .into_iter()
                    .for_each(|part| name(part, names));
            }
        }
        _ => {}
    }
}

struct Walk<'a> {
    c: Cursor<'a>,
    names: HashMap<&'a str, &'a Json>,
    /// Values that may still come.
    left: usize,
}

impl<'a> Walk<'a> {
    fn bad(&self, why: &str) -> Error {
        self.c.fail(self.c.at(), "schema", why)
    }

    fn value(&mut self, schema: &'a Json, depth: usize) -> Result<Datum<'a>> {
        if depth > DEPTH {
            return Err(self.bad("nested too deep"));
        }
        self.left = self
            .left
            .checked_sub(1)
            .ok_or_else(|| self.bad("more values than a file of this length can hold"))?;
        match schema {
            Json::String(kind) => self.named(kind, depth),
            Json::Array(variants) => {
                let at = self.c.at();
                let index = self.c.long("union")?;
                let variant = usize::try_from(index).ok().and_then(|i| variants.get(i));
                let variant = variant.ok_or_else(|| self.c.fail(at, "union", "no such variant"))?;
                self.value(variant, depth + 1)
            }
            Json::Object(members) => match members.get("type") {
                Some(Json::String(kind)) => match kind.as_str() {
                    "record" => self.record(members, depth),
                    "array" => {
                        let items = members
                            .get("items")
                            .ok_or_else(|| self.bad("an array of nothing"))?;
                        let mut out = Vec::new();
                        self.blocks(|walk| {
                            out.push(walk.value(items, depth + 1)?);
                            Ok(())
                        })?;
                        Ok(Datum::List(out))
                    }
                    "map" => {
                        let values = members
                            .get("values")
                            .ok_or_else(|| self.bad("a map of nothing"))?;
                        let mut out = Vec::new();
                        self.blocks(|walk| {
                            out.push((walk.c.text("key")?, walk.value(values, depth + 1)?));
                            Ok(())
                        })?;
                        Ok(Datum::Map(out))
                    }
                    "enum" => self.c.long("enum").map(|_| Datum::Plain),
                    "fixed" => {
                        let size = members.get("size").and_then(Json::as_u64);
                        let size = size
                            .and_then(|size| usize::try_from(size).ok())
                            .ok_or_else(|| self.bad("a fixed type without a size"))?;
                        self.c.raw(size, "fixed").map(|_| Datum::Plain)
                    }
                    kind => self.named(kind, depth),
                },
                Some(inner) => self.value(inner, depth + 1),
                None => Err(self.bad("a type without a kind")),
            },
            _ => Err(self.bad("not a type")),
        }
    }

    /// A primitive, or a type that was named before.
    fn named(&mut self, kind: &str, depth: usize) -> Result<Datum<'a>> {
        match kind {
            "null" => {}
            "boolean" => drop(self.c.boolean("boolean")?),
            "int" | "long" => drop(self.c.long("number")?),
            "float" => drop(self.c.raw(4, "float")?),
            "double" => drop(self.c.raw(8, "double")?),
            "bytes" => drop(self.c.slice("bytes")?),
            "string" => return self.c.text("text").map(Datum::Text),
            name => {
                let named = self.names.get(name).or_else(|| {
                    let short = name.rsplit('.').next().unwrap_or(name);
                    self.names.get(short)
                });
                let schema: &'a Json = named
                    .copied()
                    .ok_or_else(|| self.bad("a type that is not described"))?;
                return self.value(schema, depth + 1);
            }
        }
        Ok(Datum::Plain)
    }

    fn record(
        &mut self,
        members: &'a serde_json::Map<String, Json>,
        depth: usize,
    ) -> Result<Datum<'a>> {
        let fields = members.get("fields").and_then(Json::as_array);
        let fields = fields.ok_or_else(|| self.bad("a record without fields"))?;
        let mut out = Vec::new();
        for field in fields {
            let (Some(Json::String(name)), Some(kind)) = (field.get("name"), field.get("type"))
            else {
                return Err(self.bad("a field without name or type"));
            };
            out.push((name.as_str(), self.value(kind, depth + 1)?));
        }
        Ok(Datum::Record(out))
    }

    /// [`Cursor::array`] for items that need the whole walk.
    fn blocks(&mut self, mut item: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        while let Some(block) = self.c.block("items")? {
            for _ in 0..block.items {
                item(self)?;
            }
            self.c.end_block(&block, "items")?;
        }
        Ok(())
    }
}
