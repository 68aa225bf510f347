//! Reads TOML with places: every problem carries file, line and dotted key, every problem is
//! found in one go, and a key that nobody asked for is a problem. Shared by recipes, systems,
//! locks, sites, secrets and overlays. It knows no format; and since some files hold secrets, its
//! messages name types and keys, never values.

use super::problem::{Problem, Problems};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use toml::de::{DeTable, DeValue};

/// The longest file that is read, bytes: a lock of thousands of packages stays far below.
pub const FILE_MAX_BYTES: usize = 16 * 1024 * 1024;
/// After so many syntax errors the rest is noise.
const SYNTAX_ERRORS_MAX: usize = 20;

/// The problems of one file, gathered while it is read.
pub struct Report {
    file: String,
    /// Byte offset at which each line begins.
    starts: Vec<usize>,
    problems: RefCell<Vec<Problem>>,
}

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct At<T> {
    pub value: T,
    pub line: usize,
    pub key: String,
}

impl<T> At<T> {
    /// The same place, another value.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> At<U> {
        At { value: f(self.value), line: self.line, key: self.key }
    }
}

/// A table that is being read; when it is dropped, the keys that nobody asked for become problems.
pub struct Table<'a> {
    report: &'a Report,
    table: &'a DeTable<'a>,
    /// Dotted key of the table itself, empty at the top.
    path: String,
    line: usize,
    known: RefCell<BTreeSet<&'static str>>,
}

