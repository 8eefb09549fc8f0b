"""The op ``sample_scores``: attention of sampled rows, summed per key block and per block diagonal."""
