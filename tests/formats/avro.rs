//! An encoder of segment manifests written for the tests alone, straight from `spec/snapshot.md` §2.3 and §2.4: every
//! shape, both block forms. It shares no code with the reader or with the library that writes.

use falconer::engine::format::manifest::Shape;
use falconer::engine::format::pb::data::{Binlog, FieldBinlog, SegmentDescription};
use falconer::engine::format::pb::index::IndexFilePathInfo;
use falconer::engine::format::pb::msg::MsgPosition;

/// The two legal forms of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocks {
    /// One block: positive count, no size.
    Plain,
    /// Blocks of at most this many items: negative count, size in bytes. Milvus uses 100.
    Sized(usize),
}

pub struct Encoder {
    pub shape: Shape,
    pub blocks: Blocks,
}

type Out = Vec<u8>;

pub fn long(out: &mut Out, value: i64) {
    let mut zigzag = ((value << 1) ^ (value >> 63)) as u64;
    loop {
        let low = (zigzag & 0x7f) as u8;
        zigzag >>= 7;
        if zigzag == 0 {
            out.push(low);
            return;
        }
        out.push(low | 0x80);
    }
}

fn bytes(out: &mut Out, value: &[u8]) {
    long(out, value.len() as i64);
    out.extend(value);
}

impl Encoder {
    fn array<T>(&self, out: &mut Out, items: &[T], mut item: impl FnMut(&mut Out, &T)) {
        match self.blocks {
            Blocks::Plain => {
                if !items.is_empty() {
                    long(out, items.len() as i64);
                    for i in items {
                        item(out, i);
                    }
                }
            }
            Blocks::Sized(most) => {
                for block in items.chunks(most) {
                    let mut body = Vec::new();
                    for i in block {
                        item(&mut body, i);
                    }
                    long(out, -(block.len() as i64));
                    long(out, body.len() as i64);
                    out.extend(body);
                }
            }
        }
        out.push(0);
    }

    fn texts(&self, out: &mut Out, items: &[String]) {
        self.array(out, items, |out, s| bytes(out, s.as_bytes()));
    }

    fn position(out: &mut Out, p: Option<&MsgPosition>) {
        let none = MsgPosition::default();
        let p = p.unwrap_or(&none);
        bytes(out, p.channel_name.as_bytes());
        bytes(out, &p.msg_id);
        bytes(out, p.msg_group.as_bytes());
        long(out, p.timestamp as i64);
    }

    fn logs(&self, out: &mut Out, logs: &[FieldBinlog]) {
        self.array(out, logs, |out, f| {
            long(out, f.field_id);
            if self.shape == Shape::V4 {
                self.array(out, &f.child_fields, |out, id| long(out, *id));
                bytes(out, f.format.as_bytes());
            }
            self.array(out, &f.binlogs, |out, b: &Binlog| {
                long(out, b.entries_num);
                long(out, b.timestamp_from as i64);
                long(out, b.timestamp_to as i64);
                bytes(out, b.log_path.as_bytes());
                long(out, b.log_size);
                long(out, b.log_id);
                long(out, b.memory_size);
            });
        });
    }

    fn index(&self, out: &mut Out, files: &[IndexFilePathInfo]) {
        self.array(out, files, |out, i| {
            for id in [i.segment_id, i.field_id, i.index_id, i.build_id] {
                long(out, id);
            }
            bytes(out, i.index_name.as_bytes());
            self.array(out, &i.index_params, |out, p| {
                bytes(out, p.key.as_bytes());
                bytes(out, p.value.as_bytes());
            });
            self.texts(out, &i.index_file_paths);
            long(out, i.serialized_size as i64);
            long(out, i.index_version);
            long(out, i.num_rows);
            long(out, i64::from(i.current_index_version));
            long(out, i.mem_size as i64);
            if self.shape != Shape::V1Early {
                long(out, i64::from(i.current_scalar_index_version));
            }
            if self.shape >= Shape::V2 {
                long(out, i64::from(i.index_store_path_version));
            }
        });
    }

    pub fn manifest(&self, s: &SegmentDescription) -> Out {
        let mut out = Vec::new();
        long(&mut out, s.segment_id);
        long(&mut out, s.partition_id);
        long(&mut out, i64::from(s.segment_level));
        bytes(&mut out, s.channel_name.as_bytes());
        long(&mut out, s.num_of_rows);
        Self::position(&mut out, s.start_position.as_ref());
        Self::position(&mut out, s.dml_position.as_ref());
        long(&mut out, s.storage_version);
        out.push(u8::from(s.is_sorted));
        if self.shape >= Shape::V3 {
            long(&mut out, s.commit_timestamp as i64);
        }
        for logs in [&s.binlogs, &s.deltalogs, &s.statslogs, &s.bm25_statslogs] {
            self.logs(&mut out, logs);
        }
        self.index(&mut out, &s.index_files);
        let text: Vec<_> = s.text_index_files.iter().collect();
        self.array(&mut out, &text, |out, (field, t)| {
            for v in [**field, t.field_id, t.version] {
                long(out, v);
            }
            self.texts(out, &t.files);
            for v in [t.log_size, t.memory_size, t.build_id] {
                long(out, v);
            }
        });
        let json: Vec<_> = s.json_key_index_files.iter().collect();
        self.array(&mut out, &json, |out, (field, j)| {
            for v in [**field, j.field_id, j.version] {
                long(out, v);
            }
            self.texts(out, &j.files);
            for v in [
                j.log_size,
                j.memory_size,
                j.build_id,
                j.json_key_stats_data_format,
            ] {
                long(out, v);
            }
        });
        out
    }
}
