//! The end of verifications, in clusters, where a link and its session's index entry are on different nodes.

use std::{collections::HashMap, ops::Range};

use lapin::BasicProperties;
use serde_json::{Value, json};

use crate::support::{TestEnv, Worker, wait_until};

/// Requests a link for each person, and returns the sessions.
pub async fn sessions(
    env: &mut TestEnv,
    people: Range<usize>,
    round: &str,
) -> HashMap<usize, String> {
    let count = people.len();
    for person in people {
        let id = format!("{round}-{person}");
        env.publish_request(&id, &format!("user-{person}")).await;
    }
    let events = env.rabbitmq.next_events(count).await;
    let sessions = events.iter().map(|event| {
        let data = event.data();
        let text = |name: &str| data[name].as_str().unwrap().to_owned();
        (text("userId").replace("user-", "").parse().unwrap(), text("sessionId"))
    });
    sessions.collect()
}

/// Ends the sessions by user, by session or by both in turn, and waits until the workers have processed that. Returns
/// how many links they have found and forgotten.
pub async fn end(env: &TestEnv, workers: &[&Worker], sessions: &HashMap<usize, String>) -> usize {
    let processed = async |outcomes: &[&str]| {
        let mut processed = 0.0;
        for worker in workers {
            for outcome in outcomes {
                let series = format!("handoff_endings_total{{outcome=\"{outcome}\"}}");
                processed += worker.metric_or_zero(&series).await;
            }
        }
        processed as usize
    };
    let all = ["forgotten", "unknown", "kept", "invalid"];
    let (before, forgotten) = (processed(&all).await, processed(&["forgotten"]).await);
    for (person, session) in sessions {
        let user = json!({ "userId": format!("user-{person}") });
        let mut ending: Value = if person % 3 == 1 { json!({}) } else { user };
        if person % 3 != 0 {
            ending["sessionId"] = session.as_str().into();
        }
        env.rabbitmq.publish_ending(ending, BasicProperties::default()).await;
    }
    let wanted = before + sessions.len();
    wait_until("each ending is processed", async || processed(&all).await == wanted).await;
    processed(&["forgotten"]).await - forgotten
}

/// Asserts that each person has another session.
pub fn assert_replaced(former: &HashMap<usize, String>, now: &HashMap<usize, String>) {
    assert_eq!(former.len(), now.len());
    let kept: Vec<_> = former.iter().filter(|(person, session)| now[person] == **session).collect();
    assert!(kept.is_empty(), "ended sessions were handed out: {kept:?}");
}
