"""`python -m common.commands` is `tunebook`."""

from common.commands import main

if __name__ == "__main__":
    main()
