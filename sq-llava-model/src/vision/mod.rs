//! Vision towers: a picture to features of its patches.

pub mod tower;
