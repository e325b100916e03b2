//! What is known of nodes and of agents' pods, and what is to be done about the taint.
//!
//! Knows no kube: the edge fills it, and acts as it says.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

/// What matters of a Node object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Node {
    /// It has the taint.
    pub(super) tainted: bool,
    /// A server has taken the taint off before.
    pub(super) annotated: bool,
    /// It is being deleted.
    pub(super) leaving: bool,
}

/// What is to be done now.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Take the taint off these.
    pub(super) remove: Vec<String>,
    /// Put it back on these.
    pub(super) put_back: Vec<String>,
    /// Plan again then, if nothing happens before.
    pub(super) next: Option<Instant>,
}

/// What is known.
#[derive(Debug)]
pub(super) struct State {
    /// An agent counts as gone when its pod has been for so long.
    after: Duration,
    nodes: HashMap<String, Node>,
    /// The node of each agent's pod, by UID.
    agents: HashMap<String, String>,
    /// Since when an annotated node has had no agent's pod.
    without: HashMap<String, Instant>,
    /// Nodes about which nothing is done before then.
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

    /// An agent's pod is on a node.
    pub(super) fn agent(&mut self, uid: &str, node: &str) {
        self.agents.insert(uid.to_owned(), node.to_owned());
    }

    pub(super) fn agent_gone(&mut self, uid: &str) {
        self.agents.remove(uid);
    }

    /// All nodes have been listed: these.
    pub(super) fn nodes_are(&mut self, listed: &HashSet<String>) {
        self.nodes.retain(|name, _| listed.contains(name));
    }

    /// All agents' pods have been listed: these.
    pub(super) fn agents_are(&mut self, listed: &HashSet<String>) {
        self.agents.retain(|uid, _| listed.contains(uid));
    }

    /// Something could not be done, and is tried again then.
    pub(super) fn defer(&mut self, name: &str, until: Instant) {
        self.later.insert(name.to_owned(), until);
    }

    /// What is to be done. `guarded` are the nodes whose agents have a stream open here and say
    /// that they guard them; `attached` those with any stream.
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
                plan.again(*until);
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
            // Without a single agent in the cluster kiam is being removed, or looked for under
            // the wrong service account: no reason to close every node.
            if now < due {
                plan.again(due);
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
    fn again(&mut self, at: Instant) {
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }
}
