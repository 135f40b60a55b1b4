//! Links in a real browser: what people see who open them.

use handoff::sandbox::{Options, Sandbox, TokenAlphabet};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::support::{
    Browser, TestEnv, Worker,
    browser::{ENTER, TAB},
    platform::API_KEY,
};

/// User ids that careless code breaks on, or takes for one another.
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

/// As long as an id may be: 256 bytes.
const LONG: &str = "Donaudampfschifffahrtsgesellschaftskapitänswitwenrentenauszahlungsstelle+\
    Donaudampfschifffahrtsgesellschaftskapitänswitwenrentenauszahlungsstelle&\
    Donaudampfschifffahrtsgesellschaftskapitänswitwenrentenauszahlungsstelle%\
    Donaudampfschifffahrtsgesellschaft";

/// A env whose platform is the sandbox, with tokens that careless encoding breaks.
async fn bench() -> (TestEnv, Sandbox) {
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

/// A worker and a browser, started side by side.
async fn worker_and_browser(env: &TestEnv) -> (Worker, Browser) {
    tokio::join!(env.start_worker(), Browser::start())
}

/// The data of a ready event for each user, in the users' order.
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

/// The inner link, as a page would take it out of the link: by `decodeURIComponent`, once.
async fn inner(browser: &Browser, url: &str) -> String {
    let (_, inner) = url.split_once("/capture?url=").unwrap();
    let inner = browser.script("return decodeURIComponent(arguments[0])", json!([inner])).await;
    inner.as_str().unwrap().to_owned()
}

#[tokio::test]
async fn every_link_leads_its_user_to_their_session() {
    let (mut env, sandbox) = bench().await;
    let (_worker, browser) = worker_and_browser(&env).await;
    assert_eq!(LONG.len(), 256);

    for (n, link) in links(&mut env, &USERS).await.iter().enumerate() {
        let url = link["url"].as_str().unwrap();
        assert_eq!(browser.open(url).await, 200);
        let inner = inner(&browser, url).await;
        assert!(inner.starts_with(&format!("{}/mobile?authorization=tr-", sandbox.url())));
        assert_eq!(browser.attribute("#continue", "href").await, inner);
        assert_eq!(browser.read_qr_code("#qr").await, inner);

        // Every second time by the keyboard alone.
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
    // The pages have loaded nothing else, and nothing in them has met their security policy.
    assert_eq!(sandbox.stats().pages_opened, 2 * USERS.len() as u64);
    assert_eq!(browser.console().await, [""; 0]);
}

#[tokio::test]
async fn a_link_that_opens_nothing_says_why() {
    let (mut env, sandbox) = bench().await;
    let (_worker, browser) = worker_and_browser(&env).await;
    let links = links(&mut env, &["Zoë 1", "Zoë 2"]).await;
    let url = links[0]["url"].as_str().unwrap();
    let own = inner(&browser, url).await;
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

    // With the session of somebody else.
    opened(403, "This link does not fit")(own.replace(one, other)).await;
    // Not encoded on its way into the outer link, and encoded twice.
    let outer = url.split_once("?url=").unwrap().0;
    opened(400, "This link leads nowhere")(format!("{outer}?url={own}")).await;
    opened(400, "This link leads nowhere")(url.replace('%', "%25")).await;
    // After its token's end, from its first page as from its second.
    assert_eq!(browser.open(&own).await, 200);
    sandbox.expire_tokens();
    opened(410, "This link has ended")(own).await;
    assert_eq!(browser.open(url).await, 200);
    browser.click("#continue").await;
    assert!(browser.text("#error").await.contains("time is over"));
}
