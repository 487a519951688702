"""Artifacts on disk."""

from geoquant.export.packed import PLAN_FILE, WEIGHTS_FILE, Artifact, checksum, load, read_artifact, save

__all__ = ["PLAN_FILE", "WEIGHTS_FILE", "Artifact", "checksum", "load", "read_artifact", "save"]
