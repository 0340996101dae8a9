"""The command ``latent-pacs``, and ``python -m node.cli``.

A worker process imports the module that its parent was started from: this one imports the commands only when it runs.
"""


def main() -> None:
    """Run a command."""
    from node.cli.main import run

    run()


if __name__ == "__main__":
    main()
