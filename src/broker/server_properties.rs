//! The server's product and version, which RabbitMQ sends before login.
//!
//! lapin 4.12 reads them and does not expose them (not reported upstream), so `doctor` reads them
//! from a separate connection.

use std::io::Result;

use lapin::{
    protocol::{AMQPClass, connection::AMQPMethod, parse_class},
    types::{AMQPValue, FieldTable},
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Limit of the `connection.start` frame in bytes. RabbitMQ's has a few hundred.
const MAX_FRAME: usize = 64 * 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServerProperties {
    /// `RabbitMQ`, for example.
    pub(crate) product: String,
    /// `4.2.1`, for example.
    pub(crate) version: String,
    /// The SASL mechanisms that it offers, separated by spaces.
    pub(crate) mechanisms: String,
}

/// Reads the server's first frame, or `None` if it does not speak AMQP 0-9-1.
///
/// With TLS 1.3, a server that refuses the client certificate says so only in answer to the first bytes: this
/// is the error then.
pub(crate) async fn server_properties(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
) -> Result<Option<ServerProperties>> {
    let written = stream.write_all(b"AMQP\x00\x00\x09\x01").await;
    // A frame's header: its type (1 byte), channel (2) and payload size (4).
    let mut header = [0; 7];
    // The refusal may have arrived before the write, which then fails as well.
    stream.read_exact(&mut header).await.and(written)?;
    let size = u32::from_be_bytes([header[3], header[4], header[5], header[6]]);
    let size = usize::try_from(size).ok().filter(|size| *size <= MAX_FRAME);
    let Some(size) = size else { return Ok(None) };
    let mut payload = vec![0; size];
    stream.read_exact(&mut payload).await?;
    Ok(match parse_class(&payload[..]) {
        Ok((_, AMQPClass::Connection(AMQPMethod::Start(start)))) => Some(ServerProperties {
            product: text(&start.server_properties, "product"),
            version: text(&start.server_properties, "version"),
            mechanisms: start.mechanisms.to_string(),
        }),
        _ => None,
    })
}

fn text(table: &FieldTable, key: &str) -> String {
    let text = table.inner().get(key).and_then(AMQPValue::as_long_string);
    text.map(ToString::to_string).unwrap_or_default()
}
