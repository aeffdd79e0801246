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

/// Text with the user part of any URI in it hidden.
#[must_use]
pub fn text(value: &str) -> Cow<'_, str> {
    let Some(scheme) = value.find("://") else {
        return Cow::Borrowed(value);
    };
    let rest = &value[scheme + 3..];
    let host_end = rest
        .find(['/', '?', '#', ' ', ',', '"'])
        .unwrap_or(rest.len());
    match rest[..host_end].rfind('@') {
        Some(at) => Cow::Owned(format!("{}://{MASK}{}", &value[..scheme], &rest[at..])),
        None => Cow::Borrowed(value),
    }
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
