//! Tables of machine, mode and place against the answer.

use super::*;
use crate::site::{Mac, Subnet};
use proptest::prelude::*;

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const NODE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 11);
const MAC: Mac = Mac([0x52, 0x54, 0, 0, 0, 1]);
const SCRIPT: &str = "http://10.0.0.1:8080/boot/script?mac=${mac:hexhyp}&uuid=${uuid}&arch=${buildarch}";

fn config(mode: Mode) -> Config {
    Config { mode, server: SERVER, http_port: 8080 }
}

fn link() -> Link {
    Link {
        subnet: Subnet { network: Ipv4Addr::new(10, 0, 0, 0), prefix: 24 },
        gateway: Some(SERVER),
        dns: vec![Ipv4Addr::new(10, 0, 0, 2), SERVER],
        ntp: vec![SERVER],
        mtu: Some(1500),
    }
}

fn node(offer: Offer) -> Placement {
    Placement::Node { name: "c1".into(), address: NODE, link: link(), offer }
}

fn pool() -> Pool {
    Pool { first: Ipv4Addr::new(10, 0, 0, 200), last: Ipv4Addr::new(10, 0, 0, 201), excluded: vec![] }
}

fn parked() -> Placement {
    Placement::Parked { link: link(), pool: Some(pool()), offer: Offer::Boot }
}

/// A client's packet.
fn asked(message: MessageType, options: &[(u8, &[u8])]) -> Packet {
    let mut packet = Packet::request(MAC, 42);
    packet.set(code::MESSAGE_TYPE, vec![message as u8]);
    for (tag, value) in options {
        packet.set(*tag, value.to_vec());
    }
    packet
}

fn answer(mode: Mode, door: Door, packet: &Packet, placement: &Placement, book: &Book, now: u64) -> Decision {
    let config = config(mode);
    match admit(packet, mode, door) {
        Ok((machine, message)) => {
            reply(&Question { config: &config, packet, door, machine: &machine, message, placement }, book, now)
        }
        Err(why) => Decision::Ignore(why),
    }
}

fn sent(decision: Decision) -> (Packet, Target, Option<Change>) {
    match decision {
        Decision::Send { packet, to, change } => (*packet, to, change),
        other => panic!("{other:?}"),
    }
}

fn quick(mode: Mode, packet: &Packet, placement: &Placement) -> Decision {
    answer(mode, Door::Dhcp, packet, placement, &Book::default(), 0)
}

const BIOS: &[(u8, &[u8])] = &[(60, b"PXEClient:Arch:00000:UNDI:002001"), (93, &[0, 0])];
const UEFI: &[(u8, &[u8])] = &[(60, b"PXEClient:Arch:00007:UNDI:003016"), (93, &[0, 7])];
const UEFI_9: &[(u8, &[u8])] = &[(60, b"PXEClient:Arch:00009:UNDI:003016"), (93, &[0, 9])];
const ARM: &[(u8, &[u8])] = &[(60, b"PXEClient:Arch:00011:UNDI:003016"), (93, &[0, 11])];
const HTTP: &[(u8, &[u8])] = &[(60, b"HTTPClient:Arch:00016:UNDI:003001"), (93, &[0, 16])];
const IPXE: &[(u8, &[u8])] = &[(60, b"PXEClient:Arch:00000"), (93, &[0, 0]), (77, b"iPXE"), (175, &[0x13, 1, 1])];
const PLAIN: &[(u8, &[u8])] = &[(60, b"udhcp 1.35"), (55, &[1, 3, 6, 12, 26, 42])];

