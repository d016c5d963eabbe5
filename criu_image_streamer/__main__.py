"""`criu-image-streamer`: the entry point. It is started for each dump and each restore: it loads only what it needs."""

import sys


def main() -> None:
    """Run the command that was asked for."""
    from criu_image_streamer import cli

    sys.exit(cli.run(sys.argv[1:]))


if __name__ == "__main__":
    main()
