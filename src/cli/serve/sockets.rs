//! Where the server listens.

use anyhow::{Context, Result, bail};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tokio::net::{TcpListener, UnixListener};

/// `ADDR`, `ADDR:PORT` or `:PORT`.
pub fn address(text: &str, port: u16) -> Result<SocketAddr, String> {
    if let Some(port) = text.strip_prefix(':') {
        let port = port.parse().map_err(|_| format!("{text:?} has no port number"))?;
        return Ok((Ipv4Addr::UNSPECIFIED, port).into());
    }
    let whole = text.parse::<SocketAddr>().ok();
    let bare = text.parse::<IpAddr>().ok().map(|ip| (ip, port).into());
    whole.or(bare).ok_or_else(|| format!("{text:?} is not ADDRESS or ADDRESS:PORT"))
}

pub async fn tcp(address: SocketAddr, what: &str) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("opening {address} for {what}"))
}

/// The operator's socket, 0660; removed when dropped. One that a dead server left is replaced.
pub struct Socket {
    pub path: PathBuf,
}

pub fn unix(path: &Path) -> Result<(UnixListener, Socket)> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).with_context(|| format!("creating folder {}", folder.display()))?;
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        bail!("another kiln serve answers at {}", path.display());
    }
    // Under another name until its mode is right: nobody may connect before.
    let hidden = folder.join(format!(".kiln-{}.sock", std::process::id()));
    let _ = std::fs::remove_file(&hidden);
    let listener = UnixListener::bind(&hidden).with_context(|| format!("opening socket {}", hidden.display()))?;
    std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o660))?;
    std::fs::rename(&hidden, path).with_context(|| format!("opening socket {}", path.display()))?;
    Ok((listener, Socket { path: path.to_path_buf() }))
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The address of an interface: the one inside `within`, else its first.
pub fn interface_address(name: &str, within: Option<crate::site::Subnet>) -> Result<Ipv4Addr> {
    let mut found = Vec::new();
    for entry in nix::ifaddrs::getifaddrs().context("listing interfaces")? {
        let ip = entry.address.as_ref().and_then(|a| a.as_sockaddr_in()).map(|a| a.ip());
        if entry.interface_name == name {
            found.extend(ip);
        }
    }
    let best = found.iter().find(|ip| within.is_some_and(|subnet| subnet.has_host(**ip)));
    match best.or(found.first()) {
        Some(ip) => Ok(*ip),
        None => bail!("interface {name} has no IPv4 address"),
    }
}

/// The interface's own MAC. Asked by a socket, not read from /sys: that may show another namespace.
pub fn interface_mac(name: &str) -> Result<crate::site::Mac> {
    let mut entries = nix::ifaddrs::getifaddrs().context("listing interfaces")?.filter(|e| e.interface_name == name);
    let card = entries.find_map(|e| e.address.as_ref()?.as_link_addr()?.addr());
    card.map(crate::site::Mac).with_context(|| format!("interface {name} has no MAC"))
}
