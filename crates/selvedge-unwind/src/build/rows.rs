//! Rows of an image: what its unwind information says, what is known without it, and where nothing is.

use super::Error;
use super::elf::{Code, Image};
use super::encode::Rules;
use super::frames::Section;
use super::instructions::{self, State as Interpreted};
use super::landing;
use super::trace::{State, Tracer};
use crate::table::{Cfa, Rule, Saved, register};
use std::ops::Range;

/// Bytes of functions that jump to landing pads, at most, that are looked at: there are a handful of such functions, of a
/// few hundred bytes.
const LANDING_BYTES: u64 = 1 << 20;

/// A piece of code whose rows are `rows`.
#[derive(Clone, Debug)]
struct Piece {
    start: u64,
    end: u64,
    rows: Range<u32>,
}

/// Rows, as they are found: piece by piece.
#[derive(Debug, Default)]
pub(super) struct Rows {
    pieces: Vec<Piece>,
    /// Bytes from the start of the piece, and number of the rule.
    rows: Vec<(u32, u32)>,
    rules: Rules,
}

/// The rows of a table: bytes from `base`, ascending, and numbers of rules.
#[derive(Debug)]
pub(super) struct Joined {
    pub(super) base: u64,
    pub(super) rows: Vec<(u32, u32)>,
    pub(super) rules: Rules,
}

/// All rows of an image.
pub(super) fn of(elf: &[u8]) -> Result<Joined, Error> {
    let image = Image::parse(elf)?;
    let mut rows = Rows::default();
    if let Some(section) = image.eh_frame {
        rows.collect(&section, &image);
    }
    rows.pieces.sort_by_key(|piece| piece.start);
    if let Some(section) = image.debug_frame {
        // Of functions that the other section leaves out, as Go's does.
        let mut more = rows.pieces.split_off(0);
        rows.collect(&section, &image);
        rows.pieces.retain(|piece| is_free(&more, piece));
        rows.pieces.append(&mut more);
        rows.pieces.sort_by_key(|piece| piece.start);
    }
    if rows.pieces.is_empty() {
        return Err(Error::no_unwind_information());
    }
    rows.add_known_code(&image);
    Ok(rows.join())
}

/// Whether a piece touches none of others, which are sorted.
fn is_free(others: &[Piece], piece: &Piece) -> bool {
    let next = others.partition_point(|other| other.start < piece.end);
    next.checked_sub(1)
        .and_then(|last| others.get(last))
        .is_none_or(|other| other.end <= piece.start)
}

impl Rows {
    /// Adds what a section says.
    fn collect(&mut self, section: &Section<'_>, image: &Image<'_>) {
        let mut landings = LANDING_BYTES;
        let prepare = |common: &_| Interpreted::initial(section, common);
        section.visit(prepare, |common, initial, entry| {
            let (start, end) = (entry.start, entry.end);
            // Linkers leave entries of functions that they discarded, at zero; damaged ones may be anywhere.
            let inside = |range: &Range<u64>| range.start <= start && end <= range.end;
            if start >= end
                || end - start > u64::from(u32::MAX)
                || !image.executable.iter().any(inside)
            {
                return;
            }
            let first = self.rows.len();
            let Some(initial) = initial else {
                return self.add(start..end, first, |rows| rows.push(0, &Rule::NONE));
            };
            let mut lands = false;
            self.add(start..end, first, |rows| {
                lands = instructions::rows(section, common, initial, &entry, |at, rule| {
                    rows.push((at - start) as u32, rule);
                });
            });
            if lands && landings.checked_sub(end - start).is_none() {
                self.erase_from_last(&(start..end));
            } else if lands {
                landings -= end - start;
                for jump in landing::jumps(start, end, &image.code) {
                    self.erase_from_last(&jump);
                }
            }
        });
    }

    /// Adds a piece with the rows that `fill` pushes.
    fn add(&mut self, range: Range<u64>, first: usize, fill: impl FnOnce(&mut Self)) {
        fill(self);
        let rows = first as u32..self.rows.len() as u32;
        self.pieces.push(Piece {
            start: range.start,
            end: range.end,
            rows,
        });
    }

    fn push(&mut self, offset: u32, rule: &Rule) {
        let number = self.rules.number(rule);
        self.rows.push((offset, number));
    }

    /// Takes the rules from a part of the last piece.
    fn erase_from_last(&mut self, part: &Range<u64>) {
        let none = self.rules.number(&Rule::NONE);
        let Some(piece) = self.pieces.last_mut() else {
            return;
        };
        let Some(rows) = self.rows.get(piece.rows.start as usize..) else {
            return;
        };
        let (from, to) = (
            (part.start - piece.start) as u32,
            (part.end - piece.start) as u32,
        );
        let before = rows.partition_point(|(at, _)| *at < from);
        let behind = rows.partition_point(|(at, _)| *at <= to);
        let mut new = vec![(from, none)];
        if let Some((_, rule)) = behind.checked_sub(1).and_then(|last| rows.get(last))
            && part.end < piece.end
        {
            new.push((to, *rule));
        }
        let first = piece.rows.start as usize;
        self.rows.splice(first + before..first + behind, new);
        piece.rows.end = self.rows.len() as u32;
    }

