"""What kind of file this is, judged by its first bytes and never by its name.

Refuses to know how any of them is read; it only names them for a message.
"""

from __future__ import annotations

HEAD_BYTES = 4096
"""How much of a file `detect` wants to see; every magic and the root of most SVG files lie within."""

_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"\xff\xd8\xff", "JPEG"),
    (8, b"WEBP", "WEBP"),
    (0, b"GIF8", "GIF"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),
    (0, b"MM\0+", "TIFF"),
    (0, b"%PDF", "PDF"),
    (0, b"%!PS", "EPS"),
    (0, b"\xc5\xd0\xd3\xc6", "EPS"),
    (0, b"8BPS", "PSD"),
    (4, b"jP  \r\n\x87\n", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (4, b"JXL \r\n\x87\n", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"SIMPLE  =", "FITS"),
    (0, b"\x00\x00\x01\x00", "ICO"),
    (0, b"qoif", "QOI"),
    (0, b"\x76\x2f\x31\x01", "OpenEXR"),
    (0, b"PK\x03\x04", "ZIP"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"7z\xbc\xaf\x27\x1c", "7-Zip"),
    (257, b"ustar", "tar"),
    (0, b"GGUF", "GGUF"),
    (0, b"\x89HDF\r\n\x1a\n", "HDF5"),
    (0, b"version https://git-lfs", "Git LFS pointer"),
    *((0, bytes((0x80, protocol)), "pickle") for protocol in range(2, 6)),
)
_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIC"),
}


def detect(head: bytes) -> str | None:
    """The type that the first `HEAD_BYTES` of a file show, such as `PNG` or `SVG`; None if they show none."""
    for offset, magic, name in _MAGIC:
        if head.startswith(magic, offset) and (name != "WEBP" or head.startswith(b"RIFF")):
            return "pickle" if name == "ZIP" and b"data.pkl" in head else name
    if head.startswith(b"ftyp", 4):
        return _BRANDS.get(head[8:12], "MP4")
    if head.startswith(b"BM") and head[6:10] == bytes(4):
        return "BMP"
    return _detect_text(head)


def _detect_text(head: bytes) -> str | None:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "HTML"
    if not text or any(byte < 32 and byte not in b"\t\n\f\r\x1b" for byte in text):
        return None
    if text.startswith((b"{", b"[")):
        return "JSON"
    if text.startswith(b"<"):
        return "SVG" if b"<svg" in text else "HTML" if b"<html" in text else "XML"
    return "text"
