"""The op ``block_sparse_attention``: exact attention over the kept blocks of an index."""
