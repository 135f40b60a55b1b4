//! Links in a real browser.

use handoff::sandbox::{Options, Sandbox, TokenAlphabet};
use lapin::BasicProperties;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::support::{
    Browser, TestEnv, Worker,
    browser::{ENTER, TAB},
    platform::API_KEY,
};

/// User ids that reveal missing escaping or wrong normalization.
const USERS: [&str; 14] = [
    "  two  spaces  each  ",
    "\"O'Hara\" \\ `x`",
    "<b>bold</b><script>alert(1)</script>&lt;&amp",
    "{{user}} ${user} {0} %s",
    "a&b=c;d?e#f/g",
    "100% %20 %2B %zz %",
    "1+1+1",
    "🙂👩\u{200d}👩\u{200d}👧🏳\u{fe0f}\u{200d}🌈",
    "é",
    "e\u{301}",
    "\u{202e}שלום\u{202c} مرحبا (1)",
    "\u{feff}\u{a0}\u{200b}\u{ad}\u{2028}\u{fffd}\u{ffff}",
    "日本語／テスト",
    LONG,
];

/// The longest valid id: 256 bytes.
const LONG: &str = "Donaudampfschifffahrtsgesellschaftskapitänswitwenrentenauszahlungsstelle+\
    Donaudampfschifffahrtsgesellschaftskapitänswitwenrentenauszahlungsstelle&\
    Donaudampfschifffahrtsgesellschaftskapitänswitwenrentenauszahlungsstelle%\
    Donaudampfschifffahrtsgesellschaft";

/// An environment with the sandbox as its platform; its tokens reveal wrong encoding.
async fn start_env() -> (TestEnv, Sandbox) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let options = Options {
        api_key: API_KEY.to_owned(),
        path_prefix: "/idv".to_owned(),
        token_alphabet: TokenAlphabet::Hostile,
        ..Options::default()
    };
    let sandbox = Sandbox::start(listener, options).unwrap();
    let mut env = TestEnv::start().await;
    env.set("IDV_URL", &sandbox.url());
    (env, sandbox)
}

/// Starts a worker and a browser concurrently.
async fn worker_and_browser(env: &TestEnv) -> (Worker, Browser) {
    tokio::join!(env.start_worker(), Browser::start())
}

/// Requests a link for each user, and returns the events' data in the users' order.
async fn links(env: &mut TestEnv, users: &[&str]) -> Vec<Value> {
    for (n, user) in users.iter().enumerate() {
        let request = json!({ "userId": user, "workflowId": format!("w/{n} & <i>ü</i>") });
        env.rabbitmq.publish_request(&n.to_string(), request).await;
    }
    let mut links = vec![Value::Null; users.len()];
    for event in env.rabbitmq.next_events(users.len()).await {
        assert_eq!(event.routing_key, "handoff.ready");
        let data = event.data();
        let n: usize = data["requestId"].as_str().unwrap().parse().unwrap();
        links[n] = data;
    }
    links
}

/// Extracts the inner link as the capture page does: with one `decodeURIComponent`.
async fn inner(browser: &Browser, url: &str) -> String {
    let (_, inner) = url.split_once("/capture?url=").unwrap();
    let inner = browser.script("return decodeURIComponent(arguments[0])", json!([inner])).await;
    inner.as_str().unwrap().to_owned()
}

#[tokio::test]
async fn each_link_opens_its_users_session() {
    let (mut env, sandbox) = start_env().await;
    let (_worker, browser) = worker_and_browser(&env).await;
    assert_eq!(LONG.len(), 256);

    for (n, link) in links(&mut env, &USERS).await.iter().enumerate() {
        let url = link["url"].as_str().unwrap();
        assert_eq!(browser.open(url).await, 200);
        let inner = inner(&browser, url).await;
        assert!(inner.starts_with(&format!("{}/mobile?authorization=tr-", sandbox.url())));
        assert_eq!(browser.attribute("#continue", "href").await, inner);
        assert_eq!(browser.read_qr_code("#qr").await, inner);

        // Every second link is followed with the keyboard alone.
        if n.is_multiple_of(2) {
            browser.click("#continue").await;
        } else {
            browser.press(TAB).await;
            let focused = "return document.activeElement.matches('#continue:focus-visible')";
            assert_eq!(browser.script(focused, json!([])).await, true);
            browser.press(ENTER).await;
        }
        assert_eq!(browser.text("#user").await, USERS[n]);
        assert_eq!(browser.text("#session").await, link["sessionId"].as_str().unwrap());
        assert_eq!(browser.text("#workflow").await, link["workflowId"].as_str().unwrap());
        assert_eq!(browser.script("return location.pathname", json!([])).await, "/idv/mobile");
    }
    // The pages load nothing else, and violate no content security policy.
    assert_eq!(sandbox.stats().pages_opened, 2 * USERS.len() as u64);
    assert_eq!(browser.console().await, [""; 0]);
}

