//! What the demo shows: requests, their events, the links, and the end of a verification.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use serde_json::json;
use time::OffsetDateTime;
use tokio::time::{sleep, timeout};
use url::Url;
use uuid::Uuid;

use crate::{
    cli::{
        errors::CliError,
        output::{print_line, qr_code},
    },
    client::{Client, ReceivedData, ReceivedEvent},
    message::READY,
    sandbox::Sandbox,
};

/// The users. The first one sends two more requests at the end, to show a reused link, and finishes.
const USERS: [&str; 5] = ["ann", "bob", "chloé", "佐藤", "zoë & co"];
/// Minimum duration of a simulated platform call.
pub(super) const LATENCY: Duration = Duration::from_millis(80);
/// Maximum random addition to it.
pub(super) const JITTER: Duration = Duration::from_millis(40);
/// How long to wait for the next event, for a page, or for a link to be forgotten.
const TIMEOUT: Duration = Duration::from_secs(20);
/// How often to look whether a link is forgotten.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// The metric that counts the forgotten links.
const FORGOTTEN: &str = "handoff_endings_total{outcome=\"forgotten\"}";

/// Publishes requests, prints their events, and collects the figures of the summary.
pub(super) struct Show<'a> {
    client: &'a mut Client,
    sandbox: &'a Sandbox,
    /// The base URL of the worker's probes and metrics.
    probes: &'a str,
    http: reqwest::Client,
    durations: Vec<Duration>,
    new_links: usize,
}

impl<'a> Show<'a> {
    pub(super) fn new(
        client: &'a mut Client,
        sandbox: &'a Sandbox,
        probes: &'a str,
    ) -> Result<Self, CliError> {
        let http = reqwest::Client::builder().no_proxy().timeout(TIMEOUT).build();
        let http = http.map_err(CliError::failed)?;
        Ok(Self { client, sandbox, probes, http, durations: vec![], new_links: 0 })
    }

    pub(super) async fn run(mut self) -> Result<(), CliError> {
        let url = self.sandbox.url();
        print_line(format_args!("A worker and a simulated platform are running: {url}\n"))?;
        print_line(format_args!(
            "{:<12}  {:<7}  {:<6}  {:>8}  user",
            "time (UTC)", "outcome", "link", "took"
        ))?;
        let mut links = self.request(&USERS).await?;
        // The link exists, so both requests reuse it without a platform call.
        links.extend(self.request(&[USERS[0]; 2]).await?);
        for link in &links {
            self.open(url_of(link)?).await?;
        }
        let former = links.pop().ok_or_else(|| CliError::failed("no link"))?;
        let link = self.finish(&former).await?;
        print_line(format_args!(
            "\nThe last link, for a browser on this machine:\n{}\n{link}\n",
            qr_code(&link)
        ))?;
        self.print_summary()
    }

    /// Publishes a request for each user, and prints events until each request has one.
    async fn request(&mut self, users: &[&str]) -> Result<Vec<ReceivedData>, CliError> {
        let mut pending = HashMap::new();
        for user in users {
            let id = Uuid::new_v4().to_string();
            let body = json!({ "userId": user }).to_string();
            pending.insert(id.clone(), Instant::now());
            let published = self.client.requester.publish(&id, body.as_bytes()).await;
            published.map_err(CliError::failed)?;
        }
        let mut links = Vec::with_capacity(users.len());
        while !pending.is_empty() {
            let event = timeout(TIMEOUT, self.client.next_event()).await.map_err(|_| {
                let missing = pending.len();
                CliError::Failed(format!("{missing} events did not arrive within {TIMEOUT:?}"))
            })?;
            let event = event.map_err(CliError::failed)?;
            if let Some(published_at) = pending.remove(&event.data.request_id) {
                links.push(self.print_event(event, published_at.elapsed())?);
            }
        }
        Ok(links)
    }

    fn print_event(
        &mut self,
        ReceivedEvent { kind, data, .. }: ReceivedEvent,
        took: Duration,
    ) -> Result<ReceivedData, CliError> {
        if kind != READY {
            let why = data.reason.as_ref().map_or("without a reason", |r| &r.message);
            return Err(CliError::Failed(format!("a request failed: {why}")));
        }
        let is_reused = data.reused == Some(true);
        let (hour, minute, second, milli) = OffsetDateTime::now_utc().to_hms_milli();
        print_line(format_args!(
            "{hour:02}:{minute:02}:{second:02}.{milli:03}  {:<7}  {:<6}  {:>5} ms  {}",
            "ready",
            if is_reused { "reused" } else { "new" },
            took.as_millis(),
            data.user_id.as_deref().unwrap_or_default(),
        ))?;
        self.durations.push(took);
        self.new_links += usize::from(!is_reused);
        Ok(data)
    }

