//! Rows of an image: what its unwind information says, what is known without it, and where nothing is.

use super::Error;
use super::departure;
use super::elf::{Code, Image};
use super::encode::{self, Rules};
use super::frames::Section;
use super::instructions::{self, State as Interpreted};
use super::landing;
use super::ordinary;
use super::trace::{State, Tracer};
use crate::table::{Cfa, Rule, Saved, register};
use std::ops::Range;

/// Bytes of functions that jump to landing pads or other stacks, at most, that are looked at: there are a handful of such
/// functions, of a few hundred bytes.
const JUMPING_BYTES: u64 = 1 << 20;

/// A piece of code whose rows are `rows`.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) rows: Range<u32>,
}

/// Rows, as they are found: piece by piece.
#[derive(Debug, Default)]
pub(super) struct Rows {
    pub(super) pieces: Vec<Piece>,
    /// Bytes from the start of the piece, and number of the rule.
    rows: Vec<(u32, u32)>,
    rules: Rules,
    /// What holds instead of the rows, with numbers of rules.
    corrections: Vec<(Range<u64>, u32)>,
    /// What is left of [`JUMPING_BYTES`].
    jumping: u64,
    /// Entries that could not be read.
    unreadable: usize,
    quick: bool,
}

/// The rows of a table: bytes from `base`, ascending, and numbers of rules.
#[derive(Debug)]
pub(super) struct Joined {
    pub(super) base: u64,
    pub(super) rows: Vec<(u32, u32)>,
    pub(super) rules: Rules,
    /// Entries that could not be read.
    pub(super) unreadable: usize,
}

/// All rows of an image.
pub(super) fn of(elf: &[u8]) -> Result<Joined, Error> {
    with(elf, true)
}

