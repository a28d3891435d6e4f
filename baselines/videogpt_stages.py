"""Training stages of VideoGPT: the interface, and the transformer's; the other is `baselines.vqvae.VQVAEStage`.

Yan, Zhang, Abbeel and Srinivas, "VideoGPT: Video Generation using VQ-VAE and Transformers", 2021, arXiv:2104.10157.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.code_transformer import CodeTransformer
from baselines.masking import filled
from baselines.vqvae import known_share, share_weighted_mean
from baselines.weights import load_strictly

Encode = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From frames `(B, T, H, W, C)` to their codes `(B, L)` and the vectors of these `(B, L, D)`."""


@dataclass(frozen=True)
class Stage:
    """One training of the model.

    Attributes:
        name: Of the stage.
        module: What is trained; it shares its network with the model. It has
            `training_loss(context, target, *, step, total_steps)` -> {name: summand} or loss, and
            `validation_loss(context, target)`, which draws nothing at random.
        part: The network that it trains.
        depends_on: Hyperparameters that its weights depend on, besides those of earlier stages.
        prepare: Called once, before the training, with contexts and targets of the whole training split.
    """

    name: str
    module: nn.Module
    part: nn.Module
    depends_on: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[Iterable[Sequence[Tensor]]], None] | None = None

    def load(self, path: str | Path) -> None:
        """Copies weights of the network into it, from a file that holds them alone or beside other parts of a model.

        Raises:
            OSError: the file cannot be read.
            ValueError: it holds no weights, or such as do not fit; everything that differs is named.
        """
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise ValueError(f"{path}: expected tensors saved by torch.save") from error
        state = content.get("state_dict", content) if isinstance(content, dict) else {}
        prefix = next((name + "." for name, part in self.module.named_children() if part is self.part), "")
        own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        load_strictly(self.part, own or state)


class TransformerStage(nn.Module):
    """Trains the transformer on the codes that the trained VQ-VAE gives target frames."""

    def __init__(self, transformer: CodeTransformer, encode: Encode) -> None:
        super().__init__()
        self.transformer = transformer
        self.encode = encode

    def training_loss(self, context: Tensor, target: Tensor, *, step: int, total_steps: int) -> Tensor:
        """Returns the mean cross-entropy of the codes `()`, each weighted by its share of known pixels."""
        codes, vectors = self.encode(filled(target))
        if given := self.transformer.given:
            vectors = torch.cat((self.encode(context)[1][:, -given:], vectors), dim=1)
        logits = self.transformer(vectors, self.transformer.encoded(context))
        entropy = F.cross_entropy(logits.float().flatten(0, 1), codes.flatten(), reduction="none")
        share = known_share(target, (target.shape[1], *self.transformer.code_shape[1:]))
        return share_weighted_mean(entropy, share.flatten())

    def validation_loss(self, context: Tensor, target: Tensor) -> Tensor:
        """Returns the same of a module in evaluation mode."""
        return self.training_loss(context, target, step=0, total_steps=1)
