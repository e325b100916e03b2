//! Parser of netlink datagrams.

/// `struct nlmsghdr`, in bytes.
pub(crate) const HEADER_BYTES: usize = 16;
/// `NLA_F_NESTED`: the value of the attribute consists of attributes.
pub(crate) const NESTED: u16 = 0x8000;

/// Returns kind and body of each message in a datagram, up to the first truncated one.
pub(crate) fn messages(datagram: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let (length, kind) = header(rest)?;
        let body = rest.get(HEADER_BYTES..length)?;
        // Messages are aligned to four bytes.
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

/// Returns length and kind of the first message.
pub(crate) fn header(bytes: &[u8]) -> Option<(usize, u16)> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?);
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let length = usize::try_from(length).ok()?;
    (HEADER_BYTES..=bytes.len())
        .contains(&length)
        .then_some((length, kind))
}

/// Returns the value of an attribute, if it is present and complete.
pub(crate) fn value(attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    let mut rest = attributes;
    loop {
        let length = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
        let kind = u16::from_ne_bytes(*rest.get(2..)?.first_chunk()?);
        let value = rest.get(4..length)?;
        if kind & !NESTED == wanted {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}
