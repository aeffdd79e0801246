//! What a broadcast excludes others from (§II.2).

use std::collections::BTreeMap;
use std::fmt;

use crate::engine::format::pb::messages::{ResourceDomain, ResourceKey};

/// A thing that can be locked. The domain is Milvus's number: one that this version has no name for locks like any other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Resource {
    /// `ResourceDomain`.
    pub domain: i32,
    /// Its name in the domain, e.g. `default:books`.
    pub key: String,
}

impl Resource {
    /// Of a known domain.
    pub fn new(domain: ResourceDomain, key: impl Into<String>) -> Self {
        Self {
            domain: domain as i32,
            key: key.into(),
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match ResourceDomain::try_from(self.domain) {
            Ok(domain) => {
                let name = domain.as_str_name();
                f.write_str(name.strip_prefix("ResourceDomain").unwrap_or(name))?;
            }
            Err(_) => write!(f, "domain {}", self.domain)?,
        }
        write!(f, " {}", self.key)
    }
}

/// A set of locks in its one order: by domain, then by key, each once. Shared and exclusive on the same thing are exclusive. The
/// cluster is always among them, shared unless asked for alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceKeys(BTreeMap<Resource, bool>);

impl ResourceKeys {
    /// From things and whether others may share them.
    pub fn new(wanted: impl IntoIterator<Item = (Resource, bool)>) -> Self {
        let mut keys = BTreeMap::new();
        for (resource, shared) in wanted {
            *keys.entry(resource).or_insert(true) &= shared;
        }
        let cluster = ResourceDomain::Cluster as i32;
        if !keys.keys().any(|r| r.domain == cluster) {
            keys.insert(Resource::new(ResourceDomain::Cluster, ""), true);
        }
        Self(keys)
    }

    /// What an operation on a collection keeps others from (§II.2 rule 6): the database shared, the name alone. Everybody asks here, or
    /// two operations on one collection would not meet.
    #[must_use]
    pub fn of_collection(database: &str, name: &str) -> Self {
        Self::collection(database, name, false)
    }

    /// The same for one that only must not lose the collection under its hands.
    #[must_use]
    pub fn beside_collection(database: &str, name: &str) -> Self {
        Self::collection(database, name, true)
    }

    /// And a snapshot's name, alone.
    #[must_use]
    pub fn with_snapshot(mut self, name: &str) -> Self {
        let of = Resource::new(ResourceDomain::SnapshotName, name);
        self.0.insert(of, false);
        self
    }

    fn collection(database: &str, name: &str, shared: bool) -> Self {
        let of = Resource::new(ResourceDomain::CollectionName, format!("{database}:{name}"));
        let db = Resource::new(ResourceDomain::DbName, database);
        Self::new([(db, true), (of, shared)])
    }

    /// As a record has them.
    #[must_use]
    pub fn from_pb(keys: &[ResourceKey]) -> Self {
        Self::new(keys.iter().map(|k| {
            let resource = Resource {
                domain: k.domain,
                key: k.key.clone(),
            };
            (resource, k.shared)
        }))
    }

    /// As a record keeps them.
    #[must_use]
    pub fn to_pb(&self) -> Vec<ResourceKey> {
        self.iter()
            .map(|(resource, shared)| ResourceKey {
                domain: resource.domain,
                key: resource.key.clone(),
                shared,
            })
            .collect()
    }

    /// Things, and whether others may share them.
    pub fn iter(&self) -> impl Iterator<Item = (&Resource, bool)> {
        self.0.iter().map(|(resource, shared)| (resource, *shared))
    }

    /// The thing that keeps the two apart, if one does.
    #[must_use]
    pub fn conflict<'a>(&'a self, other: &Self) -> Option<&'a Resource> {
        self.iter()
            .find(|(resource, shared)| {
                other
                    .0
                    .get(resource)
                    .is_some_and(|theirs| !(*shared && *theirs))
            })
            .map(|(resource, _)| resource)
    }
}
