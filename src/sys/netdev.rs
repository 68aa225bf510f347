//! Network interfaces by ioctl: understood by every kernel from 3.10 on, without netlink's codecs.

use anyhow::{Context, Result, bail};
use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

/// The socket that interface ioctls go through.
pub struct Interfaces {
    socket: OwnedFd,
}

/// An interface as `/sys/class/net` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    pub mac: Option<[u8; 6]>,
    /// Whether a device stands behind it (bridges, bonds and tunnels have none).
    pub physical: bool,
}

/// Every interface, by name.
pub fn list() -> Result<Vec<Interface>> {
    let dir = Path::new("/sys/class/net");
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))? {
        let entry = entry?;
        let mac = fs::read_to_string(entry.path().join("address")).ok().and_then(|t| octets(t.trim()));
        let physical = entry.path().join("device").exists();
        found.push(Interface { name: entry.file_name().to_string_lossy().into_owned(), mac, physical });
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// `52:54:00:00:00:01` as the kernel writes it; `None` for what is no Ethernet address.
fn octets(text: &str) -> Option<[u8; 6]> {
    let bytes: Vec<u8> = text.split(':').map(|p| u8::from_str_radix(p, 16)).collect::<Result<_, _>>().ok()?;
    bytes.try_into().ok()
}

/// The interface with this MAC: a device's own before a bridge's or bond's that borrowed it.
pub fn by_mac(mac: [u8; 6]) -> Result<Option<String>> {
    let mut found: Vec<Interface> = list()?.into_iter().filter(|i| i.mac == Some(mac)).collect();
    found.sort_by_key(|i| !i.physical);
    Ok(found.into_iter().next().map(|i| i.name))
}

/// Whether the cable answers; `false` while the interface is down.
pub fn has_carrier(name: &str) -> bool {
    fs::read_to_string(format!("/sys/class/net/{name}/carrier")).is_ok_and(|t| t.trim() == "1")
}

impl Interfaces {
    pub fn open() -> Result<Interfaces> {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
        let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
            .context("opening a socket for interfaces")?;
        Ok(Interfaces { socket })
    }

    pub fn up(&self, name: &str) -> Result<()> {
        let mut request = request(name)?;
        self.ioctl(libc::SIOCGIFFLAGS, &mut request).with_context(|| format!("reading flags of {name}"))?;
        // SAFETY: the kernel has just filled this member of the union.
        unsafe { request.ifr_ifru.ifru_flags |= (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short };
        self.ioctl(libc::SIOCSIFFLAGS, &mut request).with_context(|| format!("setting {name} up"))
    }

    /// The hardware address.
    pub fn mac(&self, name: &str) -> Result<[u8; 6]> {
        let mut request = request(name)?;
        self.ioctl(libc::SIOCGIFHWADDR, &mut request).with_context(|| format!("reading the MAC of {name}"))?;
        // SAFETY: SIOCGIFHWADDR fills this member of the union.
        let bytes = unsafe { request.ifr_ifru.ifru_hwaddr }.sa_data;
        let mut mac = [0u8; 6];
        mac.iter_mut().zip(bytes).for_each(|(to, from)| *to = from as u8);
        Ok(mac)
    }

    /// Sets the interface's one address and its netmask.
    pub fn set_address(&self, name: &str, address: Ipv4Addr, prefix: u8) -> Result<()> {
        let set = |code, value: Ipv4Addr| {
            let mut request = request(name)?;
            request.ifr_ifru.ifru_addr = sockaddr(value);
            self.ioctl(code, &mut request)
        };
        let mask = Ipv4Addr::from(u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0));
        set(libc::SIOCSIFADDR, address).with_context(|| format!("setting address {address} of {name}"))?;
        set(libc::SIOCSIFNETMASK, mask).with_context(|| format!("setting netmask {mask} of {name}"))
    }

    pub fn set_mtu(&self, name: &str, mtu: u32) -> Result<()> {
        let mut request = request(name)?;
        request.ifr_ifru.ifru_mtu = mtu as libc::c_int;
        self.ioctl(libc::SIOCSIFMTU, &mut request).with_context(|| format!("setting MTU {mtu} of {name}"))
    }

    /// Makes one host reachable on the interface whatever its netmask; there already is fine.
    pub fn host_route(&self, name: &str, host: Ipv4Addr) -> Result<()> {
        self.route(name, host, Ipv4Addr::BROADCAST, None).with_context(|| format!("adding a route to {host} on {name}"))
    }

    /// Adds the default route; one that is there already is fine.
    pub fn default_route(&self, name: &str, gateway: Ipv4Addr) -> Result<()> {
        let any = Ipv4Addr::UNSPECIFIED;
        self.route(name, any, any, Some(gateway))
            .with_context(|| format!("adding the default route by {gateway} on {name}"))
    }

    fn route(&self, name: &str, to: Ipv4Addr, mask: Ipv4Addr, gateway: Option<Ipv4Addr>) -> Result<()> {
        let mut device = std::ffi::CString::new(name).context("naming the route's interface")?.into_bytes_with_nul();
        // SAFETY: a zeroed rtentry is valid; `device` outlives the call.
        let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
        route.rt_dst = sockaddr(to);
        route.rt_genmask = sockaddr(mask);
        route.rt_gateway = sockaddr(gateway.unwrap_or(Ipv4Addr::UNSPECIFIED));
        route.rt_flags = libc::RTF_UP | if gateway.is_some() { libc::RTF_GATEWAY } else { libc::RTF_HOST };
        route.rt_dev = device.as_mut_ptr().cast();
        // SAFETY: SIOCADDRT reads one rtentry.
        let done = unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCADDRT as _, &route) };
        match nix::errno::Errno::result(done) {
            Ok(_) | Err(nix::errno::Errno::EEXIST) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn ioctl(&self, code: libc::c_ulong, request: &mut libc::ifreq) -> Result<()> {
        // SAFETY: every code used here reads or writes one ifreq.
        nix::errno::Errno::result(unsafe { libc::ioctl(self.socket.as_raw_fd(), code as _, request) })?;
        Ok(())
    }
}

fn request(name: &str) -> Result<libc::ifreq> {
    if name.is_empty() || name.len() >= libc::IFNAMSIZ {
        bail!("{name:?} is not an interface name");
    }
    // SAFETY: a zeroed ifreq is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

fn sockaddr(address: Ipv4Addr) -> libc::sockaddr {
    let inet = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from(address).to_be() },
        sin_zero: [0; 8],
    };
    // SAFETY: both are 16 bytes; sockaddr_in is sockaddr's form for AF_INET.
    unsafe { std::mem::transmute(inet) }
}
