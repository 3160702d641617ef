"""A text while it is written, and what ends it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..scaling.texts import Text


@dataclass
class Row:
    """A text while it is written."""

    prompt: int
    temperature: float
    sample: int
    stream: int
    end: str = "length"

    def __post_init__(self) -> None:
        self.tokens: list[int] = []
        self.logprob = self.raw_logprob = self.entropy = 0.0

    @property
    def open(self) -> bool:
        return self.end == "length"

    def look(self, ends: Ends) -> None:
        """Has the last token ended it?"""
        if not self.open:
            return
        if self.tokens[-1] in ends.tokens:
            self.end = "eos"
        elif ends.strings and ends.first_in(ends.read(self.tokens[ends.tail :], False)) is not None:
            self.end = "stop"

    def text_with(self, ends: Ends) -> Text:
        text = ""
        if ends.tokenizer is not None:
            text = (
                ends.before_stop(self.tokens)
                if self.end == "stop"
                else ends.read([t for t in self.tokens if t not in ends.tokens], True)
            )
        n = len(self.tokens)
        return Text(
            self.prompt, self.temperature, self.sample, self.stream, text, self.tokens, self.logprob, self.raw_logprob,
            self.entropy / n, self.end,
        )  # fmt: skip


@dataclass(frozen=True)
class Ends:
    """What ends a text. A stop string may be, or hold, a special token, which texts themselves do not show."""

    tokens: set[int]
    strings: list[str]
    tokenizer: Any

    @property
    def tail(self) -> int:
        """From here on a stop string that the last token completes is seen, counted from the end.

        A character takes four tokens at most (its bytes), and what came before may have begun in the middle of one.
        """
        return -4 * max(map(len, self.strings)) - 8

    def read(self, tokens: list[int], skip_special_tokens: bool) -> str:
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)
        return text

    def first_in(self, text: str) -> int | None:
        """Where the first stop string in it begins."""
        return min((at for stop in self.strings if (at := text.find(stop)) >= 0), default=None)

    def before_stop(self, tokens: list[int]) -> str:
        """The text up to the first stop string: whole tokens, and the part of the next one that comes before it."""
        whole = self.read(tokens, False)
        kept = whole[: self.first_in(whole)]
        for n in range(len(tokens), -1, -1):
            head = self.read(tokens[:n], False)
            if kept.startswith(head):
                is_special = n < len(tokens) and not self.read(tokens[n : n + 1], True)
                return self.read(tokens[:n], True) + ("" if is_special else kept[len(head) :])
        return kept


def add(batch: list[Row], drawn: Any, step: int) -> None:
    """One transfer a step: the host must know who has ended."""
    if bool(drawn.status.any()):
        bad = [row for row, status in zip(batch, drawn.status.tolist()) if status and row.open]
        if bad:
            raise ValueError(
                f"every row of logits must hold a finite logit and no NaN; step {step} of prompt {bad[0].prompt} at temperature {bad[0].temperature:g} does not."
            )
    columns = (drawn.tokens, drawn.logprobs, drawn.raw_logprobs, drawn.entropy)
    for row, token, logprob, raw, entropy in zip(batch, *(column.tolist() for column in columns)):
        if row.open:
            row.tokens.append(token)
            row.logprob += logprob
            row.raw_logprob += raw
            row.entropy += entropy
