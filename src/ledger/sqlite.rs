//! The event log and the leases in one SQLite file: WAL, synchronous=FULL, so that what was
//! answered survives a kill and a power cut. A file of a newer kiln is refused.

use super::event::{Event, Recorded, VERSION};
use super::log::{AppendError, Log, Wake};
use super::witness::Witness;
use anyhow::{Context, Result, bail};
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Stored in `user_version`. Raised when an older kiln could not read the file any more.
pub const SCHEMA: i64 = 1;
/// How long a connection waits for another's transaction.
const BUSY: Duration = Duration::from_secs(10);

const TABLES: &str = "
CREATE TABLE IF NOT EXISTS event(
    rev INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, v INTEGER NOT NULL, subject TEXT, body TEXT NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS event_subject ON event(subject, rev);
CREATE TABLE IF NOT EXISTS lease(
    mac TEXT PRIMARY KEY, address TEXT NOT NULL UNIQUE, expires_ms INTEGER NOT NULL) STRICT;
";

/// The log, for the one writer.
pub struct Sqlite {
    connection: Connection,
    wakes: Vec<Wake>,
    witness: Option<Witness>,
}

/// Opens a connection with our durability, making the file if needed.
fn open(path: &Path) -> Result<Connection> {
    let connection = Connection::open(path).with_context(|| format!("opening ledger {}", path.display()))?;
    connection.busy_timeout(BUSY)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    Ok(connection)
}

impl Sqlite {
    /// Opens or makes the ledger. The file is readable by its owner only.
    pub fn open(path: &Path) -> Result<Sqlite> {
        if !path.exists() {
            crate::sys::files::write_atomic(path, b"", 0o600)?;
        }
        let connection = open(path)?;
        refuse_newer_schema(&connection, path)?;
        connection.execute_batch(TABLES).with_context(|| format!("preparing ledger {}", path.display()))?;
        connection.pragma_update(None, "user_version", SCHEMA)?;
        refuse_newer_events(&connection, path)?;
        Ok(Sqlite { connection, wakes: Vec::new(), witness: None })
    }

    /// From now on the last event is noted there, before anyone is answered for it.
    pub fn witnessed_by(&mut self, witness: Witness) {
        self.witness = Some(witness);
    }

    /// The last revision; 0: an empty ledger.
    pub fn head(&self) -> Result<u64> {
        head(&self.connection).context("reading the ledger's head")
    }
}

fn refuse_newer_schema(connection: &Connection, path: &Path) -> Result<()> {
    let schema: i64 = connection.query_row("PRAGMA user_version", [], |r| r.get(0))?;
    if schema > SCHEMA {
        bail!("ledger {} has schema {schema}, this kiln knows {SCHEMA}: use the newer kiln", path.display());
    }
    Ok(())
}

fn refuse_newer_events(connection: &Connection, path: &Path) -> Result<()> {
    let newest: Option<i64> = connection.query_row("SELECT MAX(v) FROM event", [], |r| r.get(0))?;
    if newest.unwrap_or(0) > i64::from(VERSION) {
        bail!("ledger {} has events of a newer kiln: use that one", path.display());
    }
    Ok(())
}

/// Copies the ledger as it is at one moment to `to` (absent or empty), beside its writer and without
/// making it wait. Returns the copy's head.
pub fn snapshot(from: &Path, to: &Path) -> Result<u64> {
    let target = to.to_str().with_context(|| format!("{} is no UTF-8", to.display()))?;
    let copied = Reader::new(from).connect()?.execute("VACUUM INTO ?1", params![target]);
    copied.with_context(|| format!("copying ledger {}", from.display()))?;
    inspect(to)
}

/// The head of a ledger that nobody writes. A file that is none, is damaged, has gaps, or is a newer
/// kiln's is an error.
pub fn inspect(path: &Path) -> Result<u64> {
    let connection = Reader::new(path).connect()?;
    let reading = || format!("reading ledger {}", path.display());
    refuse_newer_schema(&connection, path).with_context(reading)?;
    refuse_newer_events(&connection, path).with_context(reading)?;
    let sound: String = connection.query_row("PRAGMA quick_check(1)", [], |r| r.get(0)).with_context(reading)?;
    let events: i64 = connection.query_row("SELECT COUNT(*) FROM event", [], |r| r.get(0)).with_context(reading)?;
    let head = head(&connection).with_context(reading)?;
    if sound != "ok" || events as u64 != head {
        bail!("ledger {} is damaged: {sound}, {events} events up to revision {head}", path.display());
    }
    Ok(head)
}

fn head(connection: &Connection) -> rusqlite::Result<u64> {
    connection.query_row("SELECT COALESCE(MAX(rev), 0) FROM event", [], |r| r.get::<_, i64>(0)).map(|n| n as u64)
}

impl Log for Sqlite {
    fn append_if(&mut self, expected: u64, at_ms: u64, events: &[Event]) -> Result<u64, AppendError> {
        let failed = |e: rusqlite::Error| AppendError::Failed(anyhow::Error::new(e).context("appending to the ledger"));
        let transaction =
            self.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).map_err(failed)?;
        let found = head(&transaction).map_err(failed)?;
        if found != expected {
            return Err(AppendError::Moved(found));
        }
        let (mut rev, mut last) = (expected, String::new());
        {
            let mut insert = transaction
                .prepare_cached("INSERT INTO event(rev, at_ms, v, subject, body) VALUES (?1, ?2, ?3, ?4, ?5)")
                .map_err(failed)?;
            for event in events {
                rev += 1;
                let body = serde_json::to_string(event).map_err(|e| AppendError::Failed(e.into()))?;
                insert.execute(params![rev as i64, at_ms as i64, VERSION, event.subject(), body]).map_err(failed)?;
                last = body;
            }
        }
        transaction.commit().map_err(failed)?;
        if let Some(witness) = self.witness.as_ref().filter(|_| rev > expected)
            && let Err(error) = witness.note(rev, &last)
        {
            tracing::warn!("{error:#}");
        }
        self.wakes.iter().for_each(|wake| wake(rev));
        Ok(rev)
    }

    fn read_after(&self, rev: u64, limit: usize) -> Result<Vec<Recorded>> {
        read(
            &self.connection,
            "SELECT rev, at_ms, v, body FROM event WHERE rev > ?1 ORDER BY rev LIMIT ?2",
            rev as i64,
            limit,
        )
    }

    fn watch(&mut self, wake: Wake) {
        self.wakes.push(wake);
    }
}