    /// Finishes the verification of a link on its page, publishes its end, and requests another link for the same
    /// person. Returns that link.
    async fn finish(&mut self, former: &ReceivedData) -> Result<String, CliError> {
        let user = former.user_id.as_deref().unwrap_or_default();
        let page = former.mobile_url.as_deref().unwrap_or_default();
        let pressed = self.http.post(page).body("end=finish").send().await;
        let status = pressed.map_err(|error| unreachable_page(&error))?.status().as_u16();
        if status != 200 {
            return Err(CliError::Failed(format!("\"Finish\" answered with status {status}")));
        }
        print_line(format_args!(
            "\n{user} finishes the verification, and verification.ended is published. The worker\n\
             forgets the link, so the next request gets a new one:"
        ))?;
        let id = Uuid::new_v4().to_string();
        let ending = json!({ "sessionId": former.session_id }).to_string();
        let published = self.client.requester.publish_ending(&id, ending.as_bytes()).await;
        published.map_err(CliError::failed)?;
        self.until_forgotten().await?;
        let link = self.request(&[user]).await?.pop();
        let link = link.as_ref().map(url_of).transpose()?.unwrap_or_default();
        if link == url_of(former)? {
            return Err(CliError::Failed("the link was handed out again".to_owned()));
        }
        self.open(link).await?;
        let status = self.status_of(page).await?;
        if status != 410 {
            return Err(CliError::Failed(format!("the former link answers with status {status}")));
        }
        print_line("The former link now says that the verification is over; the new one opens.")?;
        Ok(link.to_owned())
    }

    /// Waits until the worker has forgotten a link. A request published before may still get it.
    async fn until_forgotten(&self) -> Result<(), CliError> {
        let looking = async {
            loop {
                let page = self.http.get(format!("{}/metrics", self.probes)).send().await?;
                let page = page.text().await?;
                let mut counts = page.lines().filter_map(|line| line.strip_prefix(FORGOTTEN));
                if counts.any(|count| count.trim() != "0") {
                    return Ok(());
                }
                sleep(LOOK_INTERVAL).await;
            }
        };
        let looked: Result<reqwest::Result<()>, _> = timeout(TIMEOUT, looking).await;
        looked
            .map_err(|_| {
                CliError::Failed(format!("the link was not forgotten within {TIMEOUT:?}"))
            })?
            .map_err(|error| CliError::Failed(format!("no metrics: {}", error.without_url())))
    }

    /// Opens a link as a person does: its page, and the page that the button there leads to.
    async fn open(&self, link: &str) -> Result<(), CliError> {
        let outer = Url::parse(link)
            .map_err(|_| CliError::Failed("a link did not open: it is no URL".to_owned()))?;
        let inner = outer.query_pairs().find(|(key, _)| key == "url").map(|(_, url)| url);
        // In the one-call flow there is no other page before `/mobile`.
        let pages = match &inner {
            Some(inner) => vec![("/capture", link), ("/mobile", &**inner)],
            None => vec![("/mobile", link)],
        };
        for (page, url) in pages {
            let status = self.status_of(url).await?;
            if status != 200 {
                let why = format!("the page {page} answered with status {status}");
                return Err(CliError::Failed(format!("a link did not open: {why}")));
            }
        }
        Ok(())
    }

    async fn status_of(&self, page: &str) -> Result<u16, CliError> {
        let opened = self.http.get(page).send().await;
        Ok(opened.map_err(|error| unreachable_page(&error))?.status().as_u16())
    }

    fn print_summary(mut self) -> Result<(), CliError> {
        self.durations.sort_unstable();
        let count = self.durations.len();
        let stats = self.sandbox.stats();
        print_line(format_args!(
            "{count} requests, {count} events: {} new links, {} reused; every link opened.\n\
             {} sessions made with {} platform calls of {} to {} ms each.\n\
             From request to event: median {} ms, maximum {} ms.",
            self.new_links,
            count - self.new_links,
            stats.sessions_made,
            stats.token_calls.total + stats.session_calls.total + stats.deeplink_calls.total,
            LATENCY.as_millis(),
            (LATENCY + JITTER).as_millis(),
            self.durations[count / 2].as_millis(),
            self.durations[count - 1].as_millis(),
        ))
    }
}

fn url_of(data: &ReceivedData) -> Result<&str, CliError> {
    data.url.as_deref().ok_or_else(|| CliError::failed("an event has no link"))
}

fn unreachable_page(error: &reqwest::Error) -> CliError {
    // Not its text, which has the URL.
    let why = if error.is_timeout() { "no answer in time" } else { "the connection failed" };
    CliError::Failed(format!("a link did not open: {why}"))
}
