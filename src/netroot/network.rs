//! Gives the management card the address that the command line names. No DHCP: iPXE has asked.

use super::cmdline::Ip;
use super::modules::Loader;
use crate::sys::netdev::{self, Interfaces};
use anyhow::{Result, bail};
use std::time::{Duration, Instant};

/// For the card to appear after its driver was loaded.
const CARD_WAIT: Duration = Duration::from_secs(60);
/// For the cable: gigabit negotiation takes up to 5 s, some switches and cards much longer.
const CARRIER_WAIT: Duration = Duration::from_secs(45);
const POLL: Duration = Duration::from_millis(100);

/// Brings the card with `ip.mac` up with its address and route; returns the interface's name.
/// Safe to repeat.
pub fn bring_up(ip: &Ip, modules: &mut Loader) -> Result<String> {
    let name = find_card(ip, modules)?;
    let interfaces = Interfaces::open()?;
    interfaces.up("lo")?;
    interfaces.set_address(&name, ip.address, ip.prefix)?;
    interfaces.up(&name)?;
    let deadline = Instant::now() + CARRIER_WAIT;
    while !netdev::has_carrier(&name) {
        if Instant::now() > deadline {
            bail!(
                "no carrier on {name} ({}) within {} s; check its cable and switch port",
                ip.mac,
                CARRIER_WAIT.as_secs()
            );
        }
        std::thread::sleep(POLL);
    }
    if let Some(gateway) = ip.gateway {
        let mask = u32::MAX.checked_shl(32 - u32::from(ip.prefix)).unwrap_or(0);
        if (u32::from(gateway) ^ u32::from(ip.address)) & mask != 0 || ip.prefix == 32 {
            interfaces.host_route(&name, gateway)?;
        }
        interfaces.default_route(&name, gateway)?;
    }
    Ok(name)
}

fn find_card(ip: &Ip, modules: &mut Loader) -> Result<String> {
    let deadline = Instant::now() + CARD_WAIT;
    loop {
        modules.pass();
        if let Some(name) = netdev::by_mac(ip.mac.0)? {
            return Ok(name);
        }
        if Instant::now() > deadline {
            let there: Vec<String> = netdev::list()?.into_iter().filter(|i| i.physical).map(|i| i.name).collect();
            bail!(
                "no network card with MAC {} appeared within {} s; cards with a driver: {there:?}; \
                 is its module in the image's initramfs?",
                ip.mac,
                CARD_WAIT.as_secs()
            );
        }
        std::thread::sleep(POLL);
    }
}
