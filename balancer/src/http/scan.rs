//! A head cut into its lines, in one pass over its bytes.
//!
//! Only what RFC 9112 has for a sender is taken: lines end with CR LF, nothing stands before the colon of a field, no
//! line is folded. What the fields mean is for `fields` to say.

use std::mem::MaybeUninit;

use super::Refusal;
use super::fields::{Kind, Summary};

/// The most fields that a head can have, whatever the configuration says: the space on the stack that parsing uses.
pub const FIELDS_MAX: usize = 128;

/// One field line, as places in the bytes of its head. A head is far below 4 GiB.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    pub(crate) line: u32,
    colon: u32,
    value: u32,
    value_end: u32,
    pub(crate) kind: Kind,
}

impl Field {
    /// `head` is the bytes that the field was found in.
    pub(crate) fn name<'b>(&self, head: &'b [u8]) -> &'b [u8] {
        &head[self.line as usize..self.colon as usize]
    }

    /// Without the white space around it.
    pub(crate) fn value<'b>(&self, head: &'b [u8]) -> &'b [u8] {
        &head[self.value as usize..self.value_end as usize]
    }

    /// Whether `rest` follows the name, colon and end of line included.
    pub(crate) fn continues(&self, head: &[u8], rest: &[u8]) -> bool {
        head[self.colon as usize..].starts_with(rest)
    }
}

/// Room for the fields of one head while it is parsed.
pub type Space = [MaybeUninit<Field>; FIELDS_MAX];

#[must_use]
pub fn space() -> Space {
    [const { MaybeUninit::uninit() }; FIELDS_MAX]
}

/// The fields of a head, and what they say together.
pub(crate) struct Fields<'h, 'b> {
    pub(crate) fields: &'h [Field],
    pub(crate) summary: Summary<'b>,
    /// Where the head ends, its empty line included.
    pub(crate) head_bytes: usize,
}

/// Reads the fields of a head from `at`, where its first line has ended. `None` means that `bytes` stop too early.
/// More than `most` fields are [`Refusal::HeadTooLarge`]. `kind_of` says what names mean.
pub(crate) fn fields<'h, 'b>(
    bytes: &'b [u8],
    mut at: usize,
    version: u8,
    most: usize,
    kind_of: impl Fn(&[u8]) -> Kind,
    space: &'h mut Space,
) -> Result<Option<Fields<'h, 'b>>, Refusal> {
    let mut summary = Summary::default();
    let mut count = 0;
    let room = &mut space[..most.min(FIELDS_MAX)];
    loop {
        match line_end(bytes, at)? {
            Some(true) => break,
            Some(false) => {}
            None => return Ok(None),
        }
        let Some((field, next)) = field(bytes, at, &kind_of)? else { return Ok(None) };
        room.get_mut(count).ok_or(Refusal::HeadTooLarge)?.write(field);
        count += 1;
        at = next;
        if field.kind != Kind::Plain {
            summary.note(&field, bytes, version)?;
        }
    }
    summary.check()?;
    // SAFETY: the first `count` elements were written above, and `Field` has the layout of its `MaybeUninit`.
    let fields = unsafe { std::slice::from_raw_parts(room.as_ptr().cast::<Field>(), count) };
    Ok(Some(Fields { fields, summary, head_bytes: at + 2 }))
}

/// Whether CR LF is at `at`; `None` when that cannot be told yet.
pub(crate) fn line_end(bytes: &[u8], at: usize) -> Result<Option<bool>, Refusal> {
    match (bytes.get(at), bytes.get(at + 1)) {
        (None, _) | (Some(b'\r'), None) => Ok(None),
        (Some(b'\r'), Some(b'\n')) => Ok(Some(true)),
        (Some(b'\r'), Some(_)) => Err(Refusal::Malformed("carriage return without line feed")),
        _ => Ok(Some(false)),
    }
}

