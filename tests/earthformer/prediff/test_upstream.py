"""The authors' configs and checkpoints: read strictly, written back, and equal in their results."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

from earthformer.prediff.upstream import (
    load_alignment,
    load_autoencoder,
    load_denoiser,
    load_part,
    to_upstream_state_dict,
)

VAE: dict[str, Any] = {
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4, "in_channels": 1,
    "out_channels": 1, "block_out_channels": [16, 16, 32, 32], "act_fn": "silu", "latent_channels": 4,
    "norm_num_groups": 8, "layers_per_block": 2, "data_channels": 1, "pretrained_ckpt_path": "x.pt",
}  # fmt: skip
SHARED: dict[str, Any] = {
    "base_units": 16, "scale_alpha": 1.0, "num_heads": 4, "attn_drop": 0.1, "proj_drop": 0.1, "ffn_drop": 0.1,
    "downsample": 2, "downsample_type": "patch_merge", "num_global_vectors": 0, "use_global_vector_ffn": False,
    "use_global_self_attn": True, "separate_global_qkv": True, "global_dim_ratio": 1, "ffn_activation": "gelu",
    "gated_ffn": False, "norm_layer": "layer_norm", "padding_type": "zeros", "pos_embed_type": "t+h+w",
    "checkpoint_level": 0, "use_relative_pos": True, "self_attn_use_final_proj": True, "attn_linear_init_mode": 0,
    "ffn_linear_init_mode": 0, "ffn2_linear_init_mode": 2, "attn_proj_linear_init_mode": 2, "conv_init_mode": 0,
    "global_proj_linear_init_mode": 2, "norm_init_mode": 0, "time_embed_channels_mult": 4,
    "time_embed_use_scale_shift_norm": False, "time_embed_dropout": 0.0,
}  # fmt: skip
UNET: dict[str, Any] = SHARED | {
    "input_shape": [3, 8, 8, 4], "target_shape": [2, 8, 8, 4], "depth": [2, 1], "upsample_type": "upsample",
    "upsample_kernel_size": 3, "unet_res_connect": True, "block_attn_patterns": ["axial", "axial"],
    "down_linear_init_mode": 0, "up_linear_init_mode": 0,
}  # fmt: skip
ALIGN: dict[str, Any] = SHARED | {
    "input_shape": [2, 8, 8, 4], "out_channels": 1, "depth": [1, 1], "block_attn_patterns": "axial",
    "use_inter_ffn": True, "hierarchical_pos_embed": False, "down_linear_init_mode": 0, "pool": "attention",
    "readout_seq": True, "out_len": 2,
}  # fmt: skip


def test_upstream_autoencoder_weights_follow_the_specification(oracle: ModuleType, randomise) -> None:
    weights = to_upstream_state_dict(randomise(load_autoencoder(VAE)))
    renamed = [name for name in weights if ".attentions.0." in name and "group_norm" not in name]
    assert len(renamed) == 16
    assert {name.split(".")[4] for name in renamed} == {"query", "key", "value", "proj_attn"}
    model = load_autoencoder({"model": {"vae": VAE}}, weights)
    image, latents = torch.rand(2, 1, 32, 32), torch.randn(2, 4, 4, 4)
    with torch.no_grad():
        posterior = model.encode(image).latent_dist
        mean, logvar = oracle.encode(weights, image, 8)
        oracle.agree(posterior.mean, mean)
        oracle.agree(posterior.logvar, logvar)
        oracle.agree(model.decode(latents).sample, oracle.decode(weights, latents, 8))
    today = {name: value for name, value in model.state_dict().items()}
    load_part(load_autoencoder(VAE), today)  # diffusers' present names are read too


def test_denoiser_and_alignment_from_official_arguments(oracle: ModuleType, randomise) -> None:
    z, t = torch.randn(2, 2, 8, 8, 4), torch.tensor([1, 700])
    cond = torch.randn(2, 3, 8, 8, 4)
    weights = to_upstream_state_dict(randomise(load_denoiser(UNET)))
    with torch.no_grad():
        unet = load_denoiser(
            {"latent_model": {**UNET, "self_pattern": "axial"} | {"block_attn_patterns": "axial"}}, weights
        )
        oracle.agree(unet(z, t, cond), oracle.unet(weights, z, t, cond))
        weights = to_upstream_state_dict(randomise(load_alignment(ALIGN)))
        section = {
            "align": {"alignment_type": "avg_x", "guide_scale": 50.0, "model_type": "cuboid", "model_args": ALIGN}
        }
        network = load_alignment(section, weights)
        oracle.agree(network(z, t), oracle.alignment(weights, z, t))
        assert not network.training


def test_one_network_is_extracted_from_a_lightning_checkpoint() -> None:
    unet, vae = load_denoiser(UNET), load_autoencoder(VAE)
    entries = {f"torch_nn_module.{name}": value for name, value in unet.state_dict().items()}
    entries |= {f"first_stage_model.{name}": value for name, value in to_upstream_state_dict(vae).items()}
    entries["logvar"] = torch.zeros(1000)
    with pytest.warns(UserWarning, match=r"left out: first_stage_model \(244\), logvar \(1\)"):
        load_denoiser(UNET, {"state_dict": entries})
    with pytest.warns(UserWarning, match="logvar"):
        load_autoencoder(VAE, {"state_dict": entries})


def test_mismatched_weights_are_listed(tmp_path) -> None:
    weights = to_upstream_state_dict(load_alignment(ALIGN))
    weights["surplus"] = weights.pop("out.0.bias")
    weights["out.0.weight"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"(?s)1 missing:\s+out.0.bias.*unexpected:\s+surplus.*found \(3,\)"):
        load_alignment(ALIGN, weights)
    with pytest.raises(FileNotFoundError, match="expected a file"):
        load_alignment(ALIGN, tmp_path / "missing.pt")
    torch.save({"weights": object()}, tmp_path / "code.pt")
    with pytest.raises(ValueError, match="objects that need code"):
        load_alignment(ALIGN, tmp_path / "code.pt")
    torch.save(to_upstream_state_dict(load_alignment(ALIGN)), tmp_path / "whole.pt")
    load_alignment(ALIGN, tmp_path / "whole.pt")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"depht": [1]}, "unknown depht"),
        ({"num_global_vectors": 4}, "num_global_vectors = 0, the only value that works, found 4"),
        ({"hierarchical_pos_embed": True}, "hierarchical_pos_embed = False"),
        ({"pool": "spatial"}, "pool = 'attention'"),
        ({"out_len": 5}, "out_len = 2 frames, found 5"),
    ],
)
def test_invalid_configs_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_alignment(ALIGN | change)


def test_configs_without_shapes_or_with_other_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="expected input_shape, target_shape"):
        load_denoiser({"base_units": 16})
    with pytest.raises(ValueError, match="4 times DownEncoderBlock2D"):
        load_autoencoder(VAE | {"down_block_types": ["AttnDownEncoderBlock2D"] * 4})
    with pytest.raises(ValueError, match="as many out_channels"):
        load_autoencoder(VAE | {"out_channels": 3})
