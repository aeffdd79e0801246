//! What the engine reads of the captured cluster, against what that cluster's own server said of itself.
//!
//! The same comparison runs over a dump file, over the embedded store, and over a real etcd.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use falconer::engine::Engine;
use falconer::engine::clock::{SystemClock, SystemEntropy};
use falconer::engine::dump;
use falconer::engine::error::ErrorKind;
use falconer::engine::handle::{Conn, Handle};
use falconer::engine::ids::{MetaKey, MetaRev};
use falconer::engine::meta::KeyValue;
use falconer::engine::meta::embedded::EmbeddedStore;
use falconer::engine::model::catalog::Catalog;
use falconer::engine::model::data::Collection;
use falconer::engine::model::facts::Tolerances;
use falconer::engine::model::view::{Rollback, Seek};
use falconer::engine::profile::{Access, EtcdProfile, MetaProfile, Profile, Roots};
use serde_json::Value;
use support::lab;
use support::servers::{Etcd, EtcdVersion};

fn profile(meta: MetaProfile) -> Profile {
    Profile {
        name: "test".into(),
        meta,
        objects: None,
        roots: Roots::default(),
        access: Access::ReadOnly,
        gc: Tolerances::default(),
    }
}

async fn open(meta: MetaProfile) -> Handle {
    let clock = Arc::new(SystemClock::new());
    Engine::open(profile(meta), clock, Arc::new(SystemEntropy))
        .await
        .expect("the engine opens")
}

/// The first whole catalog.
async fn whole(handle: &mut Handle) -> Arc<Catalog> {
    loop {
        let conn = handle.conn.borrow_and_update().clone();
        match conn {
            Conn::Live { .. } | Conn::Static { .. } => return handle.catalog.borrow().clone(),
            Conn::Connecting {
                attempt,
                why: Some(why),
            } if attempt > 5 => panic!("{why}"),
            _ => handle.conn.changed().await.expect("the engine runs"),
        }
    }
}

fn keyspace() -> Vec<KeyValue> {
    lab::etcd()
        .into_iter()
        .map(|k| KeyValue {
            key: MetaKey(Bytes::from(k.key)),
            value: Bytes::from(k.value),
            create_rev: MetaRev(k.create_revision),
            mod_rev: MetaRev(k.mod_revision),
            version: k.version,
            lease: k.lease,
        })
        .collect()
}

