"""The jinja2 environment in which chat templates run.

A template comes with the model, so it is not trusted. The immutable sandbox of jinja2 hides attributes that
begin with an underscore and refuses to change what the template was given. On top of it this environment
meters work and size: loop iterations and calls are counted, and strings are measured before they are
multiplied, joined or formatted. That stops runaway templates; it is no wall against a determined author, who
can still pile up memory below the bounds.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from functools import wraps
from itertools import islice
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

_MAX_WIDTH = 100_000
_WIDE_FORMAT = re.compile(r"\d{6}")


class MessagesRefusedError(TemplateError):
    """The template called `raise_exception`."""


@dataclass(slots=True)
class Meter:
    """What a rendering may still do.

    Attributes:
        work: Loop iterations and calls left.
        max_chars: Longest string or list that an operation may make.
    """

    work: int
    max_chars: int

    def charge(self, amount: int) -> None:
        """Take from the work that is left."""
        self.work -= amount
        if self.work < 0:
            raise SecurityError("the template loops or calls too often")

    def check_size(self, size: int) -> None:
        """Refuse what would become too large."""
        if size > self.max_chars:
            raise SecurityError(f"the template makes a text or list longer than {self.max_chars}")


METER: ContextVar[Meter] = ContextVar("macmesh_template_meter")


class _GenerationTag(Extension):
    """`{% generation %}`, which marks the assistant's text for training, renders as its body."""

    tags = {"generation"}  # noqa: RUF012  jinja2's interface

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _TemplateNamespace(Namespace):
    """A namespace that stores no attribute beginning with an underscore."""

    def __init__(self, *arguments: Any, **attributes: Any) -> None:
        values = dict(*arguments, **attributes)
        for name in values:
            _check_name(name)
        super().__init__(values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox with the helpers that chat templates expect; render inside a set `METER`."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, now: Callable[[], datetime]) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag])
        self.filters = {name: _guarded(name, function) for name, function in self.filters.items()}
        self.filters |= {"tojson": _to_json, "_counted": _counted, "_joined": _joined}
        del self.globals["lipsum"]
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": lambda pattern: now().strftime(pattern),
            "namespace": _TemplateNamespace,
        }

    def compile_template(self, source: str) -> Any:
        """A `jinja2.Template` whose loops and concatenations are metered."""
        tree = self.parse(source)
        for loop in list(tree.find_all(nodes.For)):
            loop.iter = _filter_node(loop.iter, "_counted")
        _replace_concatenations(tree)
        tree.set_environment(self)
        return self.from_string(tree)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Every call in a template comes through here."""
        METER.get().charge(_cost((*args, *kwargs.values())))
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(owner, str):
            _check_growth(name, owner, args)
        if isinstance(obj, LoopContext) and args:  # A recursive loop goes over its argument.
            args = (_counted(context, args[0]), *args[1:])
        if obj is not self.globals["range"]:  # It has a bound of its own.
            _check_widths((*args, *kwargs.values()))
        return _checked(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """The operators that can make much out of little."""
        if operator == "*":
            for one, other in ((left, right), (right, left)):
                if isinstance(one, (str, list, tuple)) and isinstance(other, int):
                    METER.get().check_size(len(one) * max(other, 0))
        elif operator == "**" and (abs(left) > _MAX_WIDTH or abs(right) > 64):  # noqa: PLR2004  bits of a machine word
            raise SecurityError("the template raises to a power that is too large")
        elif operator == "%" and isinstance(left, str):
            _check_format(left)
        return _checked(super().call_binop(context, operator, left, right))

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Attribute access; a format text is checked before its `format` is handed out."""
        if isinstance(obj, str) and attribute in {"format", "format_map"}:
            _check_format(obj)
        return super().getattr(obj, attribute)


def _raise_exception(message: str) -> NoReturn:
    raise MessagesRefusedError(str(message))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON: jinja2's own filter escapes for HTML."""
    _check_widths((indent,))
    text = json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    METER.get().check_size(len(text))
    return text


