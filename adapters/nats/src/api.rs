//! Requests to JetStream's API, over our own inbox.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use anywire::clock::Clock;
use anywire::{Error, ErrorKind, Pattern};
use async_nats::jetstream::consumer::{IntoConsumerConfig, pull};
use async_nats::jetstream::response::Response;
use async_nats::jetstream::{self, ErrorCode, consumer, stream};
use async_nats::message::OutboundMessage;
use async_nats::{StatusCode, Subject};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::link::{Link, Lost};

/// How long an answer may take. A request that we may not make gets none.
const TIMEOUT: Duration = Duration::from_secs(5);

/// JetStream's API.
#[derive(Debug)]
pub(crate) struct Api {
    link: Arc<Link>,
    clock: Arc<dyn Clock>,
    prefix: String,
    has_domain: bool,
}

impl Api {
    pub(crate) fn new(link: Arc<Link>, clock: Arc<dyn Clock>, domain: Option<&str>) -> Self {
        Self {
            link,
            clock,
            prefix: match domain {
                Some(domain) => format!("$JS.{domain}.API"),
                None => "$JS.API".to_owned(),
            },
            has_domain: domain.is_some(),
        }
    }

    pub(crate) fn is_clustered(&self) -> bool {
        self.link.client().server_info().cluster.is_some()
    }

    /// Where a consumer is asked for messages.
    pub(crate) fn pull_subject(&self, stream: &str, consumer: &str) -> String {
        format!("{}.CONSUMER.MSG.NEXT.{stream}.{consumer}", self.prefix)
    }

    /// The streams with a subject that meets `pattern`.
    pub(crate) async fn streams_meeting(
        &self,
        pattern: &Pattern,
    ) -> Result<Vec<stream::Info>, Error> {
        #[derive(Deserialize)]
        struct Page {
            streams: Option<Vec<stream::Info>>,
            #[serde(flatten)]
            of: PageOf,
        }
        let mut found = Vec::new();
        loop {
            let ask = json!({ "subject": pattern.wildcards(), "offset": found.len() });
            let page: Page = self.request("STREAM.LIST", &ask).await?;
            found.extend(page.streams.unwrap_or_default());
            if page.of.is_last(found.len()) {
                return Ok(found);
            }
        }
    }

    pub(crate) async fn stream(&self, name: &str) -> Result<Option<stream::Info>, Error> {
        let subject = format!("STREAM.INFO.{name}");
        absent_or(self.request(&subject, &Value::Null).await)
    }

    pub(crate) async fn create_stream(&self, config: stream::Config) -> Result<(), Error> {
        let subject = format!("STREAM.CREATE.{}", config.name);
        self.request::<Value>(&subject, &json!(config))
            .await
            .map(drop)
    }

    pub(crate) async fn update_stream(&self, config: stream::Config) -> Result<(), Error> {
        let subject = format!("STREAM.UPDATE.{}", config.name);
        self.request::<Value>(&subject, &json!(config))
            .await
            .map(drop)
    }

    pub(crate) async fn consumer(
        &self,
        stream: &str,
        name: &str,
    ) -> Result<Option<consumer::Info>, Error> {
        let subject = format!("CONSUMER.INFO.{stream}.{name}");
        absent_or(self.request(&subject, &Value::Null).await)
    }

    /// All consumers of a stream; none where there is no such stream.
    pub(crate) async fn consumers(&self, stream: &str) -> Result<Vec<consumer::Info>, Error> {
        #[derive(Deserialize)]
        struct Page {
            consumers: Option<Vec<consumer::Info>>,
            #[serde(flatten)]
            of: PageOf,
        }
        let mut found = Vec::new();
        let subject = format!("CONSUMER.LIST.{stream}");
        loop {
            let ask = json!({ "offset": found.len() });
            let Some(page) = absent_or(self.request::<Page>(&subject, &ask).await)? else {
                return Ok(found);
            };
            found.extend(page.consumers.unwrap_or_default());
            if page.of.is_last(found.len()) {
                return Ok(found);
            }
        }
    }

    /// Creates a consumer, or changes what may be changed of one that is there.
    pub(crate) async fn create_consumer(
        &self,
        stream: &str,
        config: pull::Config,
    ) -> Result<(), Error> {
        let config = config.into_consumer_config();
        let name = config.name.as_deref().unwrap_or_default();
        let mut subject = format!("CONSUMER.CREATE.{stream}.{name}");
        if !config.filter_subject.is_empty() {
            subject = format!("{subject}.{}", config.filter_subject);
        }
        let ask = json!({ "stream_name": stream, "config": config, "action": "" });
        self.request::<Value>(&subject, &ask).await.map(drop)
    }

    pub(crate) async fn delete_consumer(&self, stream: &str, name: &str) -> Result<(), Error> {
        let subject = format!("CONSUMER.DELETE.{stream}.{name}");
        let deleted = self.request::<Value>(&subject, &Value::Null).await;
        absent_or(deleted).map(drop)
    }

