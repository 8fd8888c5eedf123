//! Who is talked to: what a peer says of itself when it connects, and whether it is taken.
//!
//! A worker has a name, which it keeps, and an incarnation, which rises each time it starts. What an earlier
//! incarnation still says must not count, so the newest that was met is remembered.

use crate::ids::WorkerId;
use crate::plant::{self, Plant};
use std::collections::{HashMap, VecDeque};

/// What a process does in the data plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Journals requests and binds them to ranks.
    Gateway,
    /// Runs attention.
    Attention,
    /// Holds experts.
    Experts,
    /// Both.
    Hybrid,
    /// Decides placements; sends and takes no frames.
    Operator,
}

impl Role {
    /// It dispatches tokens.
    pub const fn is_rank(self) -> bool {
        matches!(self, Self::Attention | Self::Hybrid)
    }

    /// It holds experts.
    pub const fn is_host(self) -> bool {
        matches!(self, Self::Experts | Self::Hybrid)
    }
}

/// Versions of the wire that a process speaks: by default those of its release, its own and the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WireVersions {
    /// The oldest.
    pub min: u16,
    /// The newest.
    pub max: u16,
}

impl WireVersions {
    /// The newest version that both speak.
    pub fn common(self, other: Self) -> Option<u16> {
        let newest = self.max.min(other.max);
        (newest >= self.min.max(other.min)).then_some(newest)
    }
}

/// What workers must agree on so that they understand each other, beside the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Schedule {
    /// Decode waves: a batch names its class by them.
    pub waves: u8,
    /// The scheduler is `sync`, the barrier over all workers.
    pub in_step: bool,
}

/// The first message on each connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The deployment it belongs to.
    pub deployment: String,
    /// Its number in the deployment's tables. A gateway has none.
    pub worker: Option<WorkerId>,
    /// Its name, the same over restarts.
    pub name: String,
    /// Rises each time it starts.
    pub incarnation: u64,
    /// What it does.
    pub role: Role,
    /// The wire versions it speaks.
    pub wire: WireVersions,
    /// The hash of all that decides bits. A gateway has none.
    pub numerics: Option<String>,
    /// How it schedules. A gateway does not, and the first releases do not say.
    pub schedule: Option<Schedule>,
}

/// Why a peer is refused. Said to the peer and in the log, by name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is of another deployment.
    #[error("{name} belongs to deployment {theirs:?}, and this is {ours:?}: check where it connects to")]
    Deployment {
        /// Who.
        name: String,
        /// What it said.
        theirs: String,
        /// Where it is.
        ours: String,
    },
    /// Its certificate is another's.
    #[error("a peer calls itself {name:?}, but its certificate is for {certificate:?}")]
    Name {
        /// What it said.
        name: String,
        /// What the certificate says.
        certificate: String,
    },
    /// No wire version in common.
    #[error(
        "{name} speaks wire versions {} to {}, and this process {} to {}: roll out one release at a time",
        theirs.min, theirs.max, ours.min, ours.max
    )]
    Wire {
        /// Who.
        name: String,
        /// What it speaks.
        theirs: WireVersions,
        /// What this process speaks.
        ours: WireVersions,
    },
    /// Its bits would be others.
    #[error(
        "{name} computes with numerics id {theirs}, and this worker with {ours}: it belongs to another cohort"
    )]
    Numerics {
        /// Who.
        name: String,
        /// What it said, `none` for nothing.
        theirs: String,
        /// This worker's.
        ours: String,
    },
    /// It counts its waves otherwise.
    #[error(
        "{name} runs {theirs} decode waves, and this worker {ours}: give all workers of a deployment the same --waves"
    )]
    Waves {
        /// Who.
        name: String,
        /// What it said.
        theirs: u8,
        /// This worker's.
        ours: u8,
    },
    /// One of the two waits at a barrier that the other does not know.
    #[error(
        "{name} runs {} the sync scheduler, and this worker {} it: the barrier is over all workers, so give \
         --scheduler sync to all of a deployment or to none",
        with(*.theirs), with(!*.theirs)
    )]
    InStep {
        /// Who.
        name: String,
        /// Whether it does.
        theirs: bool,
    },
    /// A newer incarnation was met.
    #[error(
        "{name} is at incarnation {newest}: a connection of incarnation {incarnation} comes too late. If it has just \
         started, look at the clock of its machine: an incarnation is the time of a start"
    )]
    Stale {
        /// Who.
        name: String,
        /// The one refused.
        incarnation: u64,
        /// The newest that was met.
        newest: u64,
    },
    /// Its number is another's, or it has none.
    #[error("{name} says that it is worker {theirs}, and the table has {ours} under that name")]
    Worker {
        /// Who.
        name: String,
        /// What it said, `none` for nothing.
        theirs: String,
        /// What is known, `nobody` for nothing.
        ours: String,
    },
}

