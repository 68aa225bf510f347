//! The host's apt, made to work in private folders: it fetches indexes and packages (with the
//! host's proxies and transports) and solves dependencies. What it says is looked up in indexes
//! that [`super::verify`] passed.

use super::packages::{self, Package};
use super::sources::{self, HostEntry, Source};
use super::verify;
use crate::recipe::Recipe;
use crate::recipe::lock::{self, Lock, LockedPackage, LockedRepository};
use crate::sys::{command, files};
use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The only architecture that is baked.
pub const ARCHITECTURE: &str = "amd64";
/// Slow mirrors are waited for; a hanging one not for ever.
const NETWORK_TIMEOUT: Duration = Duration::from_secs(3600);
const SOLVE_TIMEOUT: Duration = Duration::from_secs(300);
const SOURCES_MAX_BYTES: u64 = 1 << 20;

/// Read after the host's own configuration: takes its hooks, languages and extra indexes away and
/// leaves proxies and transports alone.
const CONFIG: &str = r#"
#clear APT::Update;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
#clear DPkg::Pre-Install-Pkgs;
#clear DPkg::Options;
#clear Acquire::IndexTargets;
#clear APT::Architectures;
#clear APT::Default-Release;
#clear Dir::Ignore-Files-Silently;
APT::Architecture "amd64";
APT::Architectures { "amd64"; };
APT::Install-Recommends "false";
APT::Install-Suggests "false";
APT::Get::Assume-Yes "true";
APT::Get::Show-Versions "false";
APT::Sandbox::User "root";
APT::Color "0";
Acquire::GzipIndexes "false";
Acquire::Languages { "none"; };
Acquire::Retries "3";
Acquire::IndexTargets::deb::Packages {
  MetaKey "$(COMPONENT)/binary-$(ARCHITECTURE)/Packages";
  flatMetaKey "Packages";
  ShortDescription "Packages";
  Description "$(RELEASE)/$(COMPONENT) $(ARCHITECTURE) Packages";
  flatDescription "$(RELEASE) Packages";
  Optional "0";
};
"#;

/// apt with folders of its own.
pub struct Apt {
    dir: PathBuf,
    _lock: files::Lock,
}

/// Name, version, architecture.
pub type Key = (String, String, String);

/// An index that apt has fetched.
struct Target {
    uri: String,
    suite: String,
    /// Below the suite, e.g. `main/binary-amd64/Packages`.
    metakey: String,
    file: String,
}

impl Apt {
    /// An apt below `dir` that knows only `sources` (the text of a `.sources` file). Waits for
    /// another process that uses the same folder.
    pub fn open(dir: &Path, sources: &str) -> Result<Apt> {
        for sub in ["state/lists/partial", "cache/archives/partial", "etc/sources.list.d", "log"] {
            let path = dir.join(sub);
            fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        }
        let lock = files::lock(&dir.join("kiln.lock"))?;
        let write = |name: &str, text: &str| {
            fs::write(dir.join(name), text).with_context(|| format!("writing {}", dir.join(name).display()))
        };
        write("etc/sources.list.d/kiln.sources", sources)?;
        write("etc/kiln.conf", CONFIG)?;
        write("state/status", "")?;
        Ok(Apt { dir: dir.to_path_buf(), _lock: lock })
    }

    /// `program` of apt, set up for these folders. `extra` are further `-o` options.
    pub fn command(&self, program: &str, extra: &[(&str, &str)]) -> Command {
        let mut line = Command::new(program);
        self.arguments(&mut line, extra);
        line
    }

    /// Appends the options that bind apt to these folders.
    pub fn arguments(&self, line: &mut Command, extra: &[(&str, &str)]) {
        let at = |sub: &str| self.dir.join(sub).display().to_string();
        line.arg("-c").arg(self.dir.join("etc/kiln.conf"));
        let own = [
            ("Dir::State", at("state")),
            ("Dir::State::lists", at("state/lists")),
            ("Dir::State::status", at("state/status")),
            ("Dir::Cache", at("cache")),
            ("Dir::Log", at("log")),
            ("Dir::Etc::sourcelist", "/dev/null".into()),
            ("Dir::Etc::sourceparts", at("etc/sources.list.d")),
            ("Dir::Etc::preferences", "/dev/null".into()),
            ("Dir::Etc::preferencesparts", "/dev/null".into()),
        ];
        for (key, value) in own.iter().map(|(k, v)| (*k, v.as_str())).chain(extra.iter().copied()) {
            line.arg("-o").arg(format!("{key}={value}"));
        }
        line.env("LC_ALL", "C.UTF-8").env("DEBIAN_FRONTEND", "noninteractive");
    }

