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
