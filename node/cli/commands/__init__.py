"""The commands of ``latent-pacs``, each in the module of its name."""
