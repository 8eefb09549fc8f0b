"""Settings of method C that the ops, the backend's options and the evaluation's rule share; docs/accuracy.md says how
they were chosen."""

ADAPTIVE_TAU = 0.2
ADAPTIVE_LANDMARKS = 16
