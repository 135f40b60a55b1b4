//! Messages as other stacks write them: what the reason says about each.

use base64::{Engine, prelude::BASE64_STANDARD};

use crate::message::{InvalidRequest, decode_request};

const REQUEST: &str = r#"{"userId":"q-7","workflowId":"w"}"#;

fn invalid(body: &[u8]) -> InvalidRequest {
    match decode_request(body, 65_536, Some("w")).request {
        Ok(_) => panic!("it is valid: {:?}", String::from_utf8_lossy(body)),
        Err(invalid) => invalid,
    }
}

/// Asserts that the reason for each body contains these words, and nothing of the body.
fn assert_named(cases: &[(&str, &[u8], &str)]) {
    for (what, body, words) in cases {
        let InvalidRequest { message, .. } = invalid(body);
        assert!(message.contains(words), "{what}: {message}");
        assert!(!message.contains("q-7"), "{what}: {message}");
        assert!(message.len() < 300, "{what}: {message}");
    }
}

fn utf16(text: &str, encode: fn(u16) -> [u8; 2]) -> Vec<u8> {
    text.encode_utf16().flat_map(encode).collect()
}

#[test]
fn one_byte_order_mark_is_skipped() {
    let event = format!(
        r#"{{"specversion":"1.0","id":"e","source":"/s","type":"verification.requested","data":{REQUEST}}}"#
    );
    for body in [REQUEST, &event, &format!("\r\n {REQUEST}\n")] {
        let decoded = decode_request(format!("\u{feff}{body}").as_bytes(), 65_536, None);
        assert_eq!(decoded.request.map(|request| request.user_id).unwrap(), "q-7", "{body}");
    }
    // The mark counts towards the size, and a second one is not skipped.
    let body = format!("\u{feff}{REQUEST}");
    assert!(decode_request(body.as_bytes(), REQUEST.len(), None).request.is_err());
    let two = format!("\u{feff}{body}");
    assert_named(&[("two marks", two.as_bytes(), "two byte order marks")]);
}

#[test]
fn encodings_and_compressions_are_named() {
    let little = utf16(REQUEST, u16::to_le_bytes);
    let big = utf16(REQUEST, u16::to_be_bytes);
    let utf32: Vec<u8> = REQUEST.chars().flat_map(|c| u32::from(c).to_le_bytes()).collect();
    let with = |prefix: &[u8], rest: &[u8]| [prefix, rest].concat();
    let bson = with(&40_u32.to_le_bytes(), &[7; 36]);
    assert_named(&[
        ("UTF-16LE", &little, "the body is in UTF-16 or UTF-32: encode it as UTF-8"),
        ("UTF-16BE", &big, "in UTF-16"),
        ("UTF-16LE with its mark", &with(b"\xff\xfe", &little), "in UTF-16"),
        ("UTF-16BE with its mark", &with(b"\xfe\xff", &big), "in UTF-16"),
        ("UTF-32LE", &utf32, "in UTF-16 or UTF-32"),
        ("Windows-1252", b"{\"userId\":\"Zo\xeb\"}", "is not UTF-8 (at byte 14)"),
        ("gzip", b"\x1f\x8b\x08\x00\x00", "gzip: publish it uncompressed"),
        ("zlib", b"\x78\x9c\xab\x56\x2a", "zlib"),
        ("zstd", b"\x28\xb5\x2f\xfd\x04", "zstd"),
        ("BSON", &bson, "BSON"),
        ("MessagePack", b"\x82\xa6userId\xa3ann\xc0\xff", "MessagePack"),
        ("CBOR", b"\xa1\x66userId\x63ann", "CBOR"),
        ("CBOR with its tag", b"\xd9\xd9\xf7\xa1", "CBOR"),
    ]);
}

