//! The cluster's own configuration overlay, `<root>/config/` in etcd (`spec/layout.md` §10.3), read before the bucket is opened.

use std::sync::Arc;

use super::Engine;
use super::clock::Clock;
use super::error::Result;
use super::ids::KeyPrefix;
use super::meta::etcd::EtcdStore;
use super::meta::{MetaRead, Span};
use super::profile::{MetaProfile, Profile};

impl Engine {
    /// Every key under `prefix` as (whole key, text); empty when the metadata is not in etcd.
    pub async fn dynamic_config(
        profile: &Profile,
        prefix: &str,
        clock: Arc<dyn Clock>,
    ) -> Result<Vec<(String, String)>> {
        let MetaProfile::Etcd(etcd) = &profile.meta else {
            return Ok(Vec::new());
        };
        let store = EtcdStore::connect(etcd, clock).await?;
        let prefix = KeyPrefix::new(prefix);
        let page = store.range_all(&Span::prefix(&prefix)).await?;
        let pair = |kv: super::meta::KeyValue| {
            (
                kv.key.text(),
                String::from_utf8_lossy(&kv.value).into_owned(),
            )
        };
        Ok(page.kvs.into_iter().map(pair).collect())
    }
}
