use std::io::{self, Read, Write as _};

use netpol_policy::{compile, model::Snapshot, tables::Tables};

use super::{ask, three_tiers};
use crate::query::{
    Judge,
    bulk::{self, Tally},
    line::MAX_LINE,
};

fn lines(judge: &Judge<'_>, input: &str) -> (Tally, Vec<String>) {
    let mut output = Vec::new();
    let tally = bulk::run(judge, input.as_bytes(), &mut output, 2).unwrap();
    let text = String::from_utf8(output).unwrap();
    (tally, text.lines().map(String::from).collect())
}

#[test]
fn every_line_is_answered_in_its_place() {
    let snapshot = three_tiers();
    let judge = Judge::new(&snapshot, compile::full);
    let input = concat!(
        r#"{"from":"shop/api","to":"shop/db","port":"pg","note":"ignored"}"#,
        "\r\n\n[\"shop/api\",\"shop/db\"]\n",
        r#"{"from":"shop/api","to":"shop/db","port":65536}"#,
        "\n",
        r#"{"from":"fd00::2","to":"10.0.0.4","port":"80","protocol":"udp"}"#,
        "\n",
        r#"{"from":"shop/client","to":"10.0.0.4","port":null,"protocol":1,"family":"4"}"#,
        "\n",
        r#"{"to":"shop/db","port":1}"#,
        "\n",
        r#"{"from":"shop/api","to":"shop/db","port":-1}"#,
        "\n",
    );
    let long = format!(r#"{{"from":"{}"}}"#, "x".repeat(70_000));
    let (tally, answers) = lines(
        &judge,
        &format!(
            "{input}{long}\n{}",
            r#"{"from":"8.8.8.8","to":"shop/db","port":9090}"#
        ),
    );
    let api = ask("shop/api", "shop/db", "pg", None).unwrap().0;
    let ping = ask("shop/client", "shop/db", "icmp", None).unwrap().0;
    let outside = ask("8.8.8.8", "shop/db", "9090", None).unwrap().0;
    let no_object = r#"not a JSON object; write {\"from\":…,\"to\":…,\"protocol\":…,\"port\":…}"#;
    let error = |text: &str| format!(r#"{{"error":"{text}"}}"#);
    assert_eq!(
        answers,
        [
            api,
            error(&format!("line 2: {no_object}")),
            error(&format!("line 3: {no_object}")),
            error(
                "line 4: `65536` is no port; write a number from 1 to 65535 or the name of one of the destination's \
                 ports (column 46)"
            ),
            error("line 5: shop/client (fd00::2) and shop/db (10.0.0.4) have no address family in common"),
            ping,
            error("line 7: missing field `from` (column 25)"),
            error("line 8: invalid type: integer `-1`, expected a port's number or name (column 43)"),
            error("line 9: longer than 64 KiB"),
            outside,
        ]
    );
    assert_eq!(
        tally,
        Tally {
            answered: 3,
            bad: 7,
            mismatches: 0
        }
    );
}

/// A compiler that isolates nobody.
fn wrong(snapshot: &Snapshot, node: &str) -> Tables {
    Tables {
        pods: Default::default(),
        ..compile::full(snapshot, node)
    }
}

#[test]
fn tables_that_disagree_are_an_error_not_a_verdict() {
    let snapshot = three_tiers();
    let judge = Judge::new(&snapshot, wrong);
    let (tally, answers) = lines(&judge, r#"{"from":"shop/client","to":"shop/db","port":80}"#);
    let answer: serde_json::Value = serde_json::from_str(&answers[0]).unwrap();
    let side = |isolated, allowed| serde_json::json!({"isolated": isolated, "allowed": allowed});
    assert_eq!(
        answer,
        serde_json::json!({
            "error": "line 1: an error of netpol's own: the policies and the compiled tables disagree; egress: allowed \
                (not isolated) by the policies, allowed (not isolated) by the tables; ingress: denied by the policies, \
                allowed (not isolated) by the tables; please report it with these manifests",
            "oracle": {"egress": side(false, true), "ingress": side(true, false)},
            "tables": {"egress": side(false, true), "ingress": side(false, true)},
        })
    );
    assert_eq!(
        tally,
        Tally {
            mismatches: 1,
            ..Tally::default()
        }
    );
}

/// Gives its bytes away a few at a time, as a pipe may.
struct Trickle<'t>(&'t [u8], usize);

impl Read for Trickle<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.1.min(self.0.len()).min(buffer.len());
        let (now, later) = self.0.split_at(count);
        buffer[..count].copy_from_slice(now);
        self.0 = later;
        Ok(count)
    }
}

#[test]
fn neither_threads_nor_the_cut_of_the_input_change_the_answers() {
    let snapshot = three_tiers();
    let judge = Judge::new(&snapshot, compile::full);
    let ends = [
        "shop/client",
        "shop/api",
        "shop/db",
        "10.0.0.4",
        "8.8.8.8",
        "shop/none",
    ];
    let mut input: Vec<u8> = Vec::new();
    for number in 0..2000 {
        let (from, to) = (ends[number % 5], ends[number % 6]);
        let port = number % 7 + 9085;
        writeln!(input, r#"{{"from":"{from}","to":"{to}","port":{port}}}"#).unwrap();
    }
    let long = format!("{}\n", "x".repeat(MAX_LINE * 20));
    input.extend_from_slice(long.as_bytes());
    let answer = |input: &mut dyn Read, workers| {
        let mut output = Vec::new();
        let tally = bulk::run(&judge, input, &mut output, workers).unwrap();
        (tally, String::from_utf8(output).unwrap())
    };
    let (tally, whole) = answer(&mut &input[..], 1);
    let lines: Vec<_> = whole.lines().collect();
    assert_eq!(
        tally,
        Tally {
            answered: 1667,
            bad: 334,
            mismatches: 0
        }
    );
    assert_eq!(lines.len(), 2001);
    assert_eq!(lines[2000], r#"{"error":"line 2001: longer than 64 KiB"}"#);
    for (size, workers) in [(usize::MAX, 3), (1000, 3), (77, 1)] {
        assert_eq!(
            answer(&mut Trickle(&input, size), workers),
            (tally, whole.clone())
        );
    }
}
