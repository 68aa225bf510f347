//! What nodes send and what they are answered (JSON over HTTP, `/v1`). `/v1` only grows: unknown
//! fields are tolerated on both sides, new fields have defaults.

use crate::image::id::ImageId;
use crate::site::{DiskMatch, Mac, Uuid};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The one vocabulary of a boot's progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    Dhcp,
    Loader,
    Script,
    Init,
    Network,
    Fetch,
    Mount,
    Switch,
    Register,
    Join,
    Ready,
    Failed,
    Held,
}

/// `POST /v1/phase`: progress of a boot that has not registered. Timeline only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseReport {
    pub mac: Mac,
    #[serde(default)]
    pub uuid: Option<Uuid>,
    /// The kernel's own boot id (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
    pub image: ImageId,
    pub phase: Phase,
    /// For people; at most [`DETAIL_MAX_BYTES`].
    #[serde(default)]
    pub detail: String,
}

/// Longer details are cut by the server.
pub const DETAIL_MAX_BYTES: usize = 2000;

/// `POST /v1/boot` over TLS, once from each initramfs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootRequest {
    pub mac: Mac,
    #[serde(default)]
    pub uuid: Option<Uuid>,
    pub boot_id: String,
    pub image: ImageId,
    /// kiln-node's version.
    pub version: String,
    pub disks: Vec<Disk>,
}

/// A disk as the machine shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Kernel name, such as `vda`.
    pub name: String,
    #[serde(default)]
    pub serial: Option<String>,
    #[serde(default)]
    pub wwn: Option<String>,
    /// Bytes.
    pub size: u64,
}

/// Answer to [`BootRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "verdict")]
pub enum BootAnswer {
    Go(Box<BootGo>),
    /// Show the reason, ask again after `retry_secs`.
    Hold {
        reason: String,
        retry_secs: u64,
        /// What it booted is not what it is to boot: only a restart helps.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        restart: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootGo {
    pub node: String,
    pub role: String,
    /// The cluster's name: the stamp that a state disk carries.
    pub cluster: String,
    /// Random id of the site, made by `kiln init`: tells clusters of the same name apart.
    pub site_id: String,
    /// One-time, for [`RegisterRequest`]; `None`: this boot was not expected (only a key on the
    /// state disk can register it).
    #[serde(default)]
    pub credential: Option<String>,
    pub state: StateOrder,
    /// The open order that this boot goes by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<BootOrder>,
    /// Server's clock, Unix milliseconds; the node sets its own from it.
    pub now_ms: u64,
}

/// What a node must know of the order that it boots under.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootOrder {
    pub id: String,
    pub disks: Disks,
}

/// What an order does to the node's state disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Disks {
    Keep,
    /// Made anew, once: the disk is marked with the order's id.
    Wipe,
}

impl Disks {
    pub fn word(self) -> &'static str {
        match self {
            Disks::Keep => "kept",
            Disks::Wipe => "wiped",
        }
    }
}

/// How a running node gets to the boot of its order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    /// Through its firmware, like every other boot.
    #[default]
    Reboot,
    /// Straight into the order's kernel.
    Kexec,
}

impl Via {
    pub fn is_reboot(&self) -> bool {
        *self == Via::Reboot
    }
}

/// Where this node's state lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub enum StateOrder {
    Volatile,
    Disk { disk: DiskMatch },
}

/// Of a disk that holds nothing that a wipe could destroy.
pub const BLANK: &str = "blank";

/// `POST /v1/disk` over TLS: may this blank disk be formatted? `POST /v1/orders/<id>/begin`: may the
/// order wipe it, whatever it holds? Both carry the credential without spending it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRequest {
    pub node: String,
    pub boot_id: String,
    #[serde(default)]
    pub credential: Option<String>,
    pub disk: Disk,
    /// What the node found on it: [`BLANK`], or a description. Without an order only that is granted.
    pub found: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskAnswer {
    pub format: bool,
    pub reason: String,
    /// The order that was asked about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<String>,
}

