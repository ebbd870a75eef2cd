//! The forms of the matrix product ([`super::matmul`]): shader texts, their constants, which launches they fit.
//!
//! A text loads op(A) by `a_element`, which is one of two (`shaders/shared/matmul_plain.wgsl`, `matmul_softmax.wgsl`): so
//! the product with a softmax for A ([`super::matmul_softmax`]) has the same texts, in all forms but those of NT.

use super::matmul::Form;
use crate::device::{self, Grid, Home};

/// The shader texts of NN and TN, and the portable one of all.
pub struct Texts {
    pub portable: &'static str,
    tiled: &'static str,
    cooperative_8: &'static str,
    cooperative_16: &'static str,
    subgroup: &'static str,
}

macro_rules! texts {
    ($a_element:literal) => {
        Texts {
            portable: texts!($a_element, "matmul"),
            tiled: texts!($a_element, "matmul_tiled"),
            cooperative_8: texts!($a_element, "matmul_cooperative_8"),
            cooperative_16: texts!($a_element, "matmul_cooperative_16"),
            subgroup: texts!($a_element, "matmul_subgroup"),
        }
    };
    ($a_element:literal, $name:literal) => {
        concat!(
            "//!include ",
            $a_element,
            "\n",
            include_str!(concat!("../../shaders/", $name, ".wgsl"))
        )
    };
}

pub const PLAIN: Texts = texts!("matmul_plain");
pub const SOFTMAX: Texts = texts!("matmul_softmax");

const THIN: &str = include_str!("../../shaders/matmul_thin.wgsl");
const SUBGROUP_NT: &str = include_str!("../../shaders/matmul_subgroup_nt.wgsl");

/// A shader text's override constants for each [`Form`].
pub type Constants = &'static [(&'static str, f64)];

macro_rules! transposing {
    ($form:expr $(, $constant:expr)*) => {
        match $form {
            Form::NT => &[("TRANSPOSE_B", 1.0) $(, $constant)*],
            Form::NN => &[("TRANSPOSE_B", 0.0) $(, $constant)*],
            Form::TN => &[("TRANSPOSE_A", 1.0) $(, $constant)*],
        }
    };
}

pub static NT: [device::Form; 7] = [
    shuffling(tiles::<8, 64>(
        "subgroup_thin",
        SUBGROUP_NT,
        transposing!(Form::NT, ("ROWS", 8.0)),
        Home::Software,
        |w| w[0] <= 8 && w[2].is_multiple_of(4),
    )),
    shuffling(tiles::<16, 64>(
        "subgroup",
        SUBGROUP_NT,
        transposing!(Form::NT, ("ROWS", 16.0)),
        Home::Software,
        |w| w[2].is_multiple_of(4),
    )),
    tiles::<16, 4>("thin", THIN, transposing!(Form::NT), Home::Hardware, |w| {
        w[0] <= 16 || w[1] <= 4
    }),
    tiled(Form::NT, &PLAIN),
    tiled_small(Form::NT, &PLAIN),
    cooperative(Form::NT, &PLAIN),
    cooperative_small(Form::NT, &PLAIN),
];

pub static NN: [device::Form; 6] = with_rows_of_b(Form::NN, &PLAIN);
pub static TN: [device::Form; 6] = with_rows_of_b(Form::TN, &PLAIN);
pub static NN_SOFTMAX: [device::Form; 6] = with_rows_of_b(Form::NN, &SOFTMAX);
pub static TN_SOFTMAX: [device::Form; 6] = with_rows_of_b(Form::TN, &SOFTMAX);

/// Of NN and TN, whose columns of C are neighbours in B.
const fn with_rows_of_b(form: Form, texts: &Texts) -> [device::Form; 6] {
    [
        subgroup_thin(form, texts),
        subgroup(form, texts),
        tiled(form, texts),
        tiled_small(form, texts),
        cooperative(form, texts),
        cooperative_small(form, texts),
    ]
}

/// The constants of a text that has no others.
pub const fn transposed(form: Form) -> Constants {
    transposing!(form)
}

/// A form that owns tiles of `R` x `C` outputs.
const fn tiles<const R: u32, const C: u32>(
    name: &'static str,
    source: &'static str,
    constants: Constants,
    home: Home,
    fits: fn(&[u32]) -> bool,
) -> device::Form {
    device::Form {
        name,
        source,
        entry: "main",
        constants,
        home,
        subgroup: 0,
        cooperative: 0,
        fits,
        grid: |words| grid(words, R, C),
    }
}

/// The same for subgroups of at least 8.
const fn shuffling(form: device::Form) -> device::Form {
    device::Form {
        subgroup: 8,
        ..form
    }
}

/// Workgroups for tiles of that size.
pub fn grid(words: &[u32], rows: u32, columns: u32) -> Grid {
    Grid(words[0].div_ceil(rows) * words[1].div_ceil(columns))
}

const fn tiled(form: Form, texts: &Texts) -> device::Form {
    let constants: Constants = transposing!(form, ("SPAN", 8.0));
    tiles::<64, 64>("tiled", texts.tiled, constants, Home::Hardware, |_| true)
}

const fn tiled_small(form: Form, texts: &Texts) -> device::Form {
    let constants: Constants = transposing!(form, ("SPAN", 4.0));
    tiles::<32, 32>(
        "tiled_small",
        texts.tiled,
        constants,
        Home::Hardware,
        |_| true,
    )
}

/// Cooperative matrices of 16 x 16 and of 8 x 8.
const fn cooperative(form: Form, texts: &Texts) -> device::Form {
    let (constants, home): (Constants, _) = (transposing!(form), Home::Hardware);
    device::Form {
        cooperative: 16,
        subgroup: 4,
        ..tiles::<64, 64>("cooperative", texts.cooperative_16, constants, home, |_| {
            true
        })
    }
}

const fn cooperative_small(form: Form, texts: &Texts) -> device::Form {
    let (constants, home): (Constants, _) = (transposing!(form), Home::Hardware);
    device::Form {
        cooperative: 8,
        subgroup: 4,
        ..tiles::<32, 32>(
            "cooperative_small",
            texts.cooperative_8,
            constants,
            home,
            |_| true,
        )
    }
}

/// 4 columns at a time, which are neighbours.
const fn subgroup(form: Form, texts: &Texts) -> device::Form {
    let constants: Constants = transposing!(form, ("ROWS", 16.0));
    let home = Home::Software;
    shuffling(tiles::<16, 128>(
        "subgroup",
        texts.subgroup,
        constants,
        home,
        |w| w[1].is_multiple_of(4),
    ))
}

const fn subgroup_thin(form: Form, texts: &Texts) -> device::Form {
    let constants: Constants = transposing!(form, ("ROWS", 8.0));
    let home = Home::Software;
    shuffling(tiles::<8, 128>(
        "subgroup_thin",
        texts.subgroup,
        constants,
        home,
        |w| w[0] <= 8 && w[1].is_multiple_of(4),
    ))
}
