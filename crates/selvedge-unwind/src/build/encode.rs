//! Writes a table: see [`crate::table`] for its form.

use super::rows::Joined;
use crate::table::{
    Cfa, HEADER_BYTES, Kind, LONG_RULE_BYTES, LOST, MAGIC, RULE_BYTES, Rule, Saved, Short, register,
};
use rustc_hash::FxHashMap;

/// Bytes of code per index entry, as a power of two, unless code is sparse.
const SHIFT: u32 = 6;

/// Places for rules that were met last: see [`Rules::number_of_short`].
const RECENT: usize = 1 << 9;

/// The distinct rules of a table.
#[derive(Debug)]
pub(super) struct Rules {
    /// Rules of 16 bytes and their numbers, each at a place that its bytes choose: most of a million rows have one of a
    /// few dozen rules.
    recent: Vec<(u128, u32)>,
    /// Numbers of rules of 16 bytes, by those bytes.
    numbers: FxHashMap<u128, u32>,
    long_numbers: FxHashMap<Rule, u32>,
    rules: Vec<[u8; RULE_BYTES]>,
    long_rules: Vec<Rule>,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            // No rule has these bytes: its kind would be 255.
            recent: vec![(u128::MAX, 0); RECENT],
            numbers: FxHashMap::default(),
            long_numbers: FxHashMap::default(),
            rules: Vec::new(),
            long_rules: Vec::new(),
        }
    }
}

impl Rules {
    #[inline]
    pub(super) fn number_of_short(&mut self, rule: &Short) -> u32 {
        let bytes = short_bytes(rule);
        let key = u128::from_le_bytes(bytes);
        let mixed =
            (key as u64 ^ ((key >> 64) as u64).rotate_left(23)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let place = &mut self.recent[(mixed >> 32) as usize % RECENT];
        if place.0 != key {
            let number = *self.numbers.entry(key).or_insert_with(|| {
                self.rules.push(bytes);
                (self.rules.len() - 1) as u32
            });
            *place = (key, number);
        }
        place.1
    }

    pub(super) fn number(&mut self, rule: &Rule) -> u32 {
        if let Some(short) = short(rule) {
            return self.number_of_short(&short);
        }
        *self.long_numbers.entry(*rule).or_insert_with(|| {
            let number = self.long_rules.len() as u32;
            self.long_rules.push(*rule);
            let short = Short {
                number,
                signal: rule.signal,
                ..of_kind(Kind::Long)
            };
            self.rules.push(short_bytes(&short));
            (self.rules.len() - 1) as u32
        })
    }
}

/// Writes a table.
pub(super) fn table(joined: &Joined) -> Vec<u8> {
    let Joined {
        base, rows, rules, ..
    } = joined;
    let (shift, index) = index(rows);
    let counts = [
        rows.len(),
        index.len(),
        rules.rules.len(),
        rules.long_rules.len(),
    ];
    let len = HEADER_BYTES
        + rows.len() * 8
        + index.len() * 4
        + rules.rules.len() * RULE_BYTES
        + rules.long_rules.len() * LONG_RULE_BYTES;
    let mut bytes = Vec::with_capacity(len);
    bytes.extend_from_slice(&MAGIC.to_le_bytes());
    for count in counts {
        bytes.extend_from_slice(&(count as u32).to_le_bytes());
    }
    bytes.extend_from_slice(&shift.to_le_bytes());
    bytes.extend_from_slice(&base.to_le_bytes());
    for (start, rule) in rows {
        bytes.extend_from_slice(&(u64::from(*start) | u64::from(*rule) << 32).to_le_bytes());
    }
    for row in &index {
        bytes.extend_from_slice(&row.to_le_bytes());
    }
    for rule in &rules.rules {
        bytes.extend_from_slice(rule);
    }
    for rule in &rules.long_rules {
        bytes.extend_from_slice(&long_bytes(rule));
    }
    bytes
}

/// The shift of the index, and the index: not more than a few entries per row, however far apart rows lie.
fn index(rows: &[(u32, u32)]) -> (u32, Vec<u32>) {
    let Some(&(end, _)) = rows.last() else {
        return (SHIFT, Vec::new());
    };
    let mut shift = SHIFT;
    while (end >> shift) as usize > rows.len().saturating_mul(2) + 64 {
        shift += 1;
    }
    let mut row = 0;
    let entries = (0..=end >> shift).map(|slot| {
        while rows
            .get(row + 1)
            .is_some_and(|(start, _)| *start <= slot << shift)
        {
            row += 1;
        }
        row as u32
    });
    (shift, entries.collect())
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

/// As bytes.
fn short_bytes(rule: &Short) -> [u8; RULE_BYTES] {
    let [n0, n1, n2, n3] = rule.number.to_le_bytes();
    let [s0, s1, s2, s3, s4, s5, ..] = rule.slots.to_le_bytes();
    [
        rule.kind as u8,
        rule.base,
        u8::from(rule.signal),
        0,
        n0,
        n1,
        n2,
        n3,
        s0,
        s1,
        s2,
        s3,
        s4,
        s5,
        0,
        0,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

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
                assert_eq!(Rule::decode(&long_bytes(&rule)), Some(rule));
            }
        }
    }

    #[test]
    fn only_ordinary_rules_are_short() {
        let mut rule = Rule::with_return_address(Cfa::Register(7, 48));
        rule.saved[register::BP] = Saved::AtCfa(-16);
        rule.saved[register::BX] = Saved::Lost;
        let ordinary = short(&rule).expect("an ordinary rule");
        assert_eq!(Short::decode(short_bytes(&ordinary)), Some(ordinary));
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