fn with(it: bool) -> &'static str {
    if it { "with" } else { "without" }
}

/// What this process says of itself, and whom it has met.
#[derive(Clone, Debug)]
pub struct Members {
    own: Hello,
    /// Newest incarnation of workers, by name.
    workers: HashMap<String, u64>,
    /// Name and newest incarnation of gateways, whoever was met last at the end. No table names them.
    gateways: VecDeque<(String, u64)>,
}

/// A peer that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The wire version to speak with it.
    pub wire: u16,
}

/// Gateways that are remembered.
const MOST_GATEWAYS: usize = 256;

impl Members {
    /// Of a process that has met nobody.
    pub fn new(own: Hello) -> Self {
        Self { own, workers: HashMap::new(), gateways: VecDeque::new() }
    }

    /// What this process says.
    pub fn hello(&self) -> &Hello {
        &self.own
    }

    /// Whether a peer is taken. `certificate` is the name that its certificate is for, if connections have any;
    /// `known` is the number that the table has for a name: a worker that it does not name any more is forgotten.
    ///
    /// # Errors
    /// Why not. Nothing is remembered of a peer that is refused.
    pub fn greet(
        &mut self,
        hello: &Hello,
        certificate: Option<&str>,
        known: impl Fn(&str) -> Option<WorkerId>,
    ) -> Result<Taken, Refused> {
        let name = || hello.name.clone();
        if let Some(certificate) = certificate.filter(|c| *c != hello.name) {
            return Err(Refused::Name { name: name(), certificate: certificate.into() });
        }
        if hello.deployment != self.own.deployment {
            let (theirs, ours) = (hello.deployment.clone(), self.own.deployment.clone());
            return Err(Refused::Deployment { name: name(), theirs, ours });
        }
        let Some(wire) = self.own.wire.common(hello.wire) else {
            return Err(Refused::Wire { name: name(), theirs: hello.wire, ours: self.own.wire });
        };
        let between_workers = hello.role != Role::Gateway && self.own.role != Role::Gateway;
        if between_workers && hello.numerics != self.own.numerics {
            let text = |id: &Option<String>| id.clone().unwrap_or_else(|| "none".into());
            let (theirs, ours) = (text(&hello.numerics), text(&self.own.numerics));
            return Err(Refused::Numerics { name: name(), theirs, ours });
        }
        if let (true, Some(theirs), Some(ours)) = (between_workers, hello.schedule, self.own.schedule) {
            if theirs.in_step != ours.in_step {
                return Err(Refused::InStep { name: name(), theirs: theirs.in_step });
            }
            if theirs.waves != ours.waves {
                return Err(Refused::Waves { name: name(), theirs: theirs.waves, ours: ours.waves });
            }
        }
        let is_gateway = hello.role == Role::Gateway;
        let number = if is_gateway { None } else { known(&hello.name) };
        if !is_gateway && (hello.worker.is_none() || hello.worker != number) {
            let text = |id: Option<WorkerId>, none: &str| id.map_or_else(|| none.into(), |w| w.0.to_string());
            let (theirs, ours) = (text(hello.worker, "none"), text(number, "nobody"));
            return Err(Refused::Worker { name: name(), theirs, ours });
        }
        let newest = match is_gateway {
            true => self.gateways.iter().find(|(name, _)| *name == hello.name).map(|(_, newest)| *newest),
            false => self.workers.get(&hello.name).copied(),
        };
        if let Some(newest) = newest.filter(|n| hello.incarnation < *n && !plant::is(Plant::StaleIncarnation))
        {
            return Err(Refused::Stale { name: name(), incarnation: hello.incarnation, newest });
        }
        if is_gateway {
            self.gateways.retain(|(name, _)| *name != hello.name);
            self.gateways.push_back((name(), hello.incarnation));
            if self.gateways.len() > MOST_GATEWAYS {
                self.gateways.pop_front();
            }
        } else if self.workers.insert(name(), hello.incarnation).is_none() {
            self.workers.retain(|name, _| known(name).is_some());
        }
        Ok(Taken { wire })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(name: &str, role: Role) -> Hello {
        let worker = (role != Role::Gateway).then_some(WorkerId(3));
        Hello {
            deployment: "moe".into(),
            worker,
            name: name.into(),
            incarnation: 7,
            role,
            wire: WireVersions { min: 2, max: 3 },
            numerics: worker.map(|_| "bits".into()),
            schedule: worker.map(|_| Schedule { waves: 1, in_step: false }),
        }
    }

    /// A table of one worker, whatever its name.
    const KNOWN: fn(&str) -> Option<WorkerId> = |_| Some(WorkerId(3));

    fn rank() -> Members {
        Members::new(Hello { worker: Some(WorkerId(0)), ..hello("rank", Role::Attention) })
    }

    #[test]
    fn the_newest_version_that_both_speak_is_spoken() {
        let range = |min, max| WireVersions { min, max };
        for (theirs, due) in
            [((1, 2), Some(2)), ((3, 4), Some(3)), ((2, 9), Some(3)), ((4, 5), None), ((0, 1), None)]
        {
            assert_eq!(range(2, 3).common(range(theirs.0, theirs.1)), due, "{theirs:?}");
        }
        let old = Hello { wire: range(0, 1), ..hello("e", Role::Experts) };
        let refused = rank().greet(&old, None, KNOWN).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "e speaks wire versions 0 to 1, and this process 2 to 3: roll out one release at a time"
        );
    }

