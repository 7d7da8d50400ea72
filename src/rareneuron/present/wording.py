"""Numbers and text as people read them: significant digits, a mean with its error, tokens with nothing hidden.

Token text is hostile. A tokenizer's vocabulary holds markup, quotes, control characters, marks that turn the
direction of a line, and pieces of characters; escaping keeps a page whole, and `visible` keeps it honest: what
would not be seen is written out.
"""

import math
import unicodedata
from collections.abc import Iterable

SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
MINUS = "−"
NOTHING = "–"  # where there is no value
MOST_CHARACTERS = 60
NAMED = {"\n": "↵", "\t": "⇥"}  # the control pictures from ␀ on are missing from many fonts
UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"}  # Unicode categories without ink of their own
COMBINING = {"Mn", "Me", "Mc"}


def step_name(step: int | None) -> str:
    """Return a checkpoint's step as text; an unknown step is that of the final checkpoint."""
    return "final" if step is None else f"{step:,}"


def checkpoint_name(step: int | None) -> str:
    """Name a checkpoint at the head of a line, such as `Step 512`."""
    return "Final checkpoint" if step is None else f"Step {step_name(step)}"


def at_step(step: int | None) -> str:
    """Name a checkpoint within a sentence, such as `at step 512`."""
    return "at the final checkpoint" if step is None else f"at step {step_name(step)}"


def power_of_ten(exponent: int) -> str:
    """Return a power of ten, such as 10⁻³."""
    return "10" + str(exponent).translate(SUPERSCRIPT)


def significant(value: float | None, digits: int = 3, *, sign: bool = False) -> str:
    """Return a number with `digits` significant digits; below 1e-4 with a power of ten."""
    if value is None or not math.isfinite(value):
        return NOTHING
    plus = "+" if sign else ""
    if value != 0 and abs(value) < 1e-4:
        exponent = math.floor(math.log10(abs(value)))
        text = f"{value / 10.0**exponent:{plus}.{digits - 1}f} × {power_of_ten(exponent)}"
    elif abs(value) >= 10**digits:
        text = f"{value:{plus},.0f}"
    else:
        text = f"{value:{plus}#.{digits}g}".removesuffix(".") if value else "0"
    return text.replace("-", MINUS)


def short_number(value: float) -> str:
    """Return the number of a tick: 0.02, or 2×10⁻⁵ where that is shorter."""
    if value >= 1e-4:
        return f"{value:g}"
    exponent = math.floor(math.log10(value) + 1e-9)
    factor = f"{value / 10.0**exponent:g}"
    return power_of_ten(exponent) if factor == "1" else f"{factor}×{power_of_ten(exponent)}"


def with_error(mean: float, error: float, *, sign: bool = False) -> str:
    """Return `mean ± error`, the error with two significant digits and the mean with the same decimals."""
    if not math.isfinite(mean):
        return NOTHING
    if not math.isfinite(error) or error <= 0:
        return f"{significant(mean, sign=sign)} ± {'0' if error == 0 else NOTHING}"
    exponent = math.floor(math.log10(max(abs(mean), error)))
    if exponent < -4:
        return f"({with_error(mean / 10.0**exponent, error / 10.0**exponent, sign=sign)}) × {power_of_ten(exponent)}"
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{mean:{'+' if sign else ''}z.{decimals}f} ± {error:.{decimals}f}".replace("-", MINUS)


def scale_of(values: Iterable[float]) -> int:
    """Return the power of ten, a multiple of 3, in whose units a column of values reads best."""
    largest = max((abs(v) for v in values if math.isfinite(v)), default=0.0)
    return 3 * math.floor(math.log10(largest) / 3) if largest > 0 else 0


def unit_of(exponent: int) -> str:
    """Return the unit's name: nats times a power of ten."""
    return "nats" if exponent == 0 else f"{power_of_ten(exponent)} nats"


def seconds(value: float | None) -> str:
    """Return a time as text, such as 41 s, 3.5 min or 2.1 h."""
    if value is None:
        return NOTHING
    for name, size in (("h", 3600), ("min", 60)):
        if value >= 2 * size:
            return f"{value / size:.1f} {name}"
    return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"


def without_hidden(text: str) -> str:
    """Return the text with every character that has no ink, except the plain space, written out."""
    if text.isprintable():  # Python's word for text without any such character
        return text
    return "".join(c if c == " " else symbol_of(c) for c in text)


def visible(text: str) -> str:
    """Return a token with nothing hidden: spaces at its ends as ␣, a lone combining mark on a dotted circle."""
    if not text:
        return "⟨empty⟩"
    if len(text) > MOST_CHARACTERS:
        return f"{visible(text[:MOST_CHARACTERS])}… ({len(text):,} characters)"
    start = len(text) - len(text.lstrip(" "))
    end = len(text.rstrip(" "))
    middle = text[start:end]
    if middle and unicodedata.category(middle[0]) in COMBINING:
        middle = "◌" + middle
    return "␣" * start + without_hidden(middle) + "␣" * (len(text) - max(end, start))


def symbol_of(character: str) -> str:
    """Return one character, or its symbol or number where it has no ink."""
    if character in NAMED:
        return NAMED[character]
    if unicodedata.category(character) not in UNSEEN:
        return character
    return f"⟨U+{ord(character):04X}⟩"
