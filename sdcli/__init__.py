"""Stable Diffusion under a memory ceiling that you set: predicted, kept and proved."""

__version__ = "0.1.0"