    #[test]
    fn an_older_incarnation_comes_too_late() {
        let mut members = rank();
        let at = |incarnation| Hello { incarnation, ..hello("e", Role::Experts) };
        assert_eq!(members.greet(&at(7), None, KNOWN), Ok(Taken { wire: 3 }));
        assert_eq!(members.greet(&at(7), None, KNOWN), Ok(Taken { wire: 3 }), "it only reconnects");
        assert!(members.greet(&at(9), None, KNOWN).is_ok());
        let stale = Refused::Stale { name: "e".into(), incarnation: 8, newest: 9 };
        assert_eq!(members.greet(&at(8), None, KNOWN), Err(stale));
        let said = members.greet(&at(8), None, KNOWN).unwrap_err().to_string();
        assert!(said.contains("clock"), "{said}");
    }

    #[test]
    fn who_left_the_table_is_forgotten_when_somebody_new_comes() {
        let mut members = rank();
        let at = |name, incarnation| Hello { incarnation, ..hello(name, Role::Experts) };
        assert!(members.greet(&at("e", 7), None, KNOWN).is_ok());
        let without = |name: &str| KNOWN(name).filter(|_| name != "e");
        assert!(members.greet(&at("f", 7), None, without).is_ok());
        assert!(members.greet(&at("e", 6), None, without).is_err(), "it is not in the table");
        assert!(members.greet(&at("e", 6), None, KNOWN).is_ok());
        assert!(members.greet(&at("f", 6), None, KNOWN).is_err());
    }