    /// Adds rules for code that usually has no unwind information and whose frame is known all the same.
    fn add_known_code(&mut self, image: &Image<'_>) {
        let pieces = &self.pieces;
        let covered = |at: u64| {
            let next = pieces.partition_point(|piece| piece.start <= at);
            let last = next.checked_sub(1).and_then(|last| pieces.get(last));
            last.is_some_and(|piece| at < piece.end)
        };
        let mut tracer = Tracer::new(&image.code, covered);
        // Where the kernel, or the loader, jumps to has no caller.
        tracer.follow(image.entry, State::Root);
        for code in &image.code {
            let range = code.range();
            match code.name.as_str() {
                // The first stub is where the others jump to.
                ".plt" => range
                    .skip(16)
                    .step_by(16)
                    .for_each(|stub| tracer.follow_stub(stub)),
                ".plt.sec" | ".iplt" => range.step_by(16).for_each(|stub| tracer.follow_stub(stub)),
                ".plt.got" => range.step_by(8).for_each(|stub| tracer.follow_stub(stub)),
                _ => {}
            }
        }
        for function in uncovered(&image.functions, pieces) {
            tracer.follow(function, State::entry(0));
        }
        let mut known = tracer.rows();
        for code in &image.code {
            known.extend(signal_returns(code, pieces));
        }
        for (range, rule) in known {
            self.add(range, self.rows.len(), |rows| rows.push(0, &rule));
        }
        self.pieces.sort_by_key(|piece| piece.start);
    }

    /// Puts pieces one after the other; what lies between has no unwind information. Where two overlap, the later one
    /// holds from its start on.
    fn join(mut self) -> Joined {
        let unknown = self.rules.number(&Rule::UNKNOWN);
        let none = self.rules.number(&Rule::NONE);
        let base = self.pieces.first().map_or(0, |piece| piece.start);
        // What lies further from the base than a row can say has no rule.
        let offset = |svma: u64| u32::try_from(svma - base).unwrap_or(u32::MAX);
        let mut joined: Vec<(u32, u32)> = Vec::with_capacity(self.rows.len());
        let mut push = |at: u32, rule: u32| {
            while joined.last().is_some_and(|(start, _)| *start >= at) {
                joined.pop();
            }
            if joined.last().is_none_or(|(_, last)| *last != rule) {
                joined.push((at, rule));
            }
        };
        let mut end = base;
        for piece in &self.pieces {
            if end < piece.start {
                push(offset(end), unknown);
            }
            for (at, rule) in &self.rows[piece.rows.start as usize..piece.rows.end as usize] {
                let at = piece.start + u64::from(*at);
                if at < piece.end {
                    push(offset(at), *rule);
                }
            }
            end = piece.end;
        }
        push(
            offset(end),
            if end - base < u64::from(u32::MAX) {
                unknown
            } else {
                none
            },
        );
        Joined {
            base,
            rows: joined,
            rules: self.rules,
        }
    }
}

/// Those functions that lie in no piece. Nearly all do: so both are gone through in order, not searched.
fn uncovered(functions: &[u64], pieces: &[Piece]) -> Vec<u64> {
    let mut functions = functions.to_vec();
    functions.sort_unstable();
    functions.dedup();
    let (mut next, mut end) = (pieces.iter().peekable(), 0);
    functions.retain(|function| {
        while let Some(piece) = next.next_if(|piece| piece.start <= *function) {
            end = piece.end;
        }
        *function >= end
    });
    functions
}

/// Signal-return trampolines in no piece: `mov $15, %rax; syscall` in one of its two encodings. The kernel's frame of a
/// signal is at the stack pointer: a `ucontext`, whose registers start at byte 40
/// (arch/x86/include/uapi/asm/sigcontext.h).
fn signal_returns(code: &Code<'_>, pieces: &[Piece]) -> Vec<(Range<u64>, Rule)> {
    let long: &[u8] = &[0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05];
    let short: &[u8] = &[0xb8, 0x0f, 0, 0, 0, 0x0f, 0x05];
    let finders = [long, short].map(memchr::memmem::Finder::new);
    let mut found = Vec::new();
    let (mut at, last) = (code.svma, code.range().end);
    let first = pieces.partition_point(|piece| piece.end <= at);
    let ends = pieces
        .iter()
        .skip(first)
        .map(|piece| (piece.start, piece.end));
    for (end, next) in ends.chain([(last, last)]) {
        let gap = (at - code.svma) as usize..(end.min(last).max(at) - code.svma) as usize;
        let gap = code.bytes.get(gap).unwrap_or_default();
        for finder in &finders {
            found.extend(finder.find_iter(gap).map(|offset| {
                let start = at + offset as u64;
                (start..start + finder.needle().len() as u64, signal_return())
            }));
        }
        at = next.max(at);
        if at >= last {
            break;
        }
    }
    found
}

fn signal_return() -> Rule {
    let sp = register::SP as u8;
    let saved = [128, 120, 72, 80, 88, 96, 168].map(|at| Saved::At(sp, at));
    let [bx, bp, r12, r13, r14, r15, ip] = saved;
    let saved = [bx, bp, r12, r13, r14, r15, ip, Saved::Cfa(0)];
    Rule {
        cfa: Cfa::Stored(sp, 160, 0),
        signal: true,
        saved,
    }
}