/// The same, of which ordinary functions may go through the quick interpreter or not: that is for a test to tell.
fn with(elf: &[u8], quick: bool) -> Result<Joined, Error> {
    let image = Image::parse(elf)?;
    let mut rows = Rows {
        jumping: JUMPING_BYTES,
        quick,
        ..Rows::default()
    };
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
        return Err(if rows.unreadable > 0 {
            Error::damaged()
        } else {
            Error::no_unwind_information()
        });
    }
    rows.correct_known_functions(&image);
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
        // Compilers need 5 bytes a row; what is not needed is not touched.
        self.rows.reserve(section.bytes.len() / 4);
        let prepare = |common: &_| {
            let initial = Interpreted::initial(section, common);
            let rule = initial.and_then(|initial| encode::short(&initial.rule(false)));
            (initial, ordinary::State::initial(common, rule))
        };
        let mut unreadable = 0;
        let skipped = section.visit(prepare, |common, (initial, ordinary), entry| {
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
            if let Some(ordinary) = ordinary.as_ref().filter(|_| self.quick) {
                let Self { rows, rules, .. } = self;
                let done = ordinary::rows(ordinary, &entry, |at, rule| {
                    rows.push((at, rules.number_of_key(rule)));
                });
                if done.is_some() {
                    return self.add(start..end, first, |_| ());
                }
                self.rows.truncate(first);
            }
            let Some(initial) = initial else {
                unreadable += 1;
                return self.add(start..end, first, |rows| rows.push(0, &Rule::NONE));
            };
            let (mut lands, mut is_damaged) = (false, false);
            let mut departs = None;
            let mut aligned = Vec::new();
            self.add(start..end, first, |rows| {
                let read = instructions::rows(section, common, initial, &entry, |at, rule| {
                    let ordinary = rule.saved[register::SP] == Saved::Cfa(0);
                    if !ordinary && !rule.signal && rule.cfa != Cfa::Root {
                        departs.get_or_insert(at);
                    }
                    if departure::may_be_stale(rule) {
                        aligned.push((rows.rows.len(), *rule));
                    }
                    rows.push((at - start) as u32, rule);
                });
                (lands, is_damaged) = (read.lands, read.is_damaged);
            });
            unreadable += usize::from(is_damaged);
            for (row, rule) in aligned {
                let at = |row: usize| self.rows.get(row).map(|(at, _)| start + u64::from(*at));
                let range = at(row).unwrap_or(end)..at(row + 1).unwrap_or(end);
                if self.may_look_at(range.clone()) {
                    self.correct(departure::restored(range, &rule, &image.code));
                }
            }
            if (lands || departs.is_some()) && self.may_look_at(start..end) {
                if lands {
                    self.correct(landing::jumps(start, end, &image.code));
                }
                if let Some(from) = departs {
                    let mut before = Rule::NONE;
                    instructions::rows(section, common, initial, &entry, |at, rule| {
                        if at < from {
                            before = *rule;
                        }
                    });
                    self.correct(departure::rules(from, end, &before, &image.code));
                }
            }
        });
        self.unreadable += unreadable + skipped;
    }

    /// Whether a function that jumps may be looked at; if not, it has no rules.
    fn may_look_at(&mut self, range: Range<u64>) -> bool {
        let left = self.jumping.checked_sub(range.end - range.start);
        self.jumping = left.unwrap_or(0);
        if left.is_none() {
            self.correct(vec![(range, Rule::NONE)]);
        }
        left.is_some()
    }

    /// Notes rules that hold instead of what unwind information says.
    fn correct(&mut self, rules: Vec<(Range<u64>, Rule)>) {
        for (range, rule) in rules {
            let number = self.rules.number(&rule);
            self.corrections.push((range, number));
        }
    }

    /// Corrects functions of glibc whose unwind information says nothing of the stack that they go over to.
    fn correct_known_functions(&mut self, image: &Image<'_>) {
        for function in &image.swapcontext {
            let Some(piece) = self.piece_at(*function) else {
                continue;
            };
            let ordinary = Rule::with_return_address(Cfa::Register(register::SP as u8, 8));
            // Another function of this name may push first: then its own information holds.
            if self.may_look_at(piece.clone())
                && let Some(from) = departure::load(piece.start, piece.end, &image.code)
                && self.has_rule(from, &ordinary)
            {
                self.correct(departure::rules(from, piece.end, &ordinary, &image.code));
            }
        }
        for function in &image.makecontext {
            let Some(piece) = self.piece_at(*function) else {
                continue;
            };
            if self.may_look_at(piece.clone())
                && let Some(start) = departure::outermost(piece.start, piece.end, &image.code)
                && let Some(outermost) = self.piece_at(start)
                && outermost.start == start
            {
                self.correct(vec![
                    (start..start + 1, Rule::PLANTED),
                    (start + 1..outermost.end, Rule::ROOT),
                ]);
            }
        }
    }

    /// Whether this rule is what unwind information says of an instruction.
    fn has_rule(&mut self, at: u64, rule: &Rule) -> bool {
        let number = self.rules.number(rule);
        let next = self.pieces.partition_point(|piece| piece.start <= at);
        let piece = next.checked_sub(1).and_then(|piece| self.pieces.get(piece));
        piece.is_some_and(|piece| {
            let rows = self
                .rows
                .get(piece.rows.start as usize..piece.rows.end as usize);
            let rows = rows.unwrap_or_default();
            let behind = rows.partition_point(|(start, _)| piece.start + u64::from(*start) <= at);
            behind
                .checked_sub(1)
                .and_then(|row| rows.get(row))
                .is_some_and(|(_, found)| *found == number)
        })
    }

    /// The piece at an address.
    fn piece_at(&self, at: u64) -> Option<Range<u64>> {
        let next = self.pieces.partition_point(|piece| piece.start <= at);
        let piece = self.pieces.get(next.checked_sub(1)?)?;
        (at < piece.end).then_some(piece.start..piece.end)
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

    /// Adds rules for code that usually has no unwind information and whose frame is known all the same.
    fn add_known_code(&mut self, image: &Image<'_>) {
        // Before code is followed: nothing calls a trampoline, so what its instructions do says nothing.
        for code in &image.code {
            for (range, rule) in signal_returns(code, &self.pieces) {
                self.add(range, self.rows.len(), |rows| rows.push(0, &rule));
            }
        }
        self.pieces.sort_by_key(|piece| piece.start);
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
        // The image's entry is often a named function too.
        for function in uncovered(&image.functions, pieces) {
            if function != image.entry {
                tracer.follow(function, State::entry(0));
            }
        }
        for (range, rule) in tracer.rows() {
            self.add(range, self.rows.len(), |rows| rows.push(0, &rule));
        }
        self.pieces.sort_by_key(|piece| piece.start);
    }

    /// Puts pieces one after the other; what lies between has no unwind information. Where two overlap, the one that starts
    /// later holds to its end.
    fn join(mut self) -> Joined {
        let unknown = self.rules.number(&Rule::UNKNOWN);
        let none = self.rules.number(&Rule::NONE);
        let base = self.pieces.first().map_or(0, |piece| piece.start);
        let mut joined = Line {
            base,
            rows: Vec::with_capacity(self.rows.len()),
        };
        // Pieces that may go on behind the one on top.
        let mut open: Vec<&Piece> = Vec::new();
        let mut at = base;
        let ends = [None];
        for next in self.pieces.iter().map(Some).chain(ends) {
            let to = next.map_or(u64::MAX, |piece| piece.start);
            while at < to {
                match open.last() {
                    Some(piece) if piece.end <= at => _ = open.pop(),
                    Some(piece) => {
                        let until = piece.end.min(to);
                        let rows = self
                            .rows
                            .get(piece.rows.start as usize..piece.rows.end as usize);
                        joined.add(piece, rows.unwrap_or_default(), at..until);
                        at = until;
                    }
                    None if next.is_none() => break,
                    None => {
                        joined.push(at, unknown);
                        at = to;
                    }
                }
            }
            open.extend(next);
        }
        let is_near = at - base < u64::from(u32::MAX);
        joined.push(at, if is_near { unknown } else { none });
        Joined {
            base,
            rows: joined.corrected(self.corrections),
            rules: self.rules,
            unreadable: self.unreadable,
        }
    }
}

/// Rows in the making.
struct Line {
    base: u64,
    rows: Vec<(u32, u32)>,
}

