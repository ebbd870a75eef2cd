//! Kernels, launches and streams: what the model records and a device runs.

use super::ALIGN_WORDS;
use super::cost::Cost;
use super::size::{Patch, Size, Value, Word};
use super::slice::Slice;
use crate::forest::ForestSize;
use bytemuck::Pod;
use std::cell::Cell;

/// How a kernel uses a binding. `Out` is `storage, read_write` in WGSL and may be read too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    In,
    Out,
}

/// The element type of a binding or parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    F32,
    U32,
    /// f32, or f16 where the launch binds a [`Slice::half`]: storage only, a kernel computes in f32. In the shader the
    /// element type of a binding `x` is called `x_t` ([`super::shader::text`]); twins see f32 always.
    Real,
}

/// How what may be either ([`Type::Real`]) is stored. Sums are f32 in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Precision {
    F32,
    F16,
}

impl Precision {
    /// Elements in a word.
    pub fn per_word(self) -> usize {
        match self {
            Precision::F32 => 1,
            Precision::F16 => 2,
        }
    }

    /// Words that `n` elements take.
    pub fn words(self, n: usize) -> usize {
        n.div_ceil(self.per_word())
    }

    /// A slice of words as elements.
    pub fn of(self, words: Slice) -> Slice {
        match self {
            Precision::F32 => words,
            Precision::F16 => words.halves(),
        }
    }
}

/// One storage binding: `@group(0) @binding(1 + its index)` under the same name in the shader.
#[derive(Clone, Copy, Debug)]
pub struct Binding {
    pub name: &'static str,
    pub access: Access,
    pub ty: Type,
}

/// A field of a kernel's parameter struct, as both sides must declare it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Param {
    pub name: &'static str,
    pub ty: Type,
    pub offset: usize,
}

/// A WGSL shader and its Rust twin under one name. `@group(0) @binding(0)` is the uniform parameter struct.
pub struct Kernel {
    /// Unique; `NAME` or `NAME_form` of `shaders/NAME.wgsl`.
    pub name: &'static str,
    /// WGSL text, not yet as a driver gets it (see [`super::shader::text`]).
    pub source: &'static str,
    pub entry: &'static str,
    /// Override constants of this form.
    pub constants: &'static [(&'static str, f64)],
    /// Other shader texts of the same operation, with the same parameters and bindings, the most specialised first. A
    /// GPU uses what is fastest on it; empty where the text above, the *portable* form, serves every adapter.
    pub forms: &'static [Form],
    pub params: &'static [Param],
    pub bindings: &'static [Binding],
    /// Computes the same outputs from the same inputs.
    pub twin: fn(&Args),
    /// The floor of one launch.
    pub cost: fn(&Launch) -> Cost,
}

/// The name of the form that is a kernel's own text.
pub const PORTABLE: &str = "portable";

/// Another shader text of a kernel.
pub struct Form {
    /// Unique within the kernel; the same kind of text has the same name in all kernels.
    pub name: &'static str,
    pub source: &'static str,
    pub entry: &'static str,
    pub constants: &'static [(&'static str, f64)],
    /// Where it is taken without a measurement.
    pub home: Home,
    /// The least subgroup size it works with; 0 if it has no subgroup operations.
    pub subgroup: u32,
    /// The side of the cooperative matrices it works with, whose operands are the first two bindings and whose sums are
    /// f32; 0 if it has none.
    pub cooperative: u32,
    /// Whether this form can run a launch with these parameter words.
    pub fits: fn(&[u32]) -> bool,
    /// Workgroups such a launch needs.
    pub grid: fn(&[u32]) -> Grid,
}

impl Form {
    /// The form of that name of an elementwise kernel, for any adapter: an invocation owns four neighbours.
    pub const fn vec4(
        source: &'static str,
        fits: fn(&[u32]) -> bool,
        grid: fn(&[u32]) -> Grid,
    ) -> Form {
        Form {
            name: "vec4",
            home: Home::Any,
            ..Form::direct(source, fits, grid)
        }
    }

