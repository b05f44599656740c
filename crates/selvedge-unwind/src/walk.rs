//! The walk itself.
//!
//! **Terms.** The *leaf* is what was interrupted. An *exact* frame is one that was interrupted (the leaf, and what a
//! signal frame returns to); any other is known by its *return address*, which is behind its call: rules are looked up
//! one byte before it, since a call can be the last instruction of its function.
//!
//! **What is believed.** Each step uses the rule of exactly that instruction. A frame lies above the one that it called:
//! a CFA that does not grow (other than from the leaf, or across a signal frame, which may lead to another stack) ends
//! the walk with a mark. A caller that lies in no known code ends it too: either the map is old, or the value is no
//! return address. Where there is no unwind information (code of a JIT, hand-written functions), `rbp` is followed if
//! it is shown to be that function's own frame pointer (see `step_by_frame_pointer`). Otherwise, and where there is a rule
//! of a form that is not known, the walk ends with a mark: a guess there drops a caller silently.

use crate::call;
use crate::map::{Module, ModuleMap};
use crate::memo::{Keeper, Memo};
use crate::registers::{File, Scratch};
use crate::table::{Cfa, Kind, LOST, Saved, Short, Table, register};
use selvedge_arch::Registers;

/// Set in a frame whose value is the interrupted instruction itself, not a return address. No user address has this bit.
pub const EXACT_PC: u64 = 1 << 63;

/// Stands in a stack for frames that did not fit: those before it are the leaf and its callers, those behind it the
/// outermost ones. No return address is this low.
pub const TRUNCATED: u64 = End::Limit as u64;

/// Frames of the outermost part that is kept of a stack that does not fit, where there is room for eight times as many.
const OUTERMOST: usize = 64;
/// Frames walked at most. A stack with more keeps its leaf part only.
pub const MAX_WALKED: usize = 8 * 1024;

/// What the walk reads of the stack.
pub trait Memory {
    /// The word at an address; `None` where it cannot be read.
    fn read(&mut self, address: u64) -> Option<u64>;

    /// The walk has come to what a signal interrupted, whose stack pointer was `sp`: perhaps on another stack.
    fn moved_to(&mut self, sp: u64) {
        let _ = sp;
    }
}

/// Why a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum End {
    /// At the outermost frame: the stack is whole.
    Root = 1,
    /// There were more frames than are walked.
    Limit = 2,
    /// The stack could not be read.
    Unreadable = 3,
    /// In code that is in no known module.
    NoModule = 4,
    /// In code without a rule, or with one of an unknown form.
    NoRule = 5,
    /// The rule led to a frame that is not above the one before: the stack or the rule is wrong.
    BadFrame = 6,
    /// A return address that is not in any known code.
    BadReturn = 7,
}

impl End {
    /// The reason with this code.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        [
            Self::Root,
            Self::Limit,
            Self::Unreadable,
            Self::NoModule,
            Self::NoRule,
            Self::BadFrame,
            Self::BadReturn,
        ]
        .into_iter()
        .find(|end| *end as u8 == code)
    }

    /// In words, as pseudo-frames show it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Limit => "too deep",
            Self::Unreadable => "stack unreadable",
            Self::NoModule => "unknown code",
            Self::NoRule => "no unwind information",
            Self::BadFrame => "bad frame",
            Self::BadReturn => "bad return address",
        }
    }
}

/// What a walk found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walked {
    /// Frames written.
    pub frames: usize,
    /// Why it ended.
    pub end: End,
}

/// Walks from `registers` outward and writes the frames, leaf first: see [`EXACT_PC`].
///
/// Of more frames than fit, the innermost and the outermost are kept, with [`TRUNCATED`] between; if the walk does not come
/// to the root, only the innermost, with [`TRUNCATED`] behind; none but those if there are more than [`MAX_WALKED`].
pub fn walk(
    map: &ModuleMap<'_>,
    registers: Registers,
    memory: &mut impl Memory,
    frames: &mut [u64],
) -> Walked {
    walk_from(map, registers, memory, frames, None)
}

/// The same, and compares with what the walk before has kept in `memo` instead of walking what has not changed since.
///
/// `memo` may be of any walk, of any thread, by any map: it changes how long it takes, not what is found.
pub fn walk_again(
    map: &ModuleMap<'_>,
    registers: Registers,
    memory: &mut impl Memory,
    frames: &mut [u64],
    memo: &mut Memo,
) -> Walked {
    walk_from(
        map,
        registers,
        memory,
        frames,
        Some(Keeper::new(memo, map.serial())),
    )
}

