//! Options that OpenStack's services register, and which files are theirs:
//! `recipes/<release>/options/`.
//!
//! `files.toml`
//! ```toml
//! [nova]                                     # its options stand in nova.txt
//! files = ["/etc/nova/nova*.conf"]           # * stands for any text; the first service that fits
//! others = ["/etc/nova/kiln-uwsgi.ini"]      # beside them, and not oslo.config's
//! allow = ["fast.filesystem_store_datadir"]  # although it is not registered, or deprecated: say why
//! ```
//! `nova.txt`
//! ```text
//! [vnc]
//! novncproxy_host                            # an option
//! keymap deprecated                          # it will be removed
//! vncserver_listen -> vnc.server_listen      # an old name of another
//! ```

use super::ini::{self, Line};
use super::{Found, Output, fits};
use crate::recipe::problem::Problem;
use crate::recipe::reader;
use std::collections::BTreeMap;

/// How the names of files with options end.
const ENDINGS: [&str; 2] = [".conf", ".ini"];

/// How an option stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    Current,
    Deprecated,
    /// The option that it is now.
    Renamed(String),
}

/// Section -> option -> how it stands.
pub type Sections = BTreeMap<String, BTreeMap<String, Status>>;

/// One service: its files and its options.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    pub name: String,
    /// Patterns of absolute paths.
    pub files: Vec<String>,
    /// The same for what lies beside and is read by something else.
    pub others: Vec<String>,
    pub sections: Sections,
}

/// What `files.toml` says, in its order; the lists are still to be read.
pub fn files(text: &str, file: &str) -> (Vec<Service>, Vec<Problem>) {
    let (services, problems) = reader::read_all(text, file, |table| {
        let mut services = Vec::new();
        for (name, entry) in table.named_tables() {
            let paths = |key| -> Vec<String> {
                let list = entry.list(key, |text| match text.starts_with('/') {
                    true => Ok(text.to_string()),
                    false => Err(format!("{text:?} is not an absolute path")),
                });
                list.into_iter().map(|path| path.value).collect()
            };
            let (files, others) = (paths("files"), paths("others"));
            let allow = entry.list("allow", |text| match text.rsplit_once('.') {
                Some((section, option)) => Ok((section.to_string(), option.to_string())),
                None => Err(format!("{text:?} is not section.option")),
            });
            let mut service = Service { name: name.value, files, others, ..Service::default() };
            for (section, option) in allow.into_iter().map(|a| a.value) {
                service.sections.entry(section).or_default().insert(option, Status::Current);
            }
            services.push(service);
        }
        Some(services)
    });
    (services.unwrap_or_default(), problems)
}

impl Service {
    /// Adds the list of its options. What `files.toml` allows stays allowed.
    pub fn read(&mut self, text: &str, file: &str) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut section = None;
        for (index, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
                section = Some(name);
                self.sections.entry(name.to_string()).or_default();
                continue;
            }
            let words: Vec<&str> = line.split_whitespace().collect();
            let (name, status) = match (words.as_slice(), section) {
                ([], _) => continue,
                ([name], Some(_)) => (name, Status::Current),
                ([name, "deprecated"], Some(_)) => (name, Status::Deprecated),
                ([name, "->", now], Some(_)) => (name, Status::Renamed(now.to_string())),
                _ => {
                    let message =
                        format!("{line:?} is none of [SECTION], OPTION, OPTION deprecated, OLD -> SECTION.NEW");
                    problems.push(Problem { file: file.into(), line: index + 1, key: String::new(), message });
                    continue;
                }
            };
            let options = self.sections.entry(section.unwrap_or_default().to_string()).or_default();
            options.entry(name.to_string()).or_insert(status);
        }
        problems
    }

    fn has(&self, path: &str) -> bool {
        self.files.iter().any(|pattern| fits(pattern, path))
    }

    /// Whether a file lies beside the service's, looks like one, and nobody said that it is none.
    fn may_have(&self, path: &str) -> bool {
        let beside = |pattern: &String| {
            let folder = pattern.split('*').next().and_then(|plain| plain.rsplit_once('/')).map(|(folder, _)| folder);
            folder.and_then(|folder| path.strip_prefix(folder)).is_some_and(|rest| rest.starts_with('/'))
        };
        let looks = ENDINGS.iter().any(|ending| path.ends_with(ending));
        looks && self.files.iter().any(beside) && !self.others.iter().any(|pattern| fits(pattern, path))
    }

    /// oslo.config compares sections without case, `DEFAULT` excepted.
    fn section(&self, name: &str) -> Option<&BTreeMap<String, Status>> {
        let lower = name.to_lowercase();
        self.sections.get(name).or_else(|| self.sections.get(&lower).filter(|_| lower != "default"))
    }

    /// The sections that have an option of that name.
    fn sections_with(&self, option: &str) -> Vec<&str> {
        let has = |options: &BTreeMap<String, Status>| options.get(option) == Some(&Status::Current);
        self.sections.iter().filter(|(_, o)| has(o)).map(|(s, _)| s.as_str()).collect()
    }
}

