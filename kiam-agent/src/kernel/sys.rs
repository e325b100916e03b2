//! Commands of `bpf(2)` that aya lacks, and the description of objects in `/proc/self/fdinfo`.
#![expect(unsafe_code, reason = "aya has no call for these commands")]

use std::collections::HashMap;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use kiam_ebpf::{Attestation, Peer};

/// Commands of `include/uapi/linux/bpf.h`.
#[derive(Debug, Clone, Copy)]
#[repr(i32)]
enum Command {
    MapUpdateElem = 2,
    ObjGet = 7,
    ProgQuery = 16,
    /// For hash maps since Linux 5.14.
    MapLookupAndDeleteElem = 21,
    LinkUpdate = 29,
}

/// `union bpf_attr` for commands on elements.
#[repr(C, align(8))]
struct Element {
    map: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// `union bpf_attr` for commands on pins.
#[repr(C, align(8))]
struct Pin {
    path: u64,
    object: u32,
    flags: u32,
}

/// `union bpf_attr` for `BPF_LINK_UPDATE`.
#[repr(C, align(8))]
struct Update {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

/// Looks up and deletes an attestation in one step.
pub(super) fn lookup_and_delete(map: BorrowedFd<'_>, peer: &Peer) -> io::Result<Attestation> {
    let mut attestation = Attestation {
        cgroup: 0,
        quota_cgroup: 0,
        at: 0,
    };
    element(
        map,
        Command::MapLookupAndDeleteElem,
        peer,
        &mut attestation,
        0,
    )?;
    Ok(attestation)
}

/// Inserts an attestation, unless there is one.
pub(super) fn insert_new(
    map: BorrowedFd<'_>,
    peer: &Peer,
    mut attestation: Attestation,
) -> io::Result<()> {
    /// `BPF_NOEXIST`.
    const NO_EXIST: u64 = 1;
    element(
        map,
        Command::MapUpdateElem,
        peer,
        &mut attestation,
        NO_EXIST,
    )
}

fn element(
    map: BorrowedFd<'_>,
    command: Command,
    peer: &Peer,
    attestation: &mut Attestation,
    flags: u64,
) -> io::Result<()> {
    let mut element = Element {
        map: map.as_raw_fd().cast_unsigned(),
        reserved: 0,
        key: &raw const *peer as u64,
        value: &raw mut *attestation as u64,
        flags,
    };
    // SAFETY: the map's key and value have these types; their sizes were compared when the map was
    // opened. The kernel reads the key, reads or writes the value, and both outlive the call.
    unsafe { bpf(command, &mut element) }?;
    Ok(())
}

/// Opens the object that is pinned at `path`.
pub(super) fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut pin = Pin {
        path: path.as_ptr() as u64,
        object: 0,
        flags: 0,
    };
    // SAFETY: the path ends with a zero byte and outlives the call, which only reads it.
    let opened = unsafe { bpf(Command::ObjGet, &mut pin) }?;
    // SAFETY: the call has just returned the descriptor, and it has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(opened) })
}

/// Replaces the program of a link: each event runs either the old or the new one.
pub(super) fn replace_program(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut update = Update {
        link: link.as_raw_fd().cast_unsigned(),
        program: program.as_raw_fd().cast_unsigned(),
        flags: 0,
        old_program: 0,
    };
    // SAFETY: the attributes contain only numbers, of open descriptors.
    unsafe { bpf(Command::LinkUpdate, &mut update) }?;
    Ok(())
}

/// `union bpf_attr` for `BPF_PROG_QUERY`.
#[repr(C, align(8))]
struct Query {
    cgroup: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    reserved: u32,
}

/// Returns the ids of the programs that run for a cgroup at a hook: those attached to the cgroup
/// and to its ancestors.
pub(super) fn effective_programs(cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<Vec<u32>> {
    /// `BPF_F_QUERY_EFFECTIVE`.
    const EFFECTIVE: u32 = 1;
    /// For more programs the kernel answers `ENOSPC`.
    const MOST: u32 = 256;
    let mut programs = vec![0_u32; MOST as usize];
    let mut query = Query {
        cgroup: cgroup.as_raw_fd().cast_unsigned(),
        attach_type,
        query_flags: EFFECTIVE,
        attach_flags: 0,
        programs: programs.as_mut_ptr() as u64,
        count: MOST,
        reserved: 0,
    };
    // SAFETY: the kernel writes at most `count` ids, which is the length of the vector, and sets
    // `count` to the number that it has written.
    unsafe { bpf(Command::ProgQuery, &mut query) }?;
    programs.truncate(query.count as usize);
    Ok(programs)
}

/// # Safety
/// `attributes` must have the layout that the command reads, and its pointers must be valid for
/// what the command does with them.
unsafe fn bpf<T>(command: Command, attributes: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: guaranteed by the caller; at most the size of the type is read or written.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_int,
            &raw mut *attributes,
            size_of::<T>(),
        )
    };
    match libc::c_int::try_from(answer) {
        Ok(answer) if answer >= 0 => Ok(answer),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Kind of an object, and its fields in `/proc/self/fdinfo` (`bpf_map_show_fdinfo`,
/// `bpf_link_show_fdinfo` in kernel/bpf/syscall.c).
#[derive(Debug)]
pub(super) struct Description {
    /// `bpf-map`, `bpf-prog` or `bpf-link`.
    pub(super) kind: String,
    fields: HashMap<String, String>,
}

impl Description {
    pub(super) fn of(object: BorrowedFd<'_>) -> io::Result<Self> {
        let number = object.as_raw_fd();
        let link = std::fs::read_link(format!("/proc/self/fd/{number}"))?;
        let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}"))?;
        Ok(Self::parse(&link.to_string_lossy(), &text))
    }

    fn parse(link: &str, text: &str) -> Self {
        // Kernels differ in brackets, and in the separator between the words.
        let kind = link.trim_start_matches("anon_inode:");
        let kind = kind.trim_matches(['[', ']']).replace('_', "-");
        let lines = text.lines().filter_map(|line| line.split_once(':'));
        let fields = lines.map(|(name, value)| (name.to_owned(), value.trim().to_owned()));
        Self {
            kind,
            fields: fields.collect(),
        }
    }

    /// Returns a numeric field.
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.fields.get(name)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_of_a_link_is_parsed() {
        let text = "pos:\t0\nflags:\t02000002\nlink_type:\tcgroup\nlink_id:\t7\ncgroup_id:\t4242\nattach_type:\t10\n";
        let link = Description::parse("anon_inode:bpf_link", text);
        assert_eq!(link.kind, "bpf-link");
        assert_eq!(link.number("cgroup_id"), Some(4242));
        assert_eq!(link.number("attach_type"), Some(10));
        assert_eq!(link.number("link_type"), None);
        assert_eq!(link.number("absent"), None);
        assert_eq!(
            Description::parse("anon_inode:[bpf-map]", "").kind,
            "bpf-map"
        );
    }
}
