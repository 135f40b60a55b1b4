//! What the program is made of.

/// The versions of a package in the lock file.
fn versions(name: &str) -> Vec<&'static str> {
    let lock = include_str!("../../Cargo.lock");
    let entry = format!("name = \"{name}\"\nversion = \"");
    lock.split("[[package]]\n")
        .filter_map(|package| package.strip_prefix(&entry)?.split('"').next())
        .collect()
}

#[test]
fn there_is_one_tls_stack_and_one_of_each_that_matters() {
    for stranger in
        ["openssl", "openssl-sys", "native-tls", "ring", "schannel", "security-framework-sys-ssl"]
    {
        assert_eq!(versions(stranger), [""; 0], "{stranger}");
    }
    for name in ["tokio", "hyper", "rustls", "redis", "lapin", "reqwest", "aws-lc-rs"] {
        assert_eq!(versions(name).len(), 1, "{name}: {:?}", versions(name));
    }
}