#[tokio::test]
async fn invalid_link_shows_why() {
    let (mut env, sandbox) = start_env().await;
    let (_worker, browser) = worker_and_browser(&env).await;
    let links = links(&mut env, &["Zoë 1", "Zoë 2"]).await;
    let url = links[0]["url"].as_str().unwrap();
    let inner_url = inner(&browser, url).await;
    let [one, other] = [0, 1].map(|n| links[n]["sessionId"].as_str().unwrap());
    let opened = |status, title| {
        let browser = &browser;
        move |url: String| async move {
            assert_eq!(browser.open(&url).await, status, "{url}");
            assert_eq!(browser.text("h1").await, title);
            assert!(browser.has("#error").await && !browser.has("#user, #continue").await);
            assert!(!browser.text("main").await.contains("Zoë"));
        }
    };

    // With another user's session.
    opened(403, "This link does not match")(inner_url.replace(one, other)).await;
    // With the inner link not encoded, and encoded twice.
    let outer = url.split_once("?url=").unwrap().0;
    opened(400, "This link leads nowhere")(format!("{outer}?url={inner_url}")).await;
    opened(400, "This link leads nowhere")(url.replace('%', "%25")).await;
    // With an expired token, on the second page and on the first.
    assert_eq!(browser.open(&inner_url).await, 200);
    sandbox.expire_tokens();
    opened(410, "This link has expired")(inner_url).await;
    assert_eq!(browser.open(url).await, 200);
    browser.click("#continue").await;
    assert!(browser.text("#error").await.contains("time is over"));
}

#[tokio::test]
async fn person_who_finished_or_closed_a_verification_gets_another_link() {
    for flow in ["token", "deeplink"] {
        let (mut env, _sandbox) = start_env().await;
        env.set("IDV_FLOW", flow);
        let (worker, browser) = worker_and_browser(&env).await;
        for (user, button, text, forgotten) in
            [("Zoë 1", "#finish", "was finished", 1), ("Zoë 2", "#close", "was closed", 2)]
        {
            let link = links(&mut env, &[user]).await.remove(0);
            let (url, mobile_url) =
                (link["url"].as_str().unwrap(), link["mobileUrl"].as_str().unwrap());
            assert_eq!(browser.open(url).await, 200, "{flow}");
            if flow == "token" {
                browser.click("#continue").await;
            }
            browser.wait_for_text("#user", user).await;
            browser.click(button).await;
            browser.wait_for_text("h1", "This verification is over").await;
            assert_eq!(browser.open(mobile_url).await, 410);
            assert!(browser.text("#error").await.contains(text), "{flow}");
            // The worker has not heard of it.
            let request = json!({ "userId": user, "workflowId": link["workflowId"] });
            env.rabbitmq.publish_request("again", request.clone()).await;
            let data = env.rabbitmq.next_event().await.data();
            assert_eq!((&data["url"], &data["reused"]), (&link["url"], &json!(true)));

            // Now it has.
            let ending = json!({ "sessionId": link["sessionId"] });
            env.rabbitmq.publish_ending(ending, BasicProperties::default()).await;
            worker.wait_for_endings("forgotten", forgotten).await;
            env.rabbitmq.publish_request("at last", request).await;
            let data = env.rabbitmq.next_event().await.data();
            assert_eq!(data["reused"], false, "{flow}");
            assert_eq!(browser.open(data["url"].as_str().unwrap()).await, 200);
            if flow == "token" {
                browser.click("#continue").await;
            }
            browser.wait_for_text("#user", user).await;
            assert_eq!(browser.open(mobile_url).await, 410, "the former link stays over");
        }
        assert_eq!(
            browser.console().await.iter().filter(|line| line.contains("policy")).count(),
            0
        );
    }
}
