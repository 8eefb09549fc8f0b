"""The op ``select_budget``: sampled rows, and what of their attention may be left out."""
