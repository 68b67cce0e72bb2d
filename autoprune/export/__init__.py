"""Finished networks as files: a package that loads without a search, and ONNX."""
