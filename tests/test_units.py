"""Sizes as people write them."""

from __future__ import annotations

import pytest

from sdcli.errors import BadRequest
from sdcli.units import GIB, KIB, MIB, format_limit, format_pace, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("2GiB", 2 * GIB),
        ("2G", 2 * 10**9),
        ("2GB", 2 * 10**9),
        ("2048MiB", 2 * GIB),
        ("2800MiB", 2800 * MIB),
        ("2.8GiB", int(2.8 * GIB)),
        ("2.3GB", 2_300_000_000),
        ("0.5MiB", MIB // 2),
        ("1KiB", KIB),
        ("1KB", 1000),
        ("1K", 1000),
        ("1Ki", KIB),
        ("1TiB", 2**40),
        ("1TB", 10**12),
        ("2gib", 2 * GIB),
        ("2GIB", 2 * GIB),
        ("2gb", 2 * 10**9),
        ("2 GiB", 2 * GIB),
        ("  2GiB\n", 2 * GIB),
        ("0002GiB", 2 * GIB),
        ("0.001KB", 1),
        ("999T", 999 * 10**12),
    ],
)
def test_a_size_with_a_unit_is_read_as_written(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["2048", "2", "1.5", " 7 ", "9" * 5000, "0"])
def test_a_bare_number_is_asked_for_its_unit(text: str) -> None:
    with pytest.raises(BadRequest, match=r"has no unit: write .{1,20}MiB or") as caught:
        parse_size(text)
    assert caught.value.exit_code == 2 and len(str(caught.value)) < 300


@pytest.mark.parametrize("text", ["0G", "0GiB", "0.0MB", "0.0001KB", "0000000K"])
def test_nothing_is_not_a_size(text: str) -> None:
    with pytest.raises(BadRequest, match="is zero"):
        parse_size(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "-1G",
        "+1G",
        "nan",
        "inf",
        "nanGiB",
        "infGB",
        "1e99T",
        "1e3MiB",
        "0x10G",
        "1_000M",
        "1,5G",
        "1.G",
        ".5G",
        "1.2.3G",
        "abc",
        "GiB",
        "2GiBs",
        "2GiiB",
        "2B",
        "2iB",
        "2P",
        "2GiB,1GiB",
        "2G 1M",
        "2GiB\0",
        "\x1b[31m2G",
        "9" * 13 + "G",
        "1." + "1" * 10 + "G",
        "9" * 100_000 + "Q",
        "none",
        "auto",
    ],
    ids=lambda text: repr(text[:12]),
)
def test_what_is_not_a_size_is_a_usage_error_that_shows_the_way(text: str) -> None:
    with pytest.raises(BadRequest, match="is not a size: write 2GiB, 2800MiB or 2GB") as caught:
        parse_size(text)
    assert caught.value.exit_code == 2
    assert str(caught.value).isprintable() and len(str(caught.value)) < 200


def test_letters_and_digits_of_other_scripts_are_no_units() -> None:
    for text in ("1\u212aiB", "\u0662GiB", "\uff12GiB", "1G\u0131B"):
        with pytest.raises(BadRequest, match="is not a size"):
            parse_size(text)


@pytest.mark.parametrize(("text", "size_bytes"), [("2.01GB", 2_010_000_000), ("2.05MB", 2_050_000)])
def test_decimals_lose_no_byte(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 KiB"),
        (1024, "1 KiB"),
        (12 * KIB, "12 KiB"),
        (437 * MIB, "437 MiB"),
        (MIB, "1 MiB"),
        (GIB, "1.00 GiB"),
        (int(1.64 * GIB), "1.64 GiB"),
        (20_000 * GIB, "20000.00 GiB"),
    ],
)
def test_a_size_is_shown_in_the_unit_that_fits(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text


@pytest.mark.parametrize("size_bytes", [1, MIB - 1, MIB, MIB + 1, int(2.8 * GIB), 3 * GIB])
def test_a_limit_that_is_shown_can_be_passed_back_and_is_enough(size_bytes: int) -> None:
    assert size_bytes <= parse_size(format_limit(size_bytes)) < size_bytes + MIB


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.004, "less than 0.1 s"),
        (0.123, "about 0.12 s"),
        (0.96, "about 0.96 s"),
        (0.996, "about 1.0 s"),
        (2.345, "about 2.3 s"),
        (41.6, "about 42 s"),
        (900, "about 15 min"),
        (9000, "about 2.5 h"),
    ],
)
def test_a_pace_is_told_in_two_figures(seconds: float, shown: str) -> None:
    assert format_pace(seconds) == shown
