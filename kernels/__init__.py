"""The ops of SampleAttention: a folder an op, what they share, and which implementation runs where."""
