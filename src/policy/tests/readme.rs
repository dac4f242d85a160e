//! What the README says of the policy file holds.

use super::*;

const README: &str = include_str!("../../../README.md");

/// Its blocks of TOML.
fn blocks() -> Vec<&'static str> {
    let after_fences = README.split("```toml\n").skip(1);
    after_fences.map(|rest| rest.split("```").next().unwrap()).collect()
}

#[test]
fn every_policy_in_the_readme_is_accepted() {
    let blocks = blocks();
    assert!(blocks.len() >= 7, "only {} blocks of TOML found", blocks.len());
    for block in blocks {
        Policy::from_toml(block).unwrap_or_else(|error| panic!("{error} in\n{block}"));
    }
}

/// The second column of the table for PowerMTA's users: `key` of a domain, `[section] key` or `[[section]]`.
#[test]
fn the_keys_in_the_readmes_table_exist() {
    let (_, table) = README.split_once("| PowerMTA | Here |").unwrap();
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let mut keys = 0;
    for cell in rows.map(|row| row.split('|').nth(2).unwrap()) {
        for key in cell.split('`').skip(1).step_by(2) {
            let (section, name) = key.rsplit_once(' ').unwrap_or(match key.starts_with('[') {
                true => (key, ""),
                false => ("[domain.'*']", key),
            });
            let name = if name.is_empty() { String::new() } else { format!("{name} = []") };
            let result = Policy::from_toml(&format!("{section}\n{name}\n"));
            let kind = result.as_ref().err().map(PolicyError::kind);
            assert!(
                !matches!(kind, Some(PolicyErrorKind::UnknownKey | PolicyErrorKind::Syntax)),
                "{key}: {result:?}"
            );
            keys += 1;
        }
    }
    assert!(keys >= 30, "only {keys} keys found");
}