#[test]
fn each_stage_gets_its_next_file_in_both_modes() {
    use Mode::*;
    type Row = (
        &'static str,
        &'static [(u8, &'static [u8])],
        Mode,
        &'static str,
        Option<&'static [u8]>,
        Option<&'static [u8]>,
    );
    let pxe: Option<&[u8]> = Some(b"PXEClient");
    let http: Option<&[u8]> = Some(b"HTTPClient");
    let skip: Option<&[u8]> = Some(&SKIP_DISCOVERY);
    let rows: &[Row] = &[
        ("BIOS", BIOS, Authoritative, "undionly.kpxe", None, None),
        ("BIOS proxy", BIOS, Proxy, "undionly.kpxe", pxe, skip),
        ("UEFI", UEFI, Authoritative, "snponly.efi", None, None),
        ("UEFI proxy", UEFI, Proxy, "snponly.efi", pxe, None),
        ("UEFI 9", UEFI_9, Authoritative, "snponly.efi", None, None),
        ("UEFI 9 proxy", UEFI_9, Proxy, "snponly.efi", pxe, None),
        ("HTTP", HTTP, Authoritative, "http://10.0.0.1:8080/loaders/snponly.efi", http, None),
        ("HTTP proxy", HTTP, Proxy, "http://10.0.0.1:8080/loaders/snponly.efi", http, None),
        ("iPXE", IPXE, Authoritative, SCRIPT, None, None),
        ("iPXE proxy", IPXE, Proxy, SCRIPT, pxe, skip),
    ];
    for (name, options, mode, file, class, vendor) in rows {
        let (packet, ..) = sent(quick(*mode, &asked(MessageType::Discover, options), &node(Offer::Boot)));
        assert_eq!(packet.message(), Some(MessageType::Offer), "{name}");
        assert_eq!(packet.get(code::BOOT_FILE), Some(file.as_bytes()), "{name}");
        assert_eq!(packet.file_text(), *file, "{name}: some ROMs read the header only");
        assert_eq!((packet.get(code::VENDOR_CLASS), packet.get(code::VENDOR)), (*class, *vendor), "{name}");
        assert_eq!((packet.siaddr, packet.get_address(code::SERVER_ID)), (SERVER, Some(SERVER)), "{name}");
        assert_eq!(packet.yiaddr, if *mode == Proxy { Ipv4Addr::UNSPECIFIED } else { NODE }, "{name}");
        assert_eq!(packet.get(code::LEASE_SECS).is_some(), *mode == Authoritative, "{name}");
        let no_proxy = *mode == Authoritative && *file == SCRIPT;
        assert_eq!(packet.get(code::IPXE), no_proxy.then_some(&NO_PROXY[..]), "{name}");
    }
}

