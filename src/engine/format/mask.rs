//! Secrets never leave the format room in clear (law 11, `spec/layout.md` §11 item 7).
//!
//! Masking goes by name: of a protobuf field, of a JSON member, of a property, of a configuration key. It errs on the
//! side of hiding.

use std::borrow::Cow;

/// What stands in for a secret.
pub const MASK: &str = "********";

/// Whether something of this name is a secret. Case, `.`, `_`, `-` and `/` do not matter.
#[must_use]
pub fn is_secret(name: &str) -> bool {
    const WHOLE: [&str; 5] = ["token", "safekey", "edek", "externalspec", "cipherkey"];
    const PART: [&str; 11] = [
        "password",
        "passwd",
        "secret",
        "credential",
        "accesskey",
        "privatekey",
        "apikey",
        "authtoken",
        "accesstoken",
        "sastoken",
        "externalspec",
    ];
    let plain: String = name
        .chars()
        .filter(|c| !matches!(c, '.' | '_' | '-' | '/'))
        .map(|c| c.to_ascii_lowercase())
        .collect();
    WHOLE.contains(&plain.as_str()) || PART.iter().any(|part| plain.contains(part))
}

/// Text with the user part of every URI in it hidden.
#[must_use]
pub fn text(value: &str) -> Cow<'_, str> {
    let mut out = String::new();
    let mut seen = 0;
    while let Some(scheme) = value[seen..].find("://") {
        let start = seen + scheme + 3;
        let rest = &value[start..];
        let end = rest
            .find(['/', '?', '#', ' ', ',', '"'])
            .unwrap_or(rest.len());
        // The colon may be the beginning of the next URI.
        let next = rest[..end].ends_with(':') && rest[end..].starts_with("//");
        let end = end - usize::from(next);
        out.push_str(&value[seen..start]);
        match rest[..end].rfind('@') {
            Some(at) => {
                out.push_str(MASK);
                out.push_str(&rest[at..end]);
            }
            None => out.push_str(&rest[..end]),
        }
        seen = start + end;
    }
    if out == value[..seen] {
        return Cow::Borrowed(value);
    }
    out.push_str(&value[seen..]);
    Cow::Owned(out)
}

/// Hides the secrets of a JSON value in place.
pub fn json(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(members) => {
            for (name, member) in members.iter_mut() {
                if is_secret(name) && !member.is_null() {
                    *member = MASK.into();
                } else {
                    json(member);
                }
            }
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(json),
        serde_json::Value::String(s) => {
            if let Cow::Owned(masked) = text(s) {
                *s = masked;
            }
        }
        _ => {}
    }
}
