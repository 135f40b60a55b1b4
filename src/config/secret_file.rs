//! Secrets that are read from files.

use std::{
    fs::File,
    io::{ErrorKind, Read},
    path::Path,
};

/// Largest file that a secret is read from, in bytes. `/dev/zero` has no end.
const MAX_SECRET: u64 = 64 * 1024;

/// Reads a secret, without the newline at its end. The error follows the variable's name.
pub(crate) fn read_secret_file(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let read =
        File::open(path).and_then(|file| file.take(MAX_SECRET + 1).read_to_string(&mut text));
    match read.map(|length| length as u64) {
        Ok(..=MAX_SECRET) => {}
        Ok(_) => return Err("names a file of more than 64 KiB".to_owned()),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err("names a file that does not exist".to_owned());
        }
        Err(error) if error.kind() == ErrorKind::InvalidData => {
            return Err("names a file that is not text (UTF-8)".to_owned());
        }
        Err(error) => return Err(format!("names a file that cannot be read: {}", error.kind())),
    }
    let line =
        text.strip_suffix('\n').map_or(&*text, |line| line.strip_suffix('\r').unwrap_or(line));
    if line.is_empty() { Err("names a file that is empty".to_owned()) } else { Ok(line.to_owned()) }
}
