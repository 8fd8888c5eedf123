//! The processes: a gateway, attention ranks and expert workers on this machine, each a `sluice-agent`.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_agent::bench::{Client, Target};
use sluice_agent::table::{Member, Table, render};
use sluice_core::hello::Role;
use sluice_core::ids::WorkerId;

use super::setup::Setup;
use crate::certificates;

const DEPLOYMENT: [&str; 2] = ["bench", "scale"];
/// The choices of one request.
pub const CHOICES: u32 = 8;
/// Everybody has met everybody within this.
const START: Duration = Duration::from_secs(60);
/// What `/metrics` has, at most.
const PAGE: usize = 4 << 20;

/// One process. It is killed with its owner.
pub struct Agent {
    /// Its role, which its threads that drive a device are called by.
    pub role: &'static str,
    name: String,
    log: PathBuf,
    child: Child,
    admin: Client,
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Agent {
    /// The number of the process.
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// Its page `/metrics`.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn metrics(&self) -> Result<String, String> {
        let (_, page) = self.admin.get("/metrics", PAGE).await.map_err(|e| format!("{}: {e}", self.name))?;
        String::from_utf8(page.to_vec()).map_err(|e| format!("{}: {e}", self.name))
    }

    async fn is_ready(&self) -> bool {
        self.admin.get("/readyz", PAGE).await.is_ok_and(|(status, _)| status.is_success())
    }
}

/// All processes of one measurement.
pub struct Deployment {
    /// The gateway first.
    pub agents: Vec<Agent>,
    /// Where the gateway listens for clients.
    pub address: SocketAddr,
}

