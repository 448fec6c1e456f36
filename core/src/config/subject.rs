//! What holds for a subject: on the side that sends.

use std::time::Duration;

use super::{Config, SubjectRule, Unrouted};
use crate::pattern::publish_subscribe::Guarantee;
use crate::{Error, Subject};

/// What holds for the events of a subject.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct SubjectSettings<'a> {
    /// The name of the transport.
    pub transport: &'a str,
    /// How sure the delivery is, where the emit does not say it.
    pub guarantee: Guarantee,
    /// What an event does that reaches nobody.
    pub unrouted: Unrouted,
    /// How long the wire keeps what nobody has taken.
    pub retention: Duration,
    /// The rule that matched.
    pub rule: Option<&'a SubjectRule>,
}

impl Config {
    /// What holds for the events of `subject`: the first `[[subjects]]` rule that matches it, over the defaults. Costs
    /// nothing where there are no rules.
    #[must_use]
    pub fn subject(&self, subject: &Subject) -> SubjectSettings<'_> {
        let rule = self
            .rules()
            .iter()
            .find(|rule| rule.pattern.matches(subject));
        let transport = rule.and_then(|rule| rule.transport.as_deref());
        SubjectSettings {
            transport: transport.unwrap_or_else(|| self.events_transport()),
            guarantee: rule
                .and_then(|rule| rule.guarantee)
                .unwrap_or_else(|| self.guarantee()),
            unrouted: rule.and_then(|rule| rule.unrouted).unwrap_or_default(),
            retention: rule
                .and_then(|rule| rule.retention)
                .unwrap_or_else(|| self.retention()),
            rule,
        }
    }

    /// The name of the transport that carries the calls of `subject`.
    #[must_use]
    pub fn call_transport(&self, subject: &Subject) -> &str {
        let rule = self
            .rules()
            .iter()
            .find(|rule| rule.pattern.matches(subject));
        let transport = rule.and_then(|rule| rule.transport.as_deref());
        transport.unwrap_or_else(|| self.calls_transport())
    }
}

impl SubjectSettings<'_> {
    /// The guarantee of an emit that says `code`. A rule beats it, but may not weaken it.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config): the rule promises less than the code asks for.
    pub fn guarantee_of(&self, code: Option<Guarantee>) -> Result<Guarantee, Error> {
        let Some(code) = code else {
            return Ok(self.guarantee);
        };
        match self
            .rule
            .and_then(|rule| rule.guarantee.map(|said| (rule, said)))
        {
            None => Ok(code),
            Some((_, said)) if said >= code => Ok(said),
            Some((rule, _)) => Err(Error::config(format!(
                "the [[subjects]] rule for \"{}\" sets delivery = \"at_most_once\", and this emit asks for at_least_once; change one of them",
                rule.pattern
            ))),
        }
    }
}
