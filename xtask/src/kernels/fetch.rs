//! Debian's kernels, fetched beside the machine's own packages: a sources list, list directory and cache of
//! their own, so that apt's state on this machine stays as it is.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};

use super::Kernel;
use crate::ui::{say, seconds};

/// One unpacked kernel.
#[derive(Debug)]
pub(super) struct Tree {
    /// The compressed kernel image.
    pub(super) image: PathBuf,
    /// `…/lib/modules/RELEASE`
    pub(super) modules: PathBuf,
    /// `uname -r`
    pub(super) release: String,
}

/// The kernel of `kernel.suite`, unpacked under `cache`; fetched where it is not there yet.
///
/// # Errors
/// When the machine has no Debian mirror, or apt or dpkg fails.
pub(super) fn kernel(cache: &Path, kernel: &Kernel) -> Result<Tree> {
    let dir = cache.join(kernel.version);
    let tree = dir.join("tree");
    if !tree.exists() {
        let start = Instant::now();
        let package = download(&dir, kernel)?;
        let part = dir.join("tree.part");
        remove_dir(&part)?;
        run(Command::new("dpkg").arg("-x").args([&package, &part]))?;
        fs::remove_file(&package).with_context(|| format!("removing {}", package.display()))?;
        fs::rename(&part, &tree).with_context(|| format!("moving {} into place", part.display()))?;
        let what = format!("Debian's kernel {}", kernel.version);
        say(&what, &format!("fetched in {}", seconds(start.elapsed())));
    }
    unpacked(&tree).with_context(|| format!("{} is not a kernel: delete it and run again", tree.display()))
}

fn unpacked(tree: &Path) -> Result<Tree> {
    let modules = ["usr/lib/modules", "lib/modules"]
        .into_iter()
        .map(|path| tree.join(path))
        .find(|path| path.is_dir())
        .context("no modules")?;
    let release = fs::read_dir(&modules)?
        .next()
        .context("no release under the modules")??
        .file_name()
        .into_string()
        .map_err(|name| anyhow::anyhow!("release {name:?} is not UTF-8"))?;
    let image = tree.join(format!("boot/vmlinuz-{release}"));
    ensure!(image.exists(), "no {}", image.display());
    Ok(Tree {
        image,
        modules: modules.join(&release),
        release,
    })
}

/// Downloads the package that the suite's metapackage stands for and returns the file.
fn download(dir: &Path, kernel: &Kernel) -> Result<PathBuf> {
    let apt = dir.join("apt");
    remove_dir(&apt)?;
    for part in ["lists/partial", "archives/partial"] {
        fs::create_dir_all(apt.join(part))
            .with_context(|| format!("creating {}", apt.join(part).display()))?;
    }
    let sources = apt.join("debian.sources");
    let stanza = format!(
        "Types: deb\nURIs: {}\nSuites: {}\nComponents: main\nArchitectures: amd64\nTargets: Packages\n\
         Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n",
        mirror()?,
        kernel.suite
    );
    fs::write(&sources, stanza).with_context(|| format!("writing {}", sources.display()))?;
    run(own("apt-get", &apt).args(["-q", "update"]))?;
    let depends = output(own("apt-cache", &apt).args(["depends", "linux-image-cloud-amd64"]))?;
    let package = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
        .with_context(|| format!("linux-image-cloud-amd64 of {} depends on nothing", kernel.suite))?;
    run(own("apt-get", &apt)
        .args(["-q", "download", package])
        .current_dir(dir))?;
    fs::remove_dir_all(&apt).with_context(|| format!("removing {}", apt.display()))?;
    let downloaded = fs::read_dir(dir)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"));
    downloaded.with_context(|| format!("apt-get download {package} left no file in {}", dir.display()))
}

/// An apt command that sees only the sources, lists and cache in `apt`.
fn own(program: &str, apt: &Path) -> Command {
    let mut command = Command::new(program);
    let dir = apt.display();
    for option in [
        format!("Dir::Etc::sourcelist={dir}/debian.sources"),
        "Dir::Etc::sourceparts=/dev/null".into(),
        format!("Dir::State::lists={dir}/lists"),
        "Dir::State::status=/dev/null".into(),
        format!("Dir::Cache={dir}"),
        "Acquire::Languages=none".into(),
        // The checkout need not be readable for apt's own user.
        "APT::Sandbox::User=root".into(),
    ] {
        command.args(["-o", &option]);
    }
    command
}

/// The Debian mirror that this machine uses.
fn mirror() -> Result<String> {
    let list = || {
        output(Command::new("apt-get").args([
            "indextargets",
            "--format",
            "$(REPO_URI) $(CODENAME)",
            "Created-By: Packages",
            "Origin: Debian",
        ]))
    };
    // The suites of a plain mirror have plain names; `bookworm-security` and the like live elsewhere.
    let plain = |text: &str| {
        text.lines()
            .filter_map(|line| line.split_once(' '))
            .find(|(_, suite)| !suite.contains('-'))
            .map(|(uri, _)| uri.to_owned())
    };
    if let Some(uri) = plain(&list()?) {
        return Ok(uri);
    }
    run(Command::new("apt-get").args(["-q", "update"]))?;
    plain(&list()?).context(
        "this machine's apt knows no Debian mirror, from which the kernels come: \
         add one to /etc/apt/sources.list.d and run `apt-get update`",
    )
}

pub(super) fn remove_dir(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("removing {}", dir.display()))?;
    }
    Ok(())
}

/// Runs a command quietly; its output is shown only when it fails.
pub(super) fn run(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

/// Standard output of a command that must succeed.
pub(super) fn output(command: &mut Command) -> Result<String> {
    let done = command
        .output()
        .with_context(|| format!("starting {}", command.get_program().to_string_lossy()))?;
    if !done.status.success() {
        bail!(
            "{command:?} failed ({}):\n{}{}",
            done.status,
            String::from_utf8_lossy(&done.stdout),
            String::from_utf8_lossy(&done.stderr)
        );
    }
    String::from_utf8(done.stdout).with_context(|| format!("{command:?} wrote something that is not UTF-8"))
}