#[inline]
fn walk_from<M: Memory>(
    map: &ModuleMap<'_>,
    registers: Registers,
    memory: &mut M,
    frames: &mut [u64],
    keeper: Option<Keeper<'_>>,
) -> Walked {
    let mut walk = Walk {
        map,
        memory,
        file: File::new(&registers),
        scratch: Scratch::Known(&registers.scratch),
        exact: true,
        floor: registers.sp,
        words: SCANNED_WORDS,
        bp_at: 0,
        planted: false,
        moved: (0, 0),
        keeper,
    };
    let walked = walk.run(frames);
    if let Some(keeper) = &mut walk.keeper
        && !walked.joined
    {
        keeper.finish(walked.end);
    }
    Walked {
        frames: walked.frames,
        end: walked.end,
    }
}

/// Words that one walk looks through, at most, to prove frame pointers.
const SCANNED_WORDS: u32 = 1024;

struct Walk<'a, M> {
    map: &'a ModuleMap<'a>,
    memory: &'a mut M,
    file: File,
    /// Of the current frame, if that is exact.
    scratch: Scratch<'a>,
    exact: bool,
    /// The CFA of the next frame lies above this.
    floor: u64,
    /// What is left of [`SCANNED_WORDS`].
    words: u32,
    /// Where the frame before this one has saved `rbp`; 0: it left it alone.
    bp_at: u64,
    /// Whether the walk has come to its end by a return address that is no frame: see [`Cfa::Planted`].
    planted: bool,
    /// An address whose word has been overwritten, and that word; 0: none has.
    moved: (u64, u64),
    keeper: Option<Keeper<'a>>,
}

/// What [`Walk::run`] found.
struct Ran {
    frames: usize,
    end: End,
    /// Whether the memo has been brought up to date.
    joined: bool,
}

impl<'a, M: Memory> Walk<'a, M> {
    fn run(&mut self, frames: &mut [u64]) -> Ran {
        let mut module = Module::NOWHERE;
        let mut written: usize = 0;
        let over = |frames, end| Ran {
            frames,
            end,
            joined: false,
        };
        while let Some((slot, rest)) = frames.get_mut(written..).and_then(<[u64]>::split_first_mut)
        {
            let frame = match self.frame(&mut module, written > 0) {
                Ok(frame) => frame,
                Err(None) => return over(written, End::BadReturn),
                Err(Some(leaf)) => {
                    *slot = leaf;
                    return over(1, End::NoModule);
                }
            };
            *slot = frame;
            written = written.wrapping_add(1);
            if let Some(keeper) = &mut self.keeper {
                let sp = self.file.sp();
                keeper.arrive(frame, sp, self.bp_at);
                let file = &mut self.file;
                let bp = |memory: &mut M| file.get(register::BP, memory).ok();
                if let Some((count, end)) = keeper.join(frame, sp, self.memory, bp, rest) {
                    return Ran {
                        frames: written.wrapping_add(count),
                        end,
                        joined: true,
                    };
                }
            }
            if let Err(end) = self.step(&module) {
                if self.planted
                    && let Some(keeper) = &mut self.keeper
                {
                    keeper.take_back();
                }
                return over(written.wrapping_sub(usize::from(self.planted)), end);
            }
        }
        self.run_on(frames, &mut module)
    }

    /// The frame that the walk is at, in its module. An error is the end: that of the leaf has a frame all the same.
    #[inline]
    fn frame(&mut self, module: &mut Module<'a>, has_callee: bool) -> Result<u64, Option<u64>> {
        let ip = self.file.ip();
        let address = if self.exact { ip } else { ip.wrapping_sub(1) };
        if !module.contains(address) {
            match self.map.find(address) {
                Some(found) => *module = found,
                None if has_callee => return Err(None),
                None => return Err(Some(ip | EXACT_PC)),
            }
        }
        Ok(if self.exact { ip | EXACT_PC } else { ip })
    }

