"""Texts during generation: recorded from `generate`, and shown on a terminal or printed into a pipe."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from ..hf import SamplerLogitsProcessor


@dataclass
class Story:
    """One row of the batch: its title, and its tokens up to the one that ended it; what `generate` adds after is padding."""

    title: str
    tokens: list[int] = field(default_factory=list)
    seconds: float = 0.0  # from the start of generate() to the last of these tokens, so reading the prompt counts
    ended: bool = False


class Recorder:
    """A streamer: `generate` hands it the prompt, and then the tokens of each step."""

    def __init__(self, stories: list[Story], stop: list[int], printer: Printer | None = None):
        self.stories, self.stop, self.printer = stories, stop, printer
        self.started: float | None = None

    def put(self, tokens: torch.Tensor) -> None:
        now = time.perf_counter()
        if self.started is None:  # the prompt
            self.started = now
            return
        for story, token in zip(self.stories, tokens.tolist()):
            if not story.ended:
                story.tokens.append(token)
                story.seconds = now - self.started
                story.ended = token in self.stop
                if self.printer is not None:
                    self.printer.put(token)

    def end(self) -> None:
        if self.printer is not None:
            self.printer.end()


class Printer:
    """Prints a text during generation: after each token, the characters that it adds.

    A token alone does not determine them: it may be a part of a character, and the space before it depends on its neighbours. So
    it is decoded together with the tokens since the last print but one, and the characters already printed are left out. The cost
    of a token does not grow with the text.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.tokens: list[int] = []
        self.first = self.printed = 0  # the tokens of the last printed piece
        self.begun = False

    def put(self, token: int) -> None:
        self.tokens.append(token)
        added = self._added()
        if added and not added.endswith("\N{REPLACEMENT CHARACTER}"):
            self._print(added)
            self.first, self.printed = self.printed, len(self.tokens)

    def end(self) -> None:
        self._print(self._added() + "\n")

    def _added(self) -> str:
        before = self._decoded(self.tokens[self.first : self.printed])
        return self._decoded(self.tokens[self.first :])[len(before) :]

    def _decoded(self, tokens: list[int]) -> str:
        # A clean-up looks at neighbours on both sides ("it 's"), and what is printed cannot be taken back.
        return self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _print(self, piece: str) -> None:
        piece = piece if self.begun else piece.lstrip(" \n")
        self.begun = self.begun or bool(piece)
        print(piece, end="", flush=True)


class View:
    """The stories on the screen: below each other, or side by side to be compared."""

    def __init__(self, tokenizer: Any, stories: list[Story], max_new_tokens: int, side_by_side: bool):
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self.tokenizer, self.stories, self.side_by_side = tokenizer, stories, side_by_side
        self.bar = Progress(BarColumn(), MofNCompleteColumn(), TextColumn("tokens, {task.fields[rate]:.1f} tokens/s"))
        self.task = self.bar.add_task("", total=max_new_tokens * len(stories), rate=0.0)

    def texts(self) -> Any:
        from rich.console import Group
        from rich.panel import Panel
        from rich.table import Table
        from rich.text import Text

        panels = []
        for story in self.stories:
            text = self.tokenizer.decode(story.tokens, skip_special_tokens=True).strip()
            panels.append(Panel(Text(text), title=Text(story.title)))
        if not self.side_by_side:
            return Group(*panels)
        columns = Table.grid(expand=True)
        for _ in panels:
            columns.add_column(ratio=1)
        columns.add_row(*panels)
        return columns

    def growing(self) -> Any:
        from rich.console import Group

        done = sum(len(story.tokens) for story in self.stories)
        seconds = max(story.seconds for story in self.stories)
        self.bar.update(self.task, completed=done, rate=done / seconds if seconds else 0.0)
        return Group(self.texts(), self.bar)


def summary(stories: list[Story], drawn_by: list[tuple[SamplerLogitsProcessor, int]]) -> Any:
    """Means over a story's own tokens: the entropy before truncation, and how many tokens it left to draw from."""
    from rich.table import Table

    table = Table("", "tokens", "tokens/s", "entropy (nats)", "kept")
    for story, (sampler, row) in zip(stories, drawn_by):
        own = sampler.samples[: len(story.tokens)]
        entropy = sum(float(step.entropy[row]) for step in own if step.entropy is not None) / len(own)
        kept = sum(int(step.kept[row]) for step in own) / len(own)
        table.add_row(story.title, str(len(own)), f"{len(own) / story.seconds:.1f}", f"{entropy:.2f}", f"{kept:.1f}")
    return table
