"""config.yaml as frozen, strict settings. The defaults are in the sections; config.yaml explains every key."""

from node.config.encoding_sections import EligibilitySettings, ReconstructSettings
from node.config.job_sections import AuditSettings, DriftSettings, ScrubSettings, ToleranceSettings, ValidationSettings
from node.config.loading import DEFAULT_FILE, as_data, as_yaml, load, parse
from node.config.peer_entry import add_peer
from node.config.sections import CommitmentSettings, LogSettings, MetricsSettings, Peer, TlsSettings
from node.config.settings import Settings
from node.config.values import (
    Profile,
    RenditionPolicy,
    Texture,
    Verb,
    When,
    WireSyntax,
    parse_sample,
    parse_share,
    parse_when,
    retention_text,
)
