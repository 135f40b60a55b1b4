//! Environment variables that look like settings, and are not.

use std::{collections::BTreeSet, env};

use super::table::ALL;
use crate::printable::escape;

const PREFIX: &str = "HANDOFF_";
/// Variables of `scripts/` and of the compose files. A shell that runs these may also run handoff.
const OTHERS: [&str; 13] = [
    "HANDOFF_DOCKER_ROOT",
    "HANDOFF_IMAGE",
    "HANDOFF_INSTALL",
    "HANDOFF_NODE",
    "HANDOFF_RABBITMQ_ROOT",
    "HANDOFF_REDIS_ROOT",
    "HANDOFF_SERVICES",
    "HANDOFF_SERVICES_DIR",
    "HANDOFF_GRAFANA_PORT",
    "HANDOFF_JAEGER_PORT",
    "HANDOFF_PROMETHEUS_PORT",
    "HANDOFF_RABBITMQ_PORT",
    "HANDOFF_RABBITMQ_UI_PORT",
];
/// The flags of `handoff sandbox`, and variables of tests.
const OTHER_PREFIXES: [&str; 2] = ["HANDOFF_SANDBOX_", "HANDOFF_TEST_"];

/// A variable that no command reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UnknownVariable {
    pub(crate) name: String,
    /// The setting with the most similar name.
    pub(crate) nearest: String,
}

/// The variables in the environment that no command reads, although their name says that they are settings.
pub(crate) fn unknown_variables() -> Vec<UnknownVariable> {
    find(env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned()))
}

fn find(environment: impl Iterator<Item = String>) -> Vec<UnknownVariable> {
    let names: BTreeSet<_> = environment.filter(|name| name.starts_with(PREFIX)).collect();
    let settings: Vec<_> = ALL
        .iter()
        .flat_map(|spec| spec.sources().iter().map(|source| spec.variable(*source)))
        .collect();
    let is_known = |name: &String| {
        settings.contains(name)
            || OTHERS.contains(&name.as_str())
            || OTHER_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
            || is_service_link(name, &names)
    };
    let unknown = names.iter().filter(|name| !is_known(name));
    unknown
        .filter_map(|name| {
            let distance = |setting: &&String| strsim::damerau_levenshtein(name, setting);
            let nearest = settings.iter().min_by_key(distance)?.clone();
            Some(UnknownVariable { name: escape(name), nearest })
        })
        .collect()
}

/// Whether Kubernetes sets a variable like this in each pod, for a Service called `handoff` or `handoff-…`.
///
/// These are `…_SERVICE_HOST`, `…_SERVICE_PORT`, `…_SERVICE_PORT_<NAME>`, `…_PORT` and `…_PORT_9464_TCP`,
/// the latter also with `_PROTO`, `_PORT` or `_ADDR` at its end.
fn is_service_link(name: &str, environment: &BTreeSet<String>) -> bool {
    if name.ends_with("_SERVICE_HOST") || name.contains("_SERVICE_PORT") {
        return true;
    }
    name.match_indices("_PORT").any(|(at, port)| {
        let (service, rest) = (&name[..at], &name[at + port.len()..]);
        if rest.is_empty() {
            // With another service's name, `…_PORT` may be meant as a setting.
            return service == "HANDOFF"
                || environment.contains(&format!("{service}_SERVICE_HOST"));
        }
        let mut words = rest.split('_').skip(1);
        let number = words.next().is_some_and(|word| word.parse::<u16>().is_ok());
        let protocol = words.next().is_some_and(|word| matches!(word, "TCP" | "UDP" | "SCTP"));
        let part = words.next().is_none_or(|word| matches!(word, "PROTO" | "PORT" | "ADDR"));
        rest.starts_with('_') && number && protocol && part && words.next().is_none()
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    fn unknown(names: &[&str]) -> Vec<(String, String)> {
        let found = find(names.iter().map(|name| (*name).to_owned()));
        found.into_iter().map(|variable| (variable.name, variable.nearest)).collect()
    }

    #[test]
    fn unknown_variable_is_found_with_its_nearest_setting() {
        for (name, nearest) in [
            ("HANDOFF_CONCURENCY", "HANDOFF_CONCURRENCY"),
            ("HANDOFF_IDV_APIKEY", "HANDOFF_IDV_API_KEY"),
            ("HANDOFF_IDV_API_KEY_FLIE", "HANDOFF_IDV_API_KEY_FILE"),
            ("HANDOFF_REDIS_URI", "HANDOFF_REDIS_URL"),
            // Only secrets can be read from files.
            ("HANDOFF_QUEUE_FILE", "HANDOFF_QUEUE"),
            ("HANDOFF_HTTP_PORT", "HANDOFF_HTTP_ADDR"),
            ("HANDOFF_PORT_9464", "HANDOFF_HTTP_ADDR"),
        ] {
            let found = unknown(&[name, "HANDOFF_LOG", "PATH", "handoff_log"]);
            let [(found, suggested)] = &found[..] else { panic!("{name}: {found:?}") };
            assert_eq!(found, name);
            assert!(suggested == nearest || name == "HANDOFF_PORT_9464", "{name}: {suggested}");
        }
        assert_eq!(unknown(&["HANDOFF_\u{1b}[2J"])[0].0, "HANDOFF_\\u{1b}[2J");
    }

    #[test]
    fn settings_and_variables_of_kubernetes_are_known() {
        assert_eq!(unknown(&["HANDOFF_REDIS_URL", "HANDOFF_REDIS_URL_FILE", "HANDOFF_TEST_X"]), []);
        let links = ["_SERVICE_HOST", "_SERVICE_PORT", "_SERVICE_PORT_METRICS", "_PORT"];
        let tcp = ["", "_PROTO", "_PORT", "_ADDR"].map(|part| format!("_PORT_9464_TCP{part}"));
        for service in ["HANDOFF", "HANDOFF_METRICS", "HANDOFF_PORTAL"] {
            let links = links.iter().map(|link| format!("{service}{link}"));
            let links = links.chain(tcp.iter().map(|link| format!("{service}{link}")));
            assert_eq!(find(links), []);
        }
        assert_eq!(unknown(&["HANDOFF_PORT"]), []);
    }

    /// Every variable that a script, a Makefile or a compose file of this repository uses is known.
    #[test]
    fn variables_of_this_repository_are_known() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let scripts = ["scripts", "scripts/pictures", "scripts/release"].map(|folder| {
            fs::read_dir(root.join(folder)).unwrap().map(|entry| entry.unwrap().path())
        });
        let scripts = scripts.into_iter().flatten().filter(|path| path.is_file());
        let files = scripts.chain(["Makefile", "docker-compose.yml"].map(|file| root.join(file)));
        let mut names = BTreeSet::new();
        for file in files {
            let text = fs::read_to_string(file).unwrap();
            let words =
                text.split(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'));
            names.extend(words.filter(|word| word.len() > PREFIX.len()).map(str::to_owned));
        }
        assert!(names.contains("HANDOFF_SERVICES_DIR"), "{names:?}");
        assert_eq!(find(names.into_iter()), []);
    }
}
