//! `make bench-micro`: measures the steps of a request that only compute.

#![allow(clippy::expect_used, reason = "a benchmark that cannot start must fail")]

use std::{
    hint::black_box,
    time::{Duration, SystemTime},
};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use handoff::{
    cache::Seal,
    message::{Event, EventBody, decode_request},
    platform::Links,
    session::{Access, Lifetimes, Session},
};
use secrecy::SecretBox;
use url::Url;

const KEY: [u8; 32] = [7; 32];
const NAME: &str = "handoff:{47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU}:link";
/// Contains characters that are escaped twice in a link.
const TOKEN: &str = "Token tr-pn7u6f5wq+Zk/8yJx2==&%3D-0f8d2c9a";
const SESSION: &str = "65f1c2a9b4e8d70013a7c5e2";

fn decoding(c: &mut Criterion) {
    let bare = br#"{"userId":"user-4711","workflowId":"6c1d","metadata":{"plan":"gold","n":1}}"#;
    let bare = bare.to_vec();
    let data = String::from_utf8_lossy(&bare);
    let cloud_event = format!(
        r#"{{"specversion":"1.0","id":"r-1","source":"/app","type":"verification.requested","datacontenttype":"application/json","data":{data}}}"#
    );
    let large = format!(r#"{{"userId":"u","metadata":{{"note":"{}"}}}}"#, "x".repeat(16_000));
    let mut group = c.benchmark_group("decode a request");
    for (name, body) in [
        ("bare", bare),
        ("CloudEvent", cloud_event.into_bytes()),
        ("16 KiB of metadata", large.into_bytes()),
    ] {
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(name, |b| {
            b.iter(|| decode_request(black_box(&body), 1 << 18, Some("w")).request.is_ok())
        });
    }
}

fn link(c: &mut Criterion) {
    let public = Url::parse("https://idv.example.com/eu").expect("a URL");
    c.bench_function("build a link", |b| {
        b.iter(|| Links::of_token(black_box(&public), black_box(TOKEN), SESSION))
    });
}

fn sealing(c: &mut Criterion) {
    let expires_at = SystemTime::now() + Duration::from_secs(3600);
    let access = Access::Token(TOKEN.to_owned().into());
    let made_at = SystemTime::now();
    let session = Session { access, id: SESSION.to_owned(), made_at, expires_at };
    let hour = Duration::from_secs(3600);
    let lifetimes = Lifetimes { token: hour, session: hour, link_min: hour / 6 };
    let seal = Seal::new(vec![SecretBox::new(Box::new(KEY))]);
    c.bench_function("seal a value", |b| b.iter(|| seal.seal_session(NAME, black_box(&session))));
    let sealed = seal.seal_session(NAME, &session).expect("sealed");
    c.bench_function("open a value", |b| {
        b.iter(|| seal.open_session(NAME, black_box(&sealed), &lifetimes).is_some())
    });
}

fn event(c: &mut Criterion) {
    let public = Url::parse("https://idv.example.com/eu").expect("a URL");
    let links = Links::of_token(&public, TOKEN, SESSION);
    let now = SystemTime::now();
    let body = EventBody::Ready {
        request_id: "0b9f6c1e-8c55-4d0e-9a51-2f8f4f0c8f11",
        user_id: "user-4711",
        workflow_id: "6c1d",
        session_id: SESSION,
        url: &links.url,
        mobile_url: &links.mobile_url,
        expires_at: now,
        reused: false,
    };
    c.bench_function("encode an event", |b| b.iter(|| Event::new(black_box(&body), now)));
}

criterion_group!(all, decoding, link, sealing, event);
criterion_main!(all);
