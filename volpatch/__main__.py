"""`python -m volpatch`: the command, without its script."""

from volpatch.cli import main

if __name__ == "__main__":
    main()
