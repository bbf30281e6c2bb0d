//! kubectl as a subprocess: objects in and out as JSON.

use std::{
    io::Write as _,
    net::IpAddr,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::stop;

/// How a cluster is reached.
#[derive(Clone, Debug)]
pub(crate) struct Kubectl {
    pub(crate) program: PathBuf,
    /// Without it kubectl's own choice.
    pub(crate) kubeconfig: Option<PathBuf>,
}

impl Kubectl {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(args);
        if let Some(file) = &self.kubeconfig {
            command.env("KUBECONFIG", file);
        }
        // A proxy would be asked for addresses that it can't reach.
        for proxy in [
            "http_proxy",
            "https_proxy",
            "HTTP_PROXY",
            "HTTPS_PROXY",
            "all_proxy",
            "ALL_PROXY",
        ] {
            command.env_remove(proxy);
        }
        command
    }

    /// Runs it, and returns its standard output.
    ///
    /// # Errors
    /// It fails: what it said is in the error.
    pub(crate) fn run(&self, args: &[&str]) -> Result<String> {
        self.run_with(args, "")
    }

    /// [`Self::run`] with a standard input.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub(crate) fn run_with(&self, args: &[&str], input: &str) -> Result<String> {
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", self.program.display()))?;
        if let Some(mut stdin) = child.stdin.take() {
            // Who does not read its input says why by its status.
            let _ = stdin.write_all(input.as_bytes());
        }
        let done = child
            .wait_with_output()
            .with_context(|| format!("waiting for {}", self.program.display()))?;
        if !done.status.success() {
            bail!(
                "{} {} failed ({}): {}",
                self.program.file_name().unwrap_or_default().display(),
                args.join(" "),
                done.status,
                String::from_utf8_lossy(&done.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    }

    /// `get` as JSON.
    ///
    /// # Errors
    /// As [`Self::run`], or what came is no JSON.
    pub(crate) fn get(&self, args: &[&str]) -> Result<Value> {
        let text = self.run(&[&["get", "-o", "json"], args].concat())?;
        serde_json::from_str(&text).with_context(|| format!("kubectl get {}: no JSON", args.join(" ")))
    }

    /// The items of a list.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(crate) fn list(&self, args: &[&str]) -> Result<Vec<Value>> {
        let mut list = self.get(args)?;
        match list["items"].take() {
            Value::Array(items) => Ok(items),
            _ => Ok(vec![list]),
        }
    }

    /// `apply`
    ///
    /// # Errors
    /// As [`Self::run`].
    pub(crate) fn apply(&self, objects: &[Value]) -> Result<()> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        self.run_with(&["apply", "-f", "-"], &list.to_string()).map(drop)
    }

    /// Reads a file of manifests as JSON objects, as kubectl understands it; nothing is changed.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub(crate) fn read(&self, file: &str) -> Result<Vec<Value>> {
        let text = self.run(&[
            "create",
            "--dry-run=client",
            "--validate=false",
            "-o",
            "json",
            "-f",
            file,
        ])?;
        let stream = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
        let mut objects = Vec::new();
        for object in stream {
            let mut object = object.with_context(|| format!("{file}: no JSON"))?;
            match object["items"].take() {
                Value::Array(items) => objects.extend(items),
                _ => objects.push(object),
            }
        }
        for object in &mut objects {
            if let Some(fields) = object.as_object_mut() {
                fields.retain(|name, value| name != "status" && !value.is_null());
            }
        }
        Ok(objects)
    }

    /// Runs a command in a pod; `pod` is what `exec` takes: a name, or `deploy/NAME`.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub(crate) fn exec(&self, namespace: &str, pod: &str, command: &[&str]) -> Result<String> {
        self.run(&[&["exec", "-n", namespace, pod, "--"], command].concat())
    }

    /// The last lines of a pod's log.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub(crate) fn log(&self, namespace: &str, pod: &str, lines: u32) -> Result<String> {
        self.run(&["logs", "-n", namespace, pod, &format!("--tail={lines}")])
    }

    /// Gives a Service a load balancer's addresses, as a cloud's controller would.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub(crate) fn balance(&self, namespace: &str, service: &str, addresses: &[IpAddr]) -> Result<()> {
        let ingress: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
        let status = json!({"status": {"loadBalancer": {"ingress": ingress}}}).to_string();
        let words = [
            "patch",
            "service",
            service,
            "-n",
            namespace,
            "--subresource=status",
        ];
        self.run(&[&words[..], &["--type=merge", "-p", &status]].concat())
            .map(drop)
    }

    /// Waits until every pod of the namespace is ready, or has ended well.
    ///
    /// # Errors
    /// One is not in time: all of them are in the error.
    pub(crate) fn wait_for_pods(&self, namespace: &str) -> Result<()> {
        until(Duration::from_secs(180), || {
            let pods = self.list(&["pods", "-n", namespace])?;
            let waits = pods.iter().filter(|pod| !is_ready(pod)).count();
            if !pods.is_empty() && waits == 0 {
                return Ok(());
            }
            bail!("{waits} of {} pods of {namespace} are not ready", pods.len())
        })
        .map_err(|error| {
            let shown = self.run(&["get", "pods", "-n", namespace, "-o", "wide"]);
            error.context(shown.unwrap_or_default())
        })
    }
}

fn is_ready(pod: &Value) -> bool {
    if pod["status"]["phase"] == "Succeeded" {
        return true;
    }
    let conditions = pod["status"]["conditions"].as_array();
    pod["metadata"]["deletionTimestamp"].is_null()
        && conditions.is_some_and(|all| {
            all.iter()
                .any(|one| one["type"] == "Ready" && one["status"] == "True")
        })
}

/// Tries again and again until it succeeds.
///
/// # Errors
/// The last one, when the time is over; or the run was stopped.
pub(crate) fn until<T>(limit: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        stop::check()?;
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() > limit => {
                return Err(error.context(format!("for {} s", limit.as_secs())));
            }
            Err(_) => thread::sleep(Duration::from_millis(200)),
        }
    }
}
