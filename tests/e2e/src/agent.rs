//! What an agent says itself, asked without the API server; and its end.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{cluster::Node, local::Local};

/// `NETPOL_LISTEN` of the manifest.
const PORT: u16 = 9478;
/// For an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The code and the text of one of its paths.
///
/// # Errors
/// It does not answer.
pub(crate) fn get(node: &Node, path: &str) -> Result<(u16, String)> {
    let address: &IpAddr = node
        .addresses
        .first()
        .with_context(|| format!("node {} has no address", node.name))?;
    let address = SocketAddr::new(*address, PORT);
    let asked = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = asked().with_context(|| format!("asking {} for {path}", node.name))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let code = head.split_whitespace().nth(1).and_then(|code| code.parse().ok());
    let code = code.with_context(|| format!("{} answered {answer:?}", node.name))?;
    Ok((code, body.to_owned()))
}

/// The value of a metric without labels.
///
/// # Errors
/// The agent does not answer, or has no such metric.
pub(crate) fn metric(node: &Node, name: &str) -> Result<f64> {
    let (code, text) = get(node, "/metrics")?;
    ensure!(
        code == 200,
        "{} answered {code} to a request for /metrics",
        node.name
    );
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value = value.with_context(|| format!("{} has no metric {name}", node.name))?;
    value
        .trim()
        .parse()
        .with_context(|| format!("{name} of {} is {value}", node.name))
}

/// Kills the node's agent with SIGKILL.
///
/// # Errors
/// There is none.
pub(crate) fn kill(local: &Local, node: &Node) -> Result<()> {
    // All nodes are in one PID namespace; the agent is in its node's network.
    let script = "own=$(readlink /proc/self/ns/net); killed=
        for dir in /proc/[0-9]*; do
          read -r name 2>/dev/null <$dir/comm || continue
          if [ \"$name\" = netpol-agent ] && [ \"$(readlink $dir/ns/net)\" = \"$own\" ]; then
            kill -9 ${dir#/proc/}; killed=yes
          fi
        done
        [ -n \"$killed\" ]";
    local
        .in_node(&node.name, script)
        .map(drop)
        .with_context(|| format!("killing the agent of {}", node.name))
}
