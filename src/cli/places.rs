//! Where things lie when no flag says otherwise.

use std::path::PathBuf;

fn from_env(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from)
}

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn home(xdg: &str, below_home: &str) -> PathBuf {
    from_env(xdg).unwrap_or_else(|| from_env("HOME").unwrap_or_else(|| "/".into()).join(below_home)).join("kiln")
}

/// The store: flag, `KILN_STORE`, root: `/var/lib/kiln/store`, else `$XDG_DATA_HOME/kiln/store`.
pub fn store(flag: Option<PathBuf>) -> PathBuf {
    flag.or_else(|| from_env("KILN_STORE")).unwrap_or_else(|| {
        if is_root() { "/var/lib/kiln/store".into() } else { home("XDG_DATA_HOME", ".local/share").join("store") }
    })
}

/// Imported repositories: flag, `KILN_REPOS`, root: `/var/lib/kiln/repos`, else `$XDG_DATA_HOME/kiln/repos`.
pub fn repos(flag: Option<PathBuf>) -> PathBuf {
    flag.or_else(|| from_env("KILN_REPOS")).unwrap_or_else(|| {
        if is_root() { "/var/lib/kiln/repos".into() } else { home("XDG_DATA_HOME", ".local/share").join("repos") }
    })
}

/// The builder's key: flag, `KILN_KEY`, root: `/var/lib/kiln/builder.key`, else below `$XDG_CONFIG_HOME/kiln`.
pub fn builder_key(flag: Option<PathBuf>) -> PathBuf {
    flag.or_else(|| from_env("KILN_KEY")).unwrap_or_else(|| {
        if is_root() {
            "/var/lib/kiln/builder.key".into()
        } else {
            home("XDG_CONFIG_HOME", ".config").join("builder.key")
        }
    })
}

/// The cache: `KILN_CACHE`, else `$XDG_CACHE_HOME/kiln`.
pub fn cache() -> PathBuf {
    from_env("KILN_CACHE").unwrap_or_else(|| home("XDG_CACHE_HOME", ".cache"))
}

/// The server's state: flag, else `/var/lib/kiln`.
pub fn state(flag: Option<PathBuf>) -> PathBuf {
    flag.unwrap_or_else(|| "/var/lib/kiln".into())
}

/// The operator's socket: flag, `KILN_SOCKET`, else `/run/kiln/kiln.sock`.
pub fn socket(flag: Option<PathBuf>) -> PathBuf {
    flag.or_else(|| from_env("KILN_SOCKET")).unwrap_or_else(|| "/run/kiln/kiln.sock".into())
}

/// Files with registries' passwords, as docker, podman and skopeo keep them; the first that knows a registry wins.
pub fn registry_credentials() -> Vec<PathBuf> {
    let docker = from_env("DOCKER_CONFIG").or_else(|| from_env("HOME").map(|h| h.join(".docker")));
    let podman = from_env("XDG_RUNTIME_DIR").map(|d| d.join("containers/auth.json"));
    from_env("REGISTRY_AUTH_FILE").into_iter().chain(docker.map(|d| d.join("config.json"))).chain(podman).collect()
}
