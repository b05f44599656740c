//! Writes a table: see [`crate::table`] for its form.

use super::rows::Joined;
use crate::table::{
    BIG, BLOCK, Cfa, HEADER_BYTES, INLINE, Kind, LONG_RULE_BYTES, LOST, MAGIC, RULE_BYTES, Rule,
    SMALL, SPAN, Saved, Short, register,
};
use rustc_hash::FxHashMap;

/// The bytes of a rule, as two words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// Kind, register, whether it is of a signal frame, and the offset or number.
    pub(super) first: u64,
    pub(super) slots: u64,
}

impl Key {
    pub(super) fn of(rule: &Short) -> Self {
        let first = rule.kind as u64
            | u64::from(rule.base) << 8
            | u64::from(rule.signal) << 16
            | u64::from(rule.number) << 32;
        Self {
            first,
            slots: rule.slots,
        }
    }

    fn bytes(self) -> [u8; RULE_BYTES] {
        (u128::from(self.first) | u128::from(self.slots) << 64).to_le_bytes()
    }
}

/// Places for rules that were met last: see [`Rules::number_of_key`].
const RECENT: usize = 1 << 9;

/// The distinct rules of a table.
#[derive(Debug)]
pub(super) struct Rules {
    /// Rules of 16 bytes and their numbers, each at a place that its bytes choose: most of a million rows have one of a
    /// few dozen rules.
    recent: Box<[(Key, u32); RECENT]>,
    /// Numbers of rules of 16 bytes, by those bytes.
    numbers: FxHashMap<Key, u32>,
    long_numbers: FxHashMap<Rule, u32>,
    rules: Vec<[u8; RULE_BYTES]>,
    long_rules: Vec<Rule>,
}

impl Default for Rules {
    fn default() -> Self {
        // No rule has these bytes: its kind would be 255.
        let nothing = Key {
            first: u64::MAX,
            slots: 0,
        };
        Self {
            recent: Box::new([(nothing, 0); RECENT]),
            numbers: FxHashMap::default(),
            long_numbers: FxHashMap::default(),
            rules: Vec::new(),
            long_rules: Vec::new(),
        }
    }
}

impl Rules {
    #[inline]
    pub(super) fn number_of_key(&mut self, key: Key) -> u32 {
        let mixed = (key.first ^ key.slots.rotate_left(23)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let place = &mut self.recent[(mixed >> 32) as usize % RECENT];
        if place.0 != key {
            let number = *self.numbers.entry(key).or_insert_with(|| {
                self.rules.push(key.bytes());
                (self.rules.len() - 1) as u32
            });
            *place = (key, number);
        }
        place.1
    }

    /// New numbers of rules, what most rows have first; and the rules by those. What cannot be numbered is as good as
    /// `none`.
    fn by_frequency(&self, rows: &[(u32, u32)], none: u32) -> (Vec<u16>, Vec<u32>) {
        let mut uses = vec![0_u32; self.rules.len()];
        for (_, rule) in rows {
            uses[*rule as usize] += 1;
        }
        let mut order: Vec<u32> = (0..self.rules.len() as u32).collect();
        order.sort_by_key(|rule| std::cmp::Reverse(uses[*rule as usize]));
        // Its own number must be one that there is.
        if let Some(at) = order.iter().position(|rule| *rule == none)
            && at >= MOST_RULES
        {
            order.swap(at, MOST_RULES - 1);
        }
        order.truncate(MOST_RULES);
        let mut numbers = vec![None; self.rules.len()];
        for (number, rule) in order.iter().enumerate() {
            numbers[*rule as usize] = Some(number as u16);
        }
        let none = numbers[none as usize].unwrap_or(0);
        let numbers = numbers.into_iter().map(|number| number.unwrap_or(none));
        (numbers.collect(), order)
    }

    pub(super) fn number(&mut self, rule: &Rule) -> u32 {
        if let Some(short) = short(rule) {
            return self.number_of_key(Key::of(&short));
        }
        *self.long_numbers.entry(*rule).or_insert_with(|| {
            let number = self.long_rules.len() as u32;
            self.long_rules.push(*rule);
            let short = Short {
                number,
                signal: rule.signal,
                ..of_kind(Kind::Long)
            };
            self.rules.push(Key::of(&short).bytes());
            (self.rules.len() - 1) as u32
        })
    }
}

/// Rules that a table can number.
const MOST_RULES: usize = 1 << 16;

/// Bytes of code that a table reaches, at most, per byte of its image: further apart than this is nothing that was built
/// to be run.
const REACH: u64 = 1024;

/// Writes a table.
pub(super) fn table(mut joined: Joined, image_bytes: usize) -> Vec<u8> {
    let none = joined.rules.number(&Rule::NONE);
    let Joined {
        base, rows, rules, ..
    } = joined;
    // What lies further from the base than this has no rule.
    let reach = (image_bytes as u64 * REACH).min(u64::from(!(SPAN - 1))) as u32;
    let (numbers, kept) = rules.by_frequency(&rows, none);
    let number = |rule: u32| numbers[rule as usize];
    let mut chunks = Chunks::new(number(none), rows.len());
    for (at, rule) in &rows {
        if *at >= reach {
            chunks.push(reach, number(none));
            break;
        }
        chunks.push(*at, number(*rule));
    }
    chunks.finish();
    let Chunks {
        blocks,
        slots,
        bytes: chunks,
        rule: behind,
        ..
    } = chunks;
    let header = [
        slots.len(),
        chunks.len(),
        kept.len(),
        rules.long_rules.len(),
        usize::from(behind),
    ];
    let len = HEADER_BYTES
        + blocks.len() * 4
        + slots.len() * 2
        + kept.len() * RULE_BYTES
        + rules.long_rules.len() * LONG_RULE_BYTES
        + chunks.len();
    let mut bytes = Vec::with_capacity(len);
    bytes.extend_from_slice(&MAGIC.to_le_bytes());
    for field in header {
        bytes.extend_from_slice(&(field as u32).to_le_bytes());
    }
    bytes.extend_from_slice(&base.to_le_bytes());
    bytes.extend(blocks.iter().flat_map(|block| block.to_le_bytes()));
    bytes.extend(slots.iter().flat_map(|slot| slot.to_le_bytes()));
    for rule in kept {
        bytes.extend_from_slice(&rules.rules[rule as usize]);
    }
    for rule in &rules.long_rules {
        bytes.extend_from_slice(&long_bytes(rule));
    }
    bytes.extend_from_slice(&chunks);
    bytes
}

/// Slots and chunks, as rows come.
#[derive(Debug)]
struct Chunks {
    blocks: Vec<u32>,
    slots: Vec<u16>,
    bytes: Vec<u8>,
    /// The rule before the slot that is next.
    before: u16,
    /// Rows of that slot.
    rows: Vec<(u8, u16)>,
    /// The rule of the last row.
    rule: u16,
}

impl Chunks {
    fn new(rule: u16, rows: usize) -> Self {
        Self {
            blocks: Vec::new(),
            slots: Vec::new(),
            bytes: Vec::with_capacity(rows * 3),
            before: rule,
            rows: Vec::new(),
            rule,
        }
    }

