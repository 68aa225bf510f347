//! Tables for single rules, then a client against the machine over a seeded bad network.

use super::super::packet::{Packet, encode_ack, encode_error};
use super::*;
use proptest::prelude::*;

fn request(options: &[(&str, &str)]) -> Request {
    let options = options.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
    Request { name: "f".into(), octet: true, options }
}

fn oack(options: &[(&str, &str)], size: u64) -> Option<Vec<(String, String)>> {
    match Transfer::new(&request(options), size, 0).packets_to_send() {
        Send::Oack(bytes) => match Packet::parse(&bytes).unwrap() {
            Packet::Oack(options) => Some(options),
            other => panic!("{other:?}"),
        },
        _ => None,
    }
}

/// A transfer that has begun, with its first window sent.
fn sending(options: &[(&str, &str)], size: u64) -> Transfer {
    let mut transfer = Transfer::new(&request(options), size, 0);
    if let Send::Oack(_) = transfer.packets_to_send() {
        transfer.on_packet(&encode_ack(0), 0);
        transfer.packets_to_send();
    }
    transfer
}

fn data(first: u64, count: u64) -> Send {
    Send::Data { first, count }
}

#[test]
fn options_are_agreed_as_the_rfcs_say() {
    type Pairs = &'static [(&'static str, &'static str)];
    let rows: &[(&str, Pairs, Option<Pairs>)] = &[
        ("none", &[], None),
        ("block", &[("blksize", "1432")], Some(&[("blksize", "1432")])),
        ("block capped", &[("blksize", "65464")], Some(&[("blksize", "1468")])),
        ("block too small", &[("blksize", "7")], None),
        ("block too large", &[("blksize", "65465")], None),
        ("block no number", &[("blksize", "many")], None),
        ("window capped", &[("windowsize", "65535")], Some(&[("windowsize", "64")])),
        ("window zero", &[("windowsize", "0")], None),
        ("time-out echoed", &[("timeout", "255")], Some(&[("timeout", "255")])),
        ("time-out out of range", &[("timeout", "256")], None),
        ("size", &[("tsize", "0")], Some(&[("tsize", "1000")])),
        ("unknown", &[("multicast", ""), ("utimeout", "3")], None),
        ("first of two", &[("blksize", "600"), ("blksize", "700")], Some(&[("blksize", "600")])),
    ];
    for (name, asked, expected) in rows {
        let expected = expected
            .map(|pairs| pairs.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect::<Vec<(String, String)>>());
        assert_eq!(oack(asked, 1000), expected, "{name}");
    }
    assert_eq!(oack(&[("tsize", "0")], 0), None, "an empty file says no size");
}

#[test]
fn a_file_of_whole_blocks_ends_with_an_empty_one() {
    for (size, blocks) in [(0, 1), (1, 1), (511, 1), (512, 2), (1024, 3)] {
        let mut transfer = Transfer::new(&request(&[]), size, 0);
        for block in 1..=blocks {
            assert_eq!(transfer.packets_to_send(), data(block, 1), "size {size}");
            transfer.on_packet(&encode_ack(block as u16), 0);
        }
        assert_eq!(transfer.end(), Some(&End::Done), "size {size}");
        assert_eq!(transfer.acknowledged_bytes(), size);
        assert_eq!(transfer.block_range(blocks).1 as u64, size % 512);
    }
}

#[test]
fn a_repeated_ack_makes_no_apprentice() {
    let mut transfer = Transfer::new(&request(&[]), 5000, 0);
    assert_eq!(transfer.packets_to_send(), data(1, 1));
    transfer.on_packet(&encode_ack(1), 10);
    assert_eq!(transfer.packets_to_send(), data(2, 1));
    transfer.on_packet(&encode_ack(1), 20);
    assert_eq!(transfer.packets_to_send(), Send::Nothing);
    transfer.on_timeout(1009);
    assert_eq!(transfer.packets_to_send(), Send::Nothing, "too early");
    transfer.on_timeout(1010);
    assert_eq!(transfer.packets_to_send(), data(2, 1));
}

