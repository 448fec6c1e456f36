//! What holds for a handler, from all layers.

use std::fmt;
use std::time::Duration;

use super::keys::{HandlerKeys, Keys};
use super::kind::{self, Kind};
use super::layer::{HandlerSection, RuleSection};
use super::nearest::{printable, suggestion};
use super::origin::{Origin, Said};
use super::{AfterFailure, Config, HandlerSettings, defaults, or};
use crate::pattern::publish_subscribe::{Guarantee, Order, Provision, Start};
use crate::{Codec, Error, Pattern};

/// The longest schedule that may hold a key: its messages wait in this process meanwhile.
const LONGEST_HOLD: Duration = Duration::from_secs(2 * 60);

/// What holds for the handler of an event. `Display` lists it with the origins.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Handler {
    /// Its name in the configuration.
    pub name: String,
    /// The group that shares the work; `None`: every instance gets a copy.
    pub group: Option<String>,
    /// How many run at once.
    pub concurrency: usize,
    /// How long one attempt may take.
    pub timeout: Duration,
    /// The waits before the second attempt, the third, and so on.
    pub retry: Vec<Duration>,
    /// How sure the delivery is.
    pub guarantee: Guarantee,
    /// The order of the messages of one key.
    pub order: Order,
    /// What a failed message does to its key.
    pub after_failure: AfterFailure,
    /// Where a new group begins.
    pub start: Start,
    /// The transport, by its name.
    pub transport: String,
    /// What may be done to the broker's objects.
    pub provision: Provision,
    /// How long the wire keeps what nobody has taken.
    pub retention: Duration,
    /// How what it sends is encoded.
    pub codec: Codec,
    origins: Origins,
}

/// What holds for the handler of a call.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CallHandler {
    /// Its name in the configuration.
    pub name: String,
    /// How many run at once.
    pub concurrency: usize,
    /// How long it may take.
    pub timeout: Duration,
    /// The transport, by its name.
    pub transport: String,
    /// How replies are encoded.
    pub codec: Codec,
    origins: Origins,
}