    /// Goes on where there is no more room: the last part of `frames` becomes a ring of the outermost frames.
    #[inline(never)]
    fn run_on(&mut self, frames: &mut [u64], module: &mut Module<'a>) -> Ran {
        if frames.is_empty() {
            return Ran {
                frames: 0,
                end: End::Limit,
                joined: false,
            };
        }
        let outermost = OUTERMOST.min(frames.len() / 8);
        let leaf = frames.len().saturating_sub(outermost).saturating_sub(1);
        let mut walked = frames.len();
        let mut next = 0_usize;
        let end = loop {
            if walked >= MAX_WALKED {
                break End::Limit;
            }
            let Ok(frame) = self.frame(module, true) else {
                break End::BadReturn;
            };
            walked = walked.wrapping_add(1);
            if let Some(keeper) = &mut self.keeper {
                keeper.arrive(frame, self.file.sp(), self.bp_at);
            }
            let ring = frames.get_mut(leaf.wrapping_add(1)..).unwrap_or_default();
            if let Some(slot) = ring.get_mut(next) {
                *slot = frame;
                next = next.wrapping_add(1);
                if next == ring.len() {
                    next = 0;
                }
            }
            if let Err(end) = self.step(module) {
                // What it has pushed out of the ring is gone.
                break if self.planted { End::NoRule } else { end };
            }
        };
        let (kept, mark) = match end {
            End::Limit => (leaf, false),
            End::Root => (frames.len(), true),
            _ => (leaf.wrapping_add(1), true),
        };
        if mark && let Some(slot) = frames.get_mut(leaf) {
            *slot = TRUNCATED;
        }
        if end == End::Root {
            // The oldest frame of the ring comes first.
            let ring = frames.get_mut(leaf.wrapping_add(1)..).unwrap_or_default();
            ring.reverse();
            let newer = ring.len().wrapping_sub(next);
            if let Some((old, new)) = ring.split_at_mut_checked(newer) {
                old.reverse();
                new.reverse();
            }
        }
        Ran {
            frames: kept.min(frames.len()),
            end,
            joined: false,
        }
    }

    /// Goes to the caller.
    #[inline(always)]
    fn step(&mut self, module: &Module<'_>) -> Result<(), End> {
        let Some(table) = &module.table else {
            return self.step_by_frame_pointer(module);
        };
        let svma = module.svma(self.file.ip());
        let rule = if self.exact {
            table.rule_of_instruction(svma)
        } else {
            table.rule_of_return(svma)
        };
        let rule = rule.ok_or(End::NoRule)?;
        // Nearly every rule is of this kind.
        if rule.kind == Kind::Register {
            return self.step_by_short(&rule);
        }
        match rule.kind {
            Kind::Root => Err(End::Root),
            Kind::Planted => {
                self.planted = !self.exact;
                Err(End::Root)
            }
            Kind::Unknown => self.step_by_frame_pointer(module),
            Kind::Long => self.step_by_long(table, rule.number),
            Kind::None | Kind::Register => Err(End::NoRule),
        }
    }

    #[inline]
    fn step_by_short(&mut self, rule: &Short) -> Result<(), End> {
        let base = usize::from(rule.base);
        let value = self.file.get(base, self.memory)?;
        if base != register::SP
            && let Some(keeper) = &mut self.keeper
        {
            if base == register::BP {
                keeper.use_bp(value);
            } else {
                keeper.leave_otherwise();
            }
        }
        let cfa = value.wrapping_add_signed(i64::from(rule.number.cast_signed()));
        self.check(cfa)?;
        let ip_at = cfa.wrapping_sub(8);
        let ip = self.return_address(ip_at)?;
        if ip == 0
            && let Some(keeper) = &mut self.keeper
        {
            keeper.arrive_at_zero(ip_at);
        }
        self.bp_at = 0;
        let mut slots = rule.slots;
        while slots != 0 {
            let register = (slots.trailing_zeros() / 8) as usize;
            let shift = (register as u32).wrapping_mul(8);
            let words = slots.wrapping_shr(shift) & 0xff;
            slots &= !0xff_u64.wrapping_shl(shift);
            if words == u64::from(LOST) {
                self.file.lose(register);
                continue;
            }
            let at = cfa.wrapping_sub(words.wrapping_mul(8));
            self.file.set_stored(register, at);
            if register == register::BP {
                self.bp_at = at;
            }
        }
        self.arrive(ip, cfa, false)
    }

    #[inline]
    fn return_address(&mut self, at: u64) -> Result<u64, End> {
        let (moved_from, moved) = self.moved;
        if at == moved_from && at != 0 {
            return Ok(moved);
        }
        self.read(at)
    }

    /// The return address lies below the CFA and not below the stack pointer: the CFA is above it.
    #[inline]
    fn check(&self, cfa: u64) -> Result<(), End> {
        if cfa > self.floor && cfa.is_multiple_of(8) {
            Ok(())
        } else {
            Err(End::BadFrame)
        }
    }

