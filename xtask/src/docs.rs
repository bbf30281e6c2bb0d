//! `docs/cli.md` is what `--help` says, and every flag that the documentation shows exists.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    build,
    ui::{root, say},
};

const HEAD: &str = "# Command line\n\nWritten by `cargo xtask lint --fix` from what `--help` prints; edit the help texts, not this page.\n";

/// A program's help by verb; the empty verb is the program itself.
type Help = BTreeMap<String, String>;

/// Compares (or, with `fix`, writes) the page, and checks the commands that the documentation shows.
///
/// # Errors
/// They disagree; each place is named.
pub(crate) fn check(fix: bool) -> Result<()> {
    let agent = help_of(&build::agent(true)?)?;
    let xtask = help_of(&std::env::current_exe().context("finding the xtask binary")?)?;
    let page = page(&agent, &xtask);
    let path = root().join("docs/cli.md");
    if fix {
        fs::write(&path, &page).with_context(|| format!("writing {}", path.display()))?;
    }
    if fs::read_to_string(&path).unwrap_or_default() != page {
        bail!("docs/cli.md is not what --help says: run `cargo xtask lint --fix` and commit it");
    }
    let mut faults = Vec::new();
    let mut shown = 0;
    for file in pages()? {
        let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        let name = file.strip_prefix(root()).unwrap_or(&file).display().to_string();
        for (program, help) in [("netpol-agent", &agent), ("cargo xtask", &xtask)] {
            for command in commands(&text, program) {
                shown += 1;
                faults.extend(
                    fault(&command, help).map(|fault| format!("{name}: `{program} {command}`: {fault}")),
                );
            }
        }
    }
    if !faults.is_empty() {
        bail!(
            "the documentation shows what the programs do not know:\n  {}",
            faults.join("\n  ")
        );
    }
    say(
        "documentation",
        &format!("docs/cli.md is what --help says; {shown} commands shown are real"),
    );
    Ok(())
}

fn page(agent: &Help, xtask: &Help) -> String {
    let mut page = HEAD.to_owned();
    for (program, help) in [("netpol-agent", agent), ("cargo xtask", xtask)] {
        for (verb, text) in help {
            let title = if verb.is_empty() {
                format!("## {program}")
            } else {
                format!("### {program} {verb}")
            };
            page += &format!("\n{title}\n\n```text\n{}\n```\n", text.trim_end());
        }
    }
    page
}

/// `--help` of the program, of each verb that it lists, and of each verb below one.
fn help_of(program: &Path) -> Result<Help> {
    let main = help(program, &[])?;
    let mut all = Help::new();
    for verb in verbs(&main) {
        let text = help(program, &[&verb])?;
        for below in verbs(&text) {
            all.insert(format!("{verb} {below}"), help(program, &[&verb, &below])?);
        }
        all.insert(verb, text);
    }
    all.insert(String::new(), main);
    Ok(all)
}

fn help(program: &Path, verb: &[&str]) -> Result<String> {
    let mut command = Command::new(program);
    command
        .args(verb)
        .arg("--help")
        .env("COLUMNS", "100")
        .stdin(Stdio::null());
    // clap shows the current value of a variable that an option reads.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("NETPOL_")) {
        command.env_remove(name);
    }
    let done = command
        .output()
        .with_context(|| format!("starting {}", program.display()))?;
    if !done.status.success() {
        bail!(
            "{} {verb:?} --help failed: {}",
            program.display(),
            String::from_utf8_lossy(&done.stderr)
        );
    }
    let text = String::from_utf8_lossy(&done.stdout);
    Ok(text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n"))
}

/// The names under clap's heading `Commands:`.
fn verbs(help: &str) -> Vec<String> {
    let list = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty());
    // A verb's line is indented by two, the continuation of its text by more.
    let names = list.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

