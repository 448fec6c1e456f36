//! Bytes on the wire that no client library would send.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Publishes whatever bytes it is told to, as no client library would.
pub(crate) struct RawPublisher {
    reader: BufReader<TcpStream>,
}

impl RawPublisher {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        let mut publisher = Self {
            reader: BufReader::new(stream),
        };
        let mut greeting = String::new();
        publisher.reader.read_line(&mut greeting).unwrap();
        assert!(greeting.starts_with("INFO"), "{greeting}");
        publisher.send(b"CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true}\r\n");
        publisher
    }

    /// Publishes a payload behind this header block, and returns when the server has taken it.
    pub(crate) fn publish(&mut self, subject: &str, header: &[u8], payload: &[u8]) {
        let (header_len, total) = (header.len(), header.len() + payload.len());
        let line = format!("HPUB {subject} {header_len} {total}\r\n");
        self.send(&[line.as_bytes(), header, payload, b"\r\nPING\r\n"].concat());
        loop {
            let mut answer = String::new();
            self.reader.read_line(&mut answer).unwrap();
            match answer.trim_end() {
                "PONG" => return,
                // The server asks on its own, too, now and then.
                "PING" => self.send(b"PONG\r\n"),
                other => panic!("the server refuses the message: {other:?}"),
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.reader.get_mut().write_all(bytes).unwrap();
    }
}
