//! A verdict as programs read it.

use std::io::Write as _;

use netpol_policy::{
    model::ObjectName,
    oracle::{Exemption, RuleRef, Side, Verdict},
};
use serde::{
    Serialize, Serializer,
    ser::{Error as _, SerializeStruct as _},
};

/// A whole verdict: `{"verdict":…,"egress":{…},"ingress":{…}}`.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'v>(pub &'v Verdict<'v>);

impl Serialize for Answer<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_struct("Answer", 3)?;
        object.serialize_field("verdict", word(self.0.allowed()))?;
        object.serialize_field("egress", &SideAnswer(&self.0.egress))?;
        object.serialize_field("ingress", &SideAnswer(&self.0.ingress))?;
        object.end()
    }
}

/// One direction: `verdict`, `isolated`, `policies` (that allow; where it denies, that isolate), `rules` (that
/// allow), and `exempt` where rules were not asked.
#[derive(Clone, Copy, Debug)]
pub struct SideAnswer<'v>(pub &'v Side<'v>);

impl<'v> SideAnswer<'v> {
    /// The policies that decide, each once, by name.
    pub fn policies(self) -> impl Iterator<Item = &'v ObjectName> {
        let isolating = if self.0.allowed {
            &[]
        } else {
            &self.0.isolating[..]
        };
        // Rules come in order of their policies, so equal names are neighbours.
        let mut last = None;
        let allowing = self.rules().iter().map(|rule| rule.policy);
        let each_once = allowing.filter(move |&policy| last.replace(policy) != Some(policy));
        each_once.chain(isolating.iter().copied())
    }

    /// The rules that allow. Where an address has several owners, rules of one may stand beside the denial by
    /// another: then they do not decide.
    #[must_use]
    pub fn rules(self) -> &'v [RuleRef<'v>] {
        if self.0.allowed { &self.0.allowing } else { &[] }
    }
}

impl Serialize for SideAnswer<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let side = self.0;
        let mut object = serializer.serialize_struct("Side", 5)?;
        object.serialize_field("verdict", word(side.allowed))?;
        object.serialize_field("isolated", &side.isolated)?;
        object.serialize_field("policies", &Names(*self))?;
        object.serialize_field("rules", &Rules(self.rules()))?;
        match side.exempt {
            Some(exempt) => object.serialize_field("exempt", exemption(exempt))?,
            None => object.skip_field("exempt")?,
        }
        object.end()
    }
}

/// `allow` or `deny`.
#[must_use]
pub const fn word(allowed: bool) -> &'static str {
    if allowed { "allow" } else { "deny" }
}

/// Why rules were not asked, in a word.
pub(super) const fn exemption(exemption: Exemption) -> &'static str {
    match exemption {
        Exemption::OwnNode => "own-node",
        Exemption::Itself => "itself",
    }
}

struct Names<'v>(SideAnswer<'v>);

impl Serialize for Names<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.policies().map(Name))
    }
}

/// `namespace/name`
pub(super) struct Name<'v>(pub(super) &'v ObjectName);

/// As long as a namespace and an object's name in it can be.
const LONGEST_NAME: usize = 63 + 1 + 253;

impl Serialize for Name<'_> {
    /// Half of what `explain --flows` prints is names, so they are put together without the formatting machinery.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let parts = [&*self.0.namespace, "/", &*self.0.name];
        let mut text = [0; LONGEST_NAME];
        let mut rest = &mut text[..];
        // Only a name that the API would refuse does not fit.
        if parts.iter().any(|part| rest.write_all(part.as_bytes()).is_err()) {
            return serializer.collect_str(self.0);
        }
        let length = LONGEST_NAME - rest.len();
        match std::str::from_utf8(&text[..length]) {
            Ok(text) => serializer.serialize_str(text),
            Err(error) => Err(S::Error::custom(error)),
        }
    }
}

/// `[{"policy":…,"rule":…}]`
pub(super) struct Rules<'v>(pub(super) &'v [RuleRef<'v>]);

impl Serialize for Rules<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|rule| Rule(*rule)))
    }
}

struct Rule<'v>(RuleRef<'v>);

impl Serialize for Rule<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_struct("Rule", 2)?;
        object.serialize_field("policy", &Name(self.0.policy))?;
        object.serialize_field("rule", &self.0.rule)?;
        object.end()
    }
}