    /// Fetches the indexes. Any of them failing is an error.
    pub fn update(&self) -> Result<()> {
        let mut line = self.command("apt-get", &[("APT::Update::Error-Mode", "any")]);
        command::run_ok(line.arg("update"), b"", NETWORK_TIMEOUT).context("fetching package indexes")?;
        Ok(())
    }

    fn targets(&self) -> Result<Vec<Target>> {
        const FORMAT: &str = "$(REPO_URI)\t$(RELEASE)\t$(METAKEY)\t$(FILENAME)";
        let mut line = self.command("apt-get", &[]);
        line.args(["indextargets", "--format", FORMAT, "Created-By: Packages"]);
        let text = command::run_ok(&mut line, b"", SOLVE_TIMEOUT).context("listing package indexes")?.text();
        let one = |line: &str| {
            let words: Vec<&str> = line.split('\t').collect();
            let [uri, suite, metakey, file] = words[..] else { bail!("apt lists an index as {line:?}") };
            let own = |s: &str| s.to_string();
            let uri = uri.trim_end_matches('/');
            Ok(Target { uri: own(uri), suite: own(suite), metakey: own(metakey), file: own(file) })
        };
        text.lines().map(one).collect()
    }

    /// What installing `names` into an empty system would unpack: name, version, architecture.
    pub fn solve(&self, names: &[String]) -> Result<Vec<Key>> {
        let mut line = self.command("apt-get", &[]);
        line.args(["--simulate", "install"]).args(names);
        let output = command::run(&mut line, b"", SOLVE_TIMEOUT)?;
        if !output.status.success() {
            let (out, err) = (output.text(), String::from_utf8_lossy(&output.stderr).into_owned());
            let said = out.lines().skip_while(|l| !l.contains("unmet dependencies")).chain(err.lines());
            bail!("apt finds no way to install them together:\n{}", said.collect::<Vec<_>>().join("\n"));
        }
        Ok(packages::simulated(&output.text()))
    }

    /// Downloads `(uri, file, sha256)` through apt's methods. A file that cannot be had is simply
    /// absent afterwards; the caller looks.
    pub fn download<'a>(&self, files: impl Iterator<Item = (&'a str, &'a Path, &'a str)>) -> Result<()> {
        let mut line = self.command("/usr/lib/apt/apt-helper", &[]);
        line.arg("download-file");
        let mut any = false;
        for (uri, file, sha256) in files {
            any = true;
            line.arg(uri).arg(file).arg(format!("SHA256:{sha256}"));
        }
        if any {
            command::run(&mut line, b"", NETWORK_TIMEOUT).context("downloading packages")?;
        }
        Ok(())
    }
}

/// The sources that a recipe's repositories mean on this host.
pub fn sources_of(recipe: &Recipe, mirrors: &BTreeMap<String, String>) -> Result<Vec<Source>> {
    let host = host_entries()?;
    let mut all = Vec::new();
    for repository in &recipe.repositories {
        let mirror = mirrors.get(&repository.id).map(String::as_str);
        all.extend(sources::choose(repository, &host, mirror).map_err(anyhow::Error::msg)?);
    }
    Ok(all)
}

/// An apt for these sources, its folders in the cache.
pub fn open(cache: &Path, sources: &[Source]) -> Result<Apt> {
    let text = sources::render(sources);
    Apt::open(&cache.join("apt").join(&crate::recipe::lock::hex_digest(text.as_bytes())[..16]), &text)
}

