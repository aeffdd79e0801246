//! The laws of the metadata store, held against every implementation.

mod support;

#[path = "support/model_store.rs"]
mod model_store;

#[path = "meta/conformance.rs"]
mod conformance;
#[path = "meta/embedded.rs"]
mod embedded;
#[path = "meta/etcd.rs"]
mod etcd;
#[path = "meta/reflector.rs"]
mod reflector;
