//! URLs with several servers: `nats://user:password@h1:4222,[::1]:4223/path?x=y`.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use super::Endpoint;
use super::secret::{MASK, is_secret_name};
use crate::Secret;

/// A transport's URL in its parts, decoded. `Display` and `Debug` hold no credentials.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Url {
    pub(super) scheme: String,
    pub(super) user: Option<Secret>,
    pub(super) password: Option<Secret>,
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) path: String,
    pub(super) parameters: Vec<(String, String)>,
}

/// Whether `text` could be a URL's scheme: a lower-case letter, then lower-case letters, digits, `+`, `-`, `.`.
pub(super) fn is_scheme(text: &str) -> bool {
    let rest = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'+' | b'-' | b'.')
    };
    text.starts_with(|first: char| first.is_ascii_lowercase()) && text.bytes().all(rest)
}

/// A text that may be a broken URL, without what may be credentials: all before the last `@`, and secret parameters.
pub(super) fn redact(text: &str) -> String {
    let after_scheme = text.find("://").map_or(0, |at| at + 3);
    let (scheme, rest) = text.split_at(after_scheme);
    let (credentials, rest) = match rest.rsplit_once('@') {
        Some((_, rest)) => (format!("{MASK}@"), rest),
        None => (String::new(), rest),
    };
    let Some((servers, query)) = rest.split_once('?') else {
        return format!("{scheme}{credentials}{rest}");
    };
    let parameters: Vec<String> = query.split('&').map(redact_parameter).collect();
    format!("{scheme}{credentials}{servers}?{}", parameters.join("&"))
}

fn redact_parameter(parameter: &str) -> String {
    match parameter.split_once('=') {
        Some((name, _)) if is_secret_name(name) => format!("{name}={MASK}"),
        _ => parameter.to_owned(),
    }
}

/// Says which part of a URL is wrong, and never what stood there.
type Wrong = String;

impl FromStr for Url {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        let text = text.trim();
        if text.is_empty() {
            return Err("it is empty".to_owned());
        }
        if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(
                "it holds white space or control characters; write them as %20 and so on"
                    .to_owned(),
            );
        }
        let (scheme, rest) = text
            .split_once("://")
            .ok_or("it has no scheme; write it as `scheme://host:port`")?;
        let scheme = scheme.to_ascii_lowercase();
        if !is_scheme(&scheme) {
            return Err("its scheme may hold only letters, digits, `+`, `-` and `.`".to_owned());
        }
        if rest.contains('#') {
            return Err("a `#` must be written as %23".to_owned());
        }
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, rest) = rest.split_at(end);
        // A password with a bare `/` or `?` ends the authority early: what follows would be taken for public text.
        if rest.contains('@') {
            return Err(
                "in user and password `/` must be written as %2F, `?` as %3F; elsewhere `@` as %40"
                    .to_owned(),
            );
        }
        let (credentials, servers) = match authority.rsplit_once('@') {
            Some((credentials, servers)) => (Some(credentials), servers),
            None => (None, authority),
        };
        let (user, password) = read_credentials(credentials)?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        Ok(Self {
            scheme,
            user,
            password,
            endpoints: read_servers(servers)?,
            path: decode_public(path.strip_prefix('/').unwrap_or(path), "path")?,
            parameters: read_parameters(query)?,
        })
    }
}

fn read_credentials(text: Option<&str>) -> Result<(Option<Secret>, Option<Secret>), Wrong> {
    let Some(text) = text else {
        return Ok((None, None));
    };
    if text.contains('@') {
        return Err(
            "credentials stand once, before the first server, and an `@` in them is written as %40"
                .to_owned(),
        );
    }
    let (user, password) = match text.split_once(':') {
        Some((user, password)) => (user, Some(password)),
        None => (text, None),
    };
    let user = decode(user, "user")?;
    let password = password.map(|text| decode(text, "password")).transpose()?;
    let some = |text: String| (!text.is_empty()).then(|| Secret::new(text));
    Ok((some(user), password.and_then(some)))
}

