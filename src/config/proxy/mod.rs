//! The proxy to the platform, from the variables that other programs use for it, too.

mod no_proxy;

use std::{env, ffi::OsString};

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use secrecy::{ExposeSecret, SecretString};
use url::{Host, Url};

use self::no_proxy::NoProxy;
use super::host::is_loopback;

/// The variables that name the proxy of `https` URLs; the first that is set counts.
const PROXY_VARIABLES: [&str; 4] = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
const NO_PROXY_VARIABLES: [&str; 2] = ["NO_PROXY", "no_proxy"];

/// How the worker reaches the platform.
#[derive(Debug)]
pub enum Route {
    /// Without a proxy.
    Direct(Direct),
    /// Through this proxy.
    Proxied(Proxy),
}

/// Why there is no proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direct {
    /// The environment names none.
    NoneSet,
    /// `NO_PROXY` contains the platform's host.
    Excluded,
    /// The platform is on this machine, where a proxy could not reach it.
    Loopback,
    /// A proxy would see the API key of plain http calls.
    PlainHttp,
}

/// A proxy, and the variable that names it.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// Names the proxy in errors. Leaked, once per process, so that these stay `Copy`.
    pub name: &'static str,
    /// `HTTPS_PROXY`, for example.
    pub variable: &'static str,
    /// How to speak to the proxy.
    pub scheme: ProxyScheme,
    /// A name or an IP address.
    pub host: Host,
    /// The port, given or the scheme's default.
    pub port: u16,
    /// User and password.
    pub credentials: Option<(SecretString, SecretString)>,
}

/// The protocol that a proxy speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyScheme {
    /// HTTP CONNECT.
    Http,
    /// HTTP CONNECT over TLS.
    Https,
    /// SOCKS5; this machine resolves the platform's name.
    Socks5,
    /// SOCKS5; the proxy resolves the platform's name.
    Socks5h,
}

impl ProxyScheme {
    fn parse(scheme: &str) -> Option<Self> {
        Some(match scheme.to_ascii_lowercase().as_str() {
            "http" => Self::Http,
            "https" => Self::Https,
            "socks5" => Self::Socks5,
            "socks5h" => Self::Socks5h,
            _ => return None,
        })
    }

    /// As in a URL.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Socks5 => "socks5",
            Self::Socks5h => "socks5h",
        }
    }

    fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
            Self::Socks5 | Self::Socks5h => 1080,
        }
    }
}

impl Route {
    /// Chooses the route to a URL by the environment.
    ///
    /// # Errors
    /// The variable that would count, and what is wrong with it.
    pub(crate) fn from_env(url: &Url) -> Result<Self, (&'static str, &'static str)> {
        Self::choose(url, |name| env::var_os(name))
    }

    fn choose(
        url: &Url,
        get: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, (&'static str, &'static str)> {
        let first = |names: &[&'static str]| {
            names.iter().find_map(|name| Some((*name, get(name).filter(|text| !text.is_empty())?)))
        };
        let Some((variable, text)) = first(&PROXY_VARIABLES) else {
            return Ok(Self::Direct(Direct::NoneSet));
        };
        if url.scheme() != "https" {
            return Ok(Self::Direct(Direct::PlainHttp));
        }
        if is_loopback(url) {
            return Ok(Self::Direct(Direct::Loopback));
        }
        if let Some((variable, text)) = first(&NO_PROXY_VARIABLES) {
            let text = text.to_str().ok_or((variable, "is not valid UTF-8"))?;
            if NoProxy::parse(text).contains(url) {
                return Ok(Self::Direct(Direct::Excluded));
            }
        }
        let text = text.to_str().ok_or((variable, "is not valid UTF-8"))?;
        Proxy::parse(variable, text).map(Self::Proxied).map_err(|why| (variable, why))
    }

    /// The proxy, if there is one.
    pub(crate) fn proxy(&self) -> Option<&Proxy> {
        match self {
            Self::Proxied(proxy) => Some(proxy),
            Self::Direct(_) => None,
        }
    }
}

impl Proxy {
    fn parse(variable: &'static str, text: &str) -> Result<Self, &'static str> {
        const FORM: &str = "must be a proxy URL such as http://user:password@proxy.example.com:3128; the schemes \
             are http, https, socks5 and socks5h, and special characters in user and password are \
             percent-encoded";
        const NOT_UTF8: &str =
            "must have a user and a password that are UTF-8 when percent-decoded";
        let text = text.trim();
        // As other programs do: a proxy without a scheme is an http proxy.
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        let scheme = ProxyScheme::parse(scheme).ok_or(FORM)?;
        // `Url` has no default port for this scheme, so it never drops one.
        let url = Url::parse(&format!("socks5://{rest}")).map_err(|_| FORM)?;
        // In a password, `/`, `?` and `#` would end the host: what follows is part of a secret then.
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err(FORM);
        }
        let host = Host::parse(url.host_str().ok_or(FORM)?).map_err(|_| FORM)?;
        let is_host_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        if matches!(&host, Host::Domain(name) if !name.chars().all(is_host_char)) {
            return Err(FORM);
        }
        let port = url.port().unwrap_or(scheme.default_port());
        if port == 0 {
            return Err(FORM);
        }
        let decode = |text: &str| {
            let decoded = percent_decode_str(text).decode_utf8().map_err(|_| NOT_UTF8)?;
            Ok::<_, &str>(SecretString::from(decoded.into_owned()))
        };
        let credentials = match (url.username(), url.password()) {
            ("", None) => None,
            (user, password) => Some((decode(user)?, decode(password.unwrap_or_default())?)),
        };
        let name = format!("{}://{host}:{port} ({variable})", scheme.as_str());
        Ok(Self { name: name.leak(), variable, scheme, host, port, credentials })
    }

