//! Who waits for whom on a node, in the order in which `join::node` goes through systems and steps:
//! a circle would wait for ever. Circles of `after` alone are told by `merge`.

use super::file::Loaded;
use super::problem::Problem;
use super::reader::At;
use super::system::Scope;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;

/// What can be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Point<'a> {
    Healthy(&'a str),
    /// Healthy, and its late steps done.
    Complete(&'a str),
    Step(&'a str, &'a str),
}

impl fmt::Display for Point<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Point::Healthy(system) | Point::Complete(system) => write!(f, "{system}"),
            Point::Step(system, step) => write!(f, "{system}/{step}"),
        }
    }
}

#[derive(Default)]
struct Waits<'a> {
    on: BTreeMap<Point<'a>, Vec<Point<'a>>>,
    /// Those that a `needs` asks for: of, on, file, place.
    needs: Vec<(Point<'a>, Point<'a>, &'a str, &'a At<String>)>,
}

/// Every `needs` that closes a circle.
pub(super) fn circles(all: &BTreeMap<String, Loaded>) -> Vec<Problem> {
    let mut waits = Waits::default();
    for (name, loaded) in all {
        waits.add_system(name, loaded);
    }
    waits
        .needs
        .iter()
        .filter_map(|(of, on, file, place)| {
            let circle = waits.path(*on, *of)?;
            let message = format!("nothing of this would ever start: {of} waits for {}", circle.join(", that for "));
            Some(Problem { file: file.to_string(), line: place.line, key: place.key.clone(), message })
        })
        .collect()
}

impl<'a> Waits<'a> {
    fn wait(&mut self, of: Point<'a>, on: Point<'a>) {
        self.on.entry(of).or_default().push(on);
    }

    /// Early steps, then healthy, then late steps; each step after the one before it.
    fn add_system(&mut self, name: &'a str, loaded: &'a Loaded) {
        let (healthy, complete) = (Point::Healthy(name), Point::Complete(name));
        let before: Vec<Point> = loaded.system.after.iter().map(|a| Point::Complete(a)).collect();
        let (mut early, mut late) = (before, vec![healthy]);
        for step in loaded.places.steps.iter().filter(|s| !matches!(s.scope.value, Scope::Peer | Scope::Removed)) {
            let point = Point::Step(name, &step.name.value);
            let stage = if step.needs.iter().any(|n| n.value == name) { &mut late } else { &mut early };
            let earlier = std::mem::replace(stage, vec![point]);
            earlier.into_iter().for_each(|on| self.wait(point, on));
            for need in &step.needs {
                let on = match need.value.split_once('/') {
                    Some((system, step)) => Point::Step(system, step),
                    None => Point::Healthy(&need.value),
                };
                self.wait(point, on);
                self.needs.push((point, on, &loaded.file, need));
            }
        }
        early.into_iter().for_each(|on| self.wait(healthy, on));
        late.into_iter().for_each(|on| self.wait(complete, on));
    }

    /// The shortest way, both ends included; what is called the same is named once.
    fn path(&self, from: Point<'a>, to: Point<'a>) -> Option<Vec<String>> {
        let mut came: BTreeMap<Point, Point> = BTreeMap::from([(from, from)]);
        let mut todo = VecDeque::from([from]);
        while let Some(at) = todo.pop_front() {
            if at == to {
                let mut names = vec![at.to_string()];
                let mut at = at;
                while at != from {
                    at = came[&at];
                    names.push(at.to_string());
                }
                names.reverse();
                names.dedup();
                return Some(names);
            }
            for next in self.on.get(&at).into_iter().flatten() {
                if !came.contains_key(next) {
                    came.insert(*next, at);
                    todo.push_back(*next);
                }
            }
        }
        None
    }
}
