"""Sizes and durations as text, and texts cut to a line, the same way in every package."""

BYTE_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def format_bytes(num_bytes: float) -> str:
    """Bytes in GB, MB or kB, powers of 1,000.

    >>> [format_bytes(1_234e9), format_bytes(71.24e9), format_bytes(812e6), format_bytes(1.7e6), format_bytes(930)]
    ['1,234.0 GB', '71.2 GB', '812 MB', '1.7 MB', '0.9 kB']
    """
    size, unit = next(((size, unit) for size, unit in BYTE_UNITS if num_bytes >= size), BYTE_UNITS[-1])
    value = num_bytes / size
    return f"{value:,.1f} {unit}" if unit == "GB" or value < 10 else f"{value:.0f} {unit}"


def format_duration(seconds: float) -> str:
    """Seconds in units of which the first is not 0.

    >>> [format_duration(seconds) for seconds in (7.2, 200, 7_500, 200_000)]
    ['7 s', '3 min 20 s', '2 h 05 min', '2 d 07 h']
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def shorten(text: str, max_characters: int) -> str:
    r"""The beginning of a text, in one line.

    >>> shorten("one\n two", 7), shorten("one two", 6)
    ('one two', 'one t…')
    """
    line = " ".join(text.split())
    return line if len(line) <= max_characters else line[: max_characters - 1] + "…"
