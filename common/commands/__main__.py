"""`python -m tunebook.common.commands` is `tunebook`."""

from tunebook.common.commands import main

if __name__ == "__main__":
    main()
