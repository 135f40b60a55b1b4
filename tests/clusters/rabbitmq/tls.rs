//! TLS in front of every node of a cluster.

use super::cluster::RabbitmqCluster;
use crate::support::{Authority, Proxy, TestEnv, TlsProxy, tls::tls_url};

pub struct ClusterTls {
    _authority: Authority,
    _terminated: Vec<TlsProxy>,
    /// In front of TLS: what a worker sends.
    sent: Vec<Proxy>,
}

impl ClusterTls {
    /// Has the environment's workers reach each node through TLS.
    pub async fn start(cluster: &RabbitmqCluster, env: &mut TestEnv) -> Self {
        let authority = Authority::new();
        let identity = authority.issue(&["127.0.0.1"]);
        let (mut terminated, mut sent, mut urls) = (Vec::new(), Vec::new(), Vec::new());
        for node in &cluster.nodes {
            let tls = TlsProxy::to(&node.url, &identity).await;
            let url = tls_url(&node.url, tls.port());
            let proxy = Proxy::to(&url).await;
            urls.push(proxy.url(&url));
            terminated.push(tls);
            sent.push(proxy);
        }
        env.set("AMQP_URL", &urls.join(","));
        env.trust(&authority);
        Self { _authority: authority, _terminated: terminated, sent }
    }

    /// Asserts that workers have sent something, and nothing in plain text.
    pub fn assert_used(&self) {
        let sent = self.sent.iter().map(Proxy::take_sent).collect::<Vec<_>>().concat();
        assert!(!sent.is_empty());
        assert!(!sent.windows(4).any(|bytes| bytes == b"AMQP"));
    }
}
