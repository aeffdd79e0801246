//! A collection as an operator describes it, and the schema that it comes to (`spec/layout.md` §2.3, §2.4): names, types and limits
//! as Milvus's proxy checks them. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::ddl::DEFAULT_PARTITION;
use crate::engine::error::{Error, ErrorKind, Result};
use crate::engine::format::pb::common::{ConsistencyLevel, KeyValuePair};
use crate::engine::format::pb::schema::{CollectionSchema, DataType, FieldSchema};

/// `proxy.maxNameLength`, bytes.
const NAME: usize = 255;
/// `proxy.maxFieldNum`.
const FIELDS: usize = 64;
/// `proxy.maxVectorFieldNum`.
const VECTORS: usize = 4;
/// `proxy.maxShardNum`.
pub const SHARDS: u32 = 16;
/// `rootCoord.maxPartitionNum`.
pub const PARTITIONS: u32 = 1_024;
/// Partitions of a collection with a partition key, when nobody says how many.
const BY_KEY: u32 = 16;
/// Largest `dim` (`proxy.maxDimension`).
const DIM: u32 = 32_768;
/// Largest `max_length` of a VarChar.
const LENGTH: u32 = 65_535;
/// Largest `max_capacity` of an Array (`proxy.maxArrayCapacity`).
const CAPACITY: u32 = 4_096;
/// First id of a user's field; below it are `RowID` and `Timestamp`.
const FIRST_FIELD: i64 = 100;
/// The field that takes what no other has.
const DYNAMIC: &str = "$meta";

/// A collection that is wanted. Also the form of a `--schema` file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CollectionSpec {
    /// Fields, in order.
    pub fields: Vec<FieldSpec>,
    /// What it is for.
    pub description: String,
    /// Takes fields that the schema does not name.
    pub dynamic: bool,
    /// Virtual channels; 1 when absent.
    pub shards: Option<u32>,
    /// Partitions, only with a partition key.
    pub partitions: Option<u32>,
    /// `strong`, `session`, `bounded` (when absent) or `eventually`.
    pub consistency: Option<String>,
    /// Properties, e.g. `collection.ttl.seconds`.
    pub properties: BTreeMap<String, String>,
}

/// A field that is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FieldSpec {
    /// Its name.
    pub name: String,
    /// Its type as Milvus's clients write it, any case: `int64`, `varchar`, `float_vector`, …
    #[serde(rename = "type")]
    pub data_type: String,
    /// The primary key.
    pub primary: bool,
    /// Milvus gives the primary key out.
    pub auto_id: bool,
    /// Rows are spread over partitions by it.
    pub partition_key: bool,
    /// Rows may leave it out.
    pub nullable: bool,
    /// Of a vector.
    pub dim: Option<u32>,
    /// Of a VarChar, bytes.
    pub max_length: Option<u32>,
    /// Of an Array, elements.
    pub max_capacity: Option<u32>,
    /// Of an Array.
    pub element: Option<String>,
    /// What it is for.
    pub description: String,
}

fn invalid(what: impl Into<String>, fix: impl Into<String>) -> Error {
    Error::new(ErrorKind::Invalid, what).fix(fix)
}

/// A name of a collection, a partition, a field or an index: a letter or `_`, then letters, digits, `_` and `$`.
pub fn check_name(what: &str, name: &str) -> Result<()> {
    let why = if name.is_empty() {
        "is empty"
    } else if name.len() > NAME {
        "is longer than 255 bytes"
    } else if !name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
        "does not begin with a letter or _"
    } else if !name
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '$')
    {
        "holds another character"
    } else {
        return Ok(());
    };
    Err(invalid(
        format!("{what} name {name:?} {why}"),
        "use a letter or _ first, then letters, digits, _ or $, at most 255 bytes",
    ))
}

/// A type by the name that Milvus's clients use.
pub fn data_type(name: &str) -> Result<DataType> {
    let plain = |text: &str| text.replace('_', "").to_ascii_lowercase();
    let known = [
        DataType::Bool,
        DataType::Int8,
        DataType::Int16,
        DataType::Int32,
        DataType::Int64,
        DataType::Float,
        DataType::Double,
        DataType::VarChar,
        DataType::Array,
        DataType::Json,
        DataType::BinaryVector,
        DataType::FloatVector,
        DataType::Float16Vector,
        DataType::BFloat16Vector,
        DataType::SparseFloatVector,
        DataType::Int8Vector,
    ];
    let found = known.iter().find(|t| plain(t.as_str_name()) == plain(name));
    found.copied().ok_or_else(|| {
        let names: Vec<String> = known
            .iter()
            .map(|t| t.as_str_name().to_ascii_lowercase())
            .collect();
        invalid(
            format!("there is no field type {name:?} here"),
            format!("use one of {}", names.join(", ")),
        )
    })
}