#[test]
fn serializers_of_other_languages_are_named() {
    let base64 = BASE64_STANDARD.encode(REQUEST);
    let twice = serde_json::to_string(REQUEST).unwrap();
    let bytes = serde_json::to_string(REQUEST.as_bytes()).unwrap();
    let typed = format!(r#"["com.example.Request", {REQUEST}]"#);
    let celery = format!(r#"[[{REQUEST}], {{}}, {{"callbacks": null, "chain": null}}]"#);
    assert_named(&[
        (
            "RabbitMQ's JMS client",
            b"\xac\xed\x00\x05w\x40\x00\x2ecom.rabbitmq.jms.client.message.RMQTextMessage",
            "an AMQP destination",
        ),
        (
            "Symfony Messenger",
            br#"O:36:\"Symfony\\Component\\Messenger\\Envelope\":2:{"#,
            "PHP value",
        ),
        ("Java's ObjectOutputStream", b"\xac\xed\x00\x05sr\x00", "a serialized Java object"),
        ("Python's pickle", b"\x80\x04\x95\x1a\x00\x00\x00\x00.", "a Python pickle"),
        ("PHP's serialize", br#"O:8:"stdClass":1:{s:6:"userId";s:3:"u-1";}"#, "json_encode"),
        ("PHP's serialize of an array", br#"a:1:{s:6:"userId";s:3:"u-1";}"#, "json_encode"),
        ("XML", b"<?xml version='1.0'?><request/>", "XML or HTML"),
        ("a form", b"userId=u-1&workflowId=w", "form data"),
        ("base64", base64.as_bytes(), "JSON in base64: publish the JSON itself"),
        ("encoded twice", twice.as_bytes(), "contains JSON (encoded twice): encode it once"),
        (".NET's and Go's byte array", format!("\"{base64}\"").as_bytes(), "JSON in base64"),
        ("an array of bytes", bytes.as_bytes(), "an array of bytes"),
        ("Node's Buffer", br#"{"type":"Buffer","data":[123,125]}"#, "a Buffer"),
        ("Node's Uint8Array", br#"{"0":123,"1":34}"#, "an array of bytes"),
        ("a Celery task", celery.as_bytes(), "a Celery task"),
        ("JMS's TextMessage", b"\x00\x53\x77\xa1\x02{}", "JMS: as a BytesMessage"),
        ("an AMQP 1.0 sequence", b"\x00\x53\x76\xc0\x01\x00", "AMQP 1.0"),
        ("an AMQP 1.0 value, long form", b"\x00\x80\0\0\0\0\0\0\0\x77\xa1\x02{}", "AMQP 1.0"),
        ("a whole AMQP 1.0 message", b"\x00\x53\x70\xc0\x01\x00\x00\x53\x75", "AMQP 1.0"),
        ("AMQP 1.0 with a symbol", b"\x00\xa3\x11amqp:amqp-value:*", "AMQP 1.0"),
        (".NET's BinaryFormatter", b"\x00\x01\0\0\0\xff\xff\xff\xff\x01\0\0\0", ".NET object"),
        ("Ruby's Marshal", b"\x04\x08{\x06", "a Ruby object"),
        ("PHP's igbinary", b"\0\0\0\x02\x14\x01", "igbinary"),
        ("Erlang's term_to_binary", b"\x83t\0\0\0\x01", "an Erlang term"),
        ("an Avro file", b"Obj\x01\x04", "Avro"),
        ("Smile", b":)\n\x01\xfa", "Smile"),
        ("Jackson's default typing", typed.as_bytes(), "Jackson's default typing"),
        ("base64 for URLs", base64.trim_end_matches('=').as_bytes(), "JSON in base64"),
        ("base64 in lines", format!("{}\r\n{}", &base64[..20], &base64[20..]).as_bytes(), "base64"),
        ("a JSON Web Token", b"eyJhbGciOiJIUzI1NiJ9.eyJ1IjoxfQ.c2ln", "a JSON Web Token"),
    ]);
}

#[test]
fn envelopes_and_other_spellings_are_named() {
    let wrapped = |key: &str| format!(r#"{{"{key}":{REQUEST},"x":1}}"#).into_bytes();
    let json_api = format!(r#"{{"data":{{"type":"requests","attributes":{REQUEST}}}}}"#);
    let in_string =
        format!(r#"{{"Type":"Notification","Message":{}}}"#, serde_json::Value::from(REQUEST));
    let mass_transit =
        format!(r#"{{"messageId":"1","messageType":["urn:message:A:B"],"message":{REQUEST}}}"#);
    assert_named(&[
        ("MassTransit", mass_transit.as_bytes(), "a MassTransit envelope: publish raw JSON"),
        ("NestJS", br#"{"pattern":"p","data":{"userId":"u"}}"#, "a NestJS envelope"),
        ("Celery 1", br#"{"task":"t","args":[],"kwargs":{}}"#, "a Celery task"),
        ("Laravel", br#"{"uuid":"1","displayName":"d","job":"j","data":{}}"#, "a Laravel job"),
        ("in `payload`", &wrapped("payload"), "there is one in `payload`"),
        ("in another key", &wrapped("VerificationRequest"), "there is one in another object"),
        ("JSON:API", json_api.as_bytes(), "there is one in another object"),
        ("encoded twice within", in_string.as_bytes(), "in a string: publish that object itself"),
        ("Dramatiq", br#"{"queue_name":"q","actor_name":"a","args":[]}"#, "a Dramatiq task"),
        ("Sidekiq", br#"{"class":"C","args":["u"],"jid":"1"}"#, "a Sidekiq job"),
        ("Active Job", br#"{"job_class":"C","job_id":"1","arguments":[]}"#, "an Active Job"),
        ("in `data`", &wrapped("data"), "there is one in `data`: publish that object itself"),
        (".NET's spelling", br#"{"UserId":"u"}"#, "`userId` is missing: there is `UserId`"),
        ("Python's spelling", br#"{"user_id":"u"}"#, "there is `user_id`: spell it `userId`"),
        ("another object", br#"{"a":1}"#, "`userId` is missing"),
    ]);
}

#[test]
fn items_of_a_large_body_are_not_looked_at() {
    let array = format!("[{}1]", "1,".repeat(200_000));
    let decoded = decode_request(array.as_bytes(), usize::MAX, None);
    assert_eq!(decoded.request.unwrap_err().message, "the body is JSON but not an object");
    let object = format!(r#"{{"UserId":"u","x":"{}"}}"#, "x".repeat(300_000));
    let decoded = decode_request(object.as_bytes(), usize::MAX, Some("w"));
    assert_eq!(decoded.request.unwrap_err().message, "`userId` is missing");
}

#[test]
fn syntax_errors_of_other_languages_are_named() {
    let followed = |by: &str| format!("{REQUEST}{by}").into_bytes();
    let twice = followed(&format!("\n{REQUEST}"));
    let after = |prefix: &str| format!("{prefix}{REQUEST}").into_bytes();
    let binary_prefix = [b"\0\0\x01\xff", REQUEST.as_bytes()].concat();
    assert_named(&[
        ("nothing", b"", "the body is empty"),
        ("white space", b" \r\n", "the body is empty"),
        ("half of it", br#"{"userId":"u","wor"#, "it ends too early"),
        ("a C string", &followed("\0"), "a NUL byte follows the object"),
        ("two objects", &twice, "several objects: publish a message for each request"),
        ("NULs on the next line", &followed("\n\0\0"), "a NUL byte follows the object"),
        ("a mark at the end", &followed("\u{feff}"), "an invisible character follows the object"),
        ("Ctrl-Z", &followed("\u{1a}"), "an invisible character follows the object"),
        ("a list without brackets", &followed(&format!(",{REQUEST}")), "several objects"),
        ("a comment at the end", &followed(" // x"), "JSON has no comments"),
        ("a NUL", &after("\0"), "invisible character, such as a mark or a length, precedes"),
        ("a length", &after("\0\0\0\x22"), "invisible character, such as a mark or a length"),
        ("a schema id", &after("\0\0\0\0\x01"), "invisible character, such as a mark or a length"),
        ("a record separator", &after("\u{1e}"), "invisible character, such as a mark"),
        ("a zero-width space", &after("\u{200b}"), "invisible character, such as a mark"),
        ("a no-break space", &after("\u{a0}"), "invisible character, such as a mark"),
        ("a mark in two encodings", &after("\u{ef}\u{bb}\u{bf}"), "precedes the object"),
        ("a guard", &after(")]}',\n"), "something precedes the object"),
        ("a binary prefix", &binary_prefix, "something precedes the JSON object"),
        ("YAML", b"userId: u\n", "it does not begin with an object"),
        ("hexadecimal", b"7b227573", "it does not begin with an object"),
        ("single quotes", br#"{"userId":'u'}"#, "strings need double quotes"),
        (
            "a leading zero",
            br#"{"userId":"u","x":01}"#,
            "JSON writes numbers without a leading zero",
        ),
        ("a plus", br#"{"userId":"u","x":+1}"#, "or plus"),
        ("no digit before the point", br#"{"userId":"u","x":.5}"#, "digits around the point"),
        ("nil", br#"{"userId":"u","x":nil}"#, "no words but true, false and null"),
        ("no comma", br#"{"userId":"u" "x":1}"#, "a comma or a closing bracket is missing"),
        ("Ruby's inspect", br#"{"userId"=>"u"}"#, "a colon is missing after a key"),
        ("a semicolon", &followed(";"), "(line 1, column 34): something follows the object"),
        ("NaN", br#"{"userId":"u","metadata":{"x":NaN}}"#, "no NaN and no Infinity"),
        ("nan", br#"{"userId":"u","metadata":{"x":nan}}"#, "no NaN and no Infinity"),
        ("-Infinity", br#"{"userId":"u","metadata":{"x":-Infinity}}"#, "no NaN and no Infinity"),
        ("undefined", br#"{"userId":undefined}"#, "no undefined"),
        ("Python's repr", b"{'userId': 'u'}", "use json.dumps"),
        ("Python's None", br#"{"userId":"u","locale":None}"#, "use json.dumps"),
        ("keys without quotes", b"{userId:1}", "keys need double quotes"),
        ("a raw line break", b"{\"userId\":\"a\nb\"}", "a raw control character"),
        ("a PHP escape", br#"{"userId":"it\'s"}"#, "an escape that JSON does not have"),
        ("a trailing comma", br#"{"userId":"u",}"#, "a comma"),
        ("a comment", b"// request\n{}", "no comments"),
        ("an array", br#"[{"userId":"u"}]"#, "an array: publish a message for each request"),
        ("an empty array", b"[]", "it is an empty array"),
        ("a number", b"7", "it is a number"),
        ("null", b"null", "it is null"),
        ("a string", b"\"x\"", "it is a string"),
    ]);
}

#[test]
fn wrong_values_are_named_by_their_kind() {
    let with = |rest: &str| format!(r#"{{"userId":"u","workflowId":"w",{rest}}}"#).into_bytes();
    let user = |value: &str| format!(r#"{{"userId":{value}}}"#).into_bytes();
    let expires = |text: &str| with(&format!(r#""expiresAt":{text}"#));
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("a number as user", user("20418"), "characters; it is a number"),
        ("an empty user", user("\"\""), "it is empty"),
        ("a long user", user(&format!("\"{}\"", "x".repeat(300))), "it has 300"),
        ("a control character", user(r#""a\u0085""#), "it contains one"),
        ("half a surrogate pair", user(r#""\ud83d""#), "half a surrogate pair"),
        ("an object as user", user(r#"{"id":1}"#), "it is an object"),
        ("metadata encoded twice", with(r#""metadata":"{}""#), "it is a string"),
        ("metadata as array", with(r#""metadata":[]"#), "it is an array"),
        ("PHP's renew", with(r#""renew":1"#), "it is a number"),
        ("a form's renew", with(r#""renew":"true""#), "it is a string"),
        ("Jackson's timestamp", expires("1798794000.5"), "it is a number"),
        ("Jackson's LocalDateTime", expires("[2027,1,1,9,0]"), "it is an array"),
        ("Python's isoformat", expires(r#""2027-01-01T09:00:00""#), "no offset from UTC"),
        ("PHP's ISO8601", expires(r#""2027-01-01T09:00:00+0000""#), "with a colon"),
        ("Java's ZonedDateTime", expires(r#""2027-01-01T09:00+01:00[Europe/Vienna]""#), "zone"),
        ("milliseconds as text", expires(r#""1798794000000""#), "seconds or milliseconds"),
        ("Microsoft's date", expires(r#""/Date(1798794000000)/""#), "Microsoft"),
        ("a day", expires(r#""2027-01-01""#), "no time of day"),
        ("hour 24", expires(r#""2027-01-01T24:00:00Z""#), "write 00:00:00 of the next day"),
        ("words", expires(r#""soon""#), "RFC 3339"),
    ];
    for (what, body, words) in &cases {
        let message = invalid(body).message;
        assert!(message.contains(words), "{what}: {message}");
        assert!(!message.contains("20418") && !message.contains("179879"), "{what}: {message}");
    }
}

#[test]
fn dates_that_other_stacks_write_are_read() {
    for date in [
        "2027-01-01T09:00:00Z",
        "2027-01-01t09:00:00z",
        "2027-01-01T09:00:00.1234567Z",
        "2027-01-01T09:00:00.123456789+00:00",
        "2027-01-01T09:00:00-00:00",
        "2026-12-31T23:59:60Z",
    ] {
        let body = format!(r#"{{"userId":"u","workflowId":"w","expiresAt":"{date}"}}"#);
        let request = decode_request(body.as_bytes(), 65_536, None).request;
        assert!(request.is_ok_and(|request| request.expires_at.is_some()), "{date}");
    }
}

#[test]
fn metadata_is_passed_on_as_it_was_written() {
    let metadata = r#"{"a":1e400,"b":-0.10,"c":123456789012345678901234567890,"d":"\ud800\/é","e":{"x":[[]],"x":"\u0000"}}"#;
    let body = format!(r#"{{"userId":"u","workflowId":"w","metadata":{metadata}}}"#);
    let request = decode_request(body.as_bytes(), 65_536, None).request.unwrap();
    let sent = serde_json::to_string(&request.metadata()).unwrap();
    assert_eq!(sent, metadata.trim_end_matches('}').to_owned() + "},\"externalUserId\":\"u\"}");
}

#[test]
fn properties_and_headers_hint_at_the_cause() {
    let hint = |encoding: Option<&str>, headers: &[&str], body: &str| {
        let mut invalid = invalid(body.as_bytes());
        invalid.add_hint(encoding, headers.iter().copied());
        invalid.message
    };
    for (encoding, name) in
        [("gzip", "gzip"), ("BR", "brotli"), ("base64", "base64"), ("x", "an encoding")]
    {
        let message = hint(Some(encoding), &[], "%%%");
        assert!(message.contains(&format!("`content_encoding` says {name}")), "{message}");
    }
    for header in ["cloudEvents:id", "cloudEvents_id", "ce-id", "ce_id", "CE-Type"] {
        let message = hint(Some("utf-8"), &["x", header], "{}");
        assert!(message.contains("binary mode, which is not read"), "{header}: {message}");
    }
    assert_eq!(hint(None, &["cent", "x-ce"], "{}"), "`userId` is missing");
    // The body has what the hint would ask for.
    assert!(!hint(None, &["ce-id"], r#"{"userId":"u","renew":1}"#).contains("binary mode"));
}
