//! Keys and certificates, by openssl's command line, and kubeconfigs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::daemon::{call, write};

/// A directory of keys and certificates that one authority has signed.
#[derive(Debug, Clone)]
pub(super) struct Pki {
    pub(super) dir: PathBuf,
}

/// The user whose group may do everything.
pub(super) const ADMIN: &str = "admin";

impl Pki {
    /// A new authority in `dir`, and the key of service accounts.
    ///
    /// # Errors
    /// openssl fails.
    pub(super) fn create(dir: &Path) -> Result<Self> {
        // The distribution's own configuration would make every certificate an authority.
        write(&dir.join("openssl.cnf"), "[req]\ndistinguished_name=dn\n[dn]\n")?;
        let this = Self { dir: dir.to_owned() };
        let authority = ["-addext", "basicConstraints=critical,CA:TRUE"];
        call(this.request("ca", "/CN=netpol-cluster").args(authority))?;
        let mut key = Command::new("openssl");
        key.current_dir(dir);
        call(key.args([
            "ecparam",
            "-name",
            "prime256v1",
            "-genkey",
            "-noout",
            "-out",
            "sa.key",
        ]))?;
        let mut public = Command::new("openssl");
        public.current_dir(dir);
        call(public.args(["ec", "-in", "sa.key", "-pubout", "-out", "sa.pub"]))?;
        Ok(this)
    }

    /// A certificate for server and client, and its key.
    ///
    /// # Errors
    /// openssl fails.
    pub(super) fn issue(&self, file: &str, user: &str, group: &str, names: &[String]) -> Result<()> {
        let mut request = self.request(file, &format!("/O={group}/CN={user}"));
        request.args(["-CA", "ca.crt", "-CAkey", "ca.key"]);
        // With an extension openssl makes version 3, the only one that rustls takes.
        request.args(["-addext", "extendedKeyUsage=serverAuth,clientAuth"]);
        if !names.is_empty() {
            request
                .arg("-addext")
                .arg(format!("subjectAltName={}", names.join(",")));
        }
        call(&mut request).map(drop)
    }

    fn request(&self, file: &str, subject: &str) -> Command {
        let mut openssl = Command::new("openssl");
        openssl
            .current_dir(&self.dir)
            .args(["req", "-x509", "-config", "openssl.cnf", "-nodes", "-days", "365"])
            .args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
            .args(["-subj", subject, "-keyout"])
            .arg(format!("{file}.key"))
            .arg("-out")
            .arg(format!("{file}.crt"));
        openssl
    }

    /// The path of a file.
    pub(super) fn path(&self, file: &str) -> String {
        self.dir.join(file).display().to_string()
    }

    /// Writes a kubeconfig that needs no other file.
    ///
    /// # Errors
    /// A file can't be read or written.
    pub(super) fn kubeconfig(&self, server: &str, file: &str, to: &Path) -> Result<()> {
        let data = |name: String| -> Result<String> {
            let path = self.dir.join(name);
            let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            Ok(base64(&bytes))
        };
        let text = format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: netpol\n  cluster:\n    server: {server}\n    certificate-authority-data: {}\n\
             users:\n- name: {file}\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\n\
             contexts:\n- name: netpol\n  context:\n    cluster: netpol\n    user: {file}\ncurrent-context: netpol\n",
            data("ca.crt".into())?,
            data(format!("{file}.crt"))?,
            data(format!("{file}.key"))?,
        );
        write(to, text)
    }
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let mut word = [0; 4];
        word[1..=chunk.len()].copy_from_slice(chunk);
        let word = u32::from_be_bytes(word);
        for place in 0..4 {
            let letter = LETTERS[(word >> (18 - 6 * place) & 63) as usize];
            text.push(if place > chunk.len() { '=' } else { letter.into() });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (plain, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), text);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xfe]), "+//+");
    }
}