/// README and everything in docs, but the page that is generated.
fn pages() -> Result<Vec<PathBuf>> {
    let docs = root().join("docs");
    let mut pages = vec![root().join("README.md")];
    for entry in fs::read_dir(&docs).with_context(|| format!("reading {}", docs.display()))? {
        let path = entry
            .with_context(|| format!("reading {}", docs.display()))?
            .path();
        if path.extension().is_some_and(|e| e == "md")
            && path.file_name().is_some_and(|name| name != "cli.md")
        {
            pages.push(path);
        }
    }
    pages.sort();
    Ok(pages)
}

/// What follows `program` on lines of code blocks and in code spans.
fn commands(text: &str, program: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut block = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            block = !block;
            continue;
        }
        let spans: Vec<&str> = if block {
            vec![line]
        } else {
            line.split('`').skip(1).step_by(2).collect()
        };
        for span in spans {
            let (code, _comment) = span.split_once(" #").unwrap_or((span, ""));
            let at = code.find(program).map(|at| &code[at + program.len()..]);
            found.extend(
                at.filter(|rest| rest.starts_with(' '))
                    .map(|rest| rest.trim().to_owned()),
            );
        }
    }
    found
}

/// Why the command can't be typed: an unknown verb, or a flag that the verb's help does not show.
fn fault(command: &str, help: &Help) -> Option<String> {
    let mut words = command
        .split([' ', '=', '[', ']', '|'])
        .filter(|word| !word.is_empty());
    let verb = words.next()?;
    if verb.starts_with('-') || !verb.starts_with(|c: char| c.is_ascii_lowercase()) {
        return None;
    }
    let Some(mut text) = help.get(verb) else {
        return Some(format!("no verb {verb}"));
    };
    if let below @ [_, ..] = &*verbs(text) {
        match words.next() {
            Some(word) if below.iter().any(|name| name == word) => text = &help[&format!("{verb} {word}")],
            Some(word) if word.starts_with(|c: char| c.is_ascii_lowercase()) => {
                return Some(format!("no verb {verb} {word}"));
            }
            _ => return None,
        }
    }
    let known: Vec<&str> = text
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'))
        .collect();
    let unknown = words
        .take_while(|word| *word != "--")
        .filter(|word| word.starts_with('-'))
        .find(|word| !known.contains(word));
    unknown.map(|flag| format!("no option {flag}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn help() -> Help {
        [
            (
                "run",
                "Usage: x run [OPTIONS]\n  -o, --output <FORMAT>\n      --node <NODE>",
            ),
            ("fleet", "Usage: x fleet <COMMAND>\n\nCommands:\n  up  Begins\n"),
            ("fleet up", "Usage: x fleet up [OPTIONS]\n      --nodes <NODES>"),
        ]
        .map(|(verb, text)| (verb.to_owned(), text.to_owned()))
        .into()
    }

    #[test]
    fn verbs_are_the_list_under_commands() {
        let help = "X\n\nUsage: x\n\nCommands:\n  run    Runs\n         and runs\n  check  Checks\n  help   Print\n\nOptions:\n  -h\n";
        assert_eq!(verbs(help), ["run", "check"]);
    }

    #[test]
    fn commands_are_found_in_blocks_and_spans() {
        let text = "Say `x run --node a`.\n```sh\nsudo x run -o json # and so on\n```\nx run is prose\n";
        assert_eq!(commands(text, "x"), ["run --node a", "run -o json"]);
    }

    #[test]
    fn what_the_help_does_not_show_is_a_fault() {
        assert_eq!(fault("run --node=a -o json", &help()), None);
        assert_eq!(
            fault("run [--nodes 2]", &help()),
            Some("no option --nodes".into())
        );
        assert_eq!(fault("fly", &help()), Some("no verb fly".into()));
        assert_eq!(fault("fleet up --nodes 2", &help()), None);
        assert_eq!(
            fault("fleet up --size 2", &help()),
            Some("no option --size".into())
        );
        assert_eq!(fault("fleet sink", &help()), Some("no verb fleet sink".into()));
        assert_eq!(fault("fleet …", &help()), None);
        assert_eq!(fault("--version", &help()), None);
    }
}
