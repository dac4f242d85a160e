//! Exim as the receiving server. It takes mail into its queue and delivers nothing, so that what it took can be read
//! from its spool: envelope, DSN parameters and content.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use postrider::testing::TestCertificate;

use crate::site::{Site, is_root, program, skip};

/// Whom a server becomes that root starts.
const NOBODY: u32 = 65_534;
/// Debian's Exim does not start on a system without its user. This library tells it that it is the one who runs it.
const WRAPPER: &str = "libnss_wrapper.so";

/// A server on a host of a site.
pub(crate) struct Exim {
    folder: PathBuf,
}

/// A message in its queue.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Queued {
    pub(crate) from: String,
    /// With what was asked about each, as Exim writes it.
    pub(crate) to: BTreeMap<String, String>,
    /// Its other notes on the message, by name.
    pub(crate) notes: BTreeMap<String, String>,
    /// With LF in place of CRLF.
    pub(crate) content: Vec<u8>,
}

impl Exim {
    /// On host `host`, with `options` in its configuration, and these ACLs.
    ///
    /// `None`, and a visible line, where it is missing and nobody requires it.
    pub(crate) fn start(site: &mut Site, host: u8, options: &str, acls: &str) -> Option<Self> {
        let Some(program) = executable().filter(|_| has_wrapper()) else {
            skip("Exim (.ci/run unpacks it) or libnss-wrapper");
            return None;
        };
        let folder = site.shared_folder(&format!("exim{host}"));
        // A copy: what is installed has root's rights whoever starts it, and what lies in a checkout may be out of reach.
        let own = folder.join("exim4");
        std::fs::write(&own, std::fs::read(program).unwrap()).unwrap();
        std::fs::set_permissions(&own, PermissionsExt::from_mode(0o755)).unwrap();
        let write = |name: &str, text: String| {
            let file = folder.join(name);
            std::fs::write(&file, text).unwrap();
            file
        };
        let (user, group) = if is_root() { (NOBODY, NOBODY) } else { (id("-u"), id("-g")) };
        let users = write("passwd", format!("Debian-exim:x:{user}:{group}::/nonexistent:/bin/false\n"));
        let groups = write("group", format!("Debian-exim:x:{group}:\n"));
        let config = write(
            "exim.conf",
            format!(
                "primary_hostname = mx.exim.example\n\
                 spool_directory = {folder}/spool\nlog_file_path = {folder}/%s.log\n\
                 queue_only\nreceived_header_text =\nkeep_environment =\nhost_lookup =\n\
                 acl_smtp_rcpt = rcpt\n{options}\nbegin acl\n{acls}\n",
                folder = folder.display(),
            ),
        );
        let address = format!("{}.{}", site.ip(host), site.port);
        let mut command = Command::new(own);
        command.arg("-C").arg(config).args(["-bdf", "-oX", &address]);
        command.env("LD_PRELOAD", WRAPPER).env("NSS_WRAPPER_PASSWD", users).env("NSS_WRAPPER_GROUP", groups);
        if is_root() {
            command.uid(user).gid(group);
        }
        site.serve(host, &mut command);
        Some(Self { folder })
    }

    /// Options for STARTTLS with this certificate.
    pub(crate) fn tls(site: &Site, certificate: &TestCertificate) -> String {
        let folder = site.shared_folder("exim-tls");
        let [chain, key] = ["chain.pem", "key.pem"].map(|name| folder.join(name));
        std::fs::write(&chain, certificate.pem()).unwrap();
        std::fs::write(&key, certificate.key_pem()).unwrap();
        format!("tls_certificate = {}\ntls_privatekey = {}", chain.display(), key.display())
    }

    /// What it has taken, in no order.
    pub(crate) fn queued(&self) -> Vec<Queued> {
        let Ok(files) = std::fs::read_dir(self.folder.join("spool/input")) else { return Vec::new() };
        let is_head = |file: &PathBuf| file.to_string_lossy().ends_with("-H");
        files.map(|entry| entry.unwrap().path()).filter(is_head).map(|file| Queued::read(&file)).collect()
    }

    /// The lines of its log about messages it took.
    pub(crate) fn arrivals(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.folder.join("main.log")).unwrap();
        log.lines().filter(|line| line.contains(" <= ")).map(str::to_owned).collect()
    }
}

impl Queued {
    /// From `…-H`, with its envelope and header, and `…-D`, with its body. Each begins with the name of the file.
    fn read(head: &Path) -> Self {
        let body = PathBuf::from(head.to_string_lossy().strip_suffix("-H").unwrap().to_owned() + "-D");
        let (head, body) = (std::fs::read(head).unwrap(), std::fs::read(body).unwrap());
        let mut rest = &head[..];
        let mut next = || {
            let (line, after) = split_line(rest);
            rest = after;
            String::from_utf8(line.to_vec()).unwrap()
        };
        let mut queued = Self::default();
        let [_name, _owner, from, _times] = [next(), next(), next(), next()];
        queued.from = from;
        // Notes up to the tree of recipients that are done, which is empty.
        loop {
            let line = next();
            match line.strip_prefix('-') {
                Some(note) => {
                    let (name, value) = note.split_once(' ').unwrap_or((note, ""));
                    queued.notes.insert(name.to_owned(), value.to_owned());
                }
                None if line == "XX" => break,
                None => panic!("{line} in {}", String::from_utf8_lossy(&head)),
            }
        }
        for _ in 0..next().parse().unwrap() {
            let line = next();
            let (address, asked) = line.split_once(' ').unwrap_or((&line, ""));
            queued.to.insert(address.to_owned(), asked.to_owned());
        }
        assert_eq!(next(), "");
        // Each field of the header: its length, a letter, a space, and its lines. The one with `*` is not the message's.
        while !rest.is_empty() {
            let digits = rest.iter().take_while(|octet| octet.is_ascii_digit()).count();
            let length: usize = std::str::from_utf8(&rest[..digits]).unwrap().parse().unwrap();
            let (field, after) = rest[digits + 2..].split_at(length);
            if rest[digits] != b'*' {
                queued.content.extend(field);
            }
            rest = after;
        }
        if !queued.content.is_empty() {
            queued.content.push(b'\n');
        }
        queued.content.extend(split_line(&body).1);
        queued
    }
}

/// The first line, and what follows it.
fn split_line(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(|&octet| octet == b'\n').expect("a whole line");
    (&text[..end], &text[end + 1..])
}

/// Where a variable says, where `.ci/run` puts it, or installed.
fn executable() -> Option<PathBuf> {
    let own = std::env::current_exe().unwrap();
    // .../<target>/<profile>/deps/<test>-<hash>
    let unpacked = own.ancestors().nth(3).unwrap().join("interop/exim4");
    let said = std::env::var_os("POSTRIDER_EXIM").map(PathBuf::from);
    said.or_else(|| unpacked.is_file().then_some(unpacked)).or_else(|| program("exim4"))
}

/// The loader says on stderr what it can not preload, and goes on.
fn has_wrapper() -> bool {
    let output = Command::new("true").env("LD_PRELOAD", OsString::from(WRAPPER)).output().unwrap();
    output.stderr.is_empty()
}

/// Of the one who runs the test.
fn id(of: &str) -> u32 {
    let output = Command::new("id").arg(of).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}
