//! The only place where a command becomes events: pure, one file for each group of commands.
//! The order of the tests in each function is the order in which an operator would ask why.

mod boot;
pub mod breaker;
#[cfg(test)]
mod breaker_tests;
mod claim;
mod cluster;
mod discovery;
mod disk;
mod drain;
#[cfg(test)]
mod formation_tests;
pub mod gate;
mod operator;
#[cfg(test)]
mod order_tests;
mod orders;
mod register;
mod report;
mod rollout;
mod step;
#[cfg(test)]
mod tests;

pub use boot::{credential_of, may_begin, may_boot};
pub use claim::{claim, stand_down, verdict};
pub use cluster::ranks;
pub use drain::{line as drain_line, task as drain_task};
pub use operator::{MachineId, site_diff};
pub use orders::restart;
pub use register::{Admitted, Shown, check as check_register};
pub use rollout::{Next, next as next_in_rollout};
pub use step::{forgetting, peers};

use super::event::{Asked, Event, UsedImage};
use super::live::Live;
use super::message::{
    BootRequest, ClaimRequest, DiskRequest, Disks, DoneRequest, PhaseReport, RegisterRequest, Report, Via,
};
use super::rollout::PackageChange;
use super::state::{NodeState, State};
use crate::image::id::{Digest, ImageId};
use crate::site::{DiskMatch, Mac, Site, Uuid};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// What someone asks of the ledger. Times, random values and whatever must be looked up outside
/// come with it.
#[derive(Clone, Debug)]
pub enum Command {
    /// `site_id` counts only for an empty ledger.
    ApplySite {
        site: Box<Site>,
        site_id: String,
        images: BTreeMap<String, UsedImage>,
    },
    UseImage {
        role: String,
        image: Box<UsedImage>,
        release: String,
        image_role: String,
    },
    Approve {
        machine: MachineId,
        node: String,
    },
    Hold {
        node: String,
        reason: String,
    },
    Unhold {
        node: String,
    },
    /// A machine asked something over DHCP or for a script.
    Saw {
        mac: Mac,
        uuid: Option<Uuid>,
        firmware: String,
    },
    /// What it was answered and why.
    Answer(Box<Answer>),
    Phase {
        report: PhaseReport,
    },
    Boot(Box<Boot>),
    /// The node's firmware asks for a script: its last boot is over.
    BootOver {
        node: String,
    },
    /// This server could not serve what it should have to that address.
    Failed {
        source: Ipv4Addr,
    },
    Disk {
        request: DiskRequest,
        source: Ipv4Addr,
    },
    Register {
        request: Box<RegisterRequest>,
        source: Ipv4Addr,
        issued: Option<Issued>,
        /// The certificate of ours that the request came with.
        shown: Option<Shown>,
    },
    Report {
        fingerprint: Digest,
        report: Report,
    },
    Claim {
        fingerprint: Digest,
        request: ClaimRequest,
    },
    Done {
        fingerprint: Digest,
        request: DoneRequest,
    },
    /// The server starts; `doubt`: why it cannot vouch for its ledger being the newest.
    Start {
        doubt: Option<String>,
    },
    Form,
    Adopt,
    Recover {
        system: String,
        from: String,
        accept_loss: bool,
    },
    Fence {
        node: String,
    },
    /// `migrate`: guests that run are moved away, too.
    Drain {
        node: String,
        giver: String,
        migrate: bool,
    },
    Undrain {
        node: String,
    },
    Reimage(Box<Reimage>),
    /// `failed`: it was under way and will not get ready.
    Cancel {
        order: String,
        failed: bool,
    },
    /// Time went by: ends orders and pauses, leads a rollout on; the only command that looks at the wall clock.
    Tick {
        wall_ms: u64,
    },
    StartRollout(Box<StartRollout>),
    PauseRollout {
        reason: String,
    },
    ResumeRollout,
    AbortRollout,
    /// `POST /v1/orders/<id>/begin`.
    Begin {
        order: String,
        request: DiskRequest,
        source: Ipv4Addr,
    },
    Replace(Box<Replace>),
    Remove {
        node: String,
        risk: Risk,
    },
}

