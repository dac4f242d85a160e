//! What a test server does at which command.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

/// Where in the conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Command {
    /// The greeting, before any command.
    Connect,
    /// EHLO, or LHLO of a server that speaks LMTP.
    Ehlo,
    /// HELO.
    Helo,
    /// STARTTLS. After a 2xx comes the handshake.
    StartTls,
    /// AUTH, and each response of the client after a 334.
    Auth,
    /// MAIL.
    Mail,
    /// RCPT.
    Rcpt,
    /// DATA.
    Data,
    /// BDAT, before its chunk is read, where CHUNKING is offered. Without an instruction nothing is said. A reply that refuses is that
    /// of a server that does not know BDAT: it reads the chunk as commands.
    Bdat,
    /// The content, once the 354 to DATA has gone out, or BDAT has come. Without an instruction nothing is said. After a reply that
    /// does not close, the server reads on, and answers the final dot or the chunk too.
    Content,
    /// The final dot, or the end of the last chunk.
    Dot,
    /// RSET.
    Rset,
    /// NOOP.
    Noop,
    /// QUIT.
    Quit,
    /// Anything else.
    Other,
}

/// What the server does in place of its normal answer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Behaviour {
    /// Says this reply: one line, or several separated by newlines. The normal effect of the command follows the
    /// code: 2xx (354 for DATA, 334 where a response is asked for) accepts, the rest refuses. 421 closes.
    Reply(String),
    /// Says this, as [`Behaviour::Reply`], octet by octet, and waits so long before each.
    Trickle(String, Duration),
    /// Sends these octets as they are. Otherwise the command is refused.
    Raw(Bytes),
    /// Closes the connection without a word.
    Close,
    /// Says this, as [`Behaviour::Reply`], and closes.
    ReplyAndClose(String),
    /// Accepts, and closes before the reply goes out. At [`Command::Dot`]: what makes possible duplicates.
    LoseReply,
    /// Breaks the connection, as a TCP reset does (over TCP: closes it).
    Reset,
    /// Never says anything again; reads on until the client leaves.
    Silence,
    /// Waits, then does the other.
    Delay(Duration, Box<Behaviour>),
    /// Waits, then answers normally.
    Slow(Duration),
}

impl Behaviour {
    /// Does this after `wait`.
    pub fn after(self, wait: Duration) -> Self {
        Self::Delay(wait, Box::new(self))
    }
}

/// A reply.
impl From<&str> for Behaviour {
    fn from(reply: &str) -> Self {
        Self::Reply(reply.to_owned())
    }
}

/// A reply.
impl From<String> for Behaviour {
    fn from(reply: String) -> Self {
        Self::Reply(reply)
    }
}

/// What a server is asked, for [`SmtpServer::on`](super::SmtpServer::on).
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Exchange<'a> {
    /// Where in the conversation.
    pub command: Command,
    /// The command line without its end; empty at [`Command::Connect`], [`Command::Content`] and [`Command::Dot`].
    pub line: &'a str,
    /// The connection's number at this server, from 1.
    pub connection: u64,
    /// The address the client dialled.
    pub address: SocketAddr,
    /// Where the client said or was seen to come from.
    pub client: Option<IpAddr>,
    /// The client's name in EHLO.
    pub ehlo: &'a str,
    /// MAIL's path, from MAIL on.
    pub reverse_path: &'a str,
    /// The recipients accepted so far.
    pub recipients: &'a [String],
    /// RCPT's path; in LMTP also that of the recipient whose reply to the content it is.
    pub recipient: Option<&'a str>,
    /// The number of MAIL commands accepted in this connection, this one not counted.
    pub transactions: u64,
}

pub(super) type Hook = Arc<dyn Fn(&Exchange<'_>) -> Option<Behaviour> + Send + Sync>;

/// One instruction of a script.
pub(super) struct Rule {
    pub(super) command: Command,
    pub(super) recipient: Option<String>,
    pub(super) connection: Option<u64>,
    pub(super) skip: u64,
    pub(super) times: u64,
    pub(super) behaviour: Behaviour,
}

impl Rule {
    /// What to do, if this rule is for the exchange and not used up.
    pub(super) fn apply(&mut self, exchange: &Exchange<'_>) -> Option<Behaviour> {
        let applies = self.command == exchange.command
            && self.times > 0
            && self.connection.is_none_or(|number| number == exchange.connection)
            && self.recipient.as_deref().is_none_or(|recipient| exchange.recipient == Some(recipient));
        if !applies {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        self.times -= 1;
        Some(self.behaviour.clone())
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?} × {}: {:?}", self.command, self.recipient, self.times, self.behaviour)
    }
}
