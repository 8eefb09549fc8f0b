"""One prompt on several ranks: context parallel, on torch.distributed and transformers."""
