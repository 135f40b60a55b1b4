//! What RabbitMQ says of itself before anybody has logged in. The library keeps that to itself.

use lapin::{
    protocol::{AMQPClass, connection::AMQPMethod, parse_class},
    types::{AMQPValue, FieldTable},
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Largest greeting that is read, in bytes. A real one has some hundred.
const MAX_GREETING: usize = 64 * 1024;

/// Which server it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerProperties {
    /// Its name, such as `RabbitMQ`.
    pub product: String,
    /// Its version, such as `4.2.1`.
    pub version: String,
}

/// Says the first word on a fresh connection, and reads the answer. `None` where that is not AMQP 0-9-1.
pub async fn server_properties(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
) -> Option<ServerProperties> {
    stream.write_all(b"AMQP\x00\x00\x09\x01").await.ok()?;
    // A frame: its kind, its channel, its length; then that many bytes.
    let mut head = [0; 7];
    stream.read_exact(&mut head).await.ok()?;
    let length = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
    let length = usize::try_from(length).ok().filter(|length| *length <= MAX_GREETING)?;
    let mut frame = vec![0; length];
    stream.read_exact(&mut frame).await.ok()?;
    match parse_class(&frame[..]).ok()?.1 {
        AMQPClass::Connection(AMQPMethod::Start(start)) => Some(ServerProperties {
            product: text(&start.server_properties, "product"),
            version: text(&start.server_properties, "version"),
        }),
        _ => None,
    }
}

fn text(table: &FieldTable, key: &str) -> String {
    match table.inner().get(key) {
        Some(AMQPValue::LongString(text)) => text.to_string(),
        _ => String::new(),
    }
}
