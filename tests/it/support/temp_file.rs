//! Files that a test passes to the binary by name.

use std::path::PathBuf;

/// A file that is deleted when it is dropped.
pub struct TempFile(PathBuf);

impl TempFile {
    pub fn new(content: &str) -> Self {
        let path = std::env::temp_dir().join(format!("handoff-test-{}", uuid::Uuid::new_v4()));
        std::fs::write(&path, content).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