/// Whether the values are vectors.
#[must_use]
pub const fn is_vector(of: DataType) -> bool {
    matches!(
        of,
        DataType::BinaryVector
            | DataType::FloatVector
            | DataType::Float16Vector
            | DataType::BFloat16Vector
            | DataType::SparseFloatVector
            | DataType::Int8Vector
    )
}

impl FieldSpec {
    /// From `NAME:TYPE[:NUMBER][:pk|auto|partition-key|null]…`, the number being `dim` or `max_length`.
    pub fn parse(text: &str) -> Result<Self> {
        let mut parts = text.split(':');
        let (Some(name), Some(kind)) = (parts.next(), parts.next()) else {
            return Err(invalid(
                format!("field {text:?} has no type"),
                "write it like id:int64:pk, title:varchar:256 or v:float_vector:768",
            ));
        };
        let mut field = Self {
            name: name.to_owned(),
            data_type: kind.to_owned(),
            ..Self::default()
        };
        let of = data_type(kind)?;
        for part in parts {
            match (part, part.parse::<u32>()) {
                ("pk", _) => field.primary = true,
                ("auto", _) => field.auto_id = true,
                ("partition-key", _) => field.partition_key = true,
                ("null", _) => field.nullable = true,
                (_, Ok(n)) if is_vector(of) => field.dim = Some(n),
                (_, Ok(n)) if of == DataType::VarChar => field.max_length = Some(n),
                (_, Ok(n)) if of == DataType::Array => field.max_capacity = Some(n),
                (element, _) if of == DataType::Array && data_type(element).is_ok() => {
                    field.element = Some(element.to_owned());
                }
                _ => {
                    return Err(invalid(
                        format!(
                            "field {text:?}: {part:?} says nothing about a field of type {kind}"
                        ),
                        "use pk, auto, partition-key, null, or the dimension or length as a number",
                    ));
                }
            }
        }
        Ok(field)
    }

    fn schema(&self, id: i64) -> Result<FieldSchema> {
        check_name("field", &self.name)?;
        if matches!(self.name.as_str(), "RowID" | "Timestamp") || self.name.starts_with('$') {
            return Err(invalid(
                format!("field name {} is Milvus's own", self.name),
                "choose another name",
            ));
        }
        let of = data_type(&self.data_type)?;
        let element = self.element.as_deref().map(data_type).transpose()?;
        let bad = |why: String, fix: &str| Err(invalid(format!("field {}: {why}", self.name), fix));
        let dim = is_vector(of) && of != DataType::SparseFloatVector;
        if self.primary && !matches!(of, DataType::Int64 | DataType::VarChar) {
            return bad(
                format!("a primary key cannot be {}", of.as_str_name()),
                "use int64 or varchar",
            );
        }
        if self.partition_key
            && (self.primary || !matches!(of, DataType::Int64 | DataType::VarChar))
        {
            return bad(
                "a partition key is an int64 or a varchar that is not the primary key".into(),
                "choose another field",
            );
        }
        if self.auto_id && !self.primary {
            return bad("only the primary key can be given out".into(), "drop auto");
        }
        if self.nullable && (self.primary || self.partition_key || is_vector(of)) {
            return bad("it cannot be null".into(), "drop null");
        }
        if dim != self.dim.is_some() {
            return bad(
                if dim {
                    "it has no dimension"
                } else {
                    "it has a dimension"
                }
                .into(),
                "give dense vectors a dimension, e.g. v:float_vector:768, and nothing else",
            );
        }
        if let Some(d) = self.dim
            && (!(2..=DIM).contains(&d) || (of == DataType::BinaryVector && d % 8 != 0))
        {
            return bad(
                format!("dimension {d} is not allowed"),
                "use 2 to 32768, for binary vectors a multiple of 8",
            );
        }
        let text = of == DataType::VarChar || element == Some(DataType::VarChar);
        if text != self.max_length.is_some()
            || self.max_length.is_some_and(|n| n == 0 || n > LENGTH)
        {
            return bad(
                "a varchar, and nothing else, has a length".into(),
                "give it 1 to 65535 bytes, e.g. title:varchar:256",
            );
        }
        if (of == DataType::Array)
            != (element
                .is_some_and(|e| !is_vector(e) && !matches!(e, DataType::Array | DataType::Json))
                && self
                    .max_capacity
                    .is_some_and(|n| (1..=CAPACITY).contains(&n)))
            || (of != DataType::Array && (element.is_some() || self.max_capacity.is_some()))
        {
            return bad(
                "an array, and nothing else, has elements of a plain type and a capacity".into(),
                "write it like tags:array:varchar:100, with \"max_length\" in a --schema file",
            );
        }
        let params = [
            ("dim", self.dim),
            ("max_length", self.max_length),
            ("max_capacity", self.max_capacity),
        ];
        let params = params.into_iter().filter_map(|(key, value)| {
            Some(KeyValuePair {
                key: key.into(),
                value: value?.to_string(),
            })
        });
        Ok(FieldSchema {
            field_id: id,
            name: self.name.clone(),
            description: self.description.clone(),
            is_primary_key: self.primary,
            auto_id: self.auto_id,
            is_partition_key: self.partition_key,
            nullable: self.nullable,
            data_type: of as i32,
            element_type: element.unwrap_or(DataType::None) as i32,
            type_params: params.collect(),
            ..FieldSchema::default()
        })
    }
}

