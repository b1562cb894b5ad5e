//! Vision towers: a picture to features of its patches.

pub mod encoder;
pub mod head;
mod positions;
pub mod tower;
