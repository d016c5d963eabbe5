"""`imgcache`: the entry point. The action script starts without the command line's libraries."""

import sys


def main() -> None:
    """Run the command that was asked for."""
    if sys.argv[1:2] == ["hook"]:
        from imgcache import hook

        sys.exit(hook.main())
    from imgnode.quick_start import loading

    with loading():
        from imgcache import cli
    cli.app()


if __name__ == "__main__":
    main()
