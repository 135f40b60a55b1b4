//! Values that may change while the worker runs, because they are read from files.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use secrecy::{ExposeSecret, SecretString};
use tokio::{
    sync::{Semaphore, watch},
    task::spawn_blocking,
    time::{sleep, timeout},
};

use super::{secret_file::read_secret_file, setting::ParseResult};

/// How often the files are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// Time limit for reading a file, which may be on a slow file system, or be a pipe that never ends.
const READ_LIMIT: Duration = Duration::from_secs(1);

/// A setting's current value. If it comes from files, they are read again every 10 s.
///
/// Clones share the value.
pub struct Watched<T>(Arc<Inner<T>>);

struct Inner<T> {
    value: watch::Sender<Arc<T>>,
    source: Option<Source<T>>,
}

/// A file, and the variable that names it: `HANDOFF_AMQP_URL_FILE`.
pub(super) struct NamedFile {
    pub(super) path: PathBuf,
    pub(super) variable: String,
}

/// What is wrong with which of the files.
pub(super) type FileError = (usize, &'static str);

/// The files of a value: one, or a certificate and its key.
struct Source<T> {
    files: Vec<NamedFile>,
    parse: Box<ParseFiles<T>>,
    /// The contents that the value was parsed from. Compared, rather than the times of the files: Kubernetes
    /// replaces a symbolic link to their folder.
    contents: Mutex<Vec<SecretString>>,
    /// The error of the last look, so that each error is logged once.
    last_error: Mutex<Option<String>>,
    /// Lets one thread read at a time: a hanging read cannot be cancelled, and more must not join it.
    reader: Arc<Semaphore>,
}

/// Parses the contents of the files together.
pub(super) type ParseFiles<T> = dyn Fn(&[SecretString]) -> Result<T, FileError> + Send + Sync;

impl<T> Watched<T> {
    /// A value that never changes.
    pub fn fixed(value: T) -> Self {
        Self(Arc::new(Inner { value: watch::Sender::new(Arc::new(value)), source: None }))
    }

    /// A value that was parsed from the content of a file.
    pub(super) fn from_file(
        value: T,
        content: String,
        file: NamedFile,
        parse: fn(&str) -> ParseResult<T>,
    ) -> Self
    where
        T: 'static,
    {
        let parse = move |contents: &[SecretString]| {
            let content = contents.first().map_or("", |content| content.expose_secret());
            parse(content).map_err(|why| (0, why))
        };
        Self::from_files(value, vec![content.into()], vec![file], Box::new(parse))
    }

    /// A value that was parsed from the contents of several files.
    pub(super) fn from_files(
        value: T,
        contents: Vec<SecretString>,
        files: Vec<NamedFile>,
        parse: Box<ParseFiles<T>>,
    ) -> Self {
        let source = Source {
            files,
            parse,
            contents: Mutex::new(contents),
            last_error: Mutex::default(),
            reader: Arc::new(Semaphore::new(1)),
        };
        Self(Arc::new(Inner { value: watch::Sender::new(Arc::new(value)), source: Some(source) }))
    }

    /// The current value.
    pub fn current(&self) -> Arc<T> {
        Arc::clone(&self.0.value.borrow())
    }

    /// The first file that the value comes from.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.file().map(|file| &*file.path)
    }

    /// The first file that the value comes from, and its variable.
    pub(super) fn file(&self) -> Option<&NamedFile> {
        self.0.source.as_ref()?.files.first()
    }

    /// Waits until the current value is another than `known`.
    pub(crate) async fn changed_from(&self, known: &Arc<T>) {
        let mut value = self.0.value.subscribe();
        // The sender lives as long as `self`, so this is never an error.
        let _ = value.wait_for(|value| !Arc::ptr_eq(value, known)).await;
    }
}

impl<T: Send + Sync + 'static> Watched<T> {
    /// Reads the files again, if there are any, within a second. Keeps the former value if a file cannot be
    /// read or is invalid, or if they do not fit together.
    pub(crate) async fn look(&self) {
        let Some(source) = &self.0.source else { return };
        let reader = Arc::clone(&source.reader);
        let inner = Arc::clone(&self.0);
        let read = async {
            let turn = reader.acquire_owned().await;
            // Publishes in its turn, so that an older content never follows a newer one.
            let read = spawn_blocking(move || {
                let _turn = turn;
                inner.read();
            });
            let _ = read.await;
        };
        if timeout(READ_LIMIT, read).await.is_err() {
            source.failed(0, "names a file that takes too long to read");
        }
    }
}

impl<T> Inner<T> {
    fn read(&self) {
        let Some(source) = &self.source else { return };
        let mut contents = Vec::with_capacity(source.files.len());
        for (n, file) in source.files.iter().enumerate() {
            match read_secret_file(&file.path) {
                Ok(content) => contents.push(SecretString::from(content)),
                Err(error) => return source.failed(n, &error),
            }
        }
        let is_known = {
            let known = source.contents.lock();
            let known = known.iter().map(SecretString::expose_secret);
            known.eq(contents.iter().map(SecretString::expose_secret))
        };
        if is_known {
            *source.last_error.lock() = None;
            return;
        }
        match (source.parse)(&contents) {
            Ok(value) => {
                *source.last_error.lock() = None;
                *source.contents.lock() = contents;
                self.value.send_replace(Arc::new(value));
                let setting = source.files.first().map_or("", |file| &*file.variable);
                tracing::info!(setting, "secret file changed: using the new value");
            }
            Err((n, why)) => source.failed(n, &format!("the file's content {why}")),
        }
    }
}

