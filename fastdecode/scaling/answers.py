r"""The answer that a text gives, as a string: equal numbers are equal strings, different numbers are different ones.

Nothing is rounded: decimals are digits and an exponent, quotients are `fractions.Fraction`. An expression, a list, a
range, a date or a time is an answer of its own, and never counts as one of the numbers in it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from fractions import Fraction

PADDING = 100  # zeros that are written out; a number that needs more is written as digits, "e", exponent
QUOTIENT = (
    48  # digits and zeros of each part of a quotient; its decimals then stay below the 640 digits that str() allows
)
EXPONENT = 18  # digits of an exponent; a longer one is not read as a number
WRAPPERS = 4  # levels of braces, \text{...} and $...$ that are taken off
FORMULA = 200  # characters; a longer formula is not taken as an answer

# ---- one spelling ----------------------------------------------------------------------------------------------------

DOLLAR = "\uff04"  # \$ is money; a bare $ may also be the edge of a formula
SAME: dict[int, str | int] = {
    # minus signs, and dashes used as such
    **dict.fromkeys(map(ord, "\u2212\u2010\u2011\u2012\u2013\ufe63\uff0d"), "-"),
    **dict.fromkeys(map(ord, "\u00a0\u2007\u2009\u202f\t~"), " "),
    **dict.fromkeys(map(ord, "\u2044\u2215\uff0f"), "/"),
    **str.maketrans("\uff0e\u066b\uff0c\u066c\uff05\uff0b\uff1d\uff08\uff09", "..,,%+=()"),
}
RAISED, LOWERED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "₀₁₂₃₄₅₆₇₈₉₊₋"
LEVEL = str.maketrans(RAISED + LOWERED, "0123456789+-" * 2)
SPELLINGS: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"(?![0-9])\d", lambda m: str(unicodedata.decimal(m[0]))),
    ("[¼-¾⅐-⅞]", lambda m: " " + unicodedata.normalize("NFKC", m[0]).replace("\u2044", "/")),
    (f"[{RAISED}]+", lambda m: "^" + m[0].translate(LEVEL)),
    (f"[{LOWERED}]+", lambda m: "_" + m[0].translate(LEVEL)),
    (r"\\\$", DOLLAR),
    (r"\\%", "%"),
    (r" ?\{ ?, ?\} ?|,(?:\\[!,;: ])+ ?", ","),  # thousands, as TeX sets them
    (r"\\[,;: ]|\\q?quad(?![A-Za-z])", " "),
    (r"\\!|\\(?:left|right|displaystyle|textstyle)(?![A-Za-z])", ""),
    (r"\\pm(?![A-Za-z]) ?", "±"),
    (r"\\approx(?![A-Za-z]) ?", "≈"),
    (r"\\pi(?![A-Za-z])", "π"),
    (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
    (r"\\sqrt ?(?:\{(\d+|[A-Za-z])\}|([0-9A-Za-z])(?!\d))", r"√\1\2"),
    (r" ?(?:\^ ?(?:\{ ?\\circ ?\}|\\circ(?![A-Za-z]))|\\degree(?![A-Za-z]))", "°"),
    (r" ?\\(?:text|mbox|textnormal) ?\{ ?(hundred|thousand|million|billion|trillion|dozen) ?\}", r" \1"),
    (" {2,}", " "),
]
PATTERNS = [(re.compile(pattern), spelling) for pattern, spelling in SPELLINGS]

PLAIN = r"(?:(?:[1-9]\d{0,2}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![\d.])\.\d+)"
_ARGUMENT = rf"(?:\{{ ?([-+]? ?{PLAIN}) ?\}}|(\d))"
# Not followed by what changes its meaning: \frac{1}{2}x, \frac{1}{2}^3, \frac123.
QUOTIENTS = re.compile(rf"\\frac ?{_ARGUMENT} ?{_ARGUMENT}(?![\w^({{/!√]|\\(?!text|mbox|[)\]\\])|\.\d)")


def _clean(text: str) -> str:
    r"""One spelling for what LaTeX and Unicode can spell in several ways; `\frac` of two numbers becomes a/b."""
    text = text.translate(SAME)
    for pattern, spelling in PATTERNS:
        text = pattern.sub(spelling, text)
    return QUOTIENTS.sub(_slash, text)


def _slash(match: re.Match[str]) -> str:
    before = match.string[match.start() - 1 : match.start()]
    if before and before in "^_./":
        return match[0]
    space = " " if before.isalnum() or before in ("}", ")") else ""  # 4\frac{4}{9} is 4 4/9, a mixed number
    return f"{space}{match[1] or match[2]}/{match[3] or match[4]}"


# ---- numbers ---------------------------------------------------------------------------------------------------------

MONEY = rf"[${DOLLAR}€£¥₹₩]"
SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
SCALE = rf"(?: ?(?P<scale>{'|'.join(SCALES)})(?![A-Za-z]))?"
_SPACED = r"[1-9]\d{0,2}(?: \d{3})+(?!\d| ?/)(?:\.\d+)?"
_TENS = r"10\^(?:\{ ?(?P<NAME>[-+]? ?\d+) ?\}|(?P<NAME_>[-+]?\d+))"
_TIMES = rf" ?(?:\\times(?![A-Za-z])|\\cdot(?![A-Za-z])|[×·⋅*x]) ?{_TENS.replace('NAME', 'times')}"
UNSIGNED = (
    rf"(?:{_TENS.replace('NAME', 'power')}"
    rf"|(?P<whole>\d+) (?P<part>0|[1-9]\d*)/(?P<of>\d+)"
    rf"|(?P<top>{PLAIN}) ?/ ?(?P<bottom>[-+]? ?{PLAIN})"
    rf"|(?P<real>{_SPACED}|{PLAIN})(?:[eE](?P<exponent>[-+]?\d+)(?!\w))?(?:{_TIMES})?)"
)
NUMBER = re.compile(rf"(?P<sign>[-+]?) ?(?:{MONEY} ?(?P<inner>[-+]?))? ?{UNSIGNED}\.?{SCALE}{MONEY}?")


def _number(text: str) -> str | None:
    """The canonical spelling of a text that is a number and nothing else."""
    m = NUMBER.fullmatch(text)
    if m is None:
        return None
    tens = (m["exponent"], m["power"] or m["power_"], m["times"] or m["times_"])
    if any(len(e or "") > EXPONENT for e in tens):
        return None
    shift = sum(int(e.replace(" ", "")) for e in tens if e) + SCALES.get(m["scale"], 0)
    negative = (m["sign"] == "-") != (m["inner"] == "-")
    if m["whole"]:
        return _mixed(negative, m["whole"], m["part"], m["of"], shift)
    if m["top"]:
        flipped = m["bottom"].startswith("-")
        return _quotient(negative != flipped, _decimal(m["top"], shift), _decimal(m["bottom"].lstrip("+- "), 0))
    return _written(negative, *_decimal(m["real"] or "1", shift))


def _decimal(text: str, shift: int) -> tuple[str, int]:
    """(digits, exponent) of text * 10^shift, without zeros at either end; of 0: ("0", 0)."""
    whole, _, rest = text.replace(",", "").replace(" ", "").partition(".")
    digits = (whole + rest).lstrip("0")
    short = digits.rstrip("0")
    return (short, shift - len(rest) + len(digits) - len(short)) if short else ("0", 0)


def _written(negative: bool, digits: str, exponent: int) -> str:
    sign = "-" if negative and digits != "0" else ""
    if 0 <= exponent <= PADDING:
        return sign + digits + "0" * exponent
    point = len(digits) + exponent
    if exponent < 0 < point:
        return f"{sign}{digits[:point]}.{digits[point:]}"
    if -PADDING <= point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    return f"{sign}{digits}e{exponent}"


def _quotient(negative: bool, top: tuple[str, int], bottom: tuple[str, int]) -> str | None:
    """A decimal if it ends, else p/q in lowest terms; of huge parts, the parts."""
    if bottom[0] == "0":
        return None
    if any(len(digits) + abs(exponent) > QUOTIENT for digits, exponent in (top, bottom)):
        return f"{_written(negative, *top)}/{_written(False, *bottom)}"
    value = Fraction(int(top[0])) / int(bottom[0]) * Fraction(10) ** (top[1] - bottom[1])
    return _rational(negative, value)


def _mixed(negative: bool, whole: str, part: str, of: str, shift: int) -> str | None:
    """4 4/9; None where the second number is no proper fraction: the two do not make one number then."""
    if max(len(whole), len(part), len(of)) > QUOTIENT or int(part) >= int(of):
        return None
    return _rational(negative, (int(whole) + Fraction(int(part), int(of))) * Fraction(10) ** shift)


def _rational(negative: bool, value: Fraction) -> str:
    rest, twos, fives = value.denominator, 0, 0
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    if rest > 1:
        return f"{'-' if negative else ''}{value}"
    places = max(twos, fives)
    return _written(negative, *_decimal(str(value.numerator * 10**places // value.denominator), -places))


# ---- units, and what stands around a number --------------------------------------------------------------------------

# Dropped behind a number. The field's graders do the same; what may change the number (dozen, pi, a.m.) is not here.
_UNITS = (
    "% percentage percent pct ° degrees degree deg dollars dollar cents cent euros euro USD EUR mm cm km inches inch in feet "
    "foot ft yards yard yd miles mile kilometers kilometer centimeters centimeter meters meter metres metre mg kg grams gram "
    "kilograms kilogram pounds pound lbs lb ounces ounce oz seconds second sec minutes minute min hours hour hr days day "
    "weeks week months month years year mph km/h m/s liters liter litres litre mL ml gallons gallon square cubic units unit "
    "people students ways points st nd rd th"
).split()
_WORD = rf"(?:(?:square|cubic|sq\.?) )?(?:{'|'.join(map(re.escape, sorted(_UNITS, key=len, reverse=True)))})"
_LETTER = "[mgshL]"  # a variable, if it is not set upright
_POWER = r"(?:\^\{?[23]\}?)?"
_FONT = r"\\(?:text|textbf|textit|textrm|textnormal|textup|mbox|mathrm|mathbf|mathit|rm|bf|operatorname)"
UNIT = re.compile(
    rf" ?(?:{_FONT} ?\{{ ?(?:{_WORD}|{_LETTER}){_POWER}\.? ?\}}|(?<!\\)(?<![A-Za-z]){_WORD}){_POWER}\.?\Z"
)
LONGEST_UNIT = 60

WRAPPER = re.compile(
    rf"(?:{_FONT})? ?\{{(?P<braces>[^{{}}]*)\}}|\$+(?P<dollars>[^$]*)\$+|\\[(\[](?P<math>.*)\\[)\]]", re.DOTALL
)
SYMBOL = re.compile(r"(?:[A-Za-zπ]|\\[A-Za-z]+)(?:_(?:\w|\{ ?\w{1,9} ?\})|\([^()=≈]{1,9}\))? ?[=≈] ?([^=≈]+)")
ENCLOSED = re.compile(r"\(([^()]*)\)")


def _measured(text: str) -> str | None:
    """A number, with or without a unit."""
    number = _number(text)
    if number is None and (unit := UNIT.search(text, max(0, len(text) - LONGEST_UNIT))):
        number = _number(text[: unit.start()].rstrip())
    return number


def _canonical(text: str) -> str:
    """The answer that a box or a formula holds, of cleaned text; "" if it holds none."""
    text = _unpunctuated(" ".join(text.split()))
    for _ in range(WRAPPERS):
        wrapper = WRAPPER.fullmatch(text)
        if wrapper is None:
            break
        text = _unpunctuated(wrapper[wrapper.lastgroup or 0].strip())
    if (named := SYMBOL.fullmatch(text)) is not None:  # x = 5
        text = named[1]
    enclosed = ENCLOSED.fullmatch(text)
    number = _measured(enclosed[1].strip() if enclosed else text)
    return number if number is not None else _expression(text)


def _unpunctuated(text: str) -> str:
    """Without a full stop or comma at the end; 1, 2, ... goes on, and dots alone say nothing."""
    bare = text.rstrip(" .,;")
    return text if bare and text.endswith("..") else bare


def _expression(text: str) -> str:
    """Spaces stay only where they part two words or numbers, also 1. 5 from 1.5."""
    return re.sub(r"(?<![\w.]) | (?![\w.])", "", text).replace(DOLLAR, "$")


# ---- boxes -----------------------------------------------------------------------------------------------------------

BRACES = re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])\s*(?P<brace>\{?)|\\.|[{}]", re.DOTALL)
BARE = re.compile(r"\\(?!boxed|fbox|framebox)[A-Za-z]+\d*|\(\w\)|[A-HJ-Z](?=[\s.,;:$\\]|\Z)")


def _boxes(text: str) -> tuple[list[tuple[int, int]], bool]:
    """The span of the content of each complete innermost box, and whether the text ends inside a box."""
    boxes: list[tuple[int, int]] = []
    open_boxes: list[int] = []  # depths
    begins: list[int] = []  # of each open brace
    innermost, cut_off = -1, False
    for token in BRACES.finditer(text):
        if token["brace"] is not None:
            if token["brace"]:
                begins.append(token.end())
                open_boxes.append(len(begins))
                innermost = token.end()
            elif bare := _bare(text, token.end()):
                boxes.append((token.end(), bare))
                innermost = -1
            elif bare is None:
                cut_off = True
        elif token[0] == "{":
            begins.append(token.end())
        elif token[0] == "}" and begins:
            begin = begins.pop()
            if open_boxes and open_boxes[-1] > len(begins):
                open_boxes.pop()
                if begin == innermost:
                    boxes.append((begin, token.start()))
    return boxes, cut_off or bool(open_boxes)


def _bare(text: str, start: int) -> int | None:
    r"""Where the argument of \boxed 5 ends; None: beyond the end of this text; 0: there is no argument, the text speaks of boxes."""
    signed = start + (text[start : start + 1] in ("-", "+", "\u2212"))
    argument = ATTACHED.match(text, signed) or BARE.match(text, signed)
    end = argument.end() if argument else 0
    while end and text.startswith("{", end):  # the arguments of a command
        depth = 0
        for token in BRACES.finditer(text, end, end + FORMULA):
            depth += {"{": 1, "}": -1}.get(token[0], 0)
            if depth == 0:
                break
        if depth:
            return None
        end = token.end()
    return end


# ---- the last number of a text ---------------------------------------------------------------------------------------

_ANY = re.sub(r"\?P<\w+>", "?:", UNSIGNED)
_JOINT = rf"%?(?:[-/:×·⋅,.]|\*\*?|[\^_]\{{?){MONEY}?[-+]?"
# A number with what is attached to it: 3/4, 5-10, 12:30, 2^{10}, 204_5, 5x. It counts as one answer.
ATTACHED = re.compile(
    r"(?<![\d^_])(?<![\^_][-+{])(?<![\^_]\{[-+])"
    rf"(?:(?<![\w)\]}}°%!])[-+±](?=[\d.√{MONEY[1:-1]}])|(?:(?<==)|(?<== ))- )?(?:{MONEY} ?[-+]?)?"
    rf"√?{_ANY}(?:{_JOINT}{_ANY}\}}?)*"
    rf"(?: ?(?:{'|'.join(SCALES)}|dozen)(?![A-Za-z])|[A-Za-zπ√]\w*(?:\^[23])?|[%°])?"
)
CURRENCIES = ("Rs", "USD", "EUR", "GBP", "INR", "CAD", "AUD", "US", "R")
DELIMITER = re.compile(r"\\\\|\\[()\[\]]|\$\$?")
CLOSED_BY = {"\\(": "\\)", "\\[": "\\]", "$": "$", "$$": "$$"}
COMMAND = re.compile(r"\\(?:math|sqrt|frac|binom|overline|cdot|times|log|ln)")
PROSE = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{2,} [A-Za-z]{2,}")


def _last_number(text: str) -> str | None:
    """The last number, with what is attached to it; if it stands in a formula, what the formula comes to."""
    for match in reversed(list(ATTACHED.finditer(text))):
        if not _ends_a_word(text, match.start()):
            break
    else:
        return None
    place = match.end() - 1  # its start may be the $ of a formula
    for begin, end in _formulas(text):
        if begin <= place < end:
            begin = max(begin, 1 + max(text.rfind(sign, begin, end) for sign in "=≈"))
            if begin <= place and end - begin <= FORMULA and not PROSE.search(text, begin, end):
                return _canonical(text[begin:end])
    return _attached(text, match)


def _attached(text: str, match: re.Match[str]) -> str:
    """What a number outside formulas belongs to."""
    begin, end = match.span()
    if text[begin - 1 : begin] == "{" or COMMAND.match(text, end):  # a part of LaTeX without dollars
        before, after = (
            re.split(r"\s", text[max(0, begin - FORMULA) : begin]),
            re.split(r"\s", text[end : end + FORMULA]),
        )
        return _canonical(before[-1] + match[0] + after[0])
    if "." in match[0] and text.startswith(("...", "\u2026", "\\ldots", "\\dots"), end):
        return _expression(match[0]) + "..."
    number = _measured(match[0])
    if number is None and not re.search(MONEY, match[0]):  # 5m, 5s; but $5m is millions
        number = _number(re.sub(rf"{_LETTER}{_POWER}\Z", "", match[0]))
    return _expression(match[0]) if number is None else number


def _ends_a_word(text: str, place: int) -> bool:
    r"""Whether letters stand right before, as in H2; \cdot2 and USD5 are no such words."""
    start = place
    while start and text[start - 1].isascii() and (text[start - 1].isalpha() or text[start - 1] == "\\"):
        start -= 1
    word = text[start:place]
    return bool(word) and "\\" not in word and word not in CURRENCIES


def _formulas(text: str) -> Iterator[tuple[int, int]]:
    """The insides of $...$, $$...$$, \\(...\\) and \\[...\\]. A $ may be money: one after a space or before a digit closes none."""
    opened: tuple[str, int] | None = None
    for mark in DELIMITER.finditer(text):
        kind = mark[0]
        if opened and kind == CLOSED_BY[opened[0]] and (kind != "$" or _closes(text, opened[1], mark)):
            yield opened[1], mark.start()
            opened = None
        elif kind in CLOSED_BY and not (kind == "$" and text[mark.end() : mark.end() + 1].isspace()):
            opened = (kind, mark.end())
        elif kind == "$":
            opened = None


def _closes(text: str, begin: int, mark: re.Match[str]) -> bool:
    inside, after = text[begin : mark.start()], text[mark.end() : mark.end() + 1]
    return not inside[-1:].isspace() and "\n" not in inside and not after.isdigit()


def last_answer(text: str) -> str | None:
    r"""The content of the last complete `\boxed{...}` that is not empty, else the last number of the text.

    A box is `\boxed`, `\fbox` or `\framebox`, with braces or without (`\boxed 5`). If the text ends inside a box and holds no
    complete one, it was cut off and gives no answer.

    Numbers are exact and have one spelling: 1/2, `\frac{1}{2}` and 0.50 are "0.5", 2/6 is "1/3", 1.5e3, `1{,}500` and
    "1.5 thousand" are "1500". Signs of money, percent and units behind a number are dropped: 50% is "50", not "0.5". A number
    with more attached is not that number: 5-10, 12:30, 2^10 and `3\sqrt{2}` stay themselves, without needless spaces. So do
    expressions in a box; nothing is computed.

    Args:
        text: any string. Time grows in proportion to its length.

    Returns:
        The answer, or None if there is none.
    """
    boxes, cut_off = _boxes(text)
    for begin, end in reversed(boxes):
        if answer := _canonical(_clean(text[begin:end])):
            return answer
    return None if cut_off else _last_number(_clean(text))
