//! `networking.k8s.io/v1` NetworkPolicy.

use netpol_policy::model::{Direction, ObjectName, Policy, Requirement, Rule, Selector};

use super::{
    Bad, Report,
    at::{At, NO_FIELD, closest, no_field_help},
    node::{Quoted, Value},
    rule::rules,
    selector::selector,
};

const FIELDS: [&str; 4] = ["podSelector", "policyTypes", "ingress", "egress"];
const ISOLATES_ALL: &str = "every pod of the namespace is isolated in both directions";
const TYPES: [&str; 2] = ["Ingress", "Egress"];

/// Which directions a policy isolates.
#[derive(Clone, Copy, Default)]
struct Types {
    ingress: bool,
    egress: bool,
}

/// The policy with everything in it that was understood. What was not allows nothing and isolates at least
/// as declared.
pub(super) fn policy(name: ObjectName, at: &At<'_>, report: &mut Report) -> Policy {
    let spec = match at.get("spec") {
        Some(spec) if matches!(spec.node.value, Value::Map(_)) => spec,
        Some(spec) => {
            report.with_effect(ISOLATES_ALL, |report| {
                let _reported = spec.expect_map(report);
            });
            return Policy {
                name,
                selector: everything(),
                ingress: Some(Vec::new()),
                egress: Some(Vec::new()),
            };
        }
        None if misspelt_spec(at, report) => {
            return Policy {
                name,
                selector: everything(),
                ingress: Some(Vec::new()),
                egress: Some(Vec::new()),
            };
        }
        // The API takes an absent spec for an empty one.
        None => {
            report.warn(
                at,
                "the policy has no spec: it isolates every pod of its namespace for ingress",
                "add a spec; `podSelector: {}` says the same explicitly",
            );
            return Policy {
                name,
                selector: everything(),
                ingress: Some(Vec::new()),
                egress: None,
            };
        }
    };
    let misspelt = misspelt_fields(&spec, report);
    let selector = spec.get("podSelector").map_or_else(
        || Ok(everything()),
        |at| {
            report.with_effect("the policy isolates every pod of its namespace", |report| {
                selector(&at, report)
            })
        },
    );
    let mut types = types(&spec, report);
    if misspelt {
        types = Types {
            ingress: true,
            egress: true,
        };
    }
    let ingress = direction(&spec, "ingress", Direction::Ingress, types.ingress, report);
    let egress = direction(&spec, "egress", Direction::Egress, types.egress, report);
    Policy {
        name,
        selector: selector.unwrap_or_else(|Bad| everything()),
        ingress,
        egress,
    }
}

/// Whether a field beside `metadata` was meant to be the spec.
fn misspelt_spec(at: &At<'_>, report: &mut Report) -> bool {
    let known = ["apiVersion", "kind", "metadata", "spec", "status"];
    let meant = at
        .unknown_fields(&known)
        .find(|(_, meant)| *meant == Some("spec"));
    if let Some((field, meant)) = &meant {
        report.with_effect(ISOLATES_ALL, |report| {
            report.error(field, NO_FIELD, no_field_help(*meant, &known))
        });
    }
    meant.is_some()
}

/// Whether a field of the spec is not known but near to one that is: it may have declared isolation. Others
/// (of a newer API, say) are only mentioned.
fn misspelt_fields(spec: &At<'_>, report: &mut Report) -> bool {
    let mut misspelt = false;
    for (field, meant) in spec.unknown_fields(&FIELDS) {
        let help = no_field_help(meant, &FIELDS);
        if meant.is_some() {
            misspelt = true;
            report.with_effect("the policy isolates both directions", |report| {
                report.error(&field, NO_FIELD, help)
            });
        } else {
            report.warn(&field, NO_FIELD, help);
        }
    }
    misspelt
}

fn everything() -> Selector {
    Selector {
        requirements: Vec::<Requirement>::new(),
    }
}

/// The rules of one direction, `None` where the policy does not isolate it. They are parsed in any case, so
/// that what is wrong in them is said.
fn direction(
    spec: &At<'_>,
    field: &str,
    direction: Direction,
    isolates: bool,
    report: &mut Report,
) -> Option<Vec<Rule>> {
    let Some(at) = spec.get(field) else {
        return isolates.then(Vec::new);
    };
    let rules = rules(&at, direction, report);
    if !isolates && !rules.is_empty() {
        let policy_type = match direction {
            Direction::Ingress => "Ingress",
            Direction::Egress => "Egress",
        };
        report.warn(
            &at,
            format!("policyTypes does not name {policy_type}: these rules have no effect"),
            format!("add {policy_type} to policyTypes, or remove the rules"),
        );
    }
    isolates.then_some(rules)
}

/// "If this field is not specified, it will default based on the existence of ingress or egress rules;
/// policies that contain an egress section are assumed to affect egress, and all policies (whether or not
/// they contain an ingress section) are assumed to affect ingress." (`spec.policyTypes`)
///
/// The API server's defaulting takes `egress: []` for no egress section, and an empty `policyTypes` for none.
fn types(spec: &At<'_>, report: &mut Report) -> Types {
    let declared = spec
        .get("policyTypes")
        .map(|at| declared(&at, report))
        .unwrap_or_default();
    if let Some(declared) = declared {
        return declared;
    }
    let egress = spec.get("egress");
    let rules = egress.is_some_and(|at| !matches!(&at.node.value, Value::List(items) if items.is_empty()));
    if let (Some(at), false) = (egress, rules) {
        report.warn(
            &at,
            "without policyTypes an empty egress list does not isolate for egress",
            "add `policyTypes: [Ingress, Egress]` to deny all egress, or remove `egress`",
        );
    }
    Types {
        ingress: true,
        egress: rules,
    }
}

/// `None` where the list is empty. A list without one type that is understood isolates both directions.
fn declared(at: &At<'_>, report: &mut Report) -> Option<Types> {
    let both = Types {
        ingress: true,
        egress: true,
    };
    report.with_effect(
        "if no other type is named, the policy isolates both directions",
        |report| {
            let Ok(items) = at.items(report) else {
                return Some(both);
            };
            let mut types = Types::default();
            let mut any = false;
            for item in items {
                any = true;
                match policy_type(&item, report) {
                    Ok(Direction::Ingress) => types.ingress = true,
                    Ok(Direction::Egress) => types.egress = true,
                    Err(Bad) => {}
                }
            }
            let understood = types.ingress || types.egress;
            any.then_some(if understood { types } else { both })
        },
    )
}

fn policy_type(at: &At<'_>, report: &mut Report) -> Result<Direction, Bad> {
    let name = at.string(report)?;
    match &**name {
        "Ingress" => Ok(Direction::Ingress),
        "Egress" => Ok(Direction::Egress),
        _ => Err(report.error(
            at,
            format!("{} is not a policy type", Quoted(name)),
            match closest(name, &TYPES) {
                Some(meant) => format!("did you mean {meant}?"),
                None => "use Ingress, Egress or both".to_owned(),
            },
        )),
    }
}
