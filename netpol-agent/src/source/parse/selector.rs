//! `LabelSelector`.

use netpol_policy::model::{Operator, Requirement, Selector, Str};

use super::{
    Bad, Report,
    at::{At, closest},
    names,
    node::{Quoted, Value},
};

const OPERATORS: [&str; 4] = ["In", "NotIn", "Exists", "DoesNotExist"];

/// `matchLabels` and `matchExpressions`, all of which must hold. One bad requirement makes the selector bad:
/// without it the selector would match more.
pub(super) fn selector(at: &At<'_>, report: &mut Report) -> Result<Selector, Bad> {
    let shape = at.expect_fields(&["matchLabels", "matchExpressions"], report);
    let labels = at
        .get("matchLabels")
        .map_or(Ok(Vec::new()), |at| match_labels(&at, report));
    let expressions = at
        .get("matchExpressions")
        .map_or(Ok(Vec::new()), |at| match_expressions(&at, report));
    shape?;
    let mut requirements = labels?;
    requirements.extend(expressions?);
    requirements.sort_unstable();
    requirements.dedup();
    Ok(Selector { requirements })
}

fn match_labels(at: &At<'_>, report: &mut Report) -> Result<Vec<Requirement>, Bad> {
    at.expect_map(report)?;
    all(at.fields(), |field| {
        let key = check_key(&field, field.name(), report);
        let value = label_value(&field, report);
        key?;
        Ok(Requirement {
            key: field.name().into(),
            operator: Operator::In(vec![value?]),
        })
    })
}

fn match_expressions(at: &At<'_>, report: &mut Report) -> Result<Vec<Requirement>, Bad> {
    let items = at.items(report)?;
    all(items, |item| requirement(&item, report))
}

fn requirement(at: &At<'_>, report: &mut Report) -> Result<Requirement, Bad> {
    at.expect_fields(&["key", "operator", "values"], report)?;
    let key = match at.get("key") {
        Some(key) => key
            .string(report)
            .and_then(|text| check_key(&key, text, report).map(|()| text.clone())),
        None => Err(report.error(at, "has no key", "add `key: LABEL`")),
    };
    let values = match at.get("values") {
        Some(values) => Some(label_values(&values, report)?),
        None => None,
    };
    let operator = operator(at, values.unwrap_or_default(), report);
    Ok(Requirement {
        key: key?,
        operator: operator?,
    })
}

fn operator(at: &At<'_>, mut values: Vec<Str>, report: &mut Report) -> Result<Operator, Bad> {
    let Some(field) = at.get("operator") else {
        return Err(report.error(
            at,
            "has no operator",
            "add `operator:` In, NotIn, Exists or DoesNotExist",
        ));
    };
    values.sort_unstable();
    values.dedup();
    let name = field.string(report)?;
    match (&**name, values.is_empty()) {
        ("In", false) => Ok(Operator::In(values)),
        ("NotIn", false) => Ok(Operator::NotIn(values)),
        ("Exists", true) => Ok(Operator::Exists),
        ("DoesNotExist", true) => Ok(Operator::DoesNotExist),
        ("In" | "NotIn", true) => Err(report.error(
            at,
            format!("{name} needs at least one value"),
            "add `values: [..]`, or use Exists or DoesNotExist",
        )),
        ("Exists" | "DoesNotExist", false) => Err(report.error(
            at,
            format!("{name} takes no values"),
            "remove `values`, or use In or NotIn",
        )),
        _ => Err(report.error(
            &field,
            format!("{} is not an operator", Quoted(name)),
            match closest(name, &OPERATORS) {
                Some(meant) => format!("did you mean {meant}?"),
                None => "use In, NotIn, Exists or DoesNotExist".to_owned(),
            },
        )),
    }
}

fn label_values(at: &At<'_>, report: &mut Report) -> Result<Vec<Str>, Bad> {
    let items = at.items(report)?;
    all(items, |item| label_value(&item, report))
}

fn check_key(at: &At<'_>, key: &str, report: &mut Report) -> Result<(), Bad> {
    names::label_key(key).map_err(|rule| {
        report.error(
            at,
            format!("{} {rule}", Quoted(key)),
            "correct the key; no label can have it",
        )
    })
}

/// A value to compare labels with; null is the empty string, as in the API.
fn label_value(at: &At<'_>, report: &mut Report) -> Result<Str, Bad> {
    if at.node.value == Value::Null {
        return Ok("".into());
    }
    let text = at.string(report)?;
    names::label_value(text).map(|()| text.clone()).map_err(|rule| {
        report.error(
            at,
            format!("{} {rule}", Quoted(text)),
            "correct the value; no label can have it",
        )
    })
}

/// Parses every item, so that every bad one is reported, and fails if one is bad.
pub(super) fn all<I, T>(
    items: impl Iterator<Item = I>,
    mut parse: impl FnMut(I) -> Result<T, Bad>,
) -> Result<Vec<T>, Bad> {
    let mut parsed = Ok(Vec::new());
    for item in items {
        match (parse(item), &mut parsed) {
            (Ok(item), Ok(list)) => list.push(item),
            (Ok(_), Err(Bad)) => {}
            (Err(bad), _) => parsed = Err(bad),
        }
    }
    parsed
}
