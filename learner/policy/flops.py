"""What work costs, in floating-point operations: counted once, then known.

By torch's own formulas for matrix products, convolutions and attention, forward and backward; what
is done element by element counts nothing, nor does a kernel that has no formula.
"""

import sys
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class FlopMeter:
    """Adds up the cost of work that comes again and again; changes no bit of what it computes.

    Attributes:
        total: floating-point operations so far.
    """

    def __init__(self) -> None:
        self.total = 0
        self._known: dict[Hashable, int] = {}

    @contextmanager
    def counted(self, kind: Hashable) -> Iterator[None]:
        """Counts the block; one that raises costs nothing.

        Args:
            kind: of work that always costs the same. Its first block is looked at, which takes
                longer; later ones are as quick as without a meter.
        """
        if self.knows(kind):
            yield
        else:
            with self.looking(kind):
                yield
        self.add(kind)

    def knows(self, kind: Hashable) -> bool:
        """Whether work of that kind has been looked at."""
        return kind in self._known

    @contextmanager
    def looking(self, kind: Hashable) -> Iterator[None]:
        """Learns from the block what work of a kind costs."""
        with _uncompiled(), _Counting() as counting:
            yield
        self._known[kind] = counting.flops

    def add(self, kind: Hashable) -> None:
        """Adds work of a kind that is known."""
        self.total += self._known[kind]


class Metered:
    """A network without autograd whose calls are counted, each shape by a call of its own.

    Its result is dropped: without autograd, counting takes composite operations apart, and no bit
    of what is sampled may depend on whether it was counted.
    """

    def __init__(self, network: Callable[..., Tensor], meter: FlopMeter) -> None:
        self._network = network
        self._meter = meter

    def __call__(self, x: Tensor, *others: Any) -> Tensor:
        kind = self, tuple(x.shape)
        if not self._meter.knows(kind):
            with self._meter.looking(kind):
                self._network(x, *others)
        self._meter.add(kind)
        return self._network(x, *others)


def _uncompiled() -> AbstractContextManager[object]:
    """Within it nothing is compiled: what is has no operations to look at."""
    if "torch._dynamo" not in sys.modules:  # slow to import, and not there before it is needed
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


class _Counting(TorchDispatchMode):
    """Looks at every operation.

    torch's own `FlopCounterMode` takes apart what autograd would have left whole, and then a
    gradient is rounded differently. Without autograd nobody has taken composite ones apart.
    """

    flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named, formula = kwargs or {}, flop_registry.get(func._overloadpacket)
        if formula is None and torch.is_inference_mode_enabled():
            with self:
                result = func.decompose(*args, **named)
            if result is not NotImplemented:
                return result
        result = func(*args, **named)
        if formula is not None:
            self.flops += formula(*args, **named, out_val=result)
        return result
