"""What the ops share: the index of blocks, rows, visibility, checks, helpers of every implementation."""