impl<T> Source<T> {
    fn failed(&self, n: usize, why: &str) {
        let Some(NamedFile { path, variable }) = self.files.get(n) else { return };
        let error = format!("{variable}: {why}");
        let mut last_error = self.last_error.lock();
        if last_error.as_ref() != Some(&error) {
            let file = path.display();
            tracing::warn!(%error, %file, "secret file is invalid: keeping the former value");
            *last_error = Some(error);
        }
    }
}

impl<T> Clone for Watched<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[cfg(test)]
impl<T: 'static> Watched<T> {
    /// The value of a file, for the tests of those who use one.
    pub(crate) fn of_file(path: PathBuf, parse: fn(&str) -> ParseResult<T>) -> Self {
        let content = read_secret_file(&path).unwrap();
        let value = parse(&content).unwrap();
        let file = NamedFile { path, variable: "HANDOFF_X_FILE".to_owned() };
        Self::from_file(value, content, file, parse)
    }
}

impl<T: Default> Default for Watched<T> {
    fn default() -> Self {
        Self::fixed(T::default())
    }
}

impl<T> From<T> for Watched<T> {
    fn from(value: T) -> Self {
        Self::fixed(value)
    }
}

/// Shows no value: most are secret.
impl<T> fmt::Debug for Watched<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").field("file", &self.path()).finish_non_exhaustive()
    }
}

/// Looks at a file every 10 s. Never returns.
pub(crate) async fn watch_file<T: Send + Sync + 'static>(value: Watched<T>) {
    while value.path().is_some() {
        sleep(LOOK_INTERVAL).await;
        value.look().await;
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use tokio::time::Instant;

    use super::*;

    /// A folder that is deleted when it is dropped.
    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Self {
            let path = std::env::temp_dir().join(format!("handoff-{}", uuid::Uuid::new_v4()));
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn write(&self, name: &str, content: &str) -> PathBuf {
            let path = self.0.join(name);
            fs::write(&path, content).unwrap();
            path
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn word(text: &str) -> ParseResult<SecretString> {
        if text.contains(' ') { Err("must be one word") } else { Ok(text.into()) }
    }

    fn text(value: &Watched<SecretString>) -> String {
        value.current().expose_secret().to_owned()
    }

    #[tokio::test(start_paused = true)]
    async fn changed_file_is_noticed_within_ten_seconds() {
        let folder = Folder::new();
        let value = Watched::of_file(folder.write("key", "one"), word);
        let known = value.current();
        let looking = tokio::spawn(watch_file(value.clone()));
        folder.write("key", "two\n");
        let began = Instant::now();
        value.changed_from(&known).await;
        assert_eq!(text(&value), "two");
        assert!(began.elapsed() <= LOOK_INTERVAL + READ_LIMIT, "{:?}", began.elapsed());
        looking.abort();
    }

    #[tokio::test]
    async fn swapped_symbolic_link_is_a_change() {
        let folder = Folder::new();
        let [one, two] = ["one", "two"].map(|content| folder.write(content, content));
        let link = folder.0.join("link");
        symlink(one, &link).unwrap();
        let value = Watched::of_file(link.clone(), word);
        value.look().await;
        assert_eq!(text(&value), "one");
        let next = folder.0.join("next");
        symlink(two, &next).unwrap();
        fs::rename(next, link).unwrap();
        value.look().await;
        assert_eq!(text(&value), "two");
    }

    #[tokio::test]
    async fn missing_or_invalid_file_keeps_the_former_value() {
        let folder = Folder::new();
        let path = folder.write("key", "one");
        let value = Watched::of_file(path.clone(), word);
        let known = value.current();
        for content in [Some(""), Some(" two"), None] {
            match content {
                Some(content) => drop(folder.write("key", content)),
                None => fs::remove_file(&path).unwrap(),
            }
            value.look().await;
            assert!(Arc::ptr_eq(&value.current(), &known));
            let error = value.0.source.as_ref().unwrap().last_error.lock().clone();
            assert!(error.is_some_and(|error| !error.contains("two")));
        }
        folder.write("key", "three");
        value.look().await;
        assert_eq!(text(&value), "three");
    }

    #[tokio::test]
    async fn files_that_do_not_fit_together_keep_the_former_value() {
        let folder = Folder::new();
        let files = ["first", "second"].map(|name| NamedFile {
            path: folder.write(name, "1"),
            variable: format!("HANDOFF_{name}"),
        });
        let parse = |contents: &[SecretString]| {
            let [first, second] = [0, 1].map(|n: usize| contents[n].expose_secret().to_owned());
            if first == second { Ok(first) } else { Err((1, "is another")) }
        };
        let contents = vec!["1".into(), "1".into()];
        let value = Watched::from_files("1".to_owned(), contents, files.into(), Box::new(parse));
        let error = || value.0.source.as_ref().unwrap().last_error.lock().clone();
        folder.write("first", "2");
        value.look().await;
        assert_eq!(*value.current(), "1");
        assert_eq!(error().unwrap(), "HANDOFF_second: the file's content is another");
        folder.write("second", "2");
        value.look().await;
        assert_eq!(*value.current(), "2");
        assert_eq!(error(), None);
    }

    #[tokio::test]
    async fn hanging_file_does_not_block_a_look() {
        let folder = Folder::new();
        let path = folder.write("key", "one");
        let value = Watched::of_file(path.clone(), word);
        fs::remove_file(&path).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        let looks = async {
            value.look().await;
            value.look().await;
        };
        let ended = timeout(Duration::from_secs(5), looks).await.is_ok();
        // Unblocks the thread that reads the pipe.
        fs::OpenOptions::new().write(true).open(&path).unwrap();
        assert!(ended, "still reading");
    }

    #[test]
    fn endless_file_is_an_error() {
        let error = read_secret_file(Path::new("/dev/zero")).unwrap_err();
        assert_eq!(error, "names a file of more than 64 KiB");
    }
}