/// Where else an option of that name is: in other sections, or in files of the same service's others.
fn elsewhere(service: &Service, services: &[Service], option: &str) -> String {
    let family = |s: &Service| s.name.split('-').next().unwrap_or_default().to_string();
    match service.sections_with(option).as_slice() {
        [] => {
            let others =
                services.iter().filter(|s| family(s) == family(service) && !s.sections_with(option).is_empty());
            let names: Vec<&str> = others.map(|s| s.name.as_str()).collect();
            if names.is_empty() { String::new() } else { format!("; {} has", names.join(", ")) }
        }
        // More say nothing.
        some => format!("; there is one in [{}]", some[..some.len().min(5)].join("], [")),
    }
}

/// Every line of a service's file that the service would not read as it is meant.
pub(super) fn check(services: &[Service], output: &Output, found: &mut Found) {
    let Some(service) = services.iter().find(|s| s.has(&output.path)) else {
        if let Some(near) = services.iter().find(|s| s.may_have(&output.path)) {
            let message = format!(
                "its options: files.toml does not say whose they are (files of {}), or that it has none (others)",
                near.name
            );
            found.unchecked.push(output.problem_at(0, "", message));
        }
        return;
    };
    let name = &service.name;
    let mut section: Option<&str> = None;
    let mut known = None;
    for (index, line) in ini::lines(&output.text) {
        let mut say = |key: String, message: String| found.problem(output.problem(index, &key, message));
        match line {
            Line::Section(named) => {
                section = Some(named);
                known = service.section(named);
                if known.is_none() {
                    say(format!("[{named}]"), format!("{name} has no such section"));
                }
            }
            Line::Option { key, .. } => {
                let Some(named) = section else {
                    say(key.into(), "stands before any [section]".into());
                    continue;
                };
                let Some(options) = known else { continue };
                let full = format!("{named}.{key}");
                match options.get(key) {
                    Some(Status::Current) => {}
                    Some(Status::Deprecated) => say(full, format!("is deprecated: {name} will drop it")),
                    Some(Status::Renamed(now)) => say(full, format!("is an old name: {name} calls it {now}")),
                    None => say(full, format!("{name} has no such option{}", elsewhere(service, services, key))),
                }
            }
            Line::More(_) => {}
            Line::Wrong => {
                let message =
                    "is no [section], no option and does not go on with one (a line that begins with a space)";
                say(section.map(|s| format!("[{s}]")).unwrap_or_default(), message.into());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_what_is_allowed_stays_allowed() {
        let text = "[nova]\nfiles = [\"/etc/nova/nova*.conf\"]\nallow = [\"a.b.old\"]\n[x]\nfiles = [\"etc\"]\nallow = [\"y\"]\n";
        let (mut services, problems) = files(text, "files.toml");
        let shown: Vec<String> = problems.iter().map(|p| p.to_string()).collect();
        assert_eq!(
            shown,
            [
                "files.toml:5: x.files[0]: \"etc\" is not an absolute path",
                "files.toml:6: x.allow[0]: \"y\" is not section.option"
            ]
        );
        let nova = &mut services[0];
        let problems = nova.read("# c\n[a.b]\none # why\nold -> a.b.one\ngone deprecated\n[c]\na b c d\n", "nova.txt");
        assert_eq!(problems.len(), 1);
        assert!(problems[0].to_string().starts_with("nova.txt:7: \"a b c d\" is none of"));
        assert_eq!(nova.sections["a.b"]["old"], Status::Current);
        assert_eq!(nova.sections["a.b"]["gone"], Status::Deprecated);
        assert!(nova.read("early\n", "nova.txt")[0].to_string().starts_with("nova.txt:1: "));
    }

    #[test]
    fn a_file_beside_a_services_files_is_known_by_its_looks() {
        let text = "[n]\nfiles = [\"/etc/n/n*.conf\", \"/etc/n/plugins/*.ini\"]\nothers = [\"/etc/n/*uwsgi.ini\"]\n";
        let (services, problems) = files(text, "files.toml");
        assert_eq!(problems, vec![]);
        for (path, want) in [
            ("/etc/n/extra.conf", true),
            ("/etc/n/conf.d/x.ini", true),
            ("/etc/n/kiln-uwsgi.ini", false),
            ("/etc/n/policy.json", false),
            ("/etc/nn/extra.conf", false),
        ] {
            assert_eq!(services[0].may_have(path), want, "{path}");
        }
    }

    #[test]
    fn a_pattern_stands_for_any_text() {
        for (pattern, path, want) in [
            ("/etc/a.conf", "/etc/a.conf", true),
            ("/etc/*.conf", "/etc/x/y.conf", true),
            ("/etc/*.conf", "/etc/.conf.d", false),
            ("/etc/*/b*", "/etc/é/b", true),
            ("/etc/*", "/etc", false),
            ("*a*b*", "xaxbx", true),
            ("*a*b*", "xbxa", false),
            ("a*a", "a", false),
        ] {
            assert_eq!(fits(pattern, path), want, "{pattern} {path}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_survived(text in "(?s).{0,200}", near in "[a-z\\[\\].#\n >-]{0,80}", path in "(?s)[/a*]{0,12}") {
            let mut service = Service::default();
            let _ = (service.read(&text, "x"), service.read(&near, "x"), files(&text, "x"), files(&near, "x"));
            let _ = (fits(&near, &path), fits(&path, &text), fits(&path, &path));
        }
    }
}