impl CollectionSpec {
    /// Virtual channels.
    pub fn shard_count(&self) -> Result<u32> {
        let shards = self.shards.unwrap_or(1);
        if (1..=SHARDS).contains(&shards) {
            return Ok(shards);
        }
        Err(invalid(
            format!("{shards} shards are not allowed"),
            "use 1 to 16",
        ))
    }

    /// `ConsistencyLevel`.
    pub fn level(&self) -> Result<ConsistencyLevel> {
        Ok(match self.consistency.as_deref() {
            None | Some("bounded") => ConsistencyLevel::Bounded,
            Some("strong") => ConsistencyLevel::Strong,
            Some("session") => ConsistencyLevel::Session,
            Some("eventually") => ConsistencyLevel::Eventually,
            Some(other) => {
                return Err(invalid(
                    format!("there is no consistency level {other:?}"),
                    "use strong, session, bounded or eventually",
                ));
            }
        })
    }

    /// Names of the first partitions (`spec/layout.md` §2.4 rule 3).
    pub fn partition_names(&self) -> Result<Vec<String>> {
        let by_key = self.fields.iter().any(|f| f.partition_key);
        match (by_key, self.partitions) {
            (false, None) => Ok(vec![DEFAULT_PARTITION.to_owned()]),
            (false, Some(_)) => Err(invalid(
                "a number of partitions is given and there is no partition key",
                "name the field with --partition-key, or drop the number",
            )),
            (true, n) => {
                let n = n.unwrap_or(BY_KEY);
                if !(1..=PARTITIONS).contains(&n) {
                    return Err(invalid(
                        format!("{n} partitions are not allowed"),
                        "use 1 to 1024",
                    ));
                }
                Ok((0..n).map(|i| format!("{DEFAULT_PARTITION}_{i}")).collect())
            }
        }
    }

    /// The whole schema: the user's fields from id 100, `$meta` if it is dynamic, `RowID` and `Timestamp`. Properties are the
    /// collection's own, with its consistency level, as a message carries them.
    pub fn schema(&self, database: &str, name: &str) -> Result<CollectionSchema> {
        check_name("collection", name)?;
        let mut names = BTreeSet::new();
        if let Some(twice) = self.fields.iter().find(|f| !names.insert(f.name.as_str())) {
            return Err(invalid(
                format!("field {} is given twice", twice.name),
                "drop one",
            ));
        }
        let mut fields = (FIRST_FIELD..)
            .zip(&self.fields)
            .map(|(id, field)| field.schema(id))
            .collect::<Result<Vec<_>>>()?;
        let count =
            |which: &dyn Fn(&FieldSchema) -> bool| fields.iter().filter(|f| which(f)).count();
        let vectors = count(&|f| is_vector(f.data_type()));
        let wrong = if count(&|f| f.is_primary_key) != 1 {
            Some((
                "it needs one primary key",
                "mark one field, e.g. --field id:int64:pk",
            ))
        } else if count(&|f| f.is_partition_key) > 1 {
            Some(("it has several partition keys", "keep one"))
        } else if vectors == 0 || vectors > VECTORS {
            Some((
                "it needs 1 to 4 vector fields",
                "add one, e.g. --field v:float_vector:768",
            ))
        } else if fields.len() > FIELDS {
            Some(("it has more than 64 fields", "use fewer, or dynamic fields"))
        } else {
            None
        };
        if let Some((why, fix)) = wrong {
            return Err(invalid(format!("collection {name}: {why}"), fix));
        }
        self.shard_count()?;
        self.partition_names()?;
        if self.dynamic {
            fields.push(FieldSchema {
                field_id: FIRST_FIELD + i64::try_from(fields.len()).unwrap_or(0),
                name: DYNAMIC.into(),
                description: "dynamic schema".into(),
                data_type: DataType::Json as i32,
                is_dynamic: true,
                ..FieldSchema::default()
            });
        }
        for (id, name, description) in [(0, "RowID", "row id"), (1, "Timestamp", "time stamp")] {
            fields.push(FieldSchema {
                field_id: id,
                name: name.into(),
                description: description.into(),
                data_type: DataType::Int64 as i32,
                ..FieldSchema::default()
            });
        }
        let mut properties: Vec<KeyValuePair> = self
            .properties
            .iter()
            .map(|(key, value)| KeyValuePair {
                key: key.clone(),
                value: value.clone(),
            })
            .collect();
        if let Some(ours) = properties
            .iter()
            .find(|p| matches!(p.key.as_str(), super::ddl::TRUNCATING | CONSISTENCY))
        {
            return Err(invalid(
                format!("property {} is not a collection's to set", ours.key),
                "drop it; a consistency level has an option of its own",
            ));
        }
        properties.push(KeyValuePair {
            key: CONSISTENCY.into(),
            value: (self.level()? as i32).to_string(),
        });
        Ok(CollectionSchema {
            name: name.to_owned(),
            description: self.description.clone(),
            fields,
            enable_dynamic_field: self.dynamic,
            properties,
            db_name: database.to_owned(),
            ..CollectionSchema::default()
        })
    }
}

