//! Where the nodes of RabbitMQ and the client certificate come from.

use super::{
    amqp::AmqpNodes,
    client_identity::ClientIdentity,
    watched::{NamedFile, Watched, watch_file},
};

/// The nodes of RabbitMQ and the client certificate, either of which may change while the worker runs.
#[derive(Clone, Debug)]
pub struct AmqpSource {
    nodes: Watched<AmqpNodes>,
    identity: Watched<Option<ClientIdentity>>,
}

impl AmqpSource {
    pub(super) fn new(
        nodes: Watched<AmqpNodes>,
        identity: Watched<Option<ClientIdentity>>,
    ) -> Self {
        Self { nodes, identity }
    }

    /// The current nodes, with the current client certificate.
    pub fn current(&self) -> AmqpNodes {
        AmqpNodes::clone(&self.nodes.current()).with_identity(self.identity.current())
    }

    /// Reads the files again.
    pub(crate) async fn look(&self) {
        self.nodes.look().await;
        self.identity.look().await;
    }

    /// Looks at the files every 10 s. Never returns.
    pub(crate) async fn watch(self) {
        tokio::join!(watch_file(self.nodes), watch_file(self.identity));
    }

    /// Which settings and files hold the login, for a message.
    pub(crate) fn describe(&self) -> String {
        let named = |file: &NamedFile| format!("{} ({})", file.variable, file.path.display());
        let url = self.nodes.file().map_or_else(|| "HANDOFF_AMQP_URL".to_owned(), named);
        match self.identity.file() {
            Some(certificate) => format!("{url} and {}", named(certificate)),
            None => url,
        }
    }

    /// Waits until either is another than in `known`.
    pub(crate) async fn changed_from(&self, known: &AmqpNodes) {
        let (known_nodes, known_identity) = (self.nodes.current(), self.identity.current());
        if !self.current().is_same(known) {
            return;
        }
        tokio::select! {
            () = self.nodes.changed_from(&known_nodes) => {}
            () = self.identity.changed_from(&known_identity) => {}
        }
    }
}
