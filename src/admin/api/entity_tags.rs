//! The entity tags of a precondition, as they come back through proxies.

use actix_web::http::header::{HeaderMap, HeaderName};

/// What servers that compress an answer put behind its tag.
const CODINGS: [&str; 6] = ["-gzip", ";gzip", "--gzip", "-br", "-zstd", "-deflate"];

/// The tags that the header `name` lists, as we have made them: at least one. `None`: any will do.
///
/// A proxy that compresses an answer makes the tag a weak one, as the bytes are others; what it is the
/// version of is the same.
pub(super) fn of(headers: &HeaderMap, name: HeaderName) -> Option<Vec<String>> {
    let values: Vec<&str> = headers.get_all(name).map(|value| value.to_str().unwrap_or_default()).collect();
    if values.is_empty() {
        return None;
    }
    let tags = read(&values.join(","));
    if tags.iter().any(|tag| tag == "*") { None } else { Some(tags) }
}

fn read(list: &str) -> Vec<String> {
    let mut tags = Vec::new();
    let mut rest = list.trim();
    while !rest.is_empty() {
        rest = rest.strip_prefix("W/").unwrap_or(rest);
        let (tag, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => rest.split_at(rest.find(',').unwrap_or(rest.len())),
        };
        let tag = tag.trim();
        tags.push(CODINGS.iter().find_map(|coding| tag.strip_suffix(coding)).unwrap_or(tag).to_owned());
        rest = after.trim_start_matches(|c: char| c == ',' || c.is_whitespace());
    }
    if tags.is_empty() {
        tags.push(String::new());
    }
    tags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_read_in_every_form() {
        for (list, expected) in [
            ("\"a\"", &["a"][..]),
            ("a", &["a"]),
            (" W/\"a\" ", &["a"]),
            ("\"a-gzip\"", &["a"]),
            ("W/\"a, b\",\"c\" , d,,", &["a, b", "c", "d"]),
            ("*", &["*"]),
            ("\"a", &["a"]),
            ("", &[""]),
            ("W/", &[""]),
            (",", &[""]),
        ] {
            assert_eq!(read(list), expected, "{list}");
        }
    }
}
