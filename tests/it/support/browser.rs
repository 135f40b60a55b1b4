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

use super::{
    test_run::required_env,
    wait::{TIMEOUT, wait_until, within_timeout},
};

/// WebDriver's key for a reference to an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// WebDriver's codes for the keys that navigate a page.
pub const TAB: char = '\u{e004}';
pub const ENTER: char = '\u{e007}';

/// A browser with one tab. Exits when it is dropped, and leaves no files.
pub struct Browser {
    client: reqwest::Client,
    session: String,
    driver: Driver,
}

impl Browser {
    /// Starts it with an empty profile and no access to other hosts.
    pub async fn start() -> Self {
        let chromium = required_env("HANDOFF_TEST_CHROMIUM");
        let mut driver = Driver::start();
        let port = within_timeout("ChromeDriver's port", driver.port()).await;
        let client = reqwest::Client::builder().no_proxy().timeout(TIMEOUT).build().unwrap();
        let mut browser =
            Self { client, session: format!("http://127.0.0.1:{port}/session"), driver };
        let profile =
            format!("--user-data-dir={}", browser.driver.folder.join("profile").display());
        let made = browser
            .post(
                "",
                json!({ "capabilities": { "alwaysMatch": {
                    // How long ChromeDriver waits for an element, in milliseconds.
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

    /// Opens a URL, waits for its page, and returns the HTTP status.
    pub async fn open(&self, url: &str) -> u64 {
        self.post("/url", json!({ "url": url })).await;
        let status = "return performance.getEntriesByType('navigation')[0].responseStatus";
        self.script(status, json!([])).await.as_u64().unwrap()
    }

    /// Runs the body of a JavaScript function in the page; it may return a promise.
    pub async fn script(&self, body: &str, arguments: Value) -> Value {
        self.post("/execute/sync", json!({ "script": body, "args": arguments })).await
    }

    /// Waits for an element, and returns its text including white space.
    pub async fn text(&self, css: &str) -> String {
        let element = json!({ ELEMENT: self.find(css).await });
        let text = self.script("return arguments[0].textContent", json!([element])).await;
        text.as_str().unwrap().to_owned()
    }

    /// Waits until a page has an element with this text, as after a click that leads to another page.
    pub async fn wait_for_text(&self, css: &str, expected: &str) {
        let read = "return document.querySelector(arguments[0])?.textContent";
        wait_until(&format!("{css} is {expected}"), async || {
            self.script(read, json!([css])).await == expected
        })
        .await;
    }

    /// Waits for an element, and returns an attribute.
    pub async fn attribute(&self, css: &str, name: &str) -> String {
        let element = json!({ ELEMENT: self.find(css).await });
        let value = "return arguments[0].getAttribute(arguments[1])";
        self.script(value, json!([element, name])).await.as_str().unwrap().to_owned()
    }

    pub async fn has(&self, css: &str) -> bool {
        let found = self.script("return document.querySelector(arguments[0])", json!([css])).await;
        !found.is_null()
    }

    /// Clicks the element where it is visible.
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

    /// Reads the QR code in an element from a screenshot, as a camera would.
    pub async fn read_qr_code(&self, css: &str) -> String {
        let element = self.find(css).await;
        let png = self.get(&format!("/element/{element}/screenshot")).await;
        // The browser decodes the PNG, which saves the tests an image library.
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

    /// The console's messages since the last call.
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
/// A shell kills both and deletes their files once its standard input closes: when this is dropped,
/// and also when the whole test run is killed.
struct Driver {
    shell: Child,
    /// Holds every file that they write.
    folder: PathBuf,
}

/// `$1` is ChromeDriver, `$2` the folder. The browser's processes are in the driver's group; one that
/// is still exiting may add a file, so the shell retries the deletion.
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
            // A Ctrl-C that ends the test run must not kill the shell before it has cleaned up.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("bash starts");
        Self { shell, folder }
    }

    /// Waits for the port that it has chosen.
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
        let end = Instant::now() + TIMEOUT;
        let mut ended = self.shell.try_wait();
        while matches!(ended, Ok(None)) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
            ended = self.shell.try_wait();
        }
        let swept = matches!(ended, Ok(Some(status)) if status.success());
        assert!(swept || std::thread::panicking(), "the browser left something behind: {ended:?}");
    }
}