/// Every enabled entry of the host's own apt sources.
fn host_entries() -> Result<Vec<HostEntry>> {
    let parts = apt_path("Dir::Etc::sourceparts/d")?;
    let mut entries = Vec::new();
    let main = apt_path("Dir::Etc::sourcelist/f")?;
    if main.is_file() {
        entries.extend(sources::parse_list(&read(&main)?));
    }
    let mut names: Vec<PathBuf> = match fs::read_dir(&parts) {
        Ok(dir) => dir.flatten().map(|e| e.path()).collect(),
        Err(_) => Vec::new(),
    };
    names.sort();
    for file in names {
        match file.extension().and_then(|e| e.to_str()) {
            Some("sources") => entries.extend(sources::parse_deb822(&read(&file)?)),
            Some("list") => entries.extend(sources::parse_list(&read(&file)?)),
            _ => {}
        }
    }
    Ok(entries)
}

fn read(file: &Path) -> Result<String> {
    Ok(String::from_utf8_lossy(&files::read_bounded(file, SOURCES_MAX_BYTES)?).into_owned())
}

/// A path of the host's apt configuration.
fn apt_path(key: &str) -> Result<PathBuf> {
    let output = command::run_ok(Command::new("apt-config").args(["shell", "P", key]), b"", SOLVE_TIMEOUT)
        .context("asking apt-config (kiln resolves apt packages with the host's apt)")?;
    let text = output.text();
    Ok(PathBuf::from(text.trim().trim_start_matches("P=").trim_matches('\'')))
}

/// The keyrings that vouch for a source: its own, or all that the host's apt trusts.
fn keyrings(source: &Source) -> Result<Option<Vec<PathBuf>>> {
    if source.pinned {
        return Ok(None);
    }
    if let Some(keyring) = &source.keyring {
        if !keyring.starts_with('/') {
            bail!("repository {}: Signed-By must be the path of a keyring file, not {keyring:?}", source.repository);
        }
        return Ok(Some(vec![keyring.into()]));
    }
    let mut found = vec![apt_path("Dir::Etc::trusted/f")?];
    let parts = apt_path("Dir::Etc::trustedparts/d")?;
    found.extend(fs::read_dir(&parts).into_iter().flatten().flatten().map(|e| e.path()));
    found.retain(|f| f.is_file() && f.metadata().is_ok_and(|m| m.len() > 0));
    found.sort();
    Ok(Some(found))
}

/// Verified indexes of all sources.
struct Indexes {
    epoch: u64,
    /// Repository id -> digests of its signed metadata, in the sources' order.
    metadata: BTreeMap<String, Vec<String>>,
    /// (repository id, text of a `Packages` file)
    texts: Vec<(String, String)>,
}

fn indexes(apt: &Apt, sources: &[Source]) -> Result<Indexes> {
    let scratch = tempfile::tempdir_in(&apt.dir)?;
    let mut found = Indexes { epoch: 0, metadata: BTreeMap::new(), texts: Vec::new() };
    let targets = apt.targets()?;
    for source in sources {
        let of: Vec<&Target> = targets.iter().filter(|t| t.uri == source.uri && t.suite == source.suite).collect();
        let first = of.first().with_context(|| format!("finding the index of {} {}", source.uri, source.suite))?;
        let stem = first.file.strip_suffix(&first.metakey.replace('/', "_"));
        let stem = stem.with_context(|| format!("finding the release file of {}", first.file))?;
        let keyrings = keyrings(source)?;
        let verified = verify::release(stem, keyrings.as_deref(), scratch.path())?;
        found.epoch = found.epoch.max(verified.release.date);
        for target in of {
            let text = verify::index(Path::new(&target.file), &target.metakey, &verified.release)?;
            found.texts.push((source.repository.clone(), text));
        }
        found.metadata.entry(source.repository.clone()).or_default().push(verified.digest);
    }
    Ok(found)
}

