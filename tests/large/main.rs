//! One message of 100 MiB, by what the process takes for it: a test of its own, for it is alone in its process.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::io;
use std::time::Duration;

use async_trait::async_trait;
use postrider::dns::StaticResolver;
use postrider::storage::DiskStorage;
use postrider::transport::smtp::{Connector, SmtpTransport, Stream};
use postrider::transport::{EndCause, Target};
use postrider::{DeliveryEngine, Message};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream};

const MIB: usize = 1 << 20;
const SIZE: usize = 100 * MIB;
const ZONE: &str = "example.net. MX 10 mx.example.net.\nmx.example.net. A 192.0.2.1";

/// Servers that keep nothing.
#[derive(Debug)]
struct Discard;

#[async_trait]
impl Connector for Discard {
    async fn connect(&self, _: &Target) -> Result<Box<dyn Stream>, EndCause> {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        tokio::spawn(serve(theirs));
        Ok(Box::new(ours))
    }
}

async fn serve(stream: DuplexStream) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    stream.write_all(b"220 mx.example.net\r\n").await?;
    let (mut line, mut in_data) = (Vec::new(), false);
    loop {
        line.clear();
        if stream.read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        let reply: &[u8] = match (&line[..], in_data) {
            (b".\r\n", true) => b"250 taken\r\n",
            (_, true) => continue,
            (line, false) if line.starts_with(b"DATA") => b"354 go on\r\n",
            (line, false) if line.starts_with(b"QUIT") => b"221 bye\r\n",
            _ => b"250 ok\r\n",
        };
        in_data = reply.starts_with(b"354");
        stream.write_all(reply).await?;
    }
}

/// The most memory this process has taken so far, in octets.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

/// Content of this size in lines, one of which has a dot that is to be doubled.
fn content() -> Vec<u8> {
    let mut content = Vec::with_capacity(SIZE);
    content.extend(b"Subject: large\r\n\r\n.\r\n");
    while content.len() < SIZE {
        content.extend([b'x'; 1_000]);
        content.extend(b"\r\n");
    }
    content
}

#[tokio::test]
async fn a_message_of_100_mib_is_not_held_twice() {
    let folder = tempfile::tempdir().unwrap();
    let engine = DeliveryEngine::builder("mta.example.org")
        .storage(DiskStorage::open(folder.path()).await.unwrap())
        .resolver(StaticResolver::parse(ZONE).unwrap())
        .transport(SmtpTransport::over(Discard))
        .start()
        .await
        .unwrap();
    let small = |text: &str| Message::new("a@example.org", ["b@example.net"], text.to_owned()).unwrap();
    engine.submit(small("Subject: first\r\n\r\n")).await.unwrap();
    engine.wait_idle().await.unwrap();
    let before = peak();
    let message = Message::new("a@example.org", ["b@example.net"], content()).unwrap();
    engine.submit(message).await.unwrap();
    tokio::time::timeout(Duration::from_secs(300), engine.wait_idle()).await.unwrap().unwrap();
    let stats = engine.stats().await.unwrap();
    assert_eq!((stats.delivered, stats.queued), (2, 0));
    let taken = peak() - before;
    assert!(taken < SIZE + SIZE / 2, "{} MiB for a message of {} MiB", taken / MIB, SIZE / MIB);
    engine.shutdown(Duration::from_secs(10)).await;
}
