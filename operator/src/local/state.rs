//! What runs on this machine for a deployment, and one round over all of it.

use super::manifest::Manifest;
use super::process::{Process, free_ports};
use super::table::Table;
use super::{Options, UpError, health};
use crate::build::agent::{self, PlacementFrom, Ports, Surroundings};
use crate::build::pod;
use crate::certificates::Authority;
use crate::names::{self, FIRST_COHORT, TEMPLATE};
use crate::placing::{Placed, Site, There, place};
use crate::pods::{Roster, decide};
use crate::pressure::{Gateways, Hub, Page};
use crate::roles::{RoleView, roles};
use crate::workers::fresh;
use futures_util::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use rustls::ClientConfig;
use serde_json::json;
use sluice_crds::{PodRecord, Role};
use sluice_identity::Identity;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// What was not heard for so long is not believed any more.
const STALE: Duration = Duration::from_secs(10);

/// A process, or one that will be.
struct Agent {
    role: Option<Role>,
    ports: Ports,
    template: String,
    args: Vec<String>,
    process: Option<Process>,
    is_ready: bool,
    /// Its process ended, and was not told to.
    has_failed: bool,
}

/// See the module.
pub struct State {
    options: Options,
    /// Everything of it on disk; gone with it.
    dir: Dir,
    authority: Authority,
    tls: Arc<ClientConfig>,
    hub: Hub,
    /// What the hub has to say. Every round looks anyway, so it is only emptied: the hub waits when it is full.
    changes: mpsc::Receiver<kube::runtime::reflector::ObjectRef<sluice_crds::MoEDeployment>>,
    records: HashMap<Role, Vec<PodRecord>>,
    agents: BTreeMap<String, Agent>,
    table: Table,
    placed: Placed,
    identity: Identity,
    of: (String, String),
    /// Gateways that were ever made: each has a name of its own.
    gateways: usize,
    gateway_not_before: Option<Instant>,
}

/// A directory that goes with its owner.
struct Dir(PathBuf);

impl Drop for Dir {
    fn drop(&mut self) {
        // The logs are what somebody may still want to read.
        for part in ["tls", "table.yaml"] {
            let path = self.0.join(part);
            let _ = std::fs::remove_dir_all(&path).or_else(|_| std::fs::remove_file(&path));
        }
    }
}

impl State {
    /// Nothing runs yet.
    pub fn new(options: &Options, manifest: &Manifest) -> Result<Self, UpError> {
        let (namespace, name) = (manifest.namespace(), manifest.name());
        let dir = std::env::temp_dir().join(format!("sluice-{name}-{}", std::process::id()));
        for part in ["tls", "logs"] {
            let path = dir.join(part);
            std::fs::create_dir_all(&path).map_err(|source| UpError::Write { path, source })?;
        }
        let authority = Authority::create()?;
        let tls = Arc::new(authority.client(&names::operator(namespace, name), &authority.certificate)?);
        let (sender, changes) = mpsc::channel(64);
        Ok(Self {
            options: options.clone(),
            dir: Dir(dir),
            authority,
            tls,
            hub: Hub::new(sender),
            changes,
            records: HashMap::new(),
            agents: BTreeMap::new(),
            table: Table::default(),
            placed: Placed::default(),
            identity: names::gateways(namespace, name),
            of: (namespace.into(), name.into()),
            gateways: 0,
            gateway_not_before: None,
        })
    }

    /// Where logs are.
    pub fn logs(&self) -> PathBuf {
        self.dir.0.join("logs")
    }

