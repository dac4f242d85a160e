//! Examples as programs that tests run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

/// An example's executable. Built here, because Cargo names only binaries to tests, never examples, and
/// `cargo test --test interop` does not build examples.
pub(crate) fn executable(example: &'static str) -> PathBuf {
    static BUILT: Mutex<BTreeMap<&str, PathBuf>> = Mutex::new(BTreeMap::new());
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    let path = built.entry(example).or_insert_with(|| {
        // .../<target>/<profile>/deps/<test>-<hash>: the same folder and profile, to build nothing twice. `cargo test` has built it
        // so already, unless one test alone was asked for.
        let own = std::env::current_exe().unwrap();
        let profile_dir = own.parent().and_then(Path::parent).unwrap();
        let profile = match profile_dir.file_name().unwrap().to_str().unwrap() {
            "debug" => "test",
            other => other,
        };
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        // What Cargo tells a test of its package: build scripts that look at it would run again, and all that depends on them.
        let is_told = |name: &String| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
        std::env::vars().map(|(name, _)| name).filter(is_told).for_each(|name| _ = build.env_remove(name));
        let output = build
            .args(["build", "--all-features", "--example", example, "--message-format", "json", "--profile"])
            .arg(profile)
            .arg("--target-dir")
            .arg(profile_dir.parent().unwrap())
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(output.status.success(), "building {example} failed");
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|message| message["target"]["name"] == example)
            .find_map(|message| message["executable"].as_str().map(PathBuf::from))
            .expect("cargo names the executable")
    });
    path.clone()
}

/// Starts the mailer, all of its streams at hand, with variables in its environment.
pub(crate) fn mailer(config: &Path, args: &[&str], variables: &[(&str, &str)]) -> Child {
    let mut mailer = Command::new(executable("mailer"));
    mailer.arg("--config").arg(config).args(args).envs(variables.iter().copied());
    mailer.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}
