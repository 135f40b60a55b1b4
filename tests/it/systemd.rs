//! What the worker reports to systemd.

use tokio::net::UnixDatagram;

use crate::support::{TestEnv, within_timeout};

#[tokio::test]
async fn start_watchdog_and_stop_are_reported() {
    let mut env = TestEnv::start().await;
    let socket = std::env::temp_dir().join(format!("handoff-{}", env.name));
    let reports = UnixDatagram::bind(&socket).unwrap();
    env.settings.insert("NOTIFY_SOCKET".into(), socket.to_str().unwrap().to_owned());
    let worker = env.start_worker().await;
    let wait_for = async |what: &str| {
        within_timeout(what, async {
            let mut report = [0; 1_024];
            loop {
                let length = reports.recv(&mut report).await.unwrap();
                let text = String::from_utf8_lossy(&report[..length]);
                if text.lines().any(|line| line == what) {
                    break;
                }
            }
        })
        .await;
    };
    wait_for("READY=1").await;
    wait_for("STATUS=consuming requests").await;
    wait_for("WATCHDOG=1").await;
    let stopping = async {
        wait_for("STOPPING=1").await;
        // Its buffer must not fill up while the worker stops.
        while reports.try_recv(&mut [0; 1_024]).is_ok() {}
    };
    tokio::join!(worker.stop(), stopping);
    std::fs::remove_file(socket).unwrap();
}
