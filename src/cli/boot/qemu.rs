//! A virtual machine with real firmware: its command line (pure) and its process.
//!
//! Software emulation unless the processor shows `vmx` or `svm`: on a machine without them an
//! openable `/dev/kvm` is a trap (QEMU hangs on it).

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Which firmware boots the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Firmware {
    /// SeaBIOS and the card's own PXE ROM.
    Bios,
    /// OVMF, PXE.
    Uefi,
    /// OVMF, HTTP boot.
    UefiHttp,
}

/// One machine to be.
#[derive(Clone, Debug)]
pub struct Machine {
    pub name: String,
    pub firmware: Firmware,
    pub mac: String,
    pub tap: String,
    pub memory_mib: u64,
    pub cpus: u32,
    /// Raw disk images and their serial numbers.
    pub disks: Vec<(PathBuf, String)>,
    /// Serial console goes here.
    pub console: PathBuf,
    /// This machine's own copy of OVMF's variables (UEFI only).
    pub variables: PathBuf,
    pub uuid: String,
}

/// Folders where distributions keep OVMF: code and variables templates.
const OVMF: [(&str, &str); 3] = [
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
];

/// QEMU's arguments for `machine`. `kvm`: [`accelerated`]; `ovmf_code`: needed for UEFI.
pub fn arguments(machine: &Machine, kvm: bool, ovmf_code: Option<&str>) -> Vec<String> {
    let mut args: Vec<String> = vec!["-nodefaults".into(), "-display".into(), "none".into()];
    let mut add = |flag: &str, value: String| args.extend([flag.to_string(), value]);
    add("-name", machine.name.clone());
    add("-accel", if kvm { "kvm".into() } else { "tcg,thread=multi".into() });
    add("-cpu", if kvm { "host".into() } else { "max".into() });
    add("-machine", "q35".into());
    add("-smp", machine.cpus.to_string());
    add("-m", machine.memory_mib.to_string());
    add("-uuid", machine.uuid.clone());
    add("-serial", format!("file:{}", comma(&machine.console)));
    add("-vga", "std".into());
    add("-device", "virtio-rng-pci".into());
    add("-netdev", format!("tap,id=net0,ifname={},script=no,downscript=no", machine.tap));
    // OVMF brings its own PXE: the card's ROM (iPXE) would come first otherwise.
    let rom = if machine.firmware == Firmware::Bios { "" } else { ",romfile=" };
    add("-device", format!("virtio-net-pci,netdev=net0,mac={},bootindex=1{rom}", machine.mac));
    for (i, (path, serial)) in machine.disks.iter().enumerate() {
        add("-drive", format!("file={},format=raw,if=none,id=disk{i},cache=writeback", comma(path)));
        // After the network; OVMF forgets what has no place.
        add("-device", format!("virtio-blk-pci,drive=disk{i},serial={serial},bootindex={}", i + 2));
    }
    if let (Some(code), true) = (ovmf_code, machine.firmware != Firmware::Bios) {
        add("-drive", format!("if=pflash,format=raw,unit=0,readonly=on,file={code}"));
        add("-drive", format!("if=pflash,format=raw,unit=1,file={}", comma(&machine.variables)));
    }
    if machine.firmware == Firmware::UefiHttp {
        for family in ["IPv4PXESupport", "IPv6PXESupport"] {
            add("-fw_cfg", format!("name=opt/org.tianocore/{family},string=n"));
        }
    }
    args
}

/// QEMU reads a doubled comma as one.
fn comma(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// Whether this processor can really run KVM guests.
pub fn accelerated() -> bool {
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let virtual_cpu = flags
        .lines()
        .filter(|l| l.starts_with("flags"))
        .any(|l| l.split_whitespace().any(|f| f == "vmx" || f == "svm"));
    virtual_cpu && std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok()
}

/// Starts the machine. It dies with this process.
pub fn start(machine: &Machine) -> Result<Child> {
    let ovmf = OVMF.iter().find(|(code, vars)| Path::new(code).exists() && Path::new(vars).exists());
    if machine.firmware != Firmware::Bios {
        let Some((_, variables)) = ovmf else {
            bail!("no OVMF firmware found (looked for {}); install the package ovmf", OVMF[0].0);
        };
        if !machine.variables.exists() {
            std::fs::copy(variables, &machine.variables).with_context(|| format!("copying {variables}"))?;
        }
    }
    let mut command = Command::new("qemu-system-x86_64");
    command.args(arguments(machine, accelerated(), ovmf.map(|(code, _)| *code)));
    let log = std::fs::File::create(machine.console.with_extension("qemu.log"))?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    crate::sys::command::die_with_parent(&mut command);
    command
        .spawn()
        .with_context(|| format!("starting {} (package qemu-system-x86)", crate::sys::command::shown(&command)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_firmware_has_its_arguments() {
        let machine = |firmware| Machine {
            name: "n1".into(),
            firmware,
            mac: "52:54:00:00:00:01".into(),
            tap: "tap1".into(),
            memory_mib: 512,
            cpus: 1,
            disks: vec![("/tmp/a,b".into(), "s1".into())],
            console: "/tmp/c".into(),
            variables: "/tmp/v".into(),
            uuid: "4c4c4544-0039-4a10-8052-b4c04f4d3332".into(),
        };
        for (firmware, has, has_not) in [
            (Firmware::Bios, "mac=52:54:00:00:00:01,bootindex=1", "pflash"),
            (Firmware::Uefi, "romfile=", "IPv4PXESupport"),
            (Firmware::UefiHttp, "IPv4PXESupport,string=n", "kvm"),
        ] {
            let line = arguments(&machine(firmware), false, Some("/code")).join(" ");
            assert!(line.contains(has) && !line.contains(has_not), "{firmware:?}: {line}");
            assert!(line.contains("file=/tmp/a,,b") && line.contains("serial=s1,bootindex=2"), "{line}");
        }
    }
}