/// Reads `text` with `read` and returns its result if there was no problem at all.
pub fn read<T>(text: &str, file: &str, read: impl FnOnce(&Table<'_>) -> Option<T>) -> Result<T, Problems> {
    let (value, problems) = read_all(text, file, read);
    match value {
        Some(value) if problems.is_empty() => Ok(value),
        _ => Err(Problems(problems)),
    }
}

/// Like [`read`], for callers that go on in spite of problems: what could be read, and every problem
/// sorted by line.
pub fn read_all<T>(text: &str, file: &str, read: impl FnOnce(&Table<'_>) -> Option<T>) -> (Option<T>, Vec<Problem>) {
    let report = Report::new(text, file);
    if text.len() > FILE_MAX_BYTES {
        report.add(0, "", format!("longer than {FILE_MAX_BYTES} bytes"));
        return (None, report.problems.into_inner());
    }
    let (root, errors) = DeTable::parse_recoverable(text);
    for error in errors.iter().take(SYNTAX_ERRORS_MAX) {
        let line = error.span().map(|span| report.line_of(span.start)).unwrap_or(0);
        report.add(line, "", format!("not valid TOML: {}", error.message()));
    }
    let mut value = None;
    if errors.is_empty() {
        let table =
            Table { report: &report, table: root.get_ref(), path: String::new(), line: 0, known: RefCell::default() };
        value = read(&table);
    }
    let mut problems = report.problems.into_inner();
    problems.sort();
    problems.dedup();
    if value.is_none() && problems.is_empty() {
        problems.push(Problem { file: file.into(), line: 0, key: String::new(), message: "could not be read".into() });
    }
    (value, problems)
}

impl Report {
    fn new(text: &str, file: &str) -> Report {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Report { file: file.to_string(), starts, problems: RefCell::default() }
    }

    fn line_of(&self, offset: usize) -> usize {
        self.starts.partition_point(|start| *start <= offset)
    }

    fn add(&self, line: usize, key: &str, message: impl Into<String>) {
        let problem = Problem { file: self.file.clone(), line, key: key.to_string(), message: message.into() };
        self.problems.borrow_mut().push(problem);
    }
}

impl<'a> Table<'a> {
    /// Reports a problem with the table as a whole.
    pub fn problem(&self, message: impl Into<String>) {
        self.report.add(self.line, &self.path, message);
    }

    /// Reports a problem at `place`.
    pub fn problem_at<T>(&self, place: &At<T>, message: impl Into<String>) {
        self.report.add(place.line, &place.key, message);
    }

    /// Dotted key of the table.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Where the table begins; 0 for the file's top.
    pub fn line(&self) -> usize {
        self.line
    }

    /// Whether the key is given at all. Does not make it known.
    pub fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Refuses a key that is planned but not built.
    pub fn not_built(&self, key: &'static str) {
        if let Some((place, _)) = self.get(key) {
            self.problem_at(&place, "not built yet; remove it");
        }
    }

    pub fn string(&self, key: &'static str) -> Option<At<String>> {
        let (place, value) = self.get(key)?;
        self.as_string(place, value)
    }

    /// Like [`Table::string`], and its absence is a problem.
    pub fn required_string(&self, key: &'static str) -> Option<At<String>> {
        self.require(key);
        self.string(key)
    }

    /// Parses a string; the parser's message becomes the problem.
    pub fn parsed<T>(&self, key: &'static str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<At<T>> {
        let text = self.string(key)?;
        self.parse_at(text, parse)
    }

    /// Like [`Table::parsed`], and its absence is a problem.
    pub fn required<T>(&self, key: &'static str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<At<T>> {
        self.require(key);
        self.parsed(key, parse)
    }

    /// One of a closed set of words.
    pub fn word<T: Copy>(&self, key: &'static str, words: &[(&str, T)]) -> Option<At<T>> {
        self.parsed(key, |text| {
            let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
            found.ok_or_else(|| {
                let list: Vec<String> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
                format!("{text:?} is not one of {}", list.join(", "))
            })
        })
    }

    /// An array of strings; absent is empty.
    pub fn strings(&self, key: &'static str) -> Vec<At<String>> {
        self.as_strings(self.array(key))
    }

    /// An array of strings, each parsed; one that is given twice is a problem.
    pub fn list<T>(&self, key: &'static str, parse: impl Fn(&str) -> Result<T, String>) -> Vec<At<T>> {
        self.parse_each(self.strings(key), parse)
    }

    /// A whole number within `range`.
    pub fn number(&self, key: &'static str, range: std::ops::RangeInclusive<u64>) -> Option<At<u64>> {
        let (place, value) = self.get(key)?;
        self.as_number(place, value, &range)
    }

    /// An array of whole numbers; one that is given twice is a problem.
    pub fn numbers(&self, key: &'static str, range: std::ops::RangeInclusive<u64>) -> Vec<At<u64>> {
        let mut seen = BTreeSet::new();
        let items = self.array(key);
        let numbers: Vec<_> =
            items.into_iter().filter_map(|(place, value)| self.as_number(place, value, &range)).collect();
        for number in &numbers {
            if !seen.insert(number.value) {
                self.problem_at(number, format!("{} is given twice", number.value));
            }
        }
        numbers
    }

    pub fn boolean(&self, key: &'static str) -> Option<At<bool>> {
        let (place, value) = self.get(key)?;
        match value {
            DeValue::Boolean(yes) => Some(place.map(|_| *yes)),
            other => self.wrong(&place, "true or false", other),
        }
    }

    /// A table below this one.
    pub fn table(&self, key: &'static str) -> Option<Table<'a>> {
        let (place, value) = self.get(key)?;
        self.as_table(place, value)
    }

    /// An array of tables (`[[key]]`); absent is empty.
    pub fn tables(&self, key: &'static str) -> Vec<Table<'a>> {
        self.array(key).into_iter().filter_map(|(place, value)| self.as_table(place, value)).collect()
    }

    /// A value that is either a string or a table.
    pub fn string_or_table(&self, key: &'static str) -> Option<Result<At<String>, Table<'a>>> {
        let (place, value) = self.get(key)?;
        match value {
            DeValue::Table(_) => self.as_table(place, value).map(Err),
            DeValue::String(text) => Some(Ok(place.map(|_| text.to_string()))),
            other => self.wrong(&place, "a string or a table", other),
        }
    }

    /// A value that is either a string or a whole number, as text.
    pub fn string_or_number(&self, key: &'static str) -> Option<At<String>> {
        let (place, value) = self.get(key)?;
        match value {
            DeValue::String(text) => Some(place.map(|_| text.to_string())),
            DeValue::Integer(number) if number.radix() == 10 => Some(place.map(|_| number.as_str().to_string())),
            other => self.wrong(&place, "a string or a whole number", other),
        }
    }

    /// Every entry of a table whose keys the user chooses, as tables.
    pub fn named_tables(&self) -> Vec<(At<String>, Table<'a>)> {
        let names = self.names();
        names.into_iter().filter_map(|(name, value)| Some((name.clone(), self.as_table(name, value)?))).collect()
    }

    /// Every entry of a table whose keys the user chooses, as whole numbers.
    pub fn named_numbers(&self, range: std::ops::RangeInclusive<u64>) -> Vec<(At<String>, u64)> {
        let names = self.names();
        names
            .into_iter()
            .filter_map(|(name, value)| Some((name.clone(), self.as_number(name, value, &range)?.value)))
            .collect()
    }

    /// Every entry of a table whose keys the user chooses, as arrays of strings, each parsed.
    pub fn named_lists<T>(&self, parse: impl Fn(&str) -> Result<T, String>) -> Vec<(At<String>, Vec<At<T>>)> {
        let names = self.names();
        let list = |name, value| self.parse_each(self.as_strings(self.as_array(name, value)), &parse);
        names.into_iter().map(|(name, value)| (name.clone(), list(name, value))).collect()
    }

    /// Every string at any depth below, under its dotted name; anything else is a problem.
    pub fn flattened_strings(&self) -> Vec<At<String>> {
        let mut found = Vec::new();
        for (name, value) in self.names() {
            match value {
                DeValue::Table(_) => {
                    found.extend(self.as_table(name, value).iter().flat_map(|table| table.flattened_strings()));
                }
                value => found.extend(self.as_string(name, value)),
            }
        }
        found
    }

    fn report_unknown(&self) {
        let known = self.known.borrow();
        if known.contains(ANY) {
            return;
        }
        for key in self.table.keys() {
            if !known.contains(key.get_ref().as_ref()) {
                let list: Vec<&str> = known.iter().copied().collect();
                let place = self.place(key.get_ref(), key.span());
                self.problem_at(&place, format!("unknown key; known here: {}", list.join(", ")));
            }
        }
    }

    fn names(&self) -> Vec<(At<String>, &'a DeValue<'a>)> {
        self.known.borrow_mut().insert(ANY);
        let mut names: Vec<_> =
            self.table.iter().map(|(key, value)| (self.place(key.get_ref(), key.span()), value.get_ref())).collect();
        names.sort_by_key(|(name, _)| name.line);
        names
    }

    fn require(&self, key: &'static str) {
        if !self.table.contains_key(key) {
            self.known.borrow_mut().insert(key);
            self.report.add(self.line, &self.joined(key), "is missing");
        }
    }

    fn get(&self, key: &'static str) -> Option<(At<String>, &'a DeValue<'a>)> {
        self.known.borrow_mut().insert(key);
        let (name, value) = self.table.get_key_value(key)?;
        Some((self.place(key, name.span()), value.get_ref()))
    }

    fn array(&self, key: &'static str) -> Vec<(At<String>, &'a DeValue<'a>)> {
        self.get(key).map(|(place, value)| self.as_array(place, value)).unwrap_or_default()
    }

    fn as_array(&self, place: At<String>, value: &'a DeValue<'a>) -> Vec<(At<String>, &'a DeValue<'a>)> {
        match value {
            DeValue::Array(items) => items
                .iter()
                .enumerate()
                .map(|(i, item)| {
                    let key = format!("{}[{i}]", place.key);
                    let at = At { value: key.clone(), line: self.report.line_of(item.span().start), key };
                    (at, item.get_ref())
                })
                .collect(),
            other => {
                self.wrong::<()>(&place, "an array", other);
                Vec::new()
            }
        }
    }

    fn parse_at<T>(&self, text: At<String>, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<At<T>> {
        match parse(&text.value) {
            Ok(value) => Some(text.map(|_| value)),
            Err(message) => {
                self.problem_at(&text, message);
                None
            }
        }
    }

    /// Texts, each parsed; one that is given twice is a problem.
    fn parse_each<T>(&self, texts: Vec<At<String>>, parse: impl Fn(&str) -> Result<T, String>) -> Vec<At<T>> {
        let mut seen = BTreeSet::new();
        let mut parsed = Vec::new();
        for text in texts {
            if seen.insert(text.value.clone()) {
                parsed.extend(self.parse_at(text, &parse));
            } else {
                self.problem_at(&text, format!("{:?} is given twice", text.value));
            }
        }
        parsed
    }

    fn as_strings(&self, items: Vec<(At<String>, &'a DeValue<'a>)>) -> Vec<At<String>> {
        items.into_iter().filter_map(|(place, value)| self.as_string(place, value)).collect()
    }

    fn as_string(&self, place: At<String>, value: &DeValue<'_>) -> Option<At<String>> {
        match value {
            DeValue::String(text) => Some(place.map(|_| text.to_string())),
            other => self.wrong(&place, "a string", other),
        }
    }

    fn as_number(
        &self,
        place: At<String>,
        value: &DeValue<'_>,
        range: &std::ops::RangeInclusive<u64>,
    ) -> Option<At<u64>> {
        let DeValue::Integer(number) = value else { return self.wrong(&place, "a whole number", value) };
        match u64::from_str_radix(number.as_str(), number.radix()).ok().filter(|n| range.contains(n)) {
            Some(number) => Some(place.map(|_| number)),
            None => {
                self.problem_at(&place, format!("must be from {} to {}", range.start(), range.end()));
                None
            }
        }
    }

    fn as_table(&self, place: At<String>, value: &'a DeValue<'a>) -> Option<Table<'a>> {
        match value {
            DeValue::Table(table) => {
                Some(Table { report: self.report, table, path: place.key, line: place.line, known: RefCell::default() })
            }
            other => self.wrong(&place, "a table", other),
        }
    }

    fn wrong<T>(&self, place: &At<String>, expected: &str, found: &DeValue<'_>) -> Option<T> {
        self.problem_at(place, format!("expected {expected}, found {} {}", article(found), found.type_str()));
        None
    }

    fn place(&self, name: &str, span: Range<usize>) -> At<String> {
        At { value: name.to_string(), line: self.report.line_of(span.start), key: self.joined(name) }
    }

    fn joined(&self, key: &str) -> String {
        let bare = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        let shown = if bare { key.to_string() } else { format!("{key:?}") };
        if self.path.is_empty() { shown } else { format!("{}.{shown}", self.path) }
    }
}

/// Stands in `known` for "the user chooses the keys"; no key that a format asks for.
const ANY: &str = "*";

impl Drop for Table<'_> {
    fn drop(&mut self) {
        self.report_unknown();
    }
}

fn article(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::Integer(_) | DeValue::Array(_) => "an",
        _ => "a",
    }
}

/// Reports a value that `seen` holds already under another owner, else remembers it.
pub fn refuse_twice<T: Ord + Clone + std::fmt::Display>(
    table: &Table<'_>,
    seen: &mut BTreeMap<T, String>,
    place: &At<T>,
    owner: &str,
) {
    if let Some(first) = seen.get(&place.value) {
        table.problem_at(place, format!("{} already belongs to {first}", place.value));
    } else {
        seen.insert(place.value.clone(), owner.to_string());
    }
}
