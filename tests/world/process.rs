//! The processes of one clustered system on all nodes, as Galera behaves.

use kiln::ledger::message::Data;

/// What a stopped process leaves on its node's disk.
#[derive(Clone, Default, PartialEq, Eq, Hash, Debug)]
pub struct Store {
    /// 0: blank.
    pub lineage: u32,
    pub seqno: i64,
    /// Cluster steps that were done in these data, `system/step`, the oldest first.
    pub marks: Vec<String>,
    /// The last primary view that this node was in.
    pub view: Vec<usize>,
}

impl Store {
    pub fn is_blank(&self) -> bool {
        self.lineage == 0
    }

    /// As `rank` prints it.
    pub fn data(&self) -> Data {
        if self.is_blank() {
            return Data::Blank;
        }
        Data::Holds { lineage: name(self.lineage), rank: self.seqno }
    }
}

pub fn name(lineage: u32) -> String {
    format!("L{lineage}")
}

/// Running members that see each other.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Component {
    pub lineage: u32,
    pub seqno: i64,
    pub marks: Vec<String>,
    /// Sorted; with the view that each has on its disk.
    pub members: Vec<(usize, Vec<usize>)>,
    pub primary: bool,
}

#[derive(Clone, Default, PartialEq, Eq, Hash, Debug)]
pub struct Process {
    pub components: Vec<Component>,
    /// Lineages made so far.
    pub made: u32,
}

/// A node whose disk holds something new.
pub type Saved = (usize, Store);

impl Component {
    pub fn has_mark(&self, step: &str) -> bool {
        self.marks.iter().any(|m| m == step)
    }

    fn has(&self, n: usize) -> bool {
        self.members.iter().any(|(m, _)| *m == n)
    }

    fn nodes(&self) -> Vec<usize> {
        self.members.iter().map(|(m, _)| *m).collect()
    }

    /// A new primary view of all that are here: a write that all of them have.
    fn new_view(&mut self) -> Vec<Saved> {
        let view = self.nodes();
        self.members.iter_mut().for_each(|(_, v)| v.clone_from(&view));
        (self.primary, self.seqno) = (true, self.seqno + 1);
        self.saved()
    }

    fn saved(&self) -> Vec<Saved> {
        let store = |view: &Vec<usize>| Store {
            lineage: self.lineage,
            seqno: self.seqno,
            marks: self.marks.clone(),
            view: view.clone(),
        };
        self.members.iter().map(|(m, view)| (*m, store(view))).collect()
    }
}

impl Process {
    pub fn of(&self, n: usize) -> Option<&Component> {
        self.components.iter().find(|c| c.has(n))
    }

    fn of_mut(&mut self, n: usize) -> Option<&mut Component> {
        self.components.iter_mut().find(|c| c.has(n))
    }

    pub fn runs(&self, n: usize) -> bool {
        self.of(n).is_some()
    }

    pub fn serves(&self, n: usize) -> bool {
        self.of(n).is_some_and(|c| c.primary)
    }

    /// A cleanly stopped member's leave is a view of its own; a crash leaves the others to find
    /// out whether they are the majority of the last view.
    pub fn stop(&mut self, n: usize, cleanly: bool) -> Vec<Saved> {
        let Some(component) = self.of_mut(n) else { return vec![] };
        let view = component.members.iter().find(|(m, _)| *m == n).map_or(0, |(_, view)| view.len());
        component.members.retain(|(m, _)| *m != n);
        let rest = component.members.len();
        let saved = match component.primary {
            true if rest > 0 && (cleanly || 2 * rest > view) => component.new_view(),
            _ => {
                component.primary = false;
                vec![]
            }
        };
        self.components.retain(|c| !c.members.is_empty());
        saved
    }

    /// Several members vanish at one instant.
    pub fn crash_together(&mut self, gone: &[usize]) -> Vec<Saved> {
        let mut saved = Vec::new();
        for component in &mut self.components {
            let view = component.members.first().map_or(0, |(_, view)| view.len());
            let before = component.members.len();
            component.members.retain(|(m, _)| !gone.contains(m));
            let rest = component.members.len();
            if before == rest || !component.primary || rest == 0 {
                continue;
            }
            component.primary = 2 * rest > view;
            if component.primary {
                saved.extend(component.new_view());
            }
        }
        self.components.retain(|c| !c.members.is_empty());
        saved
    }

    /// A new primary component of one: a new lineage, or that of its data.
    pub fn seed(&mut self, n: usize, own: Option<&Store>) -> Vec<Saved> {
        let own = own.filter(|s| !s.is_blank()).cloned().unwrap_or_else(|| {
            self.made += 1;
            Store { lineage: self.made, ..Store::default() }
        });
        let mut component = Component {
            lineage: own.lineage,
            seqno: own.seqno,
            marks: own.marks.clone(),
            members: vec![(n, vec![])],
            primary: false,
        };
        let saved = component.new_view();
        self.components.push(component);
        saved
    }

    /// Joins the component of `to`, which serves, and gets its data.
    pub fn join(&mut self, n: usize, to: usize) -> Vec<Saved> {
        let Some(component) = self.of_mut(to) else { return vec![] };
        component.members.push((n, vec![]));
        component.members.sort();
        component.new_view()
    }

    /// Finds running members of its lineage, or waits for the rest of its last view. Blank data
    /// find those who serve.
    pub fn plain_start(&mut self, n: usize, own: &Store) -> Vec<Saved> {
        let fits =
            |c: &&mut Component| c.primary && (own.is_blank() || (c.lineage == own.lineage && c.seqno >= own.seqno));
        if let Some(component) = self.components.iter_mut().find(fits) {
            component.members.push((n, vec![]));
            component.members.sort();
            return component.new_view();
        }
        if own.is_blank() {
            return vec![]; // the unit fails: nobody sends it data
        }
        let waits = |c: &&mut Component| !c.primary && c.lineage == own.lineage;
        if !self.components.iter_mut().any(|c| waits(&c)) {
            let (lineage, seqno, marks) = (own.lineage, own.seqno, own.marks.clone());
            self.components.push(Component { lineage, seqno, marks, members: vec![], primary: false });
        }
        let component = self.components.iter_mut().find(waits).expect("it was just made");
        component.members.push((n, own.view.clone()));
        component.members.sort();
        if own.seqno > component.seqno {
            (component.seqno, component.marks) = (own.seqno, own.marks.clone());
        }
        // All who were in one last view are back.
        let back = |view: &Vec<usize>| {
            !view.is_empty() && view.iter().all(|m| component.members.iter().any(|(n, v)| n == m && v == view))
        };
        match component.members.iter().any(|(_, view)| back(view)) {
            true => component.new_view(),
            false => vec![],
        }
    }

    /// The cluster step writes its mark.
    pub fn mark(&mut self, n: usize, step: &str) -> Vec<Saved> {
        let Some(component) = self.of_mut(n) else { return vec![] };
        component.marks.push(step.into());
        component.seqno += 1;
        component.saved()
    }
}
