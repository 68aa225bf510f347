//! What a look at a repository found: problems, warnings, and how much was looked at.

use std::collections::BTreeSet;

/// More are only counted.
pub const FINDINGS_MAX: usize = 10_000;

/// One thing that is wrong, or weaker than it seems.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The file, below the repository.
    pub object: String,
    /// One word for programs: `checksum`, `missing`, `sha1-key`, …
    pub kind: &'static str,
    pub text: String,
}

/// The result for one repository.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Path or URL.
    pub place: String,
    /// `yum` or `apt`.
    pub family: &'static str,
    /// sha256 (hex) of the file that everything hangs on: repomd.xml, InRelease or Release.
    pub metadata: String,
    /// A given key signed that file.
    pub signed: bool,
    pub packages: u64,
    /// Bytes of packages that were read.
    pub bytes: u64,
    /// Packages with a good signature of their own by a given key.
    pub packages_signed: u64,
    problems: BTreeSet<Finding>,
    warnings: BTreeSet<Finding>,
    /// Problems beyond [`FINDINGS_MAX`].
    pub more: u64,
}

impl Report {
    pub fn new(place: String, family: &'static str) -> Report {
        Report { place, family, ..Report::default() }
    }

    pub fn problem(&mut self, kind: &'static str, object: impl Into<String>, text: impl Into<String>) {
        if self.problems.len() < FINDINGS_MAX {
            self.problems.insert(Finding { object: object.into(), kind, text: text.into() });
        } else {
            self.more += 1;
        }
    }

    pub fn warn(&mut self, kind: &'static str, object: impl Into<String>, text: impl Into<String>) {
        if self.warnings.len() < FINDINGS_MAX {
            self.warnings.insert(Finding { object: object.into(), kind, text: text.into() });
        }
    }

    /// Sorted by file, so that two runs say the same.
    pub fn problems(&self) -> impl Iterator<Item = &Finding> {
        self.problems.iter()
    }

    pub fn warnings(&self) -> impl Iterator<Item = &Finding> {
        self.warnings.iter()
    }

    pub fn problem_count(&self) -> u64 {
        self.problems.len() as u64 + self.more
    }

    /// Takes over what another found in the same repository.
    pub fn absorb(&mut self, other: Report) {
        for found in other.problems {
            self.problem(found.kind, found.object, found.text);
        }
        for found in other.warnings {
            self.warn(found.kind, found.object, found.text);
        }
        self.more += other.more;
        self.packages += other.packages;
        self.bytes += other.bytes;
        self.packages_signed += other.packages_signed;
    }
}

/// A name or text of unknown length as it may stand in a message.
pub fn short(text: &str) -> String {
    const SHOWN_MAX: usize = 200;
    text.chars().take(SHOWN_MAX).map(|c| if c.is_control() { '?' } else { c }).collect()
}
