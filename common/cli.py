"""Command lines of recipes: flags from a dataclass over a YAML file, errors as one plain message."""

import codecs
import contextlib
import dataclasses
import locale
import logging
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tunebook.common.distributed import check_launch, cores_are_busy, is_main_process
from tunebook.common.errors import UserError, nearest
from tunebook.common.flags import redaction
from tunebook.common.process import faults, progress, stopping, terminal
from tunebook.common.run_folder import lock

# Ways to shard a model over GPUs: name, variable of `accelerate launch`, fields of TrainingArguments.
SHARDING = (
    ("FSDP", "ACCELERATE_USE_FSDP", ("fsdp", "fsdp_config")),
    ("DeepSpeed", "ACCELERATE_USE_DEEPSPEED", ("deepspeed",)),
)
_NUMBERS = {"float | None": 0.0, "int | None": 0}


def run(main: Callable[[Any], Any], args_class: type, argv: list[str] | None = None, goes_on: bool = True) -> None:
    """Parse the command line into `args_class`, call `main`, and end the process with its exit code.

    `--config FILE.yaml` gives values for any field; flags win over it. `--debug` shows the traceback of an error.
    A launch that shards the model over several GPUs is refused here, before anything heavy is imported.

    Args:
        goes_on: it does not end where nobody reads what it prints (`| head`), for what it makes is a folder.
    """
    terminal.protect(goes_on)
    stopping.listen()
    stopping.follow_launcher()
    _environment()
    if not is_main_process():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  one report of a run; errors are on stderr
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    argv = [word for word in argv if word != "--debug"]
    args = None
    try:
        args = parse(args_class, argv, sys.modules[main.__module__].__doc__ or "")
        check_launch(several=getattr(args_class, "SEVERAL_PROCESSES", False))
        _refuse_unsupported(getattr(args, "set", []))
        main(args)
    except SystemExit:
        raise
    except BaseException as error:
        if debug:
            traceback.print_exc()
        progress.stop()
        text, code = faults.ending(error, getattr(args, "output_dir", None), debug)
        sys.stdout.flush()  # so that the message is the last thing said
        if text:
            print(redaction.without_secrets(text), file=sys.stderr)  # a message may quote a value that was typed
        sys.exit(code)
    finally:
        lock.release()
        sys.stdout.flush()


def _refuse_unsupported(overrides: list[str]) -> None:
    """Refuse FSDP and DeepSpeed, and overrides that would save another template or end token than is trained.

    The model is loaded, forecast and sampled from whole in every process; nothing here works on shards.

    Raises:
        UserError: the launch or an override asks for one of them.
    """
    fields = [str(override).partition("=")[0] for override in overrides]
    for name, variable, sharding_fields in SHARDING:
        requests = [f"--set {field}" for field in fields if field in sharding_fields]
        if os.environ.get(variable, "false").lower() in ("1", "true"):
            requests.insert(0, f"{variable}={os.environ[variable]}, as accelerate launch sets it")
        if requests:
            raise UserError(
                f"{requests[0]}: {name} is not supported yet; launch with recipes/accelerate/ddp.yaml (the whole model "
                f"on every GPU), and where it does not fit one GPU, take a base in 4 bits (qlora_alpaca)"
            )
    for field in fields:
        if field in ("eos_token", "chat_template_path"):
            raise UserError(
                f"--set {field}: it would change what is saved, after the rows have been made for what trains. The end "
                "of a turn is the template's own, and is saved as the end token; the template is chosen in the recipe "
                "(tunebook cp makes a copy)"
            )


def _environment() -> None:
    """Settings that must be in place before the training libraries are imported; what the user has set stays."""
    for name, value in {
        "UNSLOTH_DISABLE_STATISTICS": "1",  # no telemetry
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "UNSLOTH_COMPILE_LOCATION": str(_home() / ".cache" / "tunebook" / "unsloth"),  # not the working directory
        "TOKENIZERS_PARALLELISM": "true",
        "PYTHONWARNINGS": "ignore::FutureWarning",
    }.items():
        os.environ.setdefault(name, value)
    if cores_are_busy():  # read by torch: threads that wait leave their core instead of holding it
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in os.environ:  # torch refuses both
        os.environ.setdefault("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")  # torch.load reads no code, whoever calls it
    _utf8()
    # It would like a kernel from the Hub for the CPU; without one it uses its own, and the result is the same.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    if not progress.on_terminal():  # bars that others draw fill a log file
        os.environ.setdefault("TQDM_DISABLE", "1")


