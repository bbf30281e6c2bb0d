//! What the chart's NOTES.txt tells people to type, followed in thought: each command means something at its place.

use anyhow::Result;

use super::{
    compare::Objects,
    rendered,
    renderers::{Release, Renderers},
};

/// Each wrong command in one line, for releases by default and by other names and values.
pub(super) fn faults(renderers: &Renderers) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    for (name, namespace, values) in [
        ("netpol", "netpol-system", &[][..]),
        ("np", "other", &["listen.port=9999"]),
        ("np", "other", &["cleanup.enabled=true"]),
    ] {
        let release = Release {
            name,
            namespace,
            values,
        };
        let notes = renderers.notes(release)?;
        let render = |values: &[&str]| rendered(&renderers.helm_as(Release { values, ..release })?);
        let found = follow(&notes, release, render)?;
        faults.extend(
            found
                .into_iter()
                .map(|fault| format!("NOTES.txt of {release:?}: {fault}")),
        );
    }
    Ok(faults)
}

/// Commands are the lines that are set off.
fn follow(
    notes: &str,
    release: Release<'_>,
    render: impl Fn(&[&str]) -> Result<Objects>,
) -> Result<Vec<String>> {
    let Release { name, namespace, .. } = release;
    let mut values = release.values.to_vec();
    let mut objects = Some(render(&values)?);
    let mut faults = Vec::new();
    for command in notes.lines().filter_map(|line| line.strip_prefix("  ")) {
        let words: Vec<&str> = command.split_whitespace().collect();
        let after = |flag: &str| {
            let at = words.iter().position(|word| *word == flag)?;
            words.get(at + 1).copied()
        };
        let has = |id: &str| objects.as_ref().is_some_and(|objects| objects.contains_key(id));
        let right = after("--namespace") == Some(namespace)
            && match *words {
                ["kubectl", "rollout", "status", "daemonset", .., what] => {
                    has(&format!("DaemonSet {namespace}/{what}"))
                }
                ["helm", "upgrade", of, "CHART", ..] => of == name && objects.is_some(),
                // Without the cleaning before it what is in force would stay.
                ["helm", "uninstall", of, ..] => {
                    of == name && has(&format!("DaemonSet {namespace}/netpol-cleanup"))
                }
                _ => false,
            };
        if !right {
            faults.push(format!("`{command}` means nothing there"));
        }
        match words[..] {
            ["helm", "upgrade", ..] => {
                values.extend(after("--set"));
                objects = Some(render(&values)?);
            }
            ["helm", "uninstall", ..] => objects = None,
            _ => {}
        }
    }
    if objects.is_some() {
        faults.push("the way does not end with an uninstall".to_owned());
    }
    Ok(faults)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn faults_of(notes: &str) -> Vec<String> {
        let render = |values: &[&str]| {
            let name = match values.contains(&"cleanup.enabled=true") {
                true => "netpol-cleanup",
                false => "netpol-agent",
            };
            Ok(Objects::from([(format!("DaemonSet n/{name}"), Value::Null)]))
        };
        let release = Release {
            name: "r",
            namespace: "n",
            values: &[],
        };
        follow(notes, release, render).expect("it renders")
    }

    #[test]
    fn each_command_means_something_at_its_place() {
        let agent = "  kubectl rollout status daemonset --namespace n netpol-agent\n";
        let upgrade = "  helm upgrade r CHART --namespace n --set cleanup.enabled=true\n";
        let cleanup = "  kubectl rollout status daemonset --namespace n netpol-cleanup\n";
        let uninstall = "  helm uninstall r --namespace n\n";
        let whole = format!("First:\n\n{agent}\nThen\n{upgrade}{cleanup}{uninstall}");
        assert_eq!(faults_of(&whole), [""; 0]);
        for (right, wrong) in [
            (
                agent,
                "  kubectl rollout status daemonset --namespace n netpol-agnet\n",
            ),
            (
                agent,
                "  kubectl rollout status daemonset --namespace m netpol-agent\n",
            ),
            (agent, cleanup),
            (
                upgrade,
                "  helm upgrade s CHART --namespace n --set cleanup.enabled=true\n",
            ),
            (cleanup, "  helm status r --namespace n\n"),
            (uninstall, "  helm uninstall s --namespace n\n"),
        ] {
            let text = whole.replace(right, wrong);
            assert_eq!(
                faults_of(&text),
                [format!("`{}` means nothing there", wrong.trim())]
            );
        }
        let text = whole.replace(upgrade, "");
        assert_eq!(
            faults_of(&text).len(),
            2,
            "neither the cleaning nor the uninstall"
        );
        assert_eq!(faults_of(agent), ["the way does not end with an uninstall"]);
    }
}
