//! What a DHCP packet is answered: a pure function over the packet, the machine's place in the
//! site and the book of leases. Sends nothing, stores nothing, knows no socket.
//!
//! Two doors: port 67 (RFC 2131) and port 4011, where PXE firmware asks a proxy for its boot file
//! (PXE 2.1 §2.2). In proxy mode another server gives the addresses and we only add the boot file.

use super::lease::{Book, Change, DECLINED_MS, LEASE_MS, Lease, OFFER_MS};
use super::packet::{BOOTREQUEST, BROADCAST_FLAG, MessageType, Packet, code};
use crate::pxe::machine::{Firmware, Machine, Stage};
use crate::pxe::{Link, Offer, Placement, Pool};
use std::net::{Ipv4Addr, SocketAddrV4};

/// Seconds that a node keeps its reserved address without asking again.
const NODE_LEASE_SECS: u32 = 3600;
/// Where clients listen.
pub const CLIENT_PORT: u16 = 68;
/// Where servers and relays listen.
pub const SERVER_PORT: u16 = 67;
/// Where PXE firmware asks a proxy (PXE 2.1 §2.2.3).
pub const BOOT_PORT: u16 = 4011;
/// IP and UDP header, which option 57 and the default of 576 bytes count in.
const IP_UDP_BYTES: usize = 28;
/// What every client accepts (RFC 2131 §2).
const SIZE_MIN_BYTES: usize = 576;
/// An Ethernet frame's payload: longer replies would be fragments.
const SIZE_MAX_BYTES: usize = 1500;

/// PXE discovery control "use the boot file of this offer" (43.6 = 8), then the end.
const SKIP_DISCOVERY: [u8; 4] = [6, 1, 8, 255];
/// iPXE's "no proxy will answer" (175.176 = 1): saves its wait of two seconds.
const NO_PROXY: [u8; 3] = [0xb0, 1, 1];

/// How we stand towards other DHCP servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The only server: addresses and boot files.
    Authoritative,
    /// Beside another one: boot files only.
    Proxy,
}

/// What the answers say of this server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub mode: Mode,
    /// Our address on the network of the machines.
    pub server: Ipv4Addr,
    /// The nodes' side HTTP.
    pub http_port: u16,
}

/// Where a packet came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// Port 67.
    Dhcp,
    /// Port 4011; answers go to where the packet came from.
    Boot { from: SocketAddrV4 },
}

/// Where a reply goes (RFC 2131 §4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// To a relay, or to a client that has its address.
    Address(SocketAddrV4),
    /// To a client that does not answer ARP yet.
    Card(Ipv4Addr),
    /// To everyone on the link.
    Broadcast,
}

/// What to do about a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Apply the change (durably, if it is a lease), then send.
    Send {
        packet: Box<Packet>,
        to: Target,
        change: Option<Change>,
    },
    /// Nothing to send.
    Record(Change),
    Ignore(Ignored),
}

/// Why a packet gets no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ignored {
    #[error("not a client's request")]
    NotARequest,
    #[error("no Ethernet address of one card")]
    NoMac,
    #[error("no message that a server answers here")]
    Message,
    #[error("neither a node of the site nor booting firmware")]
    PlainClient,
    #[error("{0}")]
    NotOurs(String),
    #[error("the client chose the server {0}")]
    OtherServer(Ipv4Addr),
    #[error("addresses are another server's matter (proxy mode)")]
    Proxy,
    #[error("no boot loader for firmware {}", .0.word())]
    NoLoader(Firmware),
    #[error("boots from its disk")]
    LocalDisk,
    #[error("the site has no pool for parked machines")]
    NoPool,
    #[error("the pool is exhausted")]
    PoolExhausted,
    #[error("no lease for this machine: another server may know it")]
    NoLease,
    #[error("the address {0} is in use by somebody else, says the machine")]
    AddressInUse(Ipv4Addr),
    #[error("the relay {0} stands in another network than the address")]
    ForeignRelay(Ipv4Addr),
    #[error("releasing a reserved address changes nothing")]
    Reserved,
}

