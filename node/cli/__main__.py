"""The command ``latent-pacs``, and ``python -m node.cli``.

A worker process imports the main module of its parent, so this module imports the commands only when it runs.
"""


def main() -> None:
    """Run the command line."""
    from node.cli.main import run
    from node.cli.standard_output import name_standard_output

    name_standard_output()
    run()


if __name__ == "__main__":
    main()
