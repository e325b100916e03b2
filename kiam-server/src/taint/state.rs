//! The known nodes and pods of agents, and the changes of the taint that follow from them.
//!
//! Does not depend on kube: the controller updates the state, and applies the changes.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use kiam_common::pod_uid::PodUid;
use tokio::time::Instant;

/// The state of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Node {
    /// True if it has the taint.
    pub(super) tainted: bool,
    /// True if a server has removed the taint before.
    pub(super) annotated: bool,
    /// True if it is being deleted.
    pub(super) leaving: bool,
}

/// The changes that are due.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// The nodes to remove the taint from.
    pub(super) remove: Vec<String>,
    /// The nodes to add the taint to.
    pub(super) put_back: Vec<String>,
    /// The time of the next plan, if no event occurs before.
    pub(super) next: Option<Instant>,
}

/// The known nodes and pods of agents.
#[derive(Debug)]
pub(super) struct State {
    /// The time without a pod of an agent after which a node gets the taint.
    after: Duration,
    nodes: HashMap<String, Node>,
    /// The node of each pod of an agent.
    agents: HashMap<PodUid, String>,
    /// The time since which an annotated node has had no pod of an agent.
    without: HashMap<String, Instant>,
    /// The time before which a node is not changed.
    later: HashMap<String, Instant>,
}

impl State {
    pub(super) fn new(after: Duration) -> Self {
        Self {
            after,
            nodes: HashMap::new(),
            agents: HashMap::new(),
            without: HashMap::new(),
            later: HashMap::new(),
        }
    }

    pub(super) fn node(&mut self, name: &str, node: Node) {
        self.nodes.insert(name.to_owned(), node);
    }

    pub(super) fn node_gone(&mut self, name: &str) {
        self.nodes.remove(name);
    }

    /// Adds the pod of an agent.
    pub(super) fn agent(&mut self, uid: &str, node: &str) {
        self.agents.insert(uid.into(), node.to_owned());
    }

    pub(super) fn agent_gone(&mut self, uid: &str) {
        self.agents.remove(uid);
    }

    /// Removes the nodes that are not in a complete list.
    pub(super) fn retain_nodes(&mut self, listed: &HashSet<String>) {
        self.nodes.retain(|name, _| listed.contains(name));
    }

    /// Removes the pods of agents that are not in a complete list.
    pub(super) fn retain_agents(&mut self, listed: &HashSet<String>) {
        self.agents.retain(|uid, _| listed.contains(uid.as_str()));
    }

    /// Defers changes of a node until a time.
    pub(super) fn defer(&mut self, name: &str, until: Instant) {
        self.later.insert(name.to_owned(), until);
    }

    /// Plans the due changes. `attached` are the nodes whose agents are connected to this server,
    /// and `guarded` those of them that their agents guard.
    pub(super) fn plan(
        &mut self,
        guarded: &HashSet<String>,
        attached: &HashSet<String>,
        now: Instant,
    ) -> Plan {
        let mut plan = Plan::default();
        self.later.retain(|_, until| *until > now);
        let with_agent: HashSet<&String> = self.agents.values().collect();
        let absent = |name: &String, node: &Node| {
            node.annotated && !node.tainted && !node.leaving && !with_agent.contains(name)
        };
        let nodes = &self.nodes;
        self.without
            .retain(|name, _| nodes.get(name).is_some_and(|node| absent(name, node)));
        for (name, node) in nodes {
            if let Some(until) = self.later.get(name) {
                plan.at(*until);
                continue;
            }
            if node.tainted && guarded.contains(name) && !node.leaving {
                plan.remove.push(name.clone());
                continue;
            }
            if !absent(name, node) {
                continue;
            }
            let since = *self.without.entry(name.clone()).or_insert(now);
            let due = since + self.after;
            // Without any agent in the cluster, kiam is being removed or the service account is
            // misconfigured: tainting every node would be an outage.
            if now < due {
                plan.at(due);
            } else if !attached.contains(name) && !with_agent.is_empty() {
                plan.put_back.push(name.clone());
            }
        }
        plan.remove.sort_unstable();
        plan.put_back.sort_unstable();
        plan
    }
}

impl Plan {
    fn at(&mut self, at: Instant) {
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }
}
