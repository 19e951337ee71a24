"""`python -m zander` is `zander`."""

from zander.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
