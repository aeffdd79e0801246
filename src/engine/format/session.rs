//! Session values: who is registered (`spec/layout.md` §1.2).

use serde::Deserialize;

use crate::engine::error::line;

/// A session. Zero-valued members are left out by Milvus, so everything has a default; unknown members are ignored
/// (sessions are read, never written).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Session {
    /// The server's id.
    #[serde(rename = "ServerID")]
    pub server_id: i64,
    /// The role's name.
    #[serde(rename = "ServerName")]
    pub server_name: String,
    /// `host:port`.
    #[serde(rename = "Address")]
    pub address: String,
    /// Only one server of the role may be active.
    #[serde(rename = "Exclusive")]
    pub exclusive: bool,
    /// Shutting down.
    #[serde(rename = "Stopping")]
    pub stopping: bool,
    /// The server's version.
    #[serde(rename = "Version")]
    pub version: String,
    /// The lease the key is bound to. Larger than 2^53.
    #[serde(rename = "LeaseID")]
    pub lease_id: i64,
    /// The machine's name.
    #[serde(rename = "HostName")]
    pub host_name: String,
    /// What index files of vectors it loads.
    #[serde(rename = "IndexEngineVersion")]
    pub index_engine: EngineVersion,
    /// What index files of scalars it loads, 2.5+.
    #[serde(rename = "ScalarIndexEngineVersion")]
    pub scalar_index_engine: EngineVersion,
    /// Labels, 2.4+: resource group, embedded query node …
    #[serde(rename = "ServerLabels")]
    pub server_labels: std::collections::BTreeMap<String, String>,
}

/// Versions of index files that a node builds and loads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct EngineVersion {
    /// The one it builds.
    #[serde(rename = "CurrentIndexVersion")]
    pub current: i32,
    /// The newest it loads, where it says so (2.6.14+).
    #[serde(rename = "MaximumIndexVersion")]
    pub maximum: i32,
}

impl EngineVersion {
    /// The newest it loads.
    #[must_use]
    pub fn most(self) -> i32 {
        self.maximum.max(self.current)
    }
}

impl Session {
    /// Reads a session's value; the error is the reason for an undecodable row.
    pub fn parse(value: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(value)
            .map_err(|cause| format!("not a session: {}", line(&cause.to_string(), 200)))
    }

    /// Whether this query node lives inside a streaming node.
    #[must_use]
    pub fn is_streaming_embedded(&self) -> bool {
        ["STREAMING-EMBEDDED", "QUERYNODE_STREAMING-EMBEDDED"]
            .iter()
            .any(|label| self.server_labels.get(*label).is_some_and(|v| v == "1"))
    }
}
