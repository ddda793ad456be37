"""The file system is the registry: a plugin is a file in its folder, its keyword-only arguments its options.

`models/mlp.py` holds ``def mlp(input_shape, num_classes, *, hidden_sizes: list[int] = ...)``; a strategy's
file holds a class of its name, whose ``__init__`` has them. Options are read from the source, so that validating
parameters imports neither torch nor plugins. `package.module:name` is the user's own: it alone is imported.
"""

import ast
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import Field

from lockstep import own_modules
from lockstep.errors import MissingPackage, ParametersError
from lockstep.files import printable

ROOT = Path(__file__).parent
KINDS = ("models", "datasets", "strategies", "transports", "compressors")
CLASSES = ("strategies", "transports", "compressors")  # their files hold one public class, else a function
REQUIRED = inspect.Parameter.empty  # the default of an option that has none

# What an option may not be called: keys that stand beside it, and what the program itself passes by position.
_TAKEN = {
    "models": {"name", "input_shape", "num_classes", "weights"},
    "datasets": {"name", "validation_fraction", "test_fraction", "augmentation", "seed"},
    "strategies": {"name", "group"},
    "transports": {"name", "group"},
    "compressors": {"name"},
}
# What the program passes by position.
_GIVEN = {
    "models": ("input_shape", "num_classes"),
    "datasets": ("seed", "test_fraction"),
    "strategies": ("group",),
    "transports": ("group",),
    "compressors": (),
}
_BUILTIN = (bool, int, float, str, list, dict)
_NAMESPACE: dict[str, Any] = {kind.__name__: kind for kind in _BUILTIN} | {
    "tuple": tuple,
    "Sequence": Sequence,
    "Literal": Literal,
    "Annotated": Annotated,
    "Field": Field,
    "Any": Any,
}


@dataclass(frozen=True)
class Plugin:
    """In an option's annotation: its value is itself something chosen by name, with options of its own.

    ``transport: Annotated[str | dict[str, Any], Plugin("transports")] = "shm"``
    """

    kind: str


@dataclass(frozen=True)
class Option:
    """One option of a plugin: its type (as an annotation), and its default or REQUIRED."""

    annotation: Any
    default: Any = REQUIRED


def folder(kind: str, root: Path = ROOT) -> Path:
    """Where the plugins of a kind stand."""
    assert kind in KINDS, kind
    return root / kind


def names(kind: str, root: Path = ROOT) -> list[str]:
    """The plugins that come with the package, sorted."""
    found = (path.stem for path in folder(kind, root).glob("*.py"))
    return sorted(name for name in found if not name.startswith("_") and name != "base")


def is_own(name: str) -> bool:
    """Whether a name means the user's own code: package.module:name."""
    return ":" in name


def schema(kind: str, name: str, root: Path = ROOT) -> dict[str, Option]:
    """The options of a plugin, in the order of its signature. Raises ParametersError for an unusable one."""
    if is_own(name):
        options = _options_of(_imported(name), name, kind)
        if clash := _TAKEN[kind] & options.keys():
            raise ParametersError(f"found {name!r}, whose option {min(clash)!r} has a name that is taken")
        return options
    assert name in names(kind, root), f"{kind} has no {name}"
    options = _options_in(folder(kind, root) / f"{name}.py", kind, name)
    assert not _TAKEN[kind] & options.keys(), f"{kind}/{name}.py: an option has a name that is taken"
    return options


def literal(kind: str, name: str, attribute: str) -> Any:
    """What a plugin that comes with the package declares of itself, read from its source; None where nothing."""
    if name not in names(kind):
        return None
    tree = ast.parse((folder(kind) / f"{name}.py").read_text(encoding="utf-8"), name)
    for node in _public_class(tree, name).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [attribute]:
            return ast.literal_eval(node.value)
    return None


def load(kind: str, name: str) -> Any:
    """Import a plugin and return its function or, for a strategy, its class."""
    if is_own(name):
        return _imported(name)
    assert name in names(kind), f"{kind} has no {name}"
    module = importlib.import_module(f"lockstep.{kind}.{name}")
    if kind not in CLASSES:
        return getattr(module, name)
    return getattr(module, _public_class(ast.parse(inspect.getsource(module)), name).name)


def origin(name: str) -> dict[str, str] | None:
    """The file that the user's own object was imported from, and its SHA-256; None where there is no file."""
    module = name.partition(":")[0]
    file = getattr(sys.modules.get(module), "__file__", None)
    if not isinstance(file, str):
        return None
    digest = own_modules.loaded_digest(module) or own_modules.digest_of(Path(file))
    return None if digest is None else {"name": name, "file": str(Path(file).absolute()), "sha256": digest}


def importable_from(path: Path) -> None:
    """Let the user's own modules be found in a folder: the one that the command was started in."""
    if str(path) not in sys.path:
        sys.path.append(str(path))  # last, so that a file there never hides a package


