//! Names of files that are not decoded, told by how they begin.

/// Bytes in which the beginning of an SVG or a web page is looked for.
const TEXT_BYTES: usize = 4096;

/// A name for each beginning; the longer one first where two begin the same.
const BEGINNINGS: [(&[u8], &str); 40] = [
    (b"II*\0\x10\0\0\0CR", "Canon CR2"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "BigTIFF"),
    (b"MM\0+", "BigTIFF"),
    (b"II\xbc\x01", "JPEG XR"),
    (b"IIRO", "Olympus ORF"),
    (b"IIRS", "Olympus ORF"),
    (b"IIU\0", "Panasonic RW2"),
    (b"FUJIFILMCCD-RAW", "Fujifilm RAF"),
    (b"FOVb", "Sigma X3F"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"8BPS", "Photoshop (PSD)"),
    (b"8BPB", "Photoshop (PSB)"),
    (b"gimp xcf", "GIMP (XCF)"),
    (b"\0\0\x01\0", "ICO"),
    (b"\0\0\x02\0", "CUR"),
    (b"qoif", "QOI"),
    (b"BPG\xfb", "BPG"),
    (b"FLIF", "FLIF"),
    (b"DDS ", "DDS"),
    (b"farbfeld", "farbfeld"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"#?RGBE", "Radiance HDR"),
    (b"\x8aMNG\r\n\x1a\n", "MNG"),
    (b"\x8bJNG\r\n\x1a\n", "JNG"),
    (b"\xd7\xcd\xc6\x9a", "WMF"),
    (b"\x0a\x05\x01\x08", "PCX"),
    (b"%PDF-", "PDF"),
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"\x1aE\xdf\xa3", "Matroska or WebM video"),
    (b"PK\x03\x04", "ZIP"),
    (b"\x1f\x8b", "gzip"),
    (b"version https://git-lfs", "Git LFS pointer"),
    (b"SIMPLE  =", "FITS"),
];

/// Brands of the container that HEIC, AVIF and MP4 share; the first of them that a file has tells.
const BRANDS: [(&[u8], &str); 18] = [
    (b"avif", "AVIF"),
    (b"avis", "AVIF"),
    (b"heic", "HEIC"),
    (b"heix", "HEIC"),
    (b"heim", "HEIC"),
    (b"heis", "HEIC"),
    (b"hevc", "HEIC"),
    (b"hevx", "HEIC"),
    (b"hevm", "HEIC"),
    (b"hevs", "HEIC"),
    (b"jxl ", "JPEG XL"),
    (b"jp2 ", "JPEG 2000"),
    (b"jpx ", "JPEG 2000"),
    (b"crx ", "Canon CR3"),
    (b"mif1", "HEIF"),
    (b"msf1", "HEIF"),
    (b"heif", "HEIF"),
    (b"miaf", "HEIF"),
];

/// The name of a format that is not decoded; `None` if the bytes are of none that is known.
pub(super) fn name(bytes: &[u8]) -> Option<&'static str> {
    if bytes.get(4..8) == Some(b"ftyp") {
        return Some(container(bytes));
    }
    let beginning = BEGINNINGS
        .iter()
        .find(|(magic, _)| bytes.starts_with(magic));
    if let Some((_, name)) = beginning {
        return Some(name);
    }
    match (bytes.get(..4), bytes.get(8..12)) {
        (Some(b"RIFF"), Some(b"AVI ")) => return Some("AVI video"),
        (Some(b"\x01\0\0\0"), _) if bytes.get(40..44) == Some(b" EMF") => return Some("EMF"),
        _ => {}
    }
    // Netpbm: P1 to P7, then a space or a comment.
    if let [b'P', b'1'..=b'7', b' ' | b'\n' | b'\r' | b'\t' | b'#', ..] = bytes {
        return Some("Netpbm (PBM, PGM, PPM)");
    }
    if bytes.get(128..132) == Some(b"DICM") {
        return Some("DICOM");
    }
    if bytes.ends_with(b"TRUEVISION-XFILE.\0") {
        return Some("TGA");
    }
    text(bytes)
}

