//! DHCP's durable leases: a table in the ledger's file.

use crate::ledger::sqlite;
use crate::pxe::dhcp::lease::{Lease, Leases};

pub struct LeaseTable(pub sqlite::Leases);

impl Leases for LeaseTable {
    fn load(&mut self) -> Result<Vec<Lease>, String> {
        let rows = self.0.all().map_err(|e| format!("{e:#}"))?;
        Ok(rows.into_iter().map(|r| Lease { mac: r.mac, address: r.address, until: r.expires_ms }).collect())
    }

    fn commit(&mut self, lease: &Lease) -> Result<(), String> {
        let row = sqlite::Lease { mac: lease.mac, address: lease.address, expires_ms: lease.until };
        self.0.put(&row).map_err(|e| format!("{e:#}"))
    }
}
