"""The command `advconn`, and python -m advconn: an interrupt is told in one line from the very start."""

import sys


def main() -> None:
    """Run the command line."""
    try:
        from advconn.cli import main as command
    except KeyboardInterrupt:
        sys.stderr.write("advconn: interrupted\n")
        sys.exit(130)
    command(prog_name="advconn")


if __name__ == "__main__":
    main()
