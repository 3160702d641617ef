"""Generated texts, one record for each sample, and files of them: JSON, one record a line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields


@dataclass(frozen=True)
class Text:
    """One sample. Log-probabilities and entropies are in nats; an end token counts, and so do the tokens of a stop string."""

    prompt: int  # index in the call
    temperature: float
    sample: int  # index among those of this prompt and temperature
    stream: int  # with the seed of the call, it repeats this text
    text: str  # without the end token, and up to the stop string
    tokens: list[int]
    logprob: float  # the sum of ln q(token): the distributions sampled from
    raw_logprob: float  # the sum of ln p(token), at temperature 1 and before any rule
    entropy: float  # the mean entropy, after temperature and before truncation
    end: str  # "eos", "stop" (a stop string) or "length"

    @property
    def mean_logprob(self) -> float:
        return self.logprob / len(self.tokens)

    @property
    def mean_raw_logprob(self) -> float:
        """The input of RPC and of perplexity votes."""
        return self.raw_logprob / len(self.tokens)


def save(texts: Iterable[Text], path: str | os.PathLike[str]) -> None:
    """Write the records, one a line."""
    with open(path, "w", encoding="utf-8") as file:
        for text in texts:
            file.write(json.dumps(asdict(text), ensure_ascii=False) + "\n")


def load(path: str | os.PathLike[str]) -> list[Text]:
    """Read what `save` wrote.

    Raises:
        ValueError: a line is not such a record; the message names it.
    """
    names = {field.name for field in fields(Text)}
    texts = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                record = None
            if not isinstance(record, dict) or set(record) != names:
                raise ValueError(
                    f"line {number} must be a JSON object with {', '.join(sorted(names))}; got {line[:80]!r}."
                )
            texts.append(Text(**record))
    return texts
