//! The commands of `bpf(2)` that aya has none for, and what the kernel says of an object.
#![expect(unsafe_code, reason = "aya has no call for these commands")]

use std::collections::HashMap;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use kiam_ebpf::{Attestation, Caller};

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

/// `union bpf_attr`, as the commands on elements use it.
#[repr(C, align(8))]
struct Element {
    map: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// `union bpf_attr`, as the commands on pins use it.
#[repr(C, align(8))]
struct Pin {
    path: u64,
    object: u32,
    flags: u32,
}

/// `union bpf_attr`, as `BPF_LINK_UPDATE` uses it.
#[repr(C, align(8))]
struct Update {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

/// Takes a note out of the map, in one step of the kernel's.
pub(super) fn take_note(map: BorrowedFd<'_>, caller: &Caller) -> io::Result<Attestation> {
    let mut note = Attestation {
        cgroup: 0,
        share: 0,
        at: 0,
    };
    element(map, Command::MapLookupAndDeleteElem, caller, &mut note, 0)?;
    Ok(note)
}

/// Puts a note into the map, unless there is one.
pub(super) fn put_note(
    map: BorrowedFd<'_>,
    caller: &Caller,
    mut note: Attestation,
) -> io::Result<()> {
    /// `BPF_NOEXIST`.
    const NO_EXIST: u64 = 1;
    element(map, Command::MapUpdateElem, caller, &mut note, NO_EXIST)
}

fn element(
    map: BorrowedFd<'_>,
    command: Command,
    caller: &Caller,
    note: &mut Attestation,
    flags: u64,
) -> io::Result<()> {
    let mut element = Element {
        map: map.as_raw_fd().cast_unsigned(),
        reserved: 0,
        key: &raw const *caller as u64,
        value: &raw mut *note as u64,
        flags,
    };
    // SAFETY: the map's key and value are of these types, whose sizes its owner has compared; the
    // kernel reads the one, reads or writes the other, and both outlive the call.
    unsafe { bpf(command, &mut element) }?;
    Ok(())
}

/// Opens what is pinned at `path`.
pub(super) fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut pin = Pin {
        path: path.as_ptr() as u64,
        object: 0,
        flags: 0,
    };
    // SAFETY: the path ends with a zero byte and outlives the call, which only reads it.
    let opened = unsafe { bpf(Command::ObjGet, &mut pin) }?;
    // SAFETY: the call has just returned it, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(opened) })
}

/// Puts another program in a link's place: every event meets the one or the other.
pub(super) fn replace_program(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut update = Update {
        link: link.as_raw_fd().cast_unsigned(),
        program: program.as_raw_fd().cast_unsigned(),
        flags: 0,
        old_program: 0,
    };
    // SAFETY: numbers only, of descriptors that are open.
    unsafe { bpf(Command::LinkUpdate, &mut update) }?;
    Ok(())
}

/// `union bpf_attr`, as `BPF_PROG_QUERY` uses it.
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

/// The ids of the programs that run for a cgroup at a hook: its own, and those of the cgroups that
/// it is in.
pub(super) fn effective_programs(cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<Vec<u32>> {
    /// `BPF_F_QUERY_EFFECTIVE`.
    const EFFECTIVE: u32 = 1;
    /// A kernel that has more answers `ENOSPC`.
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
    // SAFETY: the kernel writes no more ids than `count` says there is room for, and how many it
    // has written.
    unsafe { bpf(Command::ProgQuery, &mut query) }?;
    programs.truncate(query.count as usize);
    Ok(programs)
}

/// # Safety
/// `attributes` must be laid out as the command reads it, and what it points to must be valid for
/// what the command does with it.
unsafe fn bpf<T>(command: Command, attributes: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: as the caller promises; no more than the type's size is read or written.
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

/// What an object is, and what `/proc/self/fdinfo` says of it (`bpf_map_show_fdinfo`,
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
        // Kernels differ in brackets, and in the stroke between the words.
        let kind = link.trim_start_matches("anon_inode:");
        let kind = kind.trim_matches(['[', ']']).replace('_', "-");
        let lines = text.lines().filter_map(|line| line.split_once(':'));
        let fields = lines.map(|(name, value)| (name.to_owned(), value.trim().to_owned()));
        Self {
            kind,
            fields: fields.collect(),
        }
    }

    /// A field that is a number.
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.fields.get(name)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_s_description_is_read() {
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
