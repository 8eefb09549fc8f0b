"""The ops on a CUDA device against dense attention and FlexAttention: ``python -m sa_compile bench ops``."""