#[test]
fn an_ack_inside_the_window_goes_on_from_there_once() {
    let mut transfer = sending(&[("windowsize", "8")], 512 * 100);
    transfer.on_packet(&encode_ack(3), 1);
    assert_eq!(transfer.packets_to_send(), data(4, 8));
    for _ in 0..5 {
        transfer.on_packet(&encode_ack(3), 2);
        assert_eq!(transfer.packets_to_send(), Send::Nothing);
    }
    transfer.on_packet(&encode_ack(11), 3);
    assert_eq!(transfer.packets_to_send(), data(12, 8));
    transfer.on_packet(&encode_ack(11), 4);
    assert_eq!(transfer.packets_to_send(), data(12, 8), "the first block of the window was lost");
    transfer.on_packet(&encode_ack(11), 5);
    assert_eq!(transfer.packets_to_send(), Send::Nothing);
}

#[test]
fn acks_of_what_was_never_sent_are_noise() {
    let mut transfer = sending(&[("windowsize", "4")], 512 * 100);
    for block in [5, 9, 60000, 65535] {
        transfer.on_packet(&encode_ack(block), 1);
        assert_eq!((transfer.packets_to_send(), transfer.acknowledged_bytes()), (Send::Nothing, 0), "{block}");
    }
}

#[test]
fn the_counter_wraps_to_zero() {
    let mut transfer = sending(&[("blksize", "8"), ("windowsize", "64")], 8 * 200_000);
    let mut last = 64;
    while transfer.end().is_none() {
        transfer.on_packet(&encode_ack(last as u16), 0);
        if let Send::Data { first, count } = transfer.packets_to_send() {
            assert_eq!(first, last + 1);
            last = first + count - 1;
        }
    }
    assert_eq!((last, transfer.end()), (200_001, Some(&End::Done)));
}

#[test]
fn errors_of_the_client_end_it_with_their_meaning() {
    let mut probe = Transfer::new(&request(&[("tsize", "0")]), 5000, 0);
    probe.packets_to_send();
    probe.on_packet(&encode_error(8, "User aborted"), 1);
    assert_eq!(probe.end(), Some(&End::Probe));
    let mut closed = sending(&[], 5000);
    closed.on_packet(&encode_error(0, "closed"), 1);
    assert_eq!(closed.end(), Some(&End::Closed { code: 0, text: "closed".into() }));
    assert_eq!((closed.packets_to_send(), closed.next_deadline()), (Send::Nothing, None));
}

#[test]
fn a_silent_client_is_given_up_in_bounded_time() {
    for options in [&[][..], &[("timeout", "2")], &[("timeout", "255")]] {
        let mut transfer = Transfer::new(&request(options), 5000, 0);
        let (mut sent, mut now) = (0, 0);
        while let Some(deadline) = transfer.next_deadline() {
            sent += u32::from(transfer.packets_to_send() != Send::Nothing);
            now = deadline;
            transfer.on_timeout(now);
        }
        assert_eq!(transfer.end(), Some(&End::Silent));
        assert!(sent <= REPEAT_MAX + 1 && now <= SILENCE_MAX_MS, "{options:?}: {sent} in {now} ms");
    }
}

/// A small generator of our own, so that a seed says everything.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % sides
    }
}

/// A datagram on its way: when it arrives, and what it is.
type OnTheWay<T> = Vec<(u64, T)>;

/// Loses, repeats and delays.
fn submit<T: Clone>(wire: &mut OnTheWay<T>, what: T, now: u64, dice: &mut Dice, loss_percent: u64) {
    let copies = if dice.roll(100) < 5 { 2 } else { 1 };
    for _ in 0..copies {
        if dice.roll(100) >= loss_percent {
            wire.push((now + 1 + dice.roll(4), what.clone()));
        }
    }
}

fn arrived<T>(wire: &mut OnTheWay<T>, now: u64) -> Vec<T> {
    let (here, later) = std::mem::take(wire).into_iter().partition(|(at, _)| *at <= now);
    *wire = later;
    let here: OnTheWay<T> = here;
    here.into_iter().map(|(_, what)| what).collect()
}

/// A client by RFC 7440: acknowledges each full window, the last block and, once, each gap.
struct Client {
    window: u64,
    /// Blocks received in order.
    have: u64,
    in_window: u64,
    gap_told: bool,
    started: bool,
    last_heard: u64,
    total: u64,
}

impl Client {
    fn on_oack(&mut self) -> Option<u64> {
        self.started = true;
        (self.have == 0).then_some(0)
    }

    fn on_data(&mut self, block: u64) -> Option<u64> {
        self.started = true;
        if block == self.have + 1 {
            self.have = block;
            self.in_window += 1;
            self.gap_told = false;
            let full = self.in_window == self.window || block == self.total;
            self.in_window = if full { 0 } else { self.in_window };
            return full.then_some(block);
        }
        self.in_window = 0;
        let tell = block > self.have && !std::mem::replace(&mut self.gap_told, true);
        tell.then_some(self.have)
    }
}