    /// One round. What there is to say about it.
    ///
    /// # Errors
    /// What it cannot go on without.
    pub async fn step(&mut self, manifest: &Manifest) -> Result<Vec<String>, UpError> {
        while self.changes.try_recv().is_ok() {}
        let news = self.reap();
        self.look().await;
        let (views, common) = roles(&manifest.moe.spec);
        let wanted: Vec<Role> = views.iter().map(|v| v.role).collect();
        let mut may_exchange = self.placed.is_settled;
        for view in &views {
            let template = pod::template(&manifest.moe, view, &common, "");
            let is_moving = self.role(manifest, (view, &common), &template, may_exchange)?;
            may_exchange &= !is_moving;
        }
        self.agents
            .values_mut()
            .filter(|a| a.role.is_some_and(|r| !wanted.contains(&r)))
            .for_each(Agent::stop);
        self.gateways(manifest)?;
        self.place(manifest)?;
        self.start()?;
        Ok(news)
    }

    /// Takes note of processes that have ended.
    fn reap(&mut self) -> Vec<String> {
        let mut news = vec![];
        self.agents.retain(|name, a| {
            let Some(process) = &mut a.process else { return true };
            let Some(status) = process.ended() else { return true };
            if process.is_leaving {
                return false;
            }
            news.push(format!("{name} has ended ({status}): {}", process.last_words()));
            a.has_failed = true;
            // Its record decides when another takes its place; a gateway has none.
            a.role.is_some()
        });
        if !news.is_empty() {
            self.gateway_not_before = Some(Instant::now() + Duration::from_secs(1));
        }
        news
    }

    /// Whether processes are ready.
    async fn look(&mut self) {
        let running = self.agents.values_mut().filter(|a| a.process.is_some() && !a.has_failed);
        join_all(running.map(async |a| a.is_ready = health::is_ready(a.ports.admin).await)).await;
    }

    /// The processes of a role. Whether something is in motion.
    fn role(
        &mut self,
        manifest: &Manifest,
        (view, common): (&RoleView<'_>, &crate::roles::Common<'_>),
        template: &str,
        may_exchange: bool,
    ) -> Result<bool, UpError> {
        let of_role = self.agents.iter().filter(|(_, a)| a.role == Some(view.role));
        let seen: Vec<(String, Pod)> = of_role.map(|(name, a)| (name.clone(), a.as_pod(name))).collect();
        let pods: BTreeMap<String, &Pod> = seen.iter().map(|(name, p)| (name.clone(), p)).collect();
        let orders = {
            let records = self.records.get(&view.role).map_or(&[][..], Vec::as_slice);
            let surge = manifest.moe.spec.update_strategy.max_surge;
            let (replicas, now) = (view.replicas, Timestamp::now());
            let roster = Roster {
                replicas,
                template,
                cohort: FIRST_COHORT,
                surge,
                may_exchange,
                records,
                pods: &pods,
                now,
            };
            decide(&roster, || fresh(manifest.name(), view.role.name()))
        };
        for name in &orders.make {
            let ports = free_ports()?;
            let at = self.surroundings(manifest, name, ports);
            let of = (&manifest.moe, manifest.namespace());
            let args = agent::worker(of, (view, common), (name, FIRST_COHORT), &at);
            let identity = names::worker(manifest.namespace(), manifest.name(), view.role, name);
            self.certify(name, &identity)?;
            self.agents.insert(name.clone(), Agent::new(Some(view.role), ports, template.into(), args));
        }
        for name in &orders.delete {
            match self.agents.get_mut(name) {
                Some(a) if a.has_failed || a.process.is_none() => {
                    self.agents.remove(name);
                }
                Some(a) => a.stop(),
                None => {}
            }
        }
        let serving = self.agents.values().filter(|a| a.role == Some(view.role) && a.serves()).count();
        self.records.insert(view.role, orders.records);
        Ok(!orders.make.is_empty()
            || !orders.delete.is_empty()
            || serving != usize::try_from(view.replicas).unwrap_or(0))
    }