impl Ignored {
    /// The counter's name.
    pub fn word(&self) -> &'static str {
        match self {
            Ignored::NotARequest => "not-a-request",
            Ignored::NoMac => "no-mac",
            Ignored::Message => "message",
            Ignored::PlainClient => "plain-client",
            Ignored::NotOurs(_) => "not-ours",
            Ignored::OtherServer(_) => "other-server",
            Ignored::Proxy => "proxy",
            Ignored::NoLoader(_) => "no-loader",
            Ignored::LocalDisk => "local-disk",
            Ignored::NoPool => "no-pool",
            Ignored::PoolExhausted => "pool-exhausted",
            Ignored::NoLease => "no-lease",
            Ignored::AddressInUse(_) => "address-in-use",
            Ignored::ForeignRelay(_) => "foreign-relay",
            Ignored::Reserved => "reserved",
        }
    }
}

/// Whether the packet is worth a look into the directory, and whose it is.
pub fn admit(packet: &Packet, mode: Mode, door: Door) -> Result<(Machine, MessageType), Ignored> {
    use MessageType::*;
    if packet.op != BOOTREQUEST {
        return Err(Ignored::NotARequest);
    }
    let machine = Machine::from_packet(packet).ok_or(Ignored::NoMac)?;
    let message = packet.message().ok_or(Ignored::Message)?;
    match (door, mode, message) {
        (_, _, Offer | Ack | Nak) => Err(Ignored::Message),
        (Door::Boot { .. }, _, Request | Inform) => Ok((machine, message)),
        (Door::Boot { .. }, _, _) => Err(Ignored::Message),
        (Door::Dhcp, Mode::Proxy, Discover) if machine.stage == Stage::Os => Err(Ignored::PlainClient),
        (Door::Dhcp, Mode::Proxy, Discover) => Ok((machine, message)),
        (Door::Dhcp, Mode::Proxy, _) => Err(Ignored::Proxy),
        (Door::Dhcp, Mode::Authoritative, _) => Ok((machine, message)),
    }
}

/// What goes into one answer: all that is known about the question.
pub struct Question<'a> {
    pub config: &'a Config,
    pub packet: &'a Packet,
    pub door: Door,
    pub machine: &'a Machine,
    pub message: MessageType,
    pub placement: &'a Placement,
}

/// The answer to an admitted packet. `now` in milliseconds since the epoch.
pub fn reply(question: &Question, book: &Book, now: u64) -> Decision {
    question.decide(book, now).unwrap_or_else(Decision::Ignore)
}

