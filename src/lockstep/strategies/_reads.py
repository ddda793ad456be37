"""Which modules run when a model reads a weight, as a pass shows: what only one part reads can be sharded with it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# What a tensor tells of itself without its values being read. Of what is missing here a module is only taken to read
# more than it does, and then it is sharded with a larger part of the model.
_DESCRIPTIONS = {
    "size",
    "dim",
    "numel",
    "stride",
    "element_size",
    "is_floating_point",
    "is_complex",
    "is_contiguous",
}
_VALUES = {"data", "T", "mT", "H", "mH", "real", "imag"}  # of the properties; all others describe


class Reads(TorchFunctionMode):
    """A context for a forward pass of ``module``, which notes who reads each parameter."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = module
        self._running: list[nn.Module] = []
        self._names = {id(parameter): name for name, parameter in module.named_parameters()}
        self._readers: dict[int, set[int]] = {}  # by parameter: the modules that ran at every read of it
        self._hooks: list[Any] = []
        self.sparse: list[str] = []  # weights whose gradients will be sparse

    def __enter__(self) -> Self:
        for part in self._module.modules():
            if isinstance(part, torch.jit.ScriptModule):  # takes no hooks
                continue
            self._hooks.append(part.register_forward_pre_hook(self._begin, prepend=True))
            self._hooks.append(part.register_forward_hook(self._end, always_call=True))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _begin(self, module: nn.Module, _: object) -> None:
        self._running.append(module)

    def _end(self, module: nn.Module, *_: object) -> None:
        while self._running and self._running.pop() is not module:
            pass

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if not _describes(func):
            self._note((args, kwargs))
            if _makes_sparse_gradients(func, args, kwargs or {}):
                self._note_sparse((*args, *(kwargs or {}).values()))
        return func(*args, **(kwargs or {}))

    def _note(self, value: Any) -> None:
        if isinstance(value, nn.Parameter):
            running = {id(module) for module in self._running}
            self._readers[id(value)] = self._readers.get(id(value), running) & running
        elif isinstance(value, list | tuple):
            for each in value:
                self._note(each)
        elif isinstance(value, dict):
            self._note(tuple(value.values()))

    def _note_sparse(self, values: Sequence[Any]) -> None:
        trained = [each for each in values if isinstance(each, Tensor) and each.requires_grad]
        self.sparse += [self._names.get(id(each), "a weight") for each in trained]

    def read_outside(self, part: nn.Module) -> str | None:
        """A parameter of a part that was read while that part did not run; None where there is none."""
        for parameter in part.parameters():
            if id(part) not in self._readers.get(id(parameter), {id(part)}):
                return self._names.get(id(parameter), "a parameter")
        return None


def _makes_sparse_gradients(
    func: Callable[..., Any], args: Sequence[Any], options: Mapping[str, Any]
) -> bool:
    if options.get("sparse") is True or options.get("sparse_grad") is True:
        return True
    return func is torch.embedding and len(args) > 4 and args[4] is True  # in its fifth place


def _describes(func: Callable[..., Any]) -> bool:
    name = getattr(func, "__name__", "")
    if name in ("__get__", "__set__"):  # of a property, such as Tensor.shape
        name = getattr(getattr(func, "__self__", None), "__name__", "")
        return name not in _VALUES
    return name in _DESCRIPTIONS