def _utf8() -> None:
    """Let libraries read their own files: they name no encoding, and in the locale C it is ASCII."""
    for name in ("C.UTF-8", "en_US.UTF-8"):
        if codecs.lookup(locale.getpreferredencoding(False)).name == "utf-8":
            return
        with contextlib.suppress(locale.Error):
            locale.setlocale(locale.LC_CTYPE, name)


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # no HOME, and a user without an entry
        return Path(tempfile.gettempdir())


def parse(args_class: type, argv: list[str], doc: str = "") -> Any:
    """The dataclass, filled from --config and flags. Unknown flags go into its field `rest`, where it has one.

    Raises:
        UserError: for a config file that is missing, is not YAML, or names a field that does not exist.
    """
    import tyro

    from tunebook.common.flags import aliases, help_text

    config, argv = _take_config(argv)
    names = {field.name for field in dataclasses.fields(args_class)}
    argv = aliases.words(argv, names)
    columns = "Columns of another name: --dataset my.csv instruction=question output=answer. " * ("dataset" in names)
    description = (
        f"{doc}\n\n{columns}--config FILE.yaml sets any of these; flags win over it. --debug shows tracebacks."
    )
    default = _defaults(args_class, config)
    unknown = hasattr(default, "rest")
    steers = any(map(terminal.STEERING.search, [*argv, *_texts(default)]))
    with help_text.uncolored() if steers else contextlib.nullcontext(), _help(argv), _hint(argv, args_class):
        parsed: Any = tyro.cli(
            args_class, args=argv, description=description, default=default, return_unknown_args=unknown,
            use_underscores=True, registry=help_text.registry(),
        )  # fmt: skip
    return dataclasses.replace(parsed[0], rest=parsed[1]) if unknown else aliases.nothing(parsed)


def _texts(args: Any) -> list[str]:
    """Texts among the values of a dataclass."""
    values = vars(args).values()
    return [str(word) for value in values for word in (value if isinstance(value, list) else [value])]


@contextlib.contextmanager
def _help(argv: list[str]) -> Iterator[None]:
    """Where help is asked for: cleaned."""
    from tunebook.common.flags import help_text

    if not {"-h", "--help"} & set(argv):
        yield
        return
    out = sys.stdout
    with help_text.cleaned(out) as kept:
        try:
            yield
        finally:
            text = help_text.clean(kept.getvalue())
            out.draw(text) if isinstance(out, terminal.Stream) else out.write(text)


@contextlib.contextmanager
def _hint(argv: list[str], args_class: type) -> Iterator[None]:
    """Where a recipe is given a flag that it does not have: what stands in its text, or in the trainer's config."""
    try:
        yield
    except SystemExit as end:
        known = {field.name for field in dataclasses.fields(args_class)}
        flags = [word[2:].partition("=")[0].replace("-", "_") for word in argv if word.startswith("--")]
        others = [name for name in flags if name.removeprefix("no_") not in {*known, "help"}]
        if end.code and hasattr(args_class, "SEVERAL_PROCESSES") and others:
            print(
                f"--{others[0]}: what stands in a recipe's text, such as the template, is changed in a copy "
                "(tunebook cp RECIPE my_recipe.py); other fields of the trainer's config are --set NAME=VALUE",
                file=sys.stderr,
            )
        raise


def _take_config(argv: list[str]) -> tuple[str | None, list[str]]:
    for place, word in enumerate(argv):
        if word == "--config":
            if place + 1 == len(argv):
                raise UserError("--config needs a file: --config my_run.yaml")
            return argv[place + 1], argv[:place] + argv[place + 2 :]
        if word.startswith("--config="):
            return word.partition("=")[2], argv[:place] + argv[place + 1 :]
    return None, argv