    /// Adds a row, behind all others.
    #[inline]
    fn push(&mut self, at: u32, rule: u16) {
        if rule == self.rule {
            return;
        }
        let slot = (at / SPAN) as usize;
        if slot > self.slots.len() {
            self.finish();
            self.skip_to(slot);
        }
        self.rows.push((at as u8, rule));
        self.rule = rule;
    }

    /// Writes the next slot.
    fn finish(&mut self) {
        if self.slots.len().is_multiple_of(BLOCK) {
            self.blocks.push(self.bytes.len() as u32);
        }
        if self.rows.is_empty() && self.before <= u16::MAX - INLINE {
            return self.slots.push(INLINE + self.before);
        }
        if self.rows.is_empty() {
            // No slot can say this number: a row that changes nothing.
            self.rows.push((0, self.before));
        }
        let block = self.blocks.last().copied().unwrap_or(0) as usize;
        self.slots.push((self.bytes.len() - block) as u16);
        let count = self.rows.len();
        let numbers = self.rows.iter().map(|(_, number)| *number);
        let narrow = count <= SMALL && numbers.chain([self.before]).all(|number| number < 256);
        match count - 1 {
            first if narrow => self.bytes.push(first as u8),
            first if count <= SMALL => self.bytes.push((first + SMALL) as u8),
            first => self.bytes.extend([BIG, first as u8]),
        }
        let [low, high] = self.before.to_le_bytes();
        if narrow {
            self.bytes.push(low);
            let rows = self
                .rows
                .iter()
                .map(|(start, number)| [*start, *number as u8]);
            self.bytes.extend(rows.flatten());
        } else {
            self.bytes.extend([low, high]);
            for (start, number) in &self.rows {
                let [low, high] = number.to_le_bytes();
                self.bytes.extend([*start, low, high]);
            }
        }
        self.before = self.rule;
        self.rows.clear();
    }