fn write_plain_dump(path: &Path) {
    let mut file = std::fs::File::create(path).expect("a file");
    for kv in keyspace() {
        let line = serde_json::json!({
            "key_b64": BASE64_STANDARD.encode(&kv.key.0),
            "value_b64": BASE64_STANDARD.encode(&kv.value),
            "mod_revision": kv.mod_rev.0,
        });
        writeln!(file, "{line}").expect("a line");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_reads_as_the_server_said() {
    let mut packed = open(MetaProfile::Dump {
        file: lab::path("etcd.jsonl.gz"),
    })
    .await;
    assert_eq!(packed.place.attach, "dump");
    assert!(packed.place.read_only.is_some());
    let catalog = whole(&mut packed).await;
    compare(&catalog);

    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("dump.jsonl");
    write_plain_dump(&file);
    let mut plain = open(MetaProfile::Dump { file }).await;
    compare(&*whole(&mut plain).await);
}

/// As birdwatcher writes them: version 1 with keys alone, version 2 with parts before and after the keys.
fn birdwatcher(version: u8) -> Vec<u8> {
    fn bytes_field(tag: u8, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![tag << 3 | 2];
        prost::encode_length_delimiter(bytes.len(), &mut out).expect("memory takes it");
        out.extend(bytes);
        out
    }
    let kvs = keyspace();
    let mut plain = Vec::new();
    let mut record = |bytes: &[u8]| {
        plain.extend((bytes.len() as u64).to_le_bytes());
        plain.extend(bytes);
    };
    let mut header = vec![0x08, version];
    header.extend(bytes_field(2, b"by-dev"));
    header.extend(bytes_field(3, b"meta"));
    if version == 1 {
        header.push(4 << 3);
        prost::encode_length_delimiter(kvs.len(), &mut header).expect("memory takes it");
    }
    record(&header);
    if version == 2 {
        record(&[0x08, 2]);
        for part in [b"{\"ServerID\":1}".as_slice(), b"a 1", b"", b""] {
            record(part);
        }
        let mut part = vec![0x08, 1];
        let extra = format!(
            r#"{{"cnt":"{0}","rev":"{0}","instance":"by-dev"}}"#,
            kvs.len()
        );
        part.extend(bytes_field(3, extra.as_bytes()));
        record(&part);
    }
    for kv in &kvs {
        record(&[bytes_field(1, &kv.key.0), bytes_field(2, &kv.value)].concat());
    }
    if version == 2 {
        record(b"");
        record(&[0x08, 5]);
        record(b"");
    }
    plain
}

#[tokio::test(flavor = "multi_thread")]
async fn a_birdwatcher_backup_reads_as_the_server_said() {
    let dir = tempfile::tempdir().expect("a folder");
    for version in [1, 2] {
        let file = dir.path().join(format!("bw_etcd_ALL.{version}.bak.gz"));
        let plain = birdwatcher(version);
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(&plain).expect("memory takes it");
        let packed = packed.finish().expect("memory takes it");
        std::fs::write(&file, &packed).expect("a file");
        let mut handle = open(MetaProfile::Dump { file }).await;
        compare(&*whole(&mut handle).await);
        // Cut off in the middle of the keys, at the end of a record or within one: named, and nothing is read.
        for cut in [plain.len() / 2, 400, 9] {
            let error = dump::parse(&plain[..cut], cut as u64).expect_err("cut off");
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            assert!(error.what().contains("the backup"), "{error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_store_reads_as_the_server_said() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("meta.redb");
    let store = EmbeddedStore::open_file(&file, Arc::new(SystemClock::new())).expect("a store");
    store.load(keyspace(), None).await.expect("the dump loads");
    drop(store);
    let mut handle = open(MetaProfile::Embedded { file }).await;
    compare(&*whole(&mut handle).await);
}

async fn real_etcd(version: EtcdVersion) {
    let etcd = Etcd::start(version);
    etcd.load(&lab::etcd()).await;
    let mut handle = open(MetaProfile::Etcd(EtcdProfile {
        endpoints: vec![etcd.endpoint()],
        user: None,
        tls: None,
        request_timeout: Duration::from_secs(10),
        dial_timeout: Duration::from_secs(5),
    }))
    .await;
    compare(&*whole(&mut handle).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_3_4_reads_as_the_server_said() {
    real_etcd(EtcdVersion::V34).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_3_5_reads_as_the_server_said() {
    real_etcd(EtcdVersion::V35).await;
}

// ---- the comparison ----

fn text<'a>(v: &'a Value, name: &str) -> &'a str {
    v[name].as_str().unwrap_or("")
}

/// protojson writes 64-bit numbers as text, and leaves out zeros.
fn number(v: &Value, name: &str) -> i64 {
    match &v[name] {
        Value::String(s) => s.parse().expect("a number"),
        Value::Number(n) => n.as_i64().expect("a number"),
        _ => 0,
    }
}

fn flag(v: &Value, name: &str) -> bool {
    v[name].as_bool().unwrap_or(false)
}

fn list<'a>(v: &'a Value, name: &str) -> &'a [Value] {
    v[name].as_array().map_or(&[], Vec::as_slice)
}

fn words(v: &Value, name: &str) -> Vec<String> {
    list(v, name)
        .iter()
        .map(|s| s.as_str().expect("text").to_owned())
        .collect()
}

fn pairs(v: &Value, name: &str) -> BTreeSet<(String, String)> {
    list(v, name)
        .iter()
        .map(|p| (text(p, "key").to_owned(), text(p, "value").to_owned()))
        .collect()
}

fn as_set(pairs: &[(String, String)]) -> BTreeSet<(String, String)> {
    pairs.iter().cloned().collect()
}

fn compare(catalog: &Catalog) {
    let truth = lab::truth();
    let databases = truth["databases"].as_object().expect("databases");
    let ours: BTreeSet<&str> = catalog.databases.values().map(|d| &*d.name).collect();
    let theirs: BTreeSet<&str> = databases.keys().map(String::as_str).collect();
    assert_eq!(ours, theirs, "databases");

    let mut seen = 0;
    for (db, content) in databases {
        let collections = content["collections"].as_object().expect("collections");
        let ours: BTreeSet<String> = catalog
            .collections
            .values()
            .filter(|c| c.state.name == "Created" && *catalog.database_name(c.db) == **db)
            .map(|c| c.name.to_string())
            .collect();
        assert_eq!(
            ours,
            collections.keys().cloned().collect(),
            "collections of {db}"
        );
        for (name, truth) in collections {
            let ours = catalog
                .collections
                .values()
                .find(|c| *c.name == **name && *catalog.database_name(c.db) == **db)
                .expect("the collection");
            let at = format!("{db}/{name}");
            schema(&at, ours, &truth["describe"]);
            partitions(&at, catalog, ours, truth);
            segments(&at, catalog, ours, truth);
            views(&at, catalog, ours, truth);
            indexes(&at, catalog, ours, &truth["indexes"]);
            load(&at, catalog, ours, truth);
            seen += 1;
        }
    }
    assert_eq!(seen, 8, "collections compared");
}

fn schema(at: &str, ours: &Collection, truth: &Value) {
    assert_eq!(ours.id.0, number(truth, "collectionID"), "{at}: id");
    assert_eq!(
        ours.description,
        text(&truth["schema"], "description"),
        "{at}: description"
    );
    assert_eq!(
        i64::from(ours.shards),
        number(truth, "shards_num"),
        "{at}: shards"
    );
    assert_eq!(
        ours.created.0.cast_signed(),
        number(truth, "created_timestamp"),
        "{at}: created"
    );
    assert_eq!(
        ours.created.time().expect("a time").0,
        number(truth, "created_utc_timestamp"),
        "{at}: created, ms"
    );
    let channels: Vec<String> = ours.vchannels.iter().map(|v| v.0.clone()).collect();
    assert_eq!(
        channels,
        words(truth, "virtual_channel_names"),
        "{at}: vchannels"
    );
    assert_eq!(
        ours.pchannels,
        words(truth, "physical_channel_names"),
        "{at}: pchannels"
    );
    let mut properties = pairs(truth, "properties");
    if at == "default/books" {
        // The property is in no key of the collection, although the server answered it. We infer that Milvus 2.3.5 keeps it
        // in memory only, so that a restart would lose it; nobody has watched one. What is stored is the truth here.
        let ttl = ("collection.ttl.seconds".to_owned(), "864000".to_owned());
        assert!(properties.remove(&ttl), "{at}: the server's own answer");
        let id = ours.id.to_string();
        let held = lab::etcd().iter().any(|k| {
            String::from_utf8_lossy(&k.key).contains(&id)
                && k.value.windows(ttl.0.len()).any(|w| w == ttl.0.as_bytes())
        });
        assert!(!held, "{at}: the property is stored after all");
    }
    assert_eq!(as_set(&ours.properties), properties, "{at}: properties");
    let level = match text(truth, "consistency_level") {
        "" => "Strong",
        level => level,
    };
    assert_eq!(ours.consistency.name, level, "{at}: consistency");
    let aliases: BTreeSet<&str> = ours.aliases.iter().map(String::as_str).collect();
    let expected = words(truth, "aliases");
    assert_eq!(
        aliases,
        expected.iter().map(String::as_str).collect(),
        "{at}: aliases"
    );
    assert_eq!(
        ours.dynamic,
        flag(&truth["schema"], "enable_dynamic_field"),
        "{at}: dynamic"
    );
    assert_eq!(ours.damage, Vec::<String>::new(), "{at}: damage");

    // The server's answer leaves out what it adds by itself: row id, timestamp, the dynamic field.
    let fields: Vec<_> = ours
        .fields
        .iter()
        .filter(|f| f.id.0 >= 100 && !f.dynamic)
        .collect();
    let theirs = list(&truth["schema"], "fields");
    assert_eq!(fields.len(), theirs.len(), "{at}: fields");
    assert_eq!(
        ours.fields.iter().filter(|f| f.id.0 < 100).count(),
        2,
        "{at}: system fields"
    );
    assert_eq!(
        ours.fields.iter().any(|f| f.dynamic),
        ours.dynamic,
        "{at}: the dynamic field"
    );
    for (field, truth) in fields.iter().zip(theirs) {
        let at = format!("{at}.{}", field.name);
        assert_eq!(field.id.0, number(truth, "fieldID"), "{at}: id");
        assert_eq!(field.name, text(truth, "name"), "{at}: name");
        assert_eq!(field.data_type.name, text(truth, "data_type"), "{at}: type");
        let element = match text(truth, "element_type") {
            "" => "None",
            name => name,
        };
        assert_eq!(field.element_type.name, element, "{at}: element type");
        assert_eq!(
            field.primary_key,
            flag(truth, "is_primary_key"),
            "{at}: primary key"
        );
        assert_eq!(field.auto_id, flag(truth, "autoID"), "{at}: auto id");
        assert_eq!(
            field.partition_key,
            flag(truth, "is_partition_key"),
            "{at}: partition key"
        );
        assert_eq!(
            field.description,
            text(truth, "description"),
            "{at}: description"
        );
        assert_eq!(
            as_set(&field.type_params),
            pairs(truth, "type_params"),
            "{at}: parameters"
        );
    }
}

fn partitions(at: &str, catalog: &Catalog, ours: &Collection, truth: &Value) {
    let shown = &truth["show_partitions"];
    let theirs: BTreeMap<i64, (String, i64)> = words(shown, "partition_names")
        .into_iter()
        .zip(words(shown, "partitionIDs"))
        .zip(words(shown, "created_timestamps"))
        .map(|((name, id), created)| {
            (
                id.parse().expect("an id"),
                (name, created.parse().expect("a TSO")),
            )
        })
        .collect();
    let mine: BTreeMap<i64, (String, i64)> = catalog
        .partitions_of(ours.id)
        .filter(|p| p.state.name == "Created")
        .map(|p| (p.id.0, (p.name.to_string(), p.created.0.cast_signed())))
        .collect();
    assert_eq!(mine, theirs, "{at}: partitions");

    let counted = list(truth, "partitions");
    assert_eq!(counted.len(), theirs.len(), "{at}: partitions counted");
    for partition in counted {
        let name = text(partition, "name");
        let id = catalog
            .partitions_of(ours.id)
            .find(|p| *p.name == *name && p.state.name == "Created")
            .expect("the partition")
            .id;
        let rows = catalog
            .sums
            .partitions
            .get(&(ours.id, id))
            .map_or(0, |t| t.rows);
        assert_eq!(rows, number(partition, "num_entities"), "{at}/{name}: rows");
    }
}

fn segments(at: &str, catalog: &Catalog, ours: &Collection, truth: &Value) {
    let rows = catalog.sums.collections.get(&ours.id).map_or(0, |t| t.rows);
    assert_eq!(rows, number(truth, "num_entities_from_stats"), "{at}: rows");

    // The server lists what is flushed.
    let theirs: BTreeSet<(i64, i64, i64, String)> =
        list(&truth["persistent_segment_info"], "infos")
            .iter()
            .map(|s| {
                (
                    number(s, "segmentID"),
                    number(s, "partitionID"),
                    number(s, "num_rows"),
                    text(s, "state").to_owned(),
                )
            })
            .collect();
    let mine: BTreeSet<(i64, i64, i64, String)> = catalog
        .segments_of(ours.id)
        .filter(|s| theirs.iter().any(|t| t.3 == s.state.name) && s.state.name != "Dropped")
        .map(|s| (s.id.0, s.partition.0, s.rows, s.state.name.to_owned()))
        .collect();
    assert_eq!(mine, theirs, "{at}: segments");

    for s in catalog.segments_of(ours.id) {
        let at = format!("{at}: segment {}", s.id);
        // A segment's rows are those of its insert logs, once it is flushed.
        if s.state.name == "Flushed" {
            assert_eq!(s.insert.entries, s.rows as u64, "{at}: entries");
            let fields = ours.fields.len();
            assert_eq!(
                s.insert.files as usize % fields,
                0,
                "{at}: a log for each field"
            );
            assert!(s.stats.files > 0, "{at}: statistics");
        }
        assert!(
            ours.vchannels.iter().any(|v| *v.0 == *s.channel),
            "{at}: channel"
        );
        assert_eq!(
            s.dropped_at.is_some(),
            s.state.name == "Dropped",
            "{at}: dropped at"
        );
    }
}

/// What a view says that queries are served from is what the query node had loaded.
fn views(at: &str, catalog: &Catalog, ours: &Collection, truth: &Value) {
    let loaded = list(&truth["query_segment_info"], "infos");
    if loaded.is_empty() {
        return;
    }
    let theirs = |state: &str| -> BTreeSet<i64> {
        let of = loaded.iter().filter(|s| text(s, "state") == state);
        of.map(|s| number(s, "segmentID")).collect()
    };
    let (mut sealed, mut growing) = (BTreeSet::new(), BTreeSet::new());
    for channel in catalog.channels_of(ours.id) {
        let view = catalog.channel_view(channel, &BTreeSet::new(), Rollback::AsMilvus);
        assert!(view.cyclic.is_empty(), "{at}: {view:?}");
        assert!(
            matches!(view.seek, Seek::Checkpoint(_)),
            "{at}: {:?}",
            view.seek
        );
        sealed.extend(view.flushed.iter().map(|id| id.0));
        growing.extend(view.growing.iter().map(|id| id.0));
    }
    assert_eq!(sealed, theirs("Sealed"), "{at}: sealed segments");
    assert_eq!(growing, theirs("Growing"), "{at}: growing segments");
}

/// The server answers as the user wrote it, with `params` in JSON; the stored parameters have each by itself.
fn flat(described: &Value) -> BTreeSet<(String, String)> {
    let mut out = BTreeSet::new();
    for (key, value) in pairs(described, "params") {
        if key == "params" {
            let inner: Value = serde_json::from_str(&value).expect("JSON");
            for (key, value) in inner.as_object().expect("an object") {
                out.insert((key.clone(), value.to_string().trim_matches('"').to_owned()));
            }
        } else {
            out.insert((key, value));
        }
    }
    out
}

fn indexes(at: &str, catalog: &Catalog, ours: &Collection, truth: &Value) {
    let mut names = BTreeSet::new();
    for described in list(truth, "index_descriptions") {
        let name = text(described, "index_name");
        let at = format!("{at}: index {name}");
        names.insert(name.to_owned());
        let index = catalog
            .indexes_of(ours.id)
            .find(|i| !i.deleted && *i.name == *name)
            .unwrap_or_else(|| panic!("{at} is missing"));
        assert_eq!(index.id.0, number(described, "indexID"), "{at}: id");
        let field = ours
            .fields
            .iter()
            .find(|f| f.id == index.field)
            .expect("its field");
        assert_eq!(field.name, text(described, "field_name"), "{at}: field");
        // The server shows what the user asked for; where the user left the type open, the stored one is the server's choice.
        let (mut stored, asked) = (as_set(&index.params), flat(described));
        if !asked.iter().any(|(name, _)| name == "index_type") {
            stored.retain(|(name, _)| name != "index_type");
            assert!(!index.index_type.is_empty(), "{at}: a type was chosen");
        }
        assert_eq!(stored, asked, "{at}: parameters");

        // Rows that are indexed: finished builds of segments that are still there.
        let mut indexed = 0;
        let mut failed = 0;
        for build in catalog.builds_for(ours.id, index.id).filter(|b| !b.deleted) {
            let live = catalog
                .segment(build.segment)
                .is_some_and(|s| s.state.name == "Flushed");
            if live && build.state.name == "Finished" {
                indexed += build.rows;
            }
            failed += i32::from(build.state.name == "Failed");
        }
        assert_eq!(
            indexed,
            number(described, "indexed_rows"),
            "{at}: indexed rows"
        );
        assert_eq!(failed, 0, "{at}: failed builds");
        assert_eq!(
            text(described, "state"),
            "Finished",
            "{at}: the capture was still"
        );
    }
    let mine: BTreeSet<String> = catalog
        .indexes_of(ours.id)
        .filter(|i| !i.deleted)
        .map(|i| i.name.to_string())
        .collect();
    assert_eq!(mine, names, "{at}: indexes");
}

fn load(at: &str, catalog: &Catalog, ours: &Collection, truth: &Value) {
    let status = catalog
        .loads
        .get(&ours.id)
        .map_or("NotLoad", |l| l.status.name);
    assert_eq!(status, text(truth, "load_state"), "{at}: load state");
    let replicas: Vec<_> = catalog.replicas_of(ours.id).collect();
    match truth["replicas"].as_str() {
        Some(said) => {
            assert_eq!(
                replicas.len(),
                said.matches("group_id:").count(),
                "{at}: replicas"
            );
            for replica in replicas {
                let group = format!("<group_id:{}>", replica.id);
                assert!(said.contains(&group), "{at}: {group} in {said}");
                let nodes: Vec<String> = replica.nodes.iter().map(ToString::to_string).collect();
                let nodes = format!("<group_nodes:({},)>", nodes.join(", "));
                assert!(said.contains(&nodes), "{at}: {nodes} in {said}");
                let rg = format!("<resource_group: {}>", replica.resource_group);
                assert!(said.contains(&rg), "{at}: {rg} in {said}");
            }
        }
        None => assert!(replicas.is_empty(), "{at}: no replica"),
    }
}
