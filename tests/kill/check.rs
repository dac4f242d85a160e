//! The example `check_store`, run as a program.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::example::executable;
use crate::mailer::{Mailer, pause};
use crate::receiver::Receiver;
use crate::{config, draw};

/// Its exit status, and all that it says.
pub(crate) fn check_store(args: &[&dyn AsRef<OsStr>]) -> (Option<i32>, String) {
    let mut command = Command::new(executable("check_store"));
    for arg in args {
        command.arg(arg);
    }
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

/// All files of a store, with what is in them.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(self::files(&path));
        } else {
            files.insert(path.clone(), std::fs::read(path).unwrap());
        }
    }
    files
}

/// Flips all bits of an octet in the content of the largest body file.
fn damage(spool: &Path) {
    let files = std::fs::read_dir(spool.join("bodies")).unwrap();
    let largest = files.map(|file| file.unwrap().path()).max_by_key(|path| path.metadata().unwrap().len());
    let path = largest.unwrap();
    let mut octets = std::fs::read(&path).unwrap();
    let at = octets.windows(9).position(|octets| octets == b"A line of").unwrap();
    octets[at] ^= 0xff;
    std::fs::write(&path, octets).unwrap();
}

#[test]
fn a_store_is_checked_listed_and_found_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().join("spool");
    let (code, text) = check_store(&[&spool]);
    assert!(code == Some(2) && text.contains("spool"), "{code:?} {text}");
    let wrong: [Vec<&dyn AsRef<OsStr>>; 3] = [vec![&"--lists", &spool], vec![&"--lists"], vec![]];
    for arguments in wrong {
        let (code, text) = check_store(&arguments);
        assert!(code == Some(2) && text.contains("usage"), "{code:?} {text}");
    }

    // Mail that waits: nobody listens there any more.
    let (_receiver, mut address) = Receiver::start();
    address.set_port(9);
    let mut rng = fastrand::Rng::with_seed(1);
    let lines: Vec<_> = (0..20).map(|number| draw(&format!("m{number}"), None, &mut rng).line).collect();
    let mut mailer = Mailer::start(&config(folder.path(), address, 0), &[]);
    mailer.feed_all(&lines);
    pause(Duration::from_secs(3));
    let (code, text) = check_store(&[&spool]);
    assert!(code == Some(2) && text.contains("in use"), "{code:?} {text}");
    let mut received = mailer.kill();
    received.retain(|record| record["type"] == "received");
    assert!(!received.is_empty());

    let before = files(&spool);
    let (code, text) = check_store(&[&spool]);
    assert!(code == Some(0) && text.contains("nothing is damaged"), "{code:?} {text}");
    let messages: usize = text.split_once(" messages").unwrap().0.parse().unwrap();
    assert!((received.len()..=lines.len()).contains(&messages), "{} were received: {text}", received.len());
    let (code, text) = check_store(&[&spool, &"--list"]);
    let is_listed = |line: &&str| line.contains(" from=<news@sender.example> to=<");
    assert_eq!((code, text.lines().filter(is_listed).count()), (Some(0), messages), "{text}");
    for record in &received {
        let (id, reference) = (record["id"].as_str().unwrap(), record["ref"].as_str().unwrap());
        let line =
            text.lines().find(|line| line.starts_with(id)).unwrap_or_else(|| panic!("{record}: {text}"));
        let to = line.matches(&format!("-{reference}-")).count();
        assert_eq!(Some(to as u64), record["recipients"].as_u64(), "{record}: {line}");
    }
    assert!(files(&spool) == before, "nothing is changed");

    damage(&spool);
    let before = files(&spool);
    let (code, text) = check_store(&[&spool]);
    assert!(code == Some(1) && text.contains("1 problem") && text.contains("damaged: "), "{code:?} {text}");
    assert!(files(&spool) == before, "nothing is changed");
}
