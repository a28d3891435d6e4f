"""Flips and rotations of training sequences, each sequence turned as a whole.

Source: PreDiff's released settings: quarter turns for sequences ("2"), any angle for single frames ("1").
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def random_symmetry(sequences: Tensor) -> Tensor:
    """Returns sequences (B, T, H, W, C), each flipped and turned by one of the symmetries of its frame, at random.

    Frames that are not square are turned by half turns only.
    """
    square = sequences.shape[2] == sequences.shape[3]
    turned = []
    for sequence, draw in zip(sequences, torch.randint(8, (len(sequences),)).tolist(), strict=True):
        if draw & 4:
            sequence = sequence.flip(1)
        turned.append(sequence.rot90((draw & 3) if square else 2 * (draw & 1), (1, 2)))
    return torch.stack(turned)


def random_turn(frames: Tensor) -> Tensor:
    """Returns frames (N, C, H, W), each flipped at random and turned by a random angle, zero where nothing was."""
    count, _, height, width = frames.shape
    angle = (torch.rand(count) * 2 - 1) * math.pi
    flip = torch.randint(2, (2, count)).float() * 2 - 1
    cos, sin = angle.cos(), angle.sin()
    # In the grid's units a pixel is 2/W wide and 2/H high: a turn must not stretch the frame.
    rows = (cos * flip[0], -sin * (height / width) * flip[0]), (sin * (width / height) * flip[1], cos * flip[1])
    turn = torch.stack([torch.stack((*row, torch.zeros(count)), dim=1) for row in rows], dim=1).to(frames)
    grid = F.affine_grid(turn, list(frames.shape), align_corners=False)
    return F.grid_sample(frames, grid, mode="nearest", padding_mode="zeros", align_corners=False)
