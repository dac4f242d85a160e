//! `[[classification-rule]]` and `[[provider]]`: in a policy file, and in the file of the rules that are built in.

use std::sync::Arc;

use super::item::{Item, with_document};
use super::read;
use super::sections::{check_stage, each, name};
use crate::event::Reason;
use crate::policy::error::{PolicyError, PolicyErrorKind};
use crate::reply::{ClassificationRule, ClassificationRules, Phrase};

type Result<T> = std::result::Result<T, PolicyError>;

/// Reads a file that has nothing else.
pub(crate) fn read_classification(text: &str) -> Result<ClassificationRules> {
    with_document(text, |root| {
        let root = root.section(&[&["classification-rule", "provider"]])?;
        let mut rules = ClassificationRules::default();
        each(&root, "provider", "name", |item| provider(item, &mut rules))?;
        each(&root, "classification-rule", "name", |item| classification_rule(item, &mut rules))?;
        Ok(rules)
    })
}

pub(super) fn provider(item: &Item<'_>, rules: &mut ClassificationRules) -> Result<()> {
    let section = item.section(&[&["name", "mx"]])?;
    let name = name(&section, "\"example\"")?;
    let mx = section.require("mx", "[\"*.mail.example.com\"]")?;
    let hosts = read::strings(&mx, str::parse, "*.mail.example.com")?;
    if rules.providers.iter().any(|(other, _)| *other == name) {
        return Err(taken(item, "provider"));
    }
    rules.providers.push((name, hosts));
    Ok(())
}

pub(super) fn classification_rule(item: &Item<'_>, rules: &mut ClassificationRules) -> Result<()> {
    const CONDITIONS: &[&str] = &["match", "code", "status", "provider", "stage", "weak"];
    let section = item.section(&[&["name", "reason", "source"], CONDITIONS])?;
    let name = name(&section, "\"mailbox-full-here\"")?;
    let reason: Reason =
        read::parsed(&section.require("reason", "\"mailbox-full\"")?, str::parse, "mailbox-full")?;
    let phrases = section.get("match").map(|item| read::strings(&item, Phrase::parse, "mailbox full"));
    let phrases = phrases.transpose()?;
    let list = |key| section.get(key).map(|item| read::strings(&item, str::parse, "5xx")).transpose();
    let codes = list("code")?.unwrap_or_default();
    let statuses = section.get("status").map(|item| read::strings(&item, str::parse, "x.2.2")).transpose()?;
    let provider = |text: &str| std::result::Result::<_, &str>::Ok(Arc::from(text));
    let providers =
        section.get("provider").map(|item| read::strings(&item, provider, "google")).transpose()?;
    let stages = section.get("stage").map(|item| read::strings(&item, check_stage, "rcpt")).transpose()?;
    let rule = ClassificationRule {
        name,
        reason,
        // `match = []` is a rule that never holds.
        off: phrases.as_ref().is_some_and(Vec::is_empty),
        phrases: phrases.unwrap_or_default(),
        codes,
        statuses: statuses.unwrap_or_default(),
        providers: providers.unwrap_or_default(),
        stages: stages.unwrap_or_default(),
        weak: section.get("weak").as_ref().map(read::boolean).transpose()?.unwrap_or_default(),
    };
    let conditions = [rule.phrases.len(), rule.codes.len(), rule.statuses.len(), rule.stages.len()];
    if !rule.off && conditions.iter().all(|number| *number == 0) {
        return Err(item.wrong(
            "has no condition: give it match, status, code or stage, or match = [] to switch it off",
        ));
    }
    if rules.rules.iter().any(|other| other.name == rule.name) {
        return Err(taken(item, "classification rule"));
    }
    rules.rules.push(rule);
    Ok(())
}

fn taken(item: &Item<'_>, what: &str) -> PolicyError {
    item.error(
        PolicyErrorKind::Contradiction,
        format_args!("is the second {what} of its name: give each a name of its own"),
    )
}