    /// The gateways: as many as there should be, each at a port of its own.
    fn gateways(&mut self, manifest: &Manifest) -> Result<(), UpError> {
        let wanted = usize::try_from(manifest.moe.spec.gateway.replicas).unwrap_or(1);
        let args =
            |name: &str, at: &Surroundings| agent::gateway((&manifest.moe, manifest.namespace()), name, at);
        // With the same name and ports, the arguments tell whether it is made from this manifest.
        let mut is_old = vec![];
        for (name, a) in self.agents.iter().filter(|(_, a)| a.role.is_none() && !a.is_leaving()) {
            let at = self.surroundings(manifest, name, a.ports);
            if args(name, &at) != a.args
                || usize::try_from(a.ports.api - self.port()).is_ok_and(|i| i >= wanted)
            {
                is_old.push(name.clone());
            }
        }
        is_old.iter().filter_map(|name| self.agents.get_mut(name).map(Agent::stop)).count();
        if self.gateway_not_before.is_some_and(|at| at > Instant::now()) {
            return Ok(());
        }
        for i in 0..wanted {
            let api = self.port() + i32::try_from(i).unwrap_or(0);
            // One that drains still has its port.
            if self.agents.values().any(|a| a.role.is_none() && a.ports.api == api) {
                continue;
            }
            self.gateways += 1;
            let name = format!("{}-gateway-{}", manifest.name(), self.gateways);
            let ports = Ports { api, ..free_ports()? };
            let at = self.surroundings(manifest, &name, ports);
            let identity = self.identity.clone();
            self.certify(&name, &identity)?;
            let args = args(&name, &at);
            self.agents.insert(name, Agent::new(None, ports, String::new(), args));
        }
        Ok(())
    }

    /// Who holds which expert, and the file that says so.
    fn place(&mut self, manifest: &Manifest) -> Result<(), UpError> {
        let front = self.agents.values().filter(|a| a.role.is_none() && a.is_ready && !a.is_leaving());
        let addresses = front.map(|a| format!("127.0.0.1:{}", a.ports.peer)).collect();
        let (identity, tls) = (self.identity.clone(), Arc::clone(&self.tls));
        self.hub.follow(&self.of.0, &self.of.1, Gateways { addresses, identity, tls });
        let heard = self.hub.heard(&self.of.0, &self.of.1).filter(|h| h.at.elapsed() < STALE);
        let page = heard.map_or_else(|| Arc::new(Page::default()), |h| h.page);
        let there: BTreeMap<String, There> = self
            .agents
            .iter()
            .filter(|(_, a)| !a.has_failed)
            .filter_map(|(name, a)| {
                let address = Some(format!("127.0.0.1:{}", a.ports.peer));
                let there =
                    There { role: a.role?, address, is_leaving: a.is_leaving(), is_ready: a.is_ready };
                Some((name.clone(), there))
            })
            .collect();
        self.placed = place(&Site {
            wanted: &manifest.moe.spec.placement,
            list: &self.table.list,
            slices: &self.table.slices,
            there: &there,
            pages: &page.by_name(),
            of: (manifest.namespace(), manifest.name()),
        });
        if self.table.take(&self.placed) || self.table.newest() == 0 {
            let path = self.dir.0.join("table.yaml");
            write(&path, &self.table.text(manifest.moe.spec.placement.segments))?;
        }
        Ok(())
    }

    /// Starts what has not been started: the table names it by now.
    fn start(&mut self) -> Result<(), UpError> {
        let logs = self.logs();
        for (name, a) in self.agents.iter_mut().filter(|(_, a)| a.process.is_none() && !a.has_failed) {
            let log = logs.join(format!("{name}.log"));
            a.process = Some(Process::start(&self.options.agent, &a.args, &log)?);
        }
        Ok(())
    }

