"""`imgcache`: the entry point. The action script starts without the command line's libraries."""

import gc
import sys


def main() -> None:
    """Run the command that was asked for."""
    if sys.argv[1:2] == ["hook"]:
        from imgcache import hook

        sys.exit(hook.main())
    gc.disable()  # while what stays is made: a tenth of the start
    from imgcache import cli

    gc.freeze()  # none of it is looked at again
    gc.enable()
    cli.app()


if __name__ == "__main__":
    main()
