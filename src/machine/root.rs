//! Where the machine's files are: below `/`, or below another folder with a made-up machine in it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// The folder that stands for `/`. Names of files are given without the first slash.
#[derive(Clone, Debug)]
pub(super) struct Root {
    folder: PathBuf,
}

/// The number behind `key` in lines such as `MemTotal:  123 kB` or `inactive_file 123`.
pub(super) fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let rest = line.strip_prefix(key)?.strip_prefix([':', ' ', '\t'])?;
        rest.split_ascii_whitespace().next()?.parse().ok()
    })
}

impl Root {
    /// The machine below `folder`, or this one.
    pub(super) fn new(folder: Option<&Path>) -> Root {
        Root { folder: folder.unwrap_or(Path::new("/")).to_owned() }
    }

    /// True when it is the machine that this process runs on.
    pub(super) fn is_real(&self) -> bool {
        self.folder == Path::new("/")
    }

    /// The text of a file without white space around it, or `None` when it cannot be read.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        // Files of the kernel need not be UTF-8, and nothing that is looked for here is not.
        let bytes = fs::read(self.folder.join(name)).ok()?;
        Some(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// A file that holds one number.
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.text(name)?.parse().ok()
    }

    /// A file that holds numbers, such as `net.ipv4.tcp_mem`; empty when there is none.
    pub(super) fn numbers(&self, name: &str) -> Vec<u64> {
        let text = self.text(name).unwrap_or_default();
        text.split_ascii_whitespace().map_while(|word| word.parse().ok()).collect()
    }

    /// The number behind `key` in a file of lines, as [`field`] finds it.
    pub(super) fn field(&self, name: &str, key: &str) -> Option<u64> {
        field(&self.text(name)?, key)
    }

    /// A setting of the kernel, by the name that `sysctl` has for it, with single spaces in it.
    pub(super) fn sysctl(&self, key: &str) -> Option<String> {
        Some(self.text(&sysctl_file(key))?.split_ascii_whitespace().collect::<Vec<_>>().join(" "))
    }

    /// The same as a number.
    pub(super) fn sysctl_number(&self, key: &str) -> Option<u64> {
        self.sysctl(key)?.parse().ok()
    }

    /// Changes a setting of the kernel.
    ///
    /// # Errors
    /// When there is no such setting, and what the kernel says against the value.
    pub(super) fn set_sysctl(&self, key: &str, value: &str) -> io::Result<()> {
        let mut file =
            OpenOptions::new().write(true).truncate(true).open(self.folder.join(sysctl_file(key)))?;
        // In one call: the kernel takes each for a whole value.
        file.write_all(format!("{value}\n").as_bytes())
    }

    /// The names in a folder, in order; none when it is not there.
    pub(super) fn names(&self, folder: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.folder.join(folder)) else { return Vec::new() };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    /// True when there is such a file or folder.
    pub(super) fn has(&self, name: &str) -> bool {
        self.folder.join(name).exists()
    }

    /// The text of a file that nobody but the user of this process can have written.
    ///
    /// # Errors
    /// What the system says; `NotFound` when there is none, and `PermissionDenied` when somebody else owns it or may write to it.
    pub(super) fn own_text(&self, name: &str) -> io::Result<String> {
        let mut file = File::open(self.folder.join(name))?;
        let its = file.metadata()?;
        if its.uid() != rustix::process::geteuid().as_raw() || its.mode() & 0o022 != 0 {
            let why = "it is of another user, or others may write to it: it is not trusted";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        Ok(text)
    }

    /// Makes sure that no other process has this for the same folder, which is made if need be, until what is answered is dropped.
    ///
    /// # Errors
    /// `ResourceBusy` when another has, and what the system says.
    pub(super) fn lock(&self, folder: &str) -> io::Result<File> {
        let folder = self.folder.join(folder);
        fs::create_dir_all(&folder)?;
        let folder = File::open(folder)?;
        folder.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => {
                io::Error::new(io::ErrorKind::ResourceBusy, "another throng tune runs at this moment")
            }
            TryLockError::Error(error) => error,
        })?;
        Ok(folder)
    }

    /// Writes a file so that whoever reads it, also after the power failed, finds what was there before or all of `text`.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn replace(&self, name: &str, text: &str) -> io::Result<()> {
        let path = self.folder.join(name);
        let parent = path.parent().unwrap_or(&self.folder);
        fs::create_dir_all(parent)?;
        let new = path.with_extension("new");
        // What an earlier run has left goes. What somebody else puts there meanwhile is not written through.
        self.remove(&new)?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(parent)?.sync_all()
    }

    /// Removes a file; that it is not there is no error.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn remove(&self, name: impl AsRef<Path>) -> io::Result<()> {
        match fs::remove_file(self.folder.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }
}

/// Names of interfaces may have dots in them, but none of our settings has an interface in its name.
fn sysctl_file(key: &str) -> String {
    format!("proc/sys/{}", key.replace('.', "/"))
}
