"""The composition root: the only package that builds the parts and joins them."""

from node.app.backing_up import make_backup, make_replication, stores_of
from node.app.building import Services, open_archive, open_reports, open_stores
from node.app.job_wiring import make_audit, make_scrub, plan_jobs, send_to_peer
from node.app.node import Node
from node.app.rebuilding import compact_journal, rebuild_index, restore_backup
