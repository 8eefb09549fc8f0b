"""Accuracy: tasks, selection rules behind one interface, and the harness that runs a model with them."""
