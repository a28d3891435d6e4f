"""Training stages of VideoGPT: the interface, and the stage of the transformer; see also `baselines.vqvae.VQVAEStage`.

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
        name: Name of the stage.
        module: The module to train; it shares its network with the model. It has
            `training_loss(context, target, *, step, total_steps)` -> {name: term} or loss, and
            `validation_loss(context, target)`, which uses no random numbers.
        part: The network that the stage trains.
        depends_on: Hyperparameters that its weights depend on, besides those of earlier stages.
        prepare: Called once before training, with contexts and targets of the whole training split.
    """

    name: str
    module: nn.Module
    part: nn.Module
    depends_on: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[Iterable[Sequence[Tensor]]], None] | None = None

    def load(self, path: str | Path) -> None:
        """Loads the weights of the network from a file that holds them alone or with other parts of a model.

        Raises:
            OSError: the file cannot be read.
            ValueError: it holds no weights, or weights that do not fit; all differences are named.
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
    """Trains the transformer on the trained VQ-VAE's codes of target frames."""

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
        """Returns the same loss, for a module in evaluation mode."""
        return self.training_loss(context, target, step=0, total_steps=1)
