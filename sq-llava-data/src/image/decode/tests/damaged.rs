//! Files at which decoders of other crates panic, and formats that are not decoded.

use super::*;

#[test]
fn fault_29_panics_of_decoders_are_errors() {
    let pictures: [(&str, &[u8]); 4] = [
        ("palette.png", fixture!("palette.png")),
        ("upsample.jpg", fixture!("upsample.jpg")),
        ("colour.jpg", fixture!("colour.jpg")),
        ("planes.jpg", fixture!("planes.jpg")),
    ];
    for (name, bytes) in pictures {
        let error = decode(bytes, name, OPTIONS).unwrap_err();
        assert!(matches!(error, DataError::Image { .. }), "{error}");
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn fault_30_unsupported_pictures_are_named_whatever_they_are_called() {
    for (bytes, name) in [
        (&b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"[..], "HEIC"),
        (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf", "AVIF"),
        (b"II*\0\x08\0\0\0", "TIFF"),
        (b"<svg/>", "SVG"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
    ] {
        let error = decode(bytes, "photo.jpg", OPTIONS).unwrap_err().to_string();
        assert!(
            error.contains(name) && error.contains("photo.jpg") && error.contains("convert"),
            "{error}"
        );
        assert_eq!(begins_as_picture(bytes), name != "Git LFS");
    }
}

#[test]
fn fault_30_exif_that_turns_is_told() {
    let turned = |bytes: &[u8], apply_exif| {
        let options = DecodeOptions {
            apply_exif,
            ..OPTIONS
        };
        decode(bytes, "photo.jpg", options).unwrap().turned
    };
    assert!(turned(fixture!("exif6.jpg"), false));
    assert!(turned(fixture!("exif6.jpg"), true));
    assert!(!turned(fixture!("rgb.jpg"), false));
    // The same orientation in a PNG's own chunk, 6 as the value of tag 0x0112.
    let exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    let row = [1, 2, 3, 4, 5, 6];
    let bytes = png(2, 8, 2, &[(b"eXIf", exif)], &row);
    assert!(turned(&bytes, false));
    assert_eq!(rgb(&bytes).dimensions(), (2, 1));
    let options = DecodeOptions {
        apply_exif: true,
        ..OPTIONS
    };
    let image = decode(&bytes, "turned.png", options).unwrap().image;
    assert_eq!(image.dimensions(), (1, 2));
}