    /// The proxy's URL with user and password, in the form that reqwest parses.
    pub(crate) fn url(&self) -> SecretString {
        let encode = |secret: &SecretString| {
            utf8_percent_encode(secret.expose_secret(), NON_ALPHANUMERIC).to_string()
        };
        let (scheme, host, port) = (self.scheme.as_str(), &self.host, self.port);
        let user_info = self
            .credentials
            .as_ref()
            .map(|(user, password)| format!("{}:{}@", encode(user), encode(password)));
        format!("{scheme}://{}{host}:{port}", user_info.unwrap_or_default()).into()
    }
}

/// Variables that have no effect, though the operator may believe that they do; says why.
pub(crate) fn ignored_variables(route: &Route) -> Vec<(&'static str, &'static str)> {
    find_ignored(route, |name| env::var_os(name))
}

fn find_ignored(
    route: &Route,
    get: impl Fn(&str) -> Option<OsString>,
) -> Vec<(&'static str, &'static str)> {
    let value = |name: &str| get(name).filter(|text| !text.is_empty());
    let mut ignored = Vec::new();
    for names in [&PROXY_VARIABLES[..2], &PROXY_VARIABLES[2..], &NO_PROXY_VARIABLES] {
        if let [Some(upper), Some(lower)] = [value(names[0]), value(names[1])]
            && upper != lower
        {
            ignored.push((names[1], "differs from the variable in capitals, which counts"));
        }
    }
    if matches!(route, Route::Direct(Direct::NoneSet)) {
        let http = ["HTTP_PROXY", "http_proxy"].into_iter().filter(|name| value(name).is_some());
        ignored.extend(http.map(|name| (name, "is for plain http only: set HTTPS_PROXY")));
    }
    for name in NO_PROXY_VARIABLES {
        let text = value(name).and_then(|text| text.into_string().ok()).unwrap_or_default();
        if NoProxy::parse(&text).invalid > 0 {
            let why = "has entries that match no host: list names, IP addresses and networks such as \
                       10.0.0.0/8, each with or without a port";
            ignored.push((name, why));
        }
    }
    ignored
}

#[cfg(test)]
mod tests {
    use super::*;

    type Environment = [(&'static str, &'static str)];

    fn value(environment: &Environment, name: &str) -> Option<OsString> {
        let mut set = environment.iter().filter(|(set, _)| *set == name);
        set.next().map(|(_, value)| value.into())
    }

    fn choose(url: &str, environment: &Environment) -> Result<Route, (&'static str, &'static str)> {
        Route::choose(&Url::parse(url).unwrap(), |name| value(environment, name))
    }

    const PLATFORM: &str = "https://idv.example.com/p";

