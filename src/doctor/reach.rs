//! The way to a server: name, TCP, TLS. No more than that is said.

use std::time::{Duration, Instant, SystemTime};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use url::Url;

use crate::tls::{self, Watch};

/// Limit of the whole way.
const REACH_LIMIT: Duration = Duration::from_secs(5);

/// Either kind of connection.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A server that was reached.
pub(super) struct Reached {
    pub(super) stream: Box<dyn Stream>,
    pub(super) took: Duration,
    /// With TLS: when the first of its certificates ends.
    pub(super) certified_until: Option<SystemTime>,
}

/// Connects to the server of a URL. The error says why not, in a few words and without the URL.
pub(super) async fn reach(url: &Url, default_port: u16) -> Result<Reached, String> {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let port = url.port_or_known_default().unwrap_or(default_port);
    let secure = matches!(url.scheme(), "https" | "amqps" | "rediss");
    let start = Instant::now();
    let way = async {
        let tcp =
            TcpStream::connect((host, port)).await.map_err(|error| tls::on_the_way(&error))?;
        if !secure {
            let stream: Box<dyn Stream> = Box::new(tcp);
            return Ok((stream, None));
        }
        let watch = Watch::new()?;
        let stream = watch.connect(host, tcp).await.map_err(|error| tls::on_the_way(&error))?;
        let stream: Box<dyn Stream> = Box::new(stream);
        Ok((stream, watch.ends()))
    };
    let (stream, certified_until) =
        timeout(REACH_LIMIT, way).await.unwrap_or_else(|_| Err("no answer in time".to_owned()))?;
    Ok(Reached { stream, took: start.elapsed(), certified_until })
}
