//! MTA-STS (RFC 8461): records from knotd, policies from Python's web server, mail to its TLS, which is OpenSSL.

use std::path::PathBuf;
use std::process::Command;

use postrider::dns::HickoryResolver;
use postrider::engine::EventStream;
use postrider::event::{DeliveryEvent, Reason};
use postrider::mta_sts::HttpsFetcher;
use postrider::storage::MemoryStorage;
use postrider::testing::TestCertificate;
use postrider::tls_report::{TlsPolicy, TlsResult};
use postrider::transport::smtp::SmtpTransport;
use postrider::{DeliveryEngine, Message, Policy};

use crate::site::{Site, skip};

/// The hosts of domains, with the records that announce policies.
const ZONE: &str = "
good MX 10 mx1.good
mx1.good A @1
_mta-sts.good TXT \"v=STSv1; id=1\"
mta-sts.good A @9

other MX 10 mx2.good
mx2.good A @2
_mta-sts.other TXT \"v=STSv1; id=1\"
mta-sts.other A @9

barred MX 10 mx1.good
_mta-sts.barred TXT \"v=STSv1; \" \"id=1\"
mta-sts.barred A @9

lost MX 10 mx1.good
_mta-sts.lost TXT \"v=STSv1; id=1\"
mta-sts.lost A @9

stranger MX 10 mx1.good
_mta-sts.stranger TXT \"v=STSv1; id=1\"
mta-sts.stranger A @9
";

/// Servers and an engine that trusts their certificates.
struct Rig {
    site: Site,
    certificate: TestCertificate,
}

impl Rig {
    /// `None`, and a visible line, where a server is missing and nobody requires it.
    fn new() -> Option<Self> {
        let mut site = Site::new()?;
        if Command::new("python3").arg("--version").output().is_err() {
            skip("python3");
            return None;
        }
        site.serve_dns(ZONE);
        // Not for mx2.good.example, and not for mta-sts.stranger.example.
        let web = ["good", "other", "barred", "lost"].map(|name| format!("mta-sts.{name}.example"));
        let names = web.iter().map(String::as_str).chain(["mx1.good.example"]);
        let certificate = TestCertificate::new(names).unwrap();
        let mut rig = Self { site, certificate };
        let folder = rig.site.shared_folder("policies");
        rig.serve(9, "policy_server.py", Some(folder));
        rig.serve(1, "starttls.py", None);
        rig.serve(2, "starttls.py", None);
        Some(rig)
    }

    fn serve(&mut self, host: u8, script: &str, folder: Option<PathBuf>) {
        let [chain, key] = ["chain.pem", "key.pem"].map(|name| self.site.path(name));
        std::fs::write(&chain, self.certificate.pem()).unwrap();
        std::fs::write(&key, self.certificate.key_pem()).unwrap();
        let mut command = Command::new("python3");
        command.arg(format!("{}/tests/interop/{script}", env!("CARGO_MANIFEST_DIR")));
        let place = [self.site.ip(host).to_string(), self.site.port.to_string()];
        match folder {
            Some(folder) => command.args(place).args([chain, key, folder]),
            None => command.args([chain, key]).args(place),
        };
        self.site.serve(host, &mut command);
    }

    fn publish(&self, domain: &str, mode: &str, mx: &str) {
        let file = format!("version: STSv1\r\nmode: {mode}\r\nmx: {mx}\r\nmax_age: 86400\r\n");
        std::fs::write(self.site.path("policies").join(format!("{domain}.example")), file).unwrap();
    }

    async fn engine(&self) -> (DeliveryEngine, EventStream) {
        let port = self.site.port;
        let policy =
            format!("[smtp]\nport = {port}\nprohibited-addresses = []\n[domain.'*']\nretry-after = '1h'\n");
        let transport = SmtpTransport::new().with_root_certificates(self.certificate.pem()).unwrap();
        let fetcher = HttpsFetcher::new().with_root_certificates(self.certificate.pem()).unwrap();
        let engine = DeliveryEngine::builder("mta.sender.example")
            .storage(MemoryStorage::new())
            .resolver(HickoryResolver::with_nameservers(&[self.site.smtp(53)]).unwrap())
            .transport(transport)
            .policy_fetcher(fetcher.with_port(port))
            .policy(Policy::from_toml(&policy).unwrap())
            .start()
            .await
            .unwrap();
        let events = engine.events(1_000);
        (engine, events)
    }
}

/// What becomes of a message to a domain at once: by which TLS it was delivered, or with what status and why it waits.
async fn send(engine: &DeliveryEngine, events: &mut EventStream, domain: &str) -> String {
    let to = format!("b@{domain}.example");
    let message = Message::new("a@sender.example", [to.as_str()], "Subject: x\r\n\r\nx\r\n").unwrap();
    engine.submit(message).await.unwrap();
    loop {
        match events.next().await.unwrap() {
            DeliveryEvent::Delivered(event) => return event.tls.unwrap_or_else(|| "plain".to_owned()),
            DeliveryEvent::QueueDeferred(event) => {
                let diagnosis = event.diagnosis;
                assert_eq!(diagnosis.reason, Reason::MtaSts, "{diagnosis:?}");
                return diagnosis.status.to_string();
            }
            _ => {}
        }
    }
}

#[tokio::test]
async fn policies_of_a_web_server_are_kept() {
    let Some(rig) = Rig::new() else { return };
    rig.publish("good", "enforce", "mx1.good.example");
    rig.publish("other", "enforce", "*.good.example");
    rig.publish("barred", "enforce", "mx2.good.example");
    rig.publish("stranger", "enforce", "mx2.good.example");
    let (engine, mut events) = rig.engine().await;
    let tls = "TLSv1.3 TLS_AES_256_GCM_SHA384";
    for (domain, expected) in [
        ("good", tls),
        // Its host's certificate is for another name.
        ("other", "4.7.5"),
        // Its host is not permitted.
        ("barred", "4.7.0"),
        // No policy can be had: the server has none, or is not proved to be the domain's.
        ("lost", tls),
        ("stranger", tls),
    ] {
        assert_eq!(send(&engine, &mut events, domain).await, expected, "{domain}");
    }
    let report = engine.take_tls_report().await.unwrap();
    let by_policy = || report.domains.iter().filter(|domain| matches!(domain.policy, TlsPolicy::Sts(_)));
    let counted: Vec<_> = by_policy().map(|domain| (&*domain.domain, domain.successful)).collect();
    let names = ["barred.example", "good.example", "lost.example", "other.example", "stranger.example"];
    assert_eq!(counted, names.map(|name| (name, u64::from(name == "good.example"))));
    let failures: Vec<_> = by_policy().flat_map(|domain| &domain.failures).collect();
    let results: Vec<_> = failures.iter().map(|failure| (failure.result, failure.count)).collect();
    use TlsResult::*;
    let expected =
        [ValidationFailure, StsPolicyFetchError, CertificateHostMismatch, StsWebpkiInvalid].map(|r| (r, 1));
    assert_eq!(results, expected, "{failures:?}");
}
