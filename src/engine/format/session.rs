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
    /// Labels, 2.4+: resource group, embedded query node …
    #[serde(rename = "ServerLabels")]
    pub server_labels: std::collections::BTreeMap<String, String>,
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
