//! Licences and origins of all dependencies, offline: what `Cargo.lock` names must be ours to ship.

use anyhow::{Result, bail};

use crate::{test, ui::say};

/// Licences that a dependency may have.
const ALLOWED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "GPL-2.0-only",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unicode-DFS-2016",
    "Unlicense",
    "Zlib",
];

/// Packages whose choice must not be the GPL: everything but what is loaded into the kernel.
const KERNEL_SIDE: &[&str] = &["netpol-ebpf"];

const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Every package comes from the registry or from this repository and has an allowed licence.
///
/// # Errors
/// The packages that do not.
pub(crate) fn check() -> Result<()> {
    let metadata = test::metadata(&[
        "--filter-platform",
        &format!("{}-unknown-linux-gnu", std::env::consts::ARCH),
    ])?;
    let packages: Vec<_> = metadata["packages"].as_array().into_iter().flatten().collect();
    let mut faults = Vec::new();
    for package in &packages {
        let text = |key: &str| package[key].as_str().unwrap_or_default();
        let name = format!("{} {}", text("name"), text("version"));
        let gpl = KERNEL_SIDE.contains(&text("name"));
        let license = text("license");
        if !allowed(license, &|one| {
            ALLOWED.contains(&one) && (gpl || !one.starts_with("GPL"))
        }) {
            faults.push(format!(
                "{name}: licence \"{license}\" is not on the list in xtask/src/licences.rs"
            ));
        }
        if package["source"]
            .as_str()
            .is_some_and(|source| source != REGISTRY)
        {
            faults.push(format!(
                "{name}: comes from {}, not from the registry",
                text("source")
            ));
        }
    }
    if !faults.is_empty() {
        bail!("dependencies that can't be shipped:\n  {}", faults.join("\n  "));
    }
    say("licences", &format!("{} packages, all allowed", packages.len()));
    Ok(())
}

/// Whether an SPDX expression can be satisfied: any side of an OR, every side of an AND; AND binds closer.
fn allowed(expression: &str, one: &dyn Fn(&str) -> bool) -> bool {
    let expression = expression.trim();
    if let Some(parts) = split(expression, " OR ").or_else(|| split(expression, "/")) {
        return parts.iter().any(|part| allowed(part, one));
    }
    if let Some(parts) = split(expression, " AND ") {
        return parts.iter().all(|part| allowed(part, one));
    }
    match expression
        .strip_prefix('(')
        .and_then(|rest| rest.strip_suffix(')'))
    {
        Some(inner) => allowed(inner, one),
        None => one(expression),
    }
}

/// The parts between `by` outside parentheses, if there is more than one.
fn split<'a>(expression: &'a str, by: &str) -> Option<Vec<&'a str>> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0_i32, 0);
    for (at, byte) in expression.bytes().enumerate() {
        match byte {
            b'(' => depth += 1,
            b')' => depth -= 1,
            _ if depth == 0 && at >= start && expression[at..].starts_with(by) => {
                parts.push(&expression[start..at]);
                start = at + by.len();
            }
            _ => {}
        }
    }
    if parts.is_empty() {
        return None;
    }
    parts.push(&expression[start..]);
    Some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_read_as_spdx_says() {
        let mit = |one: &str| one == "MIT" || one == "Zlib";
        for (expression, expected) in [
            ("MIT", true),
            ("MIT/Apache-2.0", true),
            ("Apache-2.0 OR MIT", true),
            ("Apache-2.0 AND MIT", false),
            ("(MIT OR Apache-2.0) AND Unicode-3.0", false),
            ("(MIT OR Apache-2.0) AND Zlib", true),
            ("GPL-3.0 OR Apache-2.0 AND MIT", false),
            ("", false),
        ] {
            assert_eq!(allowed(expression, &mit), expected, "{expression}");
        }
    }
}