impl Deployment {
    /// Starts them; when this is over each is ready.
    ///
    /// # Errors
    /// What could not be had, or what a process said at its end.
    pub async fn start(setup: &Setup, binary: &Path, dir: &Path) -> Result<Self, String> {
        let write = |name: &str, text: &str| {
            let path = dir.join(name);
            std::fs::write(&path, text).map_err(|e| format!("cannot write {}: {e}", path.display()))
        };
        let members = members(setup.workers);
        // A port to be dialled at and one for pages for each of them and for the gateway.
        let ports = free_ports(2 * members.len() + 2)?;
        let setting = setup.setting()?;
        let plan = setting.plan(&setting.skew())?;
        let placement = plan.placement(setting.blocks, setting.blocks, 1);
        let table = Table {
            generation: 1,
            segments: None,
            workers: members
                .iter()
                .zip(&ports)
                .map(|((number, role, name), at)| Member {
                    number: *number,
                    name: name.clone(),
                    role: *role,
                    address: at.to_string(),
                })
                .collect(),
            slices: placement.into_iter().map(Arc::new).collect(),
        };
        write("table.yaml", &render(&table))?;
        write("costs.toml", &setup.costs()?)?;
        if setup.tls {
            certify(dir, &members)?;
        }

        let mut started = Self { agents: vec![], address: ports[members.len()] };
        let admins = &ports[members.len() + 1..];
        let gateway = (Role::Gateway, "g0".to_owned());
        let all = std::iter::once(gateway).chain(members.iter().map(|(_, role, name)| (*role, name.clone())));
        for (i, (role, name)) in all.enumerate() {
            let mut command = Command::new(binary);
            command.args([role_name(role), "--name", &name, "--deployment", &DEPLOYMENT.join("/")]);
            command.arg("--table").arg(dir.join("table.yaml")).arg("--tls");
            command.arg(if setup.tls { dir.join(&name) } else { "off".into() });
            command.args(["--admin-listen", &admins[i].to_string()]);
            if role == Role::Gateway {
                gateway_flags(&mut command, setup, started.address);
            } else {
                worker_flags(&mut command, setup, ports[i - 1], dir);
            }
            started.agents.push(spawn(command, role_name(role), name, admins[i], dir)?);
        }
        let begin = Instant::now();
        for i in 0..started.agents.len() {
            while !started.agents[i].is_ready().await {
                started.check()?;
                if begin.elapsed() > START {
                    return Err(format!(
                        "{} is not ready after {} s",
                        started.agents[i].name,
                        START.as_secs()
                    ));
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(started)
    }

    /// Whether all of them run.
    ///
    /// # Errors
    /// The first that does not, with its last words.
    pub fn check(&mut self) -> Result<(), String> {
        for agent in &mut self.agents {
            if let Ok(Some(status)) = agent.child.try_wait() {
                let log = std::fs::read_to_string(&agent.log).unwrap_or_default();
                let last = log.lines().last().unwrap_or("nothing");
                return Err(format!("{} ended ({status}) and said: {last}", agent.name));
            }
        }
        Ok(())
    }
}

/// Ranks first, so that they have the numbers of the simulator's.
fn members(workers: u32) -> Vec<(WorkerId, Role, String)> {
    let ranks = (0..workers).map(|i| (WorkerId(i), Role::Attention, format!("a{i}")));
    let hosts = (0..workers).map(|i| (WorkerId(workers + i), Role::Experts, format!("e{i}")));
    ranks.chain(hosts).collect()
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Gateway => "gateway",
        Role::Attention => "attention",
        _ => "experts",
    }
}

fn gateway_flags(command: &mut Command, setup: &Setup, at: SocketAddr) {
    let sequences = setup.sequences().to_string();
    command.args(["--listen", &at.to_string(), "--max-queue", &sequences, "--request-timeout", "1h"]);
    command.args(["--max-concurrency", &sequences, "--max-choices", &CHOICES.to_string()]);
}

/// Exactly the sequences that a rank is to have: with more it is busy, and the gateway tries another.
fn worker_flags(command: &mut Command, setup: &Setup, at: SocketAddr, dir: &Path) {
    let own = setup.per_worker.to_string();
    command.args(["--peer-listen", &at.to_string(), "--max-sequences", &own]);
    command.args(["--max-step-tokens", &setup.per_worker.max(512).to_string(), "--prefill-tokens"]);
    command.args([&setup.per_worker.max(512).to_string(), "--max-expert-rows"]);
    command.args([&(setup.sequences() * 2).max(4096).to_string(), "--scheduler", setup.policy.name()]);
    command.args(["--waves", &setup.setting().map_or(1, |s| s.waves).to_string()]);
    command.args(["--max-ranks", &setup.workers.to_string()]);
    command.args(["--routing", &setup.routing().to_string(), "--backend"]);
    command.arg(format!("modelled:{}", dir.join("costs.toml").display()));
}

fn spawn(
    mut command: Command,
    role: &'static str,
    name: String,
    admin: SocketAddr,
    dir: &Path,
) -> Result<Agent, String> {
    let log = dir.join(format!("{name}.log"));
    let fail = |e: std::io::Error| format!("{}: {e}", command.get_program().display());
    let out = File::create(&log).map_err(fail)?;
    let err = out.try_clone().map_err(fail)?;
    let admin = Client::new(Target::new(&format!("http://{admin}"), None).map_err(|e| e.to_string())?)
        .map_err(|e| e.to_string())?;
    // In a group of its own: an interrupt at the terminal is this program's to deal with.
    command.stdin(Stdio::null()).stdout(out).stderr(err).env("RUST_LOG", "warn").process_group(0);
    let child = command.spawn().map_err(|e| format!("{}: {e}", command.get_program().display()))?;
    Ok(Agent { role, name, log, child, admin })
}

fn certify(dir: &Path, members: &[(WorkerId, Role, String)]) -> Result<(), String> {
    let [namespace, name] = DEPLOYMENT;
    let id = |role: &str| format!("spiffe://sluice/ns/{namespace}/moe/{name}/role/{role}");
    let workers = members
        .iter()
        .map(|(_, role, worker)| (dir.join(worker), format!("{}/worker/{worker}", id(role_name(*role)))));
    let all: Vec<(PathBuf, String)> = workers.chain([(dir.join("g0"), id("gateway"))]).collect();
    for (path, _) in &all {
        std::fs::create_dir_all(path).map_err(|e| format!("cannot make {}: {e}", path.display()))?;
    }
    certificates::write(&all.iter().map(|(path, id)| (path.as_path(), id.clone())).collect::<Vec<_>>())
}

/// Addresses of this machine that nobody listens at.
fn free_ports(count: usize) -> Result<Vec<SocketAddr>, String> {
    let bound: std::io::Result<Vec<TcpListener>> =
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect();
    let bound = bound.map_err(|e| format!("no free port: {e}"))?;
    let at: std::io::Result<Vec<SocketAddr>> = bound.iter().map(TcpListener::local_addr).collect();
    at.map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_have_the_lower_numbers_and_ports_are_each_others_own() {
        let names: Vec<(u32, String)> = members(2).into_iter().map(|(n, _, name)| (n.0, name)).collect();
        let expected = [(0, "a0"), (1, "a1"), (2, "e0"), (3, "e1")];
        assert_eq!(names, expected.map(|(n, name)| (n, name.to_owned())));
        let mut ports = free_ports(20).unwrap();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 20);
    }
}
