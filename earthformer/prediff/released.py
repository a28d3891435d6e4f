"""The checkpoints released by PreDiff's authors: their names, and why none can be downloaded today.

Importing this module does not import torch.

Source: https://github.com/gaozhihan/PreDiff; its issues 43 and 46 report the dead links.
"""

from __future__ import annotations

from dataclasses import dataclass

RELEASED_FILES = {
    "autoencoder": "pretrained_sevirlr_vae_8x8x64_v1.pt",
    "denoiser": "pretrained_sevirlr_earthformerunet_v1.pt",
    "alignment": "pretrained_sevirlr_alignment_avg_x_cuboid_v1.pt",
}
"""The authors' names of the released checkpoints."""


@dataclass(frozen=True)
class LostCheckpoint:
    """A published checkpoint whose URL is dead; a copy of your own can be used.

    Attributes:
        file: published name of the file.
        url: always None.
        missing_because: why it cannot be downloaded.
        usage: how to use a local file; ``{path}`` is its path.
    """

    file: str
    missing_because: str
    usage: str
    url: None = None


def _lost(stage: str, model: str) -> LostCheckpoint:
    return LostCheckpoint(
        file=RELEASED_FILES[stage],
        missing_because=(
            f"the authors' link to {RELEASED_FILES[stage]} is dead (404: issues 43 and 46 of "
            "https://github.com/gaozhihan/PreDiff); a comment in their prediff/utils/download.py names copies"
        ),
        usage=(
            f"earthbench run task=sevir_lr model={model} train={model}_sevir_lr data.root=DIR "
            f"train.stages.{stage}.checkpoint={{path}}\n"
            f"in Python: earthformer.prediff.load_{stage}(config, '{{path}}'), config from the authors' YAML file"
        ),
    )


AUTOENCODER = _lost("autoencoder", "prediff")
"""PreDiff's frame-wise autoencoder of SEVIR-LR (84,499,393 parameters): no link works, bring your own file."""
DENOISER = _lost("denoiser", "prediff")
"""PreDiff's denoiser of SEVIR-LR (136,817,538 parameters): no link works, bring your own file."""
ALIGNMENT = _lost("alignment", "prediff_ka")
"""PreDiff's alignment network of SEVIR-LR (8,937,033 parameters): no link works, bring your own file."""
