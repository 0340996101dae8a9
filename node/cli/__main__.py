"""``python -m node.cli``: the same as the command ``latent-pacs``."""

from node.cli.main import run

run()
