//! What the tests share.

pub mod browser;
pub mod collector;
pub mod distance;
pub mod fake_redis;
pub mod forward_proxy;
pub mod http2_front;
pub mod leaks;
pub mod log_text;
pub mod node;
pub mod platform;
pub mod proxy;
pub mod rabbitmq;
pub mod raw_platform;
pub mod redis;
pub mod temp_file;
pub mod test_env;
pub mod test_run;
pub mod tls;
pub mod wait;
pub mod worker;

pub use browser::Browser;
pub use collector::Collector;
pub use distance::Distance;
pub use fake_redis::FakeRedis;
pub use forward_proxy::{ForwardProxy, ProxyAnswer, ProxyKind};
pub use node::Node;
pub use platform::{Answer, Latch};
pub use proxy::{Flow, Proxy};
pub use rabbitmq::{Message, RabbitMq};
pub use temp_file::TempFile;
pub use test_env::TestEnv;
pub use test_run::required_env;
pub use tls::{Authority, TlsProxy};
pub use wait::{wait_until, within_timeout};
pub use worker::Worker;
