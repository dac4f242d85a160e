//! A test's own corner of 127.0.0.0/8: addresses, a port, a DNS server, a folder.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use tempfile::TempDir;

/// Where servers start at last.
const START: Duration = Duration::from_secs(20);
/// The DNS server's host.
const DNS: u8 = 53;

/// Killed when dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) struct Site {
    dir: TempDir,
    net: (u8, u8),
    /// Of all servers, DNS too.
    pub(crate) port: u16,
    /// By host.
    servers: Vec<(u8, Server)>,
}

impl Site {
    /// `None`, and a visible line, where the servers are missing and nobody requires them.
    pub(crate) fn new() -> Option<Self> {
        let missing: Vec<_> =
            ["knotd", "knotc", "smtp-sink"].into_iter().filter(|name| program(name).is_none()).collect();
        if !missing.is_empty() {
            skip(&missing.join(" and "));
            return None;
        }
        // Two runs at a time on one machine keep apart by process, two tests of a run by number.
        static NEXT: AtomicU8 = AtomicU8::new(1);
        let process = u16::try_from(std::process::id() % 20_000).unwrap();
        let net = (2 + u8::try_from(process % 250).unwrap(), NEXT.fetch_add(1, Ordering::Relaxed));
        // Below the ports that systems give to clients: one of those could be taken before a server binds it.
        let free = |port: &u16| {
            [1, DNS]
                .iter()
                .all(|host| TcpListener::bind((Ipv4Addr::new(127, net.0, net.1, *host), *port)).is_ok())
        };
        let port = (10_000 + process..32_768).find(free).unwrap();
        let dir = tempfile::tempdir().unwrap();
        // smtp-sink gives up root's rights and must still reach its folder.
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        Some(Self { dir, net, port, servers: Vec::new() })
    }

