//! `kiln init`: the files of a new site. What exists stays as it is; existing secrets are refused,
//! since a cluster may run on them.

use crate::cli::exit::{Exit, error};
use crate::sys::files::write_atomic;
use anyhow::{Context, Result};
use base64::Engine as _;
use std::path::{Path, PathBuf};

/// Makes site.toml, secrets.toml (0600, random values) and a README
#[derive(clap::Args)]
pub struct Args {
    /// Folder of the site
    #[arg(default_value = ".")]
    pub dir: PathBuf,
    /// Release that the site runs
    #[arg(long, value_parser = ["mitaka", "zed"])]
    pub release: String,
}

pub fn run(args: Args) -> Result<()> {
    let secrets = args.dir.join("secrets.toml");
    if secrets.symlink_metadata().is_ok() {
        let message = format!("{} exists; a cluster may run on it, so it is not replaced", secrets.display());
        return Err(error(Exit::Refused, message));
    }
    std::fs::create_dir_all(&args.dir).with_context(|| format!("creating folder {}", args.dir.display()))?;
    write_new(&args.dir.join("site.toml"), &site_text(&args.release))?;
    write_new(&args.dir.join("README"), &readme_text(&args.release))?;
    // Last: while it is missing, init may be run again.
    write_atomic(&secrets, secrets_text()?.as_bytes(), 0o600)?;
    println!("{}: random values, readable by you only", secrets.display());
    Ok(())
}

fn write_new(path: &Path, text: &str) -> Result<()> {
    if path.symlink_metadata().is_ok() {
        println!("{}: exists, left as it is", path.display());
        return Ok(());
    }
    write_atomic(path, text.as_bytes(), 0o644)?;
    println!("{}: written", path.display());
    Ok(())
}

/// How a secret's value is made.
#[derive(Clone, Copy)]
enum Kind {
    /// 32 letters and digits: no template or shell needs to quote them.
    Word,
    /// 256 random bytes as base64, as corosync-keygen makes them.
    Key,
    /// 32 random bytes as URL-safe base64, as keystone-manage makes them.
    Fernet,
}

/// Every secret that a site begins with.
const SECRETS: [(&str, &str, Kind); 21] = [
    ("site.id", "tells clusters of the same name apart", Kind::Word),
    ("galera.sst", "state transfers between galera's members", Kind::Word),
    ("galera.check", "galera's health checks", Kind::Word),
    ("rabbitmq.cookie", "erlang's cookie: whoever has it is a member", Kind::Word),
    ("rabbitmq.password", "the OpenStack services' account", Kind::Word),
    ("haproxy.stats", "haproxy's statistics page", Kind::Word),
    ("corosync.authkey", "encrypts corosync's traffic; base64", Kind::Key),
    ("pacemaker.password", "the account hacluster", Kind::Word),
    ("keystone.password", "OpenStack's admin", Kind::Word),
    ("keystone.fernet0", "keys of tokens: the next one …", Kind::Fernet),
    ("keystone.fernet1", "… and the one in use", Kind::Fernet),
    ("keystone.credential0", "keys of stored credentials: the next one …", Kind::Fernet),
    ("keystone.credential1", "… and the one in use", Kind::Fernet),
    ("database.password", "the OpenStack services' databases", Kind::Word),
    ("glance.password", "glance's user in keystone", Kind::Word),
    ("placement.password", "placement's", Kind::Word),
    ("nova.password", "nova's", Kind::Word),
    ("neutron.password", "neutron's", Kind::Word),
    ("neutron.metadata", "signs which guest asks nova for its metadata", Kind::Word),
    ("horizon.secret", "signs the dashboard's sessions", Kind::Word),
    ("storage.password", "the images' copies among one another", Kind::Word),
];

/// Length of a word, characters: 190 bits.
const WORD_CHARS: usize = 32;
const KEY_BYTES: usize = 256;
const FERNET_BYTES: usize = 32;

fn secrets_text() -> Result<String> {
    let mut text = String::from(
        "# Secrets of this site. kiln hands each node those of its role's systems, and refuses this file\n\
         # when others can read it. Keep a copy in a safe place; never commit it.\n",
    );
    let mut table = "";
    for (name, what, kind) in SECRETS {
        let (folder, key) = name.split_once('.').unwrap_or(("", name));
        if folder != table {
            text.push_str(&format!("\n[{folder}]\n"));
            table = folder;
        }
        let value = match kind {
            Kind::Word => random_word()?,
            Kind::Key => base64::engine::general_purpose::STANDARD.encode(random_bytes::<KEY_BYTES>()?),
            Kind::Fernet => base64::engine::general_purpose::URL_SAFE.encode(random_bytes::<FERNET_BYTES>()?),
        };
        text.push_str(&format!("{key} = \"{value}\" # {what}\n"));
    }
    Ok(text)
}

