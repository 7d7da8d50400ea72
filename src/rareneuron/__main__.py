"""`python -m rareneuron`, the command line where no script is on the path."""

from rareneuron.cli import main

if __name__ == "__main__":
    main()
