"""``python -m dd2_lightning.cli …`` is ``dd2 …``."""

from dd2_lightning.cli.main import main

if __name__ == "__main__":
    main()
