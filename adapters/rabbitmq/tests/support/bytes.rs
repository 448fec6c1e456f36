//! A publisher that writes AMQP by hand, and so what no library would.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

/// A connection with one channel.
pub(crate) struct Publisher(TcpStream);

fn short(text: &[u8]) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap()], text].concat()
}

fn long(bytes: &[u8]) -> Vec<u8> {
    let size = u32::try_from(bytes.len()).unwrap().to_be_bytes();
    [&size[..], bytes].concat()
}

impl Publisher {
    pub(crate) fn connect(address: SocketAddr) -> io::Result<Self> {
        let mut this = Self(TcpStream::connect(address)?);
        this.0.write_all(b"AMQP\x00\x00\x09\x01")?;
        this.read(10, 10)?;
        let login = [
            long(b""),
            short(b"PLAIN"),
            long(b"\0guest\0guest"),
            short(b"en_US"),
        ];
        this.send(0, 1, &[&[0, 10, 0, 11], &login.concat()[..]].concat())?;
        let tune = this.read(10, 30)?;
        // Without a heartbeat.
        let tuned = [&[0, 10, 0, 31], &tune[4..10], &[0, 0]].concat();
        this.send(0, 1, &tuned)?;
        let open = [&[0, 10, 0, 40], &short(b"/")[..], &[0, 0]].concat();
        this.send(0, 1, &open)?;
        this.read(10, 41)?;
        this.send(1, 1, &[0, 20, 0, 10, 0])?;
        this.read(20, 11)?;
        Ok(this)
    }

    /// Publishes a message whose headers are these bytes.
    pub(crate) fn publish(&mut self, key: &[u8], headers: &[u8], body: &[u8]) -> io::Result<()> {
        let ids = [0, 60, 0, 40, 0, 0];
        let publish = [&ids, &short(b"anywire")[..], &short(key), &[0]].concat();
        self.send(1, 1, &publish)?;
        let size = u64::try_from(body.len()).unwrap().to_be_bytes();
        let flags = [0b0010_0000, 0];
        let header = [&[0, 60, 0, 0], &size[..], &flags, &long(headers)].concat();
        self.send(1, 2, &header)?;
        self.send(1, 3, body)
    }

    /// Ends, once the broker has taken everything.
    pub(crate) fn close(mut self) -> io::Result<()> {
        self.send(1, 1, &[0, 20, 0, 40, 0, 200, 0, 0, 0, 0, 0])?;
        self.read(20, 41).map(drop)
    }

    fn send(&mut self, channel: u8, kind: u8, payload: &[u8]) -> io::Result<()> {
        let frame = [&[kind, 0, channel], &long(payload)[..], &[0xce]].concat();
        self.0.write_all(&frame)
    }

    /// Reads the method that must come now.
    fn read(&mut self, class: u8, method: u8) -> io::Result<Vec<u8>> {
        let mut head = [0; 7];
        self.0.read_exact(&mut head)?;
        let size = u32::from_be_bytes(head[3..].try_into().unwrap());
        let mut payload = vec![0; usize::try_from(size).unwrap() + 1];
        self.0.read_exact(&mut payload)?;
        match payload.starts_with(&[0, class, 0, method]) {
            true => Ok(payload),
            false => Err(io::Error::other(format!("unexpected: {payload:?}"))),
        }
    }
}