    /// Makes the caller the current frame.
    #[inline]
    fn arrive(&mut self, ip: u64, sp: u64, exact: bool) -> Result<(), End> {
        self.file.set(register::IP, ip);
        self.file.set(register::SP, sp);
        self.exact = exact;
        // A signal frame leads back to whichever stack was interrupted: it may be lower.
        self.floor = sp;
        // Some entry code (of threads, of languages' runtimes) puts a zero where a return address would be.
        if ip == 0 { Err(End::Root) } else { Ok(()) }
    }

    /// The value of a register that a rule names.
    fn named(&mut self, register: u8) -> Result<u64, End> {
        match usize::from(register) {
            kept @ 0..register::COUNT => self.file.get(kept, self.memory),
            scratch if self.exact => self.scratch.get(scratch, self.memory),
            _ => Err(End::NoRule),
        }
    }

    fn sum(&mut self, base: u8, offset: i32) -> Result<u64, End> {
        let base = self.named(base)?;
        Ok(base.wrapping_add_signed(i64::from(offset)))
    }

    fn read(&mut self, address: u64) -> Result<u64, End> {
        self.memory.read(address).ok_or(End::Unreadable)
    }

    /// The CFA of a frame, before it is checked.
    fn cfa(&mut self, rule: Cfa) -> Result<u64, End> {
        match rule {
            Cfa::None | Cfa::Unknown => Err(End::NoRule),
            Cfa::Root | Cfa::Planted => Err(End::Root),
            Cfa::Register(base, offset) => self.sum(base, offset),
            Cfa::Stored(base, offset, after) => {
                let at = self.sum(base, offset)?;
                Ok(self.read(at)?.wrapping_add_signed(i64::from(after)))
            }
            Cfa::Stub(from) => {
                let pushed = (self.file.ip() & 15) >= u64::from(from.unsigned_abs());
                Ok(self.file.sp().wrapping_add(if pushed { 16 } else { 8 }))
            }
        }
    }

    /// The frame is left by a rule that a memo does not know.
    fn leave_otherwise(&mut self) {
        self.bp_at = 0;
        if let Some(keeper) = &mut self.keeper {
            keeper.leave_otherwise();
        }
    }

    /// What is stored at `at`, if it is known to be no copy of what is pointed to by the word at `rbp` plus `offset`: if it
    /// differs from that, or is that itself.
    #[inline(never)]
    fn uncopied(&mut self, at: u64, offset: i32) -> Option<u64> {
        let value = self.memory.read(at)?;
        let pointer_at = self.sum(register::BP as u8, offset).ok()?;
        let from = self.memory.read(pointer_at)?;
        (from == at || (value != from && value != self.memory.read(from)?)).then_some(value)
    }

    #[inline(never)]
    fn step_by_long(&mut self, table: &Table<'_>, number: u32) -> Result<(), End> {
        self.leave_otherwise();
        let rule = table.long(number).ok_or(End::NoRule)?;
        let cfa = self.cfa(rule.cfa().ok_or(End::NoRule)?)?;
        let is_signal = rule.is_signal();
        if !is_signal {
            self.check(cfa)?;
        }
        let mut caller = self.file;
        for register in 0..register::COUNT {
            match rule.saved(register).ok_or(End::NoRule)? {
                Saved::Same => {}
                Saved::Lost => caller.lose(register),
                Saved::Cfa(offset) => {
                    caller.set(register, cfa.wrapping_add_signed(i64::from(offset)));
                }
                Saved::In(base) if usize::from(base) < register::COUNT => {
                    self.file.copy_to(&mut caller, usize::from(base), register);
                }
                Saved::In(base) => match self.named(base) {
                    Ok(value) => caller.set(register, value),
                    Err(_) => caller.lose(register),
                },
                Saved::AtCfa(offset) => {
                    caller.set_stored(register, cfa.wrapping_add_signed(i64::from(offset)));
                }
                Saved::At(base, offset) => {
                    let at = self.sum(base, offset)?;
                    caller.set_stored(register, at);
                }
                Saved::Uncopied(words, offset) => {
                    let at = cfa.wrapping_sub(u64::from(words).wrapping_mul(8));
                    match self.uncopied(at, offset) {
                        Some(value) => caller.set(register, value),
                        None => caller.lose(register),
                    }
                }
            }
        }
        if is_signal {
            // The kernel's own frame has its registers where the kernel puts them.
            self.scratch = if rule.saved(register::IP) == Some(Saved::CONTEXT_IP) {
                Scratch::Saved(self.file.sp())
            } else {
                Scratch::Lost
            };
        }
        let overwritten = rule.overwritten();
        if overwritten != 0 {
            let at = self.sum(register::BP as u8, overwritten)?;
            self.moved = (
                self.read(at)?.wrapping_sub(8),
                self.read(cfa.wrapping_sub(8))?,
            );
            if let Some(keeper) = &mut self.keeper {
                keeper.join_no_more();
            }
        }
        let ip = match rule.saved(register::IP) {
            Some(Saved::AtCfa(offset)) => {
                self.return_address(cfa.wrapping_add_signed(i64::from(offset)))?
            }
            _ => caller.get(register::IP, self.memory)?,
        };
        self.file = caller;
        let sp = self.file.get(register::SP, self.memory)?;
        if is_signal {
            self.memory.moved_to(sp);
        }
        self.arrive(ip, sp, is_signal)
    }