fn read(connection: &Connection, sql: &str, first: impl rusqlite::ToSql, limit: usize) -> Result<Vec<Recorded>> {
    let mut select = connection.prepare_cached(sql)?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut rows = select.query(params![first, limit])?;
    let mut events = Vec::new();
    while let Some(row) = rows.next().context("reading the ledger")? {
        let (rev, at_ms, v): (i64, i64, u32) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let body: String = row.get(3)?;
        let event = serde_json::from_str(&body).with_context(|| format!("reading event {rev} of the ledger"))?;
        events.push(Recorded { rev: rev as u64, at_ms: at_ms as u64, v, event });
    }
    Ok(events)
}

/// Reads a ledger beside its writer: history for people.
#[derive(Clone, Debug)]
pub struct Reader {
    path: PathBuf,
}

impl Reader {
    pub fn new(path: &Path) -> Reader {
        Reader { path: path.to_path_buf() }
    }

    fn connect(&self) -> Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path, flags)
            .with_context(|| format!("opening ledger {}", self.path.display()))?;
        connection.busy_timeout(BUSY)?;
        Ok(connection)
    }

    /// At most `limit` events after `rev`.
    pub fn after(&self, rev: u64, limit: usize) -> Result<Vec<Recorded>> {
        let sql = "SELECT rev, at_ms, v, body FROM event WHERE rev > ?1 ORDER BY rev LIMIT ?2";
        read(&self.connect()?, sql, rev as i64, limit)
    }

    /// The last `limit` events of a node or MAC, oldest first.
    pub fn of(&self, subject: &str, limit: usize) -> Result<Vec<Recorded>> {
        let sql = "SELECT rev, at_ms, v, body FROM event WHERE subject = ?1 ORDER BY rev DESC LIMIT ?2";
        let mut events = read(&self.connect()?, sql, subject, limit)?;
        events.reverse();
        Ok(events)
    }
}

