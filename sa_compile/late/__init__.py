"""Attention whose mask or offset only a running graph knows: what is read of them, and the ops that do it."""
