//! kiln's TFTP server over one file, for `scripts/bench`: what `kiln serve` offers by TFTP is boot
//! loaders only, far smaller than what shows a difference. Usage: bench-tftp PORT FILE

use kiln::pxe::tftp::server::{Content, Files, Server};
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;

struct One(std::path::PathBuf);

impl Files for One {
    fn open(&self, _name: &str, _peer: SocketAddr) -> Option<Content> {
        let file = File::open(&self.0).ok()?;
        let length = file.metadata().ok()?.len();
        Some(Content::File { file, length })
    }
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, port, file] = &arguments[..] else { anyhow::bail!("usage: bench-tftp PORT FILE") };
    let bind = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port.parse()?);
    let _server = Server::start(bind, None, Arc::new(One(file.into())), Arc::new(|_| {}))?;
    loop {
        std::thread::park();
    }
}
