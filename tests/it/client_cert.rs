//! Client certificates for RabbitMQ: as the login (SASL EXTERNAL), and beside a password.

use std::{
    os::unix::fs::symlink,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use serde_json::Value;

use crate::{
    doctor::doctor,
    support::{
        Authority, Node, TempFile, TestEnv, Worker, log_text,
        tls::{Identity, listen_for_amqps},
        wait_until,
        worker::{Settings, run},
    },
};

/// The subject of the client certificate, which is the user's name.
const USER: &str = "CN=worker";

/// A RabbitMQ that requires client certificates on its port for TLS.
struct SecureNode {
    node: Node,
    authority: Authority,
    port: u16,
}

impl SecureNode {
    /// `None` if Docker runs RabbitMQ: it publishes no port that is opened later.
    async fn start() -> Option<Self> {
        let node = Node::rabbitmq().await;
        if node.is_in_docker() {
            return None;
        }
        let authority = Authority::new();
        let identity = authority.issue(&["localhost"]);
        let port = listen_for_amqps(&node, &identity, Some(&authority)).await;
        Some(Self { node, authority, port })
    }

    /// Turns on SASL EXTERNAL, as `rabbitmq-plugins enable` and `rabbitmq.conf` do.
    async fn enable_external(&self) {
        let plugins = self.node.path("enabled_plugins");
        std::fs::write(plugins, "[rabbitmq_auth_mechanism_ssl].\n").unwrap();
        let ensure = "{ok, File} = application:get_env(rabbit, enabled_plugins_file), \
                      {ok, _, _} = rabbit_plugins:ensure(File).";
        self.node.ctl(&["eval", ensure]).await;
        let offer = "application:set_env(rabbit, auth_mechanisms, ['PLAIN', 'EXTERNAL']), \
                     application:set_env(rabbit, ssl_options, [{verify, verify_peer}]).";
        self.node.ctl(&["eval", offer]).await;
    }

    /// An environment whose workers connect with TLS, with these credentials in the URL.
    async fn env(&self, credentials: &str) -> TestEnv {
        let mut env = TestEnv::builder().rabbitmq(&self.node).start().await;
        env.trust(&self.authority);
        env.set("AMQP_URL", &self.url(credentials));
        env
    }

    fn url(&self, credentials: &str) -> String {
        format!("amqps://{credentials}localhost:{}/%2f", self.port)
    }

    /// User and mechanism of each connection with TLS.
    async fn logins(&self) -> Vec<String> {
        let columns = ["user", "auth_mechanism", "ssl"];
        let list = [&["--quiet", "list_connections"], &columns[..]].concat();
        let lines = self.node.ctl(&list).await;
        let lines = lines.lines().filter_map(|line| line.strip_suffix("\ttrue"));
        lines.map(ToOwned::to_owned).collect()
    }
}

/// Sets both files, and keeps them.
fn present(env: &mut TestEnv, identity: &Identity) -> [TempFile; 2] {
    let (certificate, key) = identity.pem();
    env.set("AMQP_CERT_FILE", certificate.path()).set("AMQP_KEY_FILE", key.path());
    [certificate, key]
}

/// The standard output of a command, which must succeed.
async fn output_of(arguments: &[&str], settings: &Settings) -> String {
    let output = run(arguments, settings).await;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// The doctor's first finding of this name about RabbitMQ, or else its first check.
async fn check(env: &TestEnv, name: &str) -> Value {
    let report = doctor(env, &[]).await;
    let checks = report.all("rabbitmq", name);
    let finding = checks.iter().find(|check| check["verdict"] == "finding");
    Value::clone(finding.unwrap_or(&checks[0]))
}

/// Asserts that the worker logs an error, and the doctor a finding of this name, that contain `words`, or
/// that RabbitMQ may have refused the client certificate: its alert is lost if the client writes first.
async fn assert_refused(env: &TestEnv, name: &str, words: &str) {
    let worker = Worker::start(&env.settings);
    let line = worker.wait_for_log(log_text::NOT_CONSUMING).await;
    let error = line["error"].as_str().unwrap();
    let is_explained = |text: &str| text.contains(words) || text.contains("RabbitMQ may ");
    assert!(is_explained(error), "{error}");
    worker.kill().await;
    let finding = check(env, name).await;
    assert_eq!(finding["verdict"], "finding", "{finding}");
    assert!(is_explained(&finding.to_string()), "{finding}");
}

#[tokio::test]
async fn client_certificate_is_the_login_or_accompanies_a_password() {
    let Some(secure) = SecureNode::start().await else { return };
    let mut env = secure.env("").await;
    let files = present(&mut env, &secure.authority.issue_client("worker"));
    // The plugin is off, then the user is missing.
    assert_refused(&env, "login", "rabbitmq_auth_mechanism_ssl").await;
    let finding = check(&env, "login").await.to_string();
    assert!(finding.contains("EXTERNAL, only: "), "{finding}");
    secure.enable_external().await;
    assert_refused(&env, "login", "ssl_cert_login_from").await;
    secure.node.add_user(USER, "unused").await;

    let worker = env.start_worker().await;
    wait_until("the worker alone is logged in", async || {
        secure.logins().await == ["CN=worker\tEXTERNAL"; 2]
    })
    .await;
    let events = output_of(&["request", "--user", "ann", "--wait", "20s"], &env.settings).await;
    assert!(events.contains("handoff.ready"), "{events}");
    output_of(&["dead-letters", "list"], &env.settings).await;
    output_of(&["doctor"], &env.settings).await;
    assert_eq!(check(&env, "client certificate").await["verdict"], "ok");
    worker.stop().await;

    // With user and password, the same certificate is for TLS alone.
    env.set("AMQP_URL", &secure.url("guest:guest@"));
    let worker = env.start_worker().await;
    // RabbitMQ may still list connections that have ended.
    wait_until("the worker alone is logged in", async || {
        secure.logins().await == ["guest\tPLAIN"; 2]
    })
    .await;
    worker.stop().await;
    drop(files);
}

#[tokio::test]
async fn refused_client_certificate_is_explained() {
    let Some(secure) = SecureNode::start().await else { return };
    let mut env = secure.env("guest:guest@").await;
    assert_refused(&env, "connection", "requires a client certificate").await;
    let _files = present(&mut env, &Authority::new().issue_client("worker"));
    assert_refused(&env, "connection", "does not know its authority").await;
    let expired = secure.authority.issue_with(&[], |params| {
        params.not_after = (SystemTime::now() - Duration::from_secs(60)).into();
    });
    let _files = present(&mut env, &expired);
    assert_refused(&env, "connection", "it has expired").await;
    let certificate = check(&env, "client certificate").await;
    assert!(certificate["what"].as_str().unwrap().contains("has expired"), "{certificate}");
    let soon = secure.authority.issue_valid_for(&[], Duration::from_secs(5 * 24 * 60 * 60));
    let _files = present(&mut env, &soon);
    let certificate = check(&env, "client certificate").await;
    assert_eq!(certificate["verdict"], "finding");
    assert!(certificate["what"].as_str().unwrap().contains("expires in"), "{certificate}");
}

#[tokio::test]
async fn mistakes_in_client_certificates_are_reported_by_name() {
    let authority = Authority::new();
    let (certificate, key) = authority.issue_client("worker").pem();
    let (_, other_key) = authority.issue_client("worker").pem();
    let no_pem = TempFile::new("s3cret");
    let certificate_der = TempFile::new("");
    std::fs::write(certificate_der.path(), authority.issue_client("worker").certificate).unwrap();
    let [cert, key, other_key, no_pem, der] =
        [&certificate, &key, &other_key, &no_pem, &certificate_der].map(TempFile::path);
    let [tls, plain] = ["amqps://localhost", "amqps://localhost,amqp://localhost"];
    for (cert, key, url, errors) in [
        (cert, "", tls, &["CERT_FILE: needs the certificate's key"][..]),
        ("", key, tls, &["KEY_FILE: needs the key's certificate"]),
        (cert, key, plain, &["URL: must begin with amqps:// in each element: HANDOFF_AMQP_CERT"]),
        ("", key, plain, &["URL: must begin with amqps://", "KEY_FILE: needs the key's"]),
        ("/no/such", key, tls, &["CERT_FILE: names a file that does not exist; give the path"]),
        (cert, "/no/such", tls, &["KEY_FILE: names a file that does not exist; give the path"]),
        ("/no/such", "/no/such", tls, &["CERT_FILE: names a file", "KEY_FILE: names a file"]),
        (no_pem, no_pem, tls, &["CERT_FILE: the file's content", "KEY_FILE: the file's content"]),
        (no_pem, key, tls, &["CERT_FILE: the file's content is not a certificate in PEM"]),
        (der, key, tls, &["CERT_FILE: names a file that is not text"]),
        (cert, no_pem, tls, &["KEY_FILE: the file's content is not a private key in PEM"]),
        (cert, other_key, tls, &["KEY_FILE: the file's content is the key of another"]),
    ] {
        let mut settings = Settings::from([("HANDOFF_AMQP_URL".into(), url.into())]);
        for (name, file) in [("CERT", cert), ("KEY", key)] {
            if !file.is_empty() {
                settings.insert(format!("HANDOFF_AMQP_{name}_FILE"), file.to_owned());
            }
        }
        let output = run(&["request", "--user", "ann"], &settings).await;
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        for error in errors {
            assert!(stderr.contains(&format!("HANDOFF_AMQP_{error}")), "{error}: {stderr}");
        }
        assert!(stderr.contains(&format!("configuration errors: {}\n", errors.len())), "{stderr}");
        assert!(!stderr.contains("s3cret"), "{stderr}");
    }
}

/// A folder as Kubernetes mounts a secret: the files are symbolic links through `..data`, which is replaced
/// as a whole.
struct Mount(PathBuf);

impl Mount {
    fn new() -> Self {
        let name = format!("handoff-test-{}", uuid::Uuid::new_v4());
        let mount = Self(std::env::temp_dir().join(name));
        std::fs::create_dir(&mount.0).unwrap();
        for name in ["tls.crt", "tls.key"] {
            symlink(format!("..data/{name}"), mount.0.join(name)).unwrap();
        }
        mount
    }

    fn write(&self, certificate: &str, key: &str) {
        let version = format!("..{}", uuid::Uuid::new_v4());
        let folder = self.0.join(&version);
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("tls.crt"), certificate).unwrap();
        std::fs::write(folder.join("tls.key"), key).unwrap();
        let next = self.0.join("..data_tmp");
        symlink(version, &next).unwrap();
        std::fs::rename(next, self.0.join("..data")).unwrap();
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[tokio::test]
async fn replaced_client_certificate_leads_to_a_calm_reconnect() {
    let Some(secure) = SecureNode::start().await else { return };
    secure.enable_external().await;
    let mut env = secure.env("").await;
    let mount = Mount::new();
    let [first, second] =
        ["first", "second"].map(|name| secure.authority.issue_client(name).pem_text());
    mount.write(&first.0, &first.1);
    env.set("AMQP_CERT_FILE", &mount.file("tls.crt"));
    env.set("AMQP_KEY_FILE", &mount.file("tls.key"));
    for name in ["first", "second"] {
        secure.node.add_user(&format!("CN={name}"), "unused").await;
    }
    let worker = env.start_worker().await;
    env.publish_requests(0..5).await;

    // Half of the pair is replaced: the former pair stays.
    mount.write(&second.0, &first.1);
    let line = worker.wait_for_log(log_text::SECRET_FILE_INVALID).await;
    let error = line["error"].as_str().unwrap();
    assert!(error.starts_with("HANDOFF_AMQP_KEY_FILE: "), "{error}");
    env.publish_requests(5..10).await;
    assert_eq!(secure.logins().await, ["CN=first\tEXTERNAL"; 2]);

    mount.write(&second.0, &second.1);
    worker.wait_for_log(log_text::RABBITMQ_SETTINGS_CHANGED).await;
    env.publish_requests(10..15).await;
    env.expect_all_ready(15).await;
    wait_until("the new certificate is the login", async || {
        secure.logins().await == ["CN=second\tEXTERNAL"; 2]
    })
    .await;
    assert_eq!(env.platform.session_calls().len(), 15);
    assert_eq!(worker.log_lines(log_text::SECRET_FILE_INVALID).len(), 1, "one line");
    assert_eq!(worker.log_lines(log_text::RABBITMQ_LOST).len(), 0);
    worker.stop().await;
}