    #[test]
    fn gateways_have_a_book_of_their_own_that_holds_the_last_ones() {
        let mut members = rank();
        let mut greet = |name: &str, role, incarnation| {
            members.greet(&Hello { incarnation, ..hello(name, role) }, None, KNOWN).is_ok()
        };
        assert!(greet("x", Role::Experts, 9) && greet("x", Role::Gateway, 5));
        assert!(
            !greet("x", Role::Gateway, 4) && greet("x", Role::Experts, 9) && !greet("x", Role::Experts, 8)
        );
        for i in 0..MOST_GATEWAYS - 1 {
            assert!(greet(&format!("g{i}"), Role::Gateway, 5));
        }
        assert!(!greet("x", Role::Gateway, 4) && greet("x", Role::Gateway, 5));
        assert!(greet("g", Role::Gateway, 5));
        assert!(!greet("x", Role::Gateway, 4), "it was met after the first of the others");
        assert!(greet("g0", Role::Gateway, 4), "which is forgotten");
    }

    #[test]
    fn strangers_are_refused_by_name_and_leave_nothing_behind() {
        let mut members = rank();
        let sound = hello("e", Role::Experts);
        let other = |change: fn(&mut Hello)| {
            let mut h = Hello { incarnation: 100, ..sound.clone() };
            change(&mut h);
            h
        };
        let refused = |members: &mut Members, h: &Hello, certificate, known: fn(&str) -> Option<WorkerId>| {
            members.greet(h, certificate, known).unwrap_err().to_string()
        };
        let all = [
            refused(&mut members, &other(|h| h.deployment = "other".into()), None, KNOWN),
            refused(&mut members, &other(|h| h.numerics = None), None, KNOWN),
            refused(&mut members, &other(|h| h.worker = None), None, KNOWN),
            refused(&mut members, &other(|h| h.worker = Some(WorkerId(4))), None, KNOWN),
            refused(&mut members, &sound, None, |_| None),
            refused(&mut members, &other(|_| ()), Some("someone"), KNOWN),
        ];
        for (text, says) in
            all.iter().zip(["deployment", "cohort", "none", "worker 4", "nobody", "certificate"])
        {
            assert!(text.contains('e') && text.contains(says), "{text}");
        }
        assert!(members.greet(&sound, Some("e"), KNOWN).is_ok(), "incarnation 100 was never taken");
    }

    #[test]
    fn workers_that_schedule_otherwise_are_refused_by_name_with_what_to_do() {
        let of = |waves, in_step| {
            let schedule = Some(Schedule { waves, in_step });
            rank().greet(&Hello { schedule, ..hello("e", Role::Experts) }, None, KNOWN)
        };
        assert!(of(1, false).is_ok());
        assert_eq!(
            of(2, false).unwrap_err().to_string(),
            "e runs 2 decode waves, and this worker 1: give all workers of a deployment the same --waves"
        );
        assert_eq!(
            of(1, true).unwrap_err().to_string(),
            "e runs with the sync scheduler, and this worker without it: the barrier is over all workers, so give \
             --scheduler sync to all of a deployment or to none"
        );
        let silent = Hello { schedule: None, ..hello("e", Role::Experts) };
        assert!(rank().greet(&silent, None, KNOWN).is_ok(), "an older release");
    }

    #[test]
    fn a_gateway_takes_every_cohort_and_is_taken_by_each() {
        let gateway = hello("g", Role::Gateway);
        let mut members = Members::new(gateway.clone());
        for bits in ["bits", "others"] {
            let h = Hello { numerics: Some(bits.into()), name: bits.into(), ..hello("", Role::Hybrid) };
            assert!(members.greet(&h, None, KNOWN).is_ok());
        }
        assert!(rank().greet(&gateway, Some("g"), |_| None).is_ok());
    }
}
