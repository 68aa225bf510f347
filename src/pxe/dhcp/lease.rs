//! Addresses of parked machines: who has which, until when. Pure: the server makes a [`Lease`]
//! durable through [`Leases`] before it acknowledges it. Nodes of the site have reservations
//! and never stand here.

use crate::pxe::Pool;
use crate::site::Mac;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// A lease lasts this long (ms). iPXE never renews: the server extends it while the machine asks
/// for its script ([`Book::extended`]).
pub const LEASE_MS: u64 = 3600 * 1000;
/// An offer keeps its address this long (ms) for the request that should follow; EDK2 may take 10 s.
pub const OFFER_MS: u64 = 30 * 1000;
/// A declined address rests this long (ms): somebody else uses it.
pub const DECLINED_MS: u64 = 600 * 1000;

/// One row of the durable table; the address is its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    pub mac: Mac,
    pub address: Ipv4Addr,
    /// Milliseconds since the epoch.
    pub until: u64,
}

/// The durable table of leases.
pub trait Leases {
    /// All rows, also expired ones: a machine gets its old address again. Called once, at start.
    fn load(&mut self) -> Result<Vec<Lease>, String>;
    /// Inserts or replaces the row of this address. `Ok` means that it is on the disk: the
    /// acknowledgement is sent after it, and is not sent after an `Err`.
    fn commit(&mut self, lease: &Lease) -> Result<(), String>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Offered,
    Leased,
    Declined,
}

/// What a DHCP message does to the book.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Remembered for the request that follows; not durable.
    Offer(Lease),
    /// Durable before the acknowledgement.
    Lease(Lease),
    /// The client gave it back; `until` is now.
    Release(Lease),
    /// Somebody else uses the address; `until` is the end of its rest. Not durable.
    Decline(Lease),
}

/// All leases and open offers.
#[derive(Default)]
pub struct Book {
    entries: BTreeMap<Ipv4Addr, (Lease, State)>,
}

impl Book {
    /// The book as the durable table has it.
    pub fn new(rows: impl IntoIterator<Item = Lease>) -> Self {
        Book { entries: rows.into_iter().map(|lease| (lease.address, (lease, State::Leased))).collect() }
    }

    /// The address that `mac` holds or was offered, unexpired.
    pub fn held(&self, mac: Mac, now: u64) -> Option<Ipv4Addr> {
        self.of(mac).find(|(lease, _)| lease.until > now).map(|(lease, _)| lease.address)
    }

    /// The address for `mac`: its own or former one, else the wanted one if free, else one that
    /// nobody had, else the one that expired longest ago. `None`: the pool is exhausted.
    pub fn pick(&self, mac: Mac, wanted: Option<Ipv4Addr>, pool: &Pool, now: u64) -> Option<Ipv4Addr> {
        let inside = |a: &Ipv4Addr| pool.contains(*a);
        let free = |a: &Ipv4Addr| self.entries.get(a).is_none_or(|(lease, _)| lease.until <= now);
        let own = self.of(mac).map(|(lease, _)| lease.address).find(inside);
        own.or(wanted.filter(|a| inside(a) && free(a))).or_else(|| self.untouched(pool)).or_else(|| {
            let expired = self.entries.values().map(|(lease, _)| lease).filter(|l| l.until <= now);
            expired.filter(|l| inside(&l.address)).min_by_key(|l| l.until).map(|l| l.address)
        })
    }

    /// The lease of `mac` prolonged, when less than half of it is left.
    pub fn extended(&self, mac: Mac, now: u64) -> Option<Lease> {
        let (lease, _) = self.of(mac).find(|(lease, state)| *state == State::Leased && lease.until > now)?;
        (lease.until < now + LEASE_MS / 2).then_some(Lease { until: now + LEASE_MS, ..*lease })
    }

    /// Brings a change in. A machine has one address: what it had elsewhere is given up.
    pub fn apply(&mut self, change: &Change) {
        let (lease, state) = match change {
            Change::Offer(lease) => (lease, State::Offered),
            Change::Lease(lease) | Change::Release(lease) => (lease, State::Leased),
            Change::Decline(lease) => (lease, State::Declined),
        };
        if matches!(change, Change::Offer(_)) && self.is_leased(lease) {
            return; // a new DISCOVER does not shorten a running lease
        }
        self.entries.retain(|address, (old, kept)| {
            *address == lease.address || old.mac != lease.mac || *kept == State::Declined
        });
        self.entries.insert(lease.address, (*lease, state));
    }

