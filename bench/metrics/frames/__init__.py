"""Scores of frames as images: errors per frame, SSIM, PSNR, LPIPS."""

from bench.renamed import attributes

__getattr__ = attributes(__name__)
