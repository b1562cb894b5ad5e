//! What a reader reads, from which good files.

use std::path::Path;

use tempfile::TempDir;

/// Contents of good files.
pub type Seeds = Vec<Vec<u8>>;

/// A reader of other people's files.
pub struct Reader {
    /// Its name, and that of its fuzz target if it has one.
    pub name: &'static str,
    /// The file that is damaged, in folders or not; its name can say how it is read.
    pub file: &'static str,
    /// Puts the files that are read with it into the same folder.
    pub beside: fn(folder: &Path),
    /// Good files.
    pub seeds: fn() -> Seeds,
    /// Reads the file in the folder.
    pub read: fn(file: &Path, folder: &Path),
}

impl Reader {
    /// Puts the good files into `fuzz/corpus`, where cargo-fuzz begins with them.
    pub fn write_seeds(&self) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
        let folder = folder.join(self.name);
        std::fs::create_dir_all(&folder).expect("a folder for seeds");
        for (number, seed) in (self.seeds)().iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{number}")), seed).expect("a seed is written");
        }
    }
}

/// A reader at work in a folder of its own.
pub struct Trial {
    reader: &'static Reader,
    folder: TempDir,
}

impl Trial {
    /// With the files that the reader needs beside the damaged one.
    pub fn of(reader: &'static Reader) -> Self {
        let folder = tempfile::tempdir().expect("a folder for damaged files");
        let file = folder.path().join(reader.file);
        let parent = file.parent().expect("a file in a folder");
        std::fs::create_dir_all(parent).expect("a folder for damaged files");
        (reader.beside)(folder.path());
        Self { reader, folder }
    }

    /// Lets the reader read these bytes.
    ///
    /// # Panics
    /// If the reader does.
    pub fn read(&self, bytes: &[u8]) {
        let folder = self.folder.path();
        let file = folder.join(self.reader.file);
        std::fs::write(&file, bytes).expect("a damaged file is written");
        (self.reader.read)(&file, folder);
    }
}
