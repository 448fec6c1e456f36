//! Stored messages that the client library cannot read.
//!
//! Whoever may publish may store a message whose headers are no text. The library ends its connection over it, the server
//! delivers it again, and so on for ever. Nothing tells why the connection broke; but one that broke alone, while the other
//! of the same client stood, is reason enough to look at what the server tries to deliver. Such a message is fetched as it
//! is stored, kept as a dead letter, and deleted.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anywire::pattern::publish_subscribe::{Entry, PublishBatch, Published, Publisher, Spec, Store};
use anywire::{Error, ErrorKind, Headers, Message, Pattern, Subject, Trail};
use async_nats::jetstream::stream::RawMessage;
use async_nats::{HeaderName, StatusCode};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::publisher::NatsPublisher;
use crate::topology::Bound;
use crate::transport::Connection;
use crate::wire;

/// The most messages of a consumer that are looked at after one lost connection.
const MOST: usize = 10_000;
/// How long the dead letter may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long dead letters are kept where this is what creates their stream.
const RETENTION: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// The dead letter's header with the headers as they were.
const RAW_HEADERS: &str = "raw-headers";

/// Looks through what a consumer has delivered and was not told about.
pub(crate) async fn clear(
    connection: &Arc<Connection>,
    spec: &Spec,
    bound: &Bound,
) -> Result<(), Error> {
    let api = &connection.topology.api;
    let Some(info) = api.consumer(&bound.stream, &bound.consumer).await? else {
        return Ok(());
    };
    let mut filters = info.config.filter_subjects.clone();
    if !info.config.filter_subject.is_empty() {
        filters.push(info.config.filter_subject.clone());
    }
    let last = info.delivered.stream_sequence;
    for filter in filters {
        let mut next = info.ack_floor.stream_sequence + 1;
        for _ in 0..MOST {
            let stored = api.stored_message(&bound.stream, next, &filter).await?;
            let Some(stored) = stored.filter(|stored| stored.sequence <= last) else {
                break;
            };
            next = stored.sequence + 1;
            if is_hostile(&stored) {
                bury(connection, spec, bound, &stored).await?;
            }
        }
    }
    Ok(())
}

/// Keeps a message as a dead letter, and takes it out of its stream.
async fn bury(
    connection: &Arc<Connection>,
    spec: &Spec,
    bound: &Bound,
    stored: &RawMessage,
) -> Result<(), Error> {
    let app = connection.transport.app.as_str();
    let group = spec.subscription.group.as_deref().unwrap_or(app);
    let address = Subject::dead_letters(group);
    let store = Store {
        pattern: Pattern::parse_any(address.as_str())?,
        retention: RETENTION,
        provision: spec.provision,
    };
    connection.topology.ensure_store(&store).await?;
    let letter = letter(connection, spec, group, stored)?.with_subject(address);
    let batch = PublishBatch::single(Entry::new(letter), TIMEOUT);
    let publisher = NatsPublisher::new(Arc::clone(connection));
    match publisher.publish(batch).wait().await.into_single() {
        Some((_, Published::Accepted(_))) | None => {}
        Some((_, Published::Rejected(error) | Published::Unknown(error))) => return Err(error),
    }
    let api = &connection.topology.api;
    api.delete_message(&bound.stream, stored.sequence).await?;
    metrics::counter!("anywire.nats.unreadable").increment(1);
    tracing::warn!(
        subscription = %spec.subscription,
        stream = %bound.stream,
        sequence = stored.sequence,
        "a stored message whose headers cannot be read was moved to the dead letters"
    );
    Ok(())
}

fn letter(
    connection: &Connection,
    spec: &Spec,
    group: &str,
    stored: &RawMessage,
) -> Result<Message, Error> {
    let now = connection.clock.wall();
    let subject = wire::legal(&stored.subject);
    let payload = STANDARD.decode(&stored.payload).map_err(|error| {
        // The original stays: a letter without its payload would be a loss.
        Error::new(ErrorKind::Codec, "the stored payload cannot be read")
            .with_context("subject", &subject)
            .with_source(error)
    })?;
    let mut kept = Headers::new();
    if let Some(raw) = raw_headers(stored) {
        // Too many bytes for a header: then they are lost, and the payload is what counts.
        let _ = kept.append(RAW_HEADERS, raw.as_slice());
    }
    let trail = Trail {
        pattern: Some(spec.subscription.pattern.clone()),
        group: Some(group.to_owned()),
        origin: Some(connection.transport.name.clone()),
        error: Some("the headers cannot be read".to_owned()),
        first_at: Some(now),
        last_at: Some(now),
        ..Trail::new(subject.clone())
    };
    Ok(Message::new(subject, payload)
        .with_headers(kept)
        .with_trail(trail))
}

fn raw_headers(stored: &RawMessage) -> Option<Vec<u8>> {
    STANDARD.decode(stored.headers.as_deref()?).ok()
}

/// Whether the client library would end its connection over it.
fn is_hostile(stored: &RawMessage) -> bool {
    // A subject that was no UTF-8 has lost what it was in the answer.
    let broken = |char: char| char == char::REPLACEMENT_CHARACTER || char.is_whitespace();
    stored.subject.contains(broken)
        || raw_headers(stored).is_some_and(|headers| !is_readable(&headers))
}

/// As the library reads: a line with the version and perhaps a status, then `name: value`, or a line that goes on.
fn is_readable(headers: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(headers) else {
        return false;
    };
    let mut lines = text.lines();
    let version = lines.next().and_then(|line| line.strip_prefix("NATS/1.0"));
    let Some(status) = version.map(str::trim) else {
        return false;
    };
    let status = status.split(' ').next().unwrap_or_default();
    if !status.is_empty() && status.parse::<StatusCode>().is_err() {
        return false;
    }
    let mut goes_on = false;
    lines.filter(|line| !line.is_empty()).all(|line| {
        if goes_on && line.starts_with(char::is_whitespace) {
            return true;
        }
        goes_on = true;
        line.split_once(':')
            .is_some_and(|(name, _)| HeaderName::from_str(name).is_ok())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_library_reads_is_readable() {
        for headers in [
            "NATS/1.0\r\n\r\n",
            "NATS/1.0\r\na: b\r\nA-b: \r\n\r\n",
            "NATS/1.0 503 No Responders\r\n\r\n",
            "NATS/1.0\r\na: b\r\n  and more\r\n\r\n",
        ] {
            assert!(is_readable(headers.as_bytes()), "{headers:?}");
        }
    }

    #[test]
    fn what_ends_its_connection_is_not() {
        for headers in [
            &b"NATS/1.0\r\nname: \xff\xfe\r\n\r\n"[..],
            b"NATS/1.0\r\nno colon\r\n\r\n",
            b"NATS/1.0\r\na b: c\r\n\r\n",
            b"NATS/1.0 many\r\n\r\n",
            b"HTTP/1.0\r\n\r\n",
        ] {
            assert!(
                !is_readable(headers),
                "{:?}",
                headers.escape_ascii().to_string()
            );
        }
    }
}
