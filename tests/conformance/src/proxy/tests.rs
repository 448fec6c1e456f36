//! The proxy between a client and an echo server.

#![allow(clippy::unwrap_used)]

use super::*;
use std::time::Instant;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(5);
const QUIET: Duration = Duration::from_millis(200);

async fn echo() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
                let _ = to.shutdown().await;
            });
        }
    });
    address
}

async fn proxied() -> (Proxy, TcpStream) {
    let proxy = Proxy::start(echo().await).await.unwrap();
    let client = TcpStream::connect(proxy.address()).await.unwrap();
    client.set_nodelay(true).unwrap();
    (proxy, client)
}

async fn read(client: &mut TcpStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    timeout(SOON, client.read_exact(&mut bytes))
        .await
        .unwrap()
        .unwrap();
    bytes
}

async fn rest(client: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    timeout(SOON, client.read_to_end(&mut bytes))
        .await
        .unwrap()?;
    Ok(bytes)
}

#[tokio::test]
async fn without_faults_bytes_pass_both_ways_and_are_counted() {
    let (proxy, mut client) = proxied().await;
    let sent: Vec<u8> = (0..100_000_u32).map(|byte| byte as u8).collect();
    let (mut from, mut to) = client.split();
    let mut got = vec![0; sent.len()];
    try_join(to.write_all(&sent), from.read_exact(&mut got))
        .await
        .unwrap();
    assert_eq!(got, sent);
    let counters = proxy.counters();
    assert_eq!((counters.accepted, counters.open), (1, 1));
    assert_eq!((counters.to_server, counters.to_client), (100_000, 100_000));
}

#[tokio::test]
async fn a_cut_lets_exactly_so_many_bytes_through() {
    let (proxy, mut client) = proxied().await;
    proxy.cut_after(Direction::ToClient, 700);
    client.write_all(&[7; 1000]).await.unwrap();
    assert_eq!(rest(&mut client).await.unwrap_or_default().len(), 700);
    assert_eq!(proxy.counters().to_client, 700);
}

#[tokio::test]
async fn a_cut_happens_once() {
    let (proxy, mut first) = proxied().await;
    proxy.cut_after(Direction::ToServer, 3);
    first.write_all(b"12345").await.unwrap();
    let _ = rest(&mut first).await;
    let mut second = TcpStream::connect(proxy.address()).await.unwrap();
    second.write_all(b"12345").await.unwrap();
    assert_eq!(read(&mut second, 5).await, b"12345");
}

#[tokio::test]
async fn a_reset_is_an_error_at_the_client() {
    let (proxy, mut client) = proxied().await;
    client.write_all(b"x").await.unwrap();
    read(&mut client, 1).await;
    proxy.reset_all();
    let error = rest(&mut client).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn an_orderly_close_is_the_end_of_the_stream() {
    let (proxy, mut client) = proxied().await;
    client.write_all(b"x").await.unwrap();
    read(&mut client, 1).await;
    proxy.close_all();
    assert_eq!(rest(&mut client).await.unwrap(), b"");
}

#[tokio::test]
async fn a_half_close_ends_one_direction_and_leaves_the_other() {
    let (proxy, mut client) = proxied().await;
    client.write_all(b"x").await.unwrap();
    read(&mut client, 1).await;
    proxy.half_close(Direction::ToClient);
    assert_eq!(rest(&mut client).await.unwrap(), b"");
    client.write_all(b"still heard").await.unwrap();
    timeout(SOON, async {
        while proxy.counters().to_server < 12 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_blackhole_is_silent_and_loses_nothing_once_healed() {
    let (proxy, mut client) = proxied().await;
    proxy.blackhole(Direction::ToServer);
    client.write_all(b"held").await.unwrap();
    let mut byte = [0];
    assert!(timeout(QUIET, client.read(&mut byte)).await.is_err());
    assert_eq!(proxy.counters().to_server, 0);
    proxy.heal().await.unwrap();
    assert_eq!(read(&mut client, 4).await, b"held");
}

#[tokio::test]
async fn a_delay_holds_what_passes() {
    let (proxy, mut client) = proxied().await;
    proxy.delay(Direction::ToClient, Duration::from_millis(150));
    let start = Instant::now();
    client.write_all(b"x").await.unwrap();
    read(&mut client, 1).await;
    assert!(start.elapsed() >= Duration::from_millis(150));
}

#[tokio::test]
async fn a_throttle_bounds_the_rate() {
    let (proxy, mut client) = proxied().await;
    proxy.throttle(Direction::ToServer, 10_000);
    let start = Instant::now();
    client.write_all(&[0; 3000]).await.unwrap();
    read(&mut client, 3000).await;
    assert!(start.elapsed() >= Duration::from_millis(250));
}

#[tokio::test]
async fn a_flip_spoils_one_byte() {
    let (proxy, mut client) = proxied().await;
    proxy.flip(Direction::ToServer, 2);
    client.write_all(&[0; 5]).await.unwrap();
    assert_eq!(read(&mut client, 5).await, [0, 0, 255, 0, 0]);
}

#[tokio::test]
async fn refusing_turns_new_connections_away_and_keeps_open_ones() {
    let (proxy, mut client) = proxied().await;
    client.write_all(b"x").await.unwrap();
    read(&mut client, 1).await;
    proxy.refuse().await;
    let error = TcpStream::connect(proxy.address()).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    client.write_all(b"y").await.unwrap();
    assert_eq!(read(&mut client, 1).await, b"y");
    proxy.heal().await.unwrap();
    TcpStream::connect(proxy.address()).await.unwrap();
}

#[tokio::test]
async fn dropping_the_proxy_closes_everything() {
    let (proxy, mut client) = proxied().await;
    client.write_all(b"x").await.unwrap();
    read(&mut client, 1).await;
    let address = proxy.address();
    drop(proxy);
    assert_eq!(rest(&mut client).await.unwrap(), b"");
    timeout(SOON, async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}
