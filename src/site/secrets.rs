//! `secrets.toml`: the site's secrets under dotted names. Nested tables and dotted keys mean the
//! same: `[galera] sst = "…"` is `galera.sst`. A value is never shown: not by Debug, not by an
//! error. That others cannot read the file is the reader's to check (`cli::secrets`).

use crate::recipe::name;
use crate::recipe::problem::Problems;
use crate::recipe::reader;
use std::collections::BTreeMap;
use std::fmt;

/// Longer values are a mistake, bytes.
pub const SECRET_MAX_BYTES: usize = 64 * 1024;

/// Every secret of a site.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secrets(BTreeMap<String, String>);

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Reads secrets; `file` is how problems name it.
pub fn parse(text: &str, file: &str) -> Result<Secrets, Problems> {
    reader::read(text, file, |table| {
        let mut secrets = BTreeMap::new();
        for secret in table.flattened_strings() {
            // Dotted and nested spelling meet here, so quotes of a dotted key are dropped.
            let dotted = secret.key.replace('"', "");
            if let Err(message) = name::secret(&dotted) {
                table.problem_at(&secret, message);
            }
            if secret.value.is_empty() || secret.value.len() > SECRET_MAX_BYTES || secret.value.contains('\0') {
                table.problem_at(&secret, format!("must hold 1 to {SECRET_MAX_BYTES} bytes, none of them zero"));
            }
            if secrets.insert(dotted, secret.value.clone()).is_some() {
                table.problem_at(&secret, "is given twice");
            }
        }
        Some(Secrets(secrets))
    })
}

impl Secrets {
    /// One secret's value.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// All secrets, for `ledger::answer::secrets`; the map does show its values when printed.
    pub fn all(&self) -> &BTreeMap<String, String> {
        &self.0
    }

    /// Names of all secrets, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Exactly the secrets of these names; an error lists those that are missing.
    pub fn only<'a>(&self, names: impl IntoIterator<Item = &'a String>) -> Result<BTreeMap<String, String>, String> {
        let mut found = BTreeMap::new();
        let mut missing = Vec::new();
        for name in names {
            match self.0.get(name) {
                Some(value) => {
                    found.insert(name.clone(), value.clone());
                }
                None => missing.push(name.as_str()),
            }
        }
        if missing.is_empty() { Ok(found) } else { Err(format!("secrets.toml has no {}", missing.join(", "))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nested_and_dotted_names_mean_the_same() {
        let text = "plain = \"p\"\n[galera]\nsst = \"a\"\n\"x.y\" = \"b\"\n[deep.er]\nz = \"c\"\n";
        let secrets = parse(text, "secrets.toml").unwrap();
        assert_eq!(secrets.names().collect::<Vec<_>>(), ["deep.er.z", "galera.sst", "galera.x.y", "plain"]);
        assert_eq!(secrets.get("galera.sst"), Some("a"));
        let only = secrets.only(&["plain".to_string()]).unwrap();
        assert_eq!(only, BTreeMap::from([("plain".to_string(), "p".to_string())]));
        let missing = secrets.only(&["no.such".to_string(), "plain".to_string(), "nor.this".to_string()]).unwrap_err();
        assert_eq!(missing, "secrets.toml has no no.such, nor.this");
    }

    #[test]
    fn mistakes_are_told_without_the_value() {
        const CANARY: &str = "hunter2canary";
        for (label, text, want) in [
            ("twice", "\"a.b\" = \"hunter2canary\"\n[a]\nb = \"hunter2canary\"\n", "is given twice"),
            ("number", "[a]\nb = 5\n", "s:2: a.b: expected a string, found an integer"),
            ("list", "a = [\"hunter2canary\"]\n", "s:1: a: expected a string, found an array"),
            ("empty", "a = \"\"\n", "must hold 1 to"),
            ("zero", "a = \"hunter2canary\\u0000\"\n", "none of them zero"),
            ("name", "A = \"hunter2canary\"\n", "is not a secret's name"),
            ("path", "\"../a\" = \"hunter2canary\"\n", "is not a secret's name"),
            ("quote forgotten", "a = \"hunter2canary\n", "not valid TOML"),
            ("quotes forgotten", "a = hunter2canary\n", "not valid TOML"),
            ("equals forgotten", "a \"hunter2canary\"\n", "not valid TOML"),
            ("bad escape", "a = \"\\hunter2canary\"\n", "not valid TOML"),
            ("after the value", "a = \"x\" hunter2canary\n", "not valid TOML"),
        ] {
            let problems = parse(text, "s").expect_err(label).to_string();
            assert!(problems.contains(want), "{label}: {problems}");
            assert!(!problems.contains(CANARY), "{label}: {problems}");
        }
        let secrets = parse("a = \"hunter2canary\"", "s").unwrap();
        assert_eq!(format!("{secrets:?}"), "{\"a\"}");
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in any::<String>(), near in "([a-z\"\\.]{1,6}[ =\\[\\]{}]{1,3}[\"'0-9a-z]{0,9}\n){0,5}") {
            let _ = parse(&text, "s");
            let _ = parse(&near, "s");
        }
    }
}
