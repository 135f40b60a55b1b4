//! Certificate authorities that the environment names and that cannot be read.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

use rustls::RootCertStore;
use rustls_native_certs::{CertificateResult, ErrorKind, load_certs_from_paths};

const FILE: &str = "SSL_CERT_FILE";
const DIR: &str = "SSL_CERT_DIR";

/// What is wrong with the files that `SSL_CERT_FILE` and `SSL_CERT_DIR` name, by variable.
///
/// The libraries pass over a file that they cannot read, as long as they find a certificate elsewhere.
pub(crate) fn problems() -> Vec<String> {
    problems_of(env::var_os(FILE), env::var_os(DIR))
}

fn problems_of(file: Option<OsString>, dir: Option<OsString>) -> Vec<String> {
    let mut problems = Vec::new();
    if let Some(file) = file {
        let loaded = load_certs_from_paths(Some(Path::new(&file)), None);
        problems.extend(problem(FILE, "a file", &loaded));
    }
    let dirs: Vec<_> = dir.iter().flat_map(env::split_paths).collect();
    for dir in dirs.iter().filter(|dir| **dir != PathBuf::new()) {
        let loaded = load_certs_from_paths(None, Some(dir));
        problems.extend(problem(DIR, "a folder", &loaded));
    }
    problems
}

fn problem(variable: &str, what: &str, loaded: &CertificateResult) -> Option<String> {
    let error = loaded.errors.first().map(|error| match &error.kind {
        ErrorKind::Io { inner, .. } => format!("cannot be read: {}", inner.kind()),
        ErrorKind::Pem(_) => "is not valid PEM".to_owned(),
        _ => "cannot be read".to_owned(),
    });
    if let Some(error) = error {
        return Some(format!("{variable}: names {what} that {error}"));
    }
    let (valid, invalid) =
        RootCertStore::empty().add_parsable_certificates(loaded.certs.iter().cloned());
    match (valid, invalid) {
        (0, 0) => Some(format!("{variable}: names {what} without a PEM certificate")),
        (_, 0) => None,
        (_, n) => Some(format!("{variable}: names {what} with invalid certificates: {n}")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    #[test]
    fn file_that_adds_no_authority_is_named() {
        let dir = env::temp_dir().join(format!("handoff-{}", uuid::Uuid::new_v4()));
        fs::create_dir(&dir).unwrap();
        let file = |name: &str, content: &str| {
            let path = dir.join(name);
            fs::write(&path, content).unwrap();
            Some(path.into_os_string())
        };
        let good = CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        let good = good.self_signed(&KeyPair::generate().unwrap()).unwrap().pem();
        let broken = good.replace("-----END", "-----NO END");
        let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (content, expected) in [
            ("", Some("without a PEM certificate")),
            ("no certificate", Some("without a PEM certificate")),
            (broken.as_str(), Some("not valid PEM")),
            (garbage, Some("with invalid certificates: 1")),
            (good.as_str(), None),
        ] {
            let found = problems_of(file("authority.pem", content), None);
            assert_eq!(found.len(), usize::from(expected.is_some()), "{found:?}");
            if let Some(expected) = expected {
                assert!(
                    found[0].starts_with("SSL_CERT_FILE: ") && found[0].contains(expected),
                    "{found:?}"
                );
            }
        }
        let found = problems_of(Some(dir.join("missing").into()), Some(dir.join("nowhere").into()));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(
            found.iter().all(|one| one.contains("cannot be read: entity not found")),
            "{found:?}"
        );
        assert!(problems_of(None, Some("".into())).is_empty());
        fs::remove_dir_all(&dir).unwrap();
    }
}
