//! A dump of a metadata store, plain or gzip, attached to read only: JSON lines with `key_b64`, `value_b64`, `mod_revision`, and if they
//! are there `create_revision`, `version` and `lease`; or a backup of birdwatcher's.

mod birdwatcher;

use std::io::{BufRead, BufReader, Read as _};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::Deserialize;

use super::error::{Error, ErrorKind, Result};
use super::ids::{MetaKey, MetaRev};
use super::meta::KeyValue;

/// Bytes of one line: a value of etcd's has at most a few MiB, and base64 makes four of three.
const LINE: u64 = 64 << 20;
/// Bytes that a packed dump may become for each of its own, and beside them: gzip makes a thousand of one at most, and base64 text
/// of keys that resemble each other shrinks by thirty.
const UNPACKED: (u64, u64) = (200, 64 << 20);

#[derive(Deserialize)]
struct Line {
    key_b64: String,
    value_b64: String,
    mod_revision: i64,
    #[serde(default)]
    create_revision: Option<i64>,
    #[serde(default)]
    version: Option<i64>,
    #[serde(default)]
    lease: i64,
}

/// Reads a dump file. Blocks. `NotFound`, or `Corrupt` with the number of the bad line.
pub fn read(file: &Path) -> Result<Vec<KeyValue>> {
    let name = file.display();
    let opened = std::fs::File::open(file).map_err(|e| {
        Error::new(ErrorKind::NotFound, format!("dump {name} cannot be opened"))
            .caused_by(e)
            .fix("check the path given to --dump")
    })?;
    let size = opened.metadata().map_or(u64::MAX, |meta| meta.len());
    parse(BufReader::new(opened), size).map_err(|e| e.with("file", name))
}

/// Reads a dump of `size` bytes, packed or not. `Corrupt` with the number of the bad line.
pub fn parse(mut reader: impl BufRead, size: u64) -> Result<Vec<KeyValue>> {
    let is_gzip = reader
        .fill_buf()
        .is_ok_and(|head| head.starts_with(&[0x1f, 0x8b]));
    if is_gzip {
        let most = size.saturating_mul(UNPACKED.0).saturating_add(UNPACKED.1);
        let unpacked = flate2::bufread::MultiGzDecoder::new(reader).take(most);
        let mut unpacked = BufReader::new(unpacked);
        let found = contents(&mut unpacked);
        if unpacked.get_ref().limit() == 0 {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("the dump unpacks to more than {most} bytes, far more than a dump does"),
            )
            .fix("unpack it, look at it, and attach to the plain file"));
        }
        found
    } else {
        contents(&mut reader)
    }
}

fn contents(reader: &mut impl BufRead) -> Result<Vec<KeyValue>> {
    if reader.fill_buf().is_ok_and(birdwatcher::is_backup) {
        birdwatcher::read(reader)
    } else {
        lines(reader)
    }
}

fn lines(reader: &mut impl BufRead) -> Result<Vec<KeyValue>> {
    let (mut out, mut line) = (Vec::new(), Vec::new());
    for n in 0.. {
        line.clear();
        let read = reader.take(LINE).read_until(b'\n', &mut line);
        let read = read.map_err(|e| bad(n, "the line cannot be read").caused_by(e))?;
        if read == 0 {
            break;
        }
        if read as u64 == LINE && !line.ends_with(b"\n") {
            return Err(bad(n, "longer than any key with its value"));
        }
        let text = std::str::from_utf8(&line).map_err(|e| bad(n, "not UTF-8").caused_by(e))?;
        if !text.trim().is_empty() {
            out.push(kv(n, text)?);
        }
    }
    if out.is_empty() {
        return Err(Error::new(ErrorKind::Corrupt, "the dump holds no key")
            .fix("give one JSON object a line (key_b64, value_b64, mod_revision), or a backup of birdwatcher's"));
    }
    Ok(out)
}

fn kv(n: usize, line: &str) -> Result<KeyValue> {
    let line: Line = serde_json::from_str(line).map_err(|e| {
        bad(
            n,
            "not a JSON object with key_b64, value_b64 and mod_revision",
        )
        .caused_by(e)
    })?;
    let bytes = |text: &str, what: &str| {
        BASE64
            .decode(text)
            .map(Bytes::from)
            .map_err(|e| bad(n, &format!("{what} is not base64")).caused_by(e))
    };
    if line.mod_revision <= 0 {
        return Err(bad(n, "mod_revision is not a revision"));
    }
    Ok(KeyValue {
        key: MetaKey(bytes(&line.key_b64, "key_b64")?),
        value: bytes(&line.value_b64, "value_b64")?,
        create_rev: MetaRev(line.create_revision.unwrap_or(line.mod_revision)),
        mod_rev: MetaRev(line.mod_revision),
        version: line.version.unwrap_or(1),
        lease: line.lease,
    })
}

fn bad(n: usize, what: &str) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("line {} of the dump: {what}", n + 1),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_line_is_named() {
        let good = r#"{"key_b64":"YQ==","value_b64":"","mod_revision":7}"#;
        let kvs = parse(good.as_bytes(), 0).expect("one key");
        assert_eq!(kvs[0].key, MetaKey::from("a"));
        assert_eq!(kvs[0].create_rev, MetaRev(7));
        let text = format!("{good}\n\n{{}}\n");
        let error = parse(text.as_bytes(), 0).expect_err("line 3");
        assert!(error.what().contains("line 3"), "{error}");
        assert_eq!(
            parse(&b""[..], 0).expect_err("empty").kind(),
            ErrorKind::Corrupt
        );
    }
}
