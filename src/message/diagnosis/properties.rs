//! What AMQP properties and headers say about a body that cannot be served.

/// Returns a hint at how the message was made.
pub(crate) fn hint<'a>(
    content_encoding: Option<&str>,
    mut header_names: impl Iterator<Item = &'a str>,
) -> Option<&'static str> {
    encoding(content_encoding.unwrap_or_default()).or_else(|| {
        header_names.any(is_cloud_event_header).then_some(
            "its headers are those of a CloudEvent in binary mode, which is not read: send the event in \
             structured mode, or all fields in the body",
        )
    })
}

fn encoding(content_encoding: &str) -> Option<&'static str> {
    macro_rules! text {
        ($name:literal) => {
            concat!(
                "its property `content_encoding` says ",
                $name,
                ", which is not read: publish plain JSON in UTF-8"
            )
        };
    }
    Some(match content_encoding.trim().to_ascii_lowercase().as_str() {
        // kombu and pika name the charset here.
        "" | "identity" | "utf-8" | "utf8" | "us-ascii" | "ascii" => return None,
        // kombu's word for serializers other than JSON.
        "binary" => text!("binary"),
        "gzip" | "x-gzip" | "application/x-gzip" => text!("gzip"),
        "deflate" | "zlib" => text!("deflate"),
        "br" => text!("brotli"),
        "zstd" => text!("zstd"),
        "base64" => text!("base64"),
        "utf-16" | "utf-16le" | "utf-16be" | "utf16" => text!("UTF-16"),
        "iso-8859-1" | "latin1" | "latin-1" | "windows-1252" => text!("ISO 8859-1 or Windows-1252"),
        _ => text!("an encoding"),
    })
}

/// The prefixes of the AMQP binding, and those that other bindings and older SDKs use.
fn is_cloud_event_header(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["cloudevents:", "cloudevents_", "cloudevents-", "ce-", "ce_"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}