/// What the operator takes upon himself, and who he is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Risk {
    /// For people: whoever may open the socket may say any name.
    #[serde(default)]
    pub giver: String,
    /// A quorum may break, for this reason.
    #[serde(default)]
    pub force: Option<String>,
    /// Systems whose last copy of data may be destroyed.
    #[serde(default)]
    pub destroy: Vec<String>,
    #[serde(default)]
    pub lose_guests: bool,
    /// They are shut down before and started again after.
    #[serde(default)]
    pub stop_guests: bool,
    /// They are moved to other nodes before.
    #[serde(default)]
    pub migrate_guests: bool,
}

/// An order that is asked for.
#[derive(Clone, Debug)]
pub struct Reimage {
    /// Eight random hexadecimal digits.
    pub id: String,
    pub node: String,
    /// `None`: what the node boots anyway.
    pub image: Option<ChosenImage>,
    pub disks: Disks,
    pub via: Via,
    /// Wall clock, Unix milliseconds.
    pub expires_ms: u64,
    pub risk: Risk,
}

/// A rollout that is asked for.
#[derive(Clone, Debug)]
pub struct StartRollout {
    /// Eight random hexadecimal digits.
    pub id: String,
    pub role: String,
    pub image: ChosenImage,
    /// Against the role's image of today.
    pub changes: Vec<PackageChange>,
    pub allow_upgrade: bool,
    pub max_unavailable: u32,
    pub giver: String,
}

/// An image that was looked up.
#[derive(Clone, Debug)]
pub struct ChosenImage {
    pub image: UsedImage,
    pub release: String,
    pub role: String,
}

/// Other hardware for a node.
#[derive(Clone, Debug)]
pub struct Replace {
    pub node: String,
    /// None: its cards stay.
    pub macs: Vec<Mac>,
    /// `None`: its disk stays, in this chassis or another.
    pub disk: Option<DiskMatch>,
    pub risk: Risk,
}

/// A decision of `pxe::choose` to be recorded.
#[derive(Clone, Debug)]
pub struct Answer {
    pub mac: Mac,
    pub node: Option<String>,
    pub asked: Asked,
    pub address: Option<Ipv4Addr>,
    pub facts: BTreeMap<String, String>,
    pub rule: String,
    pub answer: String,
    pub image: Option<ImageId>,
}

/// `POST /v1/boot` with what the server saw and looked up.
#[derive(Clone, Debug)]
pub struct Boot {
    pub request: BootRequest,
    /// Where the request came from.
    pub source: Ipv4Addr,
    /// The address that kiln leased to that MAC, if any.
    pub leased: Option<Ipv4Addr>,
    /// This server answers DHCP itself, so a node's reserved address is that node's.
    pub authoritative: bool,
    /// The credential to mint if this boot is expected; the same for the same boot and address.
    pub credential: String,
}

/// A certificate made for a register before it was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Issued {
    pub generation: u64,
    /// sha256 of its DER.
    pub fingerprint: Digest,
}

/// Why a command was not followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub why: Why,
    pub reason: String,
    /// What is recorded all the same.
    pub events: Vec<Event>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The message makes no sense.
    Invalid,
    /// No such node, machine or role.
    NotFound,
    /// The state forbids it.
    Refused,
    /// Not now: the machine shows the reason and asks again.
    Hold,
    /// The same, and only a restart helps.
    Restart,
    /// The state moved between issuing a certificate and the decision: try again.
    Raced,
}

impl Refusal {
    pub fn new(why: Why, reason: impl Into<String>) -> Refusal {
        Refusal { why, reason: reason.into(), events: Vec::new() }
    }

    fn with(mut self, event: Option<Event>) -> Refusal {
        self.events.extend(event);
        self
    }
}

/// The card on whose account a command's events go, if whoever sent it has not proved who it is;
/// and whether it is no node's.
pub fn speaker(state: &State, command: &Command) -> Option<(Mac, bool)> {
    let mac = match command {
        Command::Saw { mac, .. } => *mac,
        Command::Answer(answer) => answer.mac,
        Command::Phase { report } => report.mac,
        Command::Boot(boot) => boot.request.mac,
        // Whatever card it names: the refusals of a node's registers have one account.
        Command::Register { request, .. } => *state.site_node(&request.node)?.macs.first()?,
        _ => return None,
    };
    Some((mac, discovery::is_stranger(state, mac)))
}

