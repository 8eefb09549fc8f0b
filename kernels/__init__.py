"""The ops of SampleAttention: schemas (ops), oracle (reference), index conversions (blocks), implementations."""
