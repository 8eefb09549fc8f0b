"""The coverage census: every causal language model of transformers, built tiny, compiled and compared."""