impl Line {
    /// What lies further from the base than a row can say has no rule.
    fn offset(&self, at: u64) -> u32 {
        u32::try_from(at - self.base).unwrap_or(u32::MAX)
    }

    /// Goes on with a rule.
    fn push(&mut self, at: u64, rule: u32) {
        let at = self.offset(at);
        put(&mut self.rows, at, rule);
    }

    /// Goes on with a part of a piece.
    fn add(&mut self, piece: &Piece, rows: &[(u32, u32)], part: Range<u64>) {
        let mut first = 0;
        if part.start > piece.start {
            let behind = rows.partition_point(|(at, _)| piece.start + u64::from(*at) <= part.start);
            first = behind.saturating_sub(1);
        }
        for (at, rule) in rows.get(first..).unwrap_or_default() {
            let at = (piece.start + u64::from(*at)).max(part.start);
            if at >= part.end {
                break;
            }
            self.push(at, *rule);
        }
    }

    /// With other rules in some ranges. Of two that overlap, the one that starts first counts.
    fn corrected(self, mut corrections: Vec<(Range<u64>, u32)>) -> Vec<(u32, u32)> {
        corrections.sort_by_key(|(range, _)| range.start);
        let mut rows = Vec::with_capacity(self.rows.len() + 2 * corrections.len());
        let mut old = self.rows.iter().copied().peekable();
        let mut rule_behind = None;
        let mut reached = self.base;
        for (range, rule) in corrections {
            if range.start < reached || range.start >= range.end {
                continue;
            }
            let (start, end) = (self.offset(range.start), self.offset(range.end));
            while let Some((at, rule)) = old.next_if(|(at, _)| *at < start) {
                put(&mut rows, at, rule);
                rule_behind = Some(rule);
            }
            put(&mut rows, start, rule);
            while let Some((_, rule)) = old.next_if(|(at, _)| *at <= end) {
                rule_behind = Some(rule);
            }
            if let Some(rule) = rule_behind {
                put(&mut rows, end, rule);
            }
            reached = range.end;
        }
        for (at, rule) in old {
            put(&mut rows, at, rule);
        }
        rows
    }
}

/// Adds a row behind others, unless it says the same.
fn put(rows: &mut Vec<(u32, u32)>, at: u32, rule: u32) {
    while rows.last().is_some_and(|(start, _)| *start >= at) {
        rows.pop();
    }
    if rows.last().is_none_or(|(_, last)| *last != rule) {
        rows.push((at, rule));
    }
}

/// Those functions that lie in no piece, nor inside another function: hand-written code has names for places that nothing
/// calls. Nearly all lie in a piece: so both are gone through in order, not searched.
fn uncovered(functions: &[(u64, u64)], pieces: &[Piece]) -> Vec<u64> {
    let mut functions = functions.to_vec();
    functions.sort_unstable();
    let (mut next, mut end) = (pieces.iter().peekable(), 0);
    functions.retain(|(function, _)| {
        while let Some(piece) = next.next_if(|piece| piece.start <= *function) {
            end = piece.end;
        }
        *function >= end
    });
    let (mut outer, mut outer_end) = (0, 0);
    functions.retain(|&(at, len)| {
        let is_inside = at > outer && at < outer_end;
        if !is_inside && at + len.min(u64::MAX - at) > outer_end {
            (outer, outer_end) = (at, at.saturating_add(len));
        }
        !is_inside
    });
    let mut functions: Vec<u64> = functions.into_iter().map(|(at, _)| at).collect();
    functions.dedup();
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
        // Most gaps are a few bytes of padding: to see that, each is looked at without waiting for the one before.
        let padding = gap.len() < short.len() || gap.len() < 32 && !gap.contains(&0x05);
        for finder in finders.iter().filter(|_| !padding) {
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
        overwritten: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn library(name: &str) -> Vec<u8> {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("maps of this process");
        let line = maps.lines().find(|line| line.contains(name));
        let path = line.and_then(|line| line.split_whitespace().next_back());
        std::fs::read(path.expect("a library of this process")).expect("a file")
    }

    #[test]
    fn quick_and_general_interpreters_agree() {
        let own = std::fs::read("/proc/self/exe").expect("this program");
        for image in [library("libc.so.6"), library("libgcc_s"), own] {
            let [quick, general] = [true, false]
                .map(|quick| encode::table(with(&image, quick).expect("rows"), image.len()));
            assert!(quick == general);
        }
        // What no compiler writes, too.
        let (image, mut random) = (library("libgcc_s"), 1_u64);
        for seed in 0..40 {
            let mut image = image.clone();
            for _ in 0..image.len() / 256 {
                // Knuth's MMIX generator: its high bits are good.
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let at = image.len() / 2 + (random >> 33) as usize % (image.len() / 2);
                image[at] = (random >> 25) as u8;
            }
            let [quick, general] = [true, false].map(|quick| with(&image, quick).ok());
            let [quick, general] =
                [quick, general].map(|rows| rows.map(|rows| encode::table(rows, image.len())));
            assert!(quick == general, "seed {seed}");
        }
    }
}
