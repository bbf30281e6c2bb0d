//! `explain` and `matrix` as a user calls them: arguments, both outputs, exit codes.

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Output, Stdio},
};

const THREE_TIERS: &str = include_str!("data/three-tiers.yaml");

struct Directory(tempfile::TempDir);

impl Directory {
    fn new(manifest: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("all.yaml"), manifest).unwrap();
        Self(dir)
    }

    fn command(&self, verb: &str, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_netpol-agent"));
        command.args([verb, "--manifests"]).arg(self.0.path()).args(args);
        command.env_remove("NETPOL_MANIFESTS").env("COLUMNS", "80");
        command
    }

    fn run(&self, verb: &str, args: &[&str]) -> Answer {
        Answer::of(self.command(verb, args).output().unwrap(), self.0.path())
    }

    fn flows(&self, input: &str) -> Answer {
        let mut command = self.command("explain", &["--flows", "-"]);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        Answer::of(child.wait_with_output().unwrap(), self.0.path())
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Answer {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Answer {
    fn of(output: Output, dir: &Path) -> Self {
        let text = |bytes| {
            String::from_utf8(bytes)
                .unwrap()
                .replace(&dir.display().to_string(), "DIR")
        };
        Self {
            code: output.status.code(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    fn new(code: i32, stdout: &str, stderr: &str) -> Self {
        Self {
            code: Some(code),
            stdout: stdout.into(),
            stderr: stderr.into(),
        }
    }
}

#[test]
fn one_flow_in_words() {
    let dir = Directory::new(THREE_TIERS);
    assert_eq!(
        dir.run(
            "explain",
            &["--from", "shop/client", "--to", "shop/db", "--port", "5432"]
        ),
        Answer::new(
            1,
            "DENIED  shop/client (10.0.0.2) -> shop/db (10.0.0.4)  TCP 5432\n  \
               egress   shop/client is not isolated: no policy selects it for egress\n  \
               ingress  shop/db is isolated by shop/db; no rule allows TCP 5432 from shop/client\n           \
                        shop/db (rule 0) allows TCP 5432, but not from shop/client\n",
            ""
        )
    );
    assert_eq!(
        dir.run(
            "explain",
            &["--from=shop/api", "--to=fd00::4", "--port=pg", "--family=6"]
        ),
        Answer::new(
            0,
            "ALLOWED  shop/api (fd00::3) -> shop/db (fd00::4)  TCP 5432\n  \
               egress   shop/api is not isolated: no policy selects it for egress\n  \
               ingress  shop/db is isolated by shop/db; allowed by shop/db (rule 0)\n",
            ""
        )
    );
    assert_eq!(
        dir.run("explain", &["--from=node/one", "--to=shop/db", "--protocol=icmp"]),
        Answer::new(
            0,
            "ALLOWED  node/one (192.168.0.1) -> shop/db (10.0.0.4)  ICMP\n  \
               egress   node/one is a node: no policy applies to it\n  \
               ingress  shop/db is isolated by shop/db, but node/one is its own node: always allowed\n",
            ""
        )
    );
}

#[test]
fn one_flow_as_json() {
    let dir = Directory::new(THREE_TIERS);
    assert_eq!(
        dir.run(
            "explain",
            &["--from=shop/api", "--to=10.0.0.4", "--port=5432", "-o", "json"]
        ),
        Answer::new(
            0,
            concat!(
                r#"{"verdict":"allow","from":{"name":"shop/api","kind":"pod","address":"10.0.0.3"},"#,
                r#""to":{"name":"shop/db","kind":"pod","address":"10.0.0.4"},"family":4,"protocol":"TCP","port":5432,"#,
                r#""egress":{"verdict":"allow","isolated":false,"policies":[],"rules":[]},"#,
                r#""ingress":{"verdict":"allow","isolated":true,"policies":["shop/db"],"#,
                r#""rules":[{"policy":"shop/db","rule":0}]},"#,
                r#""sentence":"shop/api may reach shop/db on TCP 5432: shop/db allows it for ingress."}"#,
                "\n"
            ),
            ""
        )
    );
}

#[test]
fn bad_questions_end_with_2() {
    let dir = Directory::new(THREE_TIERS);
    let error = |args: &[&str]| {
        let answer = dir.run("explain", args);
        assert_eq!((answer.code, &*answer.stdout), (Some(2), ""), "{args:?}");
        answer.stderr.lines().next().unwrap_or_default().to_owned()
    };
    assert_eq!(
        error(&["--from=shop/api", "--to=shop/db", "--port=web"]),
        "error: shop/db has no TCP port named `web`; it has pg (TCP 5432)"
    );
    assert_eq!(
        error(&["--from=shop/api", "--to=shop/done", "--port=1"]),
        "error: pod shop/done has completed: it has no address any more, so nothing can reach it or come from it"
    );
    assert_eq!(
        error(&["--from=shop/api", "--to=shop/db"]),
        "error: TCP needs a port: a number from 1 to 65535 or the name of one of the destination's ports"
    );
    assert_eq!(
        error(&["--from=shop/api", "--to=shop/db", "--port=65536"]),
        "error: invalid value '65536' for '--port <PORT>': `65536` is no port; write a number from 1 to 65535 or the \
         name of one of the destination's ports"
    );
    assert_eq!(
        error(&["--flows=/nonexistent/flows"]),
        "error: --flows /nonexistent/flows: No such file or directory (os error 2)"
    );
    assert_eq!(
        error(&["--from=shop/api"]),
        "error: the following required arguments were not provided:"
    );
}

#[test]
fn lines_of_flows_are_answered_in_order() {
    let dir = Directory::new(THREE_TIERS);
    let allowed = concat!(
        r#"{"verdict":"allow","egress":{"verdict":"allow","isolated":false,"policies":[],"rules":[]},"#,
        r#""ingress":{"verdict":"allow","isolated":true,"policies":["shop/db"],"rules":[{"policy":"shop/db","rule":0}]}}"#,
        "\n"
    );
    let denied = concat!(
        r#"{"verdict":"deny","egress":{"verdict":"allow","isolated":false,"policies":[],"rules":[]},"#,
        r#""ingress":{"verdict":"deny","isolated":true,"policies":["shop/db"],"rules":[]}}"#,
        "\n"
    );
    let ask_denied = r#"{"from":"shop/client","to":"shop/db","protocol":"TCP","port":5432}"#;
    let ask_allowed = r#"{"from":"shop/api","to":"shop/db","port":"pg"}"#;
    assert_eq!(
        dir.flows(&format!("{ask_denied}\n{ask_allowed}\n")),
        Answer::new(0, &format!("{denied}{allowed}"), "")
    );
    let bad = "{\"error\":\"line 1: `ftp` is no protocol; write TCP, UDP, SCTP, ICMP, ICMPv6 or a number from 0 to 255 \
               (column 17)\"}\n";
    assert_eq!(
        dir.flows(&format!("{{\"protocol\":\"ftp\"}}\n{ask_allowed}")),
        Answer::new(
            2,
            &format!("{bad}{allowed}"),
            "error: 1 line of --flows could not be answered; see `error` in the output\n"
        )
    );
}

/// Whoever asks line by line is answered line by line.
#[test]
fn flows_from_a_file() {
    let dir = Directory::new(THREE_TIERS);
    let file = dir.0.path().join("flows");
    fs::write(&file, r#"{"from":"shop/client","to":"shop/db","port":5432}"#).unwrap();
    let path = file.display().to_string();
    let plain = dir.run("explain", &["--flows", &path]);
    assert_eq!(plain.code, Some(0));
    assert_eq!(plain.stdout.lines().count(), 1);
    assert_eq!(dir.run("explain", &["--flows", &path, "-o", "json"]), plain);
    assert_eq!(
        dir.run("explain", &["--flows", &dir.0.path().display().to_string()]),
        Answer::new(2, "", "error: --flows DIR: is a directory\n")
    );
}

#[test]
fn an_answer_does_not_wait_for_the_next_question() {
    use std::io::{BufRead as _, BufReader};
    let dir = Directory::new(THREE_TIERS);
    let mut command = dir.command("explain", &["--flows", "-"]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut questions, answers) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut answers = BufReader::new(answers);
    for (from, verdict) in [("shop/api", "allow"), ("shop/client", "deny")] {
        writeln!(questions, r#"{{"from":"{from}","to":"shop/db","port":5432}}"#).unwrap();
        let mut answer = String::new();
        answers.read_line(&mut answer).unwrap();
        assert!(
            answer.starts_with(&format!(r#"{{"verdict":"{verdict}","#)),
            "{answer}"
        );
    }
    drop(questions);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn broken_manifests_never_pass_for_a_sound_answer() {
    let dir = Directory::new(&THREE_TIERS.replace("port: pg", "port: 70000"));
    let answer = dir.run("explain", &["--from=shop/api", "--to=shop/db", "--port=5432"]);
    assert_eq!(answer.code, Some(2));
    assert!(answer.stdout.starts_with("DENIED  shop/api"), "{}", answer.stdout);
    assert!(
        answer.stderr.starts_with("error: DIR/all.yaml:"),
        "{}",
        answer.stderr
    );
    assert_eq!(dir.run("matrix", &[]).code, Some(2));
    let nowhere = dir.run("matrix", &["--manifests=/nonexistent"]);
    assert_eq!((nowhere.code, &*nowhere.stdout), (Some(2), ""));
}

#[test]
fn a_matrix_over_all_ports() {
    let dir = Directory::new(THREE_TIERS);
    let table = "\
Who may reach whom: all protocols and ports, 5 ends. A row opens connections to a column.

              1 2 3 4
shop
  1 api       = ✓ a ✓
  2 client    ✓ = · ✓
  3 db        ✓ ✓ = ✓
  4 front ×2  ✓ ✓ · ✓

✓ allowed: no policy in the way   · denied   = itself
a TCP 5432: ingress by shop/db

isolated
  3 db        ingress by shop/db

not shown: shop/done (completed)
";
    assert_eq!(dir.run("matrix", &[]), Answer::new(0, table, ""));
}

#[test]
fn a_matrix_of_one_port_with_nodes_and_outsiders() {
    let dir = Directory::new(THREE_TIERS);
    let table = "\
Who may reach whom: TCP pg, 7 ends. A row opens connections to a column.

              1 2 3 4  5  6
shop
  1 api       - - a -  -  -
  2 client    - - · -  -  -
  3 db        - - = -  -  -
  4 front ×2  - - · -  -  -
nodes
  5 node/one  - - b -  -  -
outside
  6 8.8.8.8   - - · -  -  -

· denied   = itself   - no such port, or no address of that family
a ingress by shop/db
b ingress: its own node, always allowed

isolated
  3 db        ingress by shop/db

not shown: shop/done (completed)
";
    let args = ["--port=pg", "--nodes", "--outside=8.8.8.8"];
    assert_eq!(dir.run("matrix", &args), Answer::new(0, table, ""));
}

#[test]
fn a_matrix_for_programs() {
    let dir = Directory::new(&THREE_TIERS.replace("app: front", "app: api"));
    let csv = dir.run("matrix", &["-o", "csv"]);
    assert_eq!((csv.code, &*csv.stderr), (Some(0), ""));
    let lines: Vec<_> = csv.stdout.lines().collect();
    assert_eq!(lines.len(), 1 + 5 * 5);
    assert_eq!(
        lines[..4],
        [
            "from,to,verdict,ports,egress,egress_policies,ingress,ingress_policies,note",
            "shop/api,shop/api,allow,,allow,,allow,,itself",
            "shop/api,shop/client,allow,,allow,,allow,,",
            "shop/api,shop/db,some,TCP 5432,allow,,some,shop/db,",
        ]
    );
    let json = dir.run("matrix", &["-o", "json", "--port", "pg", "--outside", "8.8.8.8"]);
    let json: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!((&json["protocol"], &json["port"]), (&"TCP".into(), &"pg".into()));
    assert_eq!(
        json["ends"][5],
        serde_json::json!({"name": "8.8.8.8", "kind": "address", "addresses": ["8.8.8.8"]})
    );
    let pairs = json["pairs"].as_array().unwrap();
    assert_eq!(pairs.len(), 36);
    assert_eq!(
        pairs[1],
        serde_json::json!({
            "from": "shop/api", "to": "shop/client", "verdict": "n/a",
            "error": "shop/client has no TCP port named `pg`; it has no named ports",
        })
    );
    assert_eq!(
        pairs[6 * 5 + 2],
        serde_json::json!({
            "from": "8.8.8.8", "to": "shop/db", "verdict": "deny",
            "egress": {"verdict": "allow", "isolated": false, "policies": [], "rules": []},
            "ingress": {"verdict": "deny", "isolated": true, "policies": ["shop/db"], "rules": []},
        })
    );
}
