"""The command `secagg`, or the one line that installs what it needs."""

import sys


def main() -> None:
    """Run the command line; exit with 2 where its libraries are missing."""
    try:
        import rich  # noqa: F401 - used inside the commands

        from fedavg.cli import cli
    except ModuleNotFoundError as error:
        if error.name not in ("click", "rich"):
            raise
        print("The command needs its extra: pip install 'secagg[cli]'", file=sys.stderr)
        sys.exit(2)
    cli(prog_name="secagg")


if __name__ == "__main__":
    main()