impl Question<'_> {
    fn decide(&self, book: &Book, now: u64) -> Result<Decision, Ignored> {
        let (link, offer) = match self.placement {
            Placement::Ignore(why) => return Err(Ignored::NotOurs(why.clone())),
            Placement::Node { link, offer, .. } | Placement::Parked { link, offer, .. } => (link, *offer),
        };
        let known = matches!(self.placement, Placement::Node { .. });
        if self.machine.stage == Stage::Os && !known {
            return Err(Ignored::PlainClient);
        }
        if self.config.mode == Mode::Proxy || self.door != Door::Dhcp {
            return self.boot_only(offer);
        }
        if let Some(relay) = self.relay_network().filter(|relay| !link.subnet.has_host(*relay)) {
            return Err(Ignored::ForeignRelay(relay));
        }
        match self.placement {
            Placement::Node { name, address, .. } => self.reserved(name, *address, link, offer),
            Placement::Parked { pool, .. } => {
                self.pooled(pool.as_ref().ok_or(Ignored::NoPool)?, link, offer, book, now)
            }
            Placement::Ignore(why) => Err(Ignored::NotOurs(why.clone())),
        }
    }

    /// A proxy's offer, or the answer on port 4011: no address, only where to boot from.
    fn boot_only(&self, offer: Offer) -> Result<Decision, Ignored> {
        let file = self.boot_file(offer)?.ok_or(match self.machine.stage {
            Stage::Os => Ignored::PlainClient,
            _ => Ignored::LocalDisk,
        })?;
        let kind = if self.message == MessageType::Discover { MessageType::Offer } else { MessageType::Ack };
        let mut packet = self.start(kind);
        packet.ciaddr = self.packet.ciaddr;
        self.add_boot(&mut packet, &file);
        self.add_proxy(&mut packet);
        let to = match self.door {
            Door::Boot { from } if !from.ip().is_unspecified() => Target::Address(from),
            _ => self.target(Ipv4Addr::UNSPECIFIED),
        };
        Ok(self.send(packet, to, None))
    }

    /// A node with its reserved address.
    fn reserved(&self, name: &str, address: Ipv4Addr, link: &Link, offer: Offer) -> Result<Decision, Ignored> {
        let grant = |kind| {
            let mut packet = self.granted(kind, address, NODE_LEASE_SECS, link, offer)?;
            if self.packet.wants(code::HOST_NAME) {
                packet.set(code::HOST_NAME, name.as_bytes().to_vec());
            }
            let to = self.target(address);
            Ok(self.send(packet, to, None))
        };
        match self.message {
            MessageType::Discover => grant(MessageType::Offer),
            MessageType::Request => match self.requested()? {
                asked if asked == address => grant(MessageType::Ack),
                asked => Ok(self.nak(&format!("{asked} is not {name}'s address"))),
            },
            MessageType::Inform => self.informed(link, offer),
            MessageType::Decline => Err(Ignored::AddressInUse(address)),
            _ => Err(Ignored::Reserved),
        }
    }

    /// A parked machine with an address of the pool.
    fn pooled(&self, pool: &Pool, link: &Link, offer: Offer, book: &Book, now: u64) -> Result<Decision, Ignored> {
        let mac = self.machine.mac;
        let lease = |address, until| Lease { mac, address, until };
        let held = || book.held(mac, now).ok_or(Ignored::NoLease);
        let grant = |kind, change: fn(Lease) -> Change, address, ms| {
            let packet = self.granted(kind, address, (LEASE_MS / 1000) as u32, link, offer)?;
            let to = self.target(address);
            Ok(self.send(packet, to, Some(change(lease(address, now + ms)))))
        };
        match self.message {
            MessageType::Discover => {
                let wanted = self.packet.get_address(code::REQUESTED_ADDRESS);
                let address = book.pick(mac, wanted, pool, now).ok_or(Ignored::PoolExhausted)?;
                grant(MessageType::Offer, Change::Offer, address, OFFER_MS)
            }
            MessageType::Request => {
                let asked = self.requested()?;
                // Chosen from our offer: the book must still have it. Otherwise a machine that
                // we do not know is left to whoever knows it (RFC 2131 §4.3.2).
                match held() {
                    Ok(address) if address == asked && pool.contains(asked) => {
                        grant(MessageType::Ack, Change::Lease, address, LEASE_MS)
                    }
                    Err(why) if self.packet.get(code::SERVER_ID).is_none() => Err(why),
                    _ => Ok(self.nak(&format!("{asked} is not leased to {mac}"))),
                }
            }
            MessageType::Inform => self.informed(link, offer),
            MessageType::Release if held()? == self.packet.ciaddr => {
                Ok(Decision::Record(Change::Release(lease(self.packet.ciaddr, now))))
            }
            MessageType::Decline if Some(held()?) == self.packet.get_address(code::REQUESTED_ADDRESS) => {
                Ok(Decision::Record(Change::Decline(lease(held()?, now + DECLINED_MS))))
            }
            _ => Err(Ignored::NoLease),
        }
    }

    /// The address in a REQUEST, which is meant for us: SELECTING and INIT-REBOOT say it in option
    /// 50, RENEWING and REBINDING in `ciaddr` (RFC 2131 §4.3.2).
    fn requested(&self) -> Result<Ipv4Addr, Ignored> {
        if let Some(server) = self.packet.get_address(code::SERVER_ID).filter(|s| *s != self.config.server) {
            return Err(Ignored::OtherServer(server));
        }
        Ok(self.packet.get_address(code::REQUESTED_ADDRESS).unwrap_or(self.packet.ciaddr))
    }

    /// An address with all that belongs to it.
    fn granted(
        &self,
        kind: MessageType,
        address: Ipv4Addr,
        secs: u32,
        link: &Link,
        offer: Offer,
    ) -> Result<Packet, Ignored> {
        let file = self.boot_file(offer)?;
        let mut packet = self.start(kind);
        packet.yiaddr = address;
        if kind == MessageType::Ack {
            packet.ciaddr = self.packet.ciaddr;
        }
        for (tag, value) in [(code::LEASE_SECS, secs), (code::RENEW_SECS, secs / 2), (code::REBIND_SECS, secs / 8 * 7)]
        {
            packet.set(tag, value.to_be_bytes().to_vec());
        }
        self.add_network(&mut packet, link, file.as_deref());
        Ok(packet)
    }

    /// INFORM: parameters, but no address and no lease (RFC 2131 §4.3.5).
    fn informed(&self, link: &Link, offer: Offer) -> Result<Decision, Ignored> {
        if self.packet.ciaddr.is_unspecified() {
            return Err(Ignored::Message);
        }
        let file = self.boot_file(offer)?;
        let mut packet = self.start(MessageType::Ack);
        packet.ciaddr = self.packet.ciaddr;
        self.add_network(&mut packet, link, file.as_deref());
        let to = self.target(packet.ciaddr);
        Ok(self.send(packet, to, None))
    }

    fn nak(&self, why: &str) -> Decision {
        let mut packet = self.start(MessageType::Nak);
        packet.set(code::MESSAGE, why.as_bytes().to_vec());
        let to = match self.machine.relay {
            Some(relay) => {
                // The relay broadcasts it: the client's address is what is wrong (RFC 2131 §4.3.2).
                packet.flags |= BROADCAST_FLAG;
                Target::Address(SocketAddrV4::new(relay, SERVER_PORT))
            }
            None => Target::Broadcast,
        };
        self.send(packet, to, None)
    }

    /// Type and our identity first, as old ROMs expect.
    fn start(&self, kind: MessageType) -> Packet {
        let mut packet = Packet::reply_to(self.packet, kind);
        packet.set(code::SERVER_ID, self.config.server.octets().to_vec());
        packet
    }

    /// What each reply repeats from the question (RFC 6842, 4578 §2.3, 3046 §2.2).
    fn send(&self, mut packet: Packet, to: Target, change: Option<Change>) -> Decision {
        for tag in [code::CLIENT_ID, code::CLIENT_UUID, code::RELAY_AGENT] {
            if let Some(value) = self.packet.get(tag) {
                packet.set(tag, value.to_vec());
            }
        }
        Decision::Send { packet: Box::new(packet), to, change }
    }

    /// The name or URI that this stage loads next; `None`: nothing.
    fn boot_file(&self, offer: Offer) -> Result<Option<String>, Ignored> {
        let Config { server, http_port, .. } = self.config;
        let loader = || {
            let firmware = self.machine.firmware.unwrap_or(Firmware::Bios);
            loader(firmware).ok_or(Ignored::NoLoader(firmware))
        };
        match (self.machine.stage, offer) {
            (Stage::Os, _) => Ok(None),
            // iPXE puts its own values in.
            (Stage::Ipxe, _) => Ok(Some(format!(
                "http://{server}:{http_port}/boot/script?mac=${{mac:hexhyp}}&uuid=${{uuid}}&arch=${{buildarch}}"
            ))),
            (Stage::Rom | Stage::HttpRom, Offer::LocalDisk) => Ok(None),
            (Stage::Rom, Offer::Boot) => Ok(Some(loader()?.to_string())),
            (Stage::HttpRom, Offer::Boot) => Ok(Some(format!("http://{server}:{http_port}/loaders/{}", loader()?))),
        }
    }

    /// The boot file at every place where some firmware looks for it.
    fn add_boot(&self, packet: &mut Packet, file: &str) {
        let server = self.config.server;
        packet.siaddr = server;
        // One byte stays zero: the field is a C string. What is longer stands in option 67 alone.
        if file.len() < packet.file.len() {
            packet.file[..file.len()].copy_from_slice(file.as_bytes());
        }
        if self.machine.stage == Stage::HttpRom {
            // EDK2 takes an offer for HTTP boot only if it answers in the client's class.
            packet.set(code::VENDOR_CLASS, b"HTTPClient".to_vec());
        } else {
            packet.set(code::TFTP_SERVER, server.to_string().into_bytes());
        }
        packet.set(code::BOOT_FILE, file.as_bytes().to_vec());
    }

    /// What makes it a proxy's reply. BIOS ROMs and iPXE are told to skip discovery; UEFI gets no
    /// option 43 and asks on port 4011 instead, because EDK2 before 2017 drops the first proxy
    /// offer that has one.
    fn add_proxy(&self, packet: &mut Packet) {
        if self.machine.stage == Stage::HttpRom {
            return;
        }
        packet.set(code::VENDOR_CLASS, b"PXEClient".to_vec());
        let bios = matches!(self.machine.firmware, None | Some(Firmware::Bios));
        if bios || self.machine.stage == Stage::Ipxe {
            packet.set(code::VENDOR, SKIP_DISCOVERY.to_vec());
        }
    }

    fn add_network(&self, packet: &mut Packet, link: &Link, file: Option<&str>) {
        packet.set(code::SUBNET_MASK, link.subnet.mask().octets().to_vec());
        if let Some(gateway) = link.gateway {
            packet.set(code::ROUTER, gateway.octets().to_vec());
        }
        if let Some(file) = file {
            self.add_boot(packet, file);
        }
        if self.machine.stage == Stage::Ipxe {
            packet.set(code::IPXE, NO_PROXY.to_vec());
        }
        let list = |addresses: &[Ipv4Addr]| addresses.iter().flat_map(|a| a.octets()).collect::<Vec<u8>>();
        if !link.dns.is_empty() {
            packet.set(code::DNS, list(&link.dns));
        }
        packet.set(code::BROADCAST, link.subnet.broadcast().octets().to_vec());
        if !link.ntp.is_empty() && self.packet.wants(code::NTP) {
            packet.set(code::NTP, list(&link.ntp));
        }
        if let Some(mtu) = link.mtu.filter(|_| self.packet.wants(code::MTU)) {
            packet.set(code::MTU, mtu.to_be_bytes().to_vec());
        }
    }

    /// RFC 2131 §4.1, for a reply that gives `address` (unspecified: none).
    fn target(&self, address: Ipv4Addr) -> Target {
        if let Some(relay) = self.machine.relay {
            Target::Address(SocketAddrV4::new(relay, SERVER_PORT))
        } else if !self.packet.ciaddr.is_unspecified() {
            Target::Address(SocketAddrV4::new(self.packet.ciaddr, CLIENT_PORT))
        } else if self.packet.flags & BROADCAST_FLAG != 0 || address.is_unspecified() {
            Target::Broadcast
        } else {
            Target::Card(address)
        }
    }

    /// The network that a relay speaks for: its link selection (RFC 3527), else its address.
    fn relay_network(&self) -> Option<Ipv4Addr> {
        let relay = self.machine.relay?;
        let mut rest = self.packet.get(code::RELAY_AGENT).unwrap_or_default();
        while let [tag, length, tail @ ..] = rest {
            if let (5, 4, [a, b, c, d, ..]) = (*tag, *length, tail) {
                return Some(Ipv4Addr::new(*a, *b, *c, *d));
            }
            rest = tail.get(usize::from(*length)..).unwrap_or_default();
        }
        Some(relay)
    }
}

/// The iPXE binary for this firmware, by its name in the distribution's package.
pub fn loader(firmware: Firmware) -> Option<&'static str> {
    match firmware {
        Firmware::Bios => Some("undionly.kpxe"),
        Firmware::UefiX64 | Firmware::UefiX64Http => Some("snponly.efi"),
        _ => None,
    }
}

/// The longest reply in bytes (without IP and UDP) that this client takes (option 57).
pub fn size_max(packet: &Packet) -> usize {
    let said = packet.get(code::MAX_SIZE).and_then(|v| <[u8; 2]>::try_from(v).ok()).map(u16::from_be_bytes);
    usize::from(said.unwrap_or(0)).clamp(SIZE_MIN_BYTES, SIZE_MAX_BYTES) - IP_UDP_BYTES
}

#[cfg(test)]
mod tests;