    /// Writes slots without rows.
    fn skip_to(&mut self, slot: usize) {
        while self.slots.len() < slot {
            self.finish();
        }
    }
}

/// A rule that says only its kind.
fn of_kind(kind: Kind) -> Short {
    Short {
        kind,
        base: 0,
        signal: false,
        number: 0,
        slots: 0,
    }
}

/// As a rule of 16 bytes, if it can be one.
pub(super) fn short(rule: &Rule) -> Option<Short> {
    let slots = || {
        let ordinary = Rule::with_return_address(rule.cfa).saved;
        if rule.signal
            || rule.overwritten != 0
            || rule.saved[register::IP..] != ordinary[register::IP..]
        {
            return None;
        }
        let mut slots = [0; 8];
        for (slot, saved) in slots.iter_mut().zip(&rule.saved[..register::IP]) {
            *slot = match *saved {
                Saved::Same => 0,
                Saved::Lost => LOST,
                Saved::AtCfa(offset) if offset % 8 == 0 => u8::try_from(offset.checked_neg()? / 8)
                    .ok()
                    .filter(|slot| (1..LOST).contains(slot))?,
                _ => return None,
            };
        }
        Some(u64::from_le_bytes(slots))
    };
    match rule.cfa {
        Cfa::None => Some(of_kind(Kind::None)),
        Cfa::Unknown => Some(of_kind(Kind::Unknown)),
        Cfa::Root => Some(of_kind(Kind::Root)),
        Cfa::Planted => Some(of_kind(Kind::Planted)),
        Cfa::Register(base, _) if usize::from(base) >= register::COUNT => None,
        Cfa::Register(base, offset) => Some(Short {
            base,
            number: offset.cast_unsigned(),
            slots: slots()?,
            ..of_kind(Kind::Register)
        }),
        Cfa::Stored(..) | Cfa::Stub(_) => None,
    }
}

/// As a long rule.
fn long_bytes(rule: &Rule) -> [u8; LONG_RULE_BYTES] {
    let mut bytes = [0; LONG_RULE_BYTES];
    let (kind, base, first, second) = match rule.cfa {
        Cfa::None => (0, 0, 0, 0),
        Cfa::Register(base, offset) => (1, base, offset, 0),
        Cfa::Stored(base, offset, after) => (2, base, offset, after),
        Cfa::Stub(from) => (3, 0, from, 0),
        Cfa::Root => (4, 0, 0, 0),
        Cfa::Unknown => (5, 0, 0, 0),
        Cfa::Planted => (6, 0, 0, 0),
    };
    bytes[..4].copy_from_slice(&[kind, base, u8::from(rule.signal), 0]);
    bytes[4..8].copy_from_slice(&i32::to_le_bytes(first));
    bytes[8..12].copy_from_slice(&i32::to_le_bytes(second));
    for (at, saved) in rule.saved.iter().enumerate() {
        let (kind, base, offset) = match *saved {
            Saved::Same => (0, 0, 0),
            Saved::Lost => (1, 0, 0),
            Saved::AtCfa(offset) => (2, 0, offset),
            Saved::Cfa(offset) => (3, 0, offset),
            Saved::In(base) => (4, base, 0),
            Saved::At(base, offset) => (5, base, offset),
            Saved::Uncopied(words, offset) => (6, words, offset),
        };
        bytes[12 + 2 * at..14 + 2 * at].copy_from_slice(&[kind, base]);
        bytes[28 + 4 * at..32 + 4 * at].copy_from_slice(&i32::to_le_bytes(offset));
    }
    bytes[60..].copy_from_slice(&i32::to_le_bytes(rule.overwritten));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{Long, Table};

    fn depth(depth: u32) -> Rule {
        Rule::with_return_address(Cfa::Register(register::SP as u8, 8 * depth as i32))
    }

    /// A table at `base` whose rows are these, and its end.
    fn encoded(base: u64, rows: &[(u32, Rule)], len: u64, image_bytes: usize) -> Vec<u8> {
        let mut rules = Rules::default();
        let mut all: Vec<_> = rows
            .iter()
            .map(|(at, rule)| (*at, rules.number(rule)))
            .collect();
        let end = u32::try_from(len).unwrap_or(u32::MAX);
        all.push((end, rules.number(&Rule::UNKNOWN)));
        let all = Joined {
            base,
            rows: all,
            rules,
            unreadable: 0,
        };
        table(all, image_bytes)
    }

    /// Compares every byte's rule, as an instruction and as a return address.
    fn check(rows: &[(u32, Rule)], len: u32) {
        const BASE: u64 = 0x1_2345_6789;
        let bytes = encoded(BASE, rows, u64::from(len), 1 << 20);
        let table = Table::view(&bytes).expect("a table");
        let mut expected = Rule::NONE;
        let mut rows = rows.iter().peekable();
        for at in 0..len {
            let before = expected;
            if let Some((_, rule)) = rows.next_if(|(start, _)| *start == at) {
                expected = *rule;
            }
            let svma = BASE + u64::from(at);
            assert_eq!(table.rule(svma), Some(expected), "at {at}");
            let called = if expected.signal { expected } else { before };
            let found = table.rule_of_return(svma).map(|rule| table.rule_from(rule));
            assert_eq!(found, Some(Some(called)), "behind {at}");
        }
        for at in [len, len + 1, len + 1000, u32::MAX] {
            assert_eq!(table.rule(BASE + u64::from(at)), Some(Rule::UNKNOWN));
        }
        assert_eq!(table.rule(BASE - 1), None);
        assert_eq!(table.rule(BASE + (1 << 32)), None);
    }

    #[test]
    fn rows_of_every_density_are_found() {
        // A row for each byte: more than fit into a small chunk.
        let dense: Vec<_> = (0..1000).map(|at| (at, depth(1 + at % 7))).collect();
        check(&dense, 1000);
        // More rules than a byte can number, and code without rows.
        let many: Vec<_> = (0..3000)
            .map(|at| (at * 37, depth(1 + at % 2999)))
            .collect();
        check(&many, 3000 * 37);
        // More than a slot can.
        let most: Vec<_> = (0..40_000)
            .map(|at| (at * 300 + at % 3, depth(1 + at)))
            .collect();
        check(&most, 40_000 * 300);
        // Signal frames where slots begin, and elsewhere.
        let signal = |at| Rule {
            signal: at % 2 == 0,
            cfa: Cfa::Stored(7, 160, 0),
            ..depth(1)
        };
        let signals: Vec<_> = (0..100).map(|at| (at * 64, signal(at))).collect();
        check(&signals, 6400);
    }

    #[test]
    fn rules_that_cannot_be_numbered_are_none() {
        let rows: Vec<_> = (0..70_000).map(|at| (at, depth(1 + at))).collect();
        let bytes = encoded(0x1000, &rows, 70_000, 1 << 20);
        let table = Table::view(&bytes).expect("a table");
        let mut known = 0;
        for (at, rule) in rows {
            let found = table.rule(0x1000 + u64::from(at));
            assert!(found == Some(rule) || found == Some(Rule::NONE));
            known += usize::from(found == Some(rule));
        }
        assert!(known >= MOST_RULES - 2);
    }

    #[test]
    fn code_that_is_too_far_has_no_rule() {
        let rows = [(0, depth(1)), (0x10_0000, depth(2))];
        let bytes = encoded(0x1000, &rows, 0x20_0000, 100);
        let table = Table::view(&bytes).expect("a table");
        assert_eq!(table.rule(0x1000), Some(depth(1)));
        assert_eq!(table.rule(0x1000 + 100 * REACH - 1), Some(depth(1)));
        for at in [100 * REACH, 0x10_0000, 0x20_0000] {
            assert_eq!(table.rule(0x1000 + at), Some(Rule::NONE));
        }
        assert!(bytes.len() < 1000);
    }

    #[test]
    fn long_rules_survive_encoding() {
        let mut saved = [Saved::Same; register::COUNT];
        saved[0] = Saved::At(7, -40);
        saved[1] = Saved::AtCfa(-16);
        saved[2] = Saved::Lost;
        saved[3] = Saved::In(3);
        saved[4] = Saved::Uncopied(2, -240);
        saved[7] = Saved::Cfa(8);
        let cfas = [
            Cfa::None,
            Cfa::Unknown,
            Cfa::Register(1, 16),
            Cfa::Stored(7, 160, -8),
            Cfa::Stub(11),
            Cfa::Root,
        ];
        for cfa in cfas {
            for signal in [false, true] {
                let rule = Rule {
                    cfa,
                    signal,
                    saved,
                    overwritten: i32::from(signal) * -88,
                };
                assert_eq!(Long(&long_bytes(&rule)).whole(), Some(rule));
            }
        }
    }

    #[test]
    fn only_ordinary_rules_are_short() {
        let mut rule = Rule::with_return_address(Cfa::Register(7, 48));
        rule.saved[register::BP] = Saved::AtCfa(-16);
        rule.saved[register::BX] = Saved::Lost;
        let ordinary = short(&rule).expect("an ordinary rule");
        assert_eq!(Short::decode(Key::of(&ordinary).bytes()), Some(ordinary));
        assert_eq!(ordinary.slots.to_le_bytes(), [LOST, 2, 0, 0, 0, 0, 0, 0]);
        for unusual in [
            Saved::AtCfa(-12),
            Saved::AtCfa(-8 * 255),
            Saved::AtCfa(8),
            Saved::In(2),
            Saved::At(1, 0),
        ] {
            rule.saved[register::BP] = unusual;
            assert_eq!(short(&rule), None, "{unusual:?}");
        }
        rule.saved[register::BP] = Saved::Same;
        rule.saved[register::IP] = Saved::Lost;
        assert_eq!(short(&rule), None);
    }
}
