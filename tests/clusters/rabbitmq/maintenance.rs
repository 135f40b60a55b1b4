//! What operators do to a cluster, one step after another, under load.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;

use super::{
    cluster::{RabbitmqCluster, erlang_name},
    load::Load,
    start,
};
use crate::support::{TempFile, TestEnv, Worker, log_text, wait_until};

const PER_SECOND: f64 = 25.0;
const USER: &str = "worker";

struct Maintenance {
    cluster: RabbitmqCluster,
    env: TestEnv,
    worker: Worker,
    load: Arc<Load>,
    login: TempFile,
}

impl Maintenance {
    /// Runs `rabbitmqctl` with these words.
    async fn ctl(&self, line: &str) {
        self.cluster.nodes[1].ctl(&line.split(' ').collect::<Vec<_>>()).await;
    }

    async fn write_password(&self, password: &str) {
        let urls = self.cluster.urls().replace("guest:guest", &format!("{USER}:{password}"));
        let next = TempFile::new(&urls);
        std::fs::rename(next.path(), self.login.path()).unwrap();
    }

    fn times(&self, message: &str) -> usize {
        self.worker.log_lines(message).len()
    }

    /// Takes the permissions or the password away, and waits until the worker is refused.
    async fn refuse(&self, line: &str) {
        let refused = self.times(log_text::NOT_CONSUMING);
        self.ctl(line).await;
        self.ctl(&format!("close_all_user_connections {USER} maintenance")).await;
        self.worker.wait_for_logs(log_text::NOT_CONSUMING, refused + 1).await;
    }

    async fn delete_queue_and_wait_until_it_is_declared_again(&self, suffix: &str) {
        let queue = format!("{}{suffix}", self.env.rabbitmq.queue);
        self.ctl(&format!("delete_queue {queue}")).await;
        let list = ["--quiet", "list_queues", "name"];
        let exists =
            async || self.cluster.nodes[1].ctl(&list).await.lines().any(|line| line == queue);
        wait_until(&queue, exists).await;
        self.load.wait_for_next_event().await;
    }

    async fn delete_exchange(&self, name: &str) {
        let exchange = format!("rabbit_misc:r(<<\"/\">>, exchange, <<\"{name}\">>)");
        let delete = format!("rabbit_exchange:delete({exchange}, false, <<\"test\">>).");
        self.cluster.nodes[1].ctl(&["eval", &delete]).await;
    }

    async fn close_connections_and_change_policies(&self) {
        let consuming = self.times(log_text::CONSUMING);
        for times in 1..=2 {
            self.ctl("close_all_connections maintenance").await;
            self.worker.wait_for_logs(log_text::CONSUMING, consuming + times).await;
        }
        let pattern = format!("^{}", self.env.rabbitmq.queue);
        for policy in [r#"{"delivery-limit":50}"#, r#"{"max-length":3}"#] {
            let set = ["set_policy", "p", &pattern, policy, "--apply-to", "queues"];
            self.cluster.nodes[1].ctl(&set).await;
            self.load.wait_for_next_event().await;
        }
        self.ctl("clear_policy p").await;
    }

    async fn delete_everything_in_turn(&self) {
        for suffix in [".dead", ".retry.1s", ".ended"] {
            self.delete_queue_and_wait_until_it_is_declared_again(suffix).await;
        }
        self.delete_exchange(&self.env.rabbitmq.request_exchange).await;
        self.load.wait_for_next_event().await;
        self.delete_exchange(&self.env.rabbitmq.event_exchange).await;
        // As a consumer of events does.
        self.load.rebind().await;
        self.load.wait_for_next_event().await;
    }

    async fn take_rights_away_and_give_them_back(&self) {
        let consuming = self.times(log_text::CONSUMING);
        self.refuse(&format!("clear_permissions {USER}")).await;
        self.ctl(&format!("set_permissions {USER} .* .* .*")).await;
        self.worker.wait_for_logs(log_text::CONSUMING, consuming + 1).await;
        self.refuse(&format!("change_password {USER} p4ss-1")).await;
        self.write_password("p4ss-1").await;
        self.worker.wait_for_logs(log_text::CONSUMING, consuming + 2).await;
        self.load.wait_for_next_event().await;
    }

    async fn raise_an_alarm_on_one_node(&self) {
        let set = async |limit| {
            self.cluster.nodes[0].ctl(&["set_vm_memory_high_watermark", limit]).await;
        };
        set("0.00001").await;
        // RabbitMQ informs only those who publish. It may have blocked the producer before the worker had anything
        // to publish, so the worker's log need not mention the alarm.
        sleep(Duration::from_secs(3)).await;
        set("0.9").await;
        self.load.wait_for_next_event().await;
    }

    async fn take_a_node_out_and_in_again(&self, node: usize) {
        let [node, other] = [node, (node + 1) % 3].map(|node| &self.cluster.nodes[node]);
        node.ctl(&["stop_app"]).await;
        other.ctl(&["forget_cluster_node", &erlang_name(node)]).await;
        self.load.wait_for_next_event().await;
        node.ctl(&["reset"]).await;
        node.ctl(&["join_cluster", &erlang_name(other)]).await;
        node.ctl(&["start_app"]).await;
        self.load.wait_for_next_event().await;
    }
}

#[tokio::test]
async fn maintenance_under_load_costs_no_event_and_no_session() {
    let (cluster, mut env) = start().await;
    cluster.nodes[0].add_user(USER, "p4ss-0").await;
    let login = TempFile::new("");
    env.settings.remove("HANDOFF_AMQP_URL");
    env.set("AMQP_URL_FILE", login.path()).set("RETRY_DELAYS", "1s,2s,5s");
    let urls = cluster.urls().replace("guest:guest", &format!("{USER}:p4ss-0"));
    std::fs::write(login.path(), urls).unwrap();
    let worker = env.start_worker().await;
    let leader = cluster.leader_of(&env.rabbitmq.queue).await;
    let load = Load::start(&env, &cluster, (leader + 1) % 3).await;
    let producing = load.produce(PER_SECOND);
    load.wait_for_next_event().await;

    let maintenance = Maintenance { cluster, env, worker, load, login };
    maintenance.close_connections_and_change_policies().await;
    maintenance.delete_everything_in_turn().await;
    maintenance.take_rights_away_and_give_them_back().await;
    maintenance.raise_an_alarm_on_one_node().await;
    maintenance.take_a_node_out_and_in_again(leader).await;

    producing.stop().await;
    let Maintenance { env, worker, load, .. } = maintenance;
    load.wait_for_events().await;
    load.assert_all_ready("maintenance", &env, &worker);
    worker.stop().await;
}
