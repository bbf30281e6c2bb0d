//! The API's rules for names (`k8s.io/apimachinery/pkg/util/validation`): each function gives the rule that
//! was broken.

/// RFC 1123 label: namespaces.
pub(super) fn dns_label(name: &str) -> Result<(), &'static str> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if name.len() > 63 {
        Err("is longer than 63 characters")
    } else if !wrapped(name, inner, |b| b != b'-') {
        Err("is not a DNS label (lower-case letters, digits and '-', a letter or digit at both ends)")
    } else {
        Ok(())
    }
}

/// RFC 1123 subdomain: pods, nodes, policies.
pub(super) fn dns_subdomain(name: &str) -> Result<(), &'static str> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if name.len() > 253 {
        Err("is longer than 253 characters")
    } else if !name.split('.').all(|part| wrapped(part, inner, |b| b != b'-')) {
        Err(
            "is not a DNS name (lower-case letters, digits, '-' and '.', a letter or digit at both ends of each part)",
        )
    } else {
        Ok(())
    }
}

/// A label's key: `name` or `prefix/name`.
pub(super) fn label_key(key: &str) -> Result<(), &'static str> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    if prefix.is_some_and(|prefix| dns_subdomain(prefix).is_err()) {
        return Err("is not a label key: what stands before '/' must be a DNS name");
    }
    if name.is_empty() {
        return Err("is not a label key: the name is empty");
    }
    label_text(name).map_err(|_| {
        "is not a label key (at most 63 letters, digits, '-', '_' and '.', a letter or digit at both ends, \
         optionally after a DNS name and '/')"
    })
}

/// A label's value.
pub(super) fn label_value(value: &str) -> Result<(), &'static str> {
    if value.is_empty() {
        Ok(())
    } else {
        label_text(value)
    }
}

fn label_text(text: &str) -> Result<(), &'static str> {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if text.len() <= 63 && wrapped(text, inner, |b| b.is_ascii_alphanumeric()) {
        Ok(())
    } else {
        Err(
            "is not a label value (at most 63 letters, digits, '-', '_' and '.', a letter or digit at both ends)",
        )
    }
}

/// IANA_SVC_NAME of RFC 6335: names of ports.
pub(super) fn port_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() || name.len() > 15 {
        Err("is not a port name: it must have 1 to 15 characters")
    } else if !name
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    {
        Err("is not a port name: only lower-case letters, digits and '-' are allowed")
    } else if !name.bytes().any(|b| b.is_ascii_lowercase()) {
        Err("is not a port name: it must contain a letter")
    } else if name.starts_with('-') || name.ends_with('-') || name.contains("--") {
        Err("is not a port name: '-' must stand between other characters, and not twice")
    } else {
        Ok(())
    }
}

/// Not empty, every byte `inner`, the first and last also `outer`.
fn wrapped(text: &str, inner: impl Fn(u8) -> bool, outer: impl Fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    let ends = [bytes.first(), bytes.last()];
    bytes.iter().all(|b| inner(*b)) && ends.into_iter().all(|end| end.is_some_and(|b| outer(*b)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_names() {
        for good in ["a", "http", "p-1", "123a", "abcdefghijklmno"] {
            assert_eq!(port_name(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "80",
            "a--b",
            "-a",
            "a-",
            "HTTP",
            "a_b",
            "abcdefghijklmnop",
            "ä",
            "a.b",
        ] {
            assert!(port_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn label_keys_and_values() {
        let long = "a".repeat(63);
        for good in ["app", "app.kubernetes.io/name", "A_b-c.d", "x/y", long.as_str()] {
            assert_eq!(label_key(good), Ok(()), "{good}");
        }
        let longer = "a".repeat(64);
        for bad in [
            "",
            "/a",
            "a/",
            "a/b/c",
            "-a",
            "a-",
            "a b",
            "X.y/z",
            longer.as_str(),
        ] {
            assert!(label_key(bad).is_err(), "{bad}");
        }
        assert_eq!(label_value(""), Ok(()));
        assert_eq!(label_value("v1.2_3-x"), Ok(()));
        for bad in ["-", "a ", "a/b", "ü", longer.as_str()] {
            assert!(label_value(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn dns_names() {
        assert_eq!(dns_label("kube-system"), Ok(()));
        assert_eq!(dns_subdomain("web-0.web.prod"), Ok(()));
        for bad in ["", "A", "a.b", "-a", "a_b", &"a".repeat(64)] {
            assert!(dns_label(bad).is_err(), "{bad}");
        }
        for bad in ["", ".", "a..b", "a.", "A", "a.-b", &"a".repeat(254)] {
            assert!(dns_subdomain(bad).is_err(), "{bad}");
        }
    }
}
