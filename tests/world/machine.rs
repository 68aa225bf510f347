//! One machine: its disk, its power, and the agent that drives a production `Node` on it.

use super::process::Store;
use super::server::Registering;
use kiln::image::id::Digest;
use kiln::join::node::{Action, Node};
use kiln::ledger::message::Report;
use kiln::recipe::System;
use std::collections::BTreeSet;

#[derive(Clone)]
pub struct Machine {
    pub on: bool,
    /// It cannot reach the server.
    pub cut: bool,
    /// Boots so far: the boot id.
    pub boots: u32,
    /// Wipes so far: the key on the disk.
    pub key: u32,
    /// The generation that the disk remembers.
    pub kept: Option<u64>,
    /// The order that the disk bears the mark of.
    pub mark: Option<String>,
    /// Nothing is on the disk.
    pub blank: bool,
    /// The order that this boot goes by.
    pub order: Option<String>,
    /// A question whose answer did not come, by seeded system.
    pub asked: Vec<bool>,
    /// By seeded system.
    pub stores: Vec<Store>,
    /// Of this boot.
    pub cert: Option<Cert>,
    /// The server does not know the certificate.
    pub refused: bool,
    /// Registers in this boot.
    pub registers: u32,
    pub run: Option<Run>,
    /// Cluster steps that run.
    pub steps: Vec<Action>,
    /// Nodes that were fenced when it was let seed: what they hold was given up.
    pub excused: Vec<usize>,
    /// Monotonic, of this boot. Older boots were up longer, so that their messages bear higher
    /// numbers than those of newer ones: the worst case.
    pub clock: u64,
}

#[derive(Clone)]
pub struct Cert {
    pub print: Digest,
    pub generation: u64,
}

/// The agent.
#[derive(Clone)]
pub struct Run {
    pub node: Node,
    /// What was last put into a report.
    pub said: Option<Report>,
}

/// Where the clock of a boot begins.
pub fn base_ms(boot: u32) -> u64 {
    (1u64 << 40).saturating_sub(u64::from(boot) << 30)
}

impl Machine {
    pub fn new(seeded: usize) -> Machine {
        Machine {
            on: false,
            cut: false,
            boots: 0,
            key: 0,
            kept: None,
            mark: None,
            blank: true,
            order: None,
            asked: vec![false; seeded],
            stores: vec![Store::default(); seeded],
            cert: None,
            refused: false,
            registers: 0,
            run: None,
            steps: vec![],
            excused: vec![],
            clock: 0,
        }
    }

    pub fn boot(&mut self) {
        (self.on, self.boots, self.registers, self.order) = (true, self.boots + 1, 0, None);
        self.clock = base_ms(self.boots);
    }

    /// All that is in memory is gone.
    pub fn power_off(&mut self) {
        (self.on, self.cert, self.refused, self.run, self.order) = (false, None, false, None, None);
        self.steps.clear();
    }

    pub fn wipe(&mut self) {
        (self.key, self.kept, self.mark, self.blank) = (self.key + 1, None, None, true);
        self.asked.iter_mut().for_each(|asked| *asked = false);
        self.stores.iter_mut().for_each(|store| *store = Store::default());
    }

    /// The agent's process is started again, in the same boot.
    pub fn restart_agent(&mut self, systems: &[System]) {
        self.clock += 1;
        let node = Node::new(systems, &BTreeSet::new(), self.clock);
        self.steps.clear();
        self.run = Some(Run { node, said: None });
    }

    pub fn boot_id(n: usize, boot: u32) -> String {
        format!("{:08x}-0000-4000-8000-{:012x}", n + 1, boot)
    }

    pub fn asks_register(&self, n: usize, name: &str) -> Registering {
        let before = self.cert.as_ref().map(|c| c.generation).or(self.kept);
        Registering {
            node: name.into(),
            number: n,
            boot: self.boots,
            key: self.key,
            last_generation: before.unwrap_or(0),
            // Only a certificate that exists can be shown.
            shown: before,
            registers: self.registers,
        }
    }

    /// What the agent does with the answer of its register.
    pub fn registered(&mut self, systems: &[System], generation: u64, print: Digest) {
        (self.cert, self.kept, self.refused) = (Some(Cert { print, generation }), Some(generation), false);
        self.blank = false;
        self.registers += 1;
        match &mut self.run {
            None => self.restart_agent(systems),
            Some(run) => {
                run.node.go_online(self.clock);
                run.said = None;
            }
        }
    }

    pub fn go_offline(&mut self, systems: &[System], seeded: &[String]) -> bool {
        if !self.on || self.run.is_some() || self.kept.is_none() {
            return false;
        }
        self.restart_agent(systems);
        let may = seeded.iter().zip(&self.asked).filter(|(_, asked)| !**asked).map(|(name, _)| name.clone());
        let may: BTreeSet<String> = may.filter(|name| systems.iter().any(|s| s.name == *name)).collect();
        if let Some(run) = &mut self.run {
            run.node.go_offline(may);
        }
        true
    }

    /// As the agent's main loop makes it.
    pub fn report(&mut self) -> Option<Report> {
        let clock = self.clock;
        let run = self.run.as_mut()?;
        let (phase, detail, systems) = run.node.report();
        let seq = run.said.as_ref().map_or(0, |r| r.seq);
        let report = Report {
            phase,
            detail,
            systems,
            leaving: false,
            seq,
            running: run.node.running_steps(),
            order: self.order.clone(),
            drain: None,
            moves: false,
        };
        if run.said.as_ref() == Some(&report) {
            return Some(report);
        }
        let report = Report { seq: run.node.next_seq(clock), ..report };
        run.said = Some(report.clone());
        Some(report)
    }
}
