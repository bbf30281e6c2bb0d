//! The cases. Each makes namespaces of its own, which are deleted when it ends.

mod birth;
mod entrances;
mod examples;
mod kill;
mod life;
mod lists;
mod metrics;
mod nodes;
mod outage;
mod reboot;
mod scene;
mod services;
mod static_pod;
mod uninstall;
mod waves;

use anyhow::Result;

use crate::cluster::Cluster;

/// What a case can't do without.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Needs {
    /// Nodes for ordinary pods.
    pub(crate) nodes: usize,
    /// A cluster of `cargo xtask cluster`.
    pub(crate) local: bool,
    /// Helm.
    pub(crate) helm: bool,
    /// Both families.
    pub(crate) dual_stack: bool,
}

/// One case.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// What holds where it passes.
    pub(crate) says: &'static str,
    pub(crate) needs: Needs,
    /// What it found worth a note.
    pub(crate) run: fn(&Cluster, &str) -> Result<String>,
}

const ANY: Needs = Needs {
    nodes: 1,
    local: false,
    helm: false,
    dual_stack: false,
};
const TWO: Needs = Needs { nodes: 2, ..ANY };
const LOCAL: Needs = Needs { local: true, ..TWO };
const HELM: Needs = Needs { helm: true, ..TWO };

fn case(
    name: &'static str,
    says: &'static str,
    needs: Needs,
    run: fn(&Cluster, &str) -> Result<String>,
) -> Case {
    Case {
        name,
        says,
        needs,
        run,
    }
}

/// All, in the order in which they run.
pub(crate) fn all() -> Vec<Case> {
    let mut all = Vec::new();
    all.extend(examples::cases());
    all.extend(services::cases());
    all.extend(nodes::cases());
    all.extend(entrances::cases());
    all.extend(life::cases());
    all.extend(static_pod::cases());
    all.extend(waves::cases());
    all.extend(birth::cases());
    all.extend(kill::cases());
    all.extend(outage::cases());
    all.extend(lists::cases());
    all.extend(reboot::cases());
    all.extend(uninstall::cases());
    all
}
