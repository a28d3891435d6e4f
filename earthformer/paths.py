"""Two formulations of the same mathematics: a fast one, the default, and a plain one to count and to compare with.

The plain formulation is the one the papers' costs were counted on: explicit matmul, softmax, matmul with
masks, projections of padded tokens, nearest up-sampling followed by a convolution. The fast one gives the
same values to float32 round-off and the same gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


class TwoPaths(nn.Module):
    """A module whose ``forward`` has a fast and a plain formulation.

    Attributes:
        plain: whether ``forward`` runs the plain formulation; set by `reference`.
    """

    plain: bool = False

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Return a context in which this module and all modules inside it run the plain formulation.

        Floating-point operations and multiply-adds that are to stand beside published ones are counted inside
        this context; the contexts of one module may be nested.
        """
        switched = [module for module in self.modules() if isinstance(module, TwoPaths) and not module.plain]
        for module in switched:
            module.plain = True
        try:
            yield
        finally:
            for module in switched:
                module.plain = False