    /// The form of that name for SIMD on the host's processor: an invocation owns a whole result, so that there is
    /// neither a barrier nor workgroup memory.
    pub const fn direct(
        source: &'static str,
        fits: fn(&[u32]) -> bool,
        grid: fn(&[u32]) -> Grid,
    ) -> Form {
        Form {
            name: "direct",
            source,
            entry: "main",
            constants: &[],
            home: Home::Software,
            subgroup: 0,
            cooperative: 0,
            fits,
            grid,
        }
    }

    /// The form of that name for hardware: a workgroup shares a result through its memory and reads in vec4.
    pub const fn wide(
        source: &'static str,
        fits: fn(&[u32]) -> bool,
        grid: fn(&[u32]) -> Grid,
    ) -> Form {
        Form {
            name: "wide",
            home: Home::Hardware,
            ..Form::direct(source, fits, grid)
        }
    }

    /// The form of that name for hardware: the lanes of a subgroup, of any size, share a result.
    pub const fn subgroup(
        source: &'static str,
        fits: fn(&[u32]) -> bool,
        grid: fn(&[u32]) -> Grid,
    ) -> Form {
        Form {
            name: "subgroup",
            // The least there are: asks for the feature, not for a size.
            subgroup: 4,
            ..Form::wide(source, fits, grid)
        }
    }
}

/// The adapters a form was written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// The host's processor, in SIMD: barriers and workgroup memory cost much, wide registers little.
    Software,
    Hardware,
    /// Both.
    Any,
}

/// What [`Kernel::text`] gives.
pub type Text = (&'static str, &'static str, &'static [(&'static str, f64)]);

impl Kernel {
    /// The name of a form: 0 is the portable one, then those of the list.
    pub fn form_name(&self, form: usize) -> &'static str {
        match form {
            0 => PORTABLE,
            n => self.forms[n - 1].name,
        }
    }

    /// The WGSL text of a form, its entry point and its override constants.
    pub fn text(&self, form: usize) -> Text {
        match form {
            0 => (self.source, self.entry, self.constants),
            n => {
                let form = &self.forms[n - 1];
                (form.source, form.entry, form.constants)
            }
        }
    }

    /// The forms that can run a launch with these parameters, one bit each.
    pub fn fitting(&self, params: &[u32]) -> u32 {
        let fits = |(i, form): (usize, &Form)| ((form.fits)(params) as u32) << (i + 1);
        1 | self.forms.iter().enumerate().map(fits).sum::<u32>()
    }
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// Number of workgroups. A device dispatches a large grid in pieces (`shared/grid.wgsl` numbers its workgroups).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid(pub u32);

impl Grid {
    /// One workgroup for every `per` of `n` elements.
    pub fn cover(n: usize, per: usize) -> Grid {
        Grid(u32::try_from(n.div_ceil(per)).expect("grid fits u32"))
    }
}

pub const MAX_BINDINGS: usize = 8;
pub const MAX_PARAM_WORDS: usize = 32;
/// Parameters of one launch that the device may fill in.
pub const MAX_PATCHES: usize = 4;

/// One kernel call: parameters, buffers, grid.
#[derive(Clone, Copy, Debug)]
pub struct Launch {
    pub kernel: &'static Kernel,
    pub(crate) params: [u32; MAX_PARAM_WORDS],
    pub(crate) slices: [Slice; MAX_BINDINGS],
    pub grid: Grid,
    /// What the stream said of the pass it belongs to.
    pub forest: ForestSize,
    /// (parameter word, what the device puts there).
    patches: [Option<(u8, Patch)>; MAX_PATCHES],
}

impl Launch {
    pub fn params(&self) -> &[u32] {
        &self.params[..self.kernel.params.len()]
    }

    /// The parameters as the kernel's own struct.
    pub fn read_params<P: Pod>(&self) -> P {
        bytemuck::pod_read_unaligned(bytemuck::cast_slice(self.params()))
    }

    pub fn slices(&self) -> &[Slice] {
        &self.slices[..self.kernel.bindings.len()]
    }

