//! Label selectors.

use crate::model::{Labels, Operator, Requirement, Selector};

/// labels: "The result of matchLabels and matchExpressions are ANDed. An empty label selector matches all
/// objects."
#[must_use]
pub fn selects(selector: &Selector, labels: &Labels) -> bool {
    selector
        .requirements
        .iter()
        .all(|requirement| holds(requirement, labels))
}

/// labels, `Requirement.Matches`:
/// "(1) The operator is Exists and Labels has the Requirement's key.
/// (2) The operator is In, Labels has the Requirement's key and Labels' value for that key is in Requirement's
/// value set.
/// (3) The operator is NotIn, Labels has the Requirement's key and Labels' value for that key is not in
/// Requirement's value set.
/// (4) The operator is DoesNotExist or NotIn and Labels does not have the Requirement's key."
fn holds(requirement: &Requirement, labels: &Labels) -> bool {
    let value = labels.get(&requirement.key);
    match (&requirement.operator, value) {
        (Operator::Exists, value) => value.is_some(),
        (Operator::In(values), Some(value)) => values.iter().any(|v| **v == *value),
        (Operator::In(_), None) => false,
        (Operator::NotIn(values), Some(value)) => values.iter().all(|v| **v != *value),
        (Operator::NotIn(_) | Operator::DoesNotExist, None) => true,
        (Operator::DoesNotExist, Some(_)) => false,
    }
}
