//! Formats that a body's first bytes reveal.

/// Bytes that a format begins with, and its name with the remedy.
const BEGINNINGS: [(&[u8], &str); 16] = [
    (b"\x1f\x8b", "compressed with gzip: publish it uncompressed"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd: publish it uncompressed"),
    (b"\x04\x22\x4d\x18", "compressed with lz4: publish it uncompressed"),
    (b"\xff\x06\x00\x00sNaPpY", "compressed with snappy: publish it uncompressed"),
    (b"BZh", "compressed with bzip2: publish it uncompressed"),
    (
        b"\xac\xed\x00\x05",
        "a serialized Java object: publish JSON, in Spring with a JSON message converter",
    ),
    (b"\x00\x01\x00\x00\x00\xff\xff\xff\xff\x01", "a serialized .NET object: publish JSON"),
    (b"\x04\x08", "a Ruby object (Marshal): publish JSON"),
    (b"\x00\x00\x00\x02\x14", "a serialized PHP value (igbinary): publish JSON (json_encode)"),
    (b"Obj\x01", "Avro: publish JSON"),
    (b":)\n", "Smile: publish JSON"),
    (b"\xe0\x01\x00\xea", "Ion: publish JSON"),
    (AMQP_1_0_LONG, AMQP_1_0_REMEDY),
    (b"\x00\xa3", AMQP_1_0_REMEDY),
    (b"\xd9\xd9\xf7", "CBOR: publish JSON"),
    (b"\xef\xbb\xbf", "text that begins with two byte order marks: write none"),
];

/// A section of an AMQP 1.0 message with a long descriptor; its last byte is missing here.
/// RabbitMQ delivers values and sequences as they are over AMQP 0-9-1; of a `data` section, it delivers the
/// content. Its other sections are in the body only if a client has encoded the message twice.
const AMQP_1_0_LONG: &[u8] = b"\x00\x80\0\0\0\0\0\0\0";
const AMQP_1_0_REMEDY: &str =
    "an AMQP 1.0 section: send the JSON in a data section (JMS: as a BytesMessage)";

const UTF_16: &str = "in UTF-16 or UTF-32: encode it as UTF-8";

/// What RabbitMQ's JMS client writes first to a destination that is not declared as one of AMQP: the name of
/// a class, as serialized Java objects begin.
const RABBITMQ_JMS: (&[u8], &[u8]) = (b"\xac\xed\x00\x05", b"com.rabbitmq.jms.");

/// Returns the name of the format and the remedy, as what follows "the body is ".
pub(super) fn name(body: &[u8]) -> Option<&'static str> {
    let (start, class) = RABBITMQ_JMS;
    if body.starts_with(start) && body.windows(class.len()).take(32).any(|part| part == class) {
        return Some(
            "a message of RabbitMQ's JMS client: send it to an AMQP destination (RMQDestination with amqp=true)",
        );
    }
    let known = BEGINNINGS.iter().find(|(beginning, _)| body.starts_with(beginning));
    if let Some((_, name)) = known {
        return Some(name);
    }
    if body.first_chunk().is_some_and(|size| u32::from_le_bytes(*size) as usize == body.len()) {
        return Some("BSON: publish JSON");
    }
    if body.starts_with(b"\xff\xfe")
        || body.starts_with(b"\xfe\xff")
        || is_utf16_or_32(body.trim_ascii_start())
    {
        return Some(UTF_16);
    }
    match body {
        // `header` to `footer`, with a short descriptor.
        [0, 0x53, 0x70..=0x78, ..] => Some(AMQP_1_0_REMEDY),
        // The header of zlib: method, window, level, and a checksum of these.
        [first @ 0x78, second, ..] if !second.is_ascii_alphanumeric() => {
            let is_zlib = (u16::from(*first) << 8 | u16::from(*second)) % 31 == 0;
            is_zlib.then_some("compressed with zlib (deflate): publish it uncompressed")
        }
        [0x80, 2..=5, ..] => {
            Some("a Python pickle: publish JSON (json.dumps, serializer=\"json\")")
        }
        // The version, and the tag of a tuple, map, list, binary or atom.
        [0x83, b'h' | b't' | b'l' | b'm' | b'w', ..] => {
            Some("an Erlang term (term_to_binary): publish JSON")
        }
        // No UTF-8 text begins with these.
        [0x80..=0x8f | 0xde | 0xdf, ..] if std::str::from_utf8(body).is_err() => {
            Some("MessagePack: publish JSON")
        }
        [0xa0..=0xbf, ..] => Some("CBOR: publish JSON"),
        _ => None,
    }
}

/// Whether the first characters are ASCII in UTF-16 or UTF-32.
fn is_utf16_or_32(text: &[u8]) -> bool {
    let characters = |size: usize, is_ascii: fn(&[u8]) -> bool| {
        text.len() >= size && text.chunks_exact(size).take(2).all(is_ascii)
    };
    characters(2, |unit| (unit[0] == 0) != (unit[1] == 0))
        || characters(4, |unit| unit[0] != 0 && unit[1..] == [0, 0, 0])
        || characters(4, |unit| unit[3] != 0 && unit[..3] == [0, 0, 0])
}
