"""Profile files as the tuner writes them, with options that a test chooses."""

from __future__ import annotations

import json
from pathlib import Path

import torch

import sa_compile
from sa_compile.fingerprint import fingerprint
from sa_compile.profile import FORMAT, VERSION


def model_of(model, tokens):
    """The fingerprint of a model as plain data."""
    with torch.no_grad():
        sites = sa_compile.explain(model, tokens, use_cache=False).sites
    return fingerprint(model, sites).to_dict()


def profile_data(model, ranges):
    """``ranges``: (first, last, options) each; ``model``: a fingerprint as plain data."""
    rows = [{"first": first, "last": last, "options": options} for first, last, options in ranges]
    return {"format": FORMAT, "version": VERSION, "model": model, "ranges": rows}


def write_profile(path: Path, model, ranges) -> str:
    """Write a profile file and return its path as the option takes it."""
    path.write_text(json.dumps(profile_data(model, ranges)))
    return str(path)
