//! The linker of `.cargo/config.toml`: it orders the functions of an optimized worker, and links everything else, and
//! whatever it cannot order, exactly as `cc` does.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// What rustc passes for an optimized program, reduced. An argument may be empty or contain spaces.
const RELEASE: [&str; 7] = [
    "-m64",
    "a folder/handoff.o",
    "-Wl,-O1",
    "",
    "-fuse-ld=lld",
    "-o",
    "target/release/deps/handoff-0123456789abcdef",
];

/// The programs that the script runs.
const TOOLS: [&str; 6] = ["awk", "cat", "mktemp", "rm", "sed", "sort"];

/// Prints its arguments, a line each. Refuses an order if there is a file `refuse` next to it.
const FAKE_CC: &str = r#"#!/bin/sh
case "$*" in
*--symbol-ordering-file=*)
    if [ -e "${0%/*}/refuse" ]; then echo "unknown option" >&2; exit 1; fi ;;
esac
for argument; do
    case $argument in
    *--symbol-ordering-file=*) echo "order: $(cat "${argument#*=}")" ;;
    *) echo "$argument" ;;
    esac
done
[ "$1" != fail ] || exit 3
"#;

const FAKE_NM: &str = "#!/bin/sh
echo '_RNvNtCs3wQQhPiKuWH_7example3two4last T 0 0'
echo '_RNvCs3wQQhPiKuWH_7example9elsewhere T 0 0'
echo '_RNvCs3wQQhPiKuWH_7example5first t 0 0'
";

/// A copy of the linker with a list of its own, and a `PATH` with a `cc` that prints its arguments.
struct Linker {
    folder: PathBuf,
}

impl Linker {
    fn new(name: &str) -> Self {
        let folder =
            std::env::temp_dir().join(format!("handoff-link-{name}-{}", std::process::id()));
        let linker = Self { folder };
        fs::create_dir_all(linker.folder.join("bin")).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/link-ordered");
        install(&linker.script(), &fs::read_to_string(script).unwrap());
        linker.list("_RNvC7example5first\n_RNvC7example7missing\n_RNvNtC7example3two4last\n");
        linker.program("cc", FAKE_CC);
        linker.program("nm", FAKE_NM);
        for tool in TOOLS {
            symlink(find(tool), linker.folder.join("bin").join(tool)).unwrap();
        }
        linker
    }

    fn script(&self) -> PathBuf {
        self.folder.join("link-ordered")
    }

    fn list(&self, names: &str) {
        fs::write(self.folder.join("link-ordered.names"), names).unwrap();
    }

    fn program(&self, name: &str, text: &str) {
        let program = self.folder.join("bin").join(name);
        // A link to the system's own program must not be written through.
        let _ = fs::remove_file(&program);
        install(&program, text);
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.folder.join(name)).unwrap();
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(self.script());
        command.args(arguments).env("PATH", self.folder.join("bin")).env("TMPDIR", &self.folder);
        command.output().unwrap()
    }

    /// The arguments that `cc` gets.
    fn arguments(&self, arguments: &[&str]) -> Vec<String> {
        let output = self.run(arguments);
        let printed = String::from_utf8(output.stdout).unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{arguments:?}: {errors}");
        printed.lines().map(str::to_owned).collect()
    }
}

