//! One file's way to one client: which blocks to send when, as a state machine without sockets
//! and without the file's bytes. Time is passed in (ms).
//!
//! ```text
//!            request with options            ACK 0
//! start ───► Offered (OACK sent) ───────────────────► Sending ──ACK of the last block──► Done
//!   └────── request without options ────────────────────┘ │
//!                 any state: ERROR ─► Probe or Closed; too many time-outs ─► Silent
//! ```
//!
//! Blocks are counted from 1 in 64 bits; on the wire the number wraps to 0 (GRUB and iPXE expect
//! that). With a window of 1 a repeated ACK never makes us send again, only a time-out does
//! (RFC 1123 §4.2.3.1, the Sorcerer's Apprentice). With a larger window (RFC 7440) the ACK of a
//! block inside the window means "go on from here", at once but only once for each place: a client
//! that repeats it for every further packet must not multiply the window.

use super::packet::{DATA_HEADER_BYTES, Packet, Request, encode_oack, error};

/// RFC 1350's block, when nothing else was agreed.
pub const BLOCK_BYTES: u16 = 512;
/// The least block of RFC 2348.
const BLOCK_MIN_BYTES: u64 = 8;
/// The most that fits into a frame of 1500 bytes with IP, UDP and TFTP headers: firmware does not
/// put fragments together reliably.
pub const BLOCK_MAX_BYTES: u64 = 1468;
/// Blocks on the way at once; more than this overruns a client's socket buffer (212 KB of memory,
/// some 90 full frames, by Linux's default).
pub const WINDOW_MAX_BLOCKS: u64 = 64;
/// The first time-out (ms) when the client named none; doubled up to [`TIMEOUT_MAX_MS`].
const TIMEOUT_MS: u64 = 1000;
/// The longest pause between repetitions (ms) when the client named none.
const TIMEOUT_MAX_MS: u64 = 4000;
/// Repetitions without any progress before a transfer is given up.
pub const REPEAT_MAX: u32 = 6;
/// A client may ask for up to 255 s (RFC 2349), but nothing is held for longer than this in all.
pub const SILENCE_MAX_MS: u64 = 60_000;

/// How a transfer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The last block is acknowledged.
    Done,
    /// The client only wanted to know the size: it refused our options (ERROR 8), as EDK2 does.
    Probe,
    /// The client ended it, with its code and text. Code 0 is GRUB's way to close a file.
    Closed { code: u16, text: String },
    /// No answer for too long.
    Silent,
}

/// What is to be sent now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Send {
    Nothing,
    Oack(Vec<u8>),
    /// This many blocks from this one on (counted from 1).
    Data {
        first: u64,
        count: u64,
    },
}

/// The state of one transfer.
#[derive(Clone, Debug)]
pub struct Transfer {
    size: u64,
    block_bytes: u64,
    window: u64,
    /// From option `timeout`: then each pause is exactly this (ms).
    agreed_timeout: Option<u64>,
    oack: Option<Vec<u8>>,
    /// The OACK is not yet acknowledged.
    offered: bool,
    /// The first block that is not acknowledged.
    base: u64,
    /// The next block to send.
    next: u64,
    /// The OACK is to be sent.
    oack_due: bool,
    /// The place from which an ACK already made us send again.
    resent_at: u64,
    repeats: u32,
    deadline: u64,
    silent_since: u64,
    /// Blocks sent more than once.
    repeated_blocks: u64,
    end: Option<End>,
}

impl Transfer {
    /// Begins a transfer of `size` bytes, with as much of the client's options as we agree to.
    pub fn new(request: &Request, size: u64, now: u64) -> Self {
        let agreed = Agreed::from(&request.options, size);
        let mut transfer = Transfer {
            size,
            block_bytes: agreed.block.unwrap_or(u64::from(BLOCK_BYTES)),
            window: agreed.window.unwrap_or(1),
            agreed_timeout: agreed.timeout_secs.map(|s| s * 1000),
            offered: !agreed.answer.is_empty(),
            oack_due: !agreed.answer.is_empty(),
            oack: (!agreed.answer.is_empty()).then(|| encode_oack(&agreed.answer)),
            base: 1,
            next: 1,
            resent_at: 0,
            repeats: 0,
            deadline: 0,
            silent_since: now,
            repeated_blocks: 0,
            end: None,
        };
        transfer.rearm(now);
        transfer
    }

    /// Takes one datagram from the client in.
    pub fn on_packet(&mut self, bytes: &[u8], now: u64) {
        if self.end.is_some() {
            return;
        }
        match Packet::parse(bytes) {
            Ok(Packet::Ack(0)) if self.offered => {
                self.offered = false;
                self.progress(now);
            }
            Ok(Packet::Ack(block)) if !self.offered => self.on_ack(block, now),
            Ok(Packet::Error { code: error::OPTIONS, .. }) if self.oack.is_some() && self.base == 1 => {
                self.end = Some(End::Probe);
            }
            Ok(Packet::Error { code, text }) => self.end = Some(End::Closed { code, text }),
            // A repeated request is the server's matter; the rest is noise.
            _ => {}
        }
    }

