//! Postfix as the receiving server. It delivers into a folder, so that what it took can be read.

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use crate::site::{Site, is_root, program, skip};

/// Its daemons, no more of them than it takes to receive mail and to deliver it here; `@` is where it listens.
const DAEMONS: &str = "\
@ inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
proxymap unix - - n - - proxymap
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
virtual unix - n n - - virtual
error unix - - n - - error
retry unix - - n - - error
anvil unix - - n - 1 anvil
postlog unix-dgram n - n - 1 postlogd
";

/// A server on a host of a site, with the domains `mail.example` and `data.example`.
pub(crate) struct Postfix {
    folder: PathBuf,
}

/// A message that it has delivered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Delivered {
    pub(crate) to: String,
    /// With LF in place of CRLF, without what Postfix puts before it.
    pub(crate) content: Vec<u8>,
}

impl Postfix {
    /// On host `host`, with `options` in its configuration. Recipients are refused whom `access` says, as `address reply` in braces;
    /// content is refused whose subject is `spam` or `later`.
    ///
    /// `None`, and a visible line, where it is missing and nobody requires it, and where only root could start it.
    pub(crate) fn start(site: &mut Site, host: u8, options: &str, access: &str) -> Option<Self> {
        let Some((postfix, postconf)) = program("postfix").zip(program("postconf")) else {
            skip("Postfix");
            return None;
        };
        if !is_root() {
            let _ = writeln!(std::io::stderr(), "SKIPPED interop: only root can start Postfix");
            return None;
        }
        let folder = site.shared_folder(&format!("postfix{host}"));
        for name in ["conf", "queue", "data", "mail"] {
            std::fs::create_dir(folder.join(name)).unwrap();
        }
        let owned = |name: &str, user: &str| {
            let chown = Command::new("chown").arg(user).arg(folder.join(name)).status().unwrap();
            assert!(chown.success());
        };
        owned("data", "postfix");
        owned("mail", "65534:65534");
        let daemons = Command::new(postconf).args(["-d", "-h", "daemon_directory"]).output().unwrap();
        let daemons = PathBuf::from(String::from_utf8(daemons.stdout).unwrap().trim());
        let checks =
            "/^Subject: spam$/ REJECT 5.7.1 Spam\n/^Subject: later$/ REJECT 4.7.1 Content is looked at\n";
        let config = folder.join("conf");
        std::fs::write(config.join("checks"), checks).unwrap();
        std::fs::write(config.join("master.cf"), DAEMONS.replace('@', &site.smtp(host).to_string())).unwrap();
        // An empty table is an error to it.
        let access = match access {
            "" => String::new(),
            access => format!("check_recipient_access inline:{{ {access} }}, "),
        };
        let settings = format!(
            "compatibility_level = 3.6\nqueue_directory = {folder}/queue\ndata_directory = {folder}/data\n\
             maillog_file = {folder}/log\nmaillog_file_prefixes = {folder}\n\
             myhostname = mx.postfix.example\nmydestination =\nmynetworks =\nalias_maps =\ninet_protocols = ipv4\n\
             local_recipient_maps =\nlocal_header_rewrite_clients =\n\
             virtual_mailbox_domains = mail.example, data.example\nvirtual_mailbox_maps = static:box/\n\
             virtual_mailbox_base = {folder}/mail\nvirtual_mailbox_limit = 0\nvirtual_minimum_uid = 1\n\
             virtual_uid_maps = static:65534\nvirtual_gid_maps = static:65534\n\
             header_checks = regexp:{folder}/conf/checks\nsmtpd_peername_lookup = no\n\
             smtpd_recipient_restrictions = {access}permit_auth_destination, reject\n\
             {options}\n",
            folder = folder.display(),
        );
        std::fs::write(config.join("main.cf"), settings).unwrap();
        // Makes the folders of its queue.
        let made = Command::new(postfix).arg("-c").arg(&config).arg("check").output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let mut command = Command::new(daemons.join("master"));
        command.arg("-c").arg(&config).arg("-d").env("MAIL_CONFIG", &config);
        site.serve(host, &mut command);
        Some(Self { folder })
    }

    /// What it has delivered, in no order.
    pub(crate) fn delivered(&self) -> Vec<Delivered> {
        let Ok(files) = std::fs::read_dir(self.folder.join("mail/box/new")) else { return Vec::new() };
        files.map(|entry| Delivered::read(&std::fs::read(entry.unwrap().path()).unwrap())).collect()
    }

    /// How its log sums up the sessions that are over, such as `ehlo=1 mail=2 rcpt=2 bdat=1/2 rset=1 quit=1 commands=7/8`.
    pub(crate) fn sessions(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        let summaries =
            log.lines().filter_map(|line| line.split_once(": disconnect from ")?.1.split_once(' '));
        // The test's own look at whether it is there is one without commands.
        let summaries = summaries.map(|(_, summary)| summary.to_owned());
        summaries.filter(|summary| summary.contains("ehlo=")).collect()
    }
}

impl Delivered {
    /// `Return-Path:`, `X-Original-To:`, `Delivered-To:`, `Received:` of several lines, and the content.
    fn read(mut rest: &[u8]) -> Self {
        let mut to = String::new();
        let mut is_in_received = false;
        loop {
            let end = rest.iter().position(|&octet| octet == b'\n').map_or(rest.len(), |end| end + 1);
            let (line, after) = rest.split_at(end);
            assert!(is_in_received || !line.is_empty(), "no Received: in what was delivered");
            if is_in_received && !line.starts_with(b"\t") {
                return Self { to, content: rest.to_vec() };
            }
            is_in_received |= line.starts_with(b"Received: ");
            if let Some(recipient) = line.strip_prefix(b"Delivered-To: ") {
                to = String::from_utf8(recipient.trim_ascii().to_vec()).unwrap();
            }
            rest = after;
        }
    }
}
