"""`python -m volpatch`: the command, without its script."""

from volpatch.cli.main import main

if __name__ == "__main__":
    main()
