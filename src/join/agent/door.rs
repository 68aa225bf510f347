//! Tells load balancers whether this node is to get requests: haproxy's `agent-check`, a word in a line
//! of text (configuration manual, section 5.2). `down` until this boot was ready once and has settled: an API
//! that answers while its node is busy with the rest is slow. What is silent stays as it was.

use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// `agent-port` of the doors' servers. A role with doors has it among its systems' ports.
pub const PORT: u16 = 8405;
const STARTING: &[u8] = b"down\n";
const READY: &[u8] = b"up\n";
/// Of an address that is not there yet, or a system that is out of descriptors.
const PAUSE: Duration = Duration::from_secs(5);
/// Agents still sync after the node's first *ready*. A rollout's wait (`ledger::decide::rollout::SETTLE_MS`) is longer,
/// by more than load balancers take to ask again.
const SETTLE: Duration = Duration::from_secs(15);

/// Whether load balancers may ask this node.
#[derive(Clone, Default)]
pub struct Door(Arc<AtomicBool>);

impl Door {
    /// Answers at the node's own address for as long as this program runs.
    pub fn tell(&self, address: Ipv4Addr) {
        let door = self.clone();
        std::thread::spawn(move || {
            let mut said = String::new();
            let listener = loop {
                let error = match TcpListener::bind((address, PORT)) {
                    Ok(listener) => break listener,
                    Err(e) => e.to_string(),
                };
                if error != said {
                    eprintln!("telling load balancers of this node at {address}:{PORT}, trying again: {error}");
                    said = error;
                }
                std::thread::sleep(PAUSE);
            };
            door.answer(&listener);
        });
    }

    /// This boot is ready: load balancers may ask this node when it has settled.
    pub fn ready(&self) {
        let door = self.clone();
        std::thread::spawn(move || {
            std::thread::sleep(SETTLE);
            door.open();
        });
    }

    fn open(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn answer(&self, listener: &TcpListener) -> ! {
        loop {
            match listener.accept() {
                // A line fits what the kernel keeps for a new connection: nobody holds this up.
                Ok((mut asker, _)) => {
                    let _ = asker.write_all(if self.0.load(Ordering::Relaxed) { READY } else { STARTING });
                }
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::TcpStream;

    #[test]
    fn a_node_is_up_for_load_balancers_once_it_was_ready() {
        let door = Door::default();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let answering = door.clone();
        std::thread::spawn(move || answering.answer(&listener));
        let ask = || {
            let mut answer = String::new();
            TcpStream::connect(at).unwrap().read_to_string(&mut answer).unwrap();
            answer
        };
        // One that asks and does not read is in nobody's way.
        let _silent = TcpStream::connect(at).unwrap();
        assert_eq!(ask(), "down\n");
        door.open();
        assert_eq!(ask(), "up\n");
    }
}
