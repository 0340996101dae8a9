"""Take only the response to a C-STORE as its answer.

pynetdicom 3.0: ``Association.send_c_store`` takes the next message as the response, whatever it is and whichever
Message ID it answers. After a peer that answers an image twice, each image has the status of the one before it.
Upstream: not reported.
Remove when ``send_c_store`` compares Message ID Being Responded To (0000,0120).
"""

from __future__ import annotations

import logging
from typing import Any

from pynetdicom.dimse_primitives import C_STORE

LOGGER = logging.getLogger(__name__)


def answers_another(assoc: Any, message: Any, message_id: int | None) -> bool:
    """Whether a message is a response, but not to the C-STORE with that Message ID. The log names it then.

    ``message``: None if the association has ended.
    """
    answered = getattr(message, "MessageIDBeingRespondedTo", None)
    if answered is None or message_id is None or (isinstance(message, C_STORE) and answered == message_id):
        return False
    LOGGER.warning(
        "%s answers message %d with %s, while message %d waits for its answer",
        *(assoc.remote["address"], answered, message.msg_type, message_id),
    )
    return True