def _defaults(args_class: type, config: str | None) -> Any:
    if config is None:
        return args_class()
    import yaml

    from tunebook.common.flags import aliases

    try:
        text = Path(config).read_text(encoding="utf-8")
        values = yaml.safe_load(text) or {}
    except OSError as error:
        raise UserError(f"--config {config}: {error.strerror}; name a YAML file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"--config {config} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except (yaml.YAMLError, RecursionError) as error:
        words = " ".join(str(error).split())
        raise UserError(f"--config {config} is not YAML of lines `name: value`: {words}") from None
    if not isinstance(values, dict):
        raise UserError(f"--config {config}: expected lines of `name: value`, found a {type(values).__name__}")
    fields = {field.name: field for field in dataclasses.fields(args_class)}
    default, problems = args_class(), []
    values = {str(name).replace("-", "_"): value for name, value in values.items()}
    values = aliases.values(values, fields)
    for name, value in values.items():
        if name not in fields:
            problems.append(f"{name}: there is no such flag{nearest(name, fields)}")
            continue
        try:
            values[name] = _convert(value, getattr(default, name), str(fields[name].type))
        except (TypeError, ValueError, OverflowError):
            kind = getattr(fields[name].type, "__name__", str(fields[name].type))
            problems.append(f"{name}: {str(value)[:80]!r} is not of type {kind} (default {getattr(default, name)!r})")
    if problems:
        raise UserError(f"--config {config}:\n  " + "\n  ".join(problems))
    return dataclasses.replace(default, **values)


def _convert(value: Any, default: Any, annotation: str) -> Any:
    """`value` as the type of `default`; YAML reads 2e-4 as text, so numbers in text are accepted. A default of None
    stands for a value that is chosen later."""
    if default is None:
        return None if value is None else _convert(value, _NUMBERS.get(annotation, ""), annotation)
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise TypeError
        return value
    if isinstance(default, (list, tuple)):
        words = value if isinstance(value, list) else [value]
        return type(default)(_convert(word, default[0] if default else "", annotation) for word in words)
    if value is None or isinstance(value, (bool, dict, list)):
        raise TypeError
    if isinstance(default, int) and float(value) != int(float(value)):
        raise ValueError
    if isinstance(default, (int, float)):
        return type(default)(float(value))
    return str(value)


def values(pairs: list[str], config_class: type, written: set[str]) -> dict[str, Any]:
    """`NAME=VALUE` overrides as values of the fields of a dataclass.

    Args:
        pairs: values are read as YAML: 1e-4, true, null, [a, b], {a: 1e-4}.
        written: fields that the recipe has flags for; refused here, so that no value has two sources.

    Raises:
        UserError: an unknown name (with the nearest real one), a missing =, a value of another type, or a name that
            has its own flag.
    """
    known = {field.name: field for field in dataclasses.fields(config_class)}
    parsed: dict[str, Any] = {}
    problems = []
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            problems.append(f"{pair!r}: expected NAME=VALUE")
        elif name in written:
            problems.append(f"{name}: this recipe has a flag for it, --{name} {text}")
        elif name not in known:
            problems.append(f"{name}: {config_class.__name__} has no such field{nearest(name, known)}")
        else:
            try:
                parsed[name] = _typed(text, str(known[name].type))
            except ValueError as error:
                problems.append(f"{name}: {text!r} is {error}")
    if problems:
        raise UserError("--set:\n  " + "\n  ".join(problems))
    return parsed


def _typed(text: str, annotation: str) -> Any:
    """A value as typed, of the type that a field's annotation names.

    Raises:
        ValueError: it is of none of them; says what it is not.
    """
    import yaml

    try:
        value = _numbers(yaml.safe_load(text))
    except yaml.YAMLError:
        value = text
    kinds = set(re.findall(r"\w+", annotation))
    if value is None and "None" in kinds:
        return value
    for of, name, words in ((list, "list", {"list", "tuple", "Any"}), (dict, "map", {"dict", "Any"})):
        if isinstance(value, of):
            if not kinds & words:
                raise ValueError(f"a {name}, where one value belongs")
            return value
    if isinstance(value, bool) and "bool" in kinds:
        return value
    if "str" in kinds or not kinds & {"bool", "int", "float"}:
        # eval_strategy=no is a word, although YAML reads it as false; 'no' is one, too
        return value if isinstance(value, str) and not isinstance(_numbers(text), float) else text
    if not kinds & {"int", "float"}:
        raise ValueError("not true or false")
    if isinstance(value, (bool, str)) or value is None:
        raise ValueError("not a number")
    if "float" in kinds:
        return value
    if value != int(value):
        raise ValueError("not a whole number")
    return int(value)


def _numbers(value: Any) -> Any:
    """What YAML has read, with numbers where it reads text: 1e-4 has no dot, so to YAML 1.1 it is a word."""
    if isinstance(value, dict):
        return {name: _numbers(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_numbers(inner) for inner in value]
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        return float(value)
    return value
