"""``python -m troth`` is the ``troth`` command, as ``torchrun -m troth`` needs it."""

from troth.cli import main

if __name__ == "__main__":
    main()
