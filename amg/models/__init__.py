"""Diffusion models behind one protocol (`amg.models.base.Model`); one file each."""
