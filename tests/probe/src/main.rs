//! `netpol-probe`: the one program in the pods of the end-to-end tests. It listens, asks and counts.
//!
//! Every line that it prints is one JSON object. A target is `tcp:ADDRESS:PORT`, `udp:ADDRESS:PORT`, or
//! `connect:ADDRESS:PORT` for a TCP server that says nothing by itself.

mod ask;
mod attached;
mod born;
mod count;
mod first;
mod kill;
mod serve;
mod syn;
mod target;
mod text;

use std::process::ExitCode;

use target::Target;

const USAGE: &str = "\
netpol-probe serve [--name NAME] [--tcp PORT,..] [--udp PORT,..] [--syns on]
netpol-probe ask   [--from ADDRESS] [--timeout-ms N] TARGET..
netpol-probe count [--allow TARGET].. [--deny TARGET]..
netpol-probe first [--allow TARGET].. [--deny TARGET].. [--hold-ms N]
netpol-probe born  [--tcp PORT,..] [--udp PORT,..] [--hold-ms N]
netpol-probe hammer [--seconds N] TARGET..
netpol-probe kill  --name COMMAND [--every-ms N] [--seconds N]
netpol-probe look  PATH..
netpol-probe attached";

/// What follows the sub-command: options with values, and the rest.
#[derive(Debug, Default)]
struct Words {
    options: Vec<(String, String)>,
    rest: Vec<String>,
}

impl Words {
    fn parse(words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut found = Self::default();
        let mut words = words;
        while let Some(word) = words.next() {
            if let Some(name) = word.strip_prefix("--") {
                let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
                found.options.push((name.to_owned(), value));
            } else {
                found.rest.push(word);
            }
        }
        Ok(found)
    }

    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> + 'a {
        let own = self.options.iter().filter(move |(option, _)| option == name);
        own.map(|(_, value)| value.as_str())
    }

    fn number(&self, name: &str, default: u64) -> Result<u64, String> {
        self.all(name).last().map_or(Ok(default), |text| {
            text.parse().map_err(|error| format!("--{name} {text}: {error}"))
        })
    }

    fn ports(&self, name: &str) -> Result<Vec<u16>, String> {
        let listed = self.all(name).flat_map(|text| text.split(','));
        let words = listed.filter(|word| !word.is_empty());
        words
            .map(|word| word.parse().map_err(|error| format!("--{name} {word}: {error}")))
            .collect()
    }

    fn targets(&self, name: &str) -> Result<Vec<Target>, String> {
        self.all(name).map(str::parse).collect()
    }

    fn rest_targets(&self) -> Result<Vec<Target>, String> {
        self.rest.iter().map(|word| word.parse()).collect()
    }
}

fn run() -> Result<bool, String> {
    let mut words = std::env::args().skip(1);
    let verb = words.next().unwrap_or_default();
    let words = Words::parse(words)?;
    match verb.as_str() {
        "serve" => {
            let name = words.all("name").last().map(str::to_owned);
            let name = name
                .or_else(|| std::env::var("HOSTNAME").ok())
                .unwrap_or_default();
            let syns = words.all("syns").last().is_some();
            serve::run(&name, &words.ports("tcp")?, &words.ports("udp")?, syns)
        }
        "ask" => {
            let from = words.all("from").last().map(str::parse).transpose();
            let from = from.map_err(|error| format!("--from: {error}"))?;
            ask::run(from, words.number("timeout-ms", 800)?, &words.rest_targets()?)
        }
        "count" => count::run(&words.targets("allow")?, &words.targets("deny")?),
        "first" => first::run(
            &words.targets("allow")?,
            &words.targets("deny")?,
            words.number("hold-ms", 1000)?,
        ),
        "born" => born::run(
            &words.ports("tcp")?,
            &words.ports("udp")?,
            words.number("hold-ms", 1000)?,
        ),
        "hammer" => born::hammer(words.number("seconds", 5)?, &words.rest_targets()?),
        "kill" => {
            let name = words.all("name").last().ok_or("kill needs --name")?;
            kill::run(
                name,
                words.number("every-ms", 1000)?,
                words.number("seconds", 60)?,
            )
        }
        "attached" => attached::run(),
        "look" => kill::look(&words.rest),
        _ => Err(USAGE.to_owned()),
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(fine) => ExitCode::from(u8::from(!fine)),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}
