//! The crates that the program is built from.

use std::collections::{BTreeMap, BTreeSet};

/// The versions of every crate that is built into the program.
async fn packages() -> BTreeMap<String, BTreeSet<String>> {
    let tree = ["tree", "--locked", "--offline", "--edges", "normal,build", "--prefix", "none"];
    let mut cargo = tokio::process::Command::new(env!("CARGO"));
    let output = cargo.args(tree).current_dir(env!("CARGO_MANIFEST_DIR")).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut packages = BTreeMap::<_, BTreeSet<_>>::new();
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        if let [name, version, ..] = line.split(' ').collect::<Vec<_>>()[..] {
            packages.entry(name.to_owned()).or_default().insert(version.to_owned());
        }
    }
    packages
}

#[tokio::test]
async fn there_is_one_tls_stack_and_one_version_of_each_large_crate() {
    let packages = packages().await;
    for banned in ["openssl", "openssl-sys", "native-tls", "ring"] {
        assert!(!packages.contains_key(banned), "{banned}");
    }
    for name in ["tokio", "hyper", "rustls", "redis", "lapin", "reqwest", "aws-lc-rs"] {
        assert_eq!(packages[name].len(), 1, "{name}: {:?}", packages[name]);
    }
}