/// The keys that somebody said, and who did.
#[derive(Clone, Debug)]
struct Origins(Vec<(&'static str, Origin)>);

impl Config {
    /// What holds for the handler `name` of the events of `pattern` in `app`; `code` is what attribute and builder say.
    ///
    /// From the strongest: what is forced, the environment, `[handlers.NAME]`, the first `[[subjects]]` rule that covers
    /// the pattern, the code, `[defaults]`.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config), naming the places: a value that makes no sense, an unknown transport, a rule
    /// that covers the pattern only in part and differs, a floor of the code that is weakened, `broadcast` with a group,
    /// `after_failure = "hold"` with a schedule longer than two minutes.
    pub fn handler(
        &self,
        name: &str,
        pattern: &Pattern,
        code: &HandlerSettings,
        app: &str,
    ) -> Result<Handler, Error> {
        let code = HandlerKeys::in_code(code, &owner(name))?;
        let (rule, partial) = self.rules_for(pattern);
        let said = self.handler_keys(name);
        let top = with_rule(said.clone(), rule);
        let keys = over_defaults(top.over(code.clone()), &self.layer().defaults);

        check_floor(
            name,
            "delivery",
            &keys.guarantee,
            &code.guarantee,
            &kind::GUARANTEE,
        )?;
        check_floor(name, "order", &keys.order, &code.order, &kind::ORDER)?;
        let transport = self.known_transport(&keys.transport, self.events_transport())?;
        let guarantee = or(&keys.guarantee, Guarantee::default());
        for rule in partial {
            check_partial(name, pattern, rule, &said, &transport, guarantee)?;
        }
        let group = group_of(name, &keys, app)?;
        let retry = or(&keys.retry, defaults::RETRY.to_vec());
        check_hold(name, &keys, &retry)?;
        let start = match group {
            Some(_) => Start::Earliest,
            None => Start::Latest,
        };
        let retention = rule.and_then(|rule| rule.keys.retention.as_ref());
        Ok(Handler {
            name: name.to_owned(),
            group,
            concurrency: or(&keys.concurrency, defaults::CONCURRENCY),
            timeout: or(&keys.timeout, defaults::TIMEOUT),
            retry,
            guarantee,
            order: or(&keys.order, Order::default()),
            after_failure: or(&keys.after_failure, AfterFailure::default()),
            start: or(&keys.start, start),
            transport,
            provision: or(&keys.provision, self.provision()),
            retention: retention.map_or_else(|| self.retention(), |said| said.value),
            codec: or(&keys.codec, self.codec()),
            origins: self.origins(&keys, retention, &self.layer().top.events),
        })
    }

    /// What holds for the handler `name` of the calls of `pattern`; `code` is what attribute and builder say.
    ///
    /// # Errors
    /// As [`handler`](Self::handler); and a key that means nothing for calls, which have no group, order or retries.
    pub fn call(
        &self,
        name: &str,
        pattern: &Pattern,
        code: &HandlerSettings,
    ) -> Result<CallHandler, Error> {
        const KEYS: [&str; 4] = ["concurrency", "timeout", "transport", "codec"];
        let code = HandlerKeys::in_code(code, &owner(name))?;
        let own = self.handler_keys(name);
        let said = own.said().into_iter().chain(code.said());
        for (key, _, origin) in said {
            if !KEYS.contains(&key) {
                return Err(Error::config(format!(
                    "{origin}: \"{key}\" means nothing for handler \"{name}\", which answers calls; remove it"
                )));
            }
        }
        let (rule, partial) = self.rules_for(pattern);
        let top = with_rule(own.clone(), rule);
        let keys = over_defaults(top.over(code), &self.layer().defaults);
        let transport = self.known_transport(&keys.transport, self.calls_transport())?;
        for rule in partial {
            // Calls are at most once everywhere: only the transport can differ.
            let guarantee = rule.rule.guarantee.unwrap_or_default();
            check_partial(name, pattern, rule, &own, &transport, guarantee)?;
        }
        Ok(CallHandler {
            name: name.to_owned(),
            concurrency: or(&keys.concurrency, defaults::CONCURRENCY),
            timeout: or(&keys.timeout, defaults::TIMEOUT),
            transport,
            codec: or(&keys.codec, self.codec()),
            origins: self.origins(&keys, None, &self.layer().top.calls),
        })
    }

    /// As [`call`](Self::call), for the handler of a streaming call, which may take as long as it takes unless its own
    /// section or the code says otherwise.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn stream(
        &self,
        name: &str,
        pattern: &Pattern,
        code: &HandlerSettings,
    ) -> Result<CallHandler, Error> {
        let mut stream = self.call(name, pattern, code)?;
        if self.handler_keys(name).timeout.is_none() && code.timeout.is_none() {
            stream.timeout = defaults::STREAM_TIMEOUT;
        }
        Ok(stream)
    }

    /// Refuses a `[handlers.NAME]` section whose handler is not among `names`.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config), naming the place and the nearest handler.
    pub fn unknown_handlers(&self, names: &[&str]) -> Result<(), Error> {
        let layer = self.layer();
        for (name, section) in &layer.handlers {
            if !names.contains(&name.as_str()) {
                return Err(no_handler(name, section, names));
            }
        }
        for (name, section) in &layer.handlers_without_case {
            if !names.iter().any(|known| known.eq_ignore_ascii_case(name)) {
                return Err(no_handler(name, section, names));
            }
        }
        Ok(())
    }

    /// What `[handlers.NAME]` says, in all its spellings.
    fn handler_keys(&self, name: &str) -> HandlerKeys {
        let layer = self.layer();
        let mut keys = match layer.handlers.get(name) {
            Some(section) => section.keys.clone(),
            None => HandlerKeys::default(),
        };
        let without_case = name.to_ascii_lowercase();
        if let Some(section) = layer.handlers_without_case.get(&without_case) {
            keys.merge(&section.keys);
        }
        keys
    }

    /// The first rule that covers the pattern, and the rules before it that match a part of its subjects.
    fn rules_for(&self, pattern: &Pattern) -> (Option<&RuleSection>, Vec<&RuleSection>) {
        let mut partial = Vec::new();
        for section in &self.layer().subjects {
            if section.rule.pattern.covers(pattern) {
                return (Some(section), partial);
            }
            if section.rule.pattern.overlaps(pattern) {
                partial.push(section);
            }
        }
        (None, partial)
    }

    fn known_transport(&self, said: &Option<Said<String>>, default: &str) -> Result<String, Error> {
        let Some(said) = said else {
            return Ok(default.to_owned());
        };
        self.must_be_known(said)?;
        Ok(said.value.clone())
    }

    fn origins(
        &self,
        keys: &HandlerKeys,
        retention: Option<&Said<Duration>>,
        default_transport: &Option<Said<String>>,
    ) -> Origins {
        let said = keys.said().into_iter();
        let said = said.map(|(key, _, origin)| (key, origin.clone()));
        let mut origins = Origins(said.collect());
        let top = &self.layer().top;
        origins.add("retention", retention.or(top.retention.as_ref()));
        origins.add("transport", default_transport.as_ref());
        origins.add("provision", top.provision.as_ref());
        origins
    }
}

fn owner(name: &str) -> String {
    format!("handler \"{}\"", printable(name))
}

fn no_handler(name: &str, section: &HandlerSection, names: &[&str]) -> Error {
    let hint = suggestion(name, names);
    let name = printable(name);
    Error::config(format!(
        "{}: [handlers.{name}] is for a handler that does not exist; {hint}",
        section.origin
    ))
}

/// `[handlers.NAME]` beats `[[subjects]]`, but not one from a layer of a stronger kind.
fn with_rule(mut keys: HandlerKeys, rule: Option<&RuleSection>) -> HandlerKeys {
    fn put<T: Clone>(own: &mut Option<Said<T>>, ruled: &Option<Said<T>>) {
        let beats = |own: &Said<T>, ruled: &Said<T>| ruled.is_of_stronger_kind(own.rank);
        if let Some(ruled) = ruled
            && own.as_ref().is_none_or(|own| beats(own, ruled))
        {
            *own = Some(ruled.clone());
        }
    }
    if let Some(rule) = rule {
        put(&mut keys.transport, &rule.keys.transport);
        put(&mut keys.guarantee, &rule.keys.guarantee);
    }
    keys
}

/// What is said for the handler itself decides between a group and a copy for every instance.
fn over_defaults(keys: HandlerKeys, defaults: &HandlerKeys) -> HandlerKeys {
    let mut defaults = defaults.clone();
    if keys.group.is_some() {
        defaults.broadcast = None;
    }
    if keys.broadcast.as_ref().is_some_and(|said| said.value) {
        defaults.group = None;
    }
    keys.over(defaults)
}

fn check_floor<T: PartialOrd>(
    name: &str,
    key: &str,
    holds: &Option<Said<T>>,
    code: &Option<Said<T>>,
    kind: &Kind<T>,
) -> Result<(), Error> {
    let (Some(holds), Some(code)) = (holds, code) else {
        return Ok(());
    };
    if !holds.origin.is_operations() || holds.value >= code.value {
        return Ok(());
    }
    let (place, weak) = (&holds.origin, (kind.show)(&holds.value));
    let (floor, strong) = (&code.origin, (kind.show)(&code.value));
    Err(Error::config(format!(
        "{place}: {key} = {weak} for handler \"{name}\" is weaker than {key} = {strong} in its {floor}; configuration may only strengthen it"
    )))
}

/// A rule that sends a part of a handler's subjects elsewhere would starve it; its own section may say that it knows.
fn check_partial(
    name: &str,
    pattern: &Pattern,
    rule: &RuleSection,
    own: &HandlerKeys,
    transport: &str,
    guarantee: Guarantee,
) -> Result<(), Error> {
    let ruled = rule.rule.transport.as_deref();
    let other_transport = own.transport.is_none() && ruled.is_some_and(|ruled| ruled != transport);
    let ruled = rule.rule.guarantee;
    let other_guarantee = own.guarantee.is_none() && ruled.is_some_and(|ruled| ruled != guarantee);
    let what = match (other_transport, other_guarantee) {
        (false, false) => return Ok(()),
        (true, _) => "transport",
        (false, true) => "delivery",
    };
    let place = &rule.origin;
    Err(Error::config(format!(
        "{place}: the rule for \"{}\" gives a part of the subjects of handler \"{name}\" (\"{pattern}\") another {what}; let it cover the whole pattern, or set {what} in [handlers.{name}]",
        rule.rule.pattern
    )))
}

/// The group, or none where every instance gets a copy.
fn group_of(name: &str, keys: &HandlerKeys, app: &str) -> Result<Option<String>, Error> {
    let broadcast = keys.broadcast.as_ref().filter(|said| said.value);
    match (&keys.group, broadcast) {
        (Some(group), None) => Ok(Some(group.value.clone())),
        (None, None) => Ok(Some(app.to_owned())),
        (None, Some(_)) => Ok(None),
        (Some(group), Some(broadcast)) => Err(Error::config(format!(
            "handler \"{name}\" has a group ({}) and is broadcast ({}); a copy for every instance needs no group: remove one of them",
            group.origin, broadcast.origin
        ))),
    }
}

fn check_hold(name: &str, keys: &HandlerKeys, retry: &[Duration]) -> Result<(), Error> {
    let Some(hold) = &keys.after_failure else {
        return Ok(());
    };
    let whole = retry
        .iter()
        .try_fold(Duration::ZERO, |sum, step| sum.checked_add(*step))
        .unwrap_or(Duration::MAX);
    if hold.value != AfterFailure::Hold || whole <= LONGEST_HOLD {
        return Ok(());
    }
    let schedule = match &keys.retry {
        Some(said) => said.origin.to_string(),
        None => Origin::Default.to_string(),
    };
    Err(Error::config(format!(
        "{}: handler \"{name}\" holds its key after a failure, so its retry schedule ({schedule}) may be 2 minutes long at the most; it is {}",
        hold.origin,
        humantime::format_duration(whole)
    )))
}

impl Origins {
    fn add<T>(&mut self, key: &'static str, said: Option<&Said<T>>) {
        if let Some(said) = said
            && self.0.iter().all(|(known, _)| *known != key)
        {
            self.0.push((key, said.origin.clone()));
        }
    }

    fn of(&self, key: &str) -> &Origin {
        let found = self.0.iter().find(|(known, _)| *known == key);
        found.map_or(&Origin::Default, |(_, origin)| origin)
    }
}

impl Handler {
    /// Who said the value of `key`, which is named as in the configuration, such as `delivery`.
    #[must_use]
    pub fn origin(&self, key: &str) -> &Origin {
        self.origins.of(key)
    }
}

impl CallHandler {
    /// Who said the value of `key`, which is named as in the configuration, such as `timeout`.
    #[must_use]
    pub fn origin(&self, key: &str) -> &Origin {
        self.origins.of(key)
    }
}

fn write_key<T>(
    f: &mut fmt::Formatter<'_>,
    (handler, origins): (&str, &Origins),
    key: &str,
    kind: &Kind<T>,
    value: &T,
) -> fmt::Result {
    let (value, origin) = ((kind.show)(value), origins.of(key));
    writeln!(f, "handlers.{handler}.{key} = {value}  # {origin}")
}

impl fmt::Display for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = (self.name.as_str(), &self.origins);
        match &self.group {
            Some(group) => write_key(f, of, "group", &kind::GROUP, group)?,
            None => write_key(f, of, "broadcast", &kind::FLAG, &true)?,
        }
        write_key(f, of, "concurrency", &kind::CONCURRENCY, &self.concurrency)?;
        write_key(f, of, "timeout", &kind::TIMEOUT, &self.timeout)?;
        write_key(f, of, "retry", &kind::RETRY, &self.retry)?;
        write_key(f, of, "delivery", &kind::GUARANTEE, &self.guarantee)?;
        write_key(f, of, "order", &kind::ORDER, &self.order)?;
        write_key(
            f,
            of,
            "after_failure",
            &kind::AFTER_FAILURE,
            &self.after_failure,
        )?;
        write_key(f, of, "start", &kind::START, &self.start)?;
        write_key(f, of, "transport", &kind::TRANSPORT, &self.transport)?;
        write_key(f, of, "provision", &kind::PROVISION, &self.provision)?;
        write_key(f, of, "retention", &kind::RETENTION, &self.retention)?;
        write_key(f, of, "codec", &kind::CODEC, &self.codec)
    }
}

impl fmt::Display for CallHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = (self.name.as_str(), &self.origins);
        write_key(f, of, "concurrency", &kind::CONCURRENCY, &self.concurrency)?;
        write_key(f, of, "timeout", &kind::TIMEOUT, &self.timeout)?;
        write_key(f, of, "transport", &kind::TRANSPORT, &self.transport)?;
        write_key(f, of, "codec", &kind::CODEC, &self.codec)
    }
}