    fn is_leased(&self, offer: &Lease) -> bool {
        self.entries.get(&offer.address).is_some_and(|(lease, state)| {
            *state == State::Leased && lease.mac == offer.mac && lease.until > offer.until
        })
    }

    fn of(&self, mac: Mac) -> impl Iterator<Item = &(Lease, State)> {
        self.entries.values().filter(move |(lease, state)| lease.mac == mac && *state != State::Declined)
    }

    fn untouched(&self, pool: &Pool) -> Option<Ipv4Addr> {
        (u32::from(pool.first)..=u32::from(pool.last))
            .map(Ipv4Addr::from)
            .find(|a| !self.entries.contains_key(a) && !pool.excluded.contains(a))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mac(last: u8) -> Mac {
        Mac([2, 0, 0, 0, 0, last])
    }

    fn ip(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 0, last)
    }

    fn pool() -> Pool {
        Pool { first: ip(10), last: ip(13), excluded: vec![ip(11)] }
    }

    fn lease(m: u8, a: u8, until: u64) -> Lease {
        Lease { mac: mac(m), address: ip(a), until }
    }

    #[test]
    fn a_machine_gets_its_old_address_again() {
        let book = Book::new([lease(1, 12, 5)]);
        assert_eq!(book.pick(mac(1), Some(ip(10)), &pool(), 100), Some(ip(12)));
        assert_eq!(book.held(mac(1), 100), None);
    }

    #[test]
    fn an_exhausted_pool_gives_nothing_and_an_expired_address_goes_last() {
        let mut book = Book::new([lease(1, 10, 50), lease(2, 12, 40)]);
        assert_eq!(book.pick(mac(9), None, &pool(), 100), Some(ip(13)));
        book.apply(&Change::Lease(lease(3, 13, 500)));
        assert_eq!(book.pick(mac(9), None, &pool(), 100), Some(ip(12)), "expired longest ago");
        assert_eq!(book.pick(mac(9), None, &pool(), 30), None);
    }

    #[test]
    fn a_declined_address_rests() {
        let mut book = Book::default();
        book.apply(&Change::Decline(lease(1, 10, 1000)));
        assert_eq!(book.pick(mac(1), None, &pool(), 0), Some(ip(12)));
    }

    #[test]
    fn an_offer_never_shortens_a_lease() {
        let mut book = Book::new([lease(1, 10, 1000)]);
        book.apply(&Change::Offer(lease(1, 10, 30)));
        assert_eq!(book.held(mac(1), 500), Some(ip(10)));
    }

    #[test]
    fn a_lease_is_extended_in_its_second_half() {
        let book = Book::new([lease(1, 10, LEASE_MS)]);
        assert_eq!(book.extended(mac(1), 1), None);
        assert_eq!(book.extended(mac(1), LEASE_MS / 2 + 1).map(|l| l.until), Some(LEASE_MS / 2 * 3 + 1));
        assert_eq!(book.extended(mac(1), LEASE_MS), None, "expired");
    }

    proptest! {
        #[test]
        fn no_address_is_ever_given_to_two_machines(steps in proptest::collection::vec((0u8..6, 0u64..40, 0u8..4), 1..60)) {
            let (mut book, mut now) = (Book::default(), 0);
            let mut holders: BTreeMap<Ipv4Addr, (Mac, u64)> = BTreeMap::new();
            for (who, pause, kind) in steps {
                now += pause;
                let Some(address) = book.pick(mac(who), None, &pool(), now) else { continue };
                prop_assert!(pool().first <= address && address <= pool().last && address != ip(11));
                let lease = Lease { mac: mac(who), address, until: now + 60 };
                match kind {
                    0 => book.apply(&Change::Offer(lease)),
                    1 => {
                        book.apply(&Change::Release(Lease { until: now, ..lease }));
                        holders.remove(&address);
                    }
                    _ => {
                        if let Some((other, until)) = holders.get(&address) {
                            prop_assert!(*other == mac(who) || *until <= now, "{address} twice");
                        }
                        book.apply(&Change::Lease(lease));
                        holders.insert(address, (mac(who), now + 60));
                    }
                }
            }
        }
    }
}