    #[test]
    fn first_variable_that_is_set_names_the_proxy() {
        for (environment, name) in [
            (
                &[("https_proxy", "http://a:1"), ("ALL_PROXY", "http://b:1")][..],
                "http://a:1 (https_proxy)",
            ),
            (&[("HTTPS_PROXY", ""), ("all_proxy", "socks5://b")], "socks5://b:1080 (all_proxy)"),
            (&[("HTTPS_PROXY", "p.example:3128")], "http://p.example:3128 (HTTPS_PROXY)"),
            (&[("HTTPS_PROXY", " https://u:p@p.example/ ")], "https://p.example:443 (HTTPS_PROXY)"),
            (&[("ALL_PROXY", "SOCKS5H://[::1]:9050")], "socks5h://[::1]:9050 (ALL_PROXY)"),
            (
                &[("ALL_PROXY", "socks5h://bücher.example:80")],
                "socks5h://xn--bcher-kva.example:80 (ALL_PROXY)",
            ),
            (
                &[("ALL_PROXY", "http://p.example:80"), ("NO_PROXY", "10.0.0.0/8")],
                "http://p.example:80 (ALL_PROXY)",
            ),
        ] {
            assert_eq!(choose(PLATFORM, environment).unwrap().proxy().unwrap().name, name);
        }
    }

    #[test]
    fn platform_is_reached_directly_where_a_proxy_makes_no_sense() {
        let set = ("ALL_PROXY", "http://p:1");
        for (url, environment, expected) in [
            (PLATFORM, &[][..], Direct::NoneSet),
            (PLATFORM, &[("HTTP_PROXY", "http://p:1")], Direct::NoneSet),
            (PLATFORM, &[set, ("no_proxy", ".example.com")], Direct::Excluded),
            ("https://10.1.2.3:8443", &[set, ("NO_PROXY", "10.1.2.3:8443")], Direct::Excluded),
            ("https://localhost", &[set], Direct::Loopback),
            // A proxy that is not used may be anything.
            ("http://idv.example.com", &[("ALL_PROXY", "socks9://x")], Direct::PlainHttp),
        ] {
            let Route::Direct(why) = choose(url, environment).unwrap() else {
                panic!("{url} through a proxy");
            };
            assert_eq!(why, expected, "{url}");
        }
    }

    #[test]
    fn proxy_that_cannot_be_used_is_an_error_without_its_value() {
        for text in [
            "socks9://x",
            "socks4://x:1080",
            "ftp://x",
            "http://",
            "://",
            "http://a b",
            "http://x:port",
            "http://x:0",
            "http://x:70000",
            "garbage garbage",
            "http://u:%ff@x",
            "http://a\"b",
            "http://[::1",
            "http://alice:2024#secret@proxy:3128",
            "http://alice:2024/secret@proxy:3128",
            "http://alice:2024?secret@proxy:3128",
        ] {
            let error = choose(PLATFORM, &[("ALL_PROXY", text)]).unwrap_err();
            assert_eq!(error.0, "ALL_PROXY");
            assert!(error.1.starts_with("must "), "{text}: {error:?}");
        }
    }

    #[test]
    fn user_and_password_survive_and_stay_secret() {
        let text = "http://us%40er:p%3Aa%2F%25ss%C3%A9%~'!@p.example:3128";
        let route = choose(PLATFORM, &[("ALL_PROXY", text)]).unwrap();
        let proxy = route.proxy().unwrap();
        let (user, password) = proxy.credentials.as_ref().unwrap();
        assert_eq!((user.expose_secret(), password.expose_secret()), ("us@er", "p:a/%ssé%~'!"));
        assert!(!format!("{route:?} {}", proxy.name).contains("ss"), "{route:?}");
        let url = proxy.url();
        let url = Url::parse(url.expose_secret()).unwrap();
        let decoded = percent_decode_str(url.password().unwrap()).decode_utf8().unwrap();
        assert_eq!(decoded, "p:a/%ssé%~'!");
        // The form that reqwest passes on; it ignores a proxy that it cannot parse.
        assert!(url.as_str().parse::<hyper::Uri>().is_ok());
    }

    #[test]
    fn variables_without_effect_are_found() {
        for (environment, expected) in [
            (&[][..], &[][..]),
            (&[("HTTP_PROXY", "http://a")], &["HTTP_PROXY"]),
            (&[("HTTP_PROXY", "http://a"), ("ALL_PROXY", "http://a")], &[]),
            (&[("ALL_PROXY", "http://a"), ("all_proxy", "http://b")], &["all_proxy"]),
            (&[("ALL_PROXY", "http://a"), ("all_proxy", "http://a")], &[]),
            (&[("ALL_PROXY", "http://a"), ("NO_PROXY", "https://b,c")], &["NO_PROXY"]),
        ] {
            let route = choose(PLATFORM, environment).unwrap();
            let ignored = find_ignored(&route, |name| value(environment, name));
            let names: Vec<_> = ignored.iter().map(|(name, _)| *name).collect();
            assert_eq!(names, expected);
        }
    }
}