    /// Workgroups in the form of that number, as [`Kernel::form_name`] takes it.
    pub fn groups(&self, form: usize) -> Grid {
        match form {
            0 => self.grid,
            n => (self.kernel.forms[n - 1].grid)(self.params()),
        }
    }

    /// Which bindings hold f16, one bit each.
    pub fn halves(&self) -> u32 {
        let slices = self.slices().iter().enumerate();
        slices.map(|(i, slice)| (slice.half as u32) << i).sum()
    }

    /// Bytes of an element of binding `index`.
    pub fn width(&self, index: usize) -> u64 {
        self.slices()[index].width()
    }

    /// The floor of this launch; an upper bound of it where the device knows a length.
    pub fn cost(&self) -> Cost {
        (self.kernel.cost)(self)
    }

    pub(super) fn patches(&self) -> impl Iterator<Item = (usize, Patch)> + '_ {
        let patches = self.patches.iter().flatten();
        patches.map(|&(index, patch)| (index as usize, patch))
    }

    /// The launch with its parameters filled in from the device's words.
    pub(super) fn resolved(&self, read: impl Fn(Word) -> u32) -> Launch {
        let mut launch = *self;
        for (index, patch) in self.patches() {
            launch.params[index] = patch.apply(read(patch.word));
        }
        launch
    }

    /// Whether it may write to `buffer`.
    pub fn writes(&self, buffer: u32) -> bool {
        let slices = self.kernel.bindings.iter().zip(&self.slices);
        slices
            .into_iter()
            .any(|(b, slice)| b.access == Access::Out && slice.buffer == buffer)
    }

    fn patch(&mut self, name: &str, patch: Patch) {
        let fields = self.kernel.params;
        let index = fields.iter().position(|p| p.name == name);
        let index = index.unwrap_or_else(|| panic!("{}: no parameter {name}", self.kernel.name));
        let free = self.patches.iter_mut().find(|p| p.is_none());
        *free.expect("few parameters are the device's") = Some((index as u8, patch));
    }
}

/// The launch just recorded, if its grid was not empty: names parameters that the device fills in.
pub struct Pushed<'a>(Option<&'a mut Launch>);

impl Pushed<'_> {
    /// Parameter `name`, recorded as `size.max`, is `size` when the launch runs.
    pub fn size(mut self, name: &str, size: Size) -> Self {
        if let (Some(launch), Some(patch)) = (&mut self.0, size.patch()) {
            launch.patch(name, patch);
        }
        self
    }

    /// Parameter `name`, recorded as `scale / max(size.max, 1)`, is `scale / max(size, 1)` when the launch runs.
    pub fn share(mut self, name: &str, scale: f32, size: Size) -> Self {
        if let (Some(launch), Some(patch)) = (&mut self.0, size.patch()) {
            let scale = scale.to_bits();
            let value = Value::Share { scale };
            launch.patch(name, Patch { value, ..patch });
        }
        self
    }
}

/// A list of launches in program order. Each sees the outputs of those before it.
#[derive(Clone, Default)]
pub struct Stream {
    pub launches: Vec<Launch>,
    /// Of the pass being recorded; only costs depend on it.
    pub forest: ForestSize,
}

impl Stream {
    pub fn new() -> Self {
        Self::default()
    }

    /// Empties the stream and keeps its memory.
    pub fn clear(&mut self) {
        self.launches.clear();
    }