/// The node whose current generation carries this certificate, unless it is known to be off.
fn current<'a>(state: &'a State, fingerprint: &Digest) -> Result<(&'a String, &'a NodeState), Refusal> {
    match state.by_fingerprint(fingerprint) {
        None => Err(Refusal::new(Why::Refused, "the certificate is not of a node's current generation")),
        Some((name, node)) if node.is_fenced() => {
            let reason = format!("generation {} of node {name} was fenced; restart the machine", node.generation);
            Err(Refusal::new(Why::Refused, reason))
        }
        Some((name, node)) => Ok((name, node)),
    }
}

/// The events that follow from a command, none if it changes nothing.
pub fn decide(state: &State, live: &Live, command: &Command, now_ms: u64) -> Result<Vec<Event>, Refusal> {
    let mut decided = rule(state, live, command, now_ms);
    if let (Err(refusal), Some((mac, stranger))) = (&mut decided, speaker(state, command))
        && !live.may_speak(mac, stranger, now_ms)
    {
        refusal.events.clear();
    }
    decided
}

fn rule(state: &State, live: &Live, command: &Command, now_ms: u64) -> Result<Vec<Event>, Refusal> {
    match command {
        Command::ApplySite { site, site_id, images } => {
            operator::apply_site(state, live, site, site_id, images, now_ms)
        }
        Command::UseImage { role, image, release, image_role } => {
            operator::use_image(state, role, image, release, image_role)
        }
        Command::Approve { machine, node } => operator::approve(state, machine, node),
        Command::Hold { node, reason } => operator::hold(state, node, reason),
        Command::Unhold { node } => operator::unhold(state, node),
        Command::Saw { mac, uuid, firmware } => Ok(discovery::saw(state, live, *mac, *uuid, firmware, now_ms)),
        Command::Answer(answer) => Ok(discovery::answered(state, live, answer, now_ms).into_iter().collect()),
        Command::Phase { report } => discovery::phase(state, live, report, now_ms),
        Command::Boot(boot) => boot::boot(state, live, boot, now_ms),
        Command::BootOver { node } => Ok(breaker::over(state, live, node, now_ms).into_iter().collect()),
        Command::Failed { .. } => Ok(vec![]),
        Command::Disk { request, source } => disk::disk(state, request, *source),
        Command::Register { request, source, issued, shown } => {
            register::register(state, live, request, *source, *issued, shown.as_ref(), now_ms)
        }
        Command::Report { fingerprint, report } => report::report(state, live, fingerprint, report, now_ms),
        Command::Claim { fingerprint, request } => {
            claim::claim(state, live, fingerprint, request, now_ms).map(|(events, _)| events)
        }
        Command::Done { fingerprint, request } => step::done(state, fingerprint, request),
        Command::Start { doubt } => Ok(cluster::start(doubt.as_deref())),
        Command::Form => cluster::form(state, live, now_ms),
        Command::Adopt => cluster::adopt(state, live, now_ms),
        Command::Recover { system, from, accept_loss } => {
            cluster::recover(state, live, system, from, *accept_loss, now_ms)
        }
        Command::Fence { node } => cluster::fence(state, live, node, now_ms),
        Command::Drain { node, giver, migrate } => drain::drain(state, live, node, giver, *migrate, now_ms),
        Command::Undrain { node } => drain::undrain(state, node),
        Command::Reimage(asked) => orders::give(state, live, asked, now_ms),
        Command::Cancel { order, failed } => orders::cancel(state, order, *failed),
        Command::Tick { wall_ms } => Ok(match orders::expire(state, *wall_ms) {
            over if over.is_empty() => {
                [breaker::resume(state, live, now_ms), rollout::advance(state, live, *wall_ms, now_ms)].concat()
            }
            over => over,
        }),
        Command::StartRollout(asked) => rollout::start(state, asked),
        Command::PauseRollout { reason } => rollout::pause(state, reason),
        Command::ResumeRollout => rollout::resume(state),
        Command::AbortRollout => rollout::abort(state),
        Command::Begin { order, request, source } => orders::begin(state, live, order, request, *source, now_ms),
        Command::Replace(asked) => orders::replace(state, live, asked, now_ms),
        Command::Remove { node, risk } => orders::remove(state, live, node, risk, now_ms),
    }
}
