//! Formats that a body's first bytes reveal.

/// Bytes that a format begins with, and its name with the remedy.
const BEGINNINGS: [(&[u8], &str); 11] = [
    (b"\x1f\x8b", "compressed with gzip: publish it uncompressed"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd: publish it uncompressed"),
    (b"\x04\x22\x4d\x18", "compressed with lz4: publish it uncompressed"),
    (b"\xff\x06\x00\x00sNaPpY", "compressed with snappy: publish it uncompressed"),
    (b"BZh", "compressed with bzip2: publish it uncompressed"),
    (
        b"\xac\xed\x00\x05",
        "a serialized Java object: publish JSON, in Spring with a JSON message converter",
    ),
    (AMQP_1_0[0], AMQP_1_0_REMEDY),
    (AMQP_1_0[1], AMQP_1_0_REMEDY),
    (AMQP_1_0[2], AMQP_1_0_REMEDY),
    (b"\xd9\xd9\xf7", "CBOR: publish JSON"),
    (b"\xef\xbb\xbf", "text that begins with two byte order marks: write none"),
];

/// The sections `amqp-sequence`, `amqp-value` and, with a long descriptor, `amqp-value`.
/// RabbitMQ delivers them as they are over AMQP 0-9-1; of a `data` section, it delivers the content.
const AMQP_1_0: [&[u8]; 3] = [b"\x00\x53\x76", b"\x00\x53\x77", b"\x00\x80\0\0\0\0\0\0\0\x77"];
const AMQP_1_0_REMEDY: &str = "an AMQP 1.0 value or sequence section: send the JSON in a data section \
                               (JMS: as a BytesMessage)";

const UTF_16: &str = "in UTF-16 or UTF-32: encode it as UTF-8";

/// Returns the name of the format and the remedy, as what follows "the body is ".
pub(super) fn name(body: &[u8]) -> Option<&'static str> {
    let known = BEGINNINGS.iter().find(|(beginning, _)| body.starts_with(beginning));
    if let Some((_, name)) = known {
        return Some(name);
    }
    if body.first_chunk().is_some_and(|size| u32::from_le_bytes(*size) as usize == body.len()) {
        return Some("BSON: publish JSON");
    }
    // UTF-16 has a NUL in every ASCII character. UTF-32 has three.
    let is_utf16 = |text: &[u8]| text.iter().take(2).any(|byte| *byte == 0);
    if body.starts_with(b"\xff\xfe")
        || body.starts_with(b"\xfe\xff")
        || is_utf16(body.trim_ascii_start())
    {
        return Some(UTF_16);
    }
    match body {
        // The header of zlib: method, window, level, and a checksum of these.
        [first @ 0x78, second, ..] if !second.is_ascii_alphanumeric() => {
            let is_zlib = (u16::from(*first) << 8 | u16::from(*second)) % 31 == 0;
            is_zlib.then_some("compressed with zlib (deflate): publish it uncompressed")
        }
        [0x80, 2..=5, ..] => {
            Some("a Python pickle: publish JSON (json.dumps, serializer=\"json\")")
        }
        // No UTF-8 text begins with these.
        [0x80..=0x8f | 0xde | 0xdf, ..] if std::str::from_utf8(body).is_err() => {
            Some("MessagePack: publish JSON")
        }
        [0xa0..=0xbf, ..] => Some("CBOR: publish JSON"),
        _ => None,
    }
}
