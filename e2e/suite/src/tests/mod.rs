//! The tests, in the order in which they run.

mod faults;
mod invalid;
mod manifests;
mod quickstart;
mod restricted;
mod rights;
mod rolling;
mod samples;
mod scale;
mod standby;
mod stuck;
mod uninstall;
mod writes;

use crate::objects::Space;
use anyhow::bail;
use std::pin::Pin;
use std::time::Duration;

/// Which suite a test is in. `full` has all.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// The quickstart, and one fault of each kind.
    Smoke,
    /// Everything.
    Full,
}

impl Tier {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Smoke => "smoke",
            Self::Full => "full",
        }
    }
}

/// What has to be there first.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Nothing: the test sees to it.
    Nothing,
    /// The kinds.
    Chart,
    /// The operator, ready.
    Operator,
    /// The operator, and a cluster whose nodes and daemons may be harmed.
    Node,
}

type Ending<'a> = Pin<Box<dyn Future<Output = anyhow::Result<()>> + 'a>>;

/// A test.
pub struct Test {
    pub name: &'static str,
    /// What is shown when it passes.
    pub what: &'static str,
    pub tier: Tier,
    pub needs: Needs,
    pub limit: Duration,
    pub run: for<'a> fn(&'a Space<'a>) -> Ending<'a>,
}

impl Test {
    /// The namespace it has for itself; what the quickstart's page says is in `default`.
    pub fn namespace(&self) -> String {
        if self.own_namespace() { format!("e2e-{}", self.name) } else { "default".into() }
    }

    pub fn own_namespace(&self) -> bool {
        self.name != quickstart::NAME
    }
}

macro_rules! test {
    ($name:expr, $run:path, $tier:ident, $needs:ident, $seconds:expr, $what:expr) => {
        Test {
            name: $name,
            what: $what,
            tier: Tier::$tier,
            needs: Needs::$needs,
            limit: Duration::from_secs($seconds),
            run: |space| Box::pin($run(space)),
        }
    };
}

/// All of them.
pub fn all() -> Vec<Test> {
    vec![
        test!(
            quickstart::NAME,
            quickstart::run,
            Smoke,
            Nothing,
            420,
            "five commands of the page, and the model answers"
        ),
        test!("samples", samples::run, Smoke, Chart, 120, "every sample of crds/ is admitted"),
        test!(
            "invalid",
            invalid::run,
            Smoke,
            Chart,
            240,
            "invalid manifests are refused, and told what to write"
        ),
        test!("rights", rights::run, Smoke, Chart, 120, "namespaced, the operator has no right elsewhere"),
        test!("standby", standby::run, Smoke, Operator, 300, "two operators Ready, one leads; helm test"),
        test!(
            "restricted",
            restricted::run,
            Smoke,
            Operator,
            300,
            "all pods under the Pod Security level restricted"
        ),
        test!("expert", faults::expert, Smoke, Operator, 420, "expert pods deleted: 0 failed, same answers"),
        test!(
            "attention",
            faults::attention,
            Smoke,
            Operator,
            420,
            "the attention pod deleted: 0 failed, same answers"
        ),
        test!(
            "operator",
            faults::operator,
            Smoke,
            Operator,
            420,
            "the operator deleted: 0 failed, same answers"
        ),
        test!("drain", faults::drain, Smoke, Node, 480, "a node drained: 0 failed, same answers"),
        test!(
            "only-replica",
            faults::only_replica,
            Full,
            Node,
            480,
            "a node drained that has experts' only replicas: 0 failed, same answers"
        ),
        test!("cut", faults::cut, Full, Node, 600, "a node cut off and back: 0 failed, same answers"),
        test!(
            "rolling",
            rolling::run,
            Full,
            Node,
            480,
            "another image: a worker at a time, 0 failed, same answers"
        ),
        test!(
            "stuck",
            stuck::run,
            Full,
            Operator,
            900,
            "manifests that are valid and cannot run say why, and recover"
        ),
        test!(
            "writes",
            writes::run,
            Full,
            Chart,
            1800,
            "the operator ends at each of its writes in turn: the same comes of it"
        ),
        test!("containerd", faults::containerd, Full, Node, 420, "containerd killed: 0 failed, same pods"),
        test!("power", faults::power, Full, Node, 600, "a node's power lost: 0 failed, same answers"),
        test!(
            "apiserver",
            faults::apiserver,
            Full,
            Node,
            480,
            "the API server away for 60 s: 0 failed, same answers"
        ),
        test!(
            "upgrade",
            faults::upgrade,
            Full,
            Operator,
            480,
            "helm upgrade with changed CRDs: no agent is rolled"
        ),
        test!(
            "scale",
            scale::run,
            Smoke,
            Operator,
            600,
            "kubectl scale of experts and attention: 0 failed, same answers"
        ),
        test!(
            "uninstall",
            uninstall::run,
            Smoke,
            Operator,
            420,
            "nothing is left but the CRDs, which another release adopts"
        ),
    ]
}

/// Those of a tier.
pub fn tier(tier: Tier) -> Vec<Test> {
    all().into_iter().filter(|test| test.tier == tier).collect()
}

/// Those of these names; all without any.
///
/// # Errors
/// There is none of that name.
pub fn named(names: &[String]) -> anyhow::Result<Vec<Test>> {
    if let Some(unknown) = names.iter().find(|name| all().iter().all(|test| test.name != name.as_str())) {
        bail!("there is no test {unknown}: `e2e list` lists them");
    }
    let wanted = |test: &Test| names.is_empty() || names.iter().any(|name| name == test.name);
    Ok(all().into_iter().filter(wanted).collect())
}
