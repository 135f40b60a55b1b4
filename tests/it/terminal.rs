//! Help, errors and colours on a terminal.

use std::process::{Output, Stdio};

use tokio::{io::AsyncWriteExt, net::TcpListener};

use crate::support::{
    TestEnv, within_timeout,
    worker::{Settings, command},
};

const COMMANDS: [&str; 9] =
    ["run", "demo", "request", "sandbox", "dead-letters", "doctor", "schema", "completions", "man"];

async fn run(arguments: &[&str]) -> Output {
    within_timeout("its exit", command(arguments, &Settings::new()).output()).await.unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Runs a command on a terminal, and returns its output.
async fn on_terminal(arguments: &str, settings: &[(&str, &str)]) -> String {
    let line = format!("{} {arguments}", env!("CARGO_BIN_EXE_handoff"));
    let mut script = tokio::process::Command::new("script");
    script.args(["-qec", &line, "/dev/null"]).env_remove("NO_COLOR").env("TERM", "xterm");
    script.envs(settings.iter().copied()).stdin(Stdio::null());
    text(&within_timeout("its exit", script.output()).await.unwrap().stdout)
}

#[tokio::test]
async fn every_help_text_has_an_example() {
    let all = text(&run(&["--help"]).await.stdout);
    for command in COMMANDS {
        assert!(all.contains(&format!("  {command} ")), "{command} is not in {all}");
        let output = run(&[command, "--help"]).await;
        assert!(output.status.success());
        let help = text(&output.stdout);
        let (_, examples) =
            help.split_once("Example").unwrap_or_else(|| panic!("{command}: {help}"));
        assert!(examples.contains(&format!("handoff {command}")), "{command}: {help}");
    }
    for command in ["list", "show", "replay", "drop"] {
        let help = text(&run(&["dead-letters", command, "--help"]).await.stdout);
        assert!(help.contains(&format!("handoff dead-letters {command}")), "{help}");
    }
    assert!(all.contains("handoff demo"), "{all}");
}

#[tokio::test]
async fn demo_help_shows_the_defaults_of_the_demo() {
    let help = text(&run(&["demo", "--help"]).await.stdout);
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for words in [
        "name none [default: demo]",
        "Redis key [default: unique for each run]",
        "/metrics [default: any free port of this machine]",
        "directives [default: warn]",
        "deeplink, in whole seconds [default: 1h]",
    ] {
        assert!(help.contains(words), "{words}: {help}");
    }
}

#[tokio::test]
async fn only_terminals_without_no_color_get_colours() {
    let nowhere = "--amqp-url=amqp://127.0.0.1:1 --redis-url=redis://127.0.0.1:1 \
                   --idv-url=http://127.0.0.1:1 --idv-api-key=k";
    let doctor = format!("doctor {nowhere}");
    for arguments in ["run --help", "no-such-command", &doctor] {
        let shown = on_terminal(arguments, &[]).await;
        assert!(shown.contains("\u{1b}["), "{arguments}: {shown:?}");
        let shown = on_terminal(arguments, &[("NO_COLOR", "1")]).await;
        assert!(!shown.contains("\u{1b}["), "{arguments}: {shown:?}");
        let arguments: Vec<_> = arguments.split_whitespace().collect();
        let Output { stdout, stderr, .. } = run(&arguments).await;
        assert!(!stdout.contains(&0x1b) && !stderr.contains(&0x1b), "{arguments:?}");
    }
}

#[tokio::test]
async fn completions_are_valid_shell_scripts() {
    for shell in ["bash", "zsh", "fish"] {
        let output = run(&["completions", shell]).await;
        assert!(output.status.success());
        let script = text(&output.stdout);
        for word in ["dead-letters", "idv-api-key-file", "probe"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    let script = run(&["completions", "bash"]).await.stdout;
    let mut bash = tokio::process::Command::new("bash");
    let ask = "COMP_WORDS=(handoff dead-letters re) COMP_CWORD=2; _handoff handoff re dead-letters; \
               echo \"${COMPREPLY[@]}\"";
    let mut bash = bash.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = bash.stdin.take().unwrap();
    stdin.write_all(&[&script[..], b"\n", ask.as_bytes()].concat()).await.unwrap();
    drop(stdin);
    let output = within_timeout("bash", bash.wait_with_output()).await.unwrap();
    assert_eq!(text(&output.stdout), "replay\n");
    assert_eq!(run(&["completions", "tcsh"]).await.status.code(), Some(2));
}

#[tokio::test]
async fn every_command_has_a_manual_page() {
    for (arguments, title) in [
        (&["man"][..], "handoff 1"),
        (&["man", "run"], "handoff-run 1"),
        (&["man", "dead-letters", "replay"], "handoff-dead-letters-replay 1"),
    ] {
        let output = run(arguments).await;
        let page = text(&output.stdout);
        assert!(output.status.success());
        assert!(page.contains(&format!(".TH {title}")), "{arguments:?}: {page:.300}");
        assert!(page.contains(".SH NAME") && page.contains("Example"), "{page:.600}");
    }
    let output = run(&["man", "fly"]).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("no command"), "{}", text(&output.stderr));
}

#[tokio::test]
async fn error_names_the_cause_and_a_remedy() {
    for (arguments, words) in [
        (
            &["request", "--user=ann", "--amqp-url=amqp://127.0.0.1:1"][..],
            &["cannot connect to RabbitMQ", "connection refused", "handoff doctor"][..],
        ),
        (
            &["dead-letters", "list", "--amqp-url=amqp://127.0.0.1:1"],
            &["cannot connect to RabbitMQ", "connection refused", "handoff doctor"],
        ),
        (&["demo", "--amqp-url=amqp://127.0.0.1:1"], &["cannot connect to RabbitMQ", "make demo"]),
        (
            &["run", "--idv-url=http://127.0.0.1:1", "--idv-api-key=k", "--http-addr=192.0.2.1:1"],
            &["192.0.2.1:1", "HANDOFF_HTTP_ADDR"],
        ),
        (&["request", "--file=/no/such"], &["--file", "No such file"]),
    ] {
        let output = run(arguments).await;
        let stderr = text(&output.stderr);
        for word in words {
            assert!(stderr.contains(word), "{arguments:?}: {word} is not in {stderr}");
        }
        assert!(!output.status.success());
    }
}

/// The first frame of an AMQP server with this product, `connection.start`.
fn connection_start(product: &str) -> Vec<u8> {
    let long =
        |bytes: &[u8]| [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat();
    let field = |name: &str, value: &str| {
        [&[u8::try_from(name.len()).unwrap()], name.as_bytes(), b"S", &long(value.as_bytes())]
            .concat()
    };
    let properties = [field("product", product), field("version", "1.0")].concat();
    let class_and_method = [0, 10, 0, 10, 0, 9];
    let payload =
        [&class_and_method[..], &long(&properties), &long(b"PLAIN"), &long(b"en_US")].concat();
    [&[1, 0, 0], &long(&payload)[..], &[0xCE]].concat()
}

#[tokio::test]
async fn text_of_a_server_cannot_control_the_terminal() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let start = connection_start("Ev\u{1b}[2Jil\u{9b}31m\u{7f}\u{202e}MQ\n");
            let _ = client.write_all(&start).await;
        }
    });
    let mut env = TestEnv::start().await;
    env.set("AMQP_URL", &format!("amqp://{addr}"));
    let check = async |flags: &[&str]| {
        let output = command(flags, &env.settings).output();
        let output = within_timeout("its exit", output).await.unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let is_raw = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!text.contains(is_raw), "{text:?}");
        let escaped = r"Ev\u{1b}[2Jil\u{9b}31m\u{7f}\u{202e}MQ\u{a}";
        let escaped =
            if flags.len() == 2 { escaped.replace('\\', r"\\") } else { escaped.to_owned() };
        assert!(text.contains(&escaped), "{text}");
    };
    tokio::join!(check(&["doctor"]), check(&["doctor", "--json"]));
    server.abort();
}
