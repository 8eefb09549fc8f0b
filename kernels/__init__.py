"""The ops of SampleAttention: schemas (ops), oracle (reference), index (blocks), implementations."""