/// Whether files of a format are pictures, by its name.
pub(super) fn is_picture(name: &str) -> bool {
    let others = ["ZIP", "gzip", "Git LFS pointer", "PDF", "PostScript", "XML"];
    !others.contains(&name) && !name.ends_with("video") && !name.starts_with("web page")
}

/// A file of boxes, by the brands that it says it is compatible with.
fn container(bytes: &[u8]) -> &'static str {
    let length = bytes.get(..4).unwrap_or_default();
    let length = length
        .iter()
        .fold(0, |sum, byte| sum << 8 | usize::from(*byte));
    let own = bytes.get(8..length.clamp(12, 256).min(bytes.len()));
    let (brands, _) = own.unwrap_or_default().as_chunks::<4>();
    let known = BRANDS.iter().find(|(brand, _)| {
        // The second is a version, not a brand.
        let mut others = brands.iter().enumerate().filter(|(place, _)| *place != 1);
        others.any(|(_, found)| found == brand)
    });
    known.map_or("MP4 or QuickTime video", |(_, name)| name)
}

fn text(bytes: &[u8]) -> Option<&'static str> {
    let start = &bytes[..bytes.len().min(TEXT_BYTES)];
    // UTF-16 has a zero in every other byte of these signs.
    let start: Vec<u8> = start.iter().copied().filter(|byte| *byte != 0).collect();
    let start = String::from_utf8_lossy(&start).to_ascii_lowercase();
    let start = start
        .trim_start_matches(['\u{feff}', '\u{fffd}'])
        .trim_start();
    if !start.starts_with('<') {
        return None;
    }
    if start.contains("<svg") {
        Some("SVG")
    } else if start.starts_with("<!doctype html") || start.contains("<html") {
        Some("web page (HTML)")
    } else {
        Some("XML")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Beginnings as the formats' specifications give them.
    #[test]
    fn fault_30_formats_that_are_not_decoded_are_named() {
        for (bytes, expected) in [
            (&b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"[..], "HEIC"),
            (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heicmiaf", "HEIC"),
            (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", "AVIF"),
            (b"\0\0\0\x14ftypmif1\0\0\0\0mif1", "HEIF"),
            (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf", "AVIF"),
            (b"\0\0\0\x18ftypcrx \0\0\0\x01crx isom", "Canon CR3"),
            (
                b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2avc1mp41",
                "MP4 or QuickTime video",
            ),
            (b"\0\0\0\0ftyp", "MP4 or QuickTime video"),
            (b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\x14ftypjxl ", "JPEG XL"),
            (b"\xff\x0a\xfa\x1f", "JPEG XL"),
            (b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 ", "JPEG 2000"),
            (b"\xff\x4f\xff\x51\0\x2f", "JPEG 2000"),
            (b"MM\0*\0\0\0\x08", "TIFF"),
            (b"8BPS\0\x01", "Photoshop (PSD)"),
            (b"\0\0\x01\0\x01\0\x10\x10", "ICO"),
            (b"P6\n2 2\n255\n", "Netpbm (PBM, PGM, PPM)"),
            (b"%PDF-1.7", "PDF"),
            (b"<svg xmlns=\"http://www.w3.org/2000/svg\">", "SVG"),
            (
                b"\xef\xbb\xbf<?xml version=\"1.0\"?>\n<!-- x -->\n<svg>",
                "SVG",
            ),
            (b"\n<!DOCTYPE html><p>404", "web page (HTML)"),
            (
                b"version https://git-lfs.github.com/spec/v1\n",
                "Git LFS pointer",
            ),
        ] {
            let shown = String::from_utf8_lossy(bytes);
            assert_eq!(name(bytes), Some(expected), "{shown}");
        }
        for bytes in [&b""[..], b"P", b"ftyp", b"hello", b"\0\0\0\x18fty"] {
            assert_eq!(name(bytes), None);
        }
    }
}
