"""What config.yaml allows and prefers for each AE title."""

from __future__ import annotations

from typing import Any

from node.config import Peer, RenditionPolicy, Settings, Texture, Verb, WireSyntax


class Peers:
    """The peers of config.yaml. ``unknown_peers`` applies to other AE titles."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def calling(self, event: Any) -> str:
        """The calling AE title of an event's association."""
        return str(event.assoc.requestor.ae_title).strip()

    def may(self, ae_title: str, verb: Verb) -> bool:
        """True if that AE title may use that service."""
        peer = self._settings.peer(ae_title)
        allowed: tuple[str, ...] = self._settings.allowed_to_unknown_peers if peer is None else peer.allow
        return verb in allowed

    def rendition(self, ae_title: str) -> RenditionPolicy:
        """The rendition that is sent to that AE title."""
        peer = self._settings.peer(ae_title)
        return RenditionPolicy.ORIGINAL if peer is None else peer.rendition

    def draws(self, ae_title: str) -> bool:
        """Whether reconstructions are sent to that AE title with drawn noise."""
        peer = self._settings.peer(ae_title)
        own = None if peer is None else peer.texture
        return (own or self._settings.reconstruct.texture) is Texture.DRAWN

    def rewrites(self, ae_title: str) -> bool:
        """Whether annotations are sent to that AE title as copies whose references name what it gets."""
        peer = self._settings.peer(ae_title)
        return peer is not None and peer.references == "rewrite"

    def transfer_syntaxes(self, ae_title: str) -> tuple[WireSyntax, ...]:
        """The transfer syntaxes that config.yaml prefers for that AE title, best first."""
        peer = self._settings.peer(ae_title)
        return () if peer is None else peer.transfer_syntaxes

    def destination(self, ae_title: str) -> Peer | None:
        """The peer to move to, if it is known and has an address."""
        peer = self._settings.peer(ae_title)
        return peer if peer is not None and peer.reachable else None
