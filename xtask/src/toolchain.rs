//! Which compiler, `core` source and linker build the eBPF object.
//!
//! Two ways work, and the one that needs no download wins:
//! - Debian's `rustc-web`, `cargo-web`, `rust-web-src` (the compiler and the source of exactly that compiler's `core`);
//! - a rustup nightly with the component `rust-src`.
//!
//! Both need a `bpf-linker` whose LLVM is not older than the compiler's.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::ui::root;

/// The release that `setup` installs.
pub(crate) const BPF_LINKER_VERSION: &str = "0.13.0";

/// Debian's compiler, its source, and what `bpf-linker` is built with.
pub(crate) const DEBIAN_PACKAGES: &[&str] = &[
    "rustc-web",
    "cargo-web",
    "rust-web-src",
    "llvm-22-dev",
    "libpolly-22-dev",
    "libzstd-dev",
    "g++",
];

/// The LLVM of [`DEBIAN_PACKAGES`].
pub(crate) const DEBIAN_LLVM: &str = "/usr/lib/llvm-22";

/// Where a compiler with the source of its `core` comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compiler {
    /// `/usr/bin/rustc` and `/usr/bin/cargo`
    Debian,
    /// `rustup run nightly`
    Nightly,
}

impl Compiler {
    /// The compiler that is here and has its source.
    pub(crate) fn find() -> Option<Self> {
        [Self::Debian, Self::Nightly]
            .into_iter()
            .find(|compiler| compiler.has_source())
    }

    fn rustc(self) -> Command {
        let mut command = match self {
            Self::Debian => Command::new("/usr/bin/rustc"),
            Self::Nightly => {
                let mut command = Command::new("rustup");
                command.args(["run", "nightly", "rustc"]);
                command
            }
        };
        without_cargo_environment(&mut command);
        command
    }

    fn has_source(self) -> bool {
        let sysroot = output(self.rustc().args(["--print", "sysroot"]));
        let cargo = self != Self::Debian || Path::new("/usr/bin/cargo").exists();
        cargo && sysroot.is_some_and(|at| Path::new(&at).join("lib/rustlib/src/rust/library/core").exists())
    }

    /// `1.96.0` and the major number of its LLVM.
    pub(crate) fn version(self) -> Option<(String, u32)> {
        let text = output(self.rustc().arg("-vV"))?;
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name))
                .map(str::trim)
        };
        let llvm = field("LLVM version:")?.split('.').next()?.parse().ok()?;
        Some((field("release:")?.to_owned(), llvm))
    }

    /// `cargo ARGS…` with this compiler, blind to the toolchain that runs xtask.
    pub(crate) fn cargo(self, subcommand: &str) -> Command {
        let mut command = match self {
            Self::Debian => {
                let mut command = Command::new("/usr/bin/cargo");
                command.env("RUSTC", "/usr/bin/rustc").env("RUSTC_BOOTSTRAP", "1");
                command
            }
            Self::Nightly => {
                let mut command = Command::new("rustup");
                command.args(["run", "nightly", "cargo"]);
                command
            }
        };
        command.arg(subcommand).current_dir(root());
        without_cargo_environment(&mut command);
        if self == Self::Debian {
            // Before rustup's shims, which know nothing of this compiler.
            let path = env::var_os("PATH").unwrap_or_default();
            let path = env::split_paths("/usr/bin").chain(env::split_paths(&path));
            if let Ok(path) = env::join_paths(path) {
                command.env("PATH", path);
            }
        }
        command
    }
}

/// A linker, and the major number of its LLVM where its file tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Linker {
    /// The program.
    pub(crate) path: PathBuf,
    /// `None`: linked statically.
    pub(crate) llvm: Option<u32>,
}

impl Linker {
    /// A linker that is here and whose LLVM is known to be new enough, one in `PATH` before our own.
    pub(crate) fn find(llvm: u32) -> Option<Self> {
        let paths = env::var_os("PATH").unwrap_or_default();
        env::split_paths(&paths)
            .chain([own_tools().join("bin")])
            .filter_map(|dir| Self::at(&dir.join("bpf-linker")))
            .find(|linker| linker.llvm.is_some_and(|version| version >= llvm))
    }

