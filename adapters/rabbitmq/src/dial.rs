//! Opening one connection: to a server, with a time limit, on a socket that we can end.

use std::io;
use std::net::Shutdown;
use std::sync::Arc;
use std::time::Duration;

use anywire::Error;
use anywire::config::{Endpoint, TransportConfig};
use async_rs::Tokio;
use lapin::types::LongString;
use lapin::uri::AMQPScheme;
use lapin::{AsyncTcpStream, ConnectionProperties};
use parking_lot::Mutex;
use socket2::SockRef;

use crate::config::{self, RabbitmqConfig};
use crate::errors;
use crate::socket::{Kit, Socket};

/// How long one attempt to connect may take: a server that does not speak as it should is told within five seconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);

/// The socket below a connection. The library waits for the other end when it closes; this ends what nobody answers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plug(Arc<Mutex<Socketed>>);

#[derive(Debug, Default)]
enum Socketed {
    #[default]
    Connecting,
    Plugged(socket2::Socket),
    Pulled,
}

impl Plug {
    /// Ends the connection at once.
    pub(crate) fn pull(&self) {
        let before = std::mem::replace(&mut *self.0.lock(), Socketed::Pulled);
        if let Socketed::Plugged(socket) = before {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// # Errors
    /// It was pulled: nobody wants the connection any more.
    fn put(&self, socket: socket2::Socket) -> io::Result<()> {
        let mut plug = self.0.lock();
        if matches!(*plug, Socketed::Pulled) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        *plug = Socketed::Plugged(socket);
        Ok(())
    }
}

/// An attempt to connect. One that is given up leaves the library's thread waiting for an answer, unless the plug is pulled.
struct Attempt(Option<Plug>);

impl Drop for Attempt {
    fn drop(&mut self) {
        if let Some(plug) = self.0.take() {
            plug.pull();
        }
    }
}

/// Connects to one server.
///
/// # Errors
/// `Denied`, `Config` or `Unavailable`, naming the address.
pub(crate) async fn dial(
    config: &RabbitmqConfig,
    transport: &TransportConfig,
    endpoint: &Endpoint,
    role: &str,
) -> Result<(lapin::Connection, Plug), Error> {
    let tls = config::tls(&transport.tls).await?;
    let uri = config.uri(transport, endpoint);
    let name = format!("{}/{role}", transport.app);
    let properties =
        ConnectionProperties::default().with_connection_name(LongString::from(name.into_bytes()));
    let plug = Plug::default();
    let server_name = transport.tls.server_name.clone();
    let server_name = server_name.unwrap_or_else(|| endpoint.host.clone());
    let held = plug.clone();
    let connect = lapin::Connection::connector(
        uri,
        Kit::current(),
        async move |uri, _| {
            let address = (uri.authority.host.as_str(), uri.authority.port);
            let mut found = tokio::net::lookup_host(address).await?;
            let address = found
                .next()
                .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
            let stream = AsyncTcpStream::connect(&Tokio::current(), address).await?;
            if let AsyncTcpStream::Plain(plain) = &stream {
                held.put(SockRef::from(plain.get_ref()).try_clone()?)?;
            }
            let stream = match uri.scheme {
                AMQPScheme::AMQP => stream,
                AMQPScheme::AMQPS => stream.into_tls(&server_name, tls.as_ref()).await?,
            };
            Ok(AsyncTcpStream::Plain(Socket::new(stream)))
        },
        properties,
    );
    let mut attempt = Attempt(Some(plug.clone()));
    match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
        Ok(Ok(connection)) => {
            attempt.0 = None;
            Ok((connection, plug))
        }
        Ok(Err(error)) => Err(errors::connect(error, transport)),
        Err(_) => Err(errors::silent(transport)),
    }
}