/// The property of a schema on its way that holds the consistency level's number.
pub const CONSISTENCY: &str = "consistency_level";

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(fields: &[&str]) -> CollectionSpec {
        let fields = fields.iter().map(|f| FieldSpec::parse(f).unwrap());
        CollectionSpec {
            fields: fields.collect(),
            ..CollectionSpec::default()
        }
    }

    #[test]
    fn fields_get_ids_and_parameters() {
        let mut it = spec(&[
            "id:int64:pk:auto",
            "t:varchar:99:partition-key",
            "v:float_vector:8",
        ]);
        it.dynamic = true;
        it.partitions = Some(3);
        let schema = it.schema("default", "books").unwrap();
        let seen: Vec<(i64, &str)> = schema
            .fields
            .iter()
            .map(|f| (f.field_id, f.name.as_str()))
            .collect();
        assert_eq!(
            seen,
            [
                (100, "id"),
                (101, "t"),
                (102, "v"),
                (103, "$meta"),
                (0, "RowID"),
                (1, "Timestamp")
            ]
        );
        assert_eq!(schema.fields[1].type_params[0].value, "99");
        assert_eq!(schema.fields[2].type_params[0].key, "dim");
        assert_eq!(
            it.partition_names().unwrap(),
            ["_default_0", "_default_1", "_default_2"]
        );
        assert_eq!(schema.properties[0].value, "2", "bounded");
    }

    #[test]
    fn what_milvus_would_refuse_is_refused_with_a_fix() {
        let refused = |fields: &[&str]| {
            let e = spec(fields).schema("default", "books").unwrap_err();
            assert!(
                e.to_string().contains("fix") || e.kind() == ErrorKind::Invalid,
                "{e}"
            );
            e.what().to_owned()
        };
        assert!(refused(&["v:float_vector:8"]).contains("primary key"));
        assert!(refused(&["id:int64:pk"]).contains("vector"));
        assert!(refused(&["id:float:pk", "v:float_vector:8"]).contains("cannot be Float"));
        assert!(refused(&["id:int64:pk", "v:float_vector"]).contains("no dimension"));
        assert!(refused(&["id:int64:pk", "v:binary_vector:9"]).contains("dimension 9"));
        assert!(refused(&["id:varchar:pk", "v:float_vector:8"]).contains("length"));
        assert!(refused(&["id:int64:pk", "id:int8", "v:float_vector:8"]).contains("twice"));
        assert!(refused(&["id:int64:pk:null", "v:float_vector:8"]).contains("null"));
        assert!(
            refused(&["id:int64:pk", "a:array:varchar:9", "v:float_vector:8"]).contains("length")
        );
        assert!(FieldSpec::parse("id").is_err() && FieldSpec::parse("id:int:pk").is_err());
        assert!(FieldSpec::parse("id:int64:9").is_err());
        let good = spec(&["id:int64:pk", "a:array:int32:9", "s:sparse_float_vector"]);
        good.schema("default", "books").unwrap();
        assert!(good.schema("default", "1books").is_err());
    }
}
