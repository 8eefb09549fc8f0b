"""Matchers: one module a spelling of attention, each with ``find(scan)``, the sites in that spelling."""

from __future__ import annotations

from ..graph.scan import GraphScan
from ..site import AttentionSite
from . import eager, flex, opaque, sdpa

SPELLINGS = (sdpa, eager, flex, opaque)


def find_sites(scan: GraphScan) -> list[AttentionSite]:
    """Every attention of this graph, in order; child graph modules are not entered."""
    sites = [site for spelling in SPELLINGS for site in spelling.find(scan)]
    return sorted(sites, key=lambda site: site.output)
