"""One module per command of ``latent-pacs``."""
