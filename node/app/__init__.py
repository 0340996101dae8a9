"""The composition root: the only place where the parts are built and joined."""

from __future__ import annotations

from node.app.jobs import make_audit, make_scrub, make_validation, plan_jobs
from node.app.node import Node
from node.app.rebuilding import rebuild_index
from node.app.services import Services, open_reports, open_stores, services
from node.archive.opening import runs_here

__all__ = [
    "Node",
    "Services",
    "make_audit",
    "make_scrub",
    "make_validation",
    "open_reports",
    "open_stores",
    "plan_jobs",
    "rebuild_index",
    "runs_here",
    "services",
]