fn random_bytes<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0u8; N];
    getrandom::fill(&mut bytes).context("asking the kernel for random bytes")?;
    Ok(bytes)
}

fn random_word() -> Result<String> {
    const LETTERS: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let mut word = String::new();
    while word.len() < WORD_CHARS {
        // Bytes from 248 on are thrown away: else the first letters would come more often.
        let fair = random_bytes::<64>()?.into_iter().filter(|b| *b < 248);
        word.extend(fair.take(WORD_CHARS - word.len()).map(|b| LETTERS[usize::from(b % 62)] as char));
    }
    Ok(word)
}

/// A sample that parses: every optional key stands as a comment.
pub fn site_text(release: &str) -> String {
    include_str!("init/site.toml").replace("RELEASE", release)
}

fn readme_text(release: &str) -> String {
    include_str!("init/README").replace("RELEASE", release)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::site;
    use std::os::unix::fs::PermissionsExt;

    fn init(dir: &Path) -> Result<()> {
        run(Args { dir: dir.to_path_buf(), release: "zed".to_string() })
    }

    #[test]
    fn a_new_site_parses_and_its_secrets_are_its_own() {
        let root = tempfile::tempdir().unwrap();
        let (a, b) = (root.path().join("new/a"), root.path().join("b"));
        init(&a).unwrap();
        init(&b).unwrap();
        let text = std::fs::read_to_string(a.join("site.toml")).unwrap();
        let parsed = site::file::parse(&text, "site.toml").unwrap();
        assert_eq!(parsed.cluster.release, "zed");
        assert_eq!(site::check::check(&parsed, &|_| Some(true)), Vec::<String>::new());
        assert_eq!(std::fs::metadata(a.join("secrets.toml")).unwrap().permissions().mode() & 0o7777, 0o600);
        let read = |dir: &Path| crate::cli::secrets::read(&dir.join("secrets.toml")).unwrap();
        let (a, b) = (read(&a), read(&b));
        assert_eq!(a.names().count(), SECRETS.len());
        for (name, _, kind) in SECRETS {
            let (of_a, of_b) = (a.get(name).unwrap(), b.get(name).unwrap());
            assert_ne!(of_a, of_b, "{name}");
            match kind {
                Kind::Word => {
                    assert!(of_a.len() == WORD_CHARS && of_a.bytes().all(|b| b.is_ascii_alphanumeric()), "{name}");
                }
                Kind::Key => {
                    let key = base64::engine::general_purpose::STANDARD.decode(of_a).unwrap();
                    assert_eq!(key.len(), KEY_BYTES, "{name}");
                }
                Kind::Fernet => {
                    let key = base64::engine::general_purpose::URL_SAFE.decode(of_a).unwrap();
                    assert_eq!(key.len(), FERNET_BYTES, "{name}");
                }
            }
        }
    }

    #[test]
    fn every_line_that_the_sample_comments_out_is_valid_too() {
        let text = site_text("zed");
        // `# key = value` and `# [table]` are samples, other comments are prose.
        let sample = |line: &str| {
            let bare = line.trim_start().strip_prefix("# ")?;
            let key =
                bare.split_once(" = ").is_some_and(|(key, _)| key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'));
            (key || bare.starts_with('[')).then(|| bare.to_string())
        };
        let opened: Vec<String> = text.lines().map(|line| sample(line).unwrap_or_else(|| line.to_string())).collect();
        assert_ne!(opened.join("\n"), text.trim_end(), "the sample has no optional key");
        let parsed = site::file::parse(&opened.join("\n"), "site.toml").unwrap_or_else(|p| panic!("{p}"));
        assert!(parsed.management.pool.is_some() && parsed.networks.contains_key("external"));
    }

    #[test]
    fn existing_secrets_are_refused_and_a_site_is_left_as_it_is() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("site.toml"), "mine").unwrap();
        init(root.path()).unwrap();
        let before = std::fs::read(root.path().join("secrets.toml")).unwrap();
        let error = init(root.path()).unwrap_err();
        assert_eq!(crate::cli::exit::status(&error), 3, "{error}");
        assert_eq!(std::fs::read(root.path().join("secrets.toml")).unwrap(), before);
        assert_eq!(std::fs::read(root.path().join("site.toml")).unwrap(), b"mine");
    }
}