fn read_servers(text: &str) -> Result<Vec<Endpoint>, Wrong> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let servers = text.split(',').enumerate();
    servers
        .map(|(index, server)| {
            read_server(server).map_err(|why| format!("server {}: {why}", index + 1))
        })
        .collect()
}

fn read_server(text: &str) -> Result<Endpoint, Wrong> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, after) = rest
            .split_once(']')
            .ok_or("the bracket of its address is not closed")?;
        if host.parse::<Ipv6Addr>().is_err() {
            return Err("what stands in brackets is not an IPv6 address".to_owned());
        }
        match after.strip_prefix(':') {
            None if !after.is_empty() => {
                return Err("after the bracket only a port may follow".to_owned());
            }
            port => (host, port),
        }
    } else {
        match text.split_once(':') {
            Some((_, port)) if port.contains(':') => {
                return Err("it holds two colons; an IPv6 address stands in brackets".to_owned());
            }
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    if host.is_empty() {
        return Err("its host is missing".to_owned());
    }
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte);
    if !host.bytes().all(is_host) {
        return Err("its host may hold only letters, digits, `.`, `-` and `_`".to_owned());
    }
    let port = match port.map(str::parse::<u16>) {
        None => None,
        Some(Ok(port)) if port > 0 => Some(port),
        Some(_) => return Err("its port is not a number from 1 to 65535".to_owned()),
    };
    Ok(Endpoint {
        host: host.to_owned(),
        port,
    })
}

fn read_parameters(query: &str) -> Result<Vec<(String, String)>, Wrong> {
    let parameters = query.split('&').filter(|text| !text.is_empty());
    parameters
        .map(|text| {
            let (name, value) = text.split_once('=').unwrap_or((text, ""));
            if name.is_empty() {
                return Err("a parameter has no name".to_owned());
            }
            Ok((
                decode_public(name, "parameters")?,
                decode_public(value, "parameters")?,
            ))
        })
        .collect()
}

/// Decodes what may be shown and may reach a wire as a name: without control characters.
fn decode_public(text: &str, part: &str) -> Result<String, Wrong> {
    let text = decode(text, part)?;
    if text.contains(char::is_control) {
        return Err(format!("control characters are not allowed in its {part}"));
    }
    Ok(text)
}