/// Resolves a recipe: fetches and verifies the indexes, solves once over everything that is asked
/// for, then slices the answer by stage.
pub fn resolve(recipe: &Recipe, sources: &[Source], cache: &Path, say: &dyn Fn(&str)) -> Result<Lock> {
    let apt = open(cache, sources)?;
    say("fetching package indexes");
    apt.update()?;
    say("verifying signatures");
    let indexes = indexes(&apt, sources)?;
    let mut all: BTreeMap<Key, (&str, Package)> = BTreeMap::new();
    for (repository, text) in &indexes.texts {
        for package in packages::parse(text).map_err(anyhow::Error::msg)? {
            let key = (package.name.to_string(), package.version.to_string(), package.arch.to_string());
            all.entry(key).or_insert((repository, package));
        }
    }
    say("solving dependencies");
    let essential: BTreeSet<&str> = all.values().filter(|(_, p)| p.essential).map(|(_, p)| p.name).collect();
    let essential: Vec<String> = essential.into_iter().map(String::from).collect();
    let mut names = essential.clone();
    names.extend(recipe.stages.iter().flat_map(|s| s.packages.iter().cloned()));
    let solved = apt.solve(&names)?;
    let mut chosen = Vec::new();
    for key in &solved {
        chosen.push(all.get(key).with_context(|| format!("finding {} {} in the verified indexes", key.0, key.1))?);
    }
    let slices = slices(recipe, &essential, &chosen.iter().map(|(_, p)| p.raw).collect::<Vec<_>>(), &apt.dir)?;
    let mut locked = Vec::new();
    for (repository, p) in chosen {
        let at = slices.iter().position(|s| s.contains(p.name));
        let at = at.with_context(|| format!("finding the stage of {}", p.name))?;
        locked.push(locked_package(p, repository, &recipe.stages[at].name));
    }
    let metadata = |id: &String| indexes.metadata.get(id).cloned().unwrap_or_default();
    let mut lock = Lock {
        version: lock::LOCK_VERSION,
        release: recipe.release.clone(),
        role: recipe.role.clone(),
        epoch: indexes.epoch,
        request: lock::request(recipe),
        repositories: recipe
            .repositories
            .iter()
            .map(|r| LockedRepository { id: r.id.clone(), metadata: metadata(&r.id) })
            .collect(),
        packages: locked,
    };
    lock.sort(recipe);
    Ok(lock)
}

fn locked_package(p: &Package, repository: &str, stage: &str) -> LockedPackage {
    LockedPackage {
        name: p.name.into(),
        version: p.version.into(),
        arch: p.arch.into(),
        sha256: p.sha256.into(),
        size: p.size,
        path: p.path.into(),
        repository: repository.into(),
        stage: stage.into(),
    }
}

/// For each stage the names that it brings: what its packages and those of the stages before it
/// need, solved among the chosen packages alone, less what the stages before it brought.
fn slices(recipe: &Recipe, essential: &[String], chosen: &[&str], dir: &Path) -> Result<Vec<BTreeSet<String>>> {
    let scratch = tempfile::tempdir_in(dir)?;
    let apt = flat(scratch.path(), &chosen.join("\n"))?;
    let mut names = essential.to_vec();
    let mut taken: BTreeSet<String> = BTreeSet::new();
    let mut slices = Vec::new();
    for (i, stage) in recipe.stages.iter().enumerate() {
        names.extend(stage.packages.iter().cloned());
        let all: BTreeSet<String> = if i + 1 == recipe.stages.len() {
            chosen
                .iter()
                .filter_map(|raw| raw.lines().find_map(|l| l.strip_prefix("Package: ")))
                .map(String::from)
                .collect()
        } else {
            let solved = apt.solve(&names).with_context(|| format!("solving stage {}", stage.name))?;
            solved.into_iter().map(|(name, _, _)| name).collect()
        };
        slices.push(all.difference(&taken).cloned().collect());
        taken.extend(all);
    }
    Ok(slices)
}

/// An apt that knows exactly the packages of one `Packages` text, which it may believe.
pub fn flat(dir: &Path, index: &str) -> Result<Apt> {
    let repository = dir.join("flat");
    fs::create_dir_all(&repository).with_context(|| format!("creating {}", repository.display()))?;
    fs::write(repository.join("Packages"), index).context("writing a package index")?;
    let sources = format!("Types: deb\nURIs: file:{}\nSuites: ./\nTrusted: yes\n", repository.display());
    let apt = Apt::open(&dir.join("apt"), &sources)?;
    let mut line = apt.command("apt-get", &[("Acquire::AllowInsecureRepositories", "true")]);
    command::run_ok(line.arg("update"), b"", SOLVE_TIMEOUT).context("reading a package index")?;
    Ok(apt)
}
