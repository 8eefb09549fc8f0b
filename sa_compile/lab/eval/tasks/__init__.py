"""Tasks: documents with facts and questions, long text, and published benchmarks."""