/// The field whose line begins at `line`, and where the next one does.
fn field(
    bytes: &[u8],
    line: usize,
    kind_of: impl Fn(&[u8]) -> Kind,
) -> Result<Option<(Field, usize)>, Refusal> {
    let colon = token_end(bytes, line);
    match bytes.get(colon) {
        Some(b':') if colon > line => {}
        Some(_) => return Err(Refusal::Malformed("field name")),
        None => return Ok(None),
    }
    let mut value = colon + 1;
    let mut value_end = text_end(bytes, value);
    let next = match line_end(bytes, value_end)? {
        Some(true) => value_end + 2,
        Some(false) => return Err(Refusal::Malformed("field value")),
        None => return Ok(None),
    };
    while value < value_end && is_space(bytes[value]) {
        value += 1;
    }
    while value < value_end && is_space(bytes[value_end - 1]) {
        value_end -= 1;
    }
    let kind = kind_of(&bytes[line..colon]);
    let place = |at: usize| at as u32;
    let field = Field {
        line: place(line),
        colon: place(colon),
        value: place(value),
        value_end: place(value_end),
        kind,
    };
    Ok(Some((field, next)))
}

fn is_space(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

/// Where the token (RFC 9110, 5.6.2) that begins at `from` ends.
pub(crate) fn token_end(bytes: &[u8], from: usize) -> usize {
    let length = bytes[from..].iter().position(|&byte| !TOKEN[usize::from(byte)]);
    length.map_or(bytes.len(), |length| from + length)
}

const TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        let it = byte as u8;
        table[byte] = it.is_ascii_alphanumeric()
            || matches!(
                it,
                b'!' | b'#'
                    | b'$'
                    | b'%'
                    | b'&'
                    | b'\''
                    | b'*'
                    | b'+'
                    | b'-'
                    | b'.'
                    | b'^'
                    | b'_'
                    | b'`'
                    | b'|'
                    | b'~'
            );
        byte += 1;
    }
    table
};

/// Where the text that begins at `from` ends: printable bytes, those from 0x80 on, spaces and tabs.
pub(crate) fn text_end(bytes: &[u8], from: usize) -> usize {
    let mut at = from;
    while let Some(eight) = bytes.get(at..).and_then(<[u8]>::first_chunk::<8>) {
        let controls = control_bytes(u64::from_le_bytes(*eight));
        if controls == 0 {
            at += 8;
            continue;
        }
        at += controls.trailing_zeros() as usize / 8;
        if bytes[at] != b'\t' {
            return at;
        }
        at += 1;
    }
    let rest = bytes[at..].iter().position(|&byte| (byte < b' ' && byte != b'\t') || byte == 0x7f);
    rest.map_or(bytes.len(), |length| at + length)
}

/// Has the highest bit of the lowest byte set that is below 0x20 or is 0x7f; bits above that one mean nothing.
///
/// The subtraction borrows only from bytes above one that is found ("Bit Twiddling Hacks", determine if a word has
/// a byte less than n).
fn control_bytes(word: u64) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = 0x8080_8080_8080_8080;
    let deletes = word ^ (ONES * 0x7f);
    let low = word.wrapping_sub(ONES * 0x20) & !word;
    let delete = deletes.wrapping_sub(ONES) & !deletes;
    (low | delete) & HIGHS
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `text_end` says, byte by byte.
    fn slow_text_end(bytes: &[u8]) -> usize {
        let is_text = |byte: &u8| matches!(byte, b'\t' | b' '..=b'~' | 0x80..);
        bytes.iter().position(|byte| !is_text(byte)).unwrap_or(bytes.len())
    }

    #[test]
    fn text_ends_at_the_first_control_byte_wherever_it_is() {
        for length in 0..40 {
            for at in 0..length {
                for byte in 0..=255 {
                    let mut bytes = vec![b'x'; length];
                    bytes[at] = byte;
                    // What follows must not change where it ends.
                    for other in [b'\n', b'\t', 0xff, b' ', 0x7f] {
                        if let Some(next) = bytes.get_mut(at + 1) {
                            *next = other;
                        }
                        assert_eq!(text_end(&bytes, 0), slow_text_end(&bytes), "{bytes:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn values_lose_the_white_space_around_them_and_keep_that_inside() {
        let head = b"A: \t b c\t \r\nEmpty:  \r\nNone:\r\n\r\n";
        let mut space = space();
        let fields =
            fields(head, 0, 1, FIELDS_MAX, Kind::in_request, &mut space).expect("legal").expect("whole");
        let pairs: Vec<_> = fields.fields.iter().map(|f| (f.name(head), f.value(head))).collect();
        let expected: [(&[u8], &[u8]); 3] = [(b"A", b"b c"), (b"Empty", b""), (b"None", b"")];
        assert_eq!((pairs.as_slice(), fields.head_bytes), (expected.as_slice(), head.len()));
    }
}
