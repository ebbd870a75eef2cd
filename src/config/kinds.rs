//! The types a setting can have: how each is read from TOML, checked, written and described.

use std::ops::{RangeFull, RangeInclusive};

use toml::de::DeValue;

/// A type that a setting can have.
pub(super) trait Kind: Sized {
    /// What bounds the values: a range for numbers, `..` where the type alone says it.
    type Range;
    /// Text kinds take a command-line value as it stands, without TOML quotes.
    const TEXT: bool = false;
    /// The value, or `None` if it has another type or lies outside the range.
    fn read(value: &DeValue, range: &Self::Range) -> Option<Self>;
    /// The allowed values in words: "a whole number from 0 to 9".
    fn allowed(range: &Self::Range) -> String;
    /// The value as TOML that reads back to exactly this value.
    fn write(&self) -> String;
}

fn integer(value: &DeValue) -> Option<u64> {
    let integer = value.as_integer()?;
    u64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

impl Kind for u64 {
    type Range = RangeInclusive<u64>;
    fn read(value: &DeValue, range: &Self::Range) -> Option<Self> {
        integer(value).filter(|number| range.contains(number))
    }
    fn allowed(range: &Self::Range) -> String {
        format!("a whole number from {} to {}", range.start(), range.end())
    }
    fn write(&self) -> String {
        self.to_string()
    }
}

impl Kind for usize {
    type Range = RangeInclusive<usize>;
    fn read(value: &DeValue, range: &Self::Range) -> Option<Self> {
        let number = usize::try_from(integer(value)?).ok()?;
        range.contains(&number).then_some(number)
    }
    fn allowed(range: &Self::Range) -> String {
        format!("a whole number from {} to {}", range.start(), range.end())
    }
    fn write(&self) -> String {
        self.to_string()
    }
}

/// Reals are finite (every range is), and a whole number will do for one: `lr = 1`.
impl Kind for f64 {
    type Range = RangeInclusive<f64>;
    fn read(value: &DeValue, range: &Self::Range) -> Option<Self> {
        let number = match value {
            DeValue::Float(float) => float.as_str().parse().ok()?,
            _ => {
                let integer = value.as_integer()?;
                i64::from_str_radix(integer.as_str(), integer.radix()).ok()? as f64
            }
        };
        range.contains(&number).then_some(number)
    }
    fn allowed(range: &Self::Range) -> String {
        format!(
            "a number from {} to {}",
            range.start().write(),
            range.end().write()
        )
    }
    fn write(&self) -> String {
        format!("{self:?}")
    }
}

/// A non-empty list of reals, each within the range.
impl Kind for Vec<f64> {
    type Range = RangeInclusive<f64>;
    fn read(value: &DeValue, range: &Self::Range) -> Option<Self> {
        let list = value.as_array().filter(|list| !list.is_empty())?;
        list.iter()
            .map(|element| f64::read(element.get_ref(), range))
            .collect()
    }
    fn allowed(range: &Self::Range) -> String {
        format!("a non-empty list, each {}", f64::allowed(range))
    }
    fn write(&self) -> String {
        let elements: Vec<_> = self.iter().map(Kind::write).collect();
        format!("[{}]", elements.join(", "))
    }
}

impl Kind for bool {
    type Range = RangeFull;
    fn read(value: &DeValue, _: &Self::Range) -> Option<Self> {
        value.as_bool()
    }
    fn allowed(_: &Self::Range) -> String {
        "true or false".into()
    }
    fn write(&self) -> String {
        self.to_string()
    }
}

impl Kind for String {
    type Range = RangeFull;
    const TEXT: bool = true;
    fn read(value: &DeValue, _: &Self::Range) -> Option<Self> {
        value.as_str().map(str::to_owned)
    }
    fn allowed(_: &Self::Range) -> String {
        "a text in quotes".into()
    }
    fn write(&self) -> String {
        toml::Value::String(self.clone()).to_string()
    }
}

/// Declares an enum whose variants are the named values of a setting.
macro_rules! choice {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$variant_doc])* $variant),+ }

        impl $name {
            /// The name used in configuration files.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
                formatter.write_str(self.name())
            }
        }

        impl Kind for $name {
            type Range = std::ops::RangeFull;
            const TEXT: bool = true;
            fn read(value: &toml::de::DeValue, _: &Self::Range) -> Option<Self> {
                match value.as_str()? {
                    $($text => Some(Self::$variant),)+
                    _ => None,
                }
            }
            fn allowed(_: &Self::Range) -> String {
                [$(concat!("\"", $text, "\"")),+].join(" or ")
            }
            fn write(&self) -> String {
                format!("\"{self}\"")
            }
        }
    };
}
pub(super) use choice;
