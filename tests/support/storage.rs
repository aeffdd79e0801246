//! Manifests of storage V3 segments, written byte by byte from `spec/layout.md` §7.5: the engine only reads them.

/// Marker of the containers made here.
const MARKER: &[u8] = b"0123456789abcdef";

/// The schema of a storage manifest, version 5 (`spec/layout.md` §7.5).
const STORAGE_SCHEMA: &str = r#"{"type":"record","name":"Manifest","fields":[{"name":"column_groups","type":{"type":"array","items":{"type":"record","name":"ColumnGroup","fields":[{"name":"columns","type":{"type":"array","items":"string"}},{"name":"files","type":{"type":"array","items":{"type":"record","name":"ColumnFile","fields":[{"name":"path","type":"string"},{"name":"start_index","type":"long"},{"name":"end_index","type":"long"},{"name":"properties","type":{"type":"map","values":"string"}}]}}},{"name":"format","type":"string"}]}}},{"name":"delta_logs","type":{"type":"array","items":{"type":"record","name":"DeltaLog","fields":[{"name":"path","type":"string"},{"name":"type","type":"int"},{"name":"num_entries","type":"long"}]}}},{"name":"stats","type":{"type":"map","values":{"type":"record","name":"Stats","fields":[{"name":"paths","type":{"type":"array","items":"string"}},{"name":"metadata","type":{"type":"map","values":"string"}}]}}},{"name":"indexes","type":{"type":"array","items":{"type":"record","name":"Index","fields":[{"name":"column_name","type":"string"},{"name":"index_type","type":"string"},{"name":"path","type":"string"},{"name":"properties","type":{"type":"map","values":"string"}}]}}},{"name":"lob_files","type":{"type":"array","items":{"type":"record","name":"LobFile","fields":[{"name":"path","type":"string"},{"name":"field_id","type":"long"},{"name":"total_rows","type":"long"},{"name":"valid_rows","type":"long"},{"name":"file_size_bytes","type":"long"}]}}}]}"#;

fn zigzag(out: &mut Vec<u8>, value: usize) {
    let mut value = (value as u64) << 1;
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn text(out: &mut Vec<u8>, text: &str) {
    zigzag(out, text.len());
    out.extend_from_slice(text.as_bytes());
}

/// What [`manifest`] declares below the segment's folder, and beside it.
pub const DECLARED: [&str; 5] = [
    "_data/0_aa.parquet",
    "_delta/461100000000000400",
    "_stats/bloom_filter.100/1",
    "_index/301",
    "../lobs/102/_data/1.vx",
];

/// A storage manifest with a file of every kind.
pub fn manifest() -> Vec<u8> {
    let mut b = Vec::new();
    zigzag(&mut b, 1); // column_groups
    zigzag(&mut b, 2);
    text(&mut b, "100");
    text(&mut b, "101");
    b.push(0);
    zigzag(&mut b, 1); // files
    text(&mut b, "0_aa.parquet");
    zigzag(&mut b, 0);
    zigzag(&mut b, 1_000);
    zigzag(&mut b, 1); // properties
    text(&mut b, "a");
    text(&mut b, "b");
    b.extend([0, 0]);
    text(&mut b, "parquet");
    b.push(0);
    zigzag(&mut b, 1); // delta_logs
    text(&mut b, "461100000000000400");
    zigzag(&mut b, 0);
    zigzag(&mut b, 3);
    b.push(0);
    zigzag(&mut b, 1); // stats
    text(&mut b, "bloom_filter.100");
    zigzag(&mut b, 1);
    text(&mut b, "bloom_filter.100/1");
    b.extend([0, 0, 0]);
    zigzag(&mut b, 1); // indexes
    text(&mut b, "101");
    text(&mut b, "HNSW");
    text(&mut b, "301");
    b.extend([0, 0]);
    zigzag(&mut b, 1); // lob_files
    text(&mut b, "../lobs/102/_data/1.vx");
    for n in [102, 5, 5, 9] {
        zigzag(&mut b, n);
    }
    b.push(0);
    container(STORAGE_SCHEMA, &b)
}

/// A container whose schema refers to itself, with every kind of value that a manifest has not.
pub fn recursive() -> Vec<u8> {
    let schema = r#"{"type":"record","name":"a.R","fields":[{"name":"next","type":["null","R"]},{"name":"e","type":{"type":"enum","name":"E","symbols":["x"]}},{"name":"f","type":{"type":"fixed","name":"F","size":2}},{"name":"d","type":["double","boolean","bytes","float"]}]}"#;
    let mut r = vec![2, 0, 0, 0xaa, 0xbb, 2, 1];
    r.extend([0, 0xaa, 0xbb, 4, 2, 0x41]);
    container(schema, &r)
}

fn container(schema: &str, block: &[u8]) -> Vec<u8> {
    let mut out = b"Obj\x01".to_vec();
    zigzag(&mut out, 2);
    text(&mut out, "avro.schema");
    text(&mut out, schema);
    text(&mut out, "avro.codec");
    text(&mut out, "null");
    out.push(0);
    out.extend_from_slice(MARKER);
    zigzag(&mut out, 1);
    zigzag(&mut out, block.len());
    out.extend_from_slice(block);
    out.extend_from_slice(MARKER);
    out
}
