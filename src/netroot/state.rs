//! Lays a node's kept state into the role's root before its first process runs: the systems'
//! folders, the machine id, the host name.

use super::mount;
use crate::image::role::RoleFile;
use crate::sys::files;
use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Component, Path, PathBuf};

/// role.json of the largest role is a few dozen KiB.
const ROLE_FILE_MAX_BYTES: u64 = 4 * 1024 * 1024;
/// As the kernel's own bound on a path's symlinks.
const SYMLINKS_MAX: usize = 40;
/// Ending of a folder whose first copy was cut off.
const COPYING: &str = ".kiln-copying";

/// Reads the role's own description from its root.
pub fn read_role(root: &Path) -> Result<RoleFile> {
    let path = inside(root, Path::new(crate::image::role::ROLE_FILE))?;
    let bytes = files::read_bounded(&path, ROLE_FILE_MAX_BYTES)?;
    serde_json::from_slice(&bytes).with_context(|| format!("reading {}", path.display()))
}

/// Makes the folders that would be kept, for a node that keeps nothing.
pub fn make_folders(root: &Path, folders: &[String]) -> Result<()> {
    for folder in folders {
        let place = inside(root, Path::new(folder))?;
        fs::create_dir_all(&place).with_context(|| format!("making {}", place.display()))?;
    }
    Ok(())
}

/// Binds every folder of `folders` (absolute in the role) from `disk` over its place in `root`.
/// A folder that is not yet on the disk is first copied there as the image has it.
pub fn bind_folders(root: &Path, disk: &Path, folders: &[String]) -> Result<()> {
    let mut folders: Vec<&String> = folders.iter().collect();
    folders.sort(); // a folder inside another one comes after it
    for folder in folders {
        let place = inside(root, Path::new(folder))?;
        fs::create_dir_all(&place).with_context(|| format!("making {}", place.display()))?;
        let kept = disk.join("data").join(folder.trim_start_matches('/'));
        keep(&place, &kept).with_context(|| format!("keeping {folder} on the state disk"))?;
        mount::bind(&kept, &place)?;
    }
    Ok(())
}

/// Copies `place` to `kept` if that is not there; a copy that was cut off is made anew.
fn keep(place: &Path, kept: &Path) -> Result<()> {
    if kept.exists() {
        return Ok(());
    }
    let parent = kept.parent().context("state folder has no parent")?;
    fs::create_dir_all(parent)?;
    let mut name = kept.file_name().context("state folder has no name")?.to_os_string();
    name.push(COPYING);
    let copying = parent.join(name);
    files::remove_tree(&copying)?;
    copy_tree(place, &copying)?;
    nix::unistd::sync(); // all of the copy before the name that vouches for it
    fs::rename(&copying, kept)?;
    files::sync_dir(parent)
}

/// Copies folders, files and symlinks with owner, mode and extended attributes. Sockets, pipes
/// and devices belong to running programs and are left out.
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    let meta = fs::symlink_metadata(from).with_context(|| format!("reading {}", from.display()))?;
    let copying = || format!("copying {} to {}", from.display(), to.display());
    let kind = meta.file_type();
    if kind.is_dir() {
        fs::create_dir(to).with_context(copying)?;
        for entry in fs::read_dir(from).with_context(copying)? {
            let name = entry.with_context(copying)?.file_name();
            copy_tree(&from.join(&name), &to.join(&name))?;
        }
    } else if kind.is_file() {
        fs::copy(from, to).with_context(copying)?;
    } else if kind.is_symlink() {
        symlink(fs::read_link(from).with_context(copying)?, to).with_context(copying)?;
    } else {
        return Ok(());
    }
    lchown(to, Some(meta.uid()), Some(meta.gid())).with_context(copying)?;
    if !kind.is_symlink() {
        // After the owner: a change of owner takes setuid bits away.
        fs::set_permissions(to, fs::Permissions::from_mode(meta.mode() & 0o7777)).with_context(copying)?;
        copy_attributes(from, to).with_context(copying)?;
    }
    Ok(())
}

