//! The environment of the test run.

/// A variable that the test run's environment must have.
pub fn required_env(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: run `make test`, which provides RabbitMQ, Redis and a browser for the tests")
    })
}
