//! What `cargo xtask bench` runs, one part a process: prints what it measured as JSON.

mod compile;
mod edits;
mod manifest;
mod packets;
mod row;
mod scene;

use anyhow::{Result, bail};

fn main() -> Result<()> {
    // Cargo adds `--bench`.
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| word != "--bench")
        .collect();
    let quick = arguments.iter().any(|word| word == "--quick");
    let part = arguments.iter().find(|word| !word.starts_with("--"));
    let rows = match part.map(String::as_str) {
        Some("packets") => packets::measure(quick)?,
        Some("compile") => compile::measure(quick),
        Some("edits") => edits::measure(quick)?,
        other => bail!("no part {}", other.unwrap_or("named")),
    };
    println!("{}", serde_json::to_string_pretty(&rows)?);
    Ok(())
}
