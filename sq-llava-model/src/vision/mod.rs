//! Vision towers: a picture to features of its patches.

pub mod encoder;
pub mod head;
pub mod tower;
