"""Settings of method C that ops, options and the evaluation's rule share; docs/accuracy.md: how chosen."""

ADAPTIVE_TAU = 0.2
ADAPTIVE_LANDMARKS = 16
