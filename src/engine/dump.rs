//! A dump of a metadata store in JSON lines, plain or gzip: `key_b64`, `value_b64`, `mod_revision`, and if they are there
//! `create_revision`, `version` and `lease`. Attached to read only.

use std::io::{BufRead, BufReader};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::Deserialize;

use super::error::{Error, ErrorKind, Result};
use super::ids::{MetaKey, MetaRev};
use super::meta::KeyValue;

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
    let mut reader = BufReader::new(opened);
    let is_gzip = reader
        .fill_buf()
        .is_ok_and(|head| head.starts_with(&[0x1f, 0x8b]));
    if is_gzip {
        parse(BufReader::new(flate2::bufread::MultiGzDecoder::new(reader)))
    } else {
        parse(reader)
    }
    .map_err(|e| e.with("file", name))
}

fn parse(reader: impl BufRead) -> Result<Vec<KeyValue>> {
    let mut out = Vec::new();
    for (n, line) in reader.lines().enumerate() {
        let line = line.map_err(|e| bad(n, "the line cannot be read").caused_by(e))?;
        if !line.trim().is_empty() {
            out.push(kv(n, &line)?);
        }
    }
    if out.is_empty() {
        return Err(Error::new(ErrorKind::Corrupt, "the dump holds no key")
            .fix("write one JSON object a line: key_b64, value_b64, mod_revision"));
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
        let kvs = parse(good.as_bytes()).expect("one key");
        assert_eq!(kvs[0].key, MetaKey::from("a"));
        assert_eq!(kvs[0].create_rev, MetaRev(7));
        let text = format!("{good}\n\n{{}}\n");
        let error = parse(text.as_bytes()).expect_err("line 3");
        assert!(error.what().contains("line 3"), "{error}");
        assert_eq!(
            parse(&b""[..]).expect_err("empty").kind(),
            ErrorKind::Corrupt
        );
    }
}