    pub(crate) fn ip(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, self.net.0, self.net.1, host)
    }

    pub(crate) fn smtp(&self, host: u8) -> SocketAddr {
        (self.ip(host), self.port).into()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A configuration with `all` in `[domain."*"]`; retries come after a second.
    pub(crate) fn config(&self, engine: &str, all: &str) -> PathBuf {
        let head = self.head(engine);
        self.write_config(&format!(
            "{head}\
             [domain.\"*\"]\nretry-after = [\"1s\"]\nuse-starttls = \"off\"\n{all}\n",
        ))
    }

    /// A configuration that ends with these tables, and has no defaults of its own for domains.
    pub(crate) fn policy(&self, tables: &str) -> PathBuf {
        self.write_config(&format!("{}\n{tables}\n", self.head("")))
    }

    /// A whole configuration.
    pub(crate) fn write_config(&self, text: &str) -> PathBuf {
        let path = self.path("mailer.toml");
        std::fs::write(&path, text).unwrap();
        path
    }

    /// The tables that say where everything is, `engine` among the keys of `[engine]`.
    pub(crate) fn head(&self, engine: &str) -> String {
        format!(
            "[engine]\nhostname = \"mta.sender.example\"\n{engine}\n\
             [storage]\npath = {spool:?}\n\
             [dns]\nnameservers = [\"{dns_ip}:{port}\"]\n\
             [smtp]\nport = {port}\nprohibited-addresses = []\n",
            spool = self.path("spool"),
            dns_ip = self.ip(DNS),
            port = self.port,
        )
    }

    /// knotd with one zone, `example.`; in `zone`, names are relative to it and `@N` is host N's address.
    pub(crate) fn serve_dns(&mut self, zone: &str) {
        let folder = self.path("knot");
        std::fs::create_dir(&folder).unwrap();
        self.write_zone(zone, 1);
        let config = folder.join("knot.conf");
        let listen = format!("{}@{}", self.ip(DNS), self.port);
        let text = format!(
            "server:\n  rundir: {folder:?}\n  listen: \"{listen}\"\n  udp-workers: 1\n  tcp-workers: 1\n\
             log:\n  - target: stderr\n    any: info\n\
             database:\n  storage: {folder:?}\n\
             template:\n  - id: default\n    storage: {folder:?}\n    journal-content: none\n    zonefile-sync: -1\n\
             zone:\n  - domain: example\n    file: example.zone\n",
        );
        std::fs::write(&config, text).unwrap();
        self.serve_until_said(
            DNS,
            Command::new(program("knotd").unwrap()).arg("-c").arg(&config),
            "server started",
        );
    }

    /// A server that is ready when this stands in a line of its log, stderr.
    pub(crate) fn serve_until_said(&mut self, host: u8, command: &mut Command, ready: &str) {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        self.servers.push((host, Server(child)));
        let (line, lines) = channel();
        // Reads to the end even after the test listens no more, so that the server never blocks on its log.
        std::thread::spawn(move || {
            log.lines().map_while(Result::ok).for_each(|text| line.send(text).unwrap_or(()))
        });
        let mut said = Vec::new();
        while !said.last().is_some_and(|line: &String| line.contains(ready)) {
            match lines.recv_timeout(START) {
                Ok(line) => said.push(line),
                Err(error) => {
                    let program = command.get_program().display();
                    panic!("{program} does not start: {error}\n{}", said.join("\n"))
                }
            }
        }
    }

    /// Another zone for the server that runs.
    pub(crate) fn change_dns(&self, zone: &str) {
        self.write_zone(zone, 2);
        let config = self.path("knot/knot.conf");
        let mut knotc = Command::new(program("knotc").unwrap());
        let output = knotc.arg("-b").arg("-c").arg(config).args(["zone-reload", "example"]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn write_zone(&self, zone: &str, serial: u32) {
        let mut text = format!(
            "$ORIGIN example.\n$TTL 60\n@ SOA ns hostmaster {serial} 3600 600 86400 5\n@ NS ns\nns A @53\n"
        );
        text.push_str(zone);
        text.push('\n');
        let prefix = format!("A 127.{}.{}.", self.net.0, self.net.1);
        std::fs::write(self.path("knot/example.zone"), text.replace("A @", &prefix)).unwrap();
    }

    /// smtp-sink on host `host`; each message becomes a file in the folder this returns.
    pub(crate) fn serve_sink(&mut self, host: u8) -> PathBuf {
        let folder = self.shared_folder(&format!("sink{host}"));
        self.serve_sink_with(host, &folder, &[]);
        folder
    }

    /// smtp-sink with options, as the only server of the host: one that runs there ends first.
    pub(crate) fn serve_sink_with(&mut self, host: u8, folder: &Path, options: &[&str]) {
        let mut command = Command::new(program("smtp-sink").unwrap());
        if is_root() {
            command.args(["-u", "nobody"]);
        }
        command.args(options).arg("-d").arg(folder.join("m."));
        command.arg(self.smtp(host).to_string()).arg("100");
        self.serve(host, &mut command);
    }

    /// A folder in which servers write that gave up root's rights.
    pub(crate) fn shared_folder(&self, name: &str) -> PathBuf {
        let folder = self.path(name);
        std::fs::create_dir(&folder).unwrap();
        std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o777)).unwrap();
        folder
    }

    /// A server that says nothing when it is ready: a connection is the only sign.
    pub(crate) fn serve(&mut self, host: u8, command: &mut Command) {
        self.stop(host);
        let (address, errors) = (self.smtp(host), self.path(&format!("errors{host}")));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&errors).unwrap());
        let mut child = command.spawn().unwrap();
        let (_keep, pause) = channel::<()>();
        let mut pauses = (0..1000).map(|_| pause.recv_timeout(Duration::from_millis(10)));
        let ready = loop {
            if TcpStream::connect(address).is_ok() {
                break true;
            } else if child.try_wait().unwrap().is_some() || pauses.next().is_none() {
                break false;
            }
        };
        self.servers.push((host, Server(child)));
        let program = command.get_program().display();
        assert!(ready, "{program} does not start: {}", std::fs::read_to_string(errors).unwrap());
    }

    /// Ends the server of a host.
    pub(crate) fn stop(&mut self, host: u8) {
        self.servers.retain(|(of, _)| *of != host);
    }
}

/// Says that a test is skipped for want of this, or fails where servers are required.
pub(crate) fn skip(missing: &str) {
    let line = format!("SKIPPED interop: {missing} not found");
    assert!(std::env::var_os("POSTRIDER_INTEROP").is_none_or(|mode| mode != "require"), "{line}");
    // Past the capture of test output: a skipped test must not look like a passed one.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Servers often lie outside a user's search path.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).map(|folder| folder.join(name)).find(|file| file.is_file())
}

pub(crate) fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output().unwrap();
    output.stdout.trim_ascii() == b"0"
}

/// The messages smtp-sink kept: recipients, and content with LF as it writes them.
pub(crate) fn read_sink(folder: &Path) -> Vec<(Vec<String>, Vec<u8>)> {
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files.map(|file| parse_dump(&std::fs::read(file).unwrap())).collect()
}

/// `X-…` lines of its own, a `Received:` of three lines, the content, an empty line.
fn parse_dump(dump: &[u8]) -> (Vec<String>, Vec<u8>) {
    let mut to = Vec::new();
    let mut rest = dump;
    let mut next = || {
        let end = rest.iter().position(|&octet| octet == b'\n').expect("a whole line") + 1;
        let (line, after) = rest.split_at(end);
        rest = after;
        String::from_utf8_lossy(line).trim_end().to_owned()
    };
    loop {
        let line = next();
        if let Some(path) = line.strip_prefix("X-Rcpt-Args: ") {
            to.push(path.trim_matches(['<', '>']).to_owned());
        } else if line.starts_with("Received: ") {
            next();
            next();
            break;
        }
    }
    (to, rest.strip_suffix(b"\n").expect("an empty line at the end").to_vec())
}