impl Drop for Linker {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Writes a script in another process: if this one had it open, a test that starts a program at the same time would hand
/// the open file down to that, and Linux would refuse to run the script (`ETXTBSY`).
fn install(path: &Path, text: &str) {
    let mut shell = Command::new("sh");
    // Replaces a link to a program of the system, and must not write through it.
    shell.args(["-c", r#"rm -f "$1" && printf %s "$2" >"$1" && chmod +x "$1""#, "sh"]);
    shell.arg(path).arg(text);
    assert!(shell.status().unwrap().success());
}

/// The path of a program.
fn find(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    let mut places = std::env::split_paths(&path).map(|folder| folder.join(program));
    places.find(|place| place.is_file()).unwrap_or_else(|| panic!("{program} is missing"))
}

#[test]
fn optimized_worker_is_linked_in_the_listed_order() {
    let linker = Linker::new("order");
    let arguments = linker.arguments(&RELEASE);
    let (given, added) = arguments.split_at(RELEASE.len());
    assert_eq!(given, RELEASE);
    let order = "order: _RNvCs3wQQhPiKuWH_7example5first _RNvNtCs3wQQhPiKuWH_7example3two4last";
    assert_eq!(added.join(" "), format!("{order} -Wl,--no-warn-symbol-ordering"));
    // It leaves nothing behind.
    let mut left: Vec<_> = fs::read_dir(&linker.folder).unwrap().collect();
    left.retain(|entry| !entry.as_ref().unwrap().file_name().to_str().unwrap().contains("link"));
    assert_eq!(left.len(), 1, "{left:?}");
}

#[test]
fn other_links_are_left_to_cc() {
    let linker = Linker::new("others");
    let replaced = |at: usize, with: &'static str| {
        let mut arguments = RELEASE;
        arguments[at] = with;
        arguments.to_vec()
    };
    let mut second_linker = RELEASE.to_vec();
    second_linker.push("-fuse-ld=mold");
    for arguments in [
        replaced(2, "-Wl,--as-needed"),
        replaced(4, "-pie"),
        replaced(4, "-fuse-ld=bfd"),
        second_linker,
        replaced(6, "target/release/build/handoff-0123456789abcdef/build_script_build-0123"),
        replaced(6, "target/release/deps/libhandoff-0123456789abcdef.so"),
        replaced(6, "target/release/deps/it-0123456789abcdef"),
        vec!["@target/release/deps/rustcAbCdEf/linker-arguments"],
        vec!["-o"],
        vec![],
    ] {
        assert_eq!(linker.arguments(&arguments), arguments);
    }
    let output = linker.run(&["fail", "-o", "program"]);
    assert_eq!(output.status.code(), Some(3), "the status of cc");
}

#[test]
fn what_cannot_be_ordered_is_linked_as_usual() {
    let linker = Linker::new("unordered");
    for tool in TOOLS.into_iter().chain(["nm"]).filter(|tool| !matches!(*tool, "cat" | "rm")) {
        let place = format!("bin/{tool}");
        let kept = fs::read_link(linker.folder.join(&place));
        linker.remove(&place);
        assert_eq!(linker.arguments(&RELEASE), RELEASE, "without {tool}");
        match kept {
            Ok(original) => symlink(original, linker.folder.join(place)).unwrap(),
            Err(_) => linker.program(tool, FAKE_NM),
        }
    }
    assert_ne!(linker.arguments(&RELEASE), RELEASE, "with all tools");

    linker.list("_RNvC7example7missing\n");
    assert_eq!(linker.arguments(&RELEASE), RELEASE, "without a listed function");
    linker.list("");
    assert_eq!(linker.arguments(&RELEASE), RELEASE, "with an empty list");
    linker.remove("link-ordered.names");
    assert_eq!(linker.arguments(&RELEASE), RELEASE, "without a list");
}

#[test]
fn refused_order_is_linked_as_usual() {
    let linker = Linker::new("refused");
    fs::write(linker.folder.join("bin/refuse"), "").unwrap();
    assert_eq!(linker.arguments(&RELEASE), RELEASE);
    let mut failing = RELEASE;
    failing[0] = "fail";
    assert_eq!(linker.run(&failing).status.code(), Some(3), "the status of cc");
}

#[test]
fn another_compiler_links_where_there_is_no_cc() {
    let linker = Linker::new("compiler");
    linker.remove("bin/cc");
    for (at, compiler) in ["clang", "gcc", "cc"].into_iter().enumerate() {
        linker.program(compiler, &format!("#!/bin/sh\necho {compiler}\n"));
        assert_eq!(linker.arguments(&RELEASE[..1]), [compiler], "with {} compilers", at + 1);
    }
}

#[test]
fn place_for_temporary_files_is_not_needed() {
    let linker = Linker::new("temporary");
    linker.program("mktemp", "#!/bin/sh\necho 'mktemp: failed' >&2\nexit 1\n");
    let output = linker.run(&RELEASE);
    assert!(output.status.success());
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

/// With the real compiler and linker: names with types and hashes, in an order that is not that of the source.
#[cfg(all(target_arch = "x86_64", target_os = "linux", target_env = "gnu"))]
#[test]
fn listed_functions_are_next_to_each_other_in_the_program() {
    const SOURCE: &str = r#"
        use std::hint::black_box;
        #[inline(never)] fn twice<T: Copy + std::ops::Add<Output = T>>(x: T) -> T { black_box(x) + black_box(x) }
        #[inline(never)] fn between(x: u8) -> u8 { black_box(x) ^ 1 }
        #[inline(never)] fn one(x: u8) -> u8 { black_box(x) ^ 2 }
        fn main() { black_box((twice(black_box(1u8)), between(2), twice(black_box(1u64)), one(3), twice(black_box(1u32)))); }
    "#;
    let linker = Linker::new("real");
    linker.list("_RNvC7handoff3one\n_RINvC7handoff5twicemEB_\n_RNvC7handoff7between\n_RINvC7handoff5twicehEB_\n");
    let source = linker.folder.join("handoff.rs");
    fs::write(&source, SOURCE).unwrap();
    let program = linker.folder.join("handoff");
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.args(["-O", "-C", "codegen-units=1", "-C", "symbol-mangling-version=v0", "-C"]);
    rustc.arg(format!("linker={}", linker.script().display())).arg("-o").args([&program, &source]);
    let compiled = rustc.output().unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));

    let symbols = Command::new("nm").arg("--numeric-sort").arg(&program).output().unwrap();
    let symbols = String::from_utf8(symbols.stdout).unwrap();
    let names = symbols.lines().filter_map(|line| line.rsplit(' ').next());
    let names: Vec<_> = names.filter(|name| name.contains("7handoff")).collect();
    let place = |part: &str| {
        let found = names.iter().position(|name| name.contains(part));
        found.unwrap_or_else(|| panic!("{part} in {names:#?}"))
    };
    let order = ["3one", "5twicem", "7between", "5twiceh"].map(place);
    assert!(order.is_sorted_by(|a, b| a + 1 == *b), "{order:?} in {names:#?}");
}

/// A list that nothing matches would go unnoticed: the program works without it.
#[test]
fn list_contains_reduced_names_of_this_program() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let names = fs::read_to_string(root.join("scripts/link-ordered.names")).unwrap();
    let reduced = Command::new("sh")
        .args(["-c", "exec scripts/link-ordered --plain <scripts/link-ordered.names"])
        .current_dir(root)
        .output()
        .unwrap();
    assert!(names == String::from_utf8(reduced.stdout).unwrap(), "a name can be reduced further");
    let own = names.lines().filter(|name| name.contains("7handoff6worker")).count();
    assert!(own > 20, "only {own} functions of the module `worker`");
}

#[test]
fn image_and_release_are_linked_in_order() {
    let read =
        |path: &str| fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    let config = read(".cargo/config.toml");
    let flag = config.lines().find_map(|line| line.strip_prefix("rustflags = "));
    let flag = flag.unwrap().trim_matches(['[', ']']).replace(['"', ','], "");
    assert!(config.contains("linker = \"scripts/link-ordered\""));
    assert!(read("scripts/release/build").contains(&flag), "a release has not the flags {flag}");
    let (ignore, image) = (read(".dockerignore"), read("deploy/Dockerfile"));
    for path in [".cargo", "scripts/link-ordered", "scripts/link-ordered.names"] {
        assert!(ignore.lines().any(|line| line == format!("!{path}")), "no {path} for Docker");
        assert!(image.contains(&format!("COPY {path} ")), "no {path} in the image");
    }
}
