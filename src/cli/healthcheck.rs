//! `handoff healthcheck`: asks the worker on this host for its health.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use clap::Args;
use reqwest::{Client, StatusCode, redirect};

use super::{errors::CliError, output::print_line};
use crate::{
    config::{HealthcheckFlags, parse_http_addr},
    error_chain,
};

/// Docker and Kubernetes give up after a few seconds themselves; this says why first.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Checks the health of the worker on this host
///
/// For images without a shell or curl. Prints the answer. The exit status is 0 if the worker answers with
/// status 200, else 1. Reads no setting but the worker's own HANDOFF_HTTP_ADDR; where that stands for all
/// addresses, it connects to the loopback address. Uses no proxy.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    handoff healthcheck            # for a container's health check: 1 means that a restart helps\n  \
    handoff healthcheck /readyz    # 1 also while RabbitMQ or the platform is unavailable")]
pub(super) struct HealthcheckArgs {
    /// Path to request: /livez or /readyz
    #[arg(value_name = "PATH", default_value = "/livez", value_parser = path)]
    path: String,
    #[command(flatten)]
    settings: HealthcheckFlags,
}

fn path(text: &str) -> Result<String, &'static str> {
    let is_path = text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic());
    if is_path { Ok(text.to_owned()) } else { Err("must be a path, such as /readyz") }
}

pub(super) async fn run(args: HealthcheckArgs) -> Result<(), CliError> {
    let listens_at = parse_http_addr(&args.settings)?;
    let http = Client::builder()
        .no_proxy()
        .redirect(redirect::Policy::none())
        .timeout(TIMEOUT)
        .build()
        .map_err(CliError::failed)?;
    let mut unreachable = String::new();
    for ip in loopback_of(listens_at.ip()) {
        let url = format!("http://{}{}", SocketAddr::new(ip, listens_at.port()), args.path);
        match ask(&http, &url).await {
            Ok((StatusCode::OK, page)) => return print_line(page.trim_end()),
            Ok((status, page)) => {
                let page = page.trim_end();
                return Err(CliError::Failed(format!(
                    "{url} answers with status {status}: {page}"
                )));
            }
            Err(error) => unreachable = format!("cannot ask {url}: {}", why(&error)),
        }
    }
    Err(CliError::Failed(format!(
        "{unreachable}; is the worker running, with this HANDOFF_HTTP_ADDR?"
    )))
}

async fn ask(http: &Client, url: &str) -> Result<(StatusCode, String), reqwest::Error> {
    let answer = http.get(url).send().await?;
    Ok((answer.status(), answer.text().await?))
}

/// The addresses where a worker that listens at this one can be asked, the likeliest first.
fn loopback_of(ip: IpAddr) -> Vec<IpAddr> {
    match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => vec![Ipv4Addr::LOCALHOST.into()],
        // A worker that should listen at [::] listens at 0.0.0.0 where the kernel has no IPv6.
        IpAddr::V6(ip) if ip.is_unspecified() => {
            vec![Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()]
        }
        ip => vec![ip],
    }
}

/// What an operator can use of an error: its innermost cause.
fn why(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return format!("no answer within {} s", TIMEOUT.as_secs());
    }
    error_chain::chain(error).last().map(ToString::to_string).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unspecified_addresses_are_asked_at_loopback() {
        let asked = |ip: &str| {
            let asked = loopback_of(ip.parse().unwrap());
            asked.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(asked("0.0.0.0"), ["127.0.0.1"]);
        assert_eq!(asked("::"), ["::1", "127.0.0.1"]);
        assert_eq!(asked("10.0.0.7"), ["10.0.0.7"]);
    }

    #[test]
    fn only_a_path_is_accepted() {
        assert_eq!(path("/readyz"), Ok("/readyz".to_owned()));
        for wrong in ["readyz", "", "http://other/", "/a b"] {
            assert!(path(wrong).is_err(), "{wrong}");
        }
    }
}
