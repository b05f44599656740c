//! `/proc/PID/maps`: what is mapped where.

/// One line of `/proc/PID/maps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MappedRange {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) writable: bool,
    pub(crate) executable: bool,
    pub(crate) offset: u64,
    /// Device and inode: which file; zeros for none.
    pub(crate) file: (u64, u64),
    /// Path, or a name in brackets, or nothing.
    pub(crate) name: String,
}

/// The text of a process's mappings; empty where there is none to be read.
pub(crate) fn read(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default()
}

/// Whether a process has the memory of a session mapped; `None` where it has ended, or may not be looked at.
pub(crate) fn holds_session(pid: u32) -> Option<bool> {
    let text = read(pid);
    (!text.is_empty()).then(|| text.contains(crate::memory::SESSION_NAME))
}

/// Parses the text of a maps file; lines that are not of its form are left out.
pub(crate) fn parse(text: &str) -> Vec<MappedRange> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<MappedRange> {
    let mut rest = line;
    let mut next = || {
        let (word, tail) = rest.split_once(' ').unwrap_or((rest, ""));
        rest = tail.trim_start_matches(' ');
        word
    };
    let (start, end) = next().split_once('-')?;
    let access = next().as_bytes();
    let offset = u64::from_str_radix(next(), 16).ok()?;
    let (major, minor) = next().split_once(':')?;
    let device =
        (u64::from_str_radix(major, 16).ok()? << 32) | u64::from_str_radix(minor, 16).ok()?;
    let inode = next().parse().ok()?;
    Some(MappedRange {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        writable: access.get(1) == Some(&b'w'),
        executable: access.get(2) == Some(&b'x'),
        offset,
        file: (device, inode),
        // The kernel writes newlines in names as \012 and nothing else so.
        name: rest.replace("\\012", "\n"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_with_a_path_that_has_spaces() {
        let line = "7f0a-7f0b r-xp 00001000 08:01 42                         /tmp/a b/c (deleted)";
        let range = parse_line(line).unwrap();
        assert_eq!(range.name, "/tmp/a b/c (deleted)");
        assert_eq!(
            (range.start, range.end, range.offset),
            (0x7f0a, 0x7f0b, 0x1000)
        );
        assert_eq!(range.file, ((8 << 32) | 1, 42));
        assert!(range.executable && !range.writable);
    }

    #[test]
    fn anonymous_line_and_garbage() {
        assert_eq!(
            parse("7f00-7f10 rw-p 00000000 00:00 0 \ngarbage\n\n").len(),
            1
        );
    }

    #[test]
    fn own_maps_hold_this_very_code() {
        let here = own_maps_hold_this_very_code as *const () as u64;
        let ranges = parse(&std::fs::read_to_string("/proc/self/maps").unwrap());
        assert!(
            ranges
                .iter()
                .any(|r| r.executable && (r.start..r.end).contains(&here))
        );
    }
}