    /// The state of all, in a line.
    pub fn line(&self, manifest: &Manifest) -> String {
        let (views, _) = roles(&manifest.moe.spec);
        let count =
            |role: Option<Role>| self.agents.values().filter(|a| a.role == role && a.serves()).count();
        let mut parts: Vec<String> = views
            .iter()
            .map(|v| format!("{} {}/{}", v.role.name(), count(Some(v.role)), v.replicas))
            .collect();
        parts.push(format!("gateway {}/{}", count(None), manifest.moe.spec.gateway.replicas));
        let (units, active) = self.placed.units;
        if units > 0 {
            parts.push(format!("experts placed {active}/{units}"));
        }
        if let Some(crate::placing::Problem::Unplaceable(why)) = &self.placed.problem {
            parts.push(why.clone());
        }
        if units > 0 && active == units && count(None) > 0 {
            parts.push(format!("serves http://{}/v1", self.options.listen));
        }
        parts.join("  ")
    }

    /// Lets all of it finish what it has begun. With the gateways gone nothing is under way, and each worker would wait
    /// for others to take over what it holds: they end at once.
    pub async fn drain(&mut self) {
        self.agents.values_mut().filter(|a| a.role.is_none()).for_each(Agent::stop);
        while self.agents.values().any(|a| a.role.is_none()) {
            self.agents
                .retain(|_, a| a.role.is_some() || a.process.as_mut().is_some_and(|p| p.ended().is_none()));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.kill();
    }

    /// Ends all of it at once.
    pub fn kill(&mut self) {
        self.agents.clear();
    }

    fn port(&self) -> i32 {
        self.options.listen.port().into()
    }

    fn surroundings(&self, manifest: &Manifest, name: &str, ports: Ports) -> Surroundings {
        let given = self.options.model.as_ref().map(|m| m.display().to_string());
        let host_path = manifest.moe.spec.model.source.host_path.as_ref().map(|h| h.path.clone());
        Surroundings {
            model: given.or(host_path).unwrap_or_default(),
            tls: self.tls_dir(name).display().to_string(),
            placement: PlacementFrom::File(self.dir.0.join("table.yaml").display().to_string()),
            host: "127.0.0.1".into(),
            ports,
        }
    }

    fn tls_dir(&self, name: &str) -> PathBuf {
        self.dir.0.join("tls").join(name)
    }

    fn certify(&self, name: &str, identity: &Identity) -> Result<(), UpError> {
        let (leaf, dir) = (self.authority.leaf(identity)?, self.tls_dir(name));
        std::fs::create_dir_all(&dir).map_err(|source| UpError::Write { path: dir.clone(), source })?;
        write(&dir.join("tls.crt"), &leaf.certificate)?;
        write(&dir.join("tls.key"), &leaf.key)?;
        write(&dir.join("ca.crt"), &self.authority.certificate)
    }
}

impl Agent {
    fn new(role: Option<Role>, ports: Ports, template: String, args: Vec<String>) -> Self {
        Self { role, ports, template, args, process: None, is_ready: false, has_failed: false }
    }

    fn stop(&mut self) {
        if let Some(process) = self.process.as_mut().filter(|p| !p.is_leaving) {
            process.stop();
        }
    }

    fn is_leaving(&self) -> bool {
        self.process.as_ref().is_some_and(|p| p.is_leaving)
    }

    fn serves(&self) -> bool {
        self.is_ready && !self.is_leaving() && !self.has_failed
    }

    /// As the decisions over pods see it.
    fn as_pod(&self, name: &str) -> Pod {
        let flag = |is: bool| if is { "True" } else { "False" };
        let mut pod = json!({
            "metadata": { "name": name, "labels": { TEMPLATE: self.template } },
            "status": {
                "phase": if self.has_failed { "Failed" } else { "Running" },
                "conditions": [{ "type": "Ready", "status": flag(self.serves()) }],
            },
        });
        if self.is_leaving() {
            pod["metadata"]["deletionTimestamp"] = json!(Timestamp::UNIX_EPOCH.to_string());
        }
        serde_json::from_value(pod).unwrap_or_default()
    }
}

/// In one step: who reads it finds the old one or the new one.
fn write(path: &Path, text: &str) -> Result<(), UpError> {
    let fail = |source| UpError::Write { path: path.into(), source };
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, text).map_err(fail)?;
    std::fs::rename(&fresh, path).map_err(fail)
}
