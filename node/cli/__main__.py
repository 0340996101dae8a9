"""The command ``latent-pacs``, and ``python -m node.cli``.

A worker process imports the main module of its parent, so this module imports the commands only when it runs.
"""


def main() -> None:
    """Run the command line. A signal ends a command that does not handle it, after the command has cleaned up."""
    import signal
    import sys

    from node.cli.exit_codes import UNFINISHED
    from node.cli.stop_signals import heeded_signals

    for number in heeded_signals():
        signal.signal(number, lambda *_: sys.exit(UNFINISHED))
    from node.cli.standard_output import name_standard_output, replace_closed_streams

    replace_closed_streams()
    from node.cli.main import run

    name_standard_output()
    run()


if __name__ == "__main__":
    main()