#[test]
fn who_is_not_ours_gets_nothing() {
    use Mode::*;
    let ignore = Placement::Ignore("unknown machines are ignored".into());
    let no_pool = Placement::Parked { link: link(), pool: None, offer: Offer::Boot };
    type Row = (&'static str, &'static [(u8, &'static [u8])], Mode, Placement, &'static str);
    let rows: &[Row] = &[
        ("unknown plain client", PLAIN, Authoritative, parked(), "plain-client"),
        ("known plain client beside a server", PLAIN, Proxy, node(Offer::Boot), "plain-client"),
        ("ignored by the site", BIOS, Authoritative, ignore.clone(), "not-ours"),
        ("ignored by the site, proxy", BIOS, Proxy, ignore, "not-ours"),
        ("no loader", ARM, Authoritative, node(Offer::Boot), "no-loader"),
        ("no loader, proxy", ARM, Proxy, node(Offer::Boot), "no-loader"),
        ("no pool", BIOS, Authoritative, no_pool, "no-pool"),
        ("local disk, proxy", BIOS, Proxy, node(Offer::LocalDisk), "local-disk"),
    ];
    for (name, options, mode, placement, word) in rows {
        match quick(*mode, &asked(MessageType::Discover, options), placement) {
            Decision::Ignore(why) => assert_eq!(why.word(), *word, "{name}"),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn what_is_no_question_is_not_admitted() {
    let discover = asked(MessageType::Discover, BIOS);
    let mut reply = discover.clone();
    reply.op = 2;
    let mut token_ring = discover.clone();
    token_ring.htype = 6;
    let mut multicast = discover.clone();
    multicast.chaddr[0] = 1;
    let mut bootp = discover.clone();
    bootp.remove(code::MESSAGE_TYPE);
    for (packet, word) in [
        (reply, "not-a-request"),
        (token_ring, "no-mac"),
        (multicast, "no-mac"),
        (bootp, "message"),
        (asked(MessageType::Offer, BIOS), "message"),
        (asked(MessageType::Ack, BIOS), "message"),
    ] {
        assert_eq!(admit(&packet, Mode::Authoritative, Door::Dhcp).err().map(|w| w.word()), Some(word));
    }
    assert_eq!(admit(&asked(MessageType::Request, BIOS), Mode::Proxy, Door::Dhcp).err(), Some(Ignored::Proxy));
}

#[test]
fn a_plain_client_of_a_known_node_gets_its_reservation_without_a_boot_file() {
    let (packet, to, _) = sent(quick(Mode::Authoritative, &asked(MessageType::Discover, PLAIN), &node(Offer::Boot)));
    assert_eq!((packet.yiaddr, to), (NODE, Target::Card(NODE)));
    assert_eq!(
        (packet.get(code::BOOT_FILE), packet.file_text(), packet.siaddr),
        (None, String::new(), Ipv4Addr::UNSPECIFIED)
    );
    let expected: &[(u8, &[u8])] = &[
        (code::SUBNET_MASK, &[255, 255, 255, 0]),
        (code::ROUTER, &[10, 0, 0, 1]),
        (code::DNS, &[10, 0, 0, 2, 10, 0, 0, 1]),
        (code::HOST_NAME, b"c1"),
        (code::NTP, &[10, 0, 0, 1]),
        (code::MTU, &[5, 220]),
        (code::BROADCAST, &[10, 0, 0, 255]),
        (code::LEASE_SECS, &[0, 0, 14, 16]),
    ];
    for (tag, value) in expected {
        assert_eq!(packet.get(*tag), Some(*value), "option {tag}");
    }
}

#[test]
fn a_machine_that_boots_from_its_disk_gets_an_address_and_no_file() {
    let (packet, ..) = sent(quick(Mode::Authoritative, &asked(MessageType::Discover, BIOS), &node(Offer::LocalDisk)));
    assert_eq!((packet.yiaddr, packet.get(code::BOOT_FILE)), (NODE, None));
    // iPXE is told by its script, which can also leave a reason on the console.
    let (packet, ..) = sent(quick(Mode::Authoritative, &asked(MessageType::Discover, IPXE), &node(Offer::LocalDisk)));
    assert_eq!(packet.file_text(), SCRIPT);
}

#[test]
fn port_4011_answers_where_the_question_came_from() {
    let from = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 77), 68);
    for mode in [Mode::Proxy, Mode::Authoritative] {
        for (name, options, file) in [("BIOS", BIOS, "undionly.kpxe"), ("UEFI", UEFI, "snponly.efi")] {
            let mut packet = asked(MessageType::Request, options);
            packet.ciaddr = *from.ip();
            let decision = answer(mode, Door::Boot { from }, &packet, &node(Offer::Boot), &Book::default(), 0);
            let (reply, to, _) = sent(decision);
            assert_eq!((reply.message(), to), (Some(MessageType::Ack), Target::Address(from)), "{name}");
            assert_eq!((reply.file_text().as_str(), reply.yiaddr), (file, Ipv4Addr::UNSPECIFIED), "{name}");
            assert_eq!(reply.get(code::VENDOR_CLASS), Some(&b"PXEClient"[..]), "{name}");
        }
        let discover = asked(MessageType::Discover, BIOS);
        let decision = answer(mode, Door::Boot { from }, &discover, &node(Offer::Boot), &Book::default(), 0);
        assert_eq!(decision, Decision::Ignore(Ignored::Message));
    }
}

#[test]
fn replies_go_where_rfc_2131_says() {
    let relay = Ipv4Addr::new(10, 0, 0, 254);
    let own = Ipv4Addr::new(10, 0, 0, 11);
    let rows: &[(&str, Ipv4Addr, Ipv4Addr, u16, Target)] = &[
        ("relay", relay, own, 0x8000, Target::Address(SocketAddrV4::new(relay, 67))),
        ("has its address", Ipv4Addr::UNSPECIFIED, own, 0x8000, Target::Address(SocketAddrV4::new(own, 68))),
        ("wants a broadcast", Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED, 0x8000, Target::Broadcast),
        ("has none yet", Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED, 0, Target::Card(NODE)),
    ];
    for (name, giaddr, ciaddr, flags, target) in rows {
        let mut packet = asked(MessageType::Discover, BIOS);
        (packet.giaddr, packet.ciaddr, packet.flags) = (*giaddr, *ciaddr, *flags);
        let (reply, to, _) = sent(quick(Mode::Authoritative, &packet, &node(Offer::Boot)));
        assert_eq!(to, *target, "{name}");
        assert_eq!(
            (reply.giaddr, reply.flags, reply.xid, reply.chaddr),
            (*giaddr, *flags, 42, packet.chaddr),
            "{name}"
        );
    }
    let (_, to, _) = sent(quick(Mode::Proxy, &asked(MessageType::Discover, BIOS), &node(Offer::Boot)));
    assert_eq!(to, Target::Broadcast, "a proxy gives no address to send to");
}

#[test]
fn a_relay_of_another_network_is_not_served_unless_it_selects_ours() {
    let relay = Ipv4Addr::new(192, 168, 7, 1);
    let mut packet = asked(MessageType::Discover, BIOS);
    packet.giaddr = relay;
    assert_eq!(quick(Mode::Authoritative, &packet, &node(Offer::Boot)), Decision::Ignore(Ignored::ForeignRelay(relay)));
    packet.set(code::RELAY_AGENT, vec![1, 2, b'a', b'b', 5, 4, 10, 0, 0, 254]);
    let (reply, to, _) = sent(quick(Mode::Authoritative, &packet, &node(Offer::Boot)));
    assert_eq!(to, Target::Address(SocketAddrV4::new(relay, 67)));
    assert_eq!(reply.get(code::RELAY_AGENT), packet.get(code::RELAY_AGENT));
}

#[test]
fn the_question_s_identities_come_back() {
    let uuid = [0u8; 17];
    let packet =
        asked(MessageType::Discover, &[BIOS[0], BIOS[1], (97, &uuid), (61, b"\x01abcdef"), (82, b"\x01\x01x")]);
    for mode in [Mode::Authoritative, Mode::Proxy] {
        let (reply, ..) = sent(quick(mode, &packet, &node(Offer::Boot)));
        for tag in [97, 61, 82] {
            assert_eq!(reply.get(tag), packet.get(tag), "{mode:?} option {tag}");
        }
        assert_eq!(reply.codes().next(), Some(code::MESSAGE_TYPE), "the type comes first");
    }
}

#[test]
fn requests_for_a_reservation_follow_the_table_of_rfc_2131() {
    let foreign = Ipv4Addr::new(10, 0, 0, 9);
    let none = Ipv4Addr::UNSPECIFIED;
    // option 54, option 50, ciaddr
    type Row = (&'static str, Option<Ipv4Addr>, Option<Ipv4Addr>, Ipv4Addr, &'static str);
    let rows: &[Row] = &[
        ("selecting us", Some(SERVER), Some(NODE), none, "ack"),
        ("selecting us, wrong address", Some(SERVER), Some(foreign), none, "nak"),
        ("selecting another", Some(foreign), Some(NODE), none, "other-server"),
        ("init-reboot", None, Some(NODE), none, "ack"),
        ("init-reboot, moved", None, Some(foreign), none, "nak"),
        ("renewing", None, None, NODE, "ack"),
        ("renewing, moved", None, None, foreign, "nak"),
        ("nothing asked", None, None, none, "nak"),
    ];
    for (name, server, address, ciaddr, word) in rows {
        let mut packet = asked(MessageType::Request, PLAIN);
        packet.ciaddr = *ciaddr;
        for (tag, value) in [(code::SERVER_ID, server), (code::REQUESTED_ADDRESS, address)] {
            if let Some(value) = value {
                packet.set(tag, value.octets().to_vec());
            }
        }
        let got = match quick(Mode::Authoritative, &packet, &node(Offer::Boot)) {
            Decision::Send { packet, to, .. } => {
                let message = packet.message().unwrap();
                assert_eq!(packet.yiaddr, if message == MessageType::Ack { NODE } else { none }, "{name}");
                if message == MessageType::Nak {
                    assert_eq!((to, packet.get(code::LEASE_SECS)), (Target::Broadcast, None), "{name}");
                }
                message.word()
            }
            Decision::Ignore(why) => why.word(),
            other => panic!("{name}: {other:?}"),
        };
        assert_eq!(got, *word, "{name}");
    }
}

#[test]
fn a_nak_through_a_relay_is_broadcast_there() {
    let relay = Ipv4Addr::new(10, 0, 0, 254);
    let mut packet = asked(MessageType::Request, &[(50, &[10, 0, 0, 99])]);
    packet.giaddr = relay;
    let (reply, to, _) = sent(quick(Mode::Authoritative, &packet, &node(Offer::Boot)));
    assert_eq!((reply.flags, to), (BROADCAST_FLAG, Target::Address(SocketAddrV4::new(relay, 67))));
}

#[test]
fn a_parked_machine_is_offered_then_leased_then_let_go() {
    let mut book = Book::default();
    let ask = |book: &mut Book, packet: &Packet, now: u64| {
        let decision = answer(Mode::Authoritative, Door::Dhcp, packet, &parked(), book, now);
        if let Decision::Send { change: Some(change), .. } | Decision::Record(change) = &decision {
            book.apply(change);
        }
        decision
    };
    let (offer, _, change) = sent(ask(&mut book, &asked(MessageType::Discover, BIOS), 1000));
    let address = offer.yiaddr;
    assert_eq!(address, pool().first);
    assert_eq!(change, Some(Change::Offer(Lease { mac: MAC, address, until: 1000 + OFFER_MS })));

    let mut request = asked(MessageType::Request, BIOS);
    request.set(code::SERVER_ID, SERVER.octets().to_vec());
    request.set(code::REQUESTED_ADDRESS, address.octets().to_vec());
    let (ack, _, change) = sent(ask(&mut book, &request, 2000));
    assert_eq!((ack.message(), ack.yiaddr), (Some(MessageType::Ack), address));
    assert_eq!(change, Some(Change::Lease(Lease { mac: MAC, address, until: 2000 + LEASE_MS })));

    request.set(code::REQUESTED_ADDRESS, pool().last.octets().to_vec());
    let (nak, ..) = sent(ask(&mut book, &request, 3000));
    assert_eq!(nak.message(), Some(MessageType::Nak), "another address than its own");

    let mut release = asked(MessageType::Release, BIOS);
    release.ciaddr = address;
    assert!(matches!(ask(&mut book, &release, 4000), Decision::Record(Change::Release(_))));
    assert_eq!(book.held(MAC, 4001), None);
    request.remove(code::SERVER_ID);
    assert_eq!(ask(&mut book, &request, 5000), Decision::Ignore(Ignored::NoLease), "left to whoever knows it");
}

#[test]
fn an_offer_that_timed_out_is_not_acknowledged() {
    let mut request = asked(MessageType::Request, BIOS);
    request.set(code::SERVER_ID, SERVER.octets().to_vec());
    request.set(code::REQUESTED_ADDRESS, pool().first.octets().to_vec());
    let mut book = Book::default();
    book.apply(&Change::Offer(Lease { mac: MAC, address: pool().first, until: 50 }));
    let at = |now| sent(answer(Mode::Authoritative, Door::Dhcp, &request, &parked(), &book, now)).0.message();
    assert_eq!((at(49), at(50)), (Some(MessageType::Ack), Some(MessageType::Nak)));
}

#[test]
fn a_declined_address_is_recorded_only_from_its_holder() {
    let address = pool().first;
    let book = Book::new([Lease { mac: MAC, address, until: 100 }]);
    let mut decline = asked(MessageType::Decline, BIOS);
    decline.set(code::REQUESTED_ADDRESS, address.octets().to_vec());
    let holder = answer(Mode::Authoritative, Door::Dhcp, &decline, &parked(), &book, 0);
    assert_eq!(holder, Decision::Record(Change::Decline(Lease { mac: MAC, address, until: DECLINED_MS })));
    let stranger = answer(Mode::Authoritative, Door::Dhcp, &decline, &parked(), &Book::default(), 0);
    assert_eq!(stranger, Decision::Ignore(Ignored::NoLease));
    assert_eq!(quick(Mode::Authoritative, &decline, &node(Offer::Boot)), Decision::Ignore(Ignored::AddressInUse(NODE)));
}

#[test]
fn inform_is_answered_without_a_lease() {
    let mut inform = asked(MessageType::Inform, PLAIN);
    inform.ciaddr = NODE;
    let (ack, to, _) = sent(quick(Mode::Authoritative, &inform, &node(Offer::Boot)));
    assert_eq!((ack.message(), ack.yiaddr), (Some(MessageType::Ack), Ipv4Addr::UNSPECIFIED));
    assert_eq!((ack.get(code::LEASE_SECS), to), (None, Target::Address(SocketAddrV4::new(NODE, 68))));
}

#[test]
fn every_reply_fits_what_the_client_takes() {
    for (said, max) in [(None, 548), (Some(300u16), 548), (Some(1260), 1232), (Some(9000), 1472)] {
        let mut packet = asked(MessageType::Discover, IPXE);
        if let Some(said) = said {
            packet.set(code::MAX_SIZE, said.to_be_bytes().to_vec());
        }
        assert_eq!(size_max(&packet), max);
        let (reply, ..) = sent(quick(Mode::Authoritative, &packet, &node(Offer::Boot)));
        let bytes = reply.encode(max);
        assert!(bytes.len() <= max);
        assert_eq!(Packet::parse(&bytes), Ok(reply), "nothing was left out");
    }
}

proptest! {
    #[test]
    fn any_packet_is_answered_or_ignored(
            message in 0u8..10,
            class in proptest::sample::select(vec![&b"PXEClient"[..], b"HTTPClient", b"x"]),
            tail in proptest::collection::vec(any::<u8>(), 0..400),
            proxy: bool,
            boot: bool,
        ) {
            let mut bytes = asked(MessageType::Discover, &[]).encode(usize::MAX);
            bytes.truncate(240);
            bytes.extend([code::MESSAGE_TYPE, 1, message, code::VENDOR_CLASS, class.len() as u8]);
            bytes.extend(class);
            bytes.extend(tail);
        if let Ok(packet) = Packet::parse(&bytes) {
            let mode = if proxy { Mode::Proxy } else { Mode::Authoritative };
            let door = if boot { Door::Boot { from: SocketAddrV4::new(NODE, 68) } } else { Door::Dhcp };
            for placement in [node(Offer::Boot), parked(), Placement::Ignore("no".into())] {
                if let Decision::Send { packet: reply, .. } = answer(mode, door, &packet, &placement, &Book::default(), 5) {
                    prop_assert!(Packet::parse(&reply.encode(size_max(&packet))).is_ok());
                    prop_assert_eq!(reply.op, 2);
                }
            }
        }
    }
}