/// One address given to one card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub mac: crate::site::Mac,
    pub address: Ipv4Addr,
    /// Wall clock, Unix milliseconds.
    pub expires_ms: u64,
}

/// The leases in the ledger's file; each change is synced before it returns.
pub struct Leases {
    connection: Connection,
}

impl Leases {
    /// After [`Sqlite::open`] made the file.
    pub fn open(path: &Path) -> Result<Leases> {
        Ok(Leases { connection: open(path)? })
    }

    /// Every lease, expired ones too.
    pub fn all(&self) -> Result<Vec<Lease>> {
        let mut select = self.connection.prepare_cached("SELECT mac, address, expires_ms FROM lease ORDER BY mac")?;
        let mut rows = select.query([])?;
        let mut leases = Vec::new();
        while let Some(row) = rows.next()? {
            let (mac, address): (String, String) = (row.get(0)?, row.get(1)?);
            let mac = mac.parse().map_err(anyhow::Error::msg).context("reading a lease's MAC")?;
            let address = address.parse().context("reading a lease's address")?;
            leases.push(Lease { mac, address, expires_ms: row.get::<_, i64>(2)? as u64 });
        }
        Ok(leases)
    }

    /// Stores a lease; whoever had that address before loses it.
    pub fn put(&mut self, lease: &Lease) -> Result<()> {
        let transaction = self.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let (mac, address) = (lease.mac.to_string(), lease.address.to_string());
        transaction.execute("DELETE FROM lease WHERE address = ?1 AND mac <> ?2", params![address, mac])?;
        transaction.execute(
            "INSERT INTO lease(mac, address, expires_ms) VALUES (?1, ?2, ?3)
             ON CONFLICT(mac) DO UPDATE SET address = excluded.address, expires_ms = excluded.expires_ms",
            params![mac, address, lease.expires_ms as i64],
        )?;
        transaction.commit().context("storing a lease")
    }

    pub fn remove(&mut self, mac: crate::site::Mac) -> Result<()> {
        self.connection.execute("DELETE FROM lease WHERE mac = ?1", params![mac.to_string()])?;
        Ok(())
    }

    /// The lease of a card, expired or not.
    pub fn of(&self, mac: crate::site::Mac) -> Result<Option<Lease>> {
        let sql = "SELECT address, expires_ms FROM lease WHERE mac = ?1";
        let row = |r: &rusqlite::Row| Ok((r.get::<_, String>(0)?, r.get::<_, i64>(1)?));
        let found = self.connection.query_row(sql, params![mac.to_string()], row).optional()?;
        found
            .map(|(address, expires_ms)| Ok(Lease { mac, address: address.parse()?, expires_ms: expires_ms as u64 }))
            .transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// Batches of this many events: a copy never holds a part of one.
    const BATCH: u64 = 7;

    #[test]
    fn a_snapshot_beside_a_writer_is_the_ledger_of_one_moment() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.sqlite");
        let mut ledger = Sqlite::open(&path).unwrap();
        let events = vec![Event::NodeUnheld { node: "n".repeat(200) }; 1000 * BATCH as usize];
        let mut head = ledger.append_if(0, 0, &events).unwrap();
        let stop = AtomicBool::new(false);
        let heads = std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    head = ledger.append_if(head, 0, &events[..BATCH as usize]).unwrap();
                }
                head
            });
            let copy = |i: u64| snapshot(&path, &dir.path().join(format!("copy{i}")));
            let taken: Result<Vec<u64>> = (0..5).map(copy).collect();
            stop.store(true, Ordering::Relaxed); // also when one failed: the scope waits for the writer
            let end = writer.join().unwrap();
            let mut heads = taken.unwrap();
            heads.push(copy(5).unwrap());
            assert_eq!(heads[5], end, "the journal belongs to it");
            heads
        });
        assert!(heads.is_sorted() && heads[5] > heads[0], "it was written meanwhile: {heads:?}");
        for (i, head) in heads.iter().enumerate() {
            assert_eq!(head % BATCH, 0, "a batch is whole or absent: {heads:?}");
            let copy = Sqlite::open(&dir.path().join(format!("copy{i}"))).unwrap();
            let last = copy.read_after(head - 1, 9).unwrap();
            assert!(last.len() == 1 && last[0].rev == *head && last[0].event == events[0], "{heads:?}");
        }
    }
}