/// Extended attributes hold file capabilities and SELinux labels.
fn copy_attributes(from: &Path, to: &Path) -> Result<()> {
    let (from, to) =
        (std::ffi::CString::new(from.as_os_str().as_bytes())?, std::ffi::CString::new(to.as_os_str().as_bytes())?);
    let mut names = vec![0u8; 64 * 1024]; // XATTR_LIST_MAX
    // SAFETY: buffers and lengths belong together, names are NUL-terminated.
    let length = unsafe { libc::listxattr(from.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    let Ok(length) = usize::try_from(length) else { return Ok(()) }; // a file system without attributes
    for name in names[..length].split_inclusive(|b| *b == 0) {
        let mut value = vec![0u8; 64 * 1024]; // XATTR_SIZE_MAX
        // SAFETY: as above.
        let length =
            unsafe { libc::getxattr(from.as_ptr(), name.as_ptr().cast(), value.as_mut_ptr().cast(), value.len()) };
        let Ok(length) = usize::try_from(length) else { continue };
        // SAFETY: as above.
        let done = unsafe { libc::setxattr(to.as_ptr(), name.as_ptr().cast(), value.as_ptr().cast(), length, 0) };
        match nix::errno::Errno::result(done) {
            // The overlay shows its own attributes; another file system does not take them.
            Ok(_) | Err(nix::errno::Errno::EOPNOTSUPP | nix::errno::Errno::EPERM) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Writes machine id and host name. The id is kept on `disk`; without one it lasts a boot.
pub fn identify(root: &Path, disk: Option<&Path>, node: &str) -> Result<()> {
    let id = machine_id(disk)?;
    let etc = inside(root, Path::new("/etc"))?;
    for (name, text, mode) in [("machine-id", format!("{id}\n"), 0o444), ("hostname", format!("{node}\n"), 0o644)] {
        files::write_atomic(&etc.join(name), text.as_bytes(), mode)?;
    }
    nix::unistd::sethostname(node).context("setting the host name")
}

fn machine_id(disk: Option<&Path>) -> Result<String> {
    let kept = disk.map(|d| d.join("kiln/machine-id"));
    if let Some(path) = kept.as_ref().filter(|p| p.exists()) {
        let text = String::from_utf8_lossy(&files::read_bounded(path, 1024)?).trim().to_string();
        if text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Ok(text);
        }
        bail!("{} holds {text:?}, not a machine id of 32 hex digits; remove it for a new one", path.display());
    }
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes).map_err(|e| anyhow::anyhow!("asking the kernel for random bytes: {e}"))?;
    // machine-id(5) asks for a version 4 UUID.
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let id = crate::image::id::hex(&bytes);
    if let Some(path) = kept {
        files::write_atomic(&path, format!("{id}\n").as_bytes(), 0o444)?;
    }
    Ok(id)
}

/// Where an absolute path of the role lies below `root`: symlinks are followed as the role would
/// see them, so none leads out. Parts that do not exist are taken as they are.
pub fn inside(root: &Path, path: &Path) -> Result<PathBuf> {
    let mut todo: Vec<OsString> = parts(path);
    todo.reverse();
    let (mut found, mut symlinks) = (PathBuf::new(), 0);
    while let Some(part) = todo.pop() {
        if part == ".." {
            found.pop();
            continue;
        }
        let next = root.join(&found).join(&part);
        match fs::read_link(&next) {
            Ok(link) => {
                symlinks += 1;
                if symlinks > SYMLINKS_MAX {
                    bail!("too many symlinks on the way to {}", path.display());
                }
                if link.is_absolute() {
                    found = PathBuf::new();
                }
                todo.extend(parts(&link).into_iter().rev());
            }
            Err(_) => found.push(part),
        }
    }
    Ok(root.join(found))
}

fn parts(path: &Path) -> Vec<OsString> {
    path.components()
        .filter_map(|c| match c {
            Component::Normal(name) => Some(name.to_os_string()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_symlink_leads_out_of_the_root() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("usr/sbin")).unwrap();
        symlink("usr/sbin", root.path().join("sbin")).unwrap();
        symlink("/lib/systemd", root.path().join("usr/sbin/init")).unwrap();
        symlink("../../../../etc", root.path().join("up")).unwrap();
        symlink("/loop", root.path().join("loop")).unwrap();
        for (path, want) in [
            ("/sbin/init", "lib/systemd"),
            ("/up/passwd", "etc/passwd"),
            ("/../../x", "x"),
            ("/var/lib/new", "var/lib/new"),
        ] {
            assert_eq!(inside(root.path(), Path::new(path)).unwrap(), root.path().join(want), "{path}");
        }
        assert!(inside(root.path(), Path::new("/loop/x")).is_err());
    }

    #[test]
    fn a_folder_is_copied_once_whole_and_then_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (place, kept) = (dir.path().join("image/mysql"), dir.path().join("disk/data/var/lib/mysql"));
        fs::create_dir_all(place.join("sub")).unwrap();
        fs::write(place.join("sub/file"), "one").unwrap();
        symlink("file", place.join("sub/link")).unwrap();
        fs::set_permissions(place.join("sub"), fs::Permissions::from_mode(0o2750)).unwrap();
        // A copy that was cut off leaves only this behind.
        fs::create_dir_all(kept.with_file_name("mysql.kiln-copying/half")).unwrap();
        keep(&place, &kept).unwrap();
        assert_eq!(fs::read_to_string(kept.join("sub/link")).unwrap(), "one");
        assert_eq!(fs::metadata(kept.join("sub")).unwrap().mode() & 0o7777, 0o2750);
        assert!(!kept.join("half").exists() && !kept.with_file_name("mysql.kiln-copying").exists());
        fs::write(place.join("sub/file"), "two").unwrap();
        keep(&place, &kept).unwrap();
        assert_eq!(fs::read_to_string(kept.join("sub/file")).unwrap(), "one");
    }

    #[test]
    fn the_machine_id_stays_the_same_on_a_disk() {
        let disk = tempfile::tempdir().unwrap();
        fs::create_dir(disk.path().join("kiln")).unwrap();
        let first = machine_id(Some(disk.path())).unwrap();
        assert_eq!(first.len(), 32);
        assert_eq!(machine_id(Some(disk.path())).unwrap(), first);
        assert_ne!(machine_id(None).unwrap(), first);
        fs::write(disk.path().join("kiln/machine-id"), "junk").unwrap();
        assert!(machine_id(Some(disk.path())).is_err());
    }
}
