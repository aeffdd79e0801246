//! Copying inside a local folder: reflink where the file system has it (btrfs, XFS, APFS: nothing is moved and nothing is shared
//! afterwards), else `std::fs::copy`, which is `copy_file_range` on Linux: the bytes stay in the kernel.
//!
//! Never a hard link: Milvus writes a file of its local storage in place, and would write into both.
//!
//! What a copy promises after a power cut: the copy is whole or absent under its name. The bytes are synced before the name is
//! given (`rename`), and the folder after it, as far up as folders were made.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Tells the copies of one process apart.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A name beside `target` that listings hide: the store takes `#` and digits at the end for an unfinished upload.
fn staged(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    name.push(format!("#{}{n:08}", std::process::id()));
    name.into()
}

/// Whether a file's name is one of an unfinished upload: ours, or one of the store's.
pub(super) fn is_staged(name: &str) -> bool {
    name.split_once('#')
        .is_some_and(|(_, tail)| !tail.is_empty() && tail.bytes().all(|b| b.is_ascii_digit()))
}

/// Makes `to` a copy of `from`, which must have `size` bytes. `true` when the file system shares their blocks.
pub(super) fn copy(from: &Path, to: &Path, size: u64) -> io::Result<bool> {
    // Asked first: afterwards "not found" could mean the target's folder.
    fs::metadata(from)?;
    if let Some(folder) = to.parent() {
        make_folders(folder)?;
    }
    let beside = staged(to);
    let copied = fill(from, &beside, size).and_then(|shared| {
        fs::rename(&beside, to)?;
        Ok(shared)
    });
    if copied.is_err() {
        let _ = fs::remove_file(&beside);
    } else if let Some(folder) = to.parent() {
        sync_folder(folder)?;
    }
    copied
}

fn fill(from: &Path, beside: &Path, size: u64) -> io::Result<bool> {
    // A process with our number may have died in the middle of this very copy.
    match fs::remove_file(beside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let shared = reflink_copy::reflink_or_copy(from, beside)?.is_none();
    let file = File::open(beside)?;
    let found = file.metadata()?.len();
    if found != size {
        let why = format!("{found} bytes were copied, {size} were expected");
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    file.sync_all()?;
    Ok(shared)
}

/// Makes what is missing of a folder, each synced into its parent.
fn make_folders(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let Some(parent) = folder.parent() else {
        return Ok(());
    };
    make_folders(parent)?;
    match fs::create_dir(folder) {
        Ok(()) => sync_folder(parent),
        // Another copy was faster.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e),
    }
}

#[cfg(unix)]
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(not(unix))]
fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}

/// Files of uploads and copies below `folder` that were never finished, with when they were last written.
pub(super) fn unfinished(folder: &Path) -> io::Result<Vec<(PathBuf, std::time::SystemTime)>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        for entry in entries {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() && is_staged(&entry.file_name().to_string_lossy()) {
                found.push((entry.path(), entry.metadata()?.modified()?));
            }
        }
    }
    Ok(found)
}