    /// Lets another client be the one that a consumer serves.
    pub(crate) async fn unpin(&self, stream: &str, name: &str, group: &str) -> Result<(), Error> {
        let subject = format!("CONSUMER.UNPIN.{stream}.{name}");
        let ask = json!({ "group": group });
        self.request::<Value>(&subject, &ask).await.map(drop)
    }

    /// The first message at or after `sequence` that matches `filter`, as it is stored.
    pub(crate) async fn stored_message(
        &self,
        stream: &str,
        sequence: u64,
        filter: &str,
    ) -> Result<Option<stream::RawMessage>, Error> {
        #[derive(Deserialize)]
        struct Answer {
            message: stream::RawMessage,
        }
        let subject = format!("STREAM.MSG.GET.{stream}");
        let ask = json!({ "seq": sequence, "next_by_subj": filter });
        let answer = self.request::<Answer>(&subject, &ask).await;
        Ok(absent_or(answer)?.map(|answer| answer.message))
    }

    pub(crate) async fn delete_message(&self, stream: &str, sequence: u64) -> Result<(), Error> {
        let subject = format!("STREAM.MSG.DELETE.{stream}");
        let ask = json!({ "seq": sequence });
        absent_or(self.request::<Value>(&subject, &ask).await).map(drop)
    }

    async fn request<T: DeserializeOwned>(&self, subject: &str, ask: &Value) -> Result<T, Error> {
        let payload = match ask {
            Value::Null => Vec::new(),
            ask => serde_json::to_vec(ask).map_err(|error| unreadable(subject, error))?,
        };
        let address = Subject::from(format!("{}.{subject}", self.prefix));
        let reply = self.link.expect(Some(address.clone()), None);
        let request = OutboundMessage {
            subject: address,
            reply: Some(reply.address().clone()),
            payload: payload.into(),
            headers: None,
        };
        let asking = async {
            self.link.send(request).await?;
            let answer = reply.await;
            answer.map_err(|lost| Error::from(lost).with_context("request", subject))
        };
        let deadline = self.clock.now() + TIMEOUT;
        let answer = tokio::select! {
            answer = asking => answer?,
            () = self.clock.sleep_until(deadline) => return Err(match self.link.is_connected() {
                true => silent(subject),
                false => Error::from(Lost::Disconnected).with_context("request", subject),
            }),
        };
        if answer.status == Some(StatusCode::NO_RESPONDERS) {
            return Err(self.nobody(subject));
        }
        match serde_json::from_slice(&answer.payload) {
            Ok(Response::Ok(answer)) => Ok(answer),
            Ok(Response::Err { error }) => Err(refused(subject, error)),
            Err(error) => Err(unreadable(subject, error)),
        }
    }

    fn nobody(&self, subject: &str) -> Error {
        // A server that has just started answers before its JetStream does.
        let error = match self.has_domain || self.link.client().server_info().jetstream {
            true => Error::new(ErrorKind::Unavailable, "JetStream does not answer yet"),
            false => Error::new(
                ErrorKind::Unsupported,
                "the NATS server has no JetStream; enable it there, or set delivery = \"at_most_once\"",
            ),
        };
        error.with_context("request", subject)
    }
}

fn silent(subject: &str) -> Error {
    let text =
        "JetStream did not answer; may the user publish to $JS.API.> and subscribe to its inbox?";
    Error::new(ErrorKind::Timeout, text).with_context("request", subject)
}

fn unreadable(subject: &str, error: serde_json::Error) -> Error {
    let text = "JetStream's answer cannot be read";
    Error::new(ErrorKind::Rejected, text)
        .with_context("request", subject)
        .with_source(error)
}

/// What the pages of a list have in common.
#[derive(Deserialize)]
struct PageOf {
    total: usize,
    limit: usize,
}

impl PageOf {
    fn is_last(&self, seen: usize) -> bool {
        seen >= self.total || self.limit == 0
    }
}

/// The API's own code of an error.
pub(crate) fn code(error: &Error) -> Option<ErrorCode> {
    let source = error.source()?.downcast_ref::<jetstream::Error>()?;
    Some(source.error_code())
}

fn refused(subject: &str, error: jetstream::Error) -> Error {
    let kind = match error.error_code() {
        ErrorCode::STREAM_NOT_FOUND
        | ErrorCode::CONSUMER_NOT_FOUND
        | ErrorCode::NO_MESSAGE_FOUND => ErrorKind::NotFound,
        ErrorCode::JETSTREAM_NOT_ENABLED | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => {
            ErrorKind::Unsupported
        }
        ErrorCode::CLUSTER_NOT_AVAILABLE => ErrorKind::Unavailable,
        ErrorCode::INSUFFICIENT_RESOURCES
        | ErrorCode::STORAGE_RESOURCES_EXCEEDED
        | ErrorCode::ACCOUNT_RESOURCES_EXCEEDED => ErrorKind::Overloaded,
        _ => ErrorKind::Rejected,
    };
    Error::new(kind, format!("JetStream refused: {error}"))
        .with_context("request", subject)
        .with_source(error)
}

fn absent_or<T>(answer: Result<T, Error>) -> Result<Option<T>, Error> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