def require(module: str, package: str, extra: str, wanted_by: str) -> Any:
    """Import and return an optional module, or raise MissingPackage, which names the extra to install."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if f"{module}.".startswith(f"{error.name}."):
            raise MissingPackage(package, extra, wanted_by) from None
        raise  # the package is there, and broken


def _options_in(path: Path, kind: str, name: str) -> dict[str, Option]:
    tree = ast.parse(path.read_text(encoding="utf-8"), path.name)
    if kind in CLASSES:
        body = _public_class(tree, name).body
        function = next(_functions(body, "__init__"), None)
        if function is None:
            return {}  # the base's, which has no options
    else:
        function = next(_functions(tree.body, name), None)
        assert function is not None, f"{path}: no function {name}"
    options = {}
    for argument, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True):
        assert argument.annotation is not None, f"{path}: option {argument.arg} has no annotation"
        code = compile(ast.Expression(argument.annotation), str(path), "eval")
        names_known = {**_NAMESPACE, "Plugin": Plugin}
        annotation = eval(code, {"__builtins__": {}}, names_known)  # our own source, and these names alone
        value = REQUIRED if default is None else ast.literal_eval(default)
        options[argument.arg] = Option(_known_type(annotation), _plain(value))
    return options


def _functions(body: list[ast.stmt], name: str) -> Iterator[ast.FunctionDef]:
    return (node for node in body if isinstance(node, ast.FunctionDef) and node.name == name)


def _public_class(tree: ast.Module, name: str) -> ast.ClassDef:
    """The class named like the file: local_sgd.py holds LocalSgd; other classes of the file are its own matter."""
    wanted = name.replace("_", "")
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name.lower() == wanted]
    assert len(classes) == 1, f"{name}.py: {len(classes)} classes named like the file, one is expected"
    return classes[0]


def _imported(name: str) -> Callable[..., Any]:
    """The user's own object. Whatever its module raises becomes one line that says where."""
    module_name, _, attribute = name.partition(":")
    if not (all(part.isidentifier() for part in module_name.split(".")) and attribute.isidentifier()):
        raise ParametersError(f"found {name!r}, allowed: package.module:name")
    if module_name == "__main__":
        raise ParametersError(
            f"found {name!r}, which the ranks cannot import: they are processes of their own, and know nothing of a "
            f"notebook or of the script that started them; put {attribute} into a file, such as own.py, and name it "
            f"own:{attribute}"
        )
    try:
        module = importlib.import_module(module_name)
        own_modules.note_loaded()
    except ModuleNotFoundError as error:
        if f"{module_name}.".startswith(f"{error.name}."):
            raise ParametersError(f"found {name!r}, but there is no module {error.name}") from None
        raise ParametersError(f"found {name!r}, whose import failed {_where(error)}") from None
    except (Exception, SystemExit) as error:
        raise ParametersError(f"found {name!r}, whose import failed {_where(error)}") from None
    try:
        found = getattr(module, attribute)
    except AttributeError:
        raise ParametersError(f"found {name!r}, but {module_name} has no {attribute}") from None
    if not callable(found):
        raise ParametersError(f"found {name!r}, which is {type(found).__name__}, not a function or class")
    return found  # type: ignore[no-any-return]


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    file, line = (error.filename, error.lineno) if isinstance(error, SyntaxError) else (None, None)
    if file is None and frames:
        file, line = frames[-1].filename, frames[-1].lineno
    what = printable(" ".join(str(error).split()))
    return f"at {file}:{line}: {type(error).__name__}: {what}"


def _options_of(target: Callable[..., Any], name: str, kind: str) -> dict[str, Option]:
    try:
        signature = inspect.signature(target, eval_str=True)
    except Exception as error:  # an annotation is the user's code as well
        raise ParametersError(f"found {name!r}, whose signature cannot be read {_where(error)}") from None
    parameters = signature.parameters.values()
    plain = signature.replace(parameters=[each for each in parameters if each.kind is not each.KEYWORD_ONLY])
    try:
        plain.bind(*_GIVEN[kind])
    except TypeError:
        raise ParametersError(
            f"found {name!r}, which takes {signature}; allowed: what can be called with ({', '.join(_GIVEN[kind])}), "
            "and options by keyword after a *"
        ) from None
    options = {}
    for parameter in parameters:
        if parameter.kind is not parameter.KEYWORD_ONLY:
            continue
        default = _plain(parameter.default)
        annotation = parameter.annotation
        if annotation is parameter.empty:  # then the default tells
            annotation = type(default) if isinstance(default, bool | int | float | str) else Any
        try:
            options[parameter.name] = Option(_known_type(annotation), default)
        except TypeError as error:
            raise ParametersError(f"found {name!r}, whose option {parameter.name} has {error}") from None
    return options


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _known_type(annotation: Any) -> Any:
    """The annotation in terms of what YAML can hold (a sequence is a list), or TypeError."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in (bool, int, float, str, None, NoneType, list, dict, Any) or origin is Literal:
        return annotation
    if origin is Annotated:
        return Annotated[(_known_type(arguments[0]), *annotation.__metadata__)]
    if origin in (Union, UnionType):
        return Union[tuple(_known_type(part) for part in arguments)]  # noqa: UP007
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return list[_known_type(arguments[0])]  # type: ignore[misc]
    if origin is not None and isinstance(origin, type) and issubclass(list, origin) and len(arguments) == 1:
        return list[_known_type(arguments[0])]  # type: ignore[misc]
    if origin is dict and arguments[0] is str:
        return dict[str, _known_type(arguments[1])]  # type: ignore[misc]
    raise TypeError(
        f"the type {annotation}, allowed: bool, int, float, str, list[...], dict[str, ...], "
        "Literal[...], Annotated[..., Field(...)] and unions of them"
    )
