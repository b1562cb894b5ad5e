//! A small world: pictures of coloured shapes, with everything that can be said about them.
//!
//! A scene is drawn from a seed and its number alone. What is asked and answered comes from the
//! scene, never from its picture, so every answer can be checked.

mod answer;
mod asked;
mod dataset;
mod render;
mod scene;
mod talk;

pub use asked::{About, about};
pub use dataset::{
    HeldOut, Telling, WorldFiles, WorldSize, read_held_out, training_questions, write_world,
};
pub use render::{SIDE, masks, render};
pub use scene::{MOST_THINGS, Scene, Thing, rng};
pub use talk::{DESCRIBE, Exchange, Kind};

/// A word of the world's language, one of a fixed list.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$doc])* $variant),+ }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The word for it.
            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }

            /// Its place in [`Self::ALL`].
            pub fn index(self) -> usize {
                self as usize
            }
        }
    };
}

words! {
    /// What a thing is.
    Shape {
        /// A disc.
        Circle = "circle",
        /// An upright square.
        Square = "square",
        /// A triangle on its base.
        Triangle = "triangle",
        /// Two bars.
        Cross = "cross",
    }
}

words! {
    /// Its colour.
    Color {
        /// Red.
        Red = "red",
        /// Green.
        Green = "green",
        /// Blue.
        Blue = "blue",
        /// Yellow.
        Yellow = "yellow",
        /// Purple.
        Purple = "purple",
        /// Orange.
        Orange = "orange",
    }
}

words! {
    /// Its size.
    Size {
        /// Half of a cell.
        Small = "small",
        /// Nearly all of a cell.
        Big = "big",
    }
}

words! {
    /// The cell of a 3×3 grid that it stands in; one word each.
    Place {
        /// First row, first column.
        TopLeft = "top-left",
        /// First row, second column.
        Top = "top",
        /// First row, third column.
        TopRight = "top-right",
        /// Second row, first column.
        Left = "left",
        /// The middle.
        Center = "center",
        /// Second row, third column.
        Right = "right",
        /// Third row, first column.
        BottomLeft = "bottom-left",
        /// Third row, second column.
        Bottom = "bottom",
        /// Third row, third column.
        BottomRight = "bottom-right",
    }
}

impl Shape {
    /// The word for several.
    pub fn plural(self) -> String {
        match self {
            Self::Cross => "crosses".into(),
            other => format!("{}s", other.word()),
        }
    }
}

impl Color {
    /// Red, green and blue.
    pub fn rgb(self) -> [u8; 3] {
        match self {
            Self::Red => [214, 40, 40],
            Self::Green => [40, 160, 60],
            Self::Blue => [40, 80, 210],
            Self::Yellow => [240, 205, 40],
            Self::Purple => [140, 50, 170],
            Self::Orange => [240, 130, 30],
        }
    }
}

impl Place {
    /// Row and column, 0 to 2.
    pub fn cell(self) -> (usize, usize) {
        (self.index() / 3, self.index() % 3)
    }
}
