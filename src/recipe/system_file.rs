//! `<release>/systems/<name>.toml` -> [`System`]. Here stands what one file alone can get wrong;
//! what only the role's other systems show (order, ports, lineages) is checked in `merge`.
//!
//! | key | what |
//! |---|---|
//! | `name` | also the file's, and its overlay's |
//! | `after` | systems of the role that must be healthy on this node before |
//! | `packages` | added to the stage of the recipe that names the system |
//! | `units` | systemd units, started in this order |
//! | `ports` | TCP ports at the node's address |
//! | `secrets` | dotted names of the site's secrets that its nodes may receive |
//! | `certificates` | by each of these names its nodes know other nodes that have it |
//! | `state` | absolute folders that must outlive a reboot |
//! | `[formation] kind, dark` | `seeded` (with `dark` = `rank` or `reset`) or `static` |
//! | `[[step]] name, scope, writes, needs, timeout` | scope `node`, `cluster` or `peer`; needs `system` or `system/step` |
//! | `[health] interval` | how often its health script is asked, default 10s |

use super::name;
use super::problem::Problem;
use super::reader::{self, At, Table};
use super::system::{Dark, Formation, FormationKind, Health, Keeps, Scope, Step, System};

/// Where the parts of a system stand that later checks name.
#[derive(Default)]
pub struct Places {
    pub name: Option<At<String>>,
    pub after: Vec<At<String>>,
    pub units: Vec<At<String>>,
    pub ports: Vec<At<u16>>,
    pub secrets: Vec<At<String>>,
    pub certificates: Vec<At<String>>,
    pub state: Vec<At<String>>,
    /// The kind of the formation.
    pub formation: Option<At<FormationKind>>,
    pub steps: Vec<StepPlaces>,
}

/// The same of one step.
pub struct StepPlaces {
    pub name: At<String>,
    pub scope: At<Scope>,
    pub writes: Option<At<String>>,
    pub needs: Vec<At<String>>,
}

/// What could be read, and every problem.
pub(super) fn read(text: &str, file: &str, expected: &str) -> (Option<(System, Places)>, Vec<Problem>) {
    reader::read_all(text, file, |table| Some(read_system(table, expected)))
}

fn read_system(table: &Table<'_>, expected: &str) -> (System, Places) {
    let named = table.required("name", name::word);
    if let Some(named) = named.as_ref().filter(|n| n.value != expected) {
        table.problem_at(named, format!("the file is called {expected}.toml, so the system must be {expected:?}"));
    }
    let mut places = Places {
        name: named,
        after: table.list("after", name::word),
        units: table.list("units", name::unit),
        ports: table.numbers("ports", 1..=65_535).into_iter().map(|p| p.map(|p| p as u16)).collect(),
        secrets: table.list("secrets", name::secret),
        certificates: table.list("certificates", name::word),
        state: table.list("state", name::state_folder),
        ..Places::default()
    };
    let mut steps: Vec<Step> = Vec::new();
    for (step, step_places) in table.tables("step").iter().filter_map(read_step) {
        if steps.iter().any(|s| s.name == step.name) {
            table.problem_at(&step_places.scope, format!("two steps are called {:?}", step.name));
        }
        steps.push(step);
        places.steps.push(step_places);
    }
    let formation = table.table("formation").and_then(|t| read_formation(&t));
    places.formation = formation.as_ref().map(|f| f.clone().map(|f| f.kind));
    let list = |items: &[At<String>]| items.iter().map(|i| i.value.clone()).collect::<Vec<_>>();
    let system = System {
        name: expected.to_string(),
        after: list(&places.after),
        packages: list(&table.list("packages", name::package)),
        units: list(&places.units),
        ports: places.ports.iter().map(|p| p.value).collect(),
        secrets: list(&places.secrets),
        certificates: list(&places.certificates),
        state: list(&places.state),
        keeps: table.word("keeps", &[("copy", Keeps::Copy), ("sole", Keeps::Sole)]).map(|at| at.value),
        formation: formation.map(|f| f.value),
        steps,
        health: table
            .table("health")
            .and_then(|t| t.parsed("interval", name::duration))
            .map(|at| Health { interval: at.value })
            .unwrap_or_default(),
    };
    (system, places)
}

fn read_formation(table: &Table<'_>) -> Option<At<Formation>> {
    if !table.has("kind") {
        table.problem("kind is missing: \"seeded\" or \"static\"");
    }
    let kind = table.word("kind", &[("seeded", FormationKind::Seeded), ("static", FormationKind::Static)]);
    let dark = table.word("dark", &[("rank", Dark::Rank), ("reset", Dark::Reset)]);
    match (kind.as_ref()?.value, &dark) {
        (FormationKind::Seeded, None) if !table.has("dark") => {
            table.problem("dark is missing: \"rank\" or \"reset\" (what happens after every member was down)");
        }
        (FormationKind::Static, Some(dark)) => {
            table.problem_at(dark, "a static system has no seed, so nothing to decide after the dark");
        }
        _ => {}
    }
    kind.map(|kind| kind.map(|kind| Formation { kind, dark: dark.map(|d| d.value) }))
}

/// Names of scripts that every system has: a step of that name would be taken for one.
const SCRIPTS: [&str; 10] =
    ["seed", "join", "leave", "rank", "lineage", "health", "list-guests", "drain", "undrain", "migrate"];

fn read_step(table: &Table<'_>) -> Option<(Step, StepPlaces)> {
    let step_name = table.required("name", |text| {
        if SCRIPTS.contains(&text) {
            return Err(format!("{text:?} is the name of a script that every system may have"));
        }
        name::word(text)
    });
    if !table.has("scope") {
        table.problem("scope is missing: \"node\", \"cluster\", \"peer\" or \"removed\"");
    }
    let scopes =
        [("node", Scope::Node), ("cluster", Scope::Cluster), ("peer", Scope::Peer), ("removed", Scope::Removed)];
    let scope = table.word("scope", &scopes);
    let writes = table.parsed("writes", name::word);
    let needs = table.list("needs", |text| match text.split_once('/') {
        None => name::word(text),
        Some((system, step)) => name::word(system).and(name::word(step)).map(|_| text.to_string()),
    });
    let timeout = table.parsed("timeout", name::duration);
    if let (Some(writes), Some(Scope::Node | Scope::Peer | Scope::Removed)) = (&writes, scope.as_ref().map(|s| s.value))
    {
        table.problem_at(writes, "only a step of scope \"cluster\" writes into a lineage");
    }
    let (step_name, scope) = (step_name?, scope?);
    let step = Step {
        name: step_name.value.clone(),
        scope: scope.value,
        writes: writes.as_ref().map(|w| w.value.clone()),
        needs: needs.iter().map(|n| n.value.clone()).collect(),
        timeout: timeout.map(|t| t.value),
    };
    Some((step, StepPlaces { name: step_name, scope, writes, needs }))
}
