//! A real browser: headless Chromium, driven through ChromeDriver.

use std::{
    env, fs,
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use super::{PATIENCE, required_env, soon};

/// The key of a reference to an element, as WebDriver has it.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// The keys that people get about a page with, as WebDriver writes them.
pub const TAB: char = '\u{e004}';
pub const ENTER: char = '\u{e007}';

/// A browser with one tab. Ends when it is dropped, and leaves nothing behind.
pub struct Browser {
    client: reqwest::Client,
    session: String,
    driver: Driver,
}

impl Browser {
    /// Starts it with an empty profile. It reaches nothing but this machine.
    pub async fn start() -> Self {
        let chromium = required_env("HANDOFF_TEST_CHROMIUM");
        let mut driver = Driver::start();
        let port = soon("ChromeDriver's port", driver.port()).await;
        let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        let mut browser =
            Self { client, session: format!("http://127.0.0.1:{port}/session"), driver };
        let profile =
            format!("--user-data-dir={}", browser.driver.folder.join("profile").display());
        let made = browser
            .post(
                "",
                json!({ "capabilities": { "alwaysMatch": {
                    // How long to wait for an element to appear.
                    "timeouts": { "implicit": 10_000 },
                    "goog:loggingPrefs": { "browser": "ALL" },
                    "goog:chromeOptions": { "binary": chromium, "args": [
                        "--headless",
                        "--window-size=1280,800",
                        // Root has no sandbox, and containers have little shared memory.
                        "--no-sandbox",
                        "--disable-dev-shm-usage",
                        "--disable-gpu",
                        "--disable-quic",
                        "--disable-background-networking",
                        "--disable-component-update",
                        "--disable-sync",
                        "--no-first-run",
                        "--no-proxy-server",
                        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
                        profile,
                    ] },
                } } }),
            )
            .await;
        browser.session = format!("{}/{}", browser.session, made["sessionId"].as_str().unwrap());
        browser
    }

    /// Opens an address and waits until its page is there; returns the page's status.
    pub async fn open(&self, url: &str) -> u64 {
        self.post("/url", json!({ "url": url })).await;
        let status = "return performance.getEntriesByType('navigation')[0].responseStatus";
        self.script(status, json!([])).await.as_u64().unwrap()
    }

    /// Runs JavaScript in the page: the body of a function, which may return a promise.
    pub async fn script(&self, body: &str, arguments: Value) -> Value {
        self.post("/execute/sync", json!({ "script": body, "args": arguments })).await
    }

    /// Waits for an element; returns its text, white space and all.
    pub async fn text(&self, css: &str) -> String {
        let element = json!({ ELEMENT: self.find(css).await });
        let text = self.script("return arguments[0].textContent", json!([element])).await;
        text.as_str().unwrap().to_owned()
    }

    /// Waits for an element; returns an attribute as the page has it.
    pub async fn attribute(&self, css: &str, name: &str) -> String {
        let element = json!({ ELEMENT: self.find(css).await });
        let value = "return arguments[0].getAttribute(arguments[1])";
        self.script(value, json!([element, name])).await.as_str().unwrap().to_owned()
    }

    pub async fn has(&self, css: &str) -> bool {
        let found = self.script("return document.querySelector(arguments[0])", json!([css])).await;
        !found.is_null()
    }

    /// Clicks where the element is to be seen.
    pub async fn click(&self, css: &str) {
        let element = self.find(css).await;
        self.post(&format!("/element/{element}/click"), json!({})).await;
    }

    pub async fn press(&self, key: char) {
        let strokes =
            [json!({ "type": "keyDown", "value": key }), json!({ "type": "keyUp", "value": key })];
        let keyboard = json!({ "type": "key", "id": "keyboard", "actions": strokes });
        self.post("/actions", json!({ "actions": [keyboard] })).await;
    }

    /// Reads the QR code that an element shows, as a camera would: from what is on the screen.
    pub async fn read_qr_code(&self, css: &str) -> String {
        let element = self.find(css).await;
        let png = self.get(&format!("/element/{element}/screenshot")).await;
        // The browser itself unpacks the image.
        let dark = "const image = new Image();
            image.src = 'data:image/png;base64,' + arguments[0];
            return image.decode().then(() => {
                const { width, height } = image;
                const context = new OffscreenCanvas(width, height).getContext('2d');
                context.drawImage(image, 0, 0);
                const { data } = context.getImageData(0, 0, width, height);
                const rows = Array.from({ length: height }, (_, y) =>
                    Array.from({ length: width }, (_, x) => +(data[4 * (y * width + x)] < 128)));
                return rows.map((row) => row.join(''));
            })";
        let rows: Vec<String> =
            serde_json::from_value(self.script(dark, json!([png])).await).unwrap();
        let mut image =
            rqrr::PreparedImage::prepare_from_bitmap(rows[0].len(), rows.len(), |x, y| {
                rows[y].as_bytes()[x] == b'1'
            });
        let [code] = &image.detect_grids()[..] else { panic!("not one QR code in {css}") };
        code.decode().expect("the QR code can be read").1
    }

    /// What the pages' console has said since it was asked last.
    pub async fn console(&self) -> Vec<String> {
        let entries = self.post("/se/log", json!({ "type": "browser" })).await;
        let message = |entry: &Value| entry["message"].as_str().unwrap().to_owned();
        entries.as_array().unwrap().iter().map(message).collect()
    }

    async fn find(&self, css: &str) -> String {
        let found = self.post("/element", json!({ "using": "css selector", "value": css })).await;
        found[ELEMENT].as_str().unwrap().to_owned()
    }

    async fn get(&self, path: &str) -> Value {
        answer(self.client.get(format!("{}{path}", self.session))).await
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        answer(self.client.post(format!("{}{path}", self.session)).body(body.to_string())).await
    }
}

async fn answer(request: reqwest::RequestBuilder) -> Value {
    let response = request.send().await.expect("ChromeDriver answers");
    let status = response.status();
    let answer: Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
    let value = &answer["value"];
    assert!(status.is_success(), "{}: {}", value["error"], value["message"]);
    value.clone()
}

/// ChromeDriver, and the browser it has started.
///
/// A shell ends both and removes what they wrote as soon as its input ends: when this is dropped, and
/// no less when the whole test run is killed.
struct Driver {
    shell: Child,
    /// Everything that either of them writes.
    folder: PathBuf,
}

/// `$1` is ChromeDriver, `$2` the folder. The browser's processes are in the driver's group; as long
/// as one of them is on its way out, it may add a file.
const SHELL: &str = r#"
    set -m
    "$1" --port=0 </dev/null &
    exec >&-
    read -r _
    kill -s KILL -- "-$!"
    for _ in {1..100}; do
        rm -rf "$2" && exit
        sleep 0.05
    done
    exit 1
"#;

impl Driver {
    fn start() -> Self {
        let program = required_env("HANDOFF_TEST_CHROMEDRIVER");
        let name = format!("handoff-browser-{}", uuid::Uuid::new_v4().simple());
        let folder = env::temp_dir().join(name);
        fs::create_dir(&folder).unwrap();
        let homes = ["HOME", "TMPDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"];
        let shell = Command::new("bash")
            .args(["-c", SHELL, "bash", &program])
            .arg(&folder)
            .envs(homes.map(|name| (name, &folder)))
            // Out of reach of what ends the test run.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("bash starts");
        Self { shell, folder }
    }

    /// The port it has found for itself.
    async fn port(&mut self) -> u16 {
        let mut lines = BufReader::new(self.shell.stdout.as_mut().unwrap()).lines();
        while let Some(line) = lines.next_line().await.unwrap() {
            if let Some((_, port)) = line.split_once("started successfully on port ") {
                return port.trim_end_matches('.').parse().unwrap();
            }
        }
        panic!("ChromeDriver ended");
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let end = Instant::now() + PATIENCE;
        let mut ended = self.shell.try_wait();
        while matches!(ended, Ok(None)) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
            ended = self.shell.try_wait();
        }
        let swept = matches!(ended, Ok(Some(status)) if status.success());
        assert!(swept || std::thread::panicking(), "the browser left something behind: {ended:?}");
    }
}
