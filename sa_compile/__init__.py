"""SampleAttention as a torch.compile backend: ``torch.compile(model, backend="sampleattn")``."""

from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sa_compile.config import SampleAttentionConfig as SampleAttentionConfig
    from sa_compile.distributed.model import context_parallel as context_parallel
    from sa_compile.gathered_stats import Stats as Stats
    from sa_compile.gathered_stats import reset_stats as reset_stats
    from sa_compile.gathered_stats import stats as stats
    from sa_compile.inspection import check_profile as check_profile
    from sa_compile.inspection import explain as explain
    from sa_compile.report import Report as Report

__version__ = metadata.version("sa_compile")
_PUBLIC = {
    "Report": "report",
    "SampleAttentionConfig": "config",
    "Stats": "gathered_stats",
    "check_profile": "inspection",
    "context_parallel": "distributed.model",
    "explain": "inspection",
    "reset_stats": "gathered_stats",
    "stats": "gathered_stats",
}
__all__ = [
    "Report",
    "SampleAttentionConfig",
    "Stats",
    "check_profile",
    "context_parallel",
    "explain",
    "reset_stats",
    "stats",
]


def __getattr__(name: str) -> Any:
    """Load the public names on first use, so that ``python -m sa_compile --help`` does not wait for torch."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'sa_compile' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"sa_compile.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value
