//! The cluster's own configuration overlay, `<root>/config/` in etcd (`spec/layout.md` §10.3), read before the bucket is opened.

use std::sync::Arc;

use super::Engine;
use super::clock::Clock;
use super::error::Result;
use super::ids::KeyPrefix;
use super::meta::Span;
use super::meta::etcd::EtcdStore;
use super::meta::scope::Scope;
use super::meta::scoped::Scoped;
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
        let scope = Scope::root(clock.clone(), "reading the cluster's configuration");
        let store = EtcdStore::connect(etcd, clock).await?;
        let store = Scoped::new(Arc::new(store), &scope);
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