/// `POST /v1/register` over TLS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterRequest {
    pub node: String,
    pub mac: Mac,
    pub boot_id: String,
    pub image: ImageId,
    /// kiln-node's version.
    pub version: String,
    /// Spends the credential of this boot …
    #[serde(default)]
    pub credential: Option<String>,
    /// The node's ed25519 public key, base64; its private half lies on the state disk (or, for a
    /// volatile node, in memory).
    pub key: String,
    /// … or signs [`register_statement`] with the private half, base64. Always sent.
    pub signature: String,
    /// PEM certificate request for this generation's TLS key.
    pub csr: String,
    /// The generation that this node's last register gave it, as kept with its key; 0: none. A
    /// ledger that knows a smaller one was lost or taken from a backup.
    #[serde(default)]
    pub last_generation: u64,
    /// PEM requests for the certificates that this role's systems name, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub certificates: BTreeMap<String, String>,
}

/// What the state disk's key signs at a register. The boot id makes a replay useless: a boot id
/// registers once.
pub fn register_statement(node: &str, boot_id: &str, csr: &str) -> Vec<u8> {
    format!("kiln-register-v1\n{node}\n{boot_id}\n{}\n", crate::image::id::Digest::of(csr.as_bytes())).into_bytes()
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterAnswer {
    pub generation: u64,
    /// PEM, for TLS towards the server; names node and generation.
    pub certificate: String,
    /// Unix milliseconds.
    pub certificate_expires_ms: u64,
    pub view: crate::site::view::View,
    /// Secrets of the role's systems only: dotted name -> value.
    pub secrets: BTreeMap<String, String>,
    /// Of those that were asked for, the ones that the role's systems name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub certificates: BTreeMap<String, PeerCertificate>,
    pub now_ms: u64,
}

/// By what nodes know one another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerCertificate {
    /// PEM; names node and address.
    pub certificate: String,
    /// PEM: who signs these, and nothing else.
    pub authority: String,
}

/// `POST /v1/report` over TLS with the generation's certificate: at every change, and at least
/// every [`REPORT_INTERVAL_SECS`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub phase: Phase,
    #[serde(default)]
    pub detail: String,
    #[serde(default)]
    pub systems: Vec<SystemReport>,
    /// The node says that it shuts down: its session is dead after this.
    #[serde(default)]
    pub leaving: bool,
    /// Counts up within a generation, together with that of [`ClaimRequest`]: what an older message
    /// says of a system is forgotten once a newer claim was granted.
    #[serde(default)]
    pub seq: u64,
    /// Cluster steps that run here now.
    #[serde(default)]
    pub running: Vec<RunningStep>,
    /// The order that this boot went by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<String>,
    /// How far what it was told of its guests is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<DrainReport>,
    /// Guests can be moved from here, and to here from nodes that say the same.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub moves: bool,
}

/// What a node is told of its guests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainTask {
    /// Grows with each new word.
    pub number: u64,
    pub guests: Drain,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Drain {
    /// No new ones come.
    Stay,
    /// Nor do those that are there run: they are shut down, and it is remembered who ran.
    Stop,
    /// Nor do those that run stay: they are moved to other nodes, running. Told only who can ([`Report::moves`]).
    Migrate,
    /// As before: new ones may come, and those that ran are started.
    Back,
}

/// How far a [`DrainTask`] is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainReport {
    pub number: u64,
    pub done: bool,
    /// It will not be, and is not tried any more: `detail` says why.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub failed: bool,
    /// One line: what it waits for.
    #[serde(default)]
    pub detail: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningStep {
    pub system: String,
    pub step: String,
}

/// A node reports at least this often.
pub const REPORT_INTERVAL_SECS: u64 = 5;
/// A session without a report for this long is dead. A wiped machine waits for it: most of the time of its rejoin.
pub const SESSION_DEAD_SECS: u64 = 20;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemReport {
    pub name: String,
    pub state: SystemState,
    /// One line.
    pub reason: String,
    /// Of a system that forms a cluster, while it serves: which cluster it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lineage: Option<String>,
    /// It runs, but its health says that it cannot serve without members that are missing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stranded: bool,
    /// Others' machines that live in it here, by name; at most [`GUESTS_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub guests: Vec<String>,
    /// Those of `guests` that are shut down: they lose nothing as long as their disks stay.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stopped: Vec<String>,
}

