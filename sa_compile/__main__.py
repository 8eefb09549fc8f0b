"""``python -m sa_compile``."""

from sa_compile.cli import main

raise SystemExit(main())