    fn on_ack(&mut self, wire: u16, now: u64) {
        // The block of this number that is nearest after the last acknowledged one.
        let ahead = u64::from(wire.wrapping_sub((self.base - 1) as u16));
        let block = self.base - 1 + ahead;
        if block >= self.next {
            return; // never sent: from an older turn of the counter, or noise
        }
        if ahead > 0 {
            self.base = block + 1;
            self.progress(now);
            if self.base > self.blocks() {
                self.end = Some(End::Done);
            } else if self.base < self.next {
                self.go_back();
            }
        } else if self.window > 1 && self.resent_at != self.base && self.next > self.base {
            self.go_back();
        }
    }

    /// Sends on from the first block that is not acknowledged.
    fn go_back(&mut self) {
        self.resent_at = self.base;
        self.repeated_blocks += self.next - self.base;
        self.next = self.base;
    }

    /// To be called when [`next_deadline`](Self::next_deadline) has passed: repeats what is not
    /// acknowledged, or gives up.
    pub fn on_timeout(&mut self, now: u64) {
        if self.end.is_some() || now < self.deadline {
            return;
        }
        if self.repeats >= REPEAT_MAX || now >= self.silent_since + SILENCE_MAX_MS {
            self.end = Some(End::Silent);
            return;
        }
        self.repeats += 1;
        if self.offered {
            self.oack_due = true;
        } else {
            self.go_back();
        }
        self.rearm(now);
    }

    /// When [`on_timeout`](Self::on_timeout) is to be called (ms).
    pub fn next_deadline(&self) -> Option<u64> {
        self.end.is_none().then_some(self.deadline)
    }

    /// What is to be sent now; it counts as sent.
    pub fn packets_to_send(&mut self) -> Send {
        if self.end.is_some() {
            return Send::Nothing;
        }
        if self.offered {
            let due = std::mem::take(&mut self.oack_due);
            return self.oack.clone().filter(|_| due).map_or(Send::Nothing, Send::Oack);
        }
        let end = (self.base + self.window).min(self.blocks() + 1);
        let first = self.next;
        if first >= end {
            return Send::Nothing;
        }
        self.next = end;
        Send::Data { first, count: end - first }
    }

    /// How it ended, once it did.
    pub fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// The agreed block size in bytes.
    pub fn block_bytes(&self) -> usize {
        self.block_bytes as usize
    }

    /// The agreed window in blocks.
    pub fn window(&self) -> u64 {
        self.window
    }

    /// Bytes of the file that the client has acknowledged.
    pub fn acknowledged_bytes(&self) -> u64 {
        ((self.base - 1) * self.block_bytes).min(self.size)
    }

    /// Blocks that were sent again.
    pub fn repeated_blocks(&self) -> u64 {
        self.repeated_blocks
    }

    /// Whether the client has answered anything yet: until then a repeated request is a repetition.
    pub fn answered(&self) -> bool {
        self.base > 1 || (self.oack.is_some() && !self.offered)
    }

    /// The bytes of the file in this block (counted from 1): offset and length. The last block is
    /// shorter than the block size, if need be empty (RFC 1350 §6).
    pub fn block_range(&self, block: u64) -> (u64, usize) {
        let offset = (block.saturating_sub(1) * self.block_bytes).min(self.size);
        (offset, (self.size - offset).min(self.block_bytes) as usize)
    }

    fn blocks(&self) -> u64 {
        self.size / self.block_bytes + 1
    }

    fn progress(&mut self, now: u64) {
        self.repeats = 0;
        self.silent_since = now;
        self.rearm(now);
    }

    fn rearm(&mut self, now: u64) {
        let grown = (TIMEOUT_MS << self.repeats.min(8)).min(TIMEOUT_MAX_MS);
        let pause = self.agreed_timeout.unwrap_or(grown);
        self.deadline = (now + pause).min(self.silent_since + SILENCE_MAX_MS);
    }
}

/// The longest packet that a client of a read sends is its request.
pub const FROM_CLIENT_MAX_BYTES: usize = BLOCK_BYTES as usize + DATA_HEADER_BYTES;

/// What was agreed of the client's options, and the OACK that says so.
#[derive(Default)]
struct Agreed {
    block: Option<u64>,
    window: Option<u64>,
    timeout_secs: Option<u64>,
    answer: Vec<(String, String)>,
}

impl Agreed {
    /// Options with values out of range are left out of the answer, as if unknown (RFC 2347).
    fn from(options: &[(String, String)], size: u64) -> Self {
        let mut agreed = Agreed::default();
        for (name, value) in options {
            if agreed.answer.iter().any(|(known, _)| known == name) {
                continue;
            }
            let Ok(value) = value.parse::<u64>() else { continue };
            let answer = match (name.as_str(), value) {
                ("blksize", BLOCK_MIN_BYTES..=65464) => *agreed.block.insert(value.min(BLOCK_MAX_BYTES)),
                ("windowsize", 1..=65535) => *agreed.window.insert(value.min(WINDOW_MAX_BLOCKS)),
                // The value must be echoed as it is (RFC 2349 §3).
                ("timeout", 1..=255) => *agreed.timeout_secs.insert(value),
                // curl takes "tsize 0" for an error; an empty file needs no size.
                ("tsize", _) if size > 0 => size,
                _ => continue,
            };
            agreed.answer.push((name.clone(), answer.to_string()));
        }
        agreed
    }
}

#[cfg(test)]
mod tests;