    /// Follows `rbp` through code without unwind information, if it is this function's frame pointer.
    ///
    /// **Proof.** Every function between this one and the owner of the frame that `rbp` points to has left a return
    /// address on the stack, and so has this one: if none lies between the stack pointer and `rbp`, that frame is this
    /// function's own. A word is taken for a return address if it leads into known code behind a call, so in known code the
    /// proof fails more often than it must, never less. A return address into code that is in no module yet is not seen: a
    /// function of such code, and one without unwind information that it calls and that leaves `rbp` alone, are passed over
    /// together. And the call before its return address, if it is a direct one, leads to this
    /// stretch of code, not behind the current instruction: else the function that it leads to has a caller in between.
    #[inline(never)]
    fn step_by_frame_pointer(&mut self, module: &Module<'_>) -> Result<(), End> {
        self.leave_otherwise();
        let bp = self
            .file
            .get(register::BP, self.memory)
            .map_err(|_| End::NoRule)?;
        let sp = self.file.sp();
        let words = bp.wrapping_sub(sp) / 8;
        if bp < sp
            || !bp.is_multiple_of(8)
            || !sp.is_multiple_of(8)
            || words > u64::from(self.words)
        {
            return Err(End::NoRule);
        }
        self.words = self.words.wrapping_sub(words as u32);
        let mut at = sp;
        while at < bp {
            let word = self.memory.read(at).ok_or(End::NoRule)?;
            if self.is_behind_call(word) {
                return Err(End::NoRule);
            }
            at = at.wrapping_add(8);
        }
        let caller = self.memory.read(bp).ok_or(End::NoRule)?;
        let ip = self
            .return_address(bp.wrapping_add(8))
            .map_err(|_| End::NoRule)?;
        if ip != 0 && !self.called_here(ip, module) {
            return Err(End::NoRule);
        }
        let cfa = bp.wrapping_add(16);
        self.check(cfa)?;
        // Without unwind information nobody knows where the others are saved.
        for register in 0..register::IP {
            self.file.lose(register);
        }
        self.file.set(register::BP, caller);
        self.arrive(ip, cfa, false)
    }

    /// Whether a word may be the address behind a call in known code.
    fn is_behind_call(&mut self, word: u64) -> bool {
        // If it cannot be told, it may be.
        self.map.holds(word.wrapping_sub(1))
            && self
                .call_before(word)
                .is_none_or(|call| call.indirect || call.direct.is_some())
    }

    /// Whether a return address is behind a call that may have led to the current instruction.
    fn called_here(&mut self, ip: u64, module: &Module<'_>) -> bool {
        if !self.map.holds(ip.wrapping_sub(1)) {
            return false;
        }
        let Some(call) = self.call_before(ip) else {
            return false;
        };
        let here = self.file.ip();
        let Some(distance) = call.direct else {
            return call.indirect;
        };
        let target = ip.wrapping_add_signed(i64::from(distance));
        let leads_here = target <= here
            && module
                .stretch_start(here)
                .is_some_and(|start| target >= start);
        // The bytes of an indirect call can look like those of a direct one, which then leads nowhere.
        leads_here || (call.indirect && !self.map.holds(target))
    }

    /// The call before an address, by the eight bytes before it. `None` where they cannot be read.
    #[inline(never)]
    fn call_before(&mut self, ip: u64) -> Option<call::Call> {
        let from = ip.wrapping_sub(8);
        // From two aligned words.
        let low = self.memory.read(from & !7)?;
        let high = self.memory.read((from & !7).wrapping_add(8))?;
        let shift = (from as u32 & 7).wrapping_mul(8);
        let both = u128::from(low) | u128::from(high) << 64;
        Some(call::before_return(((both >> shift) as u64).to_le_bytes()))
    }
}