@pass_context  # Keeps jinja2 from evaluating it while compiling.
def _counted(_: Context, items: Iterable[Any]) -> Iterable[Any]:
    """The items of a loop, paid for."""
    meter = METER.get()
    if not hasattr(items, "__len__"):
        items = list(islice(items, meter.work + 1))
    meter.charge(len(items))  # type: ignore[arg-type]  # it has a length now
    return items


@pass_context
def _joined(_: Context, items: list[Any]) -> str:
    """The `~` operator."""
    parts = [str(item) for item in items]
    METER.get().check_size(sum(map(len, parts)))
    return "".join(parts)


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter with its arguments and its result measured."""

    @wraps(function)
    def filtered(*arguments: Any, **named: Any) -> Any:
        if (
            METER.get(None) is None
        ):  # jinja2 folds constants while compiling; it falls back to the run when this raises.
            raise SecurityError("filters run when the template is rendered")
        METER.get().charge(_cost((*arguments, *named.values())))
        _check_widths((*arguments, *named.values()))
        texts = [argument for argument in arguments if isinstance(argument, str)]
        if name == "format" and texts:
            _check_format(texts[0])
        if name == "replace" and texts:
            _check_growth(name, texts[0], tuple(texts[1:]))
        if name == "join" and len(arguments) > 1 and hasattr(arguments[1], "__len__"):
            separator = str(named.get("d", arguments[2] if len(arguments) > 2 else ""))  # noqa: PLR2004
            _check_growth(name, separator, (arguments[1],))
        return _checked(function(*arguments, **named))

    return filtered


def _cost(arguments: tuple[Any, ...]) -> int:
    """What a call costs: long arguments are gone through, lists in Python's loops, texts much faster."""
    texts = sum(len(argument) for argument in arguments if isinstance(argument, str))
    items = sum(len(argument) for argument in arguments if isinstance(argument, (list, tuple, dict, range)))
    return 1 + items // 100 + texts // 100_000


def _check_growth(name: str, subject: str, arguments: tuple[Any, ...]) -> None:
    """Measure `replace` and `join` before they run: a result can be as long as the product of two texts."""
    if (
        name == "replace"
        and len(arguments) > 1
        and all(isinstance(argument, str) for argument in arguments[:2])
    ):
        METER.get().check_size(subject.count(arguments[0]) * len(arguments[1]))
    if name == "join" and arguments and hasattr(arguments[0], "__len__"):
        METER.get().check_size(
            sum(len(str(item)) for item in arguments[0]) + len(subject) * len(arguments[0])
        )


def _check_widths(values: Iterable[Any]) -> None:
    if any(isinstance(value, int) and abs(value) > _MAX_WIDTH for value in values):
        raise SecurityError(f"the template passes a number above {_MAX_WIDTH} to a function")


def _check_format(text: str) -> None:
    if _WIDE_FORMAT.search(text) or "*" in text:
        raise SecurityError("the template formats with a width that is too large or computed")


def _checked(result: Any) -> Any:
    if isinstance(result, (str, list, tuple)):
        METER.get().check_size(len(result))
    return result


def _check_name(name: object) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"a namespace attribute must not begin with an underscore, got {name!r}")


def _filter_node(value: Any, name: str) -> nodes.Filter:
    return nodes.Filter(value, name, [], [], None, None, lineno=value.lineno)


def _replace_concatenations(node: nodes.Node) -> None:
    """`a ~ b` becomes a filter call, innermost first."""
    for field, value in node.iter_fields():
        if isinstance(value, nodes.Node):
            _replace_concatenations(value)
            setattr(node, field, _metered(value))
        elif isinstance(value, list):
            for item in value:
                if isinstance(item, nodes.Node):
                    _replace_concatenations(item)
            setattr(node, field, [_metered(item) for item in value])


def _metered(value: Any) -> Any:
    if isinstance(value, nodes.Concat):
        return _filter_node(nodes.List(value.nodes, lineno=value.lineno), "_joined")
    return value


def plain_data(value: Any) -> Any:
    """The value rebuilt from exact JSON types: what a template may see.

    Raises:
        TypeError: It holds something else.
    """
    if value is None or type(value) in {str, int, float, bool}:
        return value
    if isinstance(value, Mapping):
        return {str(key): plain_data(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_data(item) for item in value]
    raise TypeError(f"a chat message may hold JSON data only, got {type(value).__name__}")
