//! Whether numbers are finite.

/// Whether no number is NaN or infinite.
pub fn all_finite(values: &[f32]) -> bool {
    // Without a branch for each, so that it takes microseconds for a vocabulary.
    let exponents = values.iter().map(|value| value.to_bits() & 0x7f80_0000);
    exponents.fold(0, |largest: u32, bits| largest.max(bits)) < 0x7f80_0000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_are_not_finite_are_found_at_every_place() {
        let mut values = vec![f32::MAX; 67];
        values[3] = f32::MIN_POSITIVE / 2.0;
        values[4] = -0.0;
        assert!(all_finite(&values) && all_finite(&[]));
        for wrong in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for place in 0..values.len() {
                let mut values = values.clone();
                values[place] = wrong;
                assert!(!all_finite(&values), "{wrong} at {place}");
            }
        }
    }
}
