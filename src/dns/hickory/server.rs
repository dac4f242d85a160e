//! One name server: a question, and the message that answers it.

use std::net::SocketAddr;
use std::time::Duration;

use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::udp::UdpClientStream;
use hickory_resolver::net::xfer::{DnsRequestSender, FirstAnswer};
use hickory_resolver::proto::op::{DnsRequest, DnsRequestOptions, DnsResponse, MessageType, Query};
use hickory_resolver::proto::rr::{Name, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

pub(super) struct Server {
    pub(super) address: SocketAddr,
    /// For each of UDP and TCP.
    pub(super) timeout: Duration,
}

impl Server {
    /// Asks over UDP, and over TCP where the answer does not fit. What comes answers the question, whatever it says.
    pub(super) async fn ask(&self, name: &Name, rtype: RecordType) -> Result<DnsResponse, NetError> {
        let query = Query::query(name.clone(), rtype);
        let mut request = DnsRequest::from_query(query, DnsRequestOptions::default());
        // RFC 6840 §5.7: asks for AD in the answer, without the signatures that DO would bring.
        request.metadata.authentic_data = true;
        let udp = UdpClientStream::builder(self.address, TokioRuntimeProvider::default());
        let mut udp = udp.with_timeout(Some(self.timeout)).build();
        let response = udp.send_message(request.clone()).first_answer().await?;
        let response = match response.truncation {
            true => {
                timeout(self.timeout, self.ask_by_tcp(request)).await.unwrap_or(Err(NetError::Timeout))?
            }
            false => response,
        };
        if response.message_type != MessageType::Response {
            return Err(NetError::from("a question instead of an answer"));
        }
        Ok(response)
    }

    async fn ask_by_tcp(&self, request: DnsRequest) -> Result<DnsResponse, NetError> {
        let octets = request.to_vec()?;
        let length = u16::try_from(octets.len()).map_err(|_| NetError::from("the question is too long"))?;
        let mut stream = TcpStream::connect(self.address).await?;
        stream.write_all(&[&length.to_be_bytes(), octets.as_slice()].concat()).await?;
        let mut answer = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut answer).await?;
        let response = DnsResponse::from_buffer(answer)?;
        if response.id != request.id || response.queries != request.queries {
            return Err(NetError::from("an answer to another question"));
        }
        Ok(response)
    }
}