/// Guests that are named in a report; more are as good a reason.
pub const GUESTS_MAX: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SystemState {
    Waiting,
    Starting,
    Healthy,
    Unhealthy,
    Failed,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportAnswer {
    pub now_ms: u64,
    /// What this node is to do for others that want to join.
    #[serde(default)]
    pub peers: Vec<PeerTask>,
    /// Systems that are to be stopped here, if they still run without serving.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stand_down: Vec<String>,
    /// An order waits for this machine to restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<String>,
    /// What is to become of its guests; `None`: nothing was said, or all is as before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<DrainTask>,
    /// Into this, if it can be done without the firmware.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kexec: Option<KexecBoot>,
}

/// A boot from the running system, as the boot script would start it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KexecBoot {
    /// Its manifest names kernel and initramfs.
    pub image: ImageId,
    /// The kernel's arguments.
    pub cmdline: String,
}

/// A step to be run here for `node`, which wants to join or was removed; its end is told with [`DoneRequest`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PeerTask {
    pub system: String,
    pub step: String,
    pub node: String,
    /// Of that node.
    pub generation: u64,
}

/// What a stopped system's data on a node are.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Data {
    Blank,
    /// `rank`: the higher, the newer, within one lineage.
    Holds {
        lineage: String,
        rank: i64,
    },
}

/// `POST /v1/claim` over TLS with the generation's certificate: asks what may be done now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimRequest {
    pub system: String,
    /// Counts up within a generation; the same one again is the same question again.
    pub seq: u64,
    pub ask: Ask,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ask {
    /// The system's units are stopped here, with these data: may it start, and how?
    Start { data: Data },
    /// May this cluster step run here?
    Step { step: String },
}

/// Answer to [`ClaimRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "verdict")]
pub enum Verdict {
    /// Make the cluster here, from this node's own data if it holds some.
    Seed,
    /// Join these members.
    Join {
        members: Vec<String>,
        lineage: String,
        #[serde(default)]
        set_aside: bool,
    },
    /// Run the step.
    Run,
    /// The step is done already.
    Done,
    /// Not now, for this reason; ask again.
    Wait { reason: String },
    /// This node's data are another cluster's: they are left alone until the operator decides.
    Quarantined { reason: String },
}

/// `POST /v1/done` over TLS: a cluster step (`peer` is absent) or a peer step ended here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoneRequest {
    pub system: String,
    pub step: String,
    /// Of the claim that let it run; 0 for a peer step.
    #[serde(default)]
    pub seq: u64,
    /// For whom a peer step was run.
    #[serde(default)]
    pub peer: Option<PeerTask>,
    pub ok: bool,
    #[serde(default)]
    pub detail: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoneAnswer {
    pub now_ms: u64,
}

/// An error answer of any `/v1` route: status 4xx or 5xx with this body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    pub error: String,
}

/// What the initramfs hands to the agent: `/run/kiln/boot.json`, root, 0600, on tmpfs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handover {
    /// `ADDR:PORT` of the nodes' plain HTTP.
    pub server: String,
    /// `ADDR:PORT` of the nodes' TLS.
    pub tls: String,
    /// sha256 (hex) of the server's TLS public key (SubjectPublicKeyInfo DER).
    pub pin: String,
    pub mac: Mac,
    pub boot_id: String,
    pub image: ImageId,
    pub go: BootGo,
    /// Where the state disk is mounted in the role, or `None` when volatile.
    pub state_dir: Option<String>,
    /// The state disk, if it has room for boot files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_disk: Option<BootDisk>,
    /// The server was silent: this boot goes by what an earlier one kept on the state disk.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub plain: bool,
}

/// A state disk that a machine can boot from, as this boot's kernel names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootDisk {
    /// Such as `/dev/vda`.
    pub device: String,
    /// Its EFI system partition, such as `/dev/vda2`.
    pub efi: String,
    /// GUID of its state partition: on the kernel command line of a boot from it.
    pub id: String,
}

/// Where [`Handover`] lies.
pub const HANDOVER_FILE: &str = "/run/kiln/boot.json";
/// Where the image's layers lie in memory, named by their digests.
pub const LAYERS_DIR: &str = "/run/kiln/layers";
/// Where the state disk is mounted in the role.
pub const STATE_DIR: &str = "/var/lib/kiln-state";
