//! A server behind a proxy.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;

use super::{Program, Signal};
use crate::BrokerControl;
use crate::proxy::{Direction, Proxy};

/// How soon a server must stand still.
const PATIENCE: Duration = Duration::from_secs(10);

/// A server's program, and the proxy that clients go through.
#[derive(Debug)]
pub struct Broker {
    /// The server.
    pub program: Program,
    /// What stands before it.
    pub proxy: Proxy,
}

impl Broker {
    /// Puts a proxy before a program that listens at `address`.
    ///
    /// # Errors
    /// Where the proxy finds no port.
    pub async fn start(program: Program, address: SocketAddr) -> io::Result<Self> {
        let proxy = Proxy::start(address).await?;
        Ok(Self { program, proxy })
    }
}

#[async_trait]
impl BrokerControl for Broker {
    async fn start(&self) -> io::Result<()> {
        self.program.launch()
    }

    async fn stop(&self) -> io::Result<()> {
        self.program.end(Signal::TERM)
    }

    async fn kill(&self) -> io::Result<()> {
        self.program.end(Signal::KILL)
    }

    async fn freeze(&self) -> io::Result<()> {
        self.program.signal(Signal::STOP)?;
        // Its threads may run on for a moment.
        let standstill = async {
            while !self.program.is_frozen() {
                tokio::task::yield_now().await;
            }
        };
        Ok(tokio::time::timeout(PATIENCE, standstill).await?)
    }

    async fn thaw(&self) -> io::Result<()> {
        self.program.signal(Signal::CONT)
    }

    async fn cut(&self) -> io::Result<()> {
        for direction in Direction::BOTH {
            self.proxy.blackhole(direction);
        }
        Ok(())
    }

    async fn heal(&self) -> io::Result<()> {
        self.proxy.heal().await
    }

    async fn kill_connections(&self) -> io::Result<()> {
        self.proxy.reset_all();
        Ok(())
    }
}