    /// The linker at `path`, if it starts.
    pub(crate) fn at(path: &Path) -> Option<Self> {
        if !path.is_file() {
            return None;
        }
        output(Command::new(path).arg("--version"))?;
        let llvm = linked_llvm(&fs::read(path).ok()?);
        Some(Self {
            path: path.to_path_buf(),
            llvm,
        })
    }
}

/// Everything that builds the eBPF object.
#[derive(Clone, Debug)]
pub(crate) struct Toolchain {
    /// The compiler.
    pub(crate) compiler: Compiler,
    /// Its release.
    pub(crate) release: String,
    /// The linker.
    pub(crate) linker: Linker,
}

impl Toolchain {
    /// What is here, if it is complete.
    pub(crate) fn find() -> Option<Self> {
        let compiler = Compiler::find()?;
        let (release, llvm) = compiler.version()?;
        Some(Self {
            compiler,
            release,
            linker: Linker::find(llvm)?,
        })
    }

    /// One line: what was chosen.
    pub(crate) fn describe(&self) -> String {
        let compiler = match self.compiler {
            Compiler::Debian => "Debian's rustc",
            Compiler::Nightly => "rustup's nightly",
        };
        let llvm = self
            .linker
            .llvm
            .map(|version| format!(" (LLVM {version})"))
            .unwrap_or_default();
        format!(
            "{compiler} {}, {}{llvm}",
            self.release,
            shorten(&self.linker.path)
        )
    }
}

/// Where tools of the project's own are installed.
pub(crate) fn own_tools() -> PathBuf {
    root().join(".cache/tools")
}

/// Which of `packages` dpkg does not have installed.
pub(crate) fn absent_packages(packages: &[&str]) -> Vec<String> {
    let query = Command::new("dpkg-query")
        .args(["-W", "-f", "${Package} ${db:Status-Status}\n"])
        .args(packages)
        .output();
    let text = query
        .map(|done| String::from_utf8_lossy(&done.stdout).into_owned())
        .unwrap_or_default();
    let here = |name: &str| {
        text.lines()
            .any(|line| line.split_once(' ') == Some((name, "installed")))
    };
    packages
        .iter()
        .filter(|name| !here(name))
        .map(|name| (*name).to_owned())
        .collect()
}

/// Takes away what cargo and rustup told the process that runs xtask about *its* toolchain and package.
pub(crate) fn without_cargo_environment(command: &mut Command) {
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let package = text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_");
        let one = [
            "CARGO",
            "RUSTC",
            "RUSTUP_TOOLCHAIN",
            "RUSTFLAGS",
            "CARGO_ENCODED_RUSTFLAGS",
            "LD_LIBRARY_PATH",
        ];
        if package || one.contains(&&*text) {
            command.env_remove(&name);
        }
    }
}

/// The version in the first `libLLVM.so.NN` or `libLLVM-NN` of an ELF file's strings.
fn linked_llvm(elf: &[u8]) -> Option<u32> {
    let number = |at: &[u8]| {
        let digits: String = at
            .iter()
            .take_while(|b| b.is_ascii_digit())
            .map(|b| char::from(*b))
            .collect();
        digits.parse().ok()
    };
    [&b"libLLVM.so."[..], b"libLLVM-"].iter().find_map(|name| {
        elf.windows(name.len())
            .enumerate()
            .filter(|(_, window)| window == name)
            .find_map(|(at, _)| number(&elf[at + name.len()..]))
    })
}

fn output(command: &mut Command) -> Option<String> {
    let done = command.output().ok()?;
    done.status
        .success()
        .then(|| String::from_utf8_lossy(&done.stdout).trim().to_owned())
}

fn shorten(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llvm_is_read_from_the_needed_library() {
        assert_eq!(linked_llvm(b"\0libLLVM.so.22.1\0"), Some(22));
        assert_eq!(linked_llvm(b"\0libLLVM-14.so.1\0"), Some(14));
        assert_eq!(linked_llvm(b"libLLVM-x libLLVM.so.\0"), None);
    }
}