    /// Records a launch. An empty grid records nothing.
    ///
    /// Panics (a mistake of the caller, not of the user) when the arguments do not fit the kernel, or when an output
    /// aliases another argument in a way wgpu refuses: sharing a buffer with an input, or overlapping an output.
    pub fn push<P: Pod>(
        &mut self,
        kernel: &'static Kernel,
        params: &P,
        slices: &[Slice],
        grid: Grid,
    ) -> Pushed<'_> {
        if grid.0 == 0 {
            return Pushed(None);
        }
        let words: &[u32] = bytemuck::cast_slice(bytemuck::bytes_of(params));
        assert_eq!(
            words.len(),
            kernel.params.len(),
            "{}: parameter words",
            kernel.name
        );
        assert_eq!(
            slices.len(),
            kernel.bindings.len(),
            "{}: number of buffers",
            kernel.name
        );
        for (i, (a, slice)) in kernel.bindings.iter().zip(slices).enumerate() {
            assert!(
                (slice.words().offset as usize).is_multiple_of(ALIGN_WORDS)
                    && slice.len > 0
                    && (!slice.half || a.ty == Type::Real),
                "{}.{}: bad slice {slice:?}",
                kernel.name,
                a.name
            );
            if a.access == Access::In {
                continue;
            }
            for (j, (b, other)) in kernel.bindings.iter().zip(slices).enumerate() {
                let clash = match b.access {
                    Access::In => slice.buffer == other.buffer,
                    Access::Out => i != j && slice.overlaps(*other),
                };
                assert!(!clash, "{}: {} aliases {}", kernel.name, a.name, b.name);
            }
        }
        let mut launch = Launch {
            kernel,
            params: [0; MAX_PARAM_WORDS],
            slices: [slices[0]; MAX_BINDINGS],
            grid,
            forest: self.forest,
            patches: [None; MAX_PATCHES],
        };
        launch.params[..words.len()].copy_from_slice(words);
        launch.slices[..slices.len()].copy_from_slice(slices);
        self.launches.push(launch);
        Pushed(self.launches.last_mut())
    }
}

/// What a twin gets: the parameters and the buffers of one launch.
pub struct Args<'a> {
    launch: &'a Launch,
    memory: [(*mut u32, usize); MAX_BINDINGS],
    taken: Cell<u32>,
}

impl<'a> Args<'a> {
    /// # Safety
    /// `memory` points to the launch's slices, valid for `'a`; nothing else touches the outputs meanwhile, and outputs
    /// do not overlap other arguments ([`Stream::push`] checks that).
    pub(crate) unsafe fn new(
        launch: &'a Launch,
        memory: [(*mut u32, usize); MAX_BINDINGS],
    ) -> Self {
        Args {
            launch,
            memory,
            taken: Cell::new(0),
        }
    }

    pub fn params<P: Pod>(&self) -> P {
        self.launch.read_params()
    }

    fn view<T: Pod>(&self, binding: usize, access: Access) -> (*mut T, usize) {
        let declared = &self.launch.kernel.bindings[binding];
        assert_eq!(
            declared.access, access,
            "{}.{}",
            self.launch.kernel.name, declared.name
        );
        let (pointer, len) = self.memory[binding];
        (pointer.cast(), len)
    }

    fn input<T: Pod>(&self, binding: usize) -> &'a [T] {
        let (pointer, len) = self.view(binding, Access::In);
        // SAFETY: valid for 'a and not written meanwhile (see `new`); u32 and f32 share size and alignment.
        unsafe { std::slice::from_raw_parts(pointer, len) }
    }

    #[allow(clippy::mut_from_ref)]
    fn output<T: Pod>(&self, binding: usize) -> &'a mut [T] {
        let (pointer, len) = self.view(binding, Access::Out);
        let bit = 1 << binding;
        assert_eq!(self.taken.get() & bit, 0, "output {binding} taken twice");
        self.taken.set(self.taken.get() | bit);
        // SAFETY: exclusive (see `new`), and handed out once (`taken`).
        unsafe { std::slice::from_raw_parts_mut(pointer, len) }
    }

    pub fn f32(&self, binding: usize) -> &'a [f32] {
        self.input(binding)
    }

    pub fn u32(&self, binding: usize) -> &'a [u32] {
        self.input(binding)
    }

    /// An output; each may be taken once.
    #[allow(clippy::mut_from_ref)]
    pub fn f32_mut(&self, binding: usize) -> &'a mut [f32] {
        self.output(binding)
    }

    /// An output; each may be taken once.
    #[allow(clippy::mut_from_ref)]
    pub fn u32_mut(&self, binding: usize) -> &'a mut [u32] {
        self.output(binding)
    }
}