/// Decodes `%XX`. Strict, since a lone `%` in a password is more likely forgotten than meant.
fn decode(text: &str, part: &str) -> Result<String, Wrong> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|byte| char::from(byte).to_digit(16));
        match (digit(), digit()) {
            (Some(high), Some(low)) => bytes.push(u8::try_from(high * 16 + low).unwrap_or(u8::MAX)),
            _ => return Err(format!("a `%` in its {part} must be written as %25")),
        }
    }
    String::from_utf8(bytes).map_err(|_| format!("its {part} is not UTF-8 when it is decoded"))
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://", self.scheme)?;
        if self.user.is_some() || self.password.is_some() {
            write!(f, "{MASK}@")?;
        }
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{endpoint}")?;
        }
        if !self.path.is_empty() {
            write!(f, "/{}", self.path)?;
        }
        for (index, (name, value)) in self.parameters.iter().enumerate() {
            let mark = if index == 0 { '?' } else { '&' };
            let value = if is_secret_name(name) { MASK } else { value };
            write!(f, "{mark}{name}={value}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    fn wrong(text: &str) -> String {
        text.parse::<Url>().unwrap_err()
    }

    #[test]
    fn every_part_is_read() {
        let url =
            url("nats://us%40er:p%3Aw@h1:4222,h2,[::1]:4223/a%2Fb?x=y%20z&listen=0.0.0.0:5&flag");
        assert_eq!(url.scheme, "nats");
        assert_eq!(url.user.as_ref().unwrap().expose(), "us@er");
        assert_eq!(url.password.as_ref().unwrap().expose(), "p:w");
        let endpoints: Vec<String> = url.endpoints.iter().map(ToString::to_string).collect();
        assert_eq!(endpoints, ["h1:4222", "h2", "[::1]:4223"]);
        assert_eq!(url.endpoints[2].host, "::1");
        assert_eq!(url.path, "a/b");
        let parameters: Vec<(&str, &str)> = url
            .parameters
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        assert_eq!(
            parameters,
            [("x", "y z"), ("listen", "0.0.0.0:5"), ("flag", "")]
        );
    }

    #[test]
    fn a_url_may_have_no_server() {
        assert!(url("memory://").endpoints.is_empty());
        let url = url("grpc://?listen=0.0.0.0:50051");
        assert!(url.endpoints.is_empty());
        assert_eq!(url.parameters.len(), 1);
    }

    #[test]
    fn the_error_names_the_part() {
        assert!(wrong("").contains("empty"));
        assert!(wrong("localhost:4222").contains("no scheme"));
        assert!(wrong("n_s://h").contains("scheme"));
        assert!(wrong("nats://h1,,h2").contains("server 2: its host is missing"));
        assert!(wrong("nats://:4222").contains("server 1: its host is missing"));
        assert!(wrong("nats://h:0").contains("server 1: its port"));
        assert!(wrong("nats://h:99999").contains("server 1: its port"));
        assert!(wrong("nats://::1").contains("brackets"));
        assert!(wrong("nats://[::1").contains("not closed"));
        assert!(wrong("nats://[::g]").contains("IPv6"));
        assert!(wrong("nats://[::1]4222").contains("only a port"));
        assert!(wrong("nats://a:b@h1,a:b@h2").contains("credentials stand once"));
        assert!(wrong("nats://a:b%zz@h").contains("password"));
        assert!(wrong("nats://a:%ff@h").contains("password is not UTF-8"));
        assert!(wrong("nats://h1, h2").contains("white space"));
        assert!(wrong("nats://h?=x").contains("parameter has no name"));
        assert!(wrong("nats://h/a%0Ab").contains("control characters"));
        assert!(wrong("nats://h#x").contains("%23"));
    }

    #[test]
    fn a_bare_slash_in_a_password_is_an_error_and_not_a_path() {
        assert!(wrong("nats://user:123/45@h").contains("%2F"));
        assert!(wrong("nats://user:123?45@h").contains("%3F"));
    }

    #[test]
    fn what_is_displayed_holds_no_credentials() {
        let url = url("nats://u:hunter2@h:1/p?token=hunter2&x=y");
        let redacted = "nats://[secret]@h:1/p?token=[secret]&x=y";
        assert_eq!(url.to_string(), redacted);
        assert_eq!(format!("{url:?}"), redacted);
        assert_eq!(redact("nats://u:hunter2@h:1/p?token=hunter2&x=y"), redacted);
        assert_eq!(redact("nats//u:hun/ter2@h"), "[secret]@h");
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,60}") {
            let _ = text.parse::<Url>();
            let _ = redact(&text);
        }

        #[test]
        fn no_text_of_url_characters_makes_the_parser_panic(text in "[a-z]{0,3}(://)?[a-b0-9:@/?&=,%#\\[\\].é]{0,24}") {
            let _ = text.parse::<Url>();
            let _ = redact(&text);
        }

        #[test]
        fn any_credentials_come_back_when_they_are_encoded(user in "\\PC{1,8}", password in "\\PC{1,8}") {
            let encode = |text: &str| text.bytes().map(|byte| format!("%{byte:02x}")).collect::<String>();
            let url = url(&format!("nats://{}:{}@h", encode(&user), encode(&password)));
            let read = [&url.user, &url.password].map(|secret| secret.as_ref().unwrap().expose());
            prop_assert_eq!(read, [user, password]);
        }

        #[test]
        fn a_password_is_in_no_error_and_no_display(before in "[a-z:/?@%#]{0,6}", after in "[a-z0-9:/?@%#,]{0,10}") {
            let text = format!("nats://user:{before}CANARY{after}@host");
            match text.parse::<Url>() {
                Ok(url) => {
                    let shown = format!("{url} {url:?}");
                    prop_assert!(!shown.contains("CANARY"));
                }
                Err(why) => prop_assert!(!why.contains("CANARY")),
            }
            prop_assert!(!redact(&text).contains("CANARY"));
        }
    }
}