/// Runs one transfer over a bad network; returns whether the client got everything, and the
/// number of blocks sent.
fn simulate(seed: u64, loss_percent: u64, window: u64, total: u64) -> (bool, u64) {
    let mut dice = Dice(seed);
    let size = (total - 1) * 8 + 3;
    let window_text = window.to_string();
    let mut server = Transfer::new(&request(&[("blksize", "8"), ("windowsize", &window_text)]), size, 0);
    let mut client = Client { window, have: 0, in_window: 0, gap_told: false, started: false, last_heard: 0, total };
    let (mut to_client, mut to_server): (OnTheWay<Send>, OnTheWay<u64>) = (Vec::new(), Vec::new());
    let mut sent = 0;
    for now in 0..600_000 {
        for block in arrived(&mut to_server, now) {
            server.on_packet(&encode_ack(block as u16), now);
        }
        if server.next_deadline().is_some_and(|d| d <= now) {
            server.on_timeout(now);
        }
        match server.packets_to_send() {
            Send::Nothing => {}
            Send::Data { first, count } => {
                sent += count;
                for block in first..first + count {
                    submit(&mut to_client, data(block, 1), now, &mut dice, loss_percent);
                }
            }
            oack => submit(&mut to_client, oack, now, &mut dice, loss_percent),
        }
        for packet in arrived(&mut to_client, now) {
            client.last_heard = now;
            let ack = match packet {
                Send::Data { first, .. } => client.on_data(first),
                _ => client.on_oack(),
            };
            if let Some(block) = ack {
                submit(&mut to_server, block, now, &mut dice, loss_percent);
            }
        }
        // The client repeats its last word too, as all of them do.
        if client.started && now >= client.last_heard + 1500 {
            client.last_heard = now;
            client.in_window = 0;
            submit(&mut to_server, client.have, now, &mut dice, loss_percent);
        }
        if server.end().is_some() {
            break;
        }
    }
    (client.have == total && server.end() == Some(&End::Done), sent)
}

#[test]
fn a_bad_network_loses_no_file_and_multiplies_nothing() {
    for seed in 0..300u64 {
        let window = [1, 2, 4, 16, 64][(seed % 5) as usize];
        let (whole, sent) = simulate(seed, 5, window, 200);
        assert!(whole, "seed {seed} window {window}: the file is not whole");
        // Go-back-N repeats at most a window for each loss, and some 25 packets are lost or late.
        assert!(sent < 200 * (4 + window), "seed {seed} window {window}: {sent} blocks for 200");
    }
}

#[test]
fn a_perfect_network_repeats_nothing() {
    let mut transfer = sending(&[("windowsize", "16")], 512 * 1000);
    let mut last = 16u64;
    while transfer.end().is_none() {
        transfer.on_packet(&encode_ack(last as u16), 0);
        if let Send::Data { first, count } = transfer.packets_to_send() {
            last = first + count - 1;
        }
    }
    assert_eq!(transfer.repeated_blocks(), 0);
}

proptest! {
    #[test]
    fn no_packet_breaks_a_transfer(
        size in 0u64..100_000,
        window in 0u32..70_000,
        block in 0u32..70_000,
        packets in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..20), 0u8..3, any::<u16>()), 0..60),
    ) {
        let options = [("blksize", block.to_string()), ("windowsize", window.to_string())];
        let options: Vec<(&str, &str)> = options.iter().map(|(n, v)| (*n, v.as_str())).collect();
        let mut transfer = Transfer::new(&request(&options), size, 0);
        for (now, (bytes, kind, block)) in packets.into_iter().enumerate() {
            match kind {
                0 => transfer.on_packet(&bytes, now as u64),
                1 => transfer.on_packet(&encode_ack(block % 128), now as u64),
                _ => transfer.on_timeout(now as u64 * 1000),
            }
            if let Send::Data { first, count } = transfer.packets_to_send() {
                prop_assert!(first >= 1 && count <= WINDOW_MAX_BLOCKS);
                let (offset, length) = transfer.block_range(first + count - 1);
                prop_assert!(offset + length as u64 <= size);
            }
            prop_assert!(transfer.acknowledged_bytes() <= size);
        }
    }
}
