//! Which of RabbitMQ's nodes a connection goes to, and how long it is waited for.

use std::time::Duration;

use lapin::{tcp::OwnedIdentity, uri::SASLMechanism};

use crate::config::{AmqpNode, AmqpNodes, ClientIdentity};

/// Limit of waiting for the first byte, at first and at most.
/// RabbitMQ usually answers at once, in AMQP and in TLS. A silent peer is frozen or cut off, or slow:
/// then only a longer wait reaches it.
const FIRST_BYTE: Duration = Duration::from_secs(2);
const MAX_DOUBLINGS: usize = 2;

impl Attempt {
    /// Why the node may close the connection before the login, apart from going down; empty without TLS.
    ///
    /// With TLS 1.3 a server that refuses the client certificate sends an alert after the handshake, and
    /// closes the connection. The alert is lost if the client writes in between (rustls/tokio-rustls#38).
    /// RabbitMQ 3.10 closes the connection without an answer if the SASL mechanism is off, and lapin 4.12 does
    /// not compare the mechanisms that RabbitMQ offers (neither reported upstream).
    pub(super) fn on_close(&self) -> &'static str {
        match (self.node.uri.query.auth_mechanism, &self.identity) {
            (Some(SASLMechanism::External), _) => {
                "RabbitMQ may have refused the client certificate, or lack the plugin \
                 rabbitmq_auth_mechanism_ssl or EXTERNAL in auth_mechanisms: see its log"
            }
            (_, Some(_)) => "RabbitMQ may have refused the client certificate: see its log",
            _ if self.node.is_tls() => {
                "RabbitMQ may require a client certificate (HANDOFF_AMQP_CERT_FILE): see its log"
            }
            _ => "",
        }
    }
}

/// Goes through the nodes: from a random one on, to the next one at each failure.
#[derive(Debug)]
pub(crate) struct NodeCursor {
    position: usize,
    /// Failures since a node last served.
    failures: usize,
}

/// One try of one node.
pub(super) struct Attempt {
    pub(super) node: AmqpNode,
    /// For the error message; empty if there is only one node.
    pub(super) name: String,
    /// Which of the host's addresses comes first.
    pub(super) first_address: usize,
    /// Limit of waiting for the first byte.
    pub(super) first_byte: Duration,
    /// The client certificate and its key.
    pub(super) identity: Option<OwnedIdentity>,
}

impl NodeCursor {
    pub(crate) fn new() -> Self {
        Self { position: usize::from(rand::random::<u16>()), failures: 0 }
    }

    /// The next connection goes to the next node, or to the next address of the only one.
    pub(crate) fn advance(&mut self) {
        self.position = self.position.wrapping_add(1);
        self.failures = self.failures.saturating_add(1);
    }

    /// A connection was lost: the next one goes to the next node, whose time is not spent, even if a replacement
    /// of the lost one has failed.
    pub(crate) fn lost(&mut self) {
        self.position = self.position.wrapping_add(1);
        self.failures = 0;
    }

    /// The node served: the time to the first byte starts from 2 s again.
    pub(crate) fn served(&mut self) {
        self.failures = 0;
    }

    pub(super) fn attempt(&self, nodes: &AmqpNodes) -> Attempt {
        // There is at least one.
        let count = nodes.nodes().len();
        let index = self.position % count;
        let round = self.failures / count;
        let mut node = nodes.nodes()[index].clone();
        node.uri.query.auth_mechanism = Some(nodes.mechanism(&node));
        Attempt {
            identity: nodes.identity().map(ClientIdentity::to_lapin),
            node,
            name: if count > 1 {
                format!(" (node {} of {count})", index + 1)
            } else {
                String::new()
            },
            first_address: round,
            first_byte: FIRST_BYTE * (1 << round.min(MAX_DOUBLINGS)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::config::amqp_nodes;

    #[test]
    fn each_failure_leads_to_the_next_node_and_each_round_waits_longer() {
        let nodes = amqp_nodes("amqp://a,amqp://b,amqp://c").unwrap();
        let mut cursor = NodeCursor::new();
        let mut next = || {
            let attempt = cursor.attempt(&nodes);
            cursor.advance();
            (attempt.node.uri.authority.host, attempt.first_byte.as_secs(), attempt.first_address)
        };
        let rounds: Vec<Vec<_>> = (0..4).map(|_| (0..3).map(|_| next()).collect()).collect();
        for (round, (seconds, tried)) in [2, 4, 8, 8].into_iter().zip(&rounds).enumerate() {
            let hosts: HashSet<_> = tried.iter().map(|(host, ..)| host).collect();
            assert_eq!(hosts.len(), 3);
            assert!(tried.iter().all(|(_, limit, first)| (*limit, *first) == (seconds, round)));
        }
    }

    #[test]
    fn first_node_is_random() {
        let nodes = amqp_nodes("amqp://a,amqp://b,amqp://c").unwrap();
        let first = || NodeCursor::new().attempt(&nodes).node.uri.authority.host;
        let hosts: HashSet<_> = (0..200).map(|_| first()).collect();
        assert_eq!(hosts.len(), 3);
    }
}
