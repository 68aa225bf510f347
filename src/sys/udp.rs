//! UDP on one interface, with the local address that each datagram was sent to (IP_PKTINFO): a
//! server on a wildcard address must answer from the address that it was asked at.

use anyhow::{Context, Result};
use nix::sys::socket::{self, ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;

/// One datagram's envelope.
#[derive(Clone, Copy, Debug)]
pub struct Datagram {
    /// Bytes written to the buffer.
    pub length: usize,
    pub from: SocketAddrV4,
    /// The local address that belongs to it (for a broadcast: the receiving interface's).
    pub local: Ipv4Addr,
    /// It was longer than the buffer.
    pub truncated: bool,
}

/// How a socket is opened.
#[derive(Clone, Copy, Default)]
pub struct Options<'a> {
    /// Only this interface's datagrams are seen, and replies leave there.
    pub interface: Option<&'a str>,
    pub broadcast: bool,
    /// Other sockets may have the same port (SO_REUSEADDR).
    pub shared: bool,
}

/// Opens and binds a socket.
pub fn open(bind: SocketAddrV4, options: Options) -> Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).context("opening a UDP socket")?;
    if let Some(interface) = options.interface {
        socket
            .bind_device(Some(interface.as_bytes()))
            .with_context(|| format!("binding to interface {interface} (does it exist, and are you root?)"))?;
    }
    socket.set_reuse_address(options.shared)?;
    socket.set_broadcast(options.broadcast)?;
    socket.bind(&SocketAddr::V4(bind).into()).with_context(|| format!("binding UDP {bind}"))?;
    setsockopt(&socket, sockopt::Ipv4PacketInfo, &true).context("asking for the destination of datagrams")?;
    Ok(socket.into())
}

/// Receives one datagram.
pub fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Datagram> {
    let mut space = nix::cmsg_space!(nix::libc::in_pktinfo);
    let mut parts = [IoSliceMut::new(buffer)];
    let message = socket::recvmsg::<SockaddrIn>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty())?;
    let mut local = Ipv4Addr::UNSPECIFIED;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::Ipv4PacketInfo(info) = control {
            local = Ipv4Addr::from(info.ipi_spec_dst.s_addr.to_ne_bytes());
        }
    }
    let from = message.address.map(|a| SocketAddrV4::new(a.ip(), a.port()));
    Ok(Datagram {
        length: message.bytes,
        from: from.ok_or(io::ErrorKind::InvalidData)?,
        local,
        truncated: message.flags.contains(MsgFlags::MSG_TRUNC),
    })
}

/// Sends one datagram from `local` (unspecified: the kernel's choice).
pub fn send(socket: &UdpSocket, bytes: &[u8], local: Ipv4Addr, to: SocketAddrV4) -> io::Result<()> {
    let info = nix::libc::in_pktinfo {
        ipi_ifindex: 0,
        ipi_spec_dst: nix::libc::in_addr { s_addr: u32::from_ne_bytes(local.octets()) },
        ipi_addr: nix::libc::in_addr { s_addr: 0 },
    };
    let control = [ControlMessage::Ipv4PacketInfo(&info)];
    let parts = [IoSlice::new(bytes)];
    socket::sendmsg(socket.as_raw_fd(), &parts, &control, MsgFlags::empty(), Some(&SockaddrIn::from(to)))?;
    Ok(())
}

/// Sends `packets`, all of one length except that the last may be shorter, on a connected socket
/// in one call: the kernel cuts the buffer into datagrams of `segment` bytes (UDP_SEGMENT, Linux 4.18).
pub fn send_segments(socket: &UdpSocket, packets: &[u8], segment: u16) -> io::Result<()> {
    let control = [ControlMessage::UdpGsoSegments(&segment)];
    socket::sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(packets)], &control, MsgFlags::empty(), None)?;
    Ok(())
}

/// Lets the kernel send to `address` on `interface` at `mac` without asking by ARP: a client that
/// is just being given its address does not answer yet.
pub fn set_neighbour(socket: &UdpSocket, interface: &str, address: Ipv4Addr, mac: [u8; 6]) -> io::Result<()> {
    // SAFETY: an all-zero arpreq is a valid value of plain integers.
    let mut request: libc::arpreq = unsafe { std::mem::zeroed() };
    request.arp_pa.sa_family = libc::AF_INET as libc::sa_family_t;
    for (to, from) in request.arp_pa.sa_data[2..6].iter_mut().zip(address.octets()) {
        *to = from as libc::c_char; // struct sockaddr_in: port (2), address (4)
    }
    request.arp_ha.sa_family = libc::ARPHRD_ETHER;
    for (to, from) in request.arp_ha.sa_data.iter_mut().zip(mac) {
        *to = from as libc::c_char;
    }
    request.arp_flags = libc::ATF_COM;
    // The last byte stays zero.
    for (to, from) in request.arp_dev.iter_mut().take(libc::IFNAMSIZ - 1).zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: SIOCSARP reads one arpreq, which lives until the call returns.
    let status = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSARP, &request) };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Datagrams beyond the MTU go out in fragments; by default Linux would refuse to send them.
pub fn allow_fragments(socket: &UdpSocket) -> io::Result<()> {
    let value: libc::c_int = libc::IP_PMTUDISC_DONT;
    let length = std::mem::size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes of `value`, which lives until the call returns.
    let status = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, (&raw const value).cast(), length)
    };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
